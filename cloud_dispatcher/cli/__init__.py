"""The command line of the dispatcher."""
