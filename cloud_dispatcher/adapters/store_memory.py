"""Jobs in memory: for tests and trials. It passes the same contract suite as the real store."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from msgspec.structs import asdict

from cloud_dispatcher.adapters.job_search import Traits, search, traits_of
from cloud_dispatcher.core.commands import AnswerChange, ForgetAnswers, UseAnswer
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.spending import Spend
from cloud_dispatcher.ports import JobPage, JobQuery, StoreUnavailableError
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.messages import CacheRow, DeviceId, JobId, JobKey, JobSubmit


class MemoryJobStore:
    """A JobStore whose jobs live as long as the object, over any number of openings.

    Attributes:
        failures: That many of the next commits fail as a full disk would.
        commits: Number of commits that succeeded.
    """

    def __init__(self, *, failures: int = 0, cache_mb: int = 64) -> None:
        self.failures = failures
        self.commits = 0
        self._jobs: dict[JobKey, Job] = {}
        self._keys: dict[tuple[str, str], JobKey] = {}
        self._spends: dict[tuple[Any, ...], Spend] = {}
        self._answers: dict[bytes, CachedAnswer] = {}
        self._used_at_ms: dict[bytes, int] = {}
        self._hits: dict[bytes, int] = {}
        self._tenants: dict[bytes, str] = {}
        self._cache_bytes = cache_mb * 1_048_576

    async def __aenter__(self) -> Self:
        """Open."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close; the jobs stay."""

    async def commit(
        self,
        jobs: Sequence[Job],
        spends: Sequence[Spend] = (),
        answers: Sequence[AnswerChange] = (),
    ) -> None:
        """Save all or, while `failures` are left, nothing."""
        if self.failures > 0:
            self.failures -= 1
            raise StoreUnavailableError("the disk is full (simulated)", hint="free some space")
        for job in jobs:
            self._jobs[job.key] = job
            self._keys[job.device, job.id] = job.key
        for spend in spends:
            self._add(spend)
        for change in answers:
            self._change(change)
        self.commits += 1

    async def spending(self, *, since_day: int) -> list[Spend]:
        """Return what was spent from that UTC day on, oldest first."""
        return [self._spends[key] for key in sorted(self._spends) if key[0] >= since_day]

    def _add(self, spend: Spend) -> None:
        known = asdict(spend)
        key = tuple(known[name] for name in ("day", "tenant", "reason", "provider", "model", "key"))
        old = self._spends.get(key)
        if old is not None:
            sums = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_usd")
            known |= {name: getattr(old, name) + known[name] for name in sums}
        self._spends[key] = Spend(**known)

    async def find_answers(self, keys: Iterable[bytes]) -> Mapping[bytes, CachedAnswer]:
        """Return those of the cached answers that exist, fresh or not."""
        return {key: self._answers[key] for key in keys if key in self._answers}

    async def recent_questions(self, *, limit: int) -> list[tuple[DeviceId, JobSubmit]]:
        """Return what was asked last and by whom, newest first."""
        newest = (self._jobs[key] for key in sorted(self._jobs, reverse=True)[:limit])
        return [(job.device, job.submit) for job in newest]

    async def cache_usage(self) -> list[CacheRow]:
        """Return what is cached, by tenant."""
        rows: dict[str, CacheRow] = {}
        for key, answer in self._answers.items():
            tenant, hits = self._tenants[key], self._hits[key]
            row = rows.get(tenant) or CacheRow(tenant=tenant, answers=0, size_bytes=0, hits=0)
            rows[tenant] = CacheRow(
                tenant=tenant,
                answers=row.answers + 1,
                size_bytes=row.size_bytes + answer.size_bytes,
                hits=row.hits + hits,
            )
        return [rows[tenant] for tenant in sorted(rows)]

    async def sweep_answers(self, *, until_before_ms: int) -> int:
        """Forget cached answers whose time was over before; return how many."""
        over = [key for key, x in self._answers.items() if x.until_at_ms <= until_before_ms]
        for key in over:
            self._forget_answer(key)
        return len(over)

    def _change(self, change: AnswerChange) -> None:
        if isinstance(change, ForgetAnswers):
            for key in tuple(self._answers):
                self._forget_answer(key)
            return
        if isinstance(change, UseAnswer):
            if change.key in self._answers:
                self._used_at_ms[change.key] = change.at_ms
                self._hits[change.key] += 1
            return
        answer = change.answer
        if answer.size_bytes <= self._cache_bytes:
            self._answers[answer.key] = answer
            self._used_at_ms[answer.key] = answer.made_at_ms
            self._hits.setdefault(answer.key, 0)
            self._tenants[answer.key] = change.tenant
        while sum(x.size_bytes for x in self._answers.values()) > self._cache_bytes:
            self._forget_answer(min(self._used_at_ms, key=self._used_at_ms.__getitem__))

    def _forget_answer(self, key: bytes) -> None:
        for table in (self._answers, self._used_at_ms, self._hits, self._tenants):
            del table[key]

    async def find(self, ids: Iterable[tuple[DeviceId, JobId]]) -> Mapping[tuple[str, str], Job]:
        """Return those that exist."""
        return {pair: self._jobs[self._keys[pair]] for pair in ids if pair in self._keys}

    async def get(self, key: JobKey) -> Job | None:
        """Return a job by its key."""
        return self._jobs.get(key)

    async def load_open(self) -> list[Job]:
        """Return open jobs and the outbox, oldest first."""
        return [self._jobs[key] for key in sorted(self._jobs) if not self._jobs[key].told]

    async def select(self, query: JobQuery) -> JobPage:
        """List jobs, newest first."""
        return await search(query, jobs=self._read, traits=self._traits, by_keys=self._by_keys)

    async def _by_keys(self, keys: Sequence[JobKey]) -> list[Job]:
        return [self._jobs[key] for key in sorted(keys, reverse=True) if key in self._jobs]

    async def _traits(self, query: JobQuery) -> list[Traits]:
        return [traits_of(job) for job in await self._read(query)]

    async def _read(self, query: JobQuery) -> list[Job]:
        """Return the first jobs, in the order of the query, that it narrows them down to."""
        ordered = (self._jobs[key] for key in sorted(self._jobs, reverse=not query.upwards))
        chosen = (
            job
            for job in ordered
            if (query.status is None or job.status is query.status)
            and (query.device is None or job.device == query.device)
            and (job.dead or not query.dead)
            and (query.before is None or job.key < query.before)
            and (query.after is None or job.key > query.after)
        )
        return list(itertools.islice(chosen, query.limit))

    async def purge(self, key: JobKey) -> bool:
        """Forget a dead letter; return whether it was one, and told."""
        job = self._jobs.get(key)
        if job is None or not (job.dead and job.told):
            return False
        del self._jobs[key], self._keys[job.device, job.id]
        return True

    async def give_back(self, *, most_bytes: int) -> int:
        """There is no disk."""
        del most_bytes
        return 0

    async def prune(self, *, finished_before_ms: int, dead_before_ms: int, limit: int) -> int:
        """Forget told jobs that finished before, dead letters by their own limit."""
        old = sorted(
            (job.dead, job.finished_at_ms, job.key)
            for job in self._jobs.values()
            if job.told and job.finished_at_ms is not None
            if job.finished_at_ms < (dead_before_ms if job.dead else finished_before_ms)
        )[:limit]
        for _dead, _finished_at_ms, key in old:
            job = self._jobs.pop(key)
            del self._keys[job.device, job.id]
        return len(old)
