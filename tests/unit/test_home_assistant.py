"""What Home Assistant finds on the broker, read as it reads it: JSON, topics, Jinja templates."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import jinja2
import pytest
from msgspec.structs import replace

from cloud_dispatcher.home_assistant import HomeAssistantSettings
from fleet_protocol import codec
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.access import Access, Identity, grants_of, may
from fleet_protocol.topics import Role, Topics
from tests.unit.service_house import TOPICS, House, Worker

STATE = m.WorkerState(
    ts=1, seq=1, status=m.Activity.BUSY, cpu_pct=40, mem_pct=30, inflight=2, tok_s=7.5, temp_c=61.5
)
DEVICE_KEYS = {"dev", "o", "cmps", "availability"}
"""Home Assistant refuses a description with a key that it does not know."""
ENTITY_KEYS = {
    "p", "name", "unique_id", "state_topic", "value_template", "device_class", "options",
    "state_class", "expire_after", "unit_of_measurement",
}  # fmt: skip


def rendered(template: str, payload: bytes) -> str:
    """Render as Home Assistant does, but for its own filters."""
    environment = jinja2.Environment(autoescape=True)
    return environment.from_string(template).render(value_json=json.loads(payload))


async def second(house: House, worker: Worker) -> None:
    """Let one pass: a heartbeat wakes the dispatcher."""
    house.clock.now_ms += 1_000
    worker.say(t.STATE, STATE, "w1")
    for _ in range(100):
        await asyncio.sleep(0)


async def description(house: House, worker: Worker, thing: str) -> dict[str, Any]:
    """Return what is retained of a device, once it is."""
    for _ in range(30):
        payload = house.broker.retained(topic_of(thing))
        if payload:
            found: dict[str, Any] = json.loads(payload)
            return found
        await second(house, worker)
    raise AssertionError(f"{thing} was not told")


def topic_of(thing: str) -> str:
    return TOPICS.name(t.HOME_ASSISTANT, thing)


@pytest.fixture
def described(house: House) -> House:
    house.home_assistant = HomeAssistantSettings(enabled=True)
    return house


async def test_a_worker_is_a_device_whose_figures_are_where_it_says(
    described: House, worker: Worker
) -> None:
    async with described.dispatcher():
        device = await description(described, worker, "w1")
    assert device.keys() == DEVICE_KEYS
    assert device["dev"]["name"] == "w1"
    payloads = {
        TOPICS.name(t.STATE, "w1"): codec.encode(STATE),
        TOPICS.name(t.PRESENCE, "w1"): codec.encode(
            m.Presence(status=m.PresenceStatus.ONLINE, boot="b")
        ),
    }
    shown = {}
    for name, entity in device["cmps"].items():
        assert entity.keys() <= ENTITY_KEYS
        assert entity["p"] == "sensor"
        shown[name] = rendered(entity["value_template"], payloads[entity["state_topic"]])
    assert shown == {
        "status": "online",
        "temperature": "61.5",
        "cpu": "40",
        "memory": "30",
        "jobs": "2",
        "speed": "7.5",
    }
    # What a board cannot measure is unknown to Home Assistant, too.
    payload = codec.encode(replace(STATE, temp_c=None))
    assert rendered(device["cmps"]["temperature"]["value_template"], payload) == "None"
    names = {entity["unique_id"] for entity in device["cmps"].values()}
    assert len(names) == len(device["cmps"])


async def test_a_worker_that_is_offline_is_unavailable_one_that_drains_is_not(
    described: House, worker: Worker
) -> None:
    async with described.dispatcher():
        device = await description(described, worker, "w1")
    (available,) = device["availability"]
    assert available["topic"] == TOPICS.name(t.PRESENCE, "w1")
    shown = {
        status: rendered(
            available["value_template"], codec.encode(m.Presence(status=status, boot="b"))
        )
        for status in m.PresenceStatus
    }
    assert shown == {"online": "online", "draining": "online", "offline": "offline"}


async def test_the_fleet_is_a_device_too(described: House, worker: Worker) -> None:
    async with described.dispatcher():
        device = await description(described, worker, "the-fleet")
    busy = m.FleetSummary(at_ms=1, queued=4, workers={"online": 3}, jobs_per_s=2.5)
    quiet = m.FleetSummary(at_ms=1)
    for summary, workers in ((busy, "3"), (quiet, "0")):
        payload = codec.encode(summary)
        shown = {
            name: rendered(entity["value_template"], payload)
            for name, entity in device["cmps"].items()
        }
        assert shown["workers"] == workers
        assert shown["queued"] == str(summary.queued)
        assert {entity["state_topic"] for entity in device["cmps"].values()} == {
            TOPICS.name(t.SUMMARY)
        }


async def test_a_broker_that_forgot_is_told_again_and_a_worker_that_is_gone_is_cleared(
    described: House, worker: Worker
) -> None:
    async with described.dispatcher():
        first = await description(described, worker, "w1")
        described.broker.forget_everything()
        assert described.broker.retained(topic_of("w1")) is None
        worker.join()
        assert await description(described, worker, "w1") == first
        for channel in (t.PRESENCE, t.INFO):
            worker.throw(TOPICS.name(channel, "w1"), b"", retain=True)
        for _ in range(30):
            described.clock.now_ms += 1_000
            worker.say(t.STATE, STATE, "w2")
            await described.until(lambda: True)
            if not described.broker.retained(topic_of("w1")):
                break
            await asyncio.sleep(0)
        assert not described.broker.retained(topic_of("w1"))


async def test_nothing_is_told_unless_it_is_wanted(house: House, worker: Worker) -> None:
    async with house.dispatcher():
        for _ in range(10):
            await second(house, worker)
        assert house.broker.retained(TOPICS.name(t.SUMMARY)) is not None
        assert house.broker.retained(topic_of("w1")) is None


async def test_another_prefix_is_home_assistants_own(described: House, worker: Worker) -> None:
    described.home_assistant = HomeAssistantSettings(enabled=True, prefix="homeassistant")
    async with described.dispatcher():
        for _ in range(10):
            await second(described, worker)
        theirs = described.broker.retained("homeassistant/device/edgefleet-w1/config")
        assert theirs is not None
        assert described.broker.retained(topic_of("w1")) is None


def test_a_viewer_may_read_all_of_it() -> None:
    topics = Topics()
    grants = grants_of(topics, Identity(role=Role.VIEWER, id="ha"))
    for topic in (topic_of("w1"), TOPICS.name(t.STATE, "w1"), TOPICS.name(t.SUMMARY)):
        assert may(grants, Access.SUBSCRIBE, topic)
    assert not may(grants, Access.PUBLISH, topic_of("w1"))
