"""From a question and its options to a submission that the fleet will accept."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypedDict, Unpack

import msgspec

from fleet_protocol.codec import encode
from fleet_protocol.errors import RejectedError
from fleet_protocol.messages import ID_PATTERN, ChatMessage, Id, JobSubmit, Needs, OutputFormat

Question: TypeAlias = str | Iterable[ChatMessage | Mapping[str, str]]
"""A prompt, or the turns of a conversation (`{"role": .., "content": ..}`), oldest first."""


class JobOptions(TypedDict, total=False):
    """The options of a job; `fleet_protocol.messages.JobSubmit` says what each means."""

    model: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: tuple[str, ...]
    output: OutputFormat | Mapping[str, Any]
    stream: bool
    escalate: str
    privacy: str
    priority: int
    deadline_ms: int
    compact: bool
    defer: str
    not_before_ms: int
    start_within_ms: int
    attempt_ms: int
    lease_ms: int
    needs: Needs | Mapping[str, str]
    cache: str
    cache_ttl_ms: int
    split: str
    traceparent: str


def new_job_id() -> str:
    """Return an id that nobody else has."""
    return secrets.token_hex(8)


def check_job_id(job_id: str) -> str:
    """Return `job_id`; raise RejectedError `invalid_id` if it cannot stand in a topic."""
    try:
        return msgspec.convert(job_id, Id)
    except msgspec.ValidationError as error:
        raise RejectedError(
            f"job id {job_id!s:.64} is not usable",
            code="invalid_id",
            hint=f"ids match {ID_PATTERN}",
        ) from error


def build_submit(question: Question, **options: Unpack[JobOptions]) -> JobSubmit:
    """Check a question and its options as the dispatcher will.

    Raises:
        RejectedError: `invalid_field` naming the option, or `too_large`.
    """
    fields: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
    if isinstance(question, str):
        fields["prompt"] = question
    else:
        fields["messages"] = [msgspec.to_builtins(turn) for turn in question]
    for name in ("output", "needs"):
        if name in fields:
            fields[name] = msgspec.to_builtins(fields[name])
    try:
        submit = msgspec.convert(fields, JobSubmit)
    except msgspec.ValidationError as error:
        raise RejectedError(
            f"the job is not valid: {error}", code="invalid_field", hint="change that option"
        ) from error
    size_bytes = len(encode(submit))
    if size_bytes > JobSubmit.MAX_BYTES:
        raise RejectedError(
            f"the job takes {size_bytes} bytes, at most {JobSubmit.MAX_BYTES} are allowed",
            code="too_large",
            hint="shorten the text, or send it in several jobs",
        )
    return submit
