"""What operators ask that the store answers: the engine has no part in it."""

from __future__ import annotations

from typing import assert_never

import structlog
from msgspec.structs import replace

from cloud_dispatcher.bills import cost_row
from cloud_dispatcher.core.admin import view_of
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.spending import day_of
from cloud_dispatcher.frequent import FrequentQuestions
from cloud_dispatcher.insistence import Insistence
from cloud_dispatcher.intake import (
    AskAgain,
    CacheAsked,
    CostsAsked,
    Inquiry,
    JobsListed,
    PurgeAsked,
    RequestRefused,
)
from cloud_dispatcher.keys import first_key
from cloud_dispatcher.outside import Outside
from cloud_dispatcher.ports import JobQuery
from fleet_protocol import messages as m

_log = structlog.get_logger(__name__)


class Inquiries:
    """Answers inquiries, after the turn in which they came is saved."""

    def __init__(
        self,
        outside: Outside,
        insistence: Insistence,
        *,
        engine: Engine,
        frequent: FrequentQuestions,
    ) -> None:
        self._store = outside.store
        self._insistence = insistence
        self._engine = engine
        self._provider = outside.provider
        self._clock = outside.clock
        self._frequent = frequent
        self._payers = outside.payers

    async def answer(self, inquiry: Inquiry) -> m.AdminReply:
        """Return what the operator is told.

        Raises:
            StoppedError: We were told to stop before the store answered.
        """
        match inquiry:
            case RequestRefused(req=req, code=code, message=message):
                return m.AdminReply(req=req, ok=False, code=code, message=message)
            case CostsAsked(request=request):
                return await self._costs(request)
            case AskAgain(request=request):
                return await self._ask_again(request)
            case CacheAsked(request=request):
                return await self._cache(request)
            case PurgeAsked(request=request):
                return await self._purge(request)
            case JobsListed(request=request):
                return await self._jobs(request)
            case _:
                assert_never(inquiry)

    async def _jobs(self, asked: m.AdminRequest) -> m.AdminReply:
        query = self._query(asked)
        page = await self._insistence.on(lambda: self._store.select(query))
        jobs = tuple(_row(job) for job in page.jobs)
        return m.AdminReply(req=asked.req, ok=True, jobs=jobs, go_on=page.go_on)

    def _query(self, asked: m.AdminRequest) -> JobQuery:
        """Return what is asked of the store. Keys tell the time: a span of it is one of keys."""
        whose, tenant_of = asked.of_tenant, self._engine.tenant_of
        until = None if asked.until_ms is None else first_key(asked.until_ms)
        # What begins a key is below it, and above all that are below the key.
        since = None if asked.since_ms is None else first_key(asked.since_ms)[:-1]
        before = min(filter(None, (asked.before, until)), default=None)
        after = max(filter(None, (asked.after, since)), default=None)
        return JobQuery(
            status=asked.status,
            device=None if asked.device is None else m.DeviceId(asked.device),
            dead=asked.dead,
            limit=asked.limit,
            belongs=None if whose is None else lambda device: tenant_of(device) == whose,
            worker=None if asked.worker is None else m.WorkerId(asked.worker),
            route=asked.route,
            code=asked.code,
            text=asked.text,
            keys=tuple(m.JobKey(key) for key in asked.jobs) or None,
            before=None if before is None else m.JobKey(before),
            after=None if after is None else m.JobKey(after),
            upwards=asked.after is not None and asked.before is None,
        )

    async def _purge(self, asked: m.AdminRequest) -> m.AdminReply:
        """Forget a dead letter. The device's id for it is free again."""
        key = m.JobKey(asked.job or "")
        job = self._engine.get(key) or await self._insistence.on(lambda: self._store.get(key))
        if job is None:
            return _refused(asked, "unknown_job", f"there is no job {asked.job!r}")
        if not job.dead:
            return _refused(asked, "not_dead", f"the job is {job.status.value}, no dead letter")
        if not await self._insistence.on(lambda: self._store.purge(key)):
            message = "its device has not got the result yet: try again in a minute"
            return _refused(asked, "result_untold", message)
        _log.info("job.purged", job=key, admin_req=asked.req)
        return m.AdminReply(req=asked.req, ok=True, message="forgotten")

    async def _cache(self, asked: m.AdminRequest) -> m.AdminReply:
        rows = await self._insistence.on(self._store.cache_usage)
        view = self._engine.cache_view(tuple(rows))
        return m.AdminReply(req=asked.req, ok=True, cache=view)

    async def _ask_again(self, asked: m.AdminRequest) -> m.AdminReply:
        now_ms = self._clock()
        count = await self._insistence.on(lambda: self._frequent.ask(asked.limit, now_ms=now_ms))
        return m.AdminReply(req=asked.req, ok=True, message=f"{count} questions are asked again")

    async def _costs(self, asked: m.AdminRequest) -> m.AdminReply:
        now_ms = self._clock()
        since_day = day_of(now_ms) - asked.days + 1
        spends = await self._insistence.on(lambda: self._store.spending(since_day=since_day))
        return m.AdminReply(
            req=asked.req,
            ok=True,
            costs=tuple(cost_row(spend) for spend in spends),
            budgets=self._engine.budgets(now_ms, self._payers()),
            endpoints=self._provider.endpoints,
        )


def _refused(asked: m.AdminRequest, code: str, message: str) -> m.AdminReply:
    return m.AdminReply(req=asked.req, ok=False, code=code, message=message)


def _row(job: Job) -> m.JobView:
    """A job in a list: its texts and past attempts stay out, `jobs.show` has them."""
    view = replace(view_of(job), past=())
    if view.result is None:
        return view
    return replace(view, result=replace(view.result, text=""))
