"""The catalogue of topics: written and read below one root."""

from __future__ import annotations

import pytest

from fleet_protocol import topics
from fleet_protocol.errors import ConfigError, ProtocolError
from fleet_protocol.topics import CATALOGUE, Channel, Role, Topics

IDS = ("owner-1", "job_2")


def ids_of(channel: Channel) -> tuple[str, ...]:
    return IDS[: channel.template.count("{")]


@pytest.mark.parametrize("root", ["fleet/v1", "f", "site-7/fleet/v1"])
@pytest.mark.parametrize("channel", CATALOGUE, ids=lambda channel: channel.name)
def test_every_topic_that_is_written_is_read_as_what_it_was(channel: Channel, root: str) -> None:
    names, ids = Topics(root), ids_of(channel)
    address = names.parse(names.name(channel, *ids))
    assert address.channel is channel
    assert (address.owner, address.job) == (*ids, "", "")[:2]


def test_no_two_channels_share_a_name_or_a_shape() -> None:
    assert len({channel.name for channel in CATALOGUE}) == len(CATALOGUE)
    assert len(Topics()._by_shape) == len(CATALOGUE)


def test_a_filter_leaves_open_what_is_not_given() -> None:
    names = Topics("r")
    assert names.filter(topics.SUBMIT) == "r/dev/+/jobs/+/submit"
    assert names.filter(topics.SUBMIT, "d1") == "r/dev/d1/jobs/+/submit"
    assert names.filter(topics.DISPATCHER) == "r/fleet/dispatcher"


@pytest.mark.parametrize(
    "bad", ["", "a b", "+", "#", "ä", "x" * 37, "a.b", "a\x00", "a\n", "$SYS", "%2F"]
)
@pytest.mark.parametrize("channel", [topics.SUBMIT, topics.ASSIGN, topics.ROSTER, topics.ALERTS])
def test_an_id_with_other_characters_is_refused(channel: Channel, bad: str) -> None:
    ids = (bad, *ids_of(channel)[1:])
    with pytest.raises(ProtocolError) as caught:
        Topics().parse(Topics().name(channel, *ids))
    assert caught.value.code == "invalid_id"


@pytest.mark.parametrize("at", [0, 1])
def test_an_id_with_a_slash_names_no_channel(at: int) -> None:
    ids = ["d1", "j1"]
    ids[at] = "a/b"
    with pytest.raises(ProtocolError) as caught:
        Topics().parse(Topics().name(topics.SUBMIT, *ids))
    assert caught.value.code == "unknown_topic"


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        "fleet/v1",
        "fleet/v1/",
        "fleet/v1/dev",
        "fleet/v1/dev/d1",
        "fleet/v1/dev/d1/jobs/1/other",
        "fleet/v1/dev/d1/jobs/1/submit/more",
        "fleet/v2/dev/d1/ask",
        "other/fleet/v1/dev/d1/ask",
        "fleet/v1/fleet",
        "fleet/v1/fleet/roster",
        "fleet/v1/fleet/roster/1/2",
        "dev/d1/ask",
        "fleet/v1" + "/x" * 5_000,
    ],
)
def test_a_topic_of_no_channel_is_refused_by_name(topic: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        Topics().parse(topic)
    assert caught.value.code == "unknown_topic"
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("root", ["", "/", "a/", "/a", "a//b", "a/+", "#", "$SYS/x", "a\x00", " a"])
def test_a_root_that_cannot_be_is_refused(root: str) -> None:
    with pytest.raises(ConfigError):
        Topics(root)


@pytest.mark.parametrize("channel", [topics.ANSWER, topics.ACK, topics.TOKENS, topics.RESULT])
def test_a_reply_may_go_where_the_dispatcher_speaks_to_the_device(channel: Channel) -> None:
    assert Topics().accepts_reply(
        "d1", Topics().name(channel, *("d1", "j1")[: len(ids_of(channel))])
    )


def test_a_reply_may_go_to_a_topic_of_the_devices_own() -> None:
    assert Topics().accepts_reply("d1", "fleet/v1/dev/d1/replies/42")


@pytest.mark.parametrize(
    "topic",
    [
        "fleet/v1/dev/d2/answer",
        "fleet/v1/dev/d10/answer",
        "fleet/v1/dev/d1",
        "fleet/v1/dev/d1x/answer",
        "fleet/v1/workers/w1/assign",
        "fleet/v1/workers/d1/cancel",
        "fleet/v1/fleet/dispatcher",
        "fleet/v1/admin/me/req",
        "homes/7/door/open",
        "$SYS/broker",
        "",
        "fleet/v1/dev/d1/+",
        "fleet/v1/dev/d1/#",
        "fleet/v1/dev/d1/a\x00b",
        "fleet/v1/dev/d1/" + "x" * 600,
    ],
)
def test_a_reply_may_not_go_where_the_device_itself_could_not_publish(topic: str) -> None:
    assert not Topics().accepts_reply("d1", topic)


@pytest.mark.parametrize(
    "channel", [topics.ASK, topics.SUBMIT, topics.CANCEL], ids=lambda channel: channel.name
)
def test_a_reply_may_not_go_where_the_dispatcher_listens(channel: Channel) -> None:
    topic = Topics().name(channel, *("d1", "j1")[: len(ids_of(channel))])
    assert channel.sender is Role.DEVICE
    assert not Topics().accepts_reply("d1", topic)


def test_a_reply_may_not_go_to_a_topic_with_a_bad_job_id() -> None:
    assert not Topics().accepts_reply("d1", "fleet/v1/dev/d1/jobs/a b/submit")


def test_fleets_that_share_a_broker_have_clients_of_their_own() -> None:
    assert Topics().client_id("w1") == "w1"
    assert Topics("lab/v1").client_id("w1") != Topics("hall/v1").client_id("w1")
