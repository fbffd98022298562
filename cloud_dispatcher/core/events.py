"""What can happen to the dispatcher. Facts, in the past tense; time travels beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from cloud_dispatcher.core.job import Job, ReplyTo
from cloud_dispatcher.core.members import Offer
from cloud_dispatcher.core.spending import Payer, Spend
from fleet_protocol import messages as m
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.topics import Role


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all events."""


class JobSubmitted(Event, frozen=True, kw_only=True):
    """A device asked.

    Attributes:
        key: Minted by the shell; used only if the job is new.
        known: What the store holds under this device and id, if the job is not open in memory.
        answer: What the store holds for equal questions, see `Engine.wanted_answer`.
        payer: Who pays besides the tenant; None: nobody.
    """

    key: m.JobKey
    device: m.DeviceId
    id: m.JobId
    submit: m.JobSubmit
    reply: ReplyTo
    payer: Payer | None = None
    known: Job | None = None
    answer: CachedAnswer | None = None


class SubmissionMalformed(Event, frozen=True, kw_only=True):
    """A submission could not be read; the device must be told why."""

    device: m.DeviceId
    id: m.JobId
    reply: ReplyTo
    code: str
    message: str


class JobCancelled(Event, frozen=True, kw_only=True):
    """A device no longer wants the answer.

    Attributes:
        known: What the store holds under this device and id, if the job is not open in memory.
    """

    device: m.DeviceId
    id: m.JobId
    known: Job | None = None


class PresenceChanged(Event, frozen=True, kw_only=True):
    """A worker said, or its will said for it, whether it is there. None: it was removed."""

    worker: m.WorkerId
    presence: m.Presence | None


class InfoReceived(Event, frozen=True, kw_only=True):
    """A worker said what it is and can do. None: it was removed."""

    worker: m.WorkerId
    info: m.WorkerInfo | None


class StateReceived(Event, frozen=True, kw_only=True):
    """A worker's heartbeat."""

    worker: m.WorkerId
    state: m.WorkerState


class HeldReceived(Event, frozen=True, kw_only=True):
    """A worker said which attempts it holds."""

    worker: m.WorkerId
    held: m.HeldJobs


class StartReceived(Event, frozen=True, kw_only=True):
    """The worker has the attempt on its disk."""

    worker: m.WorkerId
    job: m.JobKey
    attempt: int


class ProgressReceived(Event, frozen=True, kw_only=True):
    """The worker still works on the attempt."""

    worker: m.WorkerId
    job: m.JobKey
    attempt: int


class TokensReceived(Event, frozen=True, kw_only=True):
    """A piece of an answer grew on a worker."""

    worker: m.WorkerId
    job: m.JobKey
    chunk: m.WorkerTokenChunk


class DoneReceived(Event, frozen=True, kw_only=True):
    """The worker answered one job, or several.

    Attributes:
        job: That of the first answer.
    """

    worker: m.WorkerId
    job: m.JobKey
    done: m.JobDone

    def answers(self) -> Iterator[tuple[m.JobKey, int, m.LocalAnswer]]:
        """Yield all of them: job, attempt, answer."""
        yield self.job, self.done.attempt, self.done.answer
        for other in self.done.more:
            yield m.JobKey(other.job), other.attempt, other.answer


class FailureReceived(Event, frozen=True, kw_only=True):
    """The worker could not work on the attempt."""

    worker: m.WorkerId
    job: m.JobKey
    failure: m.JobFailed


class EscalationReceived(Event, frozen=True, kw_only=True):
    """The worker hands the job to the cloud."""

    worker: m.WorkerId
    job: m.JobKey
    escalation: m.Escalation


class CompletionGrew(Event, frozen=True, kw_only=True):
    """The provider streamed text."""

    job: m.JobKey
    attempt: int
    text: str


class CompletionFinished(Event, frozen=True, kw_only=True):
    """The provider answered.

    Attributes:
        model: As the response named it: a checkpoint behind a name can change.
        cost_usd: From the usage and the price list of the day.
        simulated: The provider is a simulator.
        misfit: Why the text is not of the form that the job asked for; empty if it is.
        provider: Name of the endpoint that answered.
        shared: It was another job's call, which pays for it.
        cut: `max_tokens` ended the answer.
    """

    job: m.JobKey
    attempt: int
    text: str
    model: str
    usage: m.Usage
    cost_usd: float
    simulated: bool = False
    misfit: str = ""
    provider: str = ""
    shared: bool = False
    cut: bool = False


class CompletionFailed(Event, frozen=True, kw_only=True):
    """No provider answered.

    Attributes:
        code: `no_provider`, `provider_timeout`, `provider_rate_limited`, `provider_no_balance`, ...
        retry_after_ms: Not None: the same call may succeed after this span.
        cost_usd: What it cost all the same.
    """

    job: m.JobKey
    attempt: int
    code: str
    message: str
    retry_after_ms: int | None = None
    cost_usd: float = 0.0


class ResultConfirmed(Event, frozen=True, kw_only=True):
    """The broker has the result of a job."""

    job: m.JobKey


class ResultRefused(Event, frozen=True, kw_only=True):
    """The broker refused the result of a job; telling it again later may work."""

    job: m.JobKey
    code: str


class AdminAsked(Event, frozen=True, kw_only=True):
    """An operator asked for something that only the engine knows or may do.

    Attributes:
        role: As what, and it may: that was looked at.
        found: The job the request names, from the store, if it is not open in memory.
    """

    admin: str
    request: m.AdminRequest
    role: Role = Role.ADMIN
    found: Job | None = None


class LinkLost(Event, frozen=True, kw_only=True):
    """The broker cannot be reached: nobody's silence means anything until it can."""


class LinkRestored(Event, frozen=True, kw_only=True):
    """The broker is there (again); it may have forgotten everything."""

    session_present: bool


class LoadLooked(Event, frozen=True, kw_only=True):
    """The machine was looked at; about once a second.

    Attributes:
        memory_pct: How full its memory is; None: nobody can tell.
    """

    memory_pct: float | None = None


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that became ours, as it last described itself."""

    worker: m.WorkerId
    presence: m.Presence
    info: m.WorkerInfo | None = None


class BoardsAcquired(Event, frozen=True, kw_only=True):
    """Boards and jobs that were another dispatcher's, or nobody's, are ours; the store says so.

    Attributes:
        handed_over: By a dispatcher that is there and had no room for them; else theirs is gone.
    """

    boards: tuple[Board, ...] = ()
    jobs: tuple[Job, ...] = ()
    handed_over: bool = False


class RoomOffered(Event, frozen=True, kw_only=True):
    """Other dispatchers have boards that are free."""

    offers: tuple[Offer, ...]


class SharesFound(Event, frozen=True, kw_only=True):
    """How many dispatchers share the fleet, and how many of our boards are another one's share."""

    members: int
    surplus: int


class SpendingRead(Event, frozen=True, kw_only=True):
    """What all dispatchers together spent today."""

    spends: tuple[Spend, ...]


class TimePassed(Event, frozen=True, kw_only=True):
    """A wake-up that the engine asked for, or a routine one."""


AnyEvent: TypeAlias = (
    JobSubmitted
    | SubmissionMalformed
    | JobCancelled
    | PresenceChanged
    | InfoReceived
    | StateReceived
    | HeldReceived
    | StartReceived
    | ProgressReceived
    | TokensReceived
    | DoneReceived
    | FailureReceived
    | EscalationReceived
    | CompletionGrew
    | CompletionFinished
    | CompletionFailed
    | ResultConfirmed
    | ResultRefused
    | AdminAsked
    | LinkLost
    | LinkRestored
    | LoadLooked
    | BoardsAcquired
    | RoomOffered
    | SharesFound
    | SpendingRead
    | TimePassed
)
