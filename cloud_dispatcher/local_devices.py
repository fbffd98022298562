"""Devices that sit in the dispatcher's own process: whoever asks over HTTP.

To the engine they are devices like all others. Only the way differs: what they ask comes from here
instead of the bus, and what they are told is handed over here, once it is saved, and not published.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Self, TypeAlias

import msgspec

from cloud_dispatcher.core.commands import AnyCommand, Send
from cloud_dispatcher.core.events import (
    AnyEvent,
    CompletionGrew,
    JobCancelled,
    JobSubmitted,
    ResultConfirmed,
)
from cloud_dispatcher.core.job import ReplyTo
from cloud_dispatcher.core.spending import LOCAL_PREFIX, Payer
from cloud_dispatcher.keys import KeyMint
from fleet_protocol import messages as m
from fleet_protocol import topics
from fleet_protocol.errors import RejectedError, RetryableError

RATE_EXCEEDED: Final = "rate_limit_exceeded"
"""More came in than may: what HTTP has a status of its own for."""
_TO_DEVICES: Final = (topics.ACK, topics.TOKENS, topics.RESULT)
_REPLY: Final = ReplyTo()

Name: TypeAlias = tuple[str, str]
"""A job as its device names it: device, id."""


def local_device(tenant: str) -> m.DeviceId:
    """Return the device in whose name a tenant's requests are jobs."""
    return m.DeviceId(f"{LOCAL_PREFIX}{tenant}")


def is_local(send: Send) -> bool:
    """Tell whether a message is for a device in this process. Such ids are nobody else's."""
    return (
        send.ids[:1] != () and send.ids[0].startswith(LOCAL_PREFIX) and send.channel in _TO_DEVICES
    )


class Piece(msgspec.Struct, frozen=True):
    """A piece of a growing answer.

    Attributes:
        from_cloud: The cloud says it. A board's text may still be given up for the cloud's.
    """

    chunk: m.TokenChunk
    from_cloud: bool


class LocalJob:
    """What a local device is told of one job, from entering to leaving.

    Attributes:
        is_over: The result was told, or that there will be no job.
    """

    def __init__(self, devices: LocalDevices, name: Name) -> None:
        self.is_over = False
        self._devices = devices
        self._name = name
        # Its length is bounded by `max_tokens`: a word or two, a chunk a token, a result.
        self._told: asyncio.Queue[m.JobAck | Piece | m.JobResult] = asyncio.Queue()
        self._early: list[Piece | m.JobResult] = []

    def __enter__(self) -> Self:
        self._devices.listen(self._name, self._told)
        return self

    def __exit__(self, *exc: object) -> None:
        self._devices.forget(self._name, self._told)

    def cancel(self) -> None:
        """Say that the answer is no longer wanted."""
        self._devices.cancel(*self._name)

    async def accepted(self) -> None:
        """Wait until the dispatcher has stored the job.

        Raises:
            RetryableError: `busy` or `rate_limit_exceeded`, with the time to wait.
            RejectedError: It will not have it; `code` says why.
        """
        while not isinstance(told := await self._told.get(), m.JobAck):
            self._early.append(told)
        if told.status is m.AckStatus.ACCEPTED:
            return
        self.is_over = True
        message = told.message or f"the dispatcher refused: {told.code}"
        if told.code == "busy":
            code = told.code if told.rate is msgspec.UNSET else RATE_EXCEEDED
            raise RetryableError(message, code=code, retry_after_ms=told.retry_after_ms)
        raise RejectedError(message, code=told.code)

    async def told(
        self, *, wait_s: float, quiet_s: float | None = None
    ) -> AsyncIterator[Piece | m.JobResult | None]:
        """Yield pieces of the growing answer, if they were asked for, and at last the result.

        Args:
            wait_s: How long to wait for all of it.
            quiet_s: When nothing came for so long, None is yielded; None: never.

        Raises:
            TimeoutError: `wait_s` is over.
        """
        give_up_at_s = time.monotonic() + wait_s
        while not self.is_over:
            left_s = give_up_at_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            told: Piece | m.JobAck | m.JobResult | None = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s if quiet_s is None else min(left_s, quiet_s)):
                    told = self._early.pop(0) if self._early else await self._told.get()
            self.is_over = isinstance(told, m.JobResult)
            if not isinstance(told, m.JobAck):
                yield told

    async def result(self, *, wait_s: float) -> m.JobResult:
        """Wait for the one final word; raises TimeoutError."""
        async for told in self.told(wait_s=wait_s):
            if isinstance(told, m.JobResult):
                return told
        raise TimeoutError


class LocalDevices:
    """Lets local devices ask, and hands them what they are told. An `Observer`."""

    def __init__(
        self, report: Callable[[AnyEvent], None], mint: KeyMint, clock: Callable[[], int]
    ) -> None:
        self._report = report
        self._mint = mint
        self._clock = clock
        self._listeners: dict[Name, list[asyncio.Queue[m.JobAck | Piece | m.JobResult]]] = {}

    def __len__(self) -> int:
        """Return how many jobs are listened to."""
        return len(self._listeners)

    def job(self, device: m.DeviceId, job_id: m.JobId) -> LocalJob:
        """Return what hears of a job; enter it before anything is asked."""
        return LocalJob(self, (device, job_id))

    def submit(
        self,
        device: m.DeviceId,
        job_id: m.JobId,
        submit: m.JobSubmit,
        payer: Payer | None = None,
    ) -> None:
        """Ask. The same id again is the same job, and who asked first pays."""
        key = m.JobKey(self._mint.mint(self._clock()))
        self._report(
            JobSubmitted(
                key=key, device=device, id=job_id, submit=submit, reply=_REPLY, payer=payer
            )
        )

    def cancel(self, device: str, job_id: str) -> None:
        """Cancel. Whoever listens hears the result: `cancelled`, or what was there already."""
        self._report(JobCancelled(device=m.DeviceId(device), id=m.JobId(job_id)))

    def observe(self, event: AnyEvent, commands: Sequence[AnyCommand], now_ms: int) -> None:  # noqa: ARG002 - an Observer's
        """Hand over what was said to local devices; a result counts as heard: it is stored."""
        for command in commands:
            if type(command) is Send and is_local(command):
                if command.confirms is not None:
                    self._report(ResultConfirmed(job=command.confirms))
                self._hand_over(command, from_cloud=type(event) is CompletionGrew)

    def listen(self, name: Name, told: asyncio.Queue[m.JobAck | Piece | m.JobResult]) -> None:
        """Hear of a job from now on."""
        self._listeners.setdefault(name, []).append(told)

    def forget(self, name: Name, told: asyncio.Queue[m.JobAck | Piece | m.JobResult]) -> None:
        """Hear no more of it."""
        listeners = self._listeners[name]
        listeners.remove(told)
        if not listeners:
            del self._listeners[name]

    def _hand_over(self, send: Send, *, from_cloud: bool) -> None:
        device, job_id = send.ids
        message = send.message
        for told in self._listeners.get((device, job_id), ()):
            if isinstance(message, m.TokenChunk):
                told.put_nowait(Piece(message, from_cloud))
            elif isinstance(message, m.JobAck | m.JobResult):
                told.put_nowait(message)
