"""Clients that know nothing of us: Mosquitto's own command line tools, MQTT 3.1.1 and 5."""

import json
import subprocess
from collections.abc import Iterator

import pytest

from fleet_cli.broker import BrokerKind
from tests.integration.fleet import ROOT, Fleet

pytestmark = [pytest.mark.broker]


@pytest.fixture(scope="module", params=list(BrokerKind))
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("plain"), request.param) as one:
        device = one.device("watcher")
        one.start_dispatcher()
        one.start_worker("w1", engine="echo")
        one.online(device, "w1")
        yield one


def port_v3(running: Fleet) -> str:
    return running.broker.url_v3.rsplit(":", 1)[1]


def tool(name: str, *words: str, version: str = "mqttv311", port: str) -> list[str]:
    return [name, "-h", "127.0.0.1", "-p", port, "-V", version, *words]


def listen(topic: str, count: int, *, port: str) -> subprocess.Popen[str]:
    words = ["-t", f"{ROOT}/{topic}", "-q", "1", "-C", str(count), "-W", "30", "-F", "%t %p", "-d"]
    # Its output is a pipe here: without line buffering it would keep "Subscribed" to itself.
    command = ["stdbuf", "-oL", *tool("mosquitto_sub", *words, port=port)]
    listener = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert listener.stdout
    for line in listener.stdout:
        if "Subscribed" in line:
            break
    return listener


def publish(topic: str, text: str, *, port: str) -> None:
    words = ["-t", f"{ROOT}/{topic}", "-q", "1", "-m", text]
    subprocess.run(tool("mosquitto_pub", *words, port=port), check=True, timeout=30)


def heard(listener: subprocess.Popen[str]) -> list[tuple[str, str]]:
    assert listener.stdout
    with listener:  # mosquitto_sub ends by itself, after its count of messages or its 30 s
        lines = [line.rstrip("\n") for line in listener.stdout if line.startswith(ROOT)]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def test_a_plain_question_gets_a_plain_answer(running: Fleet) -> None:
    port = port_v3(running)
    listener = listen("dev/x/answer", 1, port=port)
    publish("dev/x/ask", "what a fine day", port=port)
    [(topic, text)] = heard(listener)
    assert topic == f"{ROOT}/dev/x/answer"
    assert "what a fine day" in text


def test_a_submission_is_acknowledged_and_answered(running: Fleet) -> None:
    port = port_v3(running)
    listener = listen("dev/x/jobs/1/+", 3, port=port)
    publish("dev/x/jobs/1/submit", '{"prompt":"good morning","max_tokens":8}', port=port)
    told = {topic.rsplit("/", 1)[1]: json.loads(text) for topic, text in heard(listener)}
    assert set(told) == {"submit", "ack", "res"}
    assert told["ack"]["status"] == "accepted"
    assert told["res"]["status"] == "ok"
    assert told["res"]["answered_by"] == "edge"
    assert told["res"]["worker"] == "w1"


def test_a_malformed_submission_is_rejected_with_a_code(running: Fleet) -> None:
    port = port_v3(running)
    listener = listen("dev/x/jobs/2/ack", 1, port=port)
    publish("dev/x/jobs/2/submit", "not json at all", port=port)
    [(_, text)] = heard(listener)
    assert json.loads(text)["status"] == "rejected"
    assert json.loads(text)["code"] == "malformed"


def request(
    running: Fleet, topic: str, reply: str, text: str, *, wait_s: int = 15
) -> subprocess.CompletedProcess[str]:
    port = running.broker.url.rsplit(":", 1)[1]
    words = ["-t", f"{ROOT}/{topic}", "-e", f"{ROOT}/{reply}", "-q", "1", "-m", text]
    return subprocess.run(
        tool("mosquitto_rr", *words, "-W", str(wait_s), version="mqttv5", port=port),
        capture_output=True, text=True, timeout=40, check=False,
    )  # fmt: skip


def test_a_request_with_a_response_topic_gets_its_result_there(running: Fleet) -> None:
    text = '{"prompt":"good evening","max_tokens":8}'
    answer = request(running, "dev/x/jobs/3/submit", "dev/x/reply", text)
    result = json.loads(answer.stdout)
    assert result["status"] == "ok"
    assert result["id"] == "3"


def test_a_plain_question_with_a_response_topic_is_answered_there_too(running: Fleet) -> None:
    assert "hello there" in request(running, "dev/x/ask", "dev/x/reply", "hello there").stdout


def test_a_response_topic_of_somebody_else_is_refused(running: Fleet) -> None:
    port = port_v3(running)
    listener = listen("dev/x/jobs/4/ack", 1, port=port)
    answer = request(running, "dev/x/jobs/4/submit", "dev/y/reply", '{"prompt":"hi"}', wait_s=2)
    assert answer.stdout == ""
    [(_, text)] = heard(listener)
    assert json.loads(text)["code"] == "response_topic_refused"
