"""Whether a job is tried again, and when: data, not control flow."""

from __future__ import annotations

from typing import Final, TypeAlias
from zlib import crc32

import msgspec

from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.settings import RetrySettings
from fleet_protocol.messages import Defer


class RetryAt(msgspec.Struct, frozen=True):
    """Try again, not before then."""

    at_ms: int


class GiveUp(msgspec.Struct, frozen=True):
    """No further attempt makes sense."""

    code: str
    message: str


RetryDecision: TypeAlias = RetryAt | GiveUp

_RARER: Final = 8
"""In an outage a job asks for the cloud again after an eighth of the time that it has lasted."""


def spread(name: str, span_ms: int) -> int:
    """Return a span between three quarters and all of `span_ms`.

    Jitter without randomness: the same name always gets the same span, different names differ,
    so jobs that failed together do not come back together.
    """
    return span_ms - span_ms * (crc32(name.encode()) % 1_024) // 4_096


def backoff_ms(name: str, tries: int, *, first_ms: int, cap_ms: int) -> int:
    """Return the pause after the `tries`-th failure (from 1): doubling, capped, spread out."""
    doubled = first_ms << min(max(tries - 1, 0), 32)
    return spread(f"{name}/{tries}", min(doubled, cap_ms))


def retry_edge(job: Job, settings: RetrySettings, *, now_ms: int) -> RetryDecision:
    """Decide after a lease that ended without an answer; a job that had none may have one now."""
    if job.edge_tries == 0:
        return RetryAt(now_ms)
    if job.edge_tries >= settings.max_attempts:
        return GiveUp("attempts_exhausted", f"no worker answered in {job.edge_tries} attempts")
    pause_ms = backoff_ms(
        job.key, job.edge_tries, first_ms=settings.backoff_ms, cap_ms=settings.backoff_cap_ms
    )
    return RetryAt(now_ms + pause_ms)


def retry_cloud(
    job: Job,
    settings: RetrySettings,
    *,
    retry_after_ms: int | None,
    now_ms: int,
    away_ms: int = 0,
) -> RetryDecision:
    """Decide after a cloud call that failed; without the provider's invitation it is final.

    Args:
        job: With this call among its tries, unless nobody was asked.
        settings: See there.
        retry_after_ms: The span that the provider names; None: it invites no other call.
        now_ms: UTC epoch milliseconds.
        away_ms: How long nobody in the cloud could be asked. Calls get rarer with it; only what
            may wait for cheaper hours waits for the end of a long outage, too.
    """
    if retry_after_ms is None:
        return GiveUp("provider", "the provider does not invite another try")
    if job.cloud_tries >= settings.cloud_max_attempts:
        return GiveUp("provider", f"no provider answered in {job.cloud_tries} calls")
    if retry_after_ms > settings.cloud_wait_cap_ms:
        return GiveUp("provider", f"the provider wants a pause of {retry_after_ms} ms")
    if away_ms >= settings.cloud_wait_cap_ms and job.submit.defer is Defer.NO:
        return GiveUp("provider", f"no provider has answered for {away_ms} ms")
    rare_ms = min(away_ms // _RARER, settings.backoff_cap_ms)
    at_ms = now_ms + max(retry_after_ms, settings.backoff_ms, rare_ms)
    if job.deadline_at_ms is not None and at_ms >= job.deadline_at_ms:
        return GiveUp("provider", "the deadline comes before the provider's pause is over")
    return RetryAt(at_ms)
