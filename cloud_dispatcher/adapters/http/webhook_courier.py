"""Tells tenants' own servers that their jobs are over: kept, signed, and tried again.

What is owed lies on the disk before the job is submitted, and goes from it once it was told; what
is told is read from the job store at that moment. So a call may come twice (its `webhook-id` is
the same then) and is never lost with the dispatcher.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import msgspec
import structlog
from msgspec.structs import replace

from cloud_dispatcher.adapters.http.webhook_call import WebhookCaller
from cloud_dispatcher.adapters.http.webhook_settings import WebhookSettings
from cloud_dispatcher.adapters.http.webhook_signature import secret_of, signed_headers
from cloud_dispatcher.adapters.http.webhook_store import Webhook, WebhookStore
from cloud_dispatcher.adapters.secret_file import read_secret
from cloud_dispatcher.core.admin import view_of
from cloud_dispatcher.core.commands import AnyCommand, Send
from cloud_dispatcher.core.events import AnyEvent
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.local_devices import is_local
from cloud_dispatcher.ports import JobStore, StoreUnavailableError
from fleet_protocol import topics
from fleet_protocol.errors import ConfigError, FleetError, RejectedError, RetryableError

_log = structlog.get_logger(__name__)

PAUSES_S: Final = (5, 30, 120, 600, 1_800, 3_600, 7_200, 14_400, 28_800)
"""Between tries, each up to a quarter longer: nine hours at the end, seventeen in all."""
_SECRET_LEAST_CHARS: Final = 32
_AT_ONCE: Final = 16
_LOOK_S: Final = 60.0
"""Now and then the store is asked for jobs that ended unheard: with another dispatcher."""
_STORE_PAUSE_MS: Final = 5_000
_GONE: Final = 410
_BUSY_MS: Final = 60_000

_Name = tuple[str, str]


class WebhookCourier:
    """Owes calls, and makes them. An `Observer`; runs from entering to leaving.

    Args:
        path: Where what is owed is kept.
        jobs: Open while this runs.
        clock: UTC epoch milliseconds.
    """

    def __init__(
        self, settings: WebhookSettings, path: Path, jobs: JobStore, clock: Callable[[], int]
    ) -> None:
        """Read the secret and the certificates; raises ConfigError."""
        self._master = _master(settings)
        self._most = settings.max_waiting
        self._caller = WebhookCaller(settings)
        self._store = WebhookStore(path)
        self._jobs = jobs
        self._clock = clock
        self._owed: dict[_Name, Webhook] = {}
        # Promised by an earlier run whose end may have come before the job: then there is none.
        self._left: list[Webhook] = []
        self._due: list[tuple[int, _Name]] = []
        self._busy: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Go on with what is owed; raises as the store does."""
        for hook in await self._store.open():
            self._owe(hook)
        self._left = [hook for hook in self._owed.values() if hook.due_at_ms is None]
        self._running = asyncio.create_task(self._run(), name="webhooks")
        return self

    async def __aexit__(self, *exc: object) -> None:
        tasks = [*self._busy, *([self._running] if self._running else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._store.close()

    def secret(self, tenant: str) -> str:
        """Return what a tenant's calls are signed with."""
        return secret_of(self._master, tenant)

    async def promise(self, hook: Webhook) -> None:
        """Owe a call for a job that is about to be submitted.

        Raises:
            RejectedError: `webhook_refused`: it may not go there.
            RetryableError: `busy`: too many are owed; StoreUnavailableError: it cannot be kept.
        """
        self._caller.check(hook.url)
        if len(self._owed) >= self._most and _name(hook) not in self._owed:
            message = f"{self._most} webhooks are owed already"
            raise RetryableError(message, code="busy", retry_after_ms=_BUSY_MS)
        await self._store.keep(hook)
        self._owe(hook)

    async def withdraw(self, hook: Webhook) -> None:
        """Owe it no more: there will be no such job."""
        self._owed.pop(_name(hook), None)
        await self._store.forget(hook)

    def over(self, name: _Name) -> None:
        """Hear that a job is over."""
        hook = self._owed.get(name)
        if hook is not None and hook.due_at_ms is None:
            self._owe(replace(hook, due_at_ms=self._clock()))

    def observe(self, event: AnyEvent, commands: Sequence[AnyCommand], now_ms: int) -> None:  # noqa: ARG002 - an Observer's
        """Hear which jobs are over."""
        if not self._owed:
            return
        for command in commands:
            if type(command) is Send and command.channel is topics.RESULT and is_local(command):
                device, job_id = command.ids
                self.over((device, job_id))

    def _owe(self, hook: Webhook) -> None:
        self._owed[_name(hook)] = hook
        if hook.due_at_ms is not None:
            heapq.heappush(self._due, (hook.due_at_ms, _name(hook)))
            self._news.set()

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except StoreUnavailableError as error:
                _log.warning("webhook.no_store", error=str(error))
            look_at_s = asyncio.get_running_loop().time() + _LOOK_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(look_at_s):
                    await self._go_on()

    async def _look(self) -> None:
        """Ask the store which jobs are over that nobody told us of, or never came to be."""
        names = [(h.device, h.id) for h in self._owed.values() if h.due_at_ms is None]
        found = await self._jobs.find(names) if names else {}
        for name, job in found.items():
            if job.result is not None:
                self.over(name)
        left, self._left = self._left, []
        for hook in left:
            if _name(hook) not in found:
                await self._settle(hook, "webhook.job_gone")

    async def _go_on(self) -> None:
        """Make the calls that are due, each when it is, so many at once."""
        while True:
            self._news.clear()
            while self._due and self._due[0][0] <= self._clock() and len(self._busy) < _AT_ONCE:
                due_at_ms, name = heapq.heappop(self._due)
                hook = self._owed.get(name)
                if hook is not None and hook.due_at_ms == due_at_ms:
                    task = asyncio.create_task(self._deliver(hook), name="webhook")
                    self._busy.add(task)
                    task.add_done_callback(self._done)
            is_full = len(self._busy) >= _AT_ONCE or not self._due
            wait_s = None if is_full else max(0, self._due[0][0] - self._clock()) / 1_000
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._busy.discard(task)
        self._news.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("webhook.failed", error=type(error).__name__)

    async def _deliver(self, hook: Webhook) -> None:
        """Make a call; what comes of it is kept."""
        try:
            job = (await self._jobs.find([(hook.device, hook.id)])).get(_name(hook))
            if job is None:
                await self._settle(hook, "webhook.job_gone")
            elif job.result is None:  # a dead letter that is tried again
                await self._change(hook, due_at_ms=None)
            else:
                await self._tell(hook, job)
        except FleetError as error:
            _log.warning("webhook.no_store", error=str(error))
            if self._is_owed(hook):
                self._owe(replace(hook, due_at_ms=self._clock() + _STORE_PAUSE_MS))

    async def _tell(self, hook: Webhook, job: Job) -> None:
        body, now_ms = _body(job), self._clock()
        secret, call = self.secret(hook.tenant), f"job_{job.key}"
        headers = signed_headers(secret, call, body, at_s=now_ms // 1_000)
        status, problem = 0, ""
        try:
            status = await self._caller.call(hook.url, body, headers)
        except (RejectedError, OSError) as error:
            problem = str(error) or type(error).__name__
        about = {"job": job.key, "status": status, "problem": problem[:200]}
        if 200 <= status < 300:
            await self._settle(hook, "webhook.told", **about)
        elif status == _GONE or hook.tries >= len(PAUSES_S):
            await self._settle(hook, "webhook.given_up", **about)
        else:
            pause_ms = int(PAUSES_S[hook.tries] * random.uniform(1_000, 1_250))  # noqa: S311 - jitter
            _log.warning("webhook.not_told", host=_host(hook), pause_ms=pause_ms, **about)
            due_at_ms = self._clock() + pause_ms
            await self._change(hook, tries=hook.tries + 1, due_at_ms=due_at_ms)

    async def _settle(self, hook: Webhook, event: str, **about: Any) -> None:
        """Owe it no more; it was told, or never will be."""
        _log.info(event, host=_host(hook), tries=hook.tries + 1, **about)
        if self._is_owed(hook):
            await self._store.forget(hook)
        if self._is_owed(hook):
            del self._owed[_name(hook)]

    async def _change(self, hook: Webhook, **changes: Any) -> None:
        if self._is_owed(hook):
            hook = replace(hook, **changes)
            self._owe(hook)
            await self._store.keep(hook)

    def _is_owed(self, hook: Webhook) -> bool:
        """Whether it is, still: whoever posts a job again may have named another address."""
        return self._owed.get(_name(hook)) is hook


def _master(settings: WebhookSettings) -> str:
    file = settings.secret_file or ""
    master = read_secret(file, "gateway.webhooks.secret_file")
    if len(master) < _SECRET_LEAST_CHARS:
        raise ConfigError(
            f"gateway.webhooks.secret_file {file} has fewer than {_SECRET_LEAST_CHARS} characters",
            hint="make one: openssl rand -hex 32",
        )
    return master


def _body(job: Job) -> bytes:
    """What is told: the job as its own people may see it, its answer and no question."""
    at_ms = job.finished_at_ms or 0
    at = datetime.fromtimestamp(at_ms / 1_000, UTC).isoformat(timespec="milliseconds")
    view = msgspec.to_builtins(view_of(job))
    return msgspec.json.encode({"type": "job.finished", "timestamp": at, "data": view})


def _name(hook: Webhook) -> _Name:
    return hook.device, hook.id


def _host(hook: Webhook) -> str:
    """Of the address no more is logged: it may have a secret of its own."""
    return urlsplit(hook.url).netloc
