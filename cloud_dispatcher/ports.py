"""What the dispatcher needs of the outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Protocol, Self, TypeAlias

import msgspec

from cloud_dispatcher.core.commands import AnswerChange, AnyCommand, CompletionRequest
from cloud_dispatcher.core.events import AnyEvent
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.spending import Spend
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.errors import FleetError, RetryableError
from fleet_protocol.library import LibraryAnswer
from fleet_protocol.messages import (
    Alert,
    AnsweredBy,
    CacheRow,
    DeviceId,
    EndpointView,
    JobId,
    JobKey,
    JobStatus,
    JobSubmit,
    Usage,
    WorkerId,
)


class StoreUnavailableError(RetryableError):
    """The store cannot be written now (disk full, locked, gone); nothing of the batch was."""

    code = "store_unavailable"


class JobQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs to list, newest first.

    Attributes:
        belongs: Whether a device is of those whose jobs are wanted; None: all are.
        worker: It has the job, or answered it.
        route: What answered the job, or has it now.
        code: Why there is no answer, why it is degraded, or why the job left its board.
        text: A part of the device's id for the job or of its key, in small letters or capitals.
        keys: Only these; None: all.
        before: Only those older than this one.
        after: Only those newer.
        upwards: Of those that fit the ones next to `after`, not the newest.
        looks: So many jobs at most are looked at for what no column says: `belongs`, `worker`,
            `route`, `code`, `text`.
    """

    status: JobStatus | None = None
    device: DeviceId | None = None
    dead: bool = False
    limit: int = 50
    belongs: Callable[[DeviceId], bool] | None = None
    worker: WorkerId | None = None
    route: AnsweredBy | None = None
    code: str | None = None
    text: str | None = None
    keys: tuple[JobKey, ...] | None = None
    before: JobKey | None = None
    after: JobKey | None = None
    upwards: bool = False
    looks: int = 20_000


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs that a query found.

    Attributes:
        jobs: Newest first.
        go_on: Where the looking ended while there may be more: `before` of the next query, or
            `after` upwards. None: that was all.
    """

    jobs: tuple[Job, ...]
    go_on: JobKey | None = None


class JobStore(Protocol):
    """Jobs that survive the process. Lifetime is `async with`; entering migrates the schema."""

    async def __aenter__(self) -> Self:
        """Open; raises StoreUnavailableError."""
        ...

    async def __aexit__(self, *exc: object) -> None:
        """Close."""
        ...

    async def commit(
        self,
        jobs: Sequence[Job],
        spends: Sequence[Spend] = (),
        answers: Sequence[AnswerChange] = (),
    ) -> None:
        """Save these values in ONE transaction, or none: on return they are on the disk.

        Spends are added to what is there for the same day and purpose. Answers beyond the store's
        bound push out those that were not used for longest.

        Raises:
            StoreUnavailableError: Nothing was saved; the same call may work later.
        """
        ...

    async def find(self, ids: Iterable[tuple[DeviceId, JobId]]) -> Mapping[tuple[str, str], Job]:
        """Return those of the devices' jobs that exist, open or finished."""
        ...

    async def get(self, key: JobKey) -> Job | None:
        """Return a job by its key."""
        ...

    async def load_open(self) -> list[Job]:
        """Return all jobs without a result, and those whose result was not told: the outbox."""
        ...

    async def select(self, query: JobQuery) -> JobPage:
        """List jobs, newest first."""
        ...

    async def spending(self, *, since_day: int) -> list[Spend]:
        """Return what was spent from that UTC day (since 1970) on, oldest first."""
        ...

    async def find_answers(self, keys: Iterable[bytes]) -> Mapping[bytes, CachedAnswer]:
        """Return those of the cached answers that exist, fresh or not."""
        ...

    async def recent_questions(self, *, limit: int) -> list[tuple[DeviceId, JobSubmit]]:
        """Return what was asked last and by whom, newest first."""
        ...

    async def cache_usage(self) -> list[CacheRow]:
        """Return what is cached, by tenant."""
        ...

    async def sweep_answers(self, *, until_before_ms: int) -> int:
        """Forget cached answers whose time was over before; return how many."""
        ...

    async def purge(self, key: JobKey) -> bool:
        """Forget a dead letter; return whether it was one, and told."""
        ...

    async def give_back(self, *, most_bytes: int) -> int:
        """Return disk space that nothing needs to the system, in short steps; return how much."""
        ...

    async def prune(self, *, finished_before_ms: int, dead_before_ms: int, limit: int) -> int:
        """Forget finished, told jobs, the oldest first, at most `limit`; return how many.

        Args:
            finished_before_ms: Those go that finished before; dead letters do not.
            dead_before_ms: The same for dead letters.
            limit: Of both together.
        """
        ...


class ProviderError(FleetError):
    """A provider did not answer.

    Attributes:
        retry_after_ms: Not None: the same call may succeed after this span.
        elsewhere: Another provider may answer the very same request.
        cost_usd: What the failure cost all the same.
    """

    code = "provider"

    def __init__(
        self,
        message: str,
        *,
        code: str,
        retry_after_ms: int | None = None,
        elsewhere: bool = False,
        hint: str = "",
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.retry_after_ms = retry_after_ms
        self.elsewhere = elsewhere or retry_after_ms is not None
        self.cost_usd = 0.0


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer of a provider.

    Attributes:
        text: All of it, and what counts: see `CompletionPart`.
        model: As the response named it: a checkpoint behind a name can change.
        misfit: Why the text is not of the form that was asked for; empty if it is.
        provider: Name of the endpoint that answered.
        shared: Another request asked the same at the same time, and pays for it.
        cut: `max_tokens` ended the answer.
    """

    text: str
    model: str
    usage: Usage
    cost_usd: float
    simulated: bool = False
    misfit: str = ""
    provider: str = ""
    shared: bool = False
    cut: bool = False


CompletionPart: TypeAlias = str | Completion
"""A piece of text as it streams in; at the end, once, the whole.

The pieces together begin the whole, unless a call broke off and the next one answered otherwise:
then they stop, and the whole supersedes them. They never start over.
"""


class CompletionProvider(Protocol):
    """Answers in the cloud."""

    @property
    def name(self) -> str:
        """For people and logs."""
        ...

    @property
    def endpoints(self) -> tuple[EndpointView, ...]:
        """How it stands with what answers, in order of preference; empty: nothing does."""
        ...

    def stream(self, request: CompletionRequest) -> AsyncIterator[CompletionPart]:
        """Answer. Cancelling the iteration gives the call up.

        Raises:
            ProviderError: With a code, see `CompletionFailed`.
        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class AnswerLibrary(Protocol):
    """The offline answer library, which an operator edits while the dispatcher runs."""

    def __len__(self) -> int:
        """Return how many entries it has."""
        ...

    @property
    def trouble(self) -> FleetError | None:
        """Why the file cannot be used as it is now, so that the last good one goes on."""
        ...

    def answer(self, submit: JobSubmit) -> LibraryAnswer | None:
        """Return the surest answer that is of the job's form."""
        ...

    async def refresh(self) -> bool:
        """Read it again if it changed; return whether it did. Raises nothing, see `trouble`."""
        ...


class AlertArchive(Protocol):
    """Alerts that survive the process."""

    def load(self) -> tuple[Alert, ...]:
        """Return what an earlier run kept; nothing, where that cannot be read."""
        ...

    async def save(self, views: Sequence[Alert]) -> None:
        """Keep all of them, in the place of those before; raises StoreUnavailableError."""
        ...


class Observer(Protocol):
    """Sees every decision after it was carried out: logs, metrics, summaries."""

    def observe(self, event: AnyEvent, commands: Sequence[AnyCommand], now_ms: int) -> None:
        """Take note. Must not block and must not raise."""
        ...
