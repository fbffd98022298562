"""The command line of the worker.

The program itself is imported by the command that needs it: `--help` and `--version` work without
what the extra `edge` installs.
"""
