"""What one commit sends to PostgreSQL: changes with one array for each column, as one statement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

from msgspec.structs import astuple, fields, replace

from cloud_dispatcher.adapters.job_rows import Blobs, encode_answer, is_trouble, state_of
from cloud_dispatcher.core.commands import AnswerChange, ForgetAnswers, KeepAnswer, UseAnswer
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.spending import Spend
from fleet_protocol.messages import JobKey

Statement: TypeAlias = tuple[str, Sequence[object]]
"""A name in `queries/postgres.sql`, and its values."""

_ORDER: Final = ("upsert_job", "step", "change", "tell")
_SUMS: Final = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_usd")
_ROOM_SHARE: Final = 0.9
"""What is full is emptied to this share, so that not every commit has to look for the oldest."""

SPEND_COLUMNS: Final = tuple(field.name for field in fields(Spend))
_SPEND_KEY: Final = SPEND_COLUMNS.index("calls")
"""The columns before it say for what it was spent."""


def one_statement(
    changes: Iterable[Statement], last: Statement, texts: Mapping[str, str]
) -> tuple[str, list[object]]:
    """Return changes that touch no row twice as one statement, with its values.

    All of them see the tables as they were before; `last` comes after them.
    """
    parts, values = list[str](), list[object]()
    for name, columns in changes:
        parts.append(f"{name} AS ({texts[name]} RETURNING 1)")
        values += columns
    text = texts[last[0]]
    return f"WITH {', '.join(parts)} {text}" if parts else text, [*values, *last[1]]


def write_jobs(
    jobs: Iterable[Job], saved: Mapping[JobKey, Job], blobs: Blobs
) -> Iterator[Statement]:
    """Name the statements that bring the table from `saved` to these jobs, each of them once."""
    rows: dict[str, list[Sequence[object]]] = {}
    for job in jobs:
        name, row = _write(saved.get(job.key), job, blobs)
        rows.setdefault(name, []).append(row)
    for name in _ORDER:
        if name in rows:
            yield name, _columns(rows[name])


def add_spends(spends: Iterable[Spend]) -> Iterator[Statement]:
    """Add to the rows of the same day and purpose.

    In the order of their names: of two dispatchers that add to the same rows one then waits for the
    other, and never both.
    """
    summed: dict[tuple[object, ...], Spend] = {}
    for spend in map(_storable, spends):
        key = astuple(spend)[:_SPEND_KEY]
        old = summed.get(key)
        if old is None:
            summed[key] = spend
        else:
            sums = {name: getattr(old, name) + getattr(spend, name) for name in _SUMS}
            summed[key] = replace(spend, **sums)
    if summed:
        rows = sorted(
            (astuple(spend) for spend in summed.values()), key=lambda row: row[:_SPEND_KEY]
        )
        yield "add_spends", _columns(rows)


class AnswerTable:
    """Keeps the table of cached answers within a bound of bytes.

    Several dispatchers may fill it: each counts what it adds itself, and counts all of it anew now
    and then, so it may be exceeded by what the others add meanwhile.
    """

    def __init__(self, *, max_bytes: int, blobs: Blobs) -> None:
        self._max_bytes = max_bytes
        self._blobs = blobs
        self._bytes: int | None = None
        """At least what we know to be there: a replaced answer counts until all are counted."""

    def change(self, changes: Sequence[AnswerChange]) -> Iterator[Statement]:
        """Keep, count as used, and make room; `cache_bytes` is for `counted`."""
        for index, change in enumerate(changes):
            if isinstance(change, ForgetAnswers):
                yield "cache_clear", ()
                self._bytes = 0
                yield from self.change(changes[index + 1 :])
                return
        kept = {x.answer.key: x for x in changes if isinstance(x, KeepAnswer)}
        fit = [x for x in kept.values() if x.answer.size_bytes <= self._max_bytes]
        if fit:
            yield "cache_keep", _columns(sorted(_answer_row(x, self._blobs) for x in fit))
        used = sorted(_uses(changes).items())
        if used:
            yield "cache_use", _columns((key, at_ms, hits) for key, (at_ms, hits) in used)
        grown = sum(x.answer.size_bytes for x in fit)
        if fit and (self._bytes is None or self._bytes + grown > self._max_bytes):
            yield "cache_make_room", (self._max_bytes, int(self._max_bytes * _ROOM_SHARE))
            yield "cache_bytes", ()
        elif self._bytes is not None:
            self._bytes += grown

    def counted(self, size_bytes: int) -> None:
        """Take note of how much there is."""
        self._bytes = size_bytes

    def forget_bytes(self) -> None:
        """Count anew next time: a commit failed, or rows were deleted, or others added some."""
        self._bytes = None


def _write(saved: Job | None, job: Job, blobs: Blobs) -> Statement:
    if saved is None:
        return "upsert_job", _whole_row(job, blobs)
    is_said = job.kept is saved.kept and job.result is saved.result
    if is_said and job.told and job.dead == saved.dead:
        return "tell", (job.key,)
    if is_said and not saved.status.is_final and not job.status.is_final:
        state = blobs.encode(state_of(job), job.key, "state")
        return "step", (job.key, str(job.status), job.attempt, job.worker, state)
    return "change", (
        job.key,
        str(job.status),
        job.finished_at_ms,
        job.attempt,
        job.worker,
        job.dead,
        job.told,
        is_trouble(job),
        blobs.encode(state_of(job), job.key, "state"),
        *_said(job, blobs),
    )


def _whole_row(job: Job, blobs: Blobs) -> tuple[object, ...]:
    return (
        job.key,
        job.device,
        job.id,
        str(job.status),
        job.submit.priority,
        job.received_at_ms,
        job.finished_at_ms,
        job.attempt,
        job.worker,
        job.dead,
        job.told,
        is_trouble(job),
        blobs.encode(state_of(job), job.key, "state"),
        blobs.encode(job.submit, job.key, "submit"),
        *_said(job, blobs),
    )


def _said(job: Job, blobs: Blobs) -> tuple[bytearray | None, bytearray | None]:
    return (
        None if job.kept is None else blobs.encode(job.kept, job.key, "kept"),
        None if job.result is None else blobs.encode(job.result, job.key, "result"),
    )


def _columns(rows: Iterable[Sequence[object]]) -> list[list[object]]:
    """Turn rows into columns; lists, for tuples would be taken for rows."""
    return [list(column) for column in zip(*rows, strict=True)]


def _uses(changes: Iterable[AnswerChange]) -> dict[bytes, tuple[int, int]]:
    """Return when each answer was given last, and how often."""
    used: dict[bytes, tuple[int, int]] = {}
    for change in changes:
        if isinstance(change, UseAnswer):
            _, hits = used.get(change.key, (0, 0))
            used[change.key] = (change.at_ms, hits + 1)
    return used


def _answer_row(change: KeepAnswer, blobs: Blobs) -> tuple[bytes, str, bytearray, int, int, int]:
    answer = change.answer
    return (
        answer.key,
        _storable_text(change.tenant),
        encode_answer(answer, blobs),
        answer.size_bytes,
        answer.until_at_ms,
        answer.made_at_ms,
    )


def _storable(spend: Spend) -> Spend:
    return replace(
        spend,
        tenant=_storable_text(spend.tenant),
        reason=_storable_text(spend.reason),
        provider=_storable_text(spend.provider),
        model=_storable_text(spend.model),
        key=_storable_text(spend.key),
    )


def _storable_text(text: str) -> str:
    """Leave out what PostgreSQL keeps in no text: a provider names its model as it likes."""
    if "\0" not in text and text.isprintable():
        return text
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")
