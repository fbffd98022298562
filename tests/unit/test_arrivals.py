"""What arrives begins a turn, unless nobody waits for it."""

from __future__ import annotations

import asyncio

from cloud_dispatcher.arrivals import Arrivals
from cloud_dispatcher.core.events import TimePassed
from fleet_protocol.bus import BusEvent, Confirmed, Delivery, LinkDown

STATE = Delivery(topic="fleet/v1/workers/w1/state", payload=b"{}")
PROBE = Delivery(topic="fleet/v1/workers/w1/probe", payload=b"{}")
SUBMIT = Delivery(topic="fleet/v1/dev/d1/jobs/j1/submit", payload=b"{}", receipt=1)
TOLD = Confirmed("k1")


async def test_a_heartbeat_begins_no_turn_but_is_in_the_next() -> None:
    arrivals = Arrivals()
    await arrivals.add_all([STATE])
    assert not arrivals.is_due
    await arrivals.add_all([SUBMIT])
    assert arrivals.is_due
    assert arrivals.take(10) == [STATE, SUBMIT]
    assert not arrivals.is_due


async def test_what_nobody_waits_for_waits_a_moment_only() -> None:
    arrivals = Arrivals()
    await arrivals.add_all([STATE, TOLD])
    async with asyncio.timeout(5):
        await arrivals.called()
    assert arrivals.take(10) == [STATE, TOLD]


async def test_all_else_begins_a_turn_at_once() -> None:
    events: tuple[BusEvent, ...] = (SUBMIT, PROBE, LinkDown("gone"))
    for event in events:
        arrivals = Arrivals()
        await arrivals.add_all([TOLD, event])
        assert arrivals.is_due
    arrivals = Arrivals()
    arrivals.add(TimePassed())
    assert arrivals.is_due


async def test_what_a_turn_leaves_makes_the_next_one_due() -> None:
    arrivals = Arrivals()
    await arrivals.add_all([SUBMIT, STATE, STATE])
    assert arrivals.take(1) == [SUBMIT]
    assert arrivals.is_due
    assert arrivals.take(9) == [STATE, STATE]
    assert not arrivals.is_due


async def test_who_brings_too_much_waits_until_some_is_taken() -> None:
    arrivals = Arrivals()
    adding = asyncio.create_task(arrivals.add_all([STATE] * 10_000))
    await asyncio.sleep(0)
    assert not adding.done()
    assert arrivals.is_due
    arrivals.take(500)
    async with asyncio.timeout(5):
        await adding
