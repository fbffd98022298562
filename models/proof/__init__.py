"""That a graph works: its divergence, its answers, its memory and speed."""
