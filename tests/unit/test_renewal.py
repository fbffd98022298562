"""When a worker asks for its next certificate, and what it does with the answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_worker.adapters.identity import IdentityFiles
from edge_worker.core.renewal import FIRST_MS, MOST_MS, CertificateState, Renewal, Validity
from edge_worker.ports import IdentityError
from edge_worker.service.renewing import CertificateKeeper
from fleet_pki import certificates as c
from fleet_pki.authority import Authority, Bundle, Enrolment, PkiFolder, found
from fleet_protocol.access import Identity
from fleet_protocol.messages import CertificateReply, CertificateRequest, WorkerId
from fleet_protocol.topics import Role

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
NOW_MS = 1_790_000_000_000
THREE_DAYS = Validity(0, 3 * DAY_MS)
SPREADS = st.floats(0, 1)


def test_until_a_third_of_its_life_is_left_nothing_is_asked() -> None:
    renewal = Renewal(THREE_DAYS, spread=0.0)
    assert not renewal.should_ask(2 * DAY_MS - 1)
    assert renewal.should_ask(2 * DAY_MS)
    assert renewal.state(2 * DAY_MS) is CertificateState.DUE


@given(SPREADS)
def test_a_day_is_left_whatever_the_spread(spread: float) -> None:
    due_at_ms = Renewal(THREE_DAYS, spread=spread).due_at_ms
    assert DAY_MS <= 3 * DAY_MS - due_at_ms <= DAY_MS * 1.1 + 1


def test_boards_enrolled_together_do_not_ask_together() -> None:
    dates = {Renewal(THREE_DAYS, spread=n / 100).due_at_ms for n in range(100)}
    assert len(dates) == 100
    assert max(dates) - min(dates) > 2 * HOUR_MS


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_an_authority_away_for_a_day_is_asked_until_it_answers(spread: float) -> None:
    renewal = Renewal(THREE_DAYS, spread=spread)
    asked, now_ms = [], 0
    while now_ms < THREE_DAYS.end_at_ms:
        if renewal.should_ask(now_ms):
            renewal.asked(now_ms)
            asked.append(now_ms)
        now_ms += 30_000
    pauses = [b - a for a, b in pairwise(asked)]
    # Often enough to be answered soon after it is back, seldom enough not to bury it.
    assert 90 <= len(asked) <= 220
    assert max(pauses) <= MOST_MS + 30_000
    assert asked[-1] >= THREE_DAYS.end_at_ms - MOST_MS - 30_000


def test_before_it_holds_it_is_the_clock_that_is_wrong() -> None:
    renewal = Renewal(Validity(NOW_MS, NOW_MS + 3 * DAY_MS), spread=0.5)
    assert renewal.state(0) is CertificateState.CLOCK_BEHIND
    assert not renewal.should_ask(0)


def test_a_clock_that_steps_back_delays_nothing() -> None:
    renewal = Renewal(THREE_DAYS, spread=0.0)
    renewal.asked(int(2.9 * DAY_MS))
    assert renewal.should_ask(int(2.1 * DAY_MS))


def test_an_expired_one_is_still_asked_for() -> None:
    renewal = Renewal(THREE_DAYS, spread=0.0)
    assert renewal.state(3 * DAY_MS) is CertificateState.EXPIRED
    assert renewal.should_ask(3 * DAY_MS)


def test_a_renewal_begins_anew() -> None:
    renewal = Renewal(THREE_DAYS, spread=0.0)
    renewal.asked(2 * DAY_MS)
    renewal.renewed(Validity(2 * DAY_MS, 5 * DAY_MS))
    assert not renewal.should_ask(3 * DAY_MS)
    assert renewal.should_ask(4 * DAY_MS)


def test_the_same_certificate_again_is_no_reason_to_ask_at_once() -> None:
    renewal = Renewal(THREE_DAYS, spread=0.0)
    renewal.asked(int(2.5 * DAY_MS))
    renewal.renewed(THREE_DAYS)
    assert not renewal.should_ask(int(2.5 * DAY_MS) + FIRST_MS // 2 - 1)
    assert renewal.should_ask(int(2.5 * DAY_MS) + FIRST_MS // 2)


# ---------------------------------------------------------------- the keeper, on real files


class Board:
    """A worker's files, its keeper and its clock."""

    def __init__(self, folder: Path) -> None:
        self.pki = PkiFolder(folder / "pki")
        found(self.pki, "lab", now_ms=NOW_MS)
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        wish = Enrolment(identity=Identity(role=Role.WORKER, id="pi-1"))
        with Authority(self.pki) as authority:
            authority.enrol([wish], self._keep, now_ms=NOW_MS)
        self.now_ms = NOW_MS
        self.files = IdentityFiles(WorkerId("pi-1"), certificate=self.cert, key=self.key)
        self.keeper = CertificateKeeper(self.files, wall_ms=lambda: self.now_ms, spread=0.5)
        self.sent: list[CertificateRequest] = []

    def _keep(self, bundles: Sequence[Bundle]) -> None:
        self.cert.write_bytes(bundles[0].files["cert.pem"])
        self.key.write_bytes(bundles[0].files["key.pem"])

    def look(self, *, is_connected: bool = True) -> None:
        self.keeper.look_after(self.sent.append, is_connected=is_connected)

    def answer(self, *, ahead_ms: int = 0) -> CertificateReply:
        """Return what an authority answers whose clock is ahead of ours by so much."""
        request, now_ms = self.sent[-1], self.now_ms + ahead_ms
        with Authority(self.pki) as authority:
            chain = authority.renew("pi-1", request.csr.encode(), now_ms=now_ms)
        return CertificateReply(req=request.req, ok=True, chain=chain.decode())


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_what_is_answered_lies_where_the_next_connection_finds_it(board: Board) -> None:
    board.look()
    assert board.sent == []
    board.now_ms = NOW_MS + 49 * HOUR_MS
    board.look()
    board.look()
    assert len(board.sent) == 1
    board.keeper.heard(board.answer())
    assert board.files.validity().end_at_ms == board.now_ms + 72 * HOUR_MS
    assert board.cert.stat().st_mode & 0o077 == 0
    board.look()
    assert len(board.sent) == 1


def test_without_a_link_nothing_is_asked(board: Board) -> None:
    board.now_ms = NOW_MS + 60 * HOUR_MS
    board.look(is_connected=False)
    assert board.sent == []
    board.look()
    assert len(board.sent) == 1


def test_a_refusal_changes_nothing_and_is_followed_by_another_try(board: Board) -> None:
    before = board.cert.read_bytes()
    board.now_ms = NOW_MS + 60 * HOUR_MS
    board.look()
    board.keeper.heard(CertificateReply(req=board.sent[0].req, ok=False, code="revoked"))
    assert board.cert.read_bytes() == before
    board.now_ms += MOST_MS
    board.look()
    assert len(board.sent) == 2


def test_an_answer_to_somebody_else_or_for_another_key_is_not_taken(board: Board) -> None:
    before = board.cert.read_bytes()
    board.now_ms = NOW_MS + 60 * HOUR_MS
    board.look()
    good = board.answer()
    board.keeper.heard(CertificateReply(req="other", ok=True, chain=good.chain))
    other = c.make_request("pi-1", c.new_key())
    with Authority(board.pki) as authority:
        chain = authority.renew("pi-1", other, now_ms=board.now_ms).decode()
    board.keeper.heard(CertificateReply(req=good.req, ok=True, chain=chain))
    assert board.cert.read_bytes() == before


def test_what_does_not_hold_yet_takes_the_place_of_nothing_that_does(board: Board) -> None:
    before = board.cert.read_bytes()
    board.now_ms = NOW_MS + 60 * HOUR_MS
    board.look()
    board.keeper.heard(board.answer(ahead_ms=2 * HOUR_MS))
    assert board.cert.read_bytes() == before
    board.now_ms += MOST_MS
    board.look()
    board.keeper.heard(board.answer(ahead_ms=HOUR_MS // 2))
    assert board.files.validity().end_at_ms > board.now_ms + 72 * HOUR_MS


def test_a_board_whose_own_does_not_hold_takes_what_it_is_given(board: Board) -> None:
    board.now_ms = NOW_MS + 80 * HOUR_MS
    board.look()
    board.keeper.heard(board.answer(ahead_ms=2 * HOUR_MS))
    assert board.files.validity().begin_at_ms == board.now_ms + HOUR_MS


@pytest.mark.parametrize("chain", ["", "no PEM"])
def test_what_is_no_certificate_is_not_taken(board: Board, chain: str) -> None:
    before = board.cert.read_bytes()
    with pytest.raises(IdentityError):
        board.files.replace(chain)
    assert board.cert.read_bytes() == before


async def test_a_board_whose_clock_is_not_set_waits_for_it(board: Board) -> None:
    board.now_ms = 0
    waits = []

    async def sleep(span_s: float) -> None:
        waits.append(span_s)
        if len(waits) == 3:
            board.now_ms = NOW_MS

    await board.keeper.wait_for_clock(sleep)
    assert len(waits) == 3
