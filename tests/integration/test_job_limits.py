"""Limits on a job's time, labels and rates, in a fleet of real processes."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.fleet import Device, Fleet, fleet

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

# Three hundred words, whatever the model thinks of it: seconds of steady progress.
LONG = {
    "prompt": "Words, please.",
    "output": {"regex": "(?:[a-z]{2,6} ){300}"},
    "max_tokens": 1_500,
    "escalate": "never",
    "stream": True,
}
ECHO = {"prompt": "Is it warm?", "max_tokens": 8, "cache": "off"}


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Device]]:
    """Two workers with a model; a job that fails twice is a dead letter at once."""
    quickly = {"ENGINE__RETRY__BACKOFF_MS": "50", "ENGINE__RETRY__MAX_ATTEMPTS": "2"}
    with fleet(tmp_path_factory.mktemp("boards"), "w1", "w2", environ=quickly) as found:
        yield found


def assigned(device: Device, worker: str) -> list[int]:
    """Return the attempts that a worker was given of the only job since `heard` was cleared."""
    return attempts_heard(device, f"workers/{worker}/assign")


def called_off(device: Device, worker: str) -> list[int]:
    """Return the attempts that a worker was told to stop since `heard` was cleared."""
    return attempts_heard(device, f"workers/{worker}/cancel")


def attempts_heard(device: Device, topic: str) -> list[int]:
    return [json.loads(payload)["attempt"] for payload in device.heard[topic]]


def forget(device: Device) -> None:
    for topic in [topic for topic in device.heard if topic.endswith(("/assign", "/cancel"))]:
        device.heard[topic].clear()


def is_streaming(device: Device, job: str) -> None:
    device.wait(lambda: device.said(job, "tok"), f"{job} to be in generation")


def start_labelled(running: Fleet, name: str, *labels: str) -> None:
    where = ["--broker", running.broker.url, "--data", str(running.folder / name)]
    words = ["edge_worker", "run", "--id", name, "--engine", "echo", *where]
    running.start(name, *words, environ={"EDGEFLEET_WORKER_LABELS": json.dumps(labels)})


@pytest.mark.model
def test_an_attempt_that_takes_too_long_is_called_off_and_made_on_another_board(
    boards: tuple[Fleet, Device],
) -> None:
    running, device = boards
    forget(device)
    device.submit("story", attempt_ms=700, **LONG)
    result = device.result("story")
    assert (result["status"], result["code"]) == ("failed", "attempt_too_slow")
    attempts = [assigned(device, worker) for worker in ("w1", "w2")]
    assert sorted(attempts) == [[1], [2]], "the second one is not where the first one was"
    for worker, (attempt,) in zip(("w1", "w2"), attempts, strict=True):
        # A word that was on its way when the attempt was called off has it called off once more.
        assert set(called_off(device, worker)) == {attempt}
    assert running.jobs("dead = 1") == 1
    device.submit("word", attempt_ms=60_000, **(LONG | {"output": {"choices": ["yes", "no"]}}))
    assert device.result("word")["status"] == "ok"
    assert len(device.said("story", "res")) == 1


@pytest.mark.model
def test_a_board_that_hangs_is_given_up_after_the_jobs_own_lease(
    boards: tuple[Fleet, Device],
) -> None:
    running, device = boards
    forget(device)
    device.submit("tale", lease_ms=3_000, **LONG)
    is_streaming(device, "tale")
    (holder,) = (worker for worker in ("w1", "w2") if assigned(device, worker))
    (other,) = {"w1", "w2"} - {holder}
    hanging = running.processes[holder]
    hanging.send_signal(signal.SIGSTOP)
    try:
        # Far within the fleet's lease of 30 s.
        device.wait(lambda: assigned(device, other) == [2], "the other board to have it", 15)
        result = device.result("tale", 60)
    finally:
        hanging.send_signal(signal.SIGCONT)
    assert (result["status"], result["worker"]) == ("ok", other)


def test_what_nobody_begins_with_in_time_ends_over_a_killed_dispatcher_too(tmp_path: Path) -> None:
    with fleet(tmp_path) as (running, device):
        device.submit("soon", start_within_ms=4_000, **ECHO)
        device.submit("patient", start_within_ms=600_000, **ECHO)
        device.wait(lambda: device.said("patient", "ack"), "both to be accepted")
        running.kill("dispatcher")
        running.start_dispatcher()
        result = device.result("soon")
        assert (result["status"], result["code"]) == ("expired", "not_started_in_time")
        running.start_worker("w1", engine="echo")
        assert device.result("patient")["status"] == "ok"


def test_a_job_waits_for_a_board_with_its_label(tmp_path: Path) -> None:
    with fleet(tmp_path, "w1", engine="echo") as (running, device):
        start_labelled(running, "w2", "camera", "site=north")
        running.online(device, "w2")
        for job, label in (("a", "camera"), ("b", "site=north"), ("c", "site=south")):
            device.submit(job, needs={"label": label}, **ECHO)
        assert [device.result(job)["worker"] for job in ("a", "b")] == ["w2", "w2"]
        device.wait(lambda: device.said("c", "ack"), "c to be refused")
        (ack,) = device.said("c", "ack")
        assert (ack["status"], ack["code"]) == ("rejected", "unknown_label")
        running.stop("w2")
        device.submit("later", needs={"label": "camera"}, **ECHO)
        device.submit("now", **ECHO)
        assert device.result("now")["worker"] == "w1"
        assert device.said("later", "ack")[0]["status"] == "accepted"
        assert not device.said("later", "res")
        start_labelled(running, "w2", "camera", "site=north")
        assert device.result("later")["worker"] == "w2"


def test_beyond_its_rate_a_device_is_told_when_to_come_again(tmp_path: Path) -> None:
    rate = {"ENGINE__RATE__DEVICE_PER_S": "0.01", "ENGINE__RATE__DEVICE_BURST": "2"}
    with fleet(tmp_path, "w1", engine="echo", environ=rate) as (_running, device):
        for job in ("a", "b", "c"):
            device.submit(job, **ECHO)
        device.wait(lambda: device.said("c", "ack"), "c to be refused")
        (ack,) = device.said("c", "ack")
        assert (ack["status"], ack["code"], ack["rate"]) == ("rejected", "busy", "device")
        assert 90_000 < ack["retry_after_ms"] <= 100_000
        device.result("a")
        device.submit("a", **ECHO)
        device.wait(lambda: len(device.said("a", "res")) == 2, "the answer again")
