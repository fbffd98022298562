"""The scheduling policies by name."""

from __future__ import annotations

from enum import StrEnum

from cloud_dispatcher.core.scheduler import Policy, RoundRobin, WeightedLeastConnections
from cloud_dispatcher.core.settings import EngineSettings


class PolicyName(StrEnum):
    """How workers are ranked."""

    WLC = "wlc"
    ROUND_ROBIN = "round_robin"


def policy_of(name: PolicyName, settings: EngineSettings) -> Policy:
    """Make a policy; each engine needs one of its own."""
    del settings
    return WeightedLeastConnections() if name is PolicyName.WLC else RoundRobin()
