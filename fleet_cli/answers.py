"""Results in words, in JSON and as exit codes: the same everywhere."""

from __future__ import annotations

from typing import Any

import msgspec

from fleet_cli.exits import ExitCode
from fleet_protocol.messages import FinishReason, JobResult, JobStatus


def result_fields(result: JobResult) -> dict[str, Any]:
    """Return a result for JSON output."""
    fields: dict[str, Any] = msgspec.to_builtins(result)
    fields.pop("v")
    return fields


def exit_code_of_result(result: JobResult) -> ExitCode:
    """Return the exit code of a command that waited for this one result."""
    if result.status is JobStatus.OK:
        return ExitCode.OK
    return ExitCode.TIMEOUT if result.status is JobStatus.EXPIRED else ExitCode.JOB_FAILED


def origin(result: JobResult) -> str:
    """Say in one line who answered, how fast, and everything that qualifies the answer."""
    if result.status is not JobStatus.OK:
        why = f"{result.code}: {result.message}" if result.message else result.code
        return f"job {result.id} {result.status}" + (f" ({why})" if why else "")
    parts = [f"answered by {result.answered_by}"]
    if result.worker:
        parts.append(f"worker {result.worker}")
    if result.reason:
        parts.append(f"escalated: {result.reason}")
    if result.simulated:
        parts.append("SIMULATED, the text means nothing")
    if result.degraded:
        parts.append(f"degraded ({result.message or result.code or 'second best'})")
    if result.finish is FinishReason.LENGTH:
        parts.append("cut by max_tokens")
    if result.confidence is not None:
        parts.append(f"confidence {result.confidence:.2f}")
    if result.cost_usd:
        parts.append(f"{result.cost_usd:.6f} USD")
    parts.append(f"{result.timing_ms.total} ms")
    return " | ".join(parts)
