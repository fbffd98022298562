"""A small model of how likely a language model is to answer a prompt wrongly."""
