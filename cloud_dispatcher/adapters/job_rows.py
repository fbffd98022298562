"""The form in which every store keeps a job: columns for what is asked for, msgpack for the rest.

Which columns there are is each store's own matter, in its SQL; what is in them is said here.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec
from msgspec.structs import FieldInfo, fields

from cloud_dispatcher.core.job import Job
from fleet_protocol.messages import (
    DeviceId,
    JobId,
    JobKey,
    JobResult,
    JobStatus,
    JobSubmit,
    LocalAnswer,
    WorkerId,
)

RARE: Final = frozenset({JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.EXPIRED})
"""Outcomes that people look for: an index of their own finds them."""

_OWN_COLUMNS: Final = frozenset({
    "key", "device", "id", "submit", "status", "received_at_ms", "finished_at_ms", "attempt",
    "worker", "dead", "told", "kept", "result",
})  # fmt: skip


def _default_of(field: FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return msgspec.field(default_factory=field.default_factory)
    return field.default


_STATE_FIELDS: Final = tuple(f for f in fields(Job) if f.name not in _OWN_COLUMNS)
_State: Final = msgspec.defstruct(
    "_State",
    [(f.name, f.type, _default_of(f)) for f in _STATE_FIELDS],
    omit_defaults=True,
)
"""The rest of a `Job`, so that a new field with a default needs no new schema."""

_state_of: Final = attrgetter(*(f.name for f in _STATE_FIELDS))
_encode_into: Final = msgspec.msgpack.Encoder().encode_into
_decode_state: Final = msgspec.msgpack.Decoder(_State).decode
_decode_kept: Final = msgspec.msgpack.Decoder(LocalAnswer).decode
_decode_result: Final = msgspec.msgpack.Decoder(JobResult).decode
decode_submit: Final = msgspec.msgpack.Decoder(JobSubmit).decode


def encode(value: object) -> bytearray:
    """Return msgpack as SQLite's driver takes it at once: it asks how to adapt `bytes`."""
    data = bytearray()
    _encode_into(value, data)
    return data


def encode_state(job: Job) -> bytearray:
    """Return what has no column of its own."""
    return encode(_State(*_state_of(job)))


def is_trouble(job: Job) -> bool:
    """Whether it is one of the few that people look for."""
    return job.dead or job.status in RARE


def read_job(row: Sequence[Any]) -> Job:
    """Read a row: key, device, id, status, ..., in the order of every store's `SELECT`s."""
    (
        key, device, job_id, status, received_at_ms, finished_at_ms, attempt, worker, dead, told,
        state, submit, kept, result,
    ) = row  # fmt: skip
    return Job(
        key=JobKey(key),
        device=DeviceId(device),
        id=JobId(job_id),
        submit=decode_submit(submit),
        status=JobStatus(status),
        received_at_ms=received_at_ms,
        finished_at_ms=finished_at_ms,
        attempt=attempt,
        worker=None if worker is None else WorkerId(worker),
        dead=bool(dead),
        told=bool(told),
        kept=None if kept is None else _decode_kept(kept),
        result=None if result is None else _decode_result(result),
        **msgspec.structs.asdict(_decode_state(state)),
    )
