"""Waiting for what is looked at from outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

PATIENCE_S: Final = 300.0
"""Far beyond what anything takes: a machine that others use as well may be slow."""


def wait_until(
    is_so: Callable[[], bool], why: Callable[[], object] = lambda: "", *, every_s: float = 0.2
) -> None:
    """Look again and again; fail in the end, with what `why` says."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline_s, why()
        time.sleep(every_s)
