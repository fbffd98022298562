"""How a graph is written, and in plain numpy what it must compute."""
