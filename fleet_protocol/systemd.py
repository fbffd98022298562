"""What systemd is told of a program: that it serves, that it lives, what it does, that it ends.

The protocol is sd_notify(3): a datagram of lines `NAME=value` to the socket that `NOTIFY_SOCKET`
names. Without that variable nobody is told, and nothing else changes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

_BEATS_A_SPAN: Final = 4
"""Signs of life within the span after which systemd takes a program for hung."""
_MICROSECONDS: Final = 1_000_000


class ServiceNotifier:
    """Tells systemd how a program is.

    Args:
        address: Path of systemd's socket, `@` before an abstract one; empty: nobody is told.
        watchdog_s: Silence after which systemd ends the program; None: it does not watch.
        now_s: Seconds that never go back.
    """

    def __init__(
        self,
        address: str = "",
        *,
        watchdog_s: float | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._now_s = now_s
        self._beat_s = None if watchdog_s is None else watchdog_s / _BEATS_A_SPAN
        self._due_at_s = 0.0
        self._is_ready = False

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> ServiceNotifier:
        """Return what systemd asked for in the environment."""
        span = environ.get("WATCHDOG_USEC", "")
        is_for_us = environ.get("WATCHDOG_PID", "") in {"", str(os.getpid())}
        watchdog_s = int(span) / _MICROSECONDS if span.isdecimal() and is_for_us else None
        return cls(environ.get("NOTIFY_SOCKET", ""), watchdog_s=watchdog_s)

    @property
    def beat_s(self) -> float:
        """How often `alive` must be called at least; an hour if nobody watches."""
        return 3_600.0 if self._beat_s is None else self._beat_s

    def alive(self) -> None:
        """Say that the program serves, the first time; afterwards that it still does.

        Meant for each turn of a loop: all but a few calls do nothing.
        """
        if not self._is_ready:
            self._is_ready = True
            self._due_at_s = self._now_s() + self.beat_s
            self._tell("READY=1\nSTATUS=serving")
        elif self._beat_s is not None and self._now_s() >= self._due_at_s:
            self._due_at_s = self._now_s() + self._beat_s
            self._tell("WATCHDOG=1")

    def doing(self, what: str) -> None:
        """Say in one line what the program does; `systemctl status` shows it."""
        self._tell(f"STATUS={what}")

    def stopping(self) -> None:
        """Say that the program ends, and may take the time it is given for that."""
        self._tell("STOPPING=1\nSTATUS=finishing what it has")

    def _tell(self, lines: str) -> None:
        if not self._address:
            return
        # Never waits and never fails: a service manager that does not listen is no reason to end.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as link,
        ):
            link.sendto(lines.encode(), self._address)
