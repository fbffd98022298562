"""Weights as the graph builder sees them, whatever file they come from."""
