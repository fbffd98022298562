"""Every accepted job has exactly one final result: devices against store. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from fleet_cli.drill.ledger import JobName, JobRecord
from fleet_cli.drill.stored import StoredJob
from fleet_protocol.messages import AnsweredBy

CLOCKS_AGREE_MS = 250.0
"""How far two readings of one machine's clock may be apart, where nobody moves it."""


class Loss(StrEnum):
    """Why an accepted job counts as lost."""

    NOT_STORED = "not_stored"
    FORGOTTEN = "forgotten"
    UNFINISHED = "unfinished"
    UNHEARD = "unheard"


MEANINGS = {
    Loss.NOT_STORED: "accepted, and not in the store",
    Loss.FORGOTTEN: "accepted, then forgotten and accepted anew",
    Loss.UNFINISHED: "accepted, and without a final result",
    Loss.UNHEARD: "its device never heard the result, however often it asked",
}
"""For people, by kind."""


class Flaw(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with one job."""

    device: str
    id: str
    what: str


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the jobs.

    Attributes:
        submitted: Jobs that devices submitted, each under an id of its own.
        accepted: Of these, those that the dispatcher told their device it has stored.
        refused: Jobs refused for good, by code.
        unanswered: Neither accepted nor refused, though their device kept asking.
        statuses: Final results by status.
        answered_by: The same by who answered.
        retried: Jobs that were assigned more than once.
        repeated: Results that a device heard again, word by word the same: QoS 1 allows that.
        lost: Accepted jobs without exactly one final result in store and at the device.
        doubled: Jobs with two results that differ, at the device or between device and store.
        wrong: Answers of a board to something else than was asked.
        wait_ms: From submission to result: p50, p99, max.
    """

    submitted: int
    accepted: int
    refused: dict[str, int]
    unanswered: int
    statuses: dict[str, int]
    answered_by: dict[str, int]
    retried: int
    repeated: int
    lost: tuple[Flaw, ...]
    doubled: tuple[Flaw, ...]
    wrong: tuple[Flaw, ...]
    wait_ms: dict[str, float]

    @property
    def is_good(self) -> bool:
        """Whether every job that was accepted has exactly one final result, and its own."""
        return not (self.lost or self.doubled or self.wrong)


def audit(
    records: Sequence[JobRecord],
    stored: Mapping[JobName, StoredJob],
    *,
    clocks_agree_ms: float = CLOCKS_AGREE_MS,
) -> Audit:
    """Compare what devices saw with what is stored.

    Args:
        records: Of all devices.
        stored: By device and id.
        clocks_agree_ms: How far the dispatcher's clock may have been from the devices'.
    """
    accepted = [r for r in records if r.accepted_at_ms is not None or r.results]
    firsts = [r.results[0] for r in records if r.results]
    lost = (_loss(r, stored.get(r.name), clocks_agree_ms) for r in accepted)
    return Audit(
        submitted=len(records),
        accepted=len(accepted),
        refused=dict(Counter(r.code for r in records if r.code)),
        unanswered=sum(r.is_open and r.accepted_at_ms is None for r in records),
        statuses=dict(Counter(str(result.status) for result in firsts)),
        answered_by=dict(Counter(str(result.answered_by or "nobody") for result in firsts)),
        retried=sum(result.attempts > 1 for result in firsts),
        repeated=sum(r.told - len(r.results) for r in records),
        lost=tuple(_flaw(r, str(loss)) for r, loss in zip(accepted, lost, strict=True) if loss),
        doubled=tuple(_flaw(r, "two results") for r in accepted if _differs(r, stored)),
        wrong=tuple(_flaw(r, "another job's answer") for r in records if _is_wrong(r)),
        wait_ms=_quantiles([r.wait_ms for r in records if r.wait_ms is not None]),
    )


def _loss(record: JobRecord, stored: StoredJob | None, clocks_agree_ms: float) -> Loss | None:
    if stored is None:
        return Loss.NOT_STORED
    if not stored.status.is_final or stored.result is None:
        return Loss.UNFINISHED
    told_at_ms = record.accepted_at_ms
    if told_at_ms is not None and stored.received_at_ms > told_at_ms + clocks_agree_ms:
        # What is stored was received after its device had been told that it is.
        return Loss.FORGOTTEN
    return None if record.results else Loss.UNHEARD


def _differs(record: JobRecord, stored: Mapping[JobName, StoredJob]) -> bool:
    if len(record.results) > 1:
        return True
    kept = stored.get(record.name)
    return bool(record.results and kept and kept.result and kept.result != record.results[0])


def _is_wrong(record: JobRecord) -> bool:
    by_board = {AnsweredBy.EDGE, AnsweredBy.CACHE}
    return record.text is not None and any(
        r.text != record.text for r in record.results if r.answered_by in by_board
    )


def _flaw(record: JobRecord, what: str) -> Flaw:
    return Flaw(device=record.device, id=record.id, what=what)


def _quantiles(waits: list[float]) -> dict[str, float]:
    if not waits:
        return {}
    waits.sort()
    last = len(waits) - 1
    return {
        "p50": round(waits[last // 2], 1),
        "p99": round(waits[int(last * 0.99)], 1),
        "max": round(waits[-1], 1),
    }
