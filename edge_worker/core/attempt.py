"""An attempt at a job as the worker's spool keeps it."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from fleet_protocol.messages import Assignment, Escalation, JobDone, JobFailed

Outcome: TypeAlias = JobDone | JobFailed | Escalation
"""What a worker says of an attempt when it is through with it."""


class SpooledJob(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt the worker holds: its assignment and, once it is through, its outcome."""

    assignment: Assignment
    received_at_ms: int
    outcome: Outcome | None = None
