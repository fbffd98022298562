"""The asyncio client, on aiomqtt; the same rules as the synchronous one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections.abc import AsyncIterator
from typing import Self, Unpack

import aiomqtt
from paho.mqtt.reasoncodes import ReasonCode

from fleet_client.credentials import broker_settings, password_of, tls_context
from fleet_client.errors import DeniedError, JobTimeoutError, not_reached
from fleet_client.latency import acknowledge_at_once
from fleet_client.options import JobOptions, Question, build_submit, check_job_id, new_job_id
from fleet_client.stream import StreamPiece
from fleet_client.table import OPEN_JOBS_LIMIT, JobTable, Outgoing
from fleet_client.tracker import JobTracker, Phase, ResendSchedule
from fleet_protocol.codec import encode
from fleet_protocol.errors import BusClosedError, FleetError, ProtocolError
from fleet_protocol.messages import JobCancel, JobResult
from fleet_protocol.settings import BrokerSettings

_log = logging.getLogger("fleet_client")
_RECONNECT_FIRST_S = 0.5
_RECONNECT_MOST_S = 30.0
_DENIED_FROM = 0x80
_PUBLISH_S = 600.0


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class AsyncJobHandle:
    """A submitted job, for any number of coroutines of one loop."""

    def __init__(self, client: AsyncFleetClient, tracker: JobTracker) -> None:
        self._client = client
        self._tracker = tracker
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"AsyncJobHandle({self.id}, {self._tracker.phase})"

    @property
    def id(self) -> str:
        """The device's own id of the job."""
        return self._tracker.id

    @property
    def result(self) -> JobResult | None:
        """The final word, if it is here already."""
        return self._tracker.result

    @property
    def is_accepted(self) -> bool:
        """Whether the dispatcher has stored the job: it will be answered, come what may."""
        return self._tracker.phase in {Phase.ACCEPTED, Phase.FINISHED}

    async def wait_accepted(self, timeout_s: float | None = None) -> None:
        """Wait until the dispatcher has stored the job; raises as `JobHandle.wait_accepted`."""
        async with self._patience(timeout_s):
            while not self.is_accepted:
                await self._pause()

    async def wait(self, timeout_s: float | None = None) -> JobResult:
        """Wait for the final word; raises as `JobHandle.wait`."""
        async with self._patience(timeout_s):
            while self._tracker.result is None:
                await self._pause()
        return self._tracker.result

    async def stream(self, timeout_s: float | None = None) -> AsyncIterator[StreamPiece]:
        """Yield the answer as it grows; see `JobHandle.stream`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        seen = 0
        while True:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            async with self._patience(left_s):
                while len(self._tracker.pieces) == seen and self._tracker.result is None:
                    await self._pause()
            fresh = self._tracker.pieces[seen:]
            finished = self._tracker.result is not None
            for piece in fresh:
                yield piece
            seen += len(fresh)
            if finished:
                return

    async def cancel(self) -> None:
        """Say that the answer is no longer wanted; the result will say `cancelled` or be there."""
        await self._client.cancel(self.id)

    def _notify(self) -> None:
        """Wake all who wait; who waits next gets a fresh event."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _pause(self) -> None:
        if self._tracker.error is not None:
            raise self._tracker.error
        self._client._check_open()  # noqa: SLF001  # a handle is a part of its client
        await self._changed.wait()

    @contextlib.asynccontextmanager
    async def _patience(self, timeout_s: float | None) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError as error:
            raise self._client._timed_out(self._tracker, timeout_s or 0.0) from error  # noqa: SLF001  # same


class AsyncFleetClient:
    """Submits jobs as one device; `FleetClient` says what the arguments mean.

    aiomqtt does not tell us that a broker denied a publication: such a job ends in a timeout whose
    hint says so.
    """

    def __init__(
        self,
        broker: BrokerSettings | str,
        device: str,
        *,
        client_id: str | None = None,
        uses_mqtt5: bool = True,
        connect_timeout_s: float = 10.0,
        schedule: ResendSchedule | None = None,
    ) -> None:
        self._broker = broker_settings(broker)
        self._password = password_of(self._broker)
        self._tls = tls_context(self._broker)
        self._table = JobTable(device, root=self._broker.root, schedule=schedule)
        self._client_id = client_id or device
        self._uses_mqtt5 = uses_mqtt5
        self._connect_timeout_s = connect_timeout_s
        self._handles: dict[str, AsyncJobHandle] = {}
        self._link: aiomqtt.Client | None = None
        self._is_closed = False
        self._wake = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        first: asyncio.Future[None] = loop.create_future()
        self._running = loop.create_task(self._stay_connected(first), name="fleet-client-link")
        try:
            await first
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stop()

    @property
    def device(self) -> str:
        """Our id."""
        return self._table.device

    @property
    def is_connected(self) -> bool:
        """Whether the link is up now."""
        return self._link is not None

    async def submit(
        self,
        question: Question,
        *,
        job_id: str | None = None,
        accept_timeout_s: float | None = 30.0,
        **options: Unpack[JobOptions],
    ) -> AsyncJobHandle:
        """Submit a job and wait until the dispatcher has stored it; see `FleetClient.submit`."""
        submit = build_submit(question, **options)
        job_id = new_job_id() if job_id is None else check_job_id(job_id)
        self._check_open()
        tracker = self._table.add(job_id, submit, _now_ms())
        handle = self._handles.get(job_id) or AsyncJobHandle(self, tracker)
        self._handles[job_id] = handle
        self._wake.set()
        if accept_timeout_s is not None:
            await handle.wait_accepted(accept_timeout_s)
        return handle

    async def ask(
        self, question: Question, *, timeout_s: float = 60.0, **options: Unpack[JobOptions]
    ) -> JobResult:
        """Submit a job and return its result; see `FleetClient.ask`."""
        options.setdefault("deadline_ms", max(1, int(timeout_s * 1_000)))
        handle = await self.submit(question, accept_timeout_s=None, **options)
        try:
            return await handle.wait(timeout_s)
        except JobTimeoutError:
            await self._give_up(handle)
            raise

    async def cancel(self, job_id: str, *, timeout_s: float = 10.0) -> None:
        """Cancel a job of this device; see `FleetClient.cancel`."""
        self._check_open()
        tracker = self._table.get(check_job_id(job_id))
        if tracker is not None:
            tracker.cancel(_now_ms())
            self._wake.set()
            return
        try:
            if self._link is None:
                raise aiomqtt.MqttError("the link is down")  # noqa: TRY301  # one way out for both
            await self._link.publish(
                self._table.cancel_topic(job_id), encode(JobCancel()), qos=1, timeout=timeout_s
            )
        except aiomqtt.MqttError as error:
            raise JobTimeoutError(
                f"the broker did not take the cancellation: {error}",
                hint="check the link and cancel again",
            ) from error

    async def _stay_connected(self, first: asyncio.Future[None]) -> None:
        pause_s = _RECONNECT_FIRST_S
        while True:
            try:
                async with self._connection() as link:
                    if not first.done():
                        first.set_result(None)
                    pause_s = _RECONNECT_FIRST_S
                    await self._listen(link)
            except Exception as error:  # noqa: BLE001  # whatever it was: who waits must not for ever
                if not first.done():
                    first.set_exception(_connect_failed(self._broker, error))
                    return
                _log.debug("link.lost reason=%s", error)
            finally:
                self._link = None
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  # jitter
            pause_s = min(pause_s * 2, _RECONNECT_MOST_S)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[aiomqtt.Client]:
        client = self._build()
        try:
            async with client as link:
                wanted = (*self._table.filters, *self._table.optional_filters)
                granted: list[int | ReasonCode] = [*await link.subscribe([(t, 1) for t in wanted])]
                for topic, code in zip(self._table.filters, granted, strict=False):
                    if (code.value if isinstance(code, ReasonCode) else code) >= _DENIED_FROM:
                        raise self._table.unreadable(topic)
                self._table.link_restored(_now_ms())
                self._link = link
                # It ends with its link: what is under way on a dead one is confirmed by nobody.
                saying = asyncio.create_task(self._resend(link), name="fleet-client-resend")
                try:
                    yield link
                finally:
                    saying.cancel()
                    await asyncio.gather(saying, return_exceptions=True)
        finally:
            # paho leaves its wake-up sockets to the garbage collector, which complains about them.
            client._client._reset_sockets()  # noqa: SLF001  # there is no public way

    def _build(self) -> aiomqtt.Client:
        five = self._uses_mqtt5
        client = aiomqtt.Client(
            self._broker.host,
            self._broker.port,
            username=self._broker.user,
            password=self._password,
            identifier=self._client_id,
            protocol=aiomqtt.ProtocolVersion.V5 if five else aiomqtt.ProtocolVersion.V311,
            clean_session=None if five else True,
            keepalive=self._broker.keepalive_s,
            timeout=self._connect_timeout_s,
            tls_context=self._tls,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        )
        # Its warning about many unacknowledged calls suspects a leak; ours are bounded.
        client.pending_calls_threshold = 2 * OPEN_JOBS_LIMIT
        return client

    async def _listen(self, link: aiomqtt.Client) -> None:
        async for message in link.messages:
            acknowledge_at_once(link._client.socket())  # noqa: SLF001  # there is no public way
            payload = message.payload
            if not isinstance(payload, bytes | bytearray):
                continue
            try:
                tracker = self._table.receive(str(message.topic), bytes(payload), _now_ms())
            except ProtocolError as error:
                _log.warning("message.dropped topic=%s code=%s", message.topic, error.code)
                continue
            if tracker is None:
                self._wake.set()
            else:
                self._tell(tracker)

    async def _give_up(self, handle: AsyncJobHandle) -> None:
        """Say no more of a job; one that the dispatcher may hear of later is called off."""
        self._table.forget(handle.id)
        self._handles.pop(handle.id, None)
        if not handle.is_accepted and self._link is not None:
            topic = self._table.cancel_topic(handle.id)
            # It is sent at once; that the broker has it is not waited for.
            with contextlib.suppress(aiomqtt.MqttError):
                await self._link.publish(topic, encode(JobCancel()), qos=1, timeout=0)

    def _tell(self, tracker: JobTracker) -> None:
        handle = self._handles.get(tracker.id)
        if handle is not None:
            handle._notify()  # noqa: SLF001  # a handle is a part of its client
        if tracker.is_closed:
            self._handles.pop(tracker.id, None)

    async def _resend(self, link: aiomqtt.Client) -> None:
        while True:
            self._wake.clear()
            await self._publish(link, self._table.due(_now_ms()))
            at_ms = self._table.next_due_ms
            left_s = None if at_ms is None else max(0.001, (at_ms - _now_ms()) / 1_000)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._wake.wait()

    async def _publish(self, link: aiomqtt.Client, due: list[Outgoing]) -> None:
        """Publish all at once: awaiting each acknowledgement would cost a round trip a job."""
        sent = [self._publish_one(link, out) for out in due]
        for outcome in await asyncio.gather(*sent, return_exceptions=True):
            # What did not get through is due again, on reconnection or by its schedule.
            if isinstance(outcome, BaseException):
                _log.debug("publish.failed reason=%s", outcome)

    async def _publish_one(self, link: aiomqtt.Client, out: Outgoing) -> None:
        # Its own time-out would leave the message under way; a lost link ends this earlier.
        await link.publish(out.topic, out.payload, qos=1, timeout=_PUBLISH_S)
        self._table.confirmed(out.job_id)
        acknowledge_at_once(link._client.socket())  # noqa: SLF001  # there is no public way

    async def _stop(self) -> None:
        self._is_closed = True
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        for handle in self._handles.values():
            handle._notify()  # noqa: SLF001  # a handle is a part of its client

    def _check_open(self) -> None:
        if self._is_closed:
            raise BusClosedError("the client is closed", hint="open a new one")

    def _timed_out(self, tracker: JobTracker, waited_s: float) -> JobTimeoutError:
        return self._table.timed_out(tracker, waited_s)


def _connect_failed(broker: BrokerSettings, error: Exception) -> FleetError:
    if isinstance(error, FleetError):
        return error
    code = getattr(error, "rc", None)
    if str(code) in {"Bad user name or password", "Not authorized"} or code in {4, 5}:
        return DeniedError(
            f"the broker refused {broker.user or 'an anonymous client'}: {error}",
            hint="check --username and --password-file",
        )
    # aiomqtt wraps what the socket said.
    return not_reached(broker, error.__cause__ if isinstance(error.__cause__, OSError) else error)
