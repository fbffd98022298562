"""The pages, and what renders the derived ones."""
