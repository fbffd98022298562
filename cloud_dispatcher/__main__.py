"""`cloud-dispatcher`, also as `python -m cloud_dispatcher`."""

from __future__ import annotations

from cloud_dispatcher.cli.main import main

if __name__ == "__main__":
    main()
