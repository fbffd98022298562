"""What an operator can tune in the engine."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cloud_dispatcher.core.conversations import ConversationSettings
from cloud_dispatcher.core.ejection import EjectionSettings
from cloud_dispatcher.core.overload import OverloadSettings
from cloud_dispatcher.core.policies import SchedulingSettings
from cloud_dispatcher.core.rate_limits import RateSettings
from cloud_dispatcher.core.spending import BudgetSettings
from fleet_protocol.answer_cache import is_cacheable
from fleet_protocol.messages import Caching, JobSubmit

_SpanMs = Annotated[int, msgspec.Meta(ge=1, le=7 * 86_400_000)]
_CacheMs = Annotated[int, msgspec.Meta(ge=1, le=30 * 86_400_000)]
_Positive = Annotated[float, msgspec.Meta(gt=0.0)]
_Coefficient = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class WeightSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a worker's own measurements become its weight.

    weight = compute_coefficient x compute + bandwidth_coefficient x bandwidth, both measured
    against a reference and clipped to 0..1.

    Attributes:
        reference_tok_s: Decode speed that counts as compute 1.0. The default is the one machine
            measured so far: two cores of an AMD EPYC Milan running the default 135M INT8 model.
            Set it to your own fastest board.
        reference_mbps: Throughput that counts as bandwidth 1.0.
        unmeasured_share: Stands for compute or bandwidth until the worker has measured it: in
            the middle, so that a new board is neither flooded nor starved.
        floor: Least weight, so that a board that measured nothing still gets a little.
    """

    compute_coefficient: _Coefficient = 0.6
    bandwidth_coefficient: _Coefficient = 0.4
    reference_tok_s: _Positive = 87.0
    reference_mbps: _Positive = 100.0
    unmeasured_share: _Coefficient = 0.5
    floor: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.01


class RetrySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often, and after which pauses, a job is tried again.

    Attributes:
        max_attempts: Leases given out before a job becomes a dead letter.
        backoff_ms: Pause before the second attempt; doubles with each further one.
        backoff_cap_ms: Longest pause.
        cloud_max_attempts: Cloud calls for one job, where the provider says when to come back.
        cloud_wait_cap_ms: A provider that wants a longer pause than this is not asked again. Once
            nobody in the cloud could be asked for so long, a job that only the cloud can answer
            waits for it no longer, unless it may wait for cheaper hours.
    """

    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 4
    backoff_ms: _SpanMs = 1_000
    backoff_cap_ms: _SpanMs = 30_000
    cloud_max_attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    cloud_wait_cap_ms: _SpanMs = 20_000


class CacheSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long answers are given again.

    Attributes:
        enabled: False: none is looked for, kept, or shared between equal questions.
        ttl_ms: For answers that are the same every time; a job may say otherwise.
        short_ttl_ms: For sampled ones, of jobs that ask to have them kept (`"cache": "always"`).
        memory_mb: Most megabytes of answers in memory; the store has a bound of its own.
    """

    enabled: bool = True
    ttl_ms: _CacheMs = 3_600_000
    short_ttl_ms: _CacheMs = 300_000
    memory_mb: Annotated[int, msgspec.Meta(ge=0, le=65_536)] = 8

    def span_ms(self, submit: JobSubmit) -> int:
        """Return how long the answer to a job serves equal questions; 0: not at all."""
        generation = submit.generation
        if not self.enabled or not is_cacheable(generation, submit.cache):
            return 0
        repeats_itself = is_cacheable(generation, Caching.AUTO)
        return submit.cache_ttl_ms or (self.ttl_ms if repeats_itself else self.short_ttl_ms)


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engine's settings.

    Attributes:
        lease_ms: A worker must be heard of about an attempt within this span: its start, its
            progress or its tokens renew the lease. For jobs whose device names no span.
        default_deadline_ms: For jobs whose device names none.
        default_start_within_ms: The same for the limit within which somebody must have begun;
            None: none.
        default_attempt_ms: The same for the longest that one attempt may take; None: any time, as
            long as the worker is heard of.
        deferred_deadline_ms: The same for jobs that may wait for cheaper hours.
        deferred_spread_ms: These begin spread over so much of the cheaper hours, not all at once.
        queue_limit: Jobs waiting for a slot; beyond it one of lower priority makes way, or the
            submission is refused as `busy`.
        delayed_limit: Jobs that their devices want later; beyond it such a one is refused as
            `busy`. They do not count as waiting, and when their time comes they are not refused.
        ageing_ms: What waits so long counts a priority higher, again and again up to 9; of each
            device only the job that is its next.
        busy_retry_ms: What a refused device is told to wait, at least.
        cloud_timeout_ms: Longest provider call.
        cloud_grace_ms: A call that did not even report its time-out by then counts as failed.
        worker_silence_ms: A worker not heard of for so long is treated as offline. Heartbeats
            come every 5 s at QoS 0: three may be lost.
        held_grace_ms: An assignment this young may have crossed the worker's report of what it
            holds on the wire, so its absence there says nothing, and it is sent again.
        result_retell_ms: Pause before a result that the broker refused is told again; doubles.
        result_unheard_max: Tells to nobody after which a result only waits in the store: a device
            that lost its broker needs a moment to come back, one that never listens costs no more.
        result_tells_max: Refusals after which a result only waits in the store to be asked for.
    """

    lease_ms: _SpanMs = 30_000
    default_deadline_ms: _SpanMs = 600_000
    default_start_within_ms: _SpanMs | None = None
    default_attempt_ms: _SpanMs | None = None
    deferred_deadline_ms: _SpanMs = 86_400_000
    deferred_spread_ms: _SpanMs = 1_800_000
    queue_limit: Annotated[int, msgspec.Meta(ge=1)] = 100_000
    delayed_limit: Annotated[int, msgspec.Meta(ge=1)] = 100_000
    ageing_ms: _SpanMs = 30_000
    busy_retry_ms: _SpanMs = 2_000
    cloud_timeout_ms: _SpanMs = 60_000
    cloud_grace_ms: _SpanMs = 5_000
    worker_silence_ms: _SpanMs = 20_000
    held_grace_ms: _SpanMs = 2_000
    result_retell_ms: _SpanMs = 5_000
    result_unheard_max: Annotated[int, msgspec.Meta(ge=1)] = 4
    result_tells_max: Annotated[int, msgspec.Meta(ge=1)] = 8
    weight: WeightSettings = msgspec.field(default_factory=WeightSettings)
    scheduling: SchedulingSettings = msgspec.field(default_factory=SchedulingSettings)
    ejection: EjectionSettings = msgspec.field(default_factory=EjectionSettings)
    retry: RetrySettings = msgspec.field(default_factory=RetrySettings)
    budget: BudgetSettings = msgspec.field(default_factory=BudgetSettings)
    rate: RateSettings = msgspec.field(default_factory=RateSettings)
    overload: OverloadSettings = msgspec.field(default_factory=OverloadSettings)
    cache: CacheSettings = msgspec.field(default_factory=CacheSettings)
    conversations: ConversationSettings = msgspec.field(default_factory=ConversationSettings)
