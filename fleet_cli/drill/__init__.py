"""`fleet drill`: a test fleet of real processes, faults, and an audit of its jobs."""
