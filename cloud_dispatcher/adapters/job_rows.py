"""The form in which every store keeps a job: columns for what is asked for, msgpack for the rest.

Which columns there are is each store's own matter, in its SQL; what is in them is said here.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final, Protocol

import msgspec
from msgspec.structs import FieldInfo, fields

from cloud_dispatcher.core.job import Job
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.errors import ConfigError
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
_decode_submit: Final = msgspec.msgpack.Decoder(JobSubmit).decode
_decode_answer: Final = msgspec.msgpack.Decoder(CachedAnswer).decode
SEALED_MARK: Final = b"\xf5"
"""With it begins what is sealed (`fleet_pki.sealing`), and no blob of ours that is not."""


def encode(value: object, _key: str = "", _column: str = "") -> bytearray:
    """Return msgpack as SQLite's driver takes it at once: it asks how to adapt `bytes`."""
    data = bytearray()
    _encode_into(value, data)
    return data


def state_of(job: Job) -> object:
    """Return what has no column of its own."""
    return _State(*_state_of(job))


class Blobs(Protocol):
    """How blobs stand in a store: `key` and `column` say where."""

    def encode(self, value: object, key: str, column: str) -> bytearray:
        """Return what is to be kept of a value."""
        ...

    def opened(self, data: bytes, key: str, column: str) -> bytes:
        """Return the msgpack of what was kept.

        Raises:
            FleetError: It cannot be read as things are set.
        """
        ...


class PlainBlobs:
    """Blobs as they are."""

    encode = staticmethod(encode)

    @staticmethod
    def opened(data: bytes, _key: str, _column: str) -> bytes:
        """Return it; what was sealed has no key here."""
        if data[:1] == SEALED_MARK:
            raise ConfigError(
                "the store has sealed rows, and no key is named",
                code="no_key",
                hint="set store.key_file to the key file with which they were written",
            )
        return data


PLAIN: Final = PlainBlobs()


def is_trouble(job: Job) -> bool:
    """Whether it is one of the few that people look for."""
    return job.dead or job.status in RARE


def read_job(row: Sequence[Any], blobs: Blobs = PLAIN) -> Job:
    """Read a row: key, device, id, status, ..., in the order of every store's `SELECT`s.

    Raises:
        FleetError: See `Blobs.opened`.
    """
    (
        key, device, job_id, status, received_at_ms, finished_at_ms, attempt, worker, dead, told,
        state, submit, kept, result,
    ) = row  # fmt: skip
    opened = blobs.opened
    return Job(
        key=JobKey(key),
        device=DeviceId(device),
        id=JobId(job_id),
        submit=_decode_submit(opened(submit, key, "submit")),
        status=JobStatus(status),
        received_at_ms=received_at_ms,
        finished_at_ms=finished_at_ms,
        attempt=attempt,
        worker=None if worker is None else WorkerId(worker),
        dead=bool(dead),
        told=bool(told),
        kept=None if kept is None else _decode_kept(opened(kept, key, "kept")),
        result=None if result is None else _decode_result(opened(result, key, "result")),
        **msgspec.structs.asdict(_decode_state(opened(state, key, "state"))),
    )


class Outcome(msgspec.Struct, frozen=True):
    """What is asked of results: the fields of a `JobResult` without its texts."""

    answered_by: str | None = None
    worker: str | None = None
    code: str = ""
    reason: str | None = None


_decode_outcome: Final = msgspec.msgpack.Decoder(Outcome).decode


def read_outcome(key: str, result: bytes, blobs: Blobs) -> Outcome:
    """Read how a job ended; raises as `read_job` does."""
    return _decode_outcome(blobs.opened(result, key, "result"))


def read_question(row: Sequence[Any], blobs: Blobs) -> tuple[DeviceId, JobSubmit]:
    """Read a row of device, submission and key; raises as `read_job` does."""
    device, submit, key = row
    return DeviceId(device), _decode_submit(blobs.opened(submit, key, "submit"))


def read_answer(key: bytes, data: bytes, blobs: Blobs) -> CachedAnswer:
    """Read a cached answer; raises as `read_job` does."""
    return _decode_answer(blobs.opened(data, key.hex(), "answer"))


def encode_answer(answer: CachedAnswer, blobs: Blobs) -> bytearray:
    """Return what is to be kept of it."""
    return blobs.encode(answer, answer.key.hex(), "answer")
