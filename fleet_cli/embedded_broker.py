"""The embedded broker's process: `python -m fleet_cli.embedded_broker CONFIG`.

It ends when its standard input is closed, so it cannot outlive whoever started it, on any system.
It also ends when the broker panics: rumqttd goes on after that, but behind a poisoned lock it
takes no new client in, ever. Whoever supervises this process starts it again.
"""

from __future__ import annotations

import logging
import os
import sys
import threading

_PANIC_EXIT_CODE = 70


def main() -> None:
    """Run the broker until we are told to stop."""
    from iotcore import IotCoreBroker  # noqa: PLC0415  # optional, and only this process needs it

    words, ours = os.pipe()
    log = os.dup(2)
    os.dup2(ours, 2)
    for name, task in (("end-with-parent", _end_with_parent), ("end-with-panic", _end_with_panic)):
        threading.Thread(target=task, args=(words, log), name=name, daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    # It writes a record of level ERROR for every packet it routes.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    IotCoreBroker(config_path=sys.argv[1]).run_forever()


def _end_with_parent(_words: int, _log: int) -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _end_with_panic(words: int, log: int) -> None:
    """Pass on what is written to standard error, and end where it is a panic."""
    with os.fdopen(words, "rb", buffering=0) as source:
        while data := source.read(65_536):
            os.write(log, data)
            if b"panicked at" in data:
                os._exit(_PANIC_EXIT_CODE)


if __name__ == "__main__":
    main()
