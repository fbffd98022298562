"""The Home Assistant package: its templates, rendered with what a real fleet says."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fleet_client.access_probe import AccessProbe
from fleet_protocol.codec import decode
from fleet_protocol.messages import JobSubmit
from fleet_protocol.topics import SUBMIT
from tests.examples.device_site import DeviceSite
from tests.examples.granted import check_topics

FILE = Path(__file__).parents[2] / "examples" / "home_assistant" / "edgefleet.yaml"
PACKAGE: dict[str, Any] = yaml.safe_load(FILE.read_text())
[SENSOR] = PACKAGE["mqtt"]["sensor"]
[PUBLISH] = PACKAGE["script"]["fleet_ask"]["sequence"]
ASKS, ACTS = PACKAGE["automation"]
DEVICE = "home"
STATE_MAX_CHARS = 255

Published = dict[str, Any]


def render(template: str, **variables: object) -> str:
    """Render as Home Assistant does: Jinja in a sandbox, with some functions of its own."""
    environment = ImmutableSandboxedEnvironment()
    environment.filters["to_json"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["now"] = lambda: datetime(2026, 11, 22, 18, 15, 30, 123456, tzinfo=UTC)
    environment.globals["states"] = lambda _: "71.5"
    return environment.from_string(template).render(**variables).strip()


def run_script(**fields: object) -> Published:
    """Return what the script publishes; fields that are not given are not defined."""
    return {key: render(PUBLISH["data"][key], **fields) for key in ("topic", "payload")}


def run_cellar() -> Published:
    """Return what the script publishes where the automation calls it."""
    [call] = ASKS["actions"]
    assert call["action"] == "script.fleet_ask"
    rendered = {key: render(value) for key, value in call["data"].items() if key != "choices"}
    return run_script(**rendered, choices=call["data"]["choices"])


def submit_of(published: Published) -> JobSubmit:
    message = decode(SUBMIT, published["payload"].encode())
    assert isinstance(message, JobSubmit)
    return message


def test_a_question_is_a_job_with_an_id_of_its_own() -> None:
    published = run_script(question='What is "humid"?')
    assert published["topic"] == "fleet/v1/dev/home/jobs/ha-20261122-181530-123456/submit"
    assert submit_of(published).prompt == 'What is "humid"?'
    assert submit_of(published).output is None


def test_a_decision_is_one_of_its_choices() -> None:
    published = run_cellar()
    assert published["topic"] == "fleet/v1/dev/home/jobs/cellar-20261122-1815/submit"
    output = submit_of(published).output
    assert output is not None
    assert output.choices == ("yes", "no")
    assert "71.5 %" in str(submit_of(published).prompt)


def test_its_topics_are_the_catalogues_and_granted_to_a_device() -> None:
    topics = {value for key, value in SENSOR.items() if key.endswith("_topic")}
    triggers = {one["topic"] for one in ACTS["triggers"]}
    says = [run_cellar()["topic"], run_script(question="x")["topic"]]
    check_topics(DEVICE, says=says, hears=topics | triggers)
    assert {"fleet/v1/fleet/dispatcher", "fleet/v1/dev/home/jobs/+/res"} == topics


@pytest.fixture(scope="module")
def ask(site: DeviceSite) -> Callable[[Published], dict[str, Any]]:
    """Put to the fleet what was published; return the result as it is on the wire."""

    def publish(published: Published) -> dict[str, Any]:
        result = published["topic"].replace("/submit", "/res")
        filters = (SENSOR["state_topic"], SENSOR["availability_topic"])
        with AccessProbe(site.settings(DEVICE), filters, uses_mqtt5=False) as broker:
            broker.say(published["topic"], published["payload"].encode())
            broker.wait_until(lambda heard: any(topic == result for topic, _ in heard))
            told = dict(broker.heard)
        status = json.loads(told[SENSOR["availability_topic"]])
        available = render(SENSOR["availability_template"], value_json=status)
        assert available == SENSOR["payload_available"]
        return dict(json.loads(told[result]))

    return publish


def acts(result: dict[str, Any]) -> str | None:
    """Return what the automation does about a result."""
    trigger = {"payload_json": result}
    [condition], [action] = ACTS["conditions"], ACTS["actions"]
    if render(condition["value_template"], trigger=trigger) != "True":
        return None
    return render(action["action"], trigger=trigger)


@pytest.mark.broker
def test_the_sensor_shows_an_answer_and_keeps_all_of_a_long_one(
    ask: Callable[[Published], dict[str, Any]],
) -> None:
    question = "word " * 60
    result = ask(run_script(question=question))
    state = render(SENSOR["value_template"], value_json=result)
    assert state.startswith("word word")
    attributes = json.loads(render(SENSOR["json_attributes_template"], value_json=result))
    assert attributes["text"] == result["text"]
    assert (attributes["status"], attributes["answered_by"]) == ("ok", "edge")
    assert acts(result) is None


def test_a_state_is_never_longer_than_home_assistant_takes() -> None:
    for result in ({"status": "ok", "text": "word " * 99}, {"status": "failed", "code": "expired"}):
        assert len(render(SENSOR["value_template"], value_json=result)) <= STATE_MAX_CHARS


@pytest.mark.broker
def test_the_automation_acts_on_the_answer(ask: Callable[[Published], dict[str, Any]]) -> None:
    # Without a model the first choice that the question names is the answer: "yes".
    result = ask(run_cellar())
    assert acts(result) == "switch.turn_on"
    assert acts({**result, "text": "no"}) == "switch.turn_off"


@pytest.mark.broker
@pytest.mark.parametrize("change", [{"degraded": True}, {"status": "failed"}, {"text": "maybe"}])
def test_the_automation_leaves_the_switch_alone_otherwise(
    ask: Callable[[Published], dict[str, Any]], change: dict[str, Any]
) -> None:
    assert acts({**ask(run_cellar()), **change}) is None
