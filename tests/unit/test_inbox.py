"""Receipts: acknowledgements leave in the order of arrival, once, for this connection only."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_protocol.bus import Delivery, LinkUp
from fleet_protocol.errors import BusClosedError
from fleet_protocol.inbox import Inbox, Receipts


def delivery(receipt: object) -> Delivery:
    return Delivery(topic="a", payload=b"", receipt=receipt)


def arrivals(receipts: Receipts, *packet_ids: int) -> list[Delivery]:
    return [delivery(receipts.issue(packet_id)) for packet_id in packet_ids]


def test_an_early_acknowledgement_waits_for_those_before_it() -> None:
    receipts = Receipts()
    first, second, third = arrivals(receipts, 7, 8, 9)
    assert receipts.settle([third]) == []
    assert receipts.settle([first]) == [7]
    assert receipts.settle([second]) == [8, 9]


def test_an_acknowledgement_counts_once_even_when_its_packet_id_is_used_again() -> None:
    receipts = Receipts()
    (first,) = arrivals(receipts, 7)
    assert receipts.settle([first, first]) == [7]
    (_,) = arrivals(receipts, 7)
    assert receipts.settle([first]) == []


def test_receipts_of_an_earlier_connection_are_void() -> None:
    receipts = Receipts()
    old = arrivals(receipts, 1, 2, 3)
    receipts.settle(old[1:2])
    receipts.forget_all()
    new = arrivals(receipts, 1, 2, 3)
    assert receipts.settle(old) == []
    assert receipts.settle(new) == [1, 2, 3]


@pytest.mark.parametrize("receipt", [None, "theirs", 2, 99, -1, 1.5])
def test_a_receipt_that_is_not_ours_is_ignored(receipt: object) -> None:
    receipts = Receipts()
    first, second = arrivals(receipts, 7, 8)
    assert receipts.settle([delivery(receipt)]) == []
    (third,) = arrivals(receipts, 9)
    assert receipts.settle([first, second]) == [7, 8]
    assert receipts.settle([third]) == [9]


@given(st.permutations(range(30)), st.integers(1, 30))
def test_in_whatever_order_they_are_released_each_leaves_once_and_in_order(
    order: list[int], batch: int
) -> None:
    receipts = Receipts()
    items = arrivals(receipts, *range(100, 130))
    sent: list[int] = []
    for start in range(0, 30, batch):
        sent += receipts.settle(items[number] for number in order[start : start + batch])
        released = set(order[: start + batch])
        unreleased = [number for number in range(30) if number not in released]
        assert sent == [100 + number for number in range(min(unreleased, default=30))]


async def test_events_are_handed_over_together_and_in_order() -> None:
    inbox = Inbox(max_events=10, max_bytes=100)
    inbox.put(LinkUp(session_present=False))
    inbox.put_all([delivery(1), delivery(2)], size_bytes=0)
    events = await inbox.take()
    assert [type(event) for event in events] == [LinkUp, Delivery, Delivery]


async def test_a_closed_inbox_gives_what_it_has_before_it_says_so() -> None:
    inbox = Inbox(max_events=10, max_bytes=100)
    inbox.put(LinkUp(session_present=False))
    inbox.close(BusClosedError("first"))
    inbox.close(BusClosedError("second"))
    assert len(await inbox.take()) == 1
    with pytest.raises(BusClosedError, match="first"):
        await inbox.take()


async def test_closing_wakes_whoever_waits() -> None:
    inbox = Inbox(max_events=10, max_bytes=100)
    waiting = asyncio.create_task(inbox.take(), name="waiting")
    await asyncio.sleep(0)
    inbox.close(BusClosedError("closed"))
    with pytest.raises(BusClosedError):
        await waiting


async def test_a_cancelled_wait_leaves_the_inbox_usable() -> None:
    inbox = Inbox(max_events=10, max_bytes=100)
    waiting = asyncio.create_task(inbox.take(), name="waiting")
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    inbox.put(LinkUp(session_present=True))
    assert len(await inbox.take()) == 1


def test_an_inbox_is_full_by_number_or_by_size() -> None:
    inbox = Inbox(max_events=2, max_bytes=100)
    inbox.put_all([delivery(1)], size_bytes=99)
    assert not inbox.is_full
    inbox.put_all([delivery(2)], size_bytes=0)
    assert inbox.is_full
    large = Inbox(max_events=2, max_bytes=100)
    large.put_all([delivery(1)], size_bytes=100)
    assert large.is_full
