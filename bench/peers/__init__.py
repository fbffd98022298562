"""What the same work costs with other tools."""
