"""MqttBus on real brokers, where the link itself is what is tried."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from fleet_cli.broker import BrokerKind, BrokerProcess
from fleet_protocol import mqtt_link
from fleet_protocol.bus import Publication, Session
from fleet_protocol.errors import BusFullError
from fleet_protocol.mqtt import MqttBus
from fleet_protocol.settings import BrokerSettings
from tests.conftest import require
from tests.contract.bus_lab import PATIENCE_S, QUICK, MqttLab, Reader, confirmed, messages


def receiver(name: str) -> Session:
    return Session(client_id=f"{name}-rx", subscriptions=(f"{name}/a",), expiry_s=60)


async def test_a_half_open_link_is_noticed_and_healed(mqtt_lab: MqttLab, name: str) -> None:
    async with mqtt_lab.bus(receiver(name), keepalive_s=1) as rx:
        reader = Reader(rx)
        await reader.up()
        mqtt_lab.cable(f"{name}-rx").swallows = True
        down = await reader.down()
        mqtt_lab.heal(f"{name}-rx")
        await reader.up()
    assert "nothing heard" in down.reason


def test_silence_is_noticed_within_one_and_a_half_keepalives() -> None:
    # By construction: a test that measured it would fail on a busy machine.
    assert mqtt_link._PING_AFTER < 1.0
    assert mqtt_link._DEAD_AFTER + mqtt_link._CHECK_EVERY <= 1.5


async def test_an_idle_link_stays_up(mqtt_lab: MqttLab, name: str) -> None:
    async with mqtt_lab.bus(receiver(name), keepalive_s=1) as rx, asyncio.timeout(20):
        reader = Reader(rx)
        await reader.up()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.7):
                await rx.receive()
        assert rx.is_connected


async def test_unconfirmed_publications_survive_a_dead_link(mqtt_lab: MqttLab, name: str) -> None:
    async with mqtt_lab.bus(receiver(name)) as rx:
        async with mqtt_lab.bus(Session(client_id=f"{name}-tx")) as tx:
            mqtt_lab.cable(f"{name}-tx").swallows = True
            for number in range(50):
                tx.publish(Publication(topic=f"{name}/a", payload=b"%d" % number, token=number))
            mqtt_lab.cut(f"{name}-tx")
            reader = Reader(tx)
            await reader.down()
            mqtt_lab.heal(f"{name}-tx")
            await reader.until(lambda got: confirmed(49, got))
        got = await Reader(rx).deliveries(50)
    assert [item.payload for item in got] == [b"%d" % number for number in range(50)]


def fill(bus: MqttBus, topic: str) -> int:
    """Publish numbers, a kilobyte each, until the bus takes no more; return how many it took."""
    for number in itertools.count():
        try:
            bus.publish(Publication(topic=topic, payload=b"%1024d" % number, token=number))
        except BusFullError:
            return number
    raise AssertionError


async def test_what_a_broker_does_not_take_stays_within_bounds_and_arrives_when_it_does(
    mqtt_lab: MqttLab, name: str
) -> None:
    narrow = msgspec.structs.replace(
        QUICK, write_buffer_bytes=65_536, max_unconfirmed_bytes=1_048_576
    )
    async with mqtt_lab.bus(receiver(name)) as rx:
        session = Session(client_id=f"{name}-tx")
        async with mqtt_lab.bus(session, limits=narrow, max_unconfirmed=10_000) as tx:
            mqtt_lab.cable(f"{name}-tx").takes.clear()
            for _ in range(200):
                for _ in range(100):
                    tx.publish(Publication(topic=f"{name}/nobody", payload=bytes(1_024), qos=0))
                await asyncio.sleep(0)
            assert tx.dropped > 10_000, "20 MB went somewhere"
            taken = fill(tx, f"{name}/a")
            assert taken <= 1_024
            assert tx._link is not None
            assert tx._link._transport is not None
            # A turn's worth beyond the mark at which it counts as congested.
            assert tx._link._transport.get_write_buffer_size() < 4 * 65_536
            mqtt_lab.heal(f"{name}-tx")
            await Reader(tx).until(lambda got: confirmed(taken - 1, got))
        got = await Reader(rx, acknowledges=True).deliveries(taken)
    assert [int(item.payload) for item in got] == list(range(taken))


@pytest.mark.parametrize("kind", list(BrokerKind))
async def test_a_broker_that_was_killed_and_starts_again_finds_us_back(
    tmp_path: Path, kind: BrokerKind, name: str
) -> None:
    require(kind.is_installed, f"the {kind} broker")
    with BrokerProcess(kind, tmp_path) as process:
        broker = BrokerSettings(url=process.url)
        session = Session(client_id=f"{name}-tx", subscriptions=(f"{name}/a",))
        async with MqttBus(broker, session, limits=QUICK) as me:
            reader = Reader(me)
            await reader.up()
            process.kill()
            await reader.down()
            me.publish(Publication(topic=f"{name}/a", payload=b"kept", token=1))
            process.start()
            up = await reader.up()
            events = await reader.until(lambda got: confirmed(1, got) and bool(messages(got)))
    assert not up.session_present
    assert [item.payload for item in messages(events)] == [b"kept"]


@pytest.mark.parametrize("kind", list(BrokerKind))
async def test_a_bus_may_be_entered_before_its_broker_is_there(
    tmp_path: Path, kind: BrokerKind, name: str
) -> None:
    require(kind.is_installed, f"the {kind} broker")
    process = BrokerProcess(kind, tmp_path)
    me = MqttBus(BrokerSettings(url=process.url), receiver(name), limits=QUICK)
    entering = asyncio.create_task(me.__aenter__(), name="entering")
    await asyncio.sleep(0)
    with process:
        await entering
        assert me.is_connected
        await me.__aexit__()


async def test_a_3_1_1_client_hears_what_we_say_with_properties(
    mqtt_lab: MqttLab, name: str
) -> None:
    said = Publication(
        topic=f"{name}/v3", payload=b"hello v3", content_type="text/plain", expiry_s=60
    )
    async with mqtt_lab.bus(receiver(name)) as me, plain_client(mqtt_lab, name) as (reader, _):
        for number in range(2):
            me.publish(msgspec.structs.replace(said, payload=b"hello %d" % number))
        async with asyncio.timeout(PATIENCE_S):
            assert b"hello 0" in await reader.readuntil(b"hello 0")
            assert b"hello 1" in await reader.readuntil(b"hello 1")


async def test_a_3_1_1_client_gets_what_was_retained_with_properties(
    mqtt_lab: MqttLab, name: str
) -> None:
    said = Publication(
        topic=f"{name}/v3", payload=b"kept", content_type="text/plain", retain=True, token=1
    )
    async with mqtt_lab.bus(receiver(name)) as me:
        me.publish(said)
        await Reader(me).until(lambda got: confirmed(1, got))
        async with plain_client(mqtt_lab, name) as (reader, _), asyncio.timeout(PATIENCE_S):
            assert b"kept" in await reader.readuntil(b"kept")
        me.publish(msgspec.structs.replace(said, payload=b""))


async def test_we_hear_what_a_3_1_1_client_says(mqtt_lab: MqttLab, name: str) -> None:
    async with mqtt_lab.bus(receiver(name)) as rx, plain_client(mqtt_lab, name) as (_, writer):
        topic = f"{name}/a".encode()
        body = len(topic).to_bytes(2, "big") + topic + b"from v3"
        writer.write(b"\x30" + bytes([len(body)]) + body)
        (delivery,) = await Reader(rx).deliveries(1)
    assert delivery.payload == b"from v3"


@contextlib.asynccontextmanager
async def plain_client(
    lab: MqttLab, name: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client that speaks 3.1.1 and is subscribed to NAME/v3 at QoS 0."""
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.broker.port_v3)
    try:
        writer.write(b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02v3")
        assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
        topic = f"{name}/v3".encode()
        body = b"\x00\x01" + len(topic).to_bytes(2, "big") + topic + b"\x00"
        writer.write(b"\x82" + bytes([len(body)]) + body)
        assert await reader.readexactly(5) == b"\x90\x03\x00\x01\x00"
        yield reader, writer
    finally:
        writer.transport.abort()


async def test_many_messages_go_through_a_narrow_window(mqtt_lab: MqttLab, name: str) -> None:
    narrow = msgspec.structs.replace(QUICK, window=7, receive_maximum=5, max_inbox_events=20)
    async with mqtt_lab.bus(receiver(name), limits=narrow) as rx:
        session = Session(client_id=f"{name}-tx")
        async with mqtt_lab.bus(session, limits=narrow, max_unconfirmed=5_000) as tx:
            for number in range(3_000):
                tx.publish(Publication(topic=f"{name}/a", payload=b"%d" % number))
            got = await Reader(rx, acknowledges=True).deliveries(3_000)
    assert [item.payload for item in got] == [b"%d" % number for number in range(3_000)]
