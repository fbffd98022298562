"""What the store knows of jobs that are named, asked before the engine hears of who named them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

from msgspec.structs import replace

from cloud_dispatcher.cluster import Cluster, Name
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.ports import JobStore
from cloud_dispatcher.turn import Turn
from fleet_protocol import messages as m
from fleet_protocol.answer_cache import CachedAnswer

_R = TypeVar("_R")

NAMING: Final = (e.JobSubmitted, e.JobCancelled)
"""Events that name a job as its device does; such a job may be in the store alone."""


class _Patience(Protocol):
    async def on(self, call: Callable[[], Awaitable[_R]]) -> _R:
        """Repeat a call to the store until it works."""
        ...


class LookUp:
    """Adds to events what the store knows, and leaves out what is for another dispatcher."""

    def __init__(
        self,
        store: JobStore,
        patience: _Patience,
        *,
        engine: Engine,
        cluster: Cluster | None = None,
    ) -> None:
        self._store = store
        self._patience = patience
        self._engine = engine
        self._cluster = cluster

    async def inform(self, events: Sequence[e.AnyEvent], turn: Turn) -> Sequence[e.AnyEvent]:
        """Return the events with what the store knows of jobs that are not open in memory."""
        ids: dict[Name, bytes | None] = {}
        asked: list[e.AdminAsked] = []
        for event in events:
            if isinstance(event, NAMING):
                name = (event.device, event.id)
                if self._engine.find_open(*name) is None:
                    ids[name] = self._wanted_answer(event) or ids.get(name)
                else:
                    turn.were_open.add(name)
            elif isinstance(event, e.AdminAsked):
                asked.append(event)
        if not ids and not asked:
            return events
        if self._cluster is not None:
            await self._claim(self._cluster, events, turn)
        on, store = self._patience.on, self._store
        known = await on(lambda: store.find(ids)) if ids else {}
        keys = [key for key in ids.values() if key is not None]
        answers = await on(lambda: store.find_answers(keys)) if keys else {}
        given = {name: answers[key] for name, key in ids.items() if key and key in answers}
        found = {event.request.job: await self._find_asked(event) for event in asked}
        if self._cluster is not None:
            events = await self._ours(self._cluster, events, turn, (known, found))
        if not known and not given and not found:
            return events
        return [_informed(event, known, given, found) for event in events]

    def again(
        self, event: e.AnyEvent, turn: Turn, unsaved: Sequence[Mapping[m.JobKey, Job]]
    ) -> e.AnyEvent:
        """Add what was not to be found: a job that was let go since we looked, or is not saved yet.

        Args:
            event: What the engine hears of next.
            turn: What was decided in this turn so far.
            unsaved: Values that earlier turns decided and the store may not have, the latest first.
        """
        if isinstance(event, e.AdminAsked):
            key = m.JobKey(event.request.job or "")
            if not key or self._engine.get(key) is not None:
                return event
            latest = (saves[key] for saves in (turn.saves, *unsaved) if key in saves)
            found = next(latest, event.found)
            return event if found is event.found else replace(event, found=found)
        if not turn.were_open or not isinstance(event, NAMING):
            return event
        name = (event.device, event.id)
        if name not in turn.were_open or self._engine.find_open(*name) is not None:
            return event
        known = next((job for job in turn.saves.values() if (job.device, job.id) == name), None)
        return event if known is None else replace(event, known=known)

    async def _claim(self, cluster: Cluster, events: Sequence[e.AnyEvent], turn: Turn) -> None:
        """Hold new names before the store is asked for them: nobody else can then save one."""
        names = {
            (event.device, event.id)
            for event in events
            # Who asks in plain text leaves the naming to us.
            if isinstance(event, e.JobSubmitted) and event.id != m.JobId(event.key)
            if (event.device, event.id) not in turn.were_open
        }
        names -= turn.claimed
        if names:
            turn.claimed |= await self._patience.on(lambda: cluster.claim(names))

    async def _ours(
        self,
        cluster: Cluster,
        events: Sequence[e.AnyEvent],
        turn: Turn,
        stored: tuple[Mapping[tuple[str, str], Job], Mapping[str | None, Job | None]],
    ) -> Sequence[e.AnyEvent]:
        known, found = stored
        jobs = {key: job for key, job in found.items() if key is not None and job is not None}
        others = [event for event in events if not self._is_open_here(event, turn)]
        ours = await self._patience.on(lambda: cluster.ours(others, known, jobs, turn.claimed))
        left_out = {id(event) for event in others} - {id(event) for event in ours}
        return [event for event in events if id(event) not in left_out]

    def _is_open_here(self, event: e.AnyEvent, turn: Turn) -> bool:
        if isinstance(event, NAMING):
            return (event.device, event.id) in turn.were_open
        if isinstance(event, e.AdminAsked) and event.request.job is not None:
            return self._engine.get(m.JobKey(event.request.job)) is not None
        return False

    def _wanted_answer(self, event: e.JobSubmitted | e.JobCancelled) -> bytes | None:
        if isinstance(event, e.JobCancelled):
            return None
        return self._engine.wanted_answer(event.device, event.submit)

    async def _find_asked(self, event: e.AdminAsked) -> Job | None:
        key = event.request.job
        if key is None or self._engine.get(m.JobKey(key)) is not None:
            return None
        return await self._patience.on(lambda: self._store.get(m.JobKey(key)))


def _informed(
    event: e.AnyEvent,
    known: Mapping[tuple[str, str], Job],
    answers: Mapping[Name, CachedAnswer],
    found: Mapping[str | None, Job | None],
) -> e.AnyEvent:
    """Return the event with what the store knew."""
    if type(event) is e.JobSubmitted:
        name = (event.device, event.id)
        job, answer = known.get(name), answers.get(name)
        if job is None and answer is None:
            return event
        return replace(event, known=job, answer=answer)
    if type(event) is e.JobCancelled:
        job = known.get((event.device, event.id))
        return event if job is None else replace(event, known=job)
    if type(event) is e.AdminAsked:
        return replace(event, found=found[event.request.job])
    return event
