"""What the operator and the model decide for a worker's session."""

from __future__ import annotations

import msgspec

from edge_worker.core.difficulty import DifficultyModel
from edge_worker.core.health import HeatLimits
from fleet_protocol.routing import RoutePolicy


class SessionRules(msgspec.Struct, frozen=True, kw_only=True):
    """Fixed for the life of a session.

    Attributes:
        policy: What the model is trusted with.
        difficulty: Says how hard a prompt is for the model; None: nobody knows.
        heat: When the host is too hot for all its slots.
        disk_low_mb: With less room for the spool no job is taken; 0: it is never looked at.
        speed_due_at_ms: From when on the speed is worth another measurement; None: never.
        drain_timeout_ms: Longest time running jobs get to finish when the worker stops.
        cache_bytes: Most bytes of earlier answers; 0: none is given again.
    """

    policy: RoutePolicy
    difficulty: DifficultyModel | None = None
    heat: HeatLimits = msgspec.field(default_factory=HeatLimits)
    disk_low_mb: int = 0
    speed_due_at_ms: int | None = None
    drain_timeout_ms: int = 30_000
    cache_bytes: int = 0
