"""Bad input against a running fleet: a clear word with a code, and nothing is lost."""

import json
from collections.abc import Iterator

import pytest

from fleet_cli.broker import BrokerKind
from tests.integration.fleet import Device, Fleet

pytestmark = [pytest.mark.broker]


@pytest.fixture(scope="module", params=list(BrokerKind))
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("bad"), request.param) as one:
        device = one.device()
        one.start_dispatcher()
        one.start_worker("w1", engine="echo")
        one.online(device, "w1")
        yield one


@pytest.fixture
def device(running: Fleet) -> Device:
    return running.devices[0]


def refused(device: Device, job: str) -> dict[str, str]:
    device.wait(lambda: device.said(job, "ack"), f"a word on {job}")
    ack = device.said(job, "ack")[0]
    assert ack["status"] == "rejected"
    assert ack["message"], "a person must be told what to do next"
    return ack


def still_works(device: Device, job: str) -> None:
    device.submit(job, prompt="still there?", max_tokens=4)
    assert device.result(job)["status"] == "ok"


@pytest.mark.parametrize(
    ("name", "payload", "code"),
    [
        ("garbage", b"\xff\x00\xfe garbage \x80", "malformed"),
        ("half", b'{"prompt": "hi', "malformed"),
        ("nested", b'{"more": ' + b"[" * 50_000, "malformed"),
        ("types", b'{"prompt": 7}', "invalid_field"),
        ("empty", b"{}", "invalid_field"),
        ("none", b"", "malformed"),
        ("both", b'{"prompt":"a","messages":[{"role":"user","content":"b"}]}', "invalid_field"),
        ("version", b'{"v": 2, "prompt": "hi"}', "unsupported_version"),
        ("deadline", b'{"prompt": "hi", "deadline_ms": -5}', "invalid_field"),
        ("priority", b'{"prompt": "hi", "priority": 10}', "invalid_field"),
        ("model", b'{"prompt": "hi", "model": "gpt-17"}', "unknown_model"),
        ("large", b'{"prompt": "' + b"x" * 1_000_000 + b'"}', "too_large"),
    ],
)
def test_a_bad_submission_is_refused_with_its_code(
    device: Device, name: str, payload: bytes, code: str
) -> None:
    device.publish(f"dev/d1/jobs/{name}/submit", payload)
    assert refused(device, name)["code"] == code
    still_works(device, f"after-{name}")


def test_ten_megabytes_harm_nobody_else(running: Fleet, device: Device) -> None:
    # A broker may end the connection of who sends them, so that is somebody else.
    running.device("d2").publish("dev/d2/jobs/huge/submit", b"x" * 10_000_000)
    still_works(device, "after-huge")


@pytest.mark.parametrize("job", ["a b", "a.b", "x" * 37, "ä"])
def test_an_unusable_job_id_is_refused(device: Device, job: str) -> None:
    device.publish(f"dev/d1/jobs/{job}/submit", '{"prompt":"hi"}')
    assert refused(device, job)["code"] == "invalid_id"


def test_a_job_id_with_a_slash_is_another_topic_and_reaches_nobody(device: Device) -> None:
    device.publish("dev/d1/jobs/a/b/submit", '{"prompt":"hi"}')
    still_works(device, "after-slash")
    assert not device.said("a/b", "ack")


def test_a_job_id_with_a_wildcard_cannot_be_published(device: Device) -> None:
    with pytest.raises(ValueError, match="wildcard"):
        device.publish("dev/d1/jobs/a+b/submit", '{"prompt":"hi"}')


def test_a_prompt_beyond_every_context_ends_with_a_reason(device: Device) -> None:
    words = " ".join(f"word{i}" for i in range(20_000))
    device.submit("long", prompt=words)
    result = device.result("long")
    assert result["status"] == "failed"
    assert result["reason"] == "too_long"
    assert result["code"] == "no_provider"
    assert "DEEPSEEK_API_KEY" in result["message"]


@pytest.mark.parametrize(
    "topic",
    ["workers/w1/state", "workers/w1/info", "workers/w1/presence", "workers/w1/jobs/x/done"],
)
def test_garbage_from_a_worker_is_dropped(device: Device, topic: str) -> None:
    device.publish(topic, b"\xffgarbage")
    still_works(device, f"after-{topic.replace('/', '-')}"[:36])


def test_garbage_to_a_worker_is_dropped(device: Device) -> None:
    device.publish("workers/w1/assign", b"\xffgarbage")
    device.publish("workers/w1/assign", json.dumps({"v": 9, "job": "x"}))
    still_works(device, "after-assign")
