"""The cloud lane's calls: one named task each, its outcome an event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from cloud_dispatcher.core.commands import StartCompletion
from cloud_dispatcher.core.events import (
    AnyEvent,
    CompletionFailed,
    CompletionFinished,
    CompletionGrew,
)
from cloud_dispatcher.ports import Completion, CompletionProvider, ProviderError
from fleet_protocol.messages import JobKey

_log = structlog.get_logger(__name__)

_CHUNK_EVERY_S: Final = 0.1
"""Streamed text goes to the device at most this often, as from a worker."""


class CompletionLane:
    """Runs provider calls. How many at once is the provider's own limit."""

    def __init__(
        self,
        provider: CompletionProvider,
        tasks: asyncio.TaskGroup,
        report: Callable[[AnyEvent], None],
    ) -> None:
        self._provider = provider
        self._tasks = tasks
        self._report = report
        self._running: dict[JobKey, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def start(self, command: StartCompletion) -> None:
        """Call the provider; an earlier call for the same job is given up."""
        job = command.request.job
        self.stop(job)
        task = self._tasks.create_task(self._call(command), name=f"completion-{job}")
        self._running[job] = task
        task.add_done_callback(lambda done: self._forget(job, done))

    def stop(self, job: JobKey) -> None:
        """Give up the call for this job, if there is one. No event follows."""
        task = self._running.pop(job, None)
        if task is not None:
            task.cancel()

    def stop_all(self) -> None:
        """Give up every call; the jobs stay open and are taken up by the next run."""
        for job in tuple(self._running):
            self.stop(job)

    def _forget(self, job: JobKey, task: asyncio.Task[None]) -> None:
        if self._running.get(job) is task:
            del self._running[job]

    async def _call(self, command: StartCompletion) -> None:
        request = command.request
        try:
            async with asyncio.timeout(request.timeout_ms / 1_000):
                outcome: AnyEvent = await self._stream(command)
        except TimeoutError:
            outcome = _failed(command, "provider_timeout", "the provider did not answer in time")
        except ProviderError as error:
            outcome = CompletionFailed(
                job=request.job,
                attempt=request.attempt,
                code=error.code,
                message=error.advice,
                retry_after_ms=error.retry_after_ms,
                cost_usd=error.cost_usd,
            )
        except Exception:  # noqa: BLE001 - logged with its trace; see below
            # A defect in an adapter must cost this one answer, not the dispatcher.
            _log.exception("completion.broke", job=request.job, provider=self._provider.name)
            outcome = _failed(command, "provider_error", "the provider's adapter broke")
        self._report(outcome)

    async def _stream(self, command: StartCompletion) -> AnyEvent:
        request, clock = command.request, asyncio.get_running_loop().time
        pending, sent_at_s = "", -_CHUNK_EVERY_S
        whole: Completion | None = None
        async for part in self._provider.stream(request):
            if isinstance(part, Completion):
                whole = part
                continue
            pending += part
            if command.stream and clock() - sent_at_s >= _CHUNK_EVERY_S:
                sent_at_s, grown, pending = clock(), pending, ""
                self._report(CompletionGrew(job=request.job, attempt=request.attempt, text=grown))
        if whole is None:
            return _failed(command, "provider_error", "the provider ended without an answer")
        return _finished(command, whole)


def _finished(command: StartCompletion, whole: Completion) -> CompletionFinished:
    return CompletionFinished(
        job=command.request.job,
        attempt=command.request.attempt,
        text=whole.text,
        model=whole.model,
        usage=whole.usage,
        cost_usd=whole.cost_usd,
        simulated=whole.simulated,
        misfit=whole.misfit,
        provider=whole.provider,
        shared=whole.shared,
        cut=whole.cut,
    )


def _failed(command: StartCompletion, code: str, message: str) -> CompletionFailed:
    request = command.request
    return CompletionFailed(job=request.job, attempt=request.attempt, code=code, message=message)
