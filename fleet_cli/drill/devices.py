"""Simulated devices that submit jobs, each over its own link, and write down all they are told."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Final, Self

import msgspec

from fleet_cli.drill.ledger import Ledger
from fleet_client.client import FleetClient
from fleet_client.options import JobOptions
from fleet_client.tracker import ResendSchedule
from fleet_protocol.codec import decode
from fleet_protocol.errors import FleetError, ProtocolError
from fleet_protocol.messages import JobAck, JobResult
from fleet_protocol.settings import BrokerSettings
from fleet_protocol.topics import DEFAULT_ROOT, Topics

_ASKS_AGAIN: Final = ResendSchedule(silence_ms=8_000, silence_most_ms=16_000)
"""Sooner than devices do by default: a drill ends when all have heard."""
_OPEN_MOST: Final = 400
"""Jobs under way beyond which no more are submitted: or what is measured is the queue."""
_QUESTIONS: Final = 24
_SYLLABLES: Final = ("va", "lve", "pu", "mp", "mo", "tor", "se", "al", "be", "lt", "fan", " ", " ")


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """A job to submit.

    Attributes:
        text: The answer that an echoing board gives; None: not known beforehand.
        cancel_after_s: When its device calls it off; None: never.
    """

    id: str
    prompt: str
    options: JobOptions
    text: str | None
    cancel_after_s: float | None = None


class Errands:
    """What devices ask, drawn from a seed: mostly plain questions, some of every other kind."""

    def __init__(self, rng: random.Random, *, echoes: bool) -> None:
        self._rng = rng
        self._echoes = echoes
        self._run = secrets.token_hex(2)
        self._count = 0

    def next(self) -> Errand:
        """Return one more."""
        rng, kind = self._rng, self._rng.random()
        self._count += 1
        name = f"{self._run}-{self._count}"
        options: JobOptions = {"priority": rng.choice((1, 5, 5, 5, 9)), "max_tokens": 256}
        prompt, cancel_after_s = f"{name} {self._words()}", None
        if not self._echoes:
            options["max_tokens"] = 24
        if kind < 0.08:
            prompt = f"question {rng.randrange(_QUESTIONS)} of many"
        elif kind < 0.18:
            options["stream"] = True
        elif kind < 0.22:
            options["escalate"] = "always"
        elif kind < 0.26:
            cancel_after_s = rng.uniform(0.0, 1.0)
        elif kind < 0.29:
            options["not_before_ms"] = rng.randrange(200, 3_000)
        elif kind < 0.34:
            options["privacy"] = "site"
        has_text = self._echoes and "escalate" not in options
        return Errand(
            id=name,
            prompt=prompt,
            options=options,
            text=prompt if has_text else None,
            cancel_after_s=cancel_after_s,
        )

    def _words(self) -> str:
        return "".join(self._rng.choices(_SYLLABLES, k=self._rng.randrange(4, 120))).strip()


class DrillDevice(FleetClient):
    """A device like any other, except that every word it hears goes into the ledger first."""

    def __init__(self, broker: BrokerSettings, device: str, ledger: Ledger) -> None:
        super().__init__(broker, device, schedule=_ASKS_AGAIN, connect_timeout_s=30.0)
        self._ledger = ledger
        self._topics = Topics(DEFAULT_ROOT)

    def message_arrived(self, topic: str, payload: bytes) -> None:
        """Take a message from the link."""
        try:
            address = self._topics.parse(topic)
            message = decode(address.channel, payload)
        except ProtocolError:
            message = None  # the client itself says so
        if isinstance(message, JobAck):
            self._ledger.acked(self.device, address.job, message)
        elif isinstance(message, JobResult):
            self._ledger.heard(self.device, message)
        super().message_arrived(topic, payload)


class Load:
    """Keeps devices asking, from entering to `pause`. One thread of its own submits.

    Args:
        ports: Where each device's link is, by its id.
        ledger: Where all that is said and heard is written down.
        per_s: Jobs a second, all devices together.
        errands: What they ask.
        rng: When they ask, and who does.
    """

    def __init__(
        self,
        ports: Mapping[str, int],
        ledger: Ledger,
        *,
        per_s: float,
        errands: Errands,
        rng: random.Random,
    ) -> None:
        self._ports = ports
        self._ledger = ledger
        self._per_s = per_s
        self._errands = errands
        self._rng = rng
        self._devices: list[DrillDevice] = []
        self._opened = ExitStack()
        self._wake = threading.Condition()
        self._wanted = 0
        self._is_paused = self._is_over = False
        self._failure: Exception | None = None
        self._cancels: list[tuple[float, DrillDevice, str]] = []
        self._thread = threading.Thread(target=self._run, name="drill-load", daemon=True)

    def __enter__(self) -> Self:
        for name, port in self._ports.items():
            broker = BrokerSettings(url=f"mqtt://127.0.0.1:{port}")
            device = DrillDevice(broker, name, self._ledger)
            self._devices.append(self._opened.enter_context(device))
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._wake:
            self._is_over = True
            self._wake.notify()
        self._thread.join()
        self._opened.close()

    def burst(self, count: int) -> None:
        """Let so many jobs be submitted at once."""
        with self._wake:
            self._wanted += count
            self._wake.notify()

    def pause(self) -> None:
        """Submit no more jobs. Devices go on waiting, and asking, for what is open."""
        with self._wake:
            self._is_paused = True
            self._wanted = 0
            self._wake.notify()

    def check(self) -> None:
        """Raise what ended the submitting, if anything did: without load a drill proves nothing."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            for count in self._turns():
                room = _OPEN_MOST - self._ledger.open_jobs
                for _ in range(min(count, room)):
                    self._submit(self._errands.next())
                self._cancel_due()
        except Exception as error:  # noqa: BLE001  # raised where the drill can tell of it
            self._failure = error

    def _turns(self) -> Iterator[int]:
        """Yield how many jobs to submit now, whenever it is time to look."""
        next_at_s = time.monotonic()
        while True:
            with self._wake:
                if not self._wanted:
                    self._wake.wait(max(0.0, min(0.1, next_at_s - time.monotonic())))
                if self._is_over:
                    return
                count, self._wanted = self._wanted, 0
                if self._is_paused:
                    next_at_s = time.monotonic() + 0.1
            while next_at_s <= time.monotonic():
                count += 1
                next_at_s += self._rng.expovariate(self._per_s)
            yield count

    def _submit(self, errand: Errand) -> None:
        device = self._rng.choice(self._devices)
        self._ledger.submitted(device.device, errand.id, text=errand.text)
        device.submit(errand.prompt, job_id=errand.id, accept_timeout_s=None, **errand.options)
        if errand.cancel_after_s is not None:
            due_at_s = time.monotonic() + errand.cancel_after_s
            self._cancels.append((due_at_s, device, errand.id))

    def _cancel_due(self) -> None:
        now_s = time.monotonic()
        due = [one for one in self._cancels if one[0] <= now_s]
        self._cancels = [one for one in self._cancels if one[0] > now_s]
        for _, device, job in due:
            try:
                device.cancel(job, timeout_s=0.0)
            except FleetError:
                continue  # it is finished, or the link is down: then it is not cancelled
