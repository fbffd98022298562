"""Who may say and hear what: the rules, before any broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet_cli.__main__ import run
from fleet_cli.acl_file import read_identities, render_acl
from fleet_cli.acl_trial import CAST, matrix
from fleet_cli.exits import ExitCode
from fleet_protocol.access import Access, Identity, grants_of, matches, may
from fleet_protocol.errors import ConfigError
from fleet_protocol.messages import Assignment, JobDone, JobResult, JobSubmit
from fleet_protocol.roles import LADDER
from fleet_protocol.topics import CATALOGUE, Channel, Role, Topics

TOPICS = Topics()
ROLES = {one.role: one for one in CAST}


def allowed(role: Role, access: Access, topic: str) -> bool:
    return may(grants_of(TOPICS, ROLES[role]), access, f"fleet/v1/{topic}")


@pytest.mark.parametrize("channel", CATALOGUE, ids=lambda channel: channel.name)
def test_a_channel_is_open_to_its_sender_and_its_receivers(channel: Channel) -> None:
    own = {"{device}": "d1", "{worker}": "w1"}
    own |= {"{viewer}": "v1", "{operator}": "o1", "{admin}": "a1"}
    topic = channel.template
    for place, name in {**own, "{job}": "1", "{shard}": "1", "{alert}": "1"}.items():
        topic = topic.replace(place, name)
    assert allowed(channel.sender, Access.PUBLISH, topic)
    for role in channel.receivers:
        assert allowed(role, Access.SUBSCRIBE, topic)
    for role in set(Role) - {channel.sender, Role.DISPATCHER}:
        assert not allowed(role, Access.PUBLISH, topic)


def test_a_device_cannot_speak_as_a_worker() -> None:
    for cell in matrix(TOPICS):
        if cell.role is Role.DEVICE:
            assert not (cell.publish and "/workers/" in cell.topic), cell


def test_nobody_touches_what_is_anothers() -> None:
    names = ("d2", "v2", "o2", "a2")
    others = [cell for cell in matrix(TOPICS) if any(f"/{n}/" in cell.topic for n in names)]
    assert len(others) >= 13 * len(CAST)
    for cell in others:
        assert cell.role is Role.DISPATCHER or not (cell.publish or cell.subscribe), cell
    assert not allowed(Role.WORKER, Access.PUBLISH, "workers/w2/presence")
    assert not allowed(Role.WORKER, Access.SUBSCRIBE, "workers/w2/assign")


def test_nobody_who_looks_after_the_fleet_hears_a_prompt_or_an_answer() -> None:
    secret = {JobSubmit, Assignment, JobDone, JobResult}
    prompts = [channel for channel in CATALOGUE if channel.message in secret]
    assert len(prompts) >= 5
    for channel in prompts:
        topic = TOPICS.filter(channel, "x").replace("+", "1")
        for role in LADDER:
            assert not may(grants_of(TOPICS, ROLES[role]), Access.SUBSCRIBE, topic)


@pytest.mark.parametrize("role", LADDER)
def test_who_looks_after_the_fleet_says_nothing_but_its_own_requests(role: Role) -> None:
    grants = grants_of(TOPICS, ROLES[role])
    said = [grant.filter for grant in grants if grant.access is Access.PUBLISH]
    assert said == [f"fleet/v1/{role}/{ROLES[role].id}/req"]


def test_a_device_hears_the_answers_at_topics_of_its_own_choice_below_its_own() -> None:
    assert allowed(Role.DEVICE, Access.SUBSCRIBE, "dev/d1/reply/to/me")
    assert allowed(Role.DISPATCHER, Access.PUBLISH, "dev/d1/reply/to/me")
    assert not allowed(Role.DEVICE, Access.SUBSCRIBE, "dev/d10/reply")


@pytest.mark.parametrize(
    ("pattern", "topic", "does_match"),
    [
        ("a/+/c", "a/b/c", True),
        ("a/+/c", "a/b/d", False),
        ("a/+", "a/b/c", False),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "ab/c", False),
        ("a/b", "a", False),
    ],
)
def test_filters_match_as_in_mqtt(pattern: str, topic: str, *, does_match: bool) -> None:
    assert matches(pattern, topic) is does_match


def test_the_list_has_lines_for_each_identity_and_no_patterns() -> None:
    text = render_acl(Topics("site/a"), CAST)
    assert "pattern" not in text
    for one in CAST:
        assert f"\nuser {one.id}\n" in text
    lines = text.split("user w1\n")[1].split("\n\n")[0].splitlines()
    assert "topic write site/a/workers/w1/presence" in lines
    assert "topic read site/a/workers/w1/#" in lines
    assert not [line for line in lines if "dev/" in line]


def test_one_id_is_one_identity() -> None:
    twice = [Identity(role=Role.WORKER, id="x"), Identity(role=Role.DEVICE, id="x")]
    with pytest.raises(ConfigError) as caught:
        render_acl(TOPICS, twice)
    assert caught.value.code == "duplicate_id"
    with pytest.raises(ConfigError) as caught:
        render_acl(TOPICS, [Identity(role=Role.DEVICE, id="x\ntopic read #")])
    assert caught.value.code == "invalid_id"


@pytest.mark.parametrize(
    "text",
    [
        "role,id,place\nworker,pi-1,hall\ndevice,door,\n",
        '{"role":"worker","id":"pi-1","place":"hall"}\n\n{"role":"device","id":"door"}\n',
    ],
)
def test_lists_are_csv_or_json_lines(tmp_path: Path, text: str) -> None:
    (tmp_path / "list").write_text(text)
    assert read_identities(tmp_path / "list") == (
        Identity(role=Role.WORKER, id="pi-1"),
        Identity(role=Role.DEVICE, id="door"),
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("role,id\nworker,pi-1\nboss,door\n", "line 3"),
        ("role,id\nworker,pi 1\n", "line 2"),
        ("role,id\nworker\n", "line 2"),
        ('{"role":"worker","id":"pi-1"}\n{"role":', "line 2"),
    ],
)
def test_a_bad_line_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: str
) -> None:
    (tmp_path / "list").write_text(text)
    assert run(["acl", "render", str(tmp_path / "list")]) == ExitCode.USAGE
    told = capsys.readouterr()
    assert line in told.err
    assert told.out == ""


def test_a_list_without_a_dispatcher_gets_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list").write_text("role,id\nworker,pi-1\n")
    assert run(["acl", "render", str(tmp_path / "list")]) == ExitCode.OK
    assert "user dispatcher\n" in capsys.readouterr().out
    (tmp_path / "list").write_text("role,id\ndispatcher,main\n")
    assert run(["acl", "render", str(tmp_path / "list")]) == ExitCode.OK
    assert "user dispatcher\n" not in capsys.readouterr().out
