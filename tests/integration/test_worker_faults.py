"""Workers that are two under one name, or do not tell the truth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_worker.cli.exits import ExitCode
from tests.integration.fleet import Device, Fleet

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

JOBS = tuple(f"j{number}" for number in range(60))
INFO = {
    "v": 1,
    "boot": "l1",
    "slots": 256,
    "models": [{"name": "echo", "version": "1", "context_tokens": 4_096}],
    "benchmark": {"decode_tok_s": 10**9, "prefill_tok_s": 10**9, "bandwidth_mbps": 10**9},
}


def submit_all(device: Device, names: tuple[str, ...]) -> None:
    for name in names:
        device.submit(name, prompt=f"echo {name}", max_tokens=8, cache="off", deadline_ms=120_000)


def test_of_two_workers_with_one_name_the_older_stops_and_the_newer_goes_on(
    tmp_path: Path,
) -> None:
    with Fleet(tmp_path) as running:
        device = running.device()
        running.start_dispatcher(ENGINE__LEASE_MS="5000")
        running.start_worker("w1", engine="echo", data="older")
        running.online(device, "w1")
        submit_all(device, JOBS[:20])
        running.start_worker("w1", engine="echo", data="newer")
        running.says("newer", "worker.started")
        submit_all(device, JOBS[20:40])
        assert running.processes.pop("older").wait(90) == ExitCode.TAKEN_OVER
        submit_all(device, JOBS[40:])
        for name in JOBS:
            assert device.result(name, 60)["status"] == "ok"
        running.account_for(device.name, *JOBS)
        assert running.processes["newer"].poll() is None
        assert "session_taken_over" in (running.folder / "older.log").read_text()


def test_a_worker_that_boasts_hoards_and_lies_costs_time_and_nothing_else(tmp_path: Path) -> None:
    """It is as fast as can be, has 256 slots, and has done what others were given."""
    with Fleet(tmp_path) as running:
        device, liar = running.device(), running.device("liar")
        running.start_dispatcher(ENGINE__LEASE_MS="3000", ENGINE__EJECTION__SPAN_MS="60000")
        running.start_worker("w1", engine="echo")
        running.online(device, "w1")
        liar.publish("workers/liar/info", json.dumps(INFO), retain=True)
        online = json.dumps({"v": 1, "status": "online", "boot": "l1"})
        liar.publish("workers/liar/presence", online, retain=True)
        liar.confirmed()
        submit_all(device, JOBS)
        liar.wait(lambda: liar.heard["workers/liar/assign"], "the liar to be given a job", 60)
        liar.wait(lambda: liar.heard["workers/w1/assign"], "the worker to be given a job", 60)
        for payload in list(liar.heard["workers/w1/assign"]):
            given = json.loads(payload)
            answer = {"text": "lies", "model": "echo"}
            done = json.dumps({"v": 1, "attempt": given["attempt"], "answer": answer})
            liar.publish(f"workers/liar/jobs/{given['job']}/done", done)
        for name in JOBS:
            result = device.result(name, 120)
            assert (result["status"], result["worker"]) == ("ok", "w1")
            assert result["text"].startswith(f"echo {name}")
        running.account_for(device.name, *JOBS)
