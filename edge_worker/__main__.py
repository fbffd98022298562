"""Entry point of `edge-worker`."""

from edge_worker.cli.program import main

if __name__ == "__main__":
    main()
