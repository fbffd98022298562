"""The embedded broker's process: `python -m fleet_cli.embedded_broker CONFIG`.

It ends when its standard input is closed, so it cannot outlive whoever started it, on any system.
"""

from __future__ import annotations

import logging
import os
import sys
import threading


def main() -> None:
    """Run the broker until we are told to stop."""
    from iotcore import IotCoreBroker  # noqa: PLC0415  # optional, and only this process needs it

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    # It writes a record of level ERROR for every packet it routes.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    IotCoreBroker(config_path=sys.argv[1]).run_forever()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
