"""The `fleet` command: one program to start, ask, watch and command a fleet."""
