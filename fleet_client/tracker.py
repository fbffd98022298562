"""One job as its asker sees it: what was heard, and when to say it again. Pure.

MQTT's own acknowledgement says "the broker has it" and no more, and a broker may forget. So the
submission is repeated under the same id until the dispatcher says it is stored, and again after a
long silence: an idempotent replay, which also brings a result that got lost on its way.
"""

from __future__ import annotations

from enum import StrEnum
from zlib import crc32

import msgspec

from fleet_client.stream import StreamPiece, TextStream
from fleet_protocol.errors import FleetError, RejectedError
from fleet_protocol.messages import (
    AckStatus,
    JobAck,
    JobCancel,
    JobResult,
    JobSubmit,
    Message,
    TokenChunk,
)


class Phase(StrEnum):
    """How far a job has come, as far as the asker knows."""

    SUBMITTED = "submitted"
    BUSY = "busy"
    ACCEPTED = "accepted"
    FINISHED = "finished"
    REFUSED = "refused"


class ResendSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """When a submission is repeated; spans double from the first to the longest.

    Attributes:
        unanswered_ms: First span without an ack.
        unanswered_most_ms: Longest span without an ack.
        silence_ms: First span in which nothing of an accepted job was heard.
        silence_most_ms: Longest such span.
    """

    unanswered_ms: int = 2_000
    unanswered_most_ms: int = 15_000
    silence_ms: int = 20_000
    silence_most_ms: int = 60_000

    def span_ms(self, *, accepted: bool, tries: int, spread: float) -> int:
        """Return the pause after `tries` repetitions; `spread` in 0..1 moves it by up to 20 %."""
        first = self.silence_ms if accepted else self.unanswered_ms
        most = self.silence_most_ms if accepted else self.unanswered_most_ms
        return int(min(first << min(tries, 16), most) * (0.8 + 0.4 * spread))


class JobTracker:
    """The state of one job.

    Attributes:
        id: The device's own id of the job.
        submit: What is sent, each time the same.
        phase: How far it has come.
        ack: The last acknowledgement.
        result: The final word, once there is one.
        error: Why there will be none: refused.
        pieces: The answer as it grew; see `TextStream`.
        resend_at_ms: When something is to be sent next, by the caller's clock; None when done.
    """

    def __init__(
        self, job_id: str, submit: JobSubmit, *, now_ms: int, schedule: ResendSchedule
    ) -> None:
        self.id = job_id
        self.submit = submit
        self.phase = Phase.SUBMITTED
        self.ack: JobAck | None = None
        self.result: JobResult | None = None
        self.error: FleetError | None = None
        self.pieces: list[StreamPiece] = []
        self.resend_at_ms: int | None = now_ms
        self._schedule = schedule
        self._stream = TextStream()
        self._tries = 0
        self._is_cancelled = False
        self._is_under_way = False
        # The same for every try of a job, different between jobs: a fleet spreads out.
        self._spread = crc32(job_id.encode()) % 1_000 / 1_000

    @property
    def is_closed(self) -> bool:
        """Whether nothing more can come."""
        return self.phase in {Phase.FINISHED, Phase.REFUSED}

    def acked(self, ack: JobAck, now_ms: int) -> None:
        """The dispatcher answered a submission."""
        if self.is_closed:
            return
        self.ack = ack
        if ack.status is AckStatus.ACCEPTED:
            if self.phase is not Phase.ACCEPTED:
                self.phase, self._tries = Phase.ACCEPTED, 0
            self._wait(now_ms)
        elif ack.code == "busy" or ack.retry_after_ms:
            self.phase = Phase.BUSY
            self._wait(now_ms, at_least_ms=ack.retry_after_ms)
        elif ack.code == "unknown_job" and self._is_cancelled:
            # The cancellation arrived, its submission went down with a broker: both once more.
            self._is_under_way = False
            self._wait(now_ms)
        else:
            self.refuse(
                RejectedError(
                    f"the job was refused: {ack.code}"
                    + (f" ({ack.message})" if ack.message else ""),
                    code=ack.code or "rejected",
                    hint="change the job; sending the same again changes nothing",
                )
            )

    def grew(self, chunk: TokenChunk, now_ms: int) -> None:
        """A piece of the answer arrived."""
        if self.is_closed:
            return
        self.phase, self._tries = Phase.ACCEPTED, 0
        self._wait(now_ms)
        piece = self._stream.grow(chunk)
        if piece is not None:
            self.pieces.append(piece)

    def finished(self, result: JobResult) -> None:
        """The final word arrived; a repeated one changes nothing."""
        if self.is_closed:
            return
        self.phase, self.result, self.resend_at_ms = Phase.FINISHED, result, None
        piece = self._stream.finish(result.text)
        if piece is not None:
            self.pieces.append(piece)

    def refuse(self, error: FleetError) -> None:
        """There will be no result."""
        if not self.is_closed:
            self.phase, self.error, self.resend_at_ms = Phase.REFUSED, error, None

    def cancel(self, now_ms: int) -> None:
        """The answer is no longer wanted; a result that says so will still come."""
        if not self.is_closed:
            self._is_cancelled = True
            self.resend_at_ms = now_ms

    def link_restored(self, now_ms: int) -> None:
        """Broker or dispatcher came back and may have forgotten: say everything again."""
        if not self.is_closed:
            self._tries = 0
            self._is_under_way = False
            self.resend_at_ms = now_ms

    def confirmed(self) -> None:
        """The broker has what was sent last."""
        self._is_under_way = False

    def due(self, now_ms: int) -> tuple[Message, ...]:
        """Return what is to be sent now and count it as sent.

        A cancellation travels behind its submission: of a job that the dispatcher has never seen,
        or has forgotten, it would otherwise never say that it is cancelled. Nothing is repeated
        while the broker has not even confirmed the last time: that would only add to its burden.
        """
        if self.resend_at_ms is None or now_ms < self.resend_at_ms:
            return ()
        self._wait(now_ms)
        if self._is_under_way and not self._is_cancelled:
            return ()
        self._is_under_way = True
        self._tries += 1
        return (self.submit, JobCancel()) if self._is_cancelled else (self.submit,)

    def _wait(self, now_ms: int, *, at_least_ms: int = 0) -> None:
        settled = self.phase is Phase.ACCEPTED and not self._is_cancelled
        pause_ms = self._schedule.span_ms(accepted=settled, tries=self._tries, spread=self._spread)
        if at_least_ms:
            pause_ms = int(at_least_ms * (1.0 + 0.2 * self._spread))
        self.resend_at_ms = now_ms + pause_ms
