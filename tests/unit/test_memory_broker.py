"""What the broker in memory does on demand, the same way for the same seed."""

from __future__ import annotations

import pytest

from fleet_protocol.bus import Confirmed, Delivery, LinkDown, LinkUp, Publication, Refused, Session
from fleet_protocol.errors import RetryableError
from fleet_protocol.memory import Faults, MemoryBroker, MemoryBus
from fleet_protocol.memory_broker import matches


def receiver(**fields: object) -> Session:
    return Session(client_id="rx", subscriptions=("a/#",), expiry_s=60, **fields)  # type: ignore[arg-type]  # a test's shorthand


async def payloads(broker: MemoryBroker, *, qos: int = 1, count: int = 200) -> list[bytes]:
    """Send numbered messages and return what arrives."""
    async with (
        MemoryBus(broker, receiver()) as rx,
        MemoryBus(broker, Session(client_id="tx")) as tx,
    ):
        for number in range(count):
            tx.publish(Publication(topic="a/b", payload=b"%d" % number, qos=qos))
        events = await rx.receive()
    return [event.payload for event in events if isinstance(event, Delivery)]


@pytest.mark.parametrize(
    ("faults", "qos"),
    [
        (Faults(loss=0.3), 0),
        (Faults(forgetting=0.3), 1),
        (Faults(duplication=0.3), 1),
        (Faults(reordering=0.3), 1),
    ],
)
async def test_faults_happen_as_often_as_asked_and_the_same_for_a_seed(
    faults: Faults, qos: int
) -> None:
    once = await payloads(MemoryBroker(seed=3, faults=faults), qos=qos)
    again = await payloads(MemoryBroker(seed=3, faults=faults), qos=qos)
    other = await payloads(MemoryBroker(seed=4, faults=faults), qos=qos)
    wanted = [b"%d" % number for number in range(200)]
    assert once == again
    assert once != other
    assert once != wanted
    lost, doubled = len(set(wanted) - set(once)), len(once) - len(set(once))
    if faults.loss or faults.forgetting:
        assert 30 < lost < 90
    elif faults.duplication:
        assert (lost, 30 < doubled < 90) == (0, True)
    else:
        assert sorted(once) == sorted(wanted)


async def test_without_faults_everything_arrives_once_and_in_order() -> None:
    assert await payloads(MemoryBroker()) == [b"%d" % number for number in range(200)]


async def test_amnesia_loses_sessions_and_retained_messages_but_no_client() -> None:
    broker = MemoryBroker()
    will = Publication(topic="a/will", payload=b"gone")
    async with (
        MemoryBus(broker, receiver(will=will)) as rx,
        MemoryBus(broker, Session(client_id="tx")) as tx,
    ):
        tx.publish(Publication(topic="a/kept", payload=b"x", retain=True))
        await rx.receive()
        broker.forget_everything()
        events = await rx.receive()
        tx.publish(Publication(topic="a/new", payload=b"y"))
        (delivery,) = await rx.receive()
    assert [type(event) for event in events] == [LinkDown, LinkUp]
    assert events[1] == LinkUp(session_present=False)
    assert isinstance(delivery, Delivery)
    assert delivery.topic == "a/new"
    assert broker.retained("a/kept") is None


async def test_a_session_ends_when_its_time_is_over() -> None:
    broker = MemoryBroker()
    async with MemoryBus(broker, Session(client_id="tx")) as tx:
        async with MemoryBus(broker, receiver()):
            pass
        tx.publish(Publication(topic="a/b", payload=b"x"))
        broker.advance(60_000)
        async with MemoryBus(broker, receiver()) as rx:
            assert await rx.receive() == [LinkUp(session_present=False)]


async def test_a_retained_message_ends_when_its_time_is_over() -> None:
    broker = MemoryBroker()
    async with MemoryBus(broker, Session(client_id="tx")) as tx:
        tx.publish(Publication(topic="a/b", payload=b"x", retain=True, expiry_s=2))
        broker.advance(1_999)
        assert broker.retained("a/b") == b"x"
        broker.advance(1)
        assert broker.retained("a/b") is None


async def test_a_denied_topic_is_refused_for_that_client_only() -> None:
    broker = MemoryBroker()
    broker.deny("tx", "a/#")
    async with (
        MemoryBus(broker, receiver()) as rx,
        MemoryBus(broker, Session(client_id="tx")) as tx,
    ):
        tx.publish(Publication(topic="a/b", payload=b"", token=1))
        rx.publish(Publication(topic="a/b", payload=b"", token=2))
        assert Refused(1, "not_authorized", "a/b") in await tx.receive()
        assert Confirmed(2) in await rx.receive()


async def test_a_stopped_broker_takes_nobody_in_and_keeps_its_sessions() -> None:
    broker = MemoryBroker()
    async with MemoryBus(broker, receiver()) as rx:
        broker.stop()
        with pytest.raises(RetryableError) as caught:
            async with MemoryBus(broker, Session(client_id="tx")):
                pass
        broker.start()
        events = await rx.receive()
    assert caught.value.code == "broker_unreachable"
    assert events[-1] == LinkUp(session_present=True)


@pytest.mark.parametrize(
    ("pattern", "topic", "is_match"),
    [
        ("a", "a", True),
        ("a", "a/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/", True),
        ("a/+", "a/b/c", False),
        ("+", "a", True),
        ("+/+", "/a", True),
        ("#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "ab", False),
        ("a/+/c", "a/b/c", True),
        ("a/+/#", "a", False),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
    ],
)
def test_filters_match_as_mqtt_says(pattern: str, topic: str, is_match: bool) -> None:  # noqa: FBT001  # a case
    assert matches(pattern, topic) is is_match
