"""How every store lists jobs: columns narrow them down, what no column says is looked at.

What answered a job, on which worker and why not, is in its result, which may be sealed: no job pays
for columns and indexes of that. Whoever asks for it has jobs looked at one after the other, so many
at a time, from where the page before ended, and is told how far that came. A page begins at a key,
never at a number, so it costs the same wherever it lies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from cloud_dispatcher.adapters.job_rows import RARE, Blobs, read_outcome
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.ports import JobPage, JobQuery
from fleet_protocol.messages import AnsweredBy, DeviceId, JobKey, JobStatus

_CHUNK: Final = 1_000
_PRESENT_ROUTE: Final = {
    JobStatus.ASSIGNED: AnsweredBy.EDGE,
    JobStatus.RUNNING: AnsweredBy.EDGE,
    JobStatus.ESCALATED: AnsweredBy.CLOUD,
}


class Traits(NamedTuple):
    """What is looked at."""

    key: JobKey
    device: DeviceId
    id: str
    workers: tuple[str | None, str | None]
    route: str | None
    codes: tuple[str | None, str | None]


def traits_of(job: Job) -> Traits:
    """Return a job's traits."""
    result = job.result
    return Traits(
        key=job.key,
        device=job.device,
        id=job.id,
        workers=(job.worker, None if result is None else result.worker),
        route=_route(job.status, None if result is None else result.answered_by),
        codes=(None, None) if result is None else (result.code, result.reason),
    )


def read_traits(row: Sequence[Any], blobs: Blobs) -> Traits:
    """Read a row of key, device, id, status, worker and result; raises as `read_job` does."""
    key, device, job_id, status, worker, result = row
    if result is None:
        route = _PRESENT_ROUTE.get(status)
        return Traits(key, device, job_id, (worker, None), route, (None, None))
    outcome = read_outcome(key, result, blobs)
    return Traits(
        key=key,
        device=device,
        id=job_id,
        workers=(worker, outcome.worker),
        route=_route(status, outcome.answered_by),
        codes=(outcome.code, outcome.reason),
    )


def _route(status: str, answered_by: str | None) -> str | None:
    return answered_by or _PRESENT_ROUTE.get(JobStatus(status))


def needs_looking(query: JobQuery) -> bool:
    """Whether it asks for what no column says."""
    told = (query.belongs, query.worker, query.route, query.code, query.text)
    return any(wanted is not None for wanted in told)


def fits(query: JobQuery, traits: Traits) -> bool:
    """Whether what no column says is as the query wants it."""
    text = None if query.text is None else query.text.lower()
    return (
        (query.belongs is None or query.belongs(traits.device))
        and (query.worker is None or query.worker in traits.workers)
        and (query.route is None or query.route == traits.route)
        and (query.code is None or query.code in traits.codes)
        and (text is None or text in traits.id.lower() or text in traits.key.lower())
    )


def narrowed(query: JobQuery) -> list[tuple[str, object]]:
    """Name the conditions on columns as the stores' SQL does, each with its value if it has one."""
    found: list[tuple[str, object]] = []
    if query.device is not None:
        found.append(("where_device", query.device))
    if query.dead:
        found.append(("where_dead", None))
    if query.status is not None:
        found.append(("where_status", query.status.value))
        if query.status in RARE:
            found.append(("where_trouble", None))
        elif not query.status.is_final:
            found.append(("where_untold", None))
    if query.before is not None:
        found.append(("where_before", query.before))
    if query.after is not None:
        found.append(("where_after", query.after))
    return found


def order_of(query: JobQuery) -> str:
    """Name the order in which a store reads the jobs of a query."""
    return "oldest_first" if query.upwards else "newest"


async def search(
    query: JobQuery,
    *,
    jobs: Callable[[JobQuery], Awaitable[Sequence[Job]]],
    traits: Callable[[JobQuery], Awaitable[Sequence[Traits]]],
    by_keys: Callable[[Sequence[JobKey]], Awaitable[Sequence[Job]]],
) -> JobPage:
    """Return the page of a query, read by what a store has for it.

    Args:
        query: What is wanted.
        jobs: Reads what `narrowed` leaves, in the order of `order_of`, `limit` at most.
        traits: The same of traits; a chunk at a time, so that others may read in between.
        by_keys: Reads jobs by their keys, newest first.
    """
    if query.keys is not None:
        return JobPage(jobs=tuple(await by_keys(query.keys)))
    if not needs_looking(query):
        # One more than wanted: so it shows whether there are more.
        found = tuple(await jobs(replace(query, limit=query.limit + 1)))
        page, has_more = found[: query.limit], len(found) > query.limit
        go_on = page[-1].key if has_more else None
        return JobPage(jobs=page[::-1] if query.upwards else page, go_on=go_on)
    walk = _Walk(query)
    while (chunk := walk.chunk) is not None:
        walk.look(await traits(chunk), chunk)
    return JobPage(jobs=tuple(await by_keys(walk.found)), go_on=walk.go_on)


class _Walk:
    """Goes through the jobs of a query in chunks, until enough fit or enough were looked at."""

    def __init__(self, query: JobQuery) -> None:
        self._query = query
        self._fitting: list[JobKey] = []
        self._at: JobKey | None = None
        self._left = query.looks
        self._is_through = False

    @property
    def chunk(self) -> JobQuery | None:
        """What is to be read next; None: that is enough."""
        if self._is_through or self._left <= 0 or len(self._fitting) > self._query.limit:
            return None
        query = replace(self._query, limit=min(_CHUNK, self._left))
        if self._at is None:
            return query
        return replace(query, **{"after" if query.upwards else "before": self._at})

    def look(self, rows: Sequence[Traits], chunk: JobQuery) -> None:
        """Look at what was read."""
        self._fitting += [row.key for row in rows if fits(self._query, row)]
        self._at = rows[-1].key if rows else self._at
        self._left -= len(rows)
        self._is_through = len(rows) < chunk.limit

    @property
    def found(self) -> list[JobKey]:
        """Those that are the page."""
        return self._fitting[: self._query.limit]

    @property
    def go_on(self) -> JobKey | None:
        """See `JobPage`."""
        if len(self._fitting) > self._query.limit:
            return self.found[-1]
        return None if self._is_through else self._at
