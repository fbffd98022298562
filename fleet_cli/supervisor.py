"""Child processes that are started again when they crash, and stopped in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Protocol

import msgspec

from fleet_cli.tether import tethered
from fleet_protocol.errors import FleetError

_LOG_KEPT_BYTES = 10_000_000
_TAIL_LINES = 12


class RestartPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait before a crashed child starts again; the pause doubles each time.

    Attributes:
        healthy_s: A child that lived this long has earned a fresh count.
    """

    first_s: float = 0.5
    most_s: float = 30.0
    healthy_s: float = 60.0

    def pause_s(self, crashes: int) -> float:
        """Return the pause after the given number of crashes in a row, from 1."""
        return min(self.first_s * 2.0 ** min(crashes - 1, 16), self.most_s)

    def crashes_after(self, crashes: int, lived_s: float) -> int:
        """Return the crashes in a row, the one of a child that lived `lived_s` included."""
        return 1 if lived_s >= self.healthy_s else crashes + 1


class ChildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A process to keep running.

    Attributes:
        words: Its command line.
        environ: Its whole environment.
        log: File that its output is appended to.
        stop_s: How long it may take to stop before it is killed.
    """

    words: tuple[str, ...]
    environ: Mapping[str, str]
    log: Path
    stop_s: float = 10.0


class Service(Protocol):
    """Something that runs beside us, such as a `Child` or a `BrokerProcess`."""

    def start(self) -> None:
        """Start it, or start it again."""
        ...

    def exit_code(self) -> int | None:
        """Return how it ended; None while it runs."""
        ...

    def ask_to_stop(self) -> None:
        """Begin to stop it, without waiting."""
        ...

    def stop(self) -> None:
        """Stop it and wait; kill it if it takes too long."""
        ...

    def last_words(self) -> str:
        """Return the end of its log."""
        ...


class Child:
    """A process of ours, tethered to us."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begins_at = 0

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process; call it from the main thread, whose death the tether watches."""
        _shorten(self.spec.log)
        with self.spec.log.open("ab") as log:
            self._log_begins_at = log.tell()
            self._process = _spawn(self.spec, log)

    def exit_code(self) -> int | None:
        """Return how it ended; None while it runs."""
        return self._process.poll() if self._process is not None else None

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Stop it and wait; kill it if it takes too long."""
        if self._process is None:
            return
        self.ask_to_stop()
        try:
            self._process.wait(self.spec.stop_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        """Return the end of what this run of it has logged."""
        try:
            with self.spec.log.open("rb") as log:
                log.seek(self._log_begins_at)
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_TAIL_LINES:])


class _Watched(msgspec.Struct, kw_only=True):
    name: str
    service: Service
    started_at_s: float
    crashes: int = 0
    restart_at_s: float | None = None


class Supervisor:
    """Keeps services running. One thread, the main one, owns it and calls `tick` often."""

    def __init__(self, tell: Callable[[str], None], policy: RestartPolicy | None = None) -> None:
        self._tell = tell
        self._policy = policy or RestartPolicy()
        self._watched: list[_Watched] = []

    def start(self, name: str, service: Service) -> None:
        """Start a service and watch it from now on; `name` is for people."""
        service.start()
        self._watched.append(_Watched(name=name, service=service, started_at_s=time.monotonic()))

    def tick(self) -> None:
        """Look after every service once."""
        now_s = time.monotonic()
        for watched in self._watched:
            self._look_after(watched, now_s)

    def crashes(self, name: str) -> int:
        """Return how often in a row a service has crashed."""
        return self._of(name).crashes

    def exit_code(self, name: str) -> int | None:
        """Return how a service ended; None while it runs."""
        return self._of(name).service.exit_code()

    def last_words(self, name: str) -> str:
        """Return the end of what a service logged since it was started last."""
        return self._of(name).service.last_words()

    def _of(self, name: str) -> _Watched:
        return next(watched for watched in self._watched if watched.name == name)

    def stop_all(self) -> None:
        """Stop what was started last first: workers, dispatcher, broker.

        Services of the same kind (`w1`, `w2`) stop side by side.
        """
        while self._watched:
            last = _kind(self._watched[-1].name)
            batch = [w for w in self._watched if _kind(w.name) == last]
            self._watched = [w for w in self._watched if w not in batch]
            for watched in batch:
                watched.service.ask_to_stop()
            for watched in batch:
                watched.service.stop()

    def _look_after(self, watched: _Watched, now_s: float) -> None:
        if watched.restart_at_s is not None:
            if now_s >= watched.restart_at_s:
                self._start_again(watched, now_s)
            return
        code = watched.service.exit_code()
        if code is not None:
            watched.crashes = self._policy.crashes_after(
                watched.crashes, now_s - watched.started_at_s
            )
            self._put_off(watched, now_s, _ending(code))

    def _start_again(self, watched: _Watched, now_s: float) -> None:
        watched.restart_at_s = None
        watched.started_at_s = now_s
        try:
            watched.service.start()
        except (FleetError, OSError) as error:
            watched.crashes += 1
            self._put_off(watched, now_s, f"does not start ({error})")
        else:
            self._tell(f"{watched.name} is started again")

    def _put_off(self, watched: _Watched, now_s: float, what: str) -> None:
        pause_s = self._policy.pause_s(watched.crashes)
        watched.restart_at_s = now_s + pause_s
        self._tell(f"{watched.name} {what}; starting it again in {pause_s:g} s")


def _spawn(spec: ChildSpec, log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603  # our own programs
        tethered(list(spec.words)),
        env=dict(spec.environ),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # Ctrl-C at the terminal reaches us alone: we stop the children in order.
        process_group=0,
    )


def _shorten(log: Path) -> None:
    if log.exists() and log.stat().st_size > _LOG_KEPT_BYTES:
        log.replace(log.with_suffix(".log.1"))


def _kind(name: str) -> str:
    return name.rstrip("0123456789")


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}"


def program(*words: str) -> tuple[str, ...]:
    """Return the command line of one of our own programs."""
    return (sys.executable, "-m", *words)


def environment(extra: Mapping[str, str], *, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Return our own environment, less `without`, plus `extra`."""
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return {**kept, **extra}
