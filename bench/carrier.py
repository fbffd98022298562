"""What a broker carries for a client written in C: one hop, at QoS 1, end to end.

`mosquitto_pub -l` publishes lines of the size of a submission, `mosquitto_sub` takes them: each
message is acknowledged on both sides, as ours are.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

_TOPIC = "bench/carried"
_READY = "ready"
_WITHIN_S = 120


def require_client() -> None:
    """Look whether the C client is there.

    Raises:
        SystemExit: It is not.
    """
    for name in ("mosquitto_pub", "mosquitto_sub"):
        if shutil.which(name) is None:
            raise SystemExit(f"{name} is missing: apt install mosquitto-clients")


def carried_per_s(url: str, *, messages: int, payload: bytes) -> float:
    """Return how many messages a second came from the publisher to the subscriber.

    Args:
        url: The broker's.
        messages: How many are sent.
        payload: Each of them; without a line break.
    """
    where = urlsplit(url)
    at = ["-h", str(where.hostname), "-p", str(where.port), "-V", "mqttv5", "-q", "1"]
    _publish_ready(at)
    count = str(messages + 1)
    taker = subprocess.Popen(
        ["mosquitto_sub", *at, "-t", f"{_TOPIC}/#", "-C", count], stdout=subprocess.PIPE
    )
    try:
        if taker.stdout is None:
            raise AssertionError("it was started with a pipe")
        # The retained message comes as soon as it is subscribed.
        taker.stdout.readline()
        with tempfile.TemporaryDirectory() as folder:
            lines = Path(folder) / "lines"
            lines.write_bytes((payload + b"\n") * messages)
            begun = time.perf_counter()
            with lines.open("rb") as source:
                sender = subprocess.Popen(
                    ["mosquitto_pub", *at, "-t", f"{_TOPIC}/line", "-l"], stdin=source
                )
                taker.communicate(timeout=_WITHIN_S)
                took_s = time.perf_counter() - begun
                sender.wait(_WITHIN_S)
    finally:
        taker.kill()
        taker.wait()
    if taker.returncode or sender.returncode:
        raise SystemExit(f"mosquitto_sub ended with {taker.returncode}: not all messages came")
    return messages / took_s


def _publish_ready(at: list[str]) -> None:
    words = ["mosquitto_pub", *at, "-t", f"{_TOPIC}/{_READY}", "-r", "-m", _READY]
    subprocess.run(words, check=True, timeout=_WITHIN_S)
