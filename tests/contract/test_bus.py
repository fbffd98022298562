"""The contract of `MessageBus`, held by the bus in memory and by the one on real brokers."""

from __future__ import annotations

import pytest

from fleet_protocol.bus import LinkDown, Publication, Refused, Session
from fleet_protocol.errors import BusClosedError, BusFullError
from tests.contract.bus_lab import Lab, Reader, confirmed, messages


def message(topic: str, payload: bytes = b"x", **fields: object) -> Publication:
    return Publication(topic=topic, payload=payload, **fields)  # type: ignore[arg-type]  # a test's shorthand


def receiver(name: str, *filters: str, expiry_s: int = 60) -> Session:
    return Session(client_id=f"{name}-rx", subscriptions=filters, expiry_s=expiry_s)


def sender(name: str, **fields: object) -> Session:
    return Session(client_id=f"{name}-tx", **fields)  # type: ignore[arg-type]  # a test's shorthand


async def test_a_message_arrives_and_its_sender_is_told(lab: Lab, name: str) -> None:
    async with lab.bus(receiver(name, f"{name}/a")) as rx, lab.bus(sender(name)) as tx:
        tx.publish(message(f"{name}/a", b"\x00\xffbytes", token="mine"))
        (delivery,) = await Reader(rx).deliveries(1)
        events = await Reader(tx).until(lambda got: confirmed("mine", got))
    assert (delivery.topic, delivery.payload) == (f"{name}/a", b"\x00\xffbytes")
    assert delivery.receipt is not None
    assert confirmed("mine", events)


async def test_a_qos_0_message_asks_for_no_acknowledgement(strict_lab: Lab, name: str) -> None:
    async with (
        strict_lab.bus(receiver(name, f"{name}/a")) as rx,
        strict_lab.bus(sender(name)) as tx,
    ):
        tx.publish(message(f"{name}/a", b"", qos=0))
        (delivery,) = await Reader(rx).deliveries(1)
    assert delivery.receipt is None
    assert delivery.payload == b""


async def test_messages_keep_their_order(lab: Lab, name: str) -> None:
    async with lab.bus(receiver(name, f"{name}/a")) as rx, lab.bus(sender(name)) as tx:
        for number in range(500):
            tx.publish(message(f"{name}/a", b"%d" % number))
        got = await Reader(rx, acknowledges=True).deliveries(500)
    assert [item.payload for item in got] == [b"%d" % number for number in range(500)]


async def test_a_late_subscriber_gets_the_retained_message(lab: Lab, name: str) -> None:
    topic = f"{name}/kept"
    async with lab.bus(sender(name)) as tx:
        tx.publish(message(topic, b"old", retain=True))
        tx.publish(message(topic, b"new", retain=True, token=1))
        await Reader(tx).until(lambda got: confirmed(1, got))
        async with lab.bus(receiver(name, topic)) as rx:
            reader = Reader(rx)
            (kept,) = await reader.deliveries(1)
            tx.publish(message(topic, b"live", retain=True))
            (live,) = await reader.deliveries(1)
        tx.publish(message(topic, b"", retain=True))
    assert (kept.payload, kept.retain) == (b"new", True)
    assert (live.payload, live.retain) == (b"live", False)


async def test_an_empty_retained_message_clears_the_topic(lab: Lab, name: str) -> None:
    async with lab.bus(sender(name)) as tx:
        tx.publish(message(f"{name}/kept", b"old", retain=True))
        tx.publish(message(f"{name}/kept", b"", retain=True, token=1))
        await Reader(tx).until(lambda got: confirmed(1, got))
        async with lab.bus(receiver(name, f"{name}/#")) as rx:
            tx.publish(message(f"{name}/mark"))
            (delivery,) = await Reader(rx).deliveries(1)
    assert delivery.topic == f"{name}/mark"


async def test_the_will_of_a_client_that_vanishes_is_published(lab: Lab, name: str) -> None:
    will = message(f"{name}/will", b"gone", retain=True)
    async with lab.bus(receiver(name, f"{name}/will")) as rx:
        async with lab.bus(sender(name, will=will)):
            lab.cut(f"{name}-tx")
            (delivery,) = await Reader(rx).deliveries(1)
            lab.heal(f"{name}-tx")
        rx.publish(message(f"{name}/will", b"", retain=True))
    assert delivery.payload == b"gone"


async def test_the_will_of_a_client_that_says_goodbye_is_not(lab: Lab, name: str) -> None:
    async with lab.bus(receiver(name, f"{name}/#")) as rx:
        async with lab.bus(sender(name, will=message(f"{name}/will", b"gone"))):
            pass
        rx.publish(message(f"{name}/mark"))
        (delivery,) = await Reader(rx).deliveries(1)
    assert delivery.topic == f"{name}/mark"


@pytest.mark.parametrize(
    ("pattern", "heard", "unheard"),
    [
        ("a/+/c", ["a/b/c", "a//c"], ["a/b", "a/b/c/d", "x/b/c"]),
        ("a/#", ["a/b", "a/b/c", "a"], ["b/a"]),
        ("+/+/jobs/+/submit", ["dev/d1/jobs/7/submit"], ["dev/d1/jobs/7/cancel"]),
    ],
)
async def test_wildcards_match_as_mqtt_says(
    lab: Lab, name: str, pattern: str, heard: list[str], unheard: list[str]
) -> None:
    filters = (f"{name}/{pattern}", f"{name}/mark")
    async with lab.bus(receiver(name, *filters)) as rx, lab.bus(sender(name)) as tx:
        for topic in (*unheard, *heard, "mark"):
            tx.publish(message(f"{name}/{topic}"))
        got = await Reader(rx).deliveries(len(heard) + 1)
    assert [item.topic for item in got] == [f"{name}/{topic}" for topic in (*heard, "mark")]


async def test_a_kept_session_gets_what_came_while_it_was_away(lab: Lab, name: str) -> None:
    async with lab.bus(sender(name)) as tx:
        async with lab.bus(receiver(name, f"{name}/a")) as rx:
            first = await Reader(rx).up()
        for number in range(20):
            tx.publish(message(f"{name}/a", b"%d" % number, token=number))
        await Reader(tx).until(lambda got: confirmed(19, got))
        async with lab.bus(receiver(name, f"{name}/a")) as rx:
            reader = Reader(rx)
            again = await reader.up()
            got = await reader.deliveries(20)
            rx.acknowledge(got)
    assert (first.session_present, again.session_present) == (False, True)
    assert [item.payload for item in got] == [b"%d" % number for number in range(20)]


async def test_much_that_came_meanwhile_keeps_nobody_out(lab: Lab, name: str) -> None:
    """The embedded broker answers nothing before a hundred kept messages are acknowledged."""
    async with lab.bus(sender(name)) as tx:
        async with lab.bus(receiver(name, f"{name}/a")):
            pass
        for number in range(300):
            tx.publish(message(f"{name}/a", b"%d" % number, token=number))
        await Reader(tx).until(lambda got: confirmed(299, got))
        async with lab.bus(receiver(name, f"{name}/a")) as rx:
            got = await Reader(rx, acknowledges=True).deliveries(300)
    assert [item.payload for item in got] == [b"%d" % number for number in range(300)]


async def test_a_session_that_is_not_kept_starts_clean(lab: Lab, name: str) -> None:
    async with lab.bus(sender(name)) as tx:
        async with lab.bus(receiver(name, f"{name}/a", expiry_s=0)):
            pass
        tx.publish(message(f"{name}/a", b"missed", token=1))
        await Reader(tx).until(lambda got: confirmed(1, got))
        async with lab.bus(receiver(name, f"{name}/a", expiry_s=0)) as rx:
            reader = Reader(rx)
            up = await reader.up()
            tx.publish(message(f"{name}/a", b"heard"))
            (delivery,) = await reader.deliveries(1)
    assert not up.session_present
    assert delivery.payload == b"heard"


async def test_exactly_what_was_not_acknowledged_comes_again(lab: Lab, name: str) -> None:
    async with lab.bus(receiver(name, f"{name}/a")) as rx, lab.bus(sender(name)) as tx:
        for number in range(50):
            tx.publish(message(f"{name}/a", b"%d" % number))
        reader = Reader(rx)
        got = await reader.deliveries(50)
        rx.acknowledge(got[:20])
        # Once the broker answers this, it has read the acknowledgements before it.
        rx.publish(message(f"{name}/mark", token="mark"))
        await reader.until(lambda events: confirmed("mark", events))
        lab.cut(f"{name}-rx")
        await reader.down()
        lab.heal(f"{name}-rx")
        up = await reader.up()
        again = await reader.deliveries(30)
        rx.acknowledge(again)
    assert up.session_present
    assert [item.payload for item in again] == [b"%d" % number for number in range(20, 50)]


async def test_what_a_handler_releases_out_of_order_is_released(lab: Lab, name: str) -> None:
    async with lab.bus(receiver(name, f"{name}/a")) as rx, lab.bus(sender(name)) as tx:
        for number in range(10):
            tx.publish(message(f"{name}/a", b"%d" % number))
        reader = Reader(rx)
        got = await reader.deliveries(10)
        rx.acknowledge(reversed(got))
        rx.acknowledge(got)
        rx.publish(message(f"{name}/a", b"last", token=1))
        (last,) = await reader.deliveries(1)
        lab.cut(f"{name}-rx")
        await reader.down()
        lab.heal(f"{name}-rx")
        (again,) = await reader.deliveries(1)
    assert last.payload == again.payload == b"last"


async def test_an_acknowledgement_of_an_earlier_connection_does_nothing(
    lab: Lab, name: str
) -> None:
    async with lab.bus(receiver(name, f"{name}/a")) as rx, lab.bus(sender(name)) as tx:
        reader = Reader(rx)
        for number in range(5):
            tx.publish(message(f"{name}/a", b"%d" % number))
        stale = await reader.deliveries(5)
        for _ in range(2):
            lab.cut(f"{name}-rx")
            await reader.down()
            lab.heal(f"{name}-rx")
            fresh = await reader.deliveries(5)
            rx.acknowledge(stale)
            # Once the broker answers this, it has read whatever was sent before it.
            rx.publish(message(f"{name}/mark", token="mark"))
            await reader.until(lambda events: confirmed("mark", events))
    assert [item.payload for item in fresh] == [b"%d" % number for number in range(5)]


async def test_after_a_loss_the_bus_is_back_with_its_subscriptions(lab: Lab, name: str) -> None:
    session = receiver(name, f"{name}/a", f"{name}/b/#", expiry_s=0)
    async with lab.bus(session) as rx, lab.bus(sender(name)) as tx:
        reader = Reader(rx)
        await reader.up()
        assert rx.is_connected
        lab.cut(f"{name}-rx")
        down = await reader.down()
        assert not rx.is_connected
        lab.heal(f"{name}-rx")
        await reader.up()
        tx.publish(message(f"{name}/a"))
        tx.publish(message(f"{name}/b/c"))
        got = await reader.deliveries(2)
    assert down.reason
    assert [item.topic for item in got] == [f"{name}/a", f"{name}/b/c"]


async def test_qos_1_waits_for_the_link_and_qos_0_does_not(lab: Lab, name: str) -> None:
    async with lab.bus(receiver(name, f"{name}/a")) as rx, lab.bus(sender(name)) as tx:
        reader = Reader(tx)
        lab.cut(f"{name}-tx")
        await reader.down()
        tx.publish(message(f"{name}/a", b"sure", token=1))
        tx.publish(message(f"{name}/a", b"maybe", qos=0))
        tx.publish(message(f"{name}/a", b"stale", token=2, expiry_s=0))
        lab.heal(f"{name}-tx")
        events = await reader.until(lambda got: confirmed(1, got))
        tx.publish(message(f"{name}/a", b"mark"))
        got = await Reader(rx).deliveries(2)
    assert [item.payload for item in got] == [b"sure", b"mark"]
    assert Refused(2, "expired", f"{name}/a") in [*events, *reader.events]


async def test_a_full_queue_says_so_and_takes_nothing(lab: Lab, name: str) -> None:
    small = lab.bus(sender(name), max_unconfirmed=3)
    async with lab.bus(receiver(name, f"{name}/a")) as rx, small as tx:
        reader = Reader(tx)
        lab.cut(f"{name}-tx")
        await reader.down()
        for number in range(3):
            tx.publish(message(f"{name}/a", b"%d" % number))
        with pytest.raises(BusFullError):
            tx.publish(message(f"{name}/a", b"3", token=3))
        lab.heal(f"{name}-tx")
        got = await Reader(rx).deliveries(3)
    assert [item.payload for item in got] == [b"0", b"1", b"2"]


async def test_a_request_carries_where_to_answer(lab: Lab, name: str) -> None:
    async with lab.bus(receiver(name, f"{name}/a")) as rx, lab.bus(sender(name)) as tx:
        tx.publish(
            message(f"{name}/a", response_topic=f"{name}/answers", correlation_data=b"\x00\x01")
        )
        tx.publish(message(f"{name}/a"))
        asked, plain = await Reader(rx).deliveries(2)
    assert (asked.response_topic, asked.correlation_data) == (f"{name}/answers", b"\x00\x01")
    assert (plain.response_topic, plain.correlation_data) == (None, None)


async def test_a_message_of_10_mb_is_refused_and_harms_nobody(lab: Lab, name: str) -> None:
    async with lab.bus(receiver(name, f"{name}/a")) as rx, lab.bus(sender(name)) as tx:
        reader = Reader(tx)
        tx.publish(message(f"{name}/a", bytes(10_000_000), token="big"))
        tx.publish(message(f"{name}/a", b"small", token="small"))
        events = await reader.until(lambda got: confirmed("small", got))
        (delivery,) = await Reader(rx).deliveries(1)
    assert Refused("big", "too_large", f"{name}/a") in events
    assert not any(isinstance(event, LinkDown) for event in events)
    assert delivery.payload == b"small"


async def test_a_message_of_4_mb_arrives(lab: Lab, name: str) -> None:
    payload = bytes(range(256)) * 16_384
    async with lab.bus(receiver(name, f"{name}/a")) as rx, lab.bus(sender(name)) as tx:
        tx.publish(message(f"{name}/a", payload))
        (delivery,) = await Reader(rx).deliveries(1)
    assert delivery.payload == payload


@pytest.mark.parametrize("topic", ["", "a/+/b", "a/#", "a\x00b"])
async def test_a_topic_that_cannot_be_is_refused(lab: Lab, name: str, topic: str) -> None:
    async with lab.bus(sender(name)) as tx:
        tx.publish(message(topic, token=1))
        tx.publish(message(f"{name}/a", token=2))
        events = await Reader(tx).until(lambda got: confirmed(2, got))
    assert Refused(1, "topic_invalid", topic) in events
    assert not any(isinstance(event, LinkDown) for event in events)


async def test_a_second_client_of_the_same_name_takes_over_for_good(lab: Lab, name: str) -> None:
    session = receiver(name, f"{name}/a")
    async with lab.bus(session) as first, lab.bus(session) as second:
        with pytest.raises(BusClosedError) as caught:
            await Reader(first).until(lambda _: False)
        second.publish(message(f"{name}/a", b"mine"))
        got = await Reader(second).until(lambda events: bool(messages(events)))
    assert caught.value.code == "session_taken_over"
    assert caught.value.hint
    assert messages(got)[-1].payload == b"mine"


async def test_a_bus_that_was_left_is_closed(lab: Lab, name: str) -> None:
    async with lab.bus(sender(name)) as tx:
        pass
    with pytest.raises(BusClosedError):
        await Reader(tx).until(lambda _: False)
    with pytest.raises(BusClosedError):
        tx.publish(message(f"{name}/a"))
    assert not tx.is_connected


async def test_leaving_waits_for_what_is_unconfirmed(lab: Lab, name: str) -> None:
    async with lab.bus(receiver(name, f"{name}/a")) as rx:
        async with lab.bus(sender(name)) as tx:
            for number in range(300):
                tx.publish(message(f"{name}/a", b"%d" % number))
        got = await Reader(rx, acknowledges=True).deliveries(300)
    assert len(got) == 300


async def test_a_message_that_waited_too_long_is_not_delivered(strict_lab: Lab, name: str) -> None:
    async with strict_lab.bus(sender(name)) as tx:
        async with strict_lab.bus(receiver(name, f"{name}/a")):
            pass
        tx.publish(message(f"{name}/a", b"old", expiry_s=1))
        tx.publish(message(f"{name}/a", b"good", expiry_s=3_600, token=1))
        await Reader(tx).until(lambda got: confirmed(1, got))
        await strict_lab.let_expire(2_100)
        async with strict_lab.bus(receiver(name, f"{name}/a")) as rx:
            tx.publish(message(f"{name}/a", b"new"))
            got = await Reader(rx).deliveries(2)
    assert [item.payload for item in got] == [b"good", b"new"]


async def test_filters_come_and_go_while_connected(lab: Lab, name: str) -> None:
    async with lab.bus(sender(name)) as tx, lab.bus(receiver(name, f"{name}/a")) as rx:
        tx.publish(message(f"{name}/b", b"kept", retain=True, token=1))
        await Reader(tx).until(lambda got: confirmed(1, got))
        rx.subscribe([f"{name}/b"])
        reader = Reader(rx)
        (kept,) = await reader.deliveries(1)
        rx.unsubscribe([f"{name}/a"])
        rx.publish(message(f"{name}/a", b"unheard"))
        rx.publish(message(f"{name}/b", b"heard"))
        (heard,) = await reader.deliveries(1)
    assert (kept.payload, kept.retain) == (b"kept", True)
    assert heard.payload == b"heard"


async def test_filters_that_changed_are_there_after_a_loss(lab: Lab, name: str) -> None:
    session = receiver(name, f"{name}/a", expiry_s=0)
    async with lab.bus(session) as rx, lab.bus(sender(name)) as tx:
        reader = Reader(rx)
        await reader.up()
        rx.subscribe([f"{name}/b", f"{name}/c"])
        lab.cut(f"{name}-rx")
        await reader.down()
        rx.unsubscribe([f"{name}/a", f"{name}/c"])
        rx.subscribe([f"{name}/d"])
        lab.heal(f"{name}-rx")
        await reader.up()
        for where in "abcd":
            tx.publish(message(f"{name}/{where}", where.encode()))
        got = await reader.deliveries(2)
    assert [item.payload for item in got] == [b"b", b"d"]
