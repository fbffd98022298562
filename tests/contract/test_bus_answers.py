"""What MqttBus makes of a broker's every answer, said by a scripted one."""

from __future__ import annotations

import asyncio
import random
import socket

import mqtt5
import msgspec
import pytest

from fleet_protocol.bus import Confirmed, LinkUp, Publication, Refused, Session
from fleet_protocol.errors import BusClosedError, BusFullError, RejectedError, RetryableError
from fleet_protocol.mqtt import BusLimits, MqttBus
from fleet_protocol.settings import BrokerSettings
from tests.contract.bus_lab import QUICK, Reader, confirmed, messages
from tests.contract.scripted_broker import (
    SUBSCRIBED,
    WELCOME,
    WELCOME_BACK,
    Answer,
    Script,
    ScriptedBroker,
    friendly,
)

ME = Session(client_id="me", subscriptions=("a/#",), expiry_s=60)


def bus(broker: ScriptedBroker, *, limits: BusLimits = QUICK, session: Session = ME) -> MqttBus:
    return MqttBus(BrokerSettings(url=broker.url), session, limits=limits)


def saying(kind: type[mqtt5.Packet], *answers: Answer) -> Script:
    """Friendly, but for what it says to one kind of packet."""

    def script(packet: mqtt5.Packet) -> list[Answer]:
        return list(answers) if isinstance(packet, kind) else friendly(packet)

    return script


def refusal(reason: mqtt5.ConnAckReasonCode) -> Script:
    return saying(mqtt5.ConnectPacket, mqtt5.ConnAckPacket(reason_code=reason).write(), None)


def published(packets: list[mqtt5.Packet]) -> list[mqtt5.PublishPacket]:
    return [packet for packet in packets if isinstance(packet, mqtt5.PublishPacket)]


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (mqtt5.ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD, "not_authorized"),
        (mqtt5.ConnAckReasonCode.NOT_AUTHORIZED, "not_authorized"),
        (mqtt5.ConnAckReasonCode.BANNED, "not_authorized"),
        (mqtt5.ConnAckReasonCode.CLIENT_ID_NOT_VALID, "client_id_refused"),
        (mqtt5.ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION, "unsupported_version"),
    ],
)
async def test_a_lasting_refusal_raises_at_once(reason: mqtt5.ConnAckReasonCode, code: str) -> None:
    async with ScriptedBroker(refusal(reason)) as broker:
        with pytest.raises(RejectedError) as caught:
            async with bus(broker):
                pass
    assert caught.value.code == code
    assert caught.value.hint
    assert len(broker.packets) == 1


async def test_a_passing_refusal_is_tried_again() -> None:
    busy = refusal(mqtt5.ConnAckReasonCode.SERVER_BUSY)
    async with ScriptedBroker(busy, busy, friendly) as broker, bus(broker) as me:
        assert me.is_connected
    assert len(broker.packets) == 3


async def test_a_port_nobody_listens_on_gives_up_in_time_and_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    limits = msgspec.structs.replace(QUICK, connect_timeout_s=0.3)
    with pytest.raises(RetryableError) as caught:
        async with MqttBus(BrokerSettings(url=f"mqtt://127.0.0.1:{port}"), ME, limits=limits):
            pass
    assert caught.value.code == "broker_unreachable"
    assert str(port) in str(caught.value)
    assert caught.value.hint


async def test_a_broker_that_never_answers_gives_up_in_time() -> None:
    limits = msgspec.structs.replace(QUICK, connect_timeout_s=0.3, handshake_timeout_s=0.1)
    async with ScriptedBroker(saying(mqtt5.ConnectPacket)) as broker:
        with pytest.raises(RetryableError, match="did not answer in time"):
            async with bus(broker, limits=limits):
                pass


async def test_a_broker_of_3_1_1_only_is_named_as_such() -> None:
    refused_v3 = b"\x20\x02\x00\x01"
    limits = msgspec.structs.replace(QUICK, connect_timeout_s=0.2)
    async with ScriptedBroker(saying(mqtt5.ConnectPacket, refused_v3, None)) as broker:
        with pytest.raises(RetryableError, match="not MQTT 5"):
            async with bus(broker, limits=limits):
                pass


async def test_a_denied_subscription_raises_at_once() -> None:
    denied = mqtt5.SubAckPacket(1, [mqtt5.SubAckReasonCode.NOT_AUTHORIZED]).write()
    async with ScriptedBroker(saying(mqtt5.SubscribePacket, denied)) as broker:
        with pytest.raises(RejectedError, match="a/#") as caught:
            async with bus(broker):
                pass
    assert caught.value.code == "not_authorized"


async def test_a_subscription_denied_later_closes_the_bus() -> None:
    denied = mqtt5.SubAckPacket(1, [mqtt5.SubAckReasonCode.NOT_AUTHORIZED]).write()
    scripts = (friendly, saying(mqtt5.SubscribePacket, denied))
    async with ScriptedBroker(*scripts) as broker, bus(broker) as me:
        broker.send(mqtt5.DisconnectPacket().write())
        with pytest.raises(BusClosedError) as caught:
            await Reader(me).until(lambda _: False)
        assert caught.value.code == "not_authorized"


async def test_a_subscription_refused_for_now_is_tried_again() -> None:
    full = mqtt5.SubAckPacket(1, [mqtt5.SubAckReasonCode.QUOTA_EXCEEDED]).write()
    async with (
        ScriptedBroker(saying(mqtt5.SubscribePacket, full), friendly) as broker,
        bus(broker) as me,
    ):
        assert me.is_connected
    assert len(broker.packets) == 2


def renewing(*answers: Answer) -> Script:
    """Keeps a session with a message in it, and answers a subscription once that is released."""
    kept = mqtt5.PublishPacket("a/1", b"kept", qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=9).write()

    def script(packet: mqtt5.Packet) -> list[Answer]:
        if isinstance(packet, mqtt5.ConnectPacket):
            return [WELCOME_BACK, kept]
        return list(answers) if isinstance(packet, mqtt5.PubAckPacket) else []

    return script


def subscribed(reason: mqtt5.SubAckReasonCode, packet_id: int = 1) -> bytes:
    return mqtt5.SubAckPacket(packet_id, [reason]).write()


async def test_a_kept_session_is_served_before_its_subscriptions_are_renewed() -> None:
    async with (
        ScriptedBroker(renewing(SUBSCRIBED)) as broker,
        bus(broker) as me,
    ):
        (kept,) = messages(await Reader(me).until(lambda got: bool(messages(got))))
        me.acknowledge([kept])
        await broker.until(lambda got: isinstance(got[0][-1], mqtt5.PubAckPacket))
        assert [type(packet) for packet in broker.packets[0]] == [
            mqtt5.ConnectPacket,
            mqtt5.SubscribePacket,
            mqtt5.PubAckPacket,
        ]
        assert me.is_connected


async def test_a_kept_subscription_that_is_denied_now_closes_the_bus() -> None:
    script = renewing(subscribed(mqtt5.SubAckReasonCode.NOT_AUTHORIZED))
    async with ScriptedBroker(script) as broker, bus(broker) as me:
        reader = Reader(me, acknowledges=True)
        with pytest.raises(BusClosedError) as caught:
            await reader.until(lambda _: False)
        assert caught.value.code == "not_authorized"


async def test_a_kept_subscription_that_is_refused_for_now_is_asked_for_again() -> None:
    scripts = (renewing(subscribed(mqtt5.SubAckReasonCode.QUOTA_EXCEEDED)), friendly)
    async with ScriptedBroker(*scripts) as broker, bus(broker) as me:
        reader = Reader(me, acknowledges=True)
        await reader.down()
        assert not (await reader.up()).session_present


async def test_the_link_is_up_only_after_the_subscriptions() -> None:
    early = mqtt5.PublishPacket("a/1", b"early").write()
    script = saying(mqtt5.SubscribePacket, early, SUBSCRIBED)
    async with ScriptedBroker(script) as broker, bus(broker) as me:
        events = await Reader(me).until(lambda got: bool(messages(got)))
    assert [type(event) for event in events] == [LinkUp, type(events[1])]
    assert messages(events)[0].payload == b"early"


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER, "session_taken_over"),
        (mqtt5.DisconnectReasonCode.NOT_AUTHORIZED, "not_authorized"),
    ],
)
async def test_being_put_out_for_good_closes_the_bus(
    reason: mqtt5.DisconnectReasonCode, code: str
) -> None:
    async with ScriptedBroker(friendly) as broker, bus(broker) as me:
        broker.send(mqtt5.DisconnectPacket(reason_code=reason).write())
        with pytest.raises(BusClosedError) as caught:
            await Reader(me).until(lambda _: False)
        with pytest.raises(BusClosedError):
            me.publish(Publication(topic="a", payload=b""))
    assert caught.value.code == code
    assert len(broker.packets) == 1


@pytest.mark.parametrize(
    "words",
    [
        mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.SERVER_SHUTTING_DOWN).write(),
        b"\x00\x00\x00",
        b"\x30\xff\xff\xff\xff\xff",
        mqtt5.SubscribePacket(1, [mqtt5.TopicFilter("x")]).write(),
    ],
)
async def test_being_put_out_or_told_nonsense_is_healed(words: bytes) -> None:
    async with ScriptedBroker(friendly) as broker, bus(broker) as me:
        reader = Reader(me)
        await reader.up()
        broker.send(words)
        down = await reader.down()
        await reader.up()
    assert down.reason
    assert len(broker.packets) == 2


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (mqtt5.PubAckReasonCode.NOT_AUTHORIZED, "not_authorized"),
        (mqtt5.PubAckReasonCode.QUOTA_EXCEEDED, "quota_exceeded"),
        (mqtt5.PubAckReasonCode.TOPIC_NAME_INVALID, "topic_invalid"),
        (mqtt5.PubAckReasonCode.UNSPECIFIED_ERROR, "refused"),
    ],
)
async def test_a_negative_puback_tells_the_sender(
    reason: mqtt5.PubAckReasonCode, code: str
) -> None:
    def script(packet: mqtt5.Packet) -> list[Answer]:
        if isinstance(packet, mqtt5.PublishPacket) and packet.packet_id is not None:
            return [mqtt5.PubAckPacket(packet.packet_id, reason_code=reason).write()]
        return friendly(packet)

    async with ScriptedBroker(script) as broker, bus(broker) as me:
        me.publish(Publication(topic="a", payload=b"", token=7))
        events = await Reader(me).until(lambda got: any(isinstance(e, Refused) for e in got))
    assert Refused(7, code, "a") in events


async def test_nobody_listening_is_no_refusal() -> None:
    def script(packet: mqtt5.Packet) -> list[Answer]:
        if isinstance(packet, mqtt5.PublishPacket) and packet.packet_id is not None:
            reason = mqtt5.PubAckReasonCode.NO_MATCHING_SUBSCRIBERS
            return [mqtt5.PubAckPacket(packet.packet_id, reason_code=reason).write()]
        return friendly(packet)

    async with ScriptedBroker(script) as broker, bus(broker) as me:
        me.publish(Publication(topic="a", payload=b"", token=7))
        events = await Reader(me).until(lambda got: confirmed(7, got))
    assert Confirmed(7, heard=False) in events


async def test_no_more_is_sent_ahead_than_the_broker_allows() -> None:
    def script(packet: mqtt5.Packet) -> list[Answer]:
        if isinstance(packet, mqtt5.ConnectPacket):
            return [mqtt5.ConnAckPacket(receive_max=3).write()]
        if isinstance(packet, mqtt5.PublishPacket):
            return []
        return friendly(packet)

    async with ScriptedBroker(script) as broker:
        limits = msgspec.structs.replace(QUICK, close_timeout_s=0.1)
        async with bus(broker, limits=limits) as me:
            for number in range(10):
                me.publish(Publication(topic="a", payload=b"", token=number))
            # QoS 0 is not held back: once it is there, all that will come has come.
            me.publish(Publication(topic="mark", payload=b"", qos=0))
            await broker.until(lambda got: any(p.topic == "mark" for p in published(got[0])))
            assert [p.packet_id for p in published(broker.packets[0])] == [1, 2, 3, None]
            for packet_id in (2, 1, 3):
                broker.send(mqtt5.PubAckPacket(packet_id).write())
            await Reader(me).until(lambda got: Confirmed(2) in got)
            await broker.until(lambda got: len(published(got[0])) == 7)


async def test_a_packet_beyond_the_brokers_limit_is_refused_not_sent() -> None:
    welcome = mqtt5.ConnAckPacket(max_packet_size=1_000).write()
    script = saying(mqtt5.ConnectPacket, welcome)
    async with ScriptedBroker(script) as broker, bus(broker) as me:
        me.publish(Publication(topic="a", payload=bytes(1_000), token=1))
        me.publish(Publication(topic="a", payload=bytes(900), token=2))
        events = await Reader(me).until(lambda got: Confirmed(2) in got)
    assert Refused(1, "too_large", "a") in events
    assert len(published(broker.packets[0])) == 1


@pytest.mark.parametrize("welcome", [WELCOME, WELCOME_BACK])
async def test_what_was_not_confirmed_is_sent_again_in_order(welcome: bytes) -> None:
    def deaf(packet: mqtt5.Packet) -> list[Answer]:
        return [] if isinstance(packet, mqtt5.PublishPacket) else friendly(packet)

    again = saying(mqtt5.ConnectPacket, welcome)
    async with ScriptedBroker(deaf, again) as broker, bus(broker) as me:
        for number in range(5):
            me.publish(Publication(topic="a", payload=b"%d" % number, token=number))
        await broker.until(lambda got: len(published(got[0])) == 5)
        broker.send(mqtt5.PubAckPacket(2).write())
        reader = Reader(me)
        await reader.until(lambda got: Confirmed(1) in got)
        broker.send(mqtt5.DisconnectPacket().write())
        await reader.until(lambda got: Confirmed(4) in got)
    resent = published(broker.packets[1])
    assert [packet.payload for packet in resent] == [b"0", b"2", b"3", b"4"]
    is_known = welcome is WELCOME_BACK
    assert {packet.duplicate for packet in resent} == {is_known}
    if is_known:
        assert [packet.packet_id for packet in resent] == [1, 3, 4, 5]


async def test_the_waits_between_tries_grow_are_capped_and_jittered() -> None:
    waits: list[float] = []

    async def sleep(span_s: float) -> None:
        waits.append(span_s)
        await asyncio.sleep(0)

    closing = saying(mqtt5.ConnectPacket, None)
    limits = BusLimits(reconnect_first_s=1.0, reconnect_cap_s=8.0)
    async with ScriptedBroker(friendly, *[closing] * 40, friendly) as broker:
        me = MqttBus(
            BrokerSettings(url=broker.url), ME, limits=limits, rng=random.Random(7), sleep=sleep
        )
        async with me:
            reader = Reader(me)
            await reader.up()
            waits.clear()
            broker.send(mqtt5.DisconnectPacket().write())
            await reader.up()
    bounds = [min(8.0, 2.0**i) for i in range(41)]
    assert len(waits) == 41
    assert all(0.0 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
    assert max(waits) > 7.0
    assert len(set(waits)) == 41


async def test_a_link_that_lived_long_is_not_forgotten_to_have_failed_since() -> None:
    waits: list[float] = []

    async def sleep(span_s: float) -> None:
        waits.append(span_s)
        await asyncio.sleep(0)

    closing = saying(mqtt5.ConnectPacket, None)
    limits = BusLimits(reconnect_first_s=1.0, reconnect_cap_s=8.0)
    async with ScriptedBroker(friendly, *[closing] * 20, friendly) as broker:
        me = MqttBus(
            BrokerSettings(url=broker.url), ME, limits=limits, rng=random.Random(7), sleep=sleep
        )
        async with me:
            me._up_at_s -= 3_600
            broker.send(mqtt5.DisconnectPacket().write())
            reader = Reader(me)
            await reader.down()
            await reader.up()
    assert max(waits) > 4.0


def forgetful(packet: mqtt5.Packet) -> list[Answer]:
    """Take us in with a new session and put us out without a word."""
    return [SUBSCRIBED, None] if isinstance(packet, mqtt5.SubscribePacket) else friendly(packet)


def rude(packet: mqtt5.Packet) -> list[Answer]:
    """Take us in with our session and put us out without a word."""
    return [WELCOME_BACK] if isinstance(packet, mqtt5.ConnectPacket) else forgetful(packet)


async def test_being_put_out_without_a_word_again_and_again_means_another_has_our_name() -> None:
    limits = msgspec.structs.replace(QUICK, silent_losses=4)
    async with ScriptedBroker(rude) as broker, bus(broker, limits=limits) as me:
        with pytest.raises(BusClosedError) as caught:
            await Reader(me).until(lambda _: False)
    assert caught.value.code == "session_taken_over"
    assert "4 times" in str(caught.value)
    assert len(broker.packets) == 4


async def test_a_broker_that_is_away_in_between_was_merely_restarted() -> None:
    away = saying(mqtt5.ConnectPacket, None)
    limits = msgspec.structs.replace(QUICK, silent_losses=3)
    scripts = [rude, rude, away] * 4
    async with ScriptedBroker(*scripts, friendly) as broker, bus(broker, limits=limits) as me:
        await broker.until(lambda got: len(got) == 13)
        me.publish(Publication(topic="a", payload=b"", token=1))
        await Reader(me).until(lambda got: Confirmed(1) in got)


@pytest.mark.parametrize(("script", "life_s"), [(forgetful, 10.0), (rude, 0.0)])
async def test_a_broker_killed_and_started_again_and_again_is_no_other_client_of_our_name(
    script: Script, life_s: float
) -> None:
    """Whether it forgot our session, or let us live for longer than two of one name do."""
    limits = msgspec.structs.replace(QUICK, silent_losses=3, silent_life_s=life_s)
    async with ScriptedBroker(*[script] * 8, friendly) as broker, bus(broker, limits=limits) as me:
        await broker.until(lambda got: len(got) == 9)
        me.publish(Publication(topic="a", payload=b"", token=1))
        await Reader(me).until(lambda got: Confirmed(1) in got)


async def test_too_many_bytes_unconfirmed_fill_the_queue_too() -> None:
    deaf = saying(mqtt5.PublishPacket)
    limits = msgspec.structs.replace(QUICK, max_unconfirmed_bytes=10_000, close_timeout_s=0.05)
    async with ScriptedBroker(deaf) as broker, bus(broker, limits=limits) as me:
        me.publish(Publication(topic="a", payload=bytes(8_000)))
        with pytest.raises(BusFullError) as caught:
            me.publish(Publication(topic="a", payload=bytes(2_000)))
        me.publish(Publication(topic="a", payload=bytes(1_000)))
    assert caught.value.retry_after_ms > 0


async def test_room_is_made_by_confirmations_and_refusals_alike() -> None:
    limits = msgspec.structs.replace(QUICK, max_unconfirmed_bytes=10_000, max_packet_bytes=5_000)
    async with ScriptedBroker(friendly) as broker, bus(broker, limits=limits) as me:
        reader = Reader(me)
        for token in range(20):
            size = 8_000 if token % 2 else 4_000
            me.publish(Publication(topic="a", payload=bytes(size), token=token))
            await reader.until(lambda got: any(isinstance(e, Confirmed | Refused) for e in got))


async def test_a_receiver_that_is_slow_is_sent_no_more_than_it_can_hold() -> None:
    count, size_bytes = 2_000, 10_000
    burst = b"".join(
        mqtt5.PublishPacket("a/1", i.to_bytes(4, "big") + bytes(size_bytes - 4)).write()
        for i in range(count)
    )
    limits = msgspec.structs.replace(QUICK, max_inbox_bytes=1_000_000)
    async with ScriptedBroker(friendly) as broker, bus(broker, limits=limits) as me:
        reader = Reader(me)
        await reader.up()
        broker.send(burst)
        # Far more turns of the loop than it takes to read all 20 MB.
        for _ in range(2_000):
            await asyncio.sleep(0)
        got = messages(await me.receive())
        # One socket read may overshoot the bound.
        assert 0 < len(got) * size_bytes < 2_000_000
        rest = count - len(got)
        got += messages(await reader.until(lambda events: len(messages(events)) >= rest))
    assert [int.from_bytes(item.payload[:4], "big") for item in got] == list(range(count))
