"""Long texts in parts: a job is cut, its parts are answered in parallel, their answers merged.

Parts and merges are ordinary jobs that nobody is told of. The job itself (their parent) waits
meanwhile like a follower: queued, but not in the queue. A finished part stays untold until its
parent has its result, so that a restart finds all answers that there are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from cloud_dispatcher.core.capacity import fits_edge
from cloud_dispatcher.core.commands import SaveJob
from cloud_dispatcher.core.edge_lane import EdgeLane
from cloud_dispatcher.core.job import Job, PartOf, ReplyTo
from cloud_dispatcher.core.ledger import Ledger
from cloud_dispatcher.core.outbox import Outbox
from cloud_dispatcher.core.results import merged_result, no_answer
from cloud_dispatcher.core.split import LongText, Span, cut, estimate_tokens, group, take_apart
from fleet_protocol import topics
from fleet_protocol.messages import (
    Escalate,
    JobId,
    JobKey,
    JobResult,
    JobStatus,
    Privacy,
    Split,
    TokenChunk,
    WorkerId,
)

PART_FAILED = "part_failed"
"""A part of a long text ended without an answer, and so its job."""
CUT_AGAIN = "cut_again"
"""A part that a board found too long: smaller ones took its place."""

_UNKNOWN_CONTEXT_TOKENS: Final = 1_024
"""What a board is taken to hold before any was seen."""
_LEAST_TOKENS: Final = 48
"""Stretches of text shorter than this are not worth a board's time, and are not cut again."""
_HALF_PCT: Final = 60
"""A part that is cut again: each new one has at most so much of it."""
_CHUNK_CHARS: Final = 65_536
_PAIR: Final = 2

_CHINESE: Final = re.compile(r"[\u4e00-\u9fff]")
_NOTE: Final = (
    "Above is the task. Below are its answers for the consecutive parts of one text. "
    "Merge them into one answer that repeats nothing:"
)
_NOTE_CHINESE: Final = "以上是任务。以下是对同一文本各连续部分的回答。请合并为一个不重复的回答。"


class Parts:
    """Knows the families: an open job and the parts that work for it.

    Whoever calls gets the parts that are to be placed; `place` is not for this module to do.
    """

    def __init__(self, ledger: Ledger, outbox: Outbox, edge: EdgeLane) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._edge = edge
        self._families: dict[JobKey, list[JobKey]] = {}
        self._shown: dict[JobKey, int] = {}

    def begin(self, job: Job) -> list[Job]:
        """Cut a job that asks for it, and let it wait for its parts; empty: it goes undivided.

        Where only what fits no board is to be cut, a lower bound decides here and the board's own
        count later, see `too_long`.
        """
        submit = job.submit
        if submit.split is Split.NO:
            return []
        if submit.escalate is Escalate.ALWAYS and submit.privacy is Privacy.ANY:
            return []  # The cloud has room for all of it.
        if submit.split is Split.AUTO and fits_edge(
            submit, self._ledger.fleet.contexts_of(submit.label)
        ):
            return []
        return self._cut_whole(job)

    def too_long(self, worker: WorkerId, key: JobKey, attempt: int) -> list[Job]:
        """Cut what a board found too long, and settle its attempt; empty: it cannot be cut."""
        job = self._edge.current(worker, key, attempt)
        if job is None:
            return []
        parts = self._cut_whole(job, smaller=True) if job.part is None else self._cut_part(job)
        if parts:
            self._ledger.heard(worker)
            self._edge.settle(worker, key, attempt)
        return parts

    def settle(self, job: Job) -> list[Job]:
        """Go on after a job got its result: a part's, or one whose parts nobody needs any more."""
        if job.key in self._families:
            self._disband(job)
        parent = self._open_parent(job)
        result = job.result
        if parent is None or result is None or result.code == CUT_AGAIN:
            return []
        if result.status is JobStatus.OK:
            return self._advance(parent)
        if result.status is JobStatus.EXPIRED:
            self._outbox.expire(parent)
        else:
            message = f"{_name(job)} ended as {result.status}: {result.code}: {result.message}"
            self._outbox.fail(parent, code=PART_FAILED, message=message)
        return []

    def has_begun(self, job: Job) -> bool:
        """Tell whether somebody has begun with any part of a job."""
        jobs = self._ledger.jobs
        return any(jobs[key].attempt > 0 for key in self._families.get(job.key, ()))

    def take_up(self, job: Job) -> bool:
        """Take note, on recovery, of a job that waits for its parts; False: it does not."""
        waits = job.parts > 0 and job.status is JobStatus.QUEUED
        if waits:
            self._ledger.put(job, save=False)
            self._families[job.key] = []
        return waits

    def resume(self, taken_up: Sequence[Job]) -> list[Job]:
        """Go on, on recovery, once all these jobs are there; return what is to be placed."""
        jobs = self._ledger.jobs
        for job in taken_up:
            if job.part is not None and job.part.job in self._families:
                self._families[job.part.job].append(job.key)
        parts = list[Job]()
        for key in [job.key for job in taken_up if job.key in self._families]:
            if self._families[key]:
                parts += self._advance(jobs[key])
            else:
                del self._families[key]
                parts.append(jobs[key])
        return parts

    # ------------------------------------------------------------ cutting

    def _cut_whole(self, job: Job, *, smaller: bool = False) -> list[Job]:
        """Cut a job's text; `smaller`: into two at least, for as a whole it is too long."""
        long = take_apart(job.submit)
        if job.submit.split is Split.NO or long is None:
            return []
        most_tokens = self._room_tokens(job, long)
        if smaller:
            most_tokens = min(most_tokens, estimate_tokens(long.text) * _HALF_PCT // 100)
        spans = cut(long.text, most_tokens=most_tokens) if most_tokens >= _LEAST_TOKENS else []
        if len(spans) < _PAIR:
            return []
        self._ledger.detach(job)
        waiting = replace(
            job,
            status=JobStatus.QUEUED,
            worker=None,
            last_worker=None,
            lapsed=False,
            lease_until_ms=None,
            not_before_ms=0,
            start_by_at_ms=None if smaller else job.start_by_at_ms,
        )
        self._families[job.key] = []
        return self._make(waiting, 0, spans)

    def _cut_part(self, job: Job) -> list[Job]:
        """Let smaller parts take the place of one."""
        parent, part = self._open_parent(job), job.part
        if parent is None or part is None:
            return []
        spans = _halves(part) if part.round else _stretches(part, take_apart(parent.submit))
        if len(spans) < _PAIR:
            return []
        now_ms, message = self._ledger.now_ms, "too long for the board: smaller parts replace it"
        status = JobStatus.CANCELLED
        none = no_answer(job, status, code=CUT_AGAIN, message=message, now_ms=now_ms)
        self._outbox.finish(job, none)
        return self._make(parent, part.round, spans)

    def _room_tokens(self, job: Job, long: LongText) -> int:
        """Return what text fits the smallest board that has room for any beside the rest."""
        taken = long.frame_tokens + job.submit.max_tokens
        contexts = self._ledger.fleet.contexts_there(job.submit.model, job.submit.label)
        rooms = [tokens - taken for tokens in contexts or [_UNKNOWN_CONTEXT_TOKENS]]
        return next((room for room in rooms if room >= _LEAST_TOKENS), 0)

    # ------------------------------------------------------------ going on

    def _advance(self, parent: Job) -> list[Job]:
        """Show what is new; once a round is answered, merge it or give the parent its result."""
        members = self._newest_round(parent)
        if members[0].part is not None and members[0].part.round == 0:
            self._show(parent, members)
        if any(member.is_open for member in members):
            return []
        if len({_text(member) for member in members}) > 1:
            return self._merge(parent, members)
        jobs = self._ledger.jobs  # One answer, or the same from each part: nothing to merge.
        family = [jobs[key] for key in self._families[parent.key]]
        last = members[0].result
        if last is not None:
            now_ms = self._ledger.now_ms
            self._outbox.finish(parent, merged_result(parent, last, family, now_ms=now_ms))
        return []

    def _merge(self, parent: Job, members: list[Job]) -> list[Job]:
        """Ask for one answer in place of several; in rounds where one board cannot hold them."""
        long = take_apart(parent.submit)
        room = 0
        if long is not None:
            room = self._room_tokens(parent, long) - estimate_tokens(_note(long))
        sizes = [estimate_tokens(_text(member)) + 1 for member in members]
        round_number = 0 if members[0].part is None else members[0].part.round + 1
        return self._make(parent, round_number, group(sizes, most=room))

    def _make(self, parent: Job, round_number: int, spans: list[Span]) -> list[Job]:
        """Make parts; the parent, saved with them, counts all that there ever were."""
        long, ledger = take_apart(parent.submit), self._ledger
        if long is None:
            return []
        answers = [_text(x) for x in self._round(parent, round_number - 1)] if round_number else []
        parts = list[Job]()
        for number, span in enumerate(spans, parent.parts):
            key = JobKey(f"{parent.key}-{number}")
            if round_number:
                submit = long.ask(parent.submit, _note(long), *answers[span.start : span.end])
            else:
                submit = long.ask(parent.submit, long.text[span.start : span.end].strip())
            parts.append(
                Job(
                    key=key,
                    device=parent.device,
                    id=JobId(key),
                    submit=submit,
                    received_at_ms=ledger.now_ms,
                    deadline_at_ms=parent.deadline_at_ms,
                    reply=ReplyTo(silent=True),
                    part=PartOf(job=parent.key, round=round_number, start=span.start, end=span.end),
                    payer=parent.payer,
                )
            )
        ledger.put(replace(parent, parts=parent.parts + len(spans)))
        self._families[parent.key] += [part.key for part in parts]
        return parts

    def _disband(self, parent: Job) -> None:
        """Call off what still works for a job that has its result, and let go of all its parts."""
        ledger = self._ledger
        self._shown.pop(parent.key, None)
        for key in self._families.pop(parent.key):
            if ledger.jobs[key].is_open:
                self._outbox.cancel(ledger.jobs[key], message="the job it was a part of ended")
            ledger.emit(SaveJob(job=replace(ledger.jobs[key], told=True)))
            ledger.drop(ledger.jobs[key])

    def _show(self, parent: Job, members: list[Job]) -> None:
        """Stream the answers of the first parts, as far as they have come without a gap."""
        if not parent.submit.stream or parent.reply.plain:
            return
        shown = self._shown.get(parent.key, 0)
        for member in members[shown:]:
            if member.is_open:
                break
            text = f"{_text(member)}\n\n"[:_CHUNK_CHARS]
            chunk = TokenChunk(i=shown, t=text)
            self._ledger.send(topics.TOKENS, (parent.device, parent.id), chunk)
            shown += 1
        self._shown[parent.key] = shown

    # ------------------------------------------------------------ the family

    def _open_parent(self, job: Job) -> Job | None:
        parent = None if job.part is None else self._ledger.jobs.get(job.part.job)
        return parent if parent is not None and parent.is_open else None

    def _newest_round(self, parent: Job) -> list[Job]:
        parts = (self._ledger.jobs[key].part for key in self._families[parent.key])
        return self._round(parent, max(part.round for part in parts if part is not None))

    def _round(self, parent: Job, round_number: int) -> list[Job]:
        """Return the parts of a round in the order of the text, without those cut again."""
        jobs = (self._ledger.jobs[key] for key in self._families[parent.key])
        found = [
            (job.part.start, job)
            for job in jobs
            if job.part is not None and job.part.round == round_number and not _was_cut(job.result)
        ]
        return [job for _start, job in sorted(found, key=lambda member: member[0])]


def _halves(part: PartOf) -> list[Span]:
    """Halve a row of answers; of fewer than two in a half nothing would be merged."""
    if part.end - part.start < 2 * _PAIR:
        return []
    middle = (part.start + part.end) // 2
    return [Span(part.start, middle), Span(middle, part.end)]


def _stretches(part: PartOf, long: LongText | None) -> list[Span]:
    """Cut a stretch of the text into smaller ones."""
    text = "" if long is None else long.text[part.start : part.end]
    most_tokens = estimate_tokens(text) * _HALF_PCT // 100
    found = cut(text, most_tokens=most_tokens) if most_tokens >= _LEAST_TOKENS else []
    return [Span(part.start + start, part.start + end) for start, end in found]


def _was_cut(result: JobResult | None) -> bool:
    return result is not None and result.code == CUT_AGAIN


def _text(job: Job) -> str:
    return "" if job.result is None else job.result.text.strip()


def _note(long: LongText) -> str:
    words = long.instruction or long.before[0].content
    return _NOTE_CHINESE if _CHINESE.search(words) else _NOTE


def _name(job: Job) -> str:
    """Name a part for people: by its number, as `fleet jobs show` lists it."""
    what = "merge" if job.part is not None and job.part.round else "part"
    return f"{what} {job.key.rpartition('-')[2]} ({job.key})"
