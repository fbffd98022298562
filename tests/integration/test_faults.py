"""Pull the plugs of a real fleet: nothing accepted is lost, and each job has exactly one result."""

import json
from pathlib import Path

import pytest

from fleet_cli.broker import BrokerKind
from tests.integration.fleet import Device, Fleet, fleet
from tests.integration.link import Link

pytestmark = [pytest.mark.model, pytest.mark.broker, pytest.mark.timeout(180)]

# Sixty words, whatever the model thinks of it: an answer that takes its time.
LONG = {
    "prompt": "Words, please.",
    "output": {"regex": "(?:[a-z]{2,6} ){60}"},
    "max_tokens": 400,
    "stream": True,
}
SHORT = {"prompt": "Name three colours.", "max_tokens": 12, "escalate": "never", "cache": "off"}


def holder(device: Device, job: str, workers: tuple[str, ...]) -> str:
    """Which worker said `started` for the only job so far."""

    def found() -> list[str]:
        return [
            worker
            for worker in workers
            if any(t.startswith(f"workers/{worker}/jobs/") and t.endswith("/started")
                   for t, heard in list(device.heard.items()) if heard)
        ]  # fmt: skip

    device.wait(lambda: found() and device.said(job, "tok"), f"{job} to be in generation")
    return found()[-1]


def settled(device: Device, job: str) -> None:
    """Let everything in flight arrive: another job goes the whole way behind it."""
    device.submit(f"{job}-after", **SHORT)
    device.result(f"{job}-after")


def test_a_worker_killed_in_mid_generation_costs_a_retry_not_the_job(tmp_path: Path) -> None:
    with fleet(tmp_path, "w1", "w2") as (running, device):
        device.submit("story", escalate="never", **LONG)
        victim = holder(device, "story", ("w1", "w2"))
        running.kill(victim)
        result = device.result("story")
        assert result["status"] == "ok"
        assert result["worker"] != victim
        assert result["attempts"] == 2
        running.start_worker(victim)
        running.online(device, victim)
        settled(device, "story")
        assert len(device.said("story", "res")) == 1


def test_a_killed_dispatcher_finishes_every_accepted_job_after_its_restart(tmp_path: Path) -> None:
    with fleet(tmp_path, "w1", engine="echo") as (running, device):
        names = [f"j{i}" for i in range(300)]
        for name in names:
            device.submit(name, prompt=f"echo {name}", max_tokens=8)
        device.wait(lambda: device.said("j20", "ack"), "some jobs to be accepted")
        running.kill("dispatcher")
        running.start_dispatcher()
        for name in names:
            assert device.result(name)["status"] == "ok"
        settled(device, "all")
        texts = {name: {one["text"] for one in device.said(name, "res")} for name in names}
        assert all(len(answers) == 1 for answers in texts.values())
        assert running.jobs("status = 'ok'") == len(names) + 1
        device.wait(lambda: running.jobs("told = 0") == 0, "the outbox to be empty")


def test_a_finished_answer_is_not_generated_again_after_a_restart(tmp_path: Path) -> None:
    with fleet(tmp_path, "w1") as (running, device):
        device.submit("story", escalate="never", **LONG)
        holder(device, "story", ("w1",))
        running.kill("dispatcher")
        done = "workers/w1/jobs/"
        device.wait(
            lambda: any(t.startswith(done) and t.endswith("/done") for t in list(device.heard)),
            "the worker to finish without a dispatcher",
        )
        running.start_dispatcher()
        result = device.result("story")
        assert result["status"] == "ok"
        assert result["attempts"] == 1
        settled(device, "story")
        assert len(device.said("story", "res")) == 1


def test_a_broker_that_forgets_everything_loses_no_accepted_job(tmp_path: Path) -> None:
    with fleet(tmp_path, "w1", "w2") as (running, device):
        names = [f"j{i}" for i in range(12)]
        for name in names:
            device.submit(name, **SHORT)
        device.wait(lambda: all(device.said(n, "ack") for n in names), "all jobs accepted")
        running.broker.kill()
        running.broker.start()
        for name in names:
            assert device.result(name, 120)["status"] == "ok"
        assert running.jobs("status = 'ok'") == len(names)


def test_a_worker_cut_off_while_it_answers_delivers_late_once_or_is_fenced(tmp_path: Path) -> None:
    with Fleet(tmp_path, BrokerKind.MOSQUITTO) as running, Link(running.port) as link:
        device = running.device()
        running.start_dispatcher(ENGINE__LEASE_MS="60000", ENGINE__WORKER_SILENCE_MS="60000")
        running.start_worker("far", url=f"mqtt://127.0.0.1:{link.port}")
        running.online(device, "far")
        device.submit("story", escalate="never", **LONG)
        holder(device, "story", ("far",))
        link.cut()
        running.start_worker("near")
        running.online(device, "near")
        link.restore()
        result = device.result("story")
        assert result["status"] == "ok"
        settled(device, "story")
        assert len(device.said("story", "res")) == 1
        assert running.jobs("status = 'ok'") == 2


def test_a_worker_that_is_asked_to_stop_finishes_what_it_holds(tmp_path: Path) -> None:
    with fleet(tmp_path, "w1") as (running, device):
        device.submit("story", escalate="never", **LONG)
        holder(device, "story", ("w1",))
        assert running.stop("w1") == 0
        assert device.result("story")["attempts"] == 1
        last = json.loads(device.heard["workers/w1/presence"][-1])
        assert last["status"] == "offline"


def test_a_job_is_cancelled_in_mid_generation(tmp_path: Path) -> None:
    with fleet(tmp_path, "w1") as (_, device):
        device.submit("story", escalate="never", **LONG)
        holder(device, "story", ("w1",))
        device.publish("dev/d1/jobs/story/cancel", "{}")
        assert device.result("story")["status"] == "cancelled"
        settled(device, "story")
        assert len(device.said("story", "res")) == 1
        done = [t for t in device.heard if t.endswith("/done")]
        assert len(done) == 1, "only the job behind it was answered"


def test_a_device_that_comes_back_late_still_hears_its_result(tmp_path: Path) -> None:
    with fleet(tmp_path, "w1") as (running, device):
        away = running.device("d2")
        away.submit("story", escalate="never", **LONG)
        away.wait(lambda: away.said("story", "ack"), "the job to be accepted")
        away.close()
        running.devices.remove(away)
        name = "workers/w1/jobs/"
        device.wait(
            lambda: any(t.startswith(name) and t.endswith("/done") for t in list(device.heard)),
            "the answer that its device is not there to hear",
        )
        assert running.device("d2").result("story")["status"] == "ok"
