"""The access list on a real broker: what is forbidden is not delivered, in MQTT 3.1.1 and 5."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleet_cli.acl_trial
from fleet_cli.__main__ import run
from fleet_cli.acl_file import render_acl
from fleet_cli.acl_trial import CAST, try_out
from fleet_cli.broker import BrokerKind, BrokerOptions, BrokerProcess
from fleet_cli.exits import ExitCode
from fleet_client.access_probe import AccessProbe
from fleet_protocol.access import Access
from fleet_protocol.settings import BrokerSettings
from fleet_protocol.topics import Role, Topics
from tests.conftest import require

pytestmark = pytest.mark.broker
WORDS = {one.id: f"word of {one.id}" for one in CAST}


@pytest.fixture(autouse=True)
def _mosquitto_is_there() -> None:
    require(BrokerKind.MOSQUITTO.is_installed, "mosquitto")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    options = BrokerOptions(passwords=WORDS, acl=render_acl(Topics(), CAST))
    with BrokerProcess(BrokerKind.MOSQUITTO, tmp_path / "broker", options=options) as process:
        yield process


def probe(broker: BrokerProcess, name: str, *filters: str, uses_mqtt5: bool = True) -> AccessProbe:
    settings = BrokerSettings(url=broker.url, username=name, password=WORDS[name])
    return AccessProbe(settings, filters, uses_mqtt5=uses_mqtt5)


def test_every_role_can_do_what_it_may_and_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["acl", "test", "--json"]) == ExitCode.OK, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert found["mqtt"] == ["3.1.1", "5"]
    cells = {(cell["id"], cell["topic"]): cell for cell in found["cells"]}
    assert cells["w1", "fleet/v1/workers/w1/presence"]["publish"]
    assert not cells["v1", "fleet/v1/dev/d1/ask"]["subscribe"]


def test_a_hole_in_the_list_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(topics: Topics, identities: object) -> str:
        assert identities == CAST
        text = render_acl(topics, CAST)
        text = text.replace("user v1\n", "user v1\ntopic read fleet/v1/dev/+/ask\n")
        return text.replace("topic write fleet/v1/workers/w1/held\n", "")

    monkeypatch.setattr(fleet_cli.acl_trial, "render_acl", leaky)
    found = {
        (one.mqtt, one.id, one.topic.removeprefix("fleet/v1/"), one.access, one.happened)
        for one in try_out(Topics(), tmp_path / "broker")
    }
    assert found == {
        expected
        for mqtt in ("3.1.1", "5")
        for expected in (
            (mqtt, "v1", "dev/d1/ask", Access.SUBSCRIBE, True),
            (mqtt, "v1", "dev/d2/ask", Access.SUBSCRIBE, True),
            (mqtt, "w1", "workers/w1/held", Access.PUBLISH, False),
        )
    }


@pytest.mark.parametrize("uses_mqtt5", [False, True])
def test_what_was_retained_before_is_not_delivered_either(
    broker: BrokerProcess, *, uses_mqtt5: bool
) -> None:
    login = ["-h", "127.0.0.1", "-p", str(broker.port), "-u", "dispatcher", "-P"]
    kept = ["-t", "fleet/v1/workers/w1/desired", "-r", "-q", "1", "-m", "kept"]
    pub = ["mosquitto_pub", *login, WORDS["dispatcher"], *kept]
    subprocess.run(pub, check=True, timeout=30)
    heard = {}
    for name in ("w1", "v1", "d1"):
        with (
            probe(broker, name, "fleet/v1/#", uses_mqtt5=uses_mqtt5) as one,
            probe(broker, "dispatcher", "none") as dispatcher,
        ):
            dispatcher.say("fleet/v1/fleet/dispatcher", b"end")
            heard[name] = {payload for _, payload in one.heard_until(b"end")}
    assert heard == {"w1": {b"kept"}, "v1": set(), "d1": set()}


def test_a_refused_publication_is_told_in_mqtt_5_alone(broker: BrokerProcess) -> None:
    topic = "fleet/v1/workers/w1/presence"
    with (
        probe(broker, "d1", "none") as five,
        probe(broker, "d1", "none", uses_mqtt5=False) as three,
    ):
        assert not five.say(topic, b"{}")
        assert three.say(topic, b"{}")


def test_the_cast_has_every_role() -> None:
    assert {one.role for one in CAST} == set(Role)
