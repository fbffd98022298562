"""Where weights come from: a pinned download, a hub, a file of one's own."""
