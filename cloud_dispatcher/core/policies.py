"""The scheduling policies. `docs/simulation.md` has what each is worth."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

import msgspec

from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.pace import READ_COST, slowdown, work_tokens
from cloud_dispatcher.core.queue import Need
from cloud_dispatcher.core.scheduler import DrawnWorkers, Policy, Pool, Rank, WorkerLoad
from fleet_protocol.messages import Usage

_UNKNOWN_MS: Final = 25.0
_CHARS_PER_TOKEN: Final = 4
_CLASSES_MOST: Final = 12
_GAIN: Final = 0.02


class PolicyName(StrEnum):
    """How workers are ranked."""

    WLC = "wlc"
    EXPECTED_FINISH = "expected_finish"
    LEAST_CONN = "least_conn"
    P2C = "p2c"
    ROUND_ROBIN = "round_robin"


class SchedulingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which worker gets a job.

    Attributes:
        policy: `wlc`: least (inflight + 1) per weight. `expected_finish`: where it is expected to
            be done first. The others are there to be compared with.
        strain_most: The speed that a worker says it has is corrected by what its answers take, by
            so many times at most, before it becomes part of the weight of `wlc`; 1: it is not.
    """

    policy: PolicyName = PolicyName.WLC
    strain_most: Annotated[float, msgspec.Meta(ge=1.0, le=16.0)] = 4.0


class WeightedLeastConnections(Policy):
    """(inflight + 1) per weight, then the heavier worker.

    Source: LVS shortest expected delay, (C + 1) / U (net/netfilter/ipvs/ip_vs_sed.c). Without the
    "+ 1" all idle workers look alike and the slowest is as likely as the fastest.
    """

    def __init__(self, *, strain_most: float = 1.0) -> None:
        self.strain_most = strain_most

    def rank(self, load: WorkerLoad, need: Need) -> Rank:  # noqa: ARG002 - the interface's
        """Return the sort key of a free worker."""
        return ((load.inflight + 1) / load.weight, -load.weight)


class ExpectedFinish(Policy):
    """The worker that is expected to be done first.

    What a job takes there is the link, the wait for a slot, and its tokens at the pace learned of
    this worker and model, slower for company. Jobs are ranked in classes of about the same work, a
    factor of two each, so that a worker has few ranks.
    """

    def __init__(self) -> None:
        self._answer_share = 0.5
        self._typical_tokens = work_tokens(80, 30)

    def ask(self, need: Need, job: Job) -> Need:
        """Return the need with the class of the work that is expected."""
        submit = job.submit
        answer_tokens = self._answer_share * submit.max_tokens
        tokens = work_tokens(submit.prompt_chars / _CHARS_PER_TOKEN, answer_tokens)
        return need._replace(work=min(round(tokens).bit_length(), _CLASSES_MOST))

    def rank(self, load: WorkerLoad, need: Need) -> Rank:
        """Return the milliseconds until the job is expected to be done, and its part alone."""
        tokens = 0.75 * 2**need.work
        alone_ms = load.pace.ms_per_token(need.model, unknown_ms=_UNKNOWN_MS)
        waiting = max(load.inflight + 1 - load.slots, 0)
        own_ms = alone_ms * slowdown(min(load.inflight + 1, load.slots)) * tokens
        # Of so many rows, as far along as chance has it, one ends after this part of its span.
        slot_ms = alone_ms * slowdown(load.slots) * self._typical_tokens / (load.slots + 1)
        return (load.pace.link_ms + waiting * slot_ms + own_ms, alone_ms)

    def answered(self, job: Job, usage: Usage) -> None:
        """Learn how much of `max_tokens` answers take, and what a job usually is."""
        share = min(usage.completion_tokens / job.submit.max_tokens, 1.0)
        tokens = usage.completion_tokens + READ_COST * usage.prompt_tokens
        self._answer_share += _GAIN * (share - self._answer_share)
        self._typical_tokens += _GAIN * (tokens - self._typical_tokens)


class LeastConnections(Policy):
    """The one that holds least, then the one that waited longest: blind to speed."""

    def rank(self, load: WorkerLoad, need: Need) -> Rank:  # noqa: ARG002 - the interface's
        """Return the sort key of a free worker."""
        return (load.inflight, load.turn)


class TwoChoices(Policy):
    """Of two workers drawn, the one that holds less (M. Mitzenmacher, 2001)."""

    def rank(self, load: WorkerLoad, need: Need) -> Rank:  # noqa: ARG002 - the interface's
        """Return the sort key of a free worker."""
        return (load.inflight,)

    def pool(self) -> Pool:
        """Return a pool that draws."""
        return DrawnWorkers(self.rank)


class RoundRobin(Policy):
    """Each in turn, blind to speed and load."""

    def rank(self, load: WorkerLoad, need: Need) -> Rank:  # noqa: ARG002 - the interface's
        """Return the sort key of a free worker."""
        return (load.turn,)


def policy_of(settings: SchedulingSettings) -> Policy:
    """Make the policy; it learns, so each engine needs one of its own."""
    match settings.policy:
        case PolicyName.WLC:
            return WeightedLeastConnections(strain_most=settings.strain_most)
        case PolicyName.EXPECTED_FINISH:
            return ExpectedFinish()
        case PolicyName.LEAST_CONN:
            return LeastConnections()
        case PolicyName.P2C:
            return TwoChoices()
        case PolicyName.ROUND_ROBIN:
            return RoundRobin()
