"""The program in the cloud: stores each job, picks the best board, escalates what is too hard."""
