"""The synchronous client: a context manager that any number of threads may use."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Self, Unpack

from paho.mqtt.client import MQTTMessageInfo

from fleet_client.credentials import broker_settings
from fleet_client.errors import JobTimeoutError
from fleet_client.link import LinkOptions, PahoLink
from fleet_client.options import JobOptions, Question, build_submit, check_job_id, new_job_id
from fleet_client.stream import StreamPiece
from fleet_client.table import JobTable, Outgoing
from fleet_client.tracker import JobTracker, Phase, ResendSchedule
from fleet_protocol.codec import encode
from fleet_protocol.errors import BusClosedError, ProtocolError
from fleet_protocol.messages import JobCancel, JobResult
from fleet_protocol.settings import BrokerSettings

_log = logging.getLogger("fleet_client")


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class JobHandle:
    """A submitted job. Its methods may be called from any thread, any number of times."""

    def __init__(self, client: FleetClient, tracker: JobTracker, lock: threading.RLock) -> None:
        self._client = client
        self._tracker = tracker
        self._changed = threading.Condition(lock)

    def __repr__(self) -> str:
        return f"JobHandle({self.id}, {self._tracker.phase})"

    @property
    def id(self) -> str:
        """The device's own id of the job."""
        return self._tracker.id

    @property
    def prompt_chars(self) -> int:
        """Length of what was asked."""
        return self._tracker.submit.prompt_chars

    @property
    def result(self) -> JobResult | None:
        """The final word, if it is here already."""
        return self._tracker.result

    @property
    def is_accepted(self) -> bool:
        """Whether the dispatcher has stored the job: it will be answered, come what may."""
        return self._tracker.phase in {Phase.ACCEPTED, Phase.FINISHED}

    def wait_accepted(self, timeout_s: float | None = None) -> None:
        """Wait until the dispatcher has stored the job.

        Raises:
            RejectedError: It refused the job; `code` says why.
            JobTimeoutError: No word from it in time.
        """
        deadline = _deadline(timeout_s)
        with self._changed:
            while not self.is_accepted:
                self._pause(deadline, timeout_s)

    def wait(self, timeout_s: float | None = None) -> JobResult:
        """Wait for the final word, which may well say `failed`; lost ones are asked for again.

        Raises:
            RejectedError: The dispatcher or the broker refused the job.
            JobTimeoutError: No result in time; the job goes on.
        """
        deadline = _deadline(timeout_s)
        with self._changed:
            while self._tracker.result is None:
                self._pause(deadline, timeout_s)
            return self._tracker.result

    def stream(self, timeout_s: float | None = None) -> Iterator[StreamPiece]:
        """Yield the answer as it grows; it ends with the result, see `StreamPiece.starts_over`.

        Submit with `stream=True`: without, the whole text comes as one piece. Raises as `wait`.
        """
        deadline = _deadline(timeout_s)
        seen = 0
        while True:
            with self._changed:
                while len(self._tracker.pieces) == seen and self._tracker.result is None:
                    self._pause(deadline, timeout_s)
                fresh = self._tracker.pieces[seen:]
                finished = self._tracker.result is not None
            yield from fresh
            seen += len(fresh)
            if finished:
                return

    def cancel(self) -> None:
        """Say that the answer is no longer wanted; the result will say `cancelled` or be there."""
        self._client.cancel(self.id)

    def _notify(self) -> None:
        self._changed.notify_all()

    def _pause(self, deadline: float | None, timeout_s: float | None) -> None:
        if self._tracker.error is not None:
            raise self._tracker.error
        self._client._check_open()  # noqa: SLF001  # a handle is a part of its client
        left_s = None if deadline is None else deadline - time.monotonic()
        if left_s is not None and left_s <= 0:
            raise self._client._timed_out(self._tracker, timeout_s or 0.0)  # noqa: SLF001  # same
        self._changed.wait(left_s)


class FleetClient:
    """Submits jobs as one device.

    A submission is repeated under its id until the dispatcher says that it is stored, and after
    every reconnect and long silence: neither a lost message nor a broker that forgets loses a job.

    Args:
        broker: Settings, or a URL such as `mqtt://127.0.0.1:1883`.
        device: Our id; where the broker has an ACL, also our MQTT user name.
        client_id: MQTT client id; None takes the device's. Give each process its own where several
            act as the same device.
        uses_mqtt5: False speaks 3.1.1, in which a broker denies a publication silently.
        schedule: When submissions are repeated.
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
        settings = broker_settings(broker)
        self._table = JobTable(device, root=settings.root, schedule=schedule)
        self._lock = threading.RLock()
        self._due = threading.Condition(self._lock)
        self._handles: dict[str, JobHandle] = {}
        self._is_closed = False
        self._link = PahoLink(
            settings,
            self,
            LinkOptions(
                client_id=client_id or device,
                filters=self._table.filters,
                optional_filters=self._table.optional_filters,
                uses_mqtt5=uses_mqtt5,
                connect_timeout_s=connect_timeout_s,
            ),
        )
        self._resender = threading.Thread(
            target=self._resend, name=f"fleet-client-{device}", daemon=True
        )

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def open(self) -> None:
        """Connect; raises ConnectError or DeniedError. Later losses are repaired in silence."""
        self._link.open()
        self._resender.start()

    def close(self) -> None:
        """Disconnect. Open jobs go on in the fleet; who waits for one gets BusClosedError."""
        with self._lock:
            self._is_closed = True
            self._due.notify_all()
            for handle in self._handles.values():
                handle._notify()  # noqa: SLF001  # a handle is a part of its client
        self._link.close()
        if self._resender.is_alive():
            self._resender.join()

    @property
    def device(self) -> str:
        """Our id."""
        return self._table.device

    @property
    def is_connected(self) -> bool:
        """Whether the link is up now."""
        return self._link.is_connected

    def submit(
        self,
        question: Question,
        *,
        job_id: str | None = None,
        accept_timeout_s: float | None = 30.0,
        **options: Unpack[JobOptions],
    ) -> JobHandle:
        """Submit a job and wait until the dispatcher has stored it.

        Args:
            question: A prompt, or the turns of a conversation.
            job_id: The same id again is the same job, also after a restart of ours; None makes one.
            accept_timeout_s: None returns at once; the repeating goes on in the background.
            **options: `max_tokens`, `stream`, `escalate`, `deadline_ms`, ...: see `JobOptions`.

        Raises:
            RejectedError: The job is not valid, or was refused; `code` says why.
            JobTimeoutError: No word from the dispatcher in time.
        """
        submit = build_submit(question, **options)
        job_id = new_job_id() if job_id is None else check_job_id(job_id)
        with self._lock:
            self._check_open()
            tracker = self._table.add(job_id, submit, _now_ms())
            handle = self._handles.get(job_id) or JobHandle(self, tracker, self._lock)
            self._handles[job_id] = handle
        self._send_due(tracker)
        if accept_timeout_s is not None:
            handle.wait_accepted(accept_timeout_s)
        return handle

    def ask(
        self, question: Question, *, timeout_s: float = 60.0, **options: Unpack[JobOptions]
    ) -> JobResult:
        """Submit a job and return its result, which may well say `failed`.

        The timeout is also the job's deadline, unless one is given, and what the dispatcher has not
        taken by then is called off: nobody works on an answer that nobody waits for. Raises as
        `submit` and `wait`.
        """
        options.setdefault("deadline_ms", max(1, int(timeout_s * 1_000)))
        handle = self.submit(question, accept_timeout_s=None, **options)
        try:
            return handle.wait(timeout_s)
        except JobTimeoutError:
            self._give_up(handle)
            raise

    def cancel(self, job_id: str, *, timeout_s: float = 10.0) -> None:
        """Cancel a job of this device, also one that an earlier process submitted.

        Raises:
            JobTimeoutError: The broker did not take the message of a job that is not ours to
                track; of one that is, the cancellation is repeated until its result comes.
        """
        with self._lock:
            self._check_open()
            tracker = self._table.get(check_job_id(job_id))
            if tracker is not None:
                tracker.cancel(_now_ms())
        if tracker is not None:
            self._send_due(tracker)
            return
        info = self._link.publish(self._table.cancel_topic(job_id), encode(JobCancel()))
        if not _is_taken(info, timeout_s):
            raise JobTimeoutError(
                f"the broker did not take the cancellation within {timeout_s:g} s",
                hint="check the link and cancel again",
            )

    def message_arrived(self, topic: str, payload: bytes) -> None:
        """Take a message from the link."""
        with self._lock:
            try:
                tracker = self._table.receive(topic, payload, _now_ms())
            except ProtocolError as error:
                _log.warning("message.dropped topic=%s code=%s", topic, error.code)
                return
            if tracker is None:
                self._due.notify_all()
            else:
                self._tell(tracker)

    def link_restored(self) -> None:
        """Take note that the link is (again) up."""
        with self._lock:
            self._table.link_restored(_now_ms())
            self._due.notify_all()

    def publish_confirmed(self, token: object) -> None:
        """Take note that the broker has a publication."""
        if isinstance(token, Outgoing):
            with self._lock:
                self._table.confirmed(token.job_id)

    def publish_denied(self, token: object) -> None:
        """Take note that the broker refused a publication."""
        if isinstance(token, Outgoing):
            with self._lock:
                tracker = self._table.refuse(token.job_id, self._table.denied(token.topic))
                if tracker is not None:
                    self._tell(tracker)

    def _give_up(self, handle: JobHandle) -> None:
        """Say no more of a job; one that the dispatcher may hear of later is called off."""
        with self._lock:
            self._table.forget(handle.id)
            self._handles.pop(handle.id, None)
        if not handle.is_accepted and self._link.is_connected:
            self._link.publish(self._table.cancel_topic(handle.id), encode(JobCancel()))

    def _tell(self, tracker: JobTracker) -> None:
        handle = self._handles.get(tracker.id)
        if handle is not None:
            handle._notify()  # noqa: SLF001  # a handle is a part of its client
        if tracker.is_closed:
            self._handles.pop(tracker.id, None)

    def _send_due(self, tracker: JobTracker) -> None:
        """Send what of one job is due, now if the link is up, else when it is restored."""
        with self._lock:
            due = self._table.due_of(tracker, _now_ms()) if self._link.is_connected else []
            self._due.notify_all()
        self._publish(due)

    def _resend(self) -> None:
        while True:
            with self._lock:
                if self._is_closed:
                    return
                due = self._table.due(_now_ms()) if self._link.is_connected else []
                if not due:
                    self._due.wait(self._until_due_s())
            self._publish(due)

    def _until_due_s(self) -> float | None:
        at_ms = self._table.next_due_ms
        if at_ms is None or not self._link.is_connected:
            return None  # link_restored and submit wake us
        return max(0.001, (at_ms - _now_ms()) / 1_000)

    def _publish(self, due: list[Outgoing]) -> None:
        """Publish without our lock: paho calls us back while it holds its own."""
        for out in due:
            self._link.publish(out.topic, out.payload, token=out)

    def _check_open(self) -> None:
        if self._is_closed:
            raise BusClosedError("the client is closed", hint="open a new one")

    def _timed_out(self, tracker: JobTracker, waited_s: float) -> JobTimeoutError:
        return self._table.timed_out(tracker, waited_s)


def _is_taken(info: MQTTMessageInfo, timeout_s: float) -> bool:
    """Wait until the broker has a publication; paho raises where it is not connected, or full."""
    try:
        info.wait_for_publish(timeout_s)
        return info.is_published()
    except (RuntimeError, ValueError):
        return False


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s
