"""What a page may say to the broker: its role's share of the topics, however it is sent."""

from __future__ import annotations

import mqtt5
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloud_dispatcher.adapters.http.page_traffic import PacketCutter, PageTraffic
from fleet_protocol.access import Access, Grant, Identity, grants_of, matches
from fleet_protocol.errors import ProtocolError, RejectedError
from fleet_protocol.topics import CATALOGUE, Role, Topics

TOPICS = Topics()
ROOT = TOPICS.root
OWN = {role: f"page-{role}" for role in (Role.VIEWER, Role.OPERATOR, Role.ADMIN)}


def traffic(role: Role) -> PageTraffic:
    return PageTraffic(grants_of(TOPICS, Identity(role=role, id=OWN[role])))


def says(role: Role, topic: str) -> bool:
    packet = mqtt5.PublishPacket(topic, b"{}", qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=1)
    return passes(role, packet)


def hears(role: Role, *patterns: str) -> bool:
    wanted = [mqtt5.TopicFilter(pattern) for pattern in patterns]
    return passes(role, mqtt5.SubscribePacket(1, wanted))


def passes(role: Role, packet: mqtt5.Packet) -> bool:
    try:
        traffic(role).check(packet)
    except RejectedError:
        return False
    return True


@pytest.mark.parametrize("role", OWN)
def test_a_page_says_nothing_but_its_own_requests(role: Role) -> None:
    for channel in CATALOGUE:
        for name in (OWN[role], "w1", "d1"):
            ids = (name, "job-1")[: channel.template.count("{")]
            own = channel.template.startswith(f"{role}/") and name == OWN[role]
            is_request = own and channel.template.endswith("/req")
            assert says(role, TOPICS.name(channel, *ids)) is is_request, channel.template


@pytest.mark.parametrize("role", OWN)
def test_a_page_hears_the_fleet_and_its_own_replies(role: Role) -> None:
    for topic in ("fleet/summary", "fleet/roster/+", "fleet/alerts/+", "workers/w1/state"):
        assert hears(role, f"{ROOT}/{topic}")
    assert hears(role, f"{ROOT}/{role}/{OWN[role]}/res")


@pytest.mark.parametrize(
    "pattern",
    ["#", "+/#", "dev/#", "dev/+/jobs/+/res", "dev/d1/answer", "workers/+/assign", "workers/#",
     "workers/w1/+", "admin/ann/res", "admin/+/res", "operator/page-other/res", "fleet/#",
     "fleet/+", "$share/g/fleet/summary", ""],
)  # fmt: skip
@pytest.mark.parametrize("role", OWN)
def test_nobodys_page_hears_questions_answers_or_others(role: Role, pattern: str) -> None:
    assert not hears(role, f"{ROOT}/{pattern}")
    assert not hears(role, f"{ROOT}/fleet/summary", f"{ROOT}/{pattern}")
    assert not hears(role, pattern)


def test_a_topic_that_hides_behind_an_alias_is_refused() -> None:
    assert says(Role.ADMIN, f"{ROOT}/admin/page-admin/req")
    packet = mqtt5.PublishPacket("", b"{}", topic_alias=1)
    assert not passes(Role.ADMIN, packet)


def test_a_request_that_would_be_done_again_after_a_restart_is_refused() -> None:
    packet = mqtt5.PublishPacket(f"{ROOT}/admin/page-admin/req", b"{}", retain=True)
    assert not passes(Role.ADMIN, packet)


@pytest.mark.parametrize(
    "packet", [mqtt5.ConnectPacket("again"), mqtt5.AuthPacket(), mqtt5.ConnAckPacket()]
)
def test_what_no_page_sends_twice_or_ever_is_refused(packet: mqtt5.Packet) -> None:
    assert not passes(Role.ADMIN, packet)
    assert passes(Role.VIEWER, mqtt5.PingReqPacket())
    assert passes(Role.VIEWER, mqtt5.DisconnectPacket())


def _filters() -> st.SearchStrategy[str]:
    plain = st.lists(st.sampled_from(["a", "b", "+"]), min_size=1, max_size=4)
    return st.builds(lambda levels, end: "/".join([*levels, *end]), plain,
                     st.sampled_from([(), ("#",)]))  # fmt: skip


@example("a/+/#", "a/#", ["a"])
@given(_filters(), _filters(), st.lists(st.sampled_from("ab"), min_size=1, max_size=5))
def test_whatever_a_filter_that_passes_matches_was_granted(
    granted: str, wanted: str, levels: list[str]
) -> None:
    grant = (Grant(Access.SUBSCRIBE, granted),)
    packet = mqtt5.SubscribePacket(1, [mqtt5.TopicFilter(wanted)])
    topic = "/".join(levels)
    try:
        PageTraffic(grant).check(packet)
    except RejectedError:
        assert granted not in {wanted, "#"}
    else:
        assert not matches(wanted, topic) or matches(granted, topic)


@given(st.lists(st.integers(1, 40), max_size=60))
def test_packets_are_cut_the_same_however_they_arrive(sizes: list[int]) -> None:
    packets = [
        mqtt5.ConnectPacket("c"),
        mqtt5.PublishPacket("t", bytes(200)),
        mqtt5.PingReqPacket(),
        mqtt5.SubscribePacket(7, [mqtt5.TopicFilter("a/+")]),
    ]
    stream = b"".join(packet.write() for packet in packets)
    cutter, found, at = PacketCutter(), list[bytes](), 0
    for size in [*sizes, len(stream)]:
        found += [raw for _, raw in cutter.take(stream[at : at + size])]
        at += size
    assert found == [packet.write() for packet in packets]


@pytest.mark.parametrize(
    "said", [b"\x30\xff\xff\xff\xff\x7f", b"\x00\x00", b"\x30\xff\xff\xff\x7f"]
)
def test_what_is_too_large_or_no_mqtt_is_given_up_at_once(said: bytes) -> None:
    with pytest.raises(ProtocolError):
        PacketCutter().take(said)
