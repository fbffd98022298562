"""Answers that are given again, in a real fleet: processes, a broker, files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fleet import Device, Fleet, fleet

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

QUESTION = {"prompt": "Is hall 7 warm?"}


def gone(device: Device, *topics: str) -> None:
    """Wait until the wills of those that were killed are told."""
    device.wait(lambda: all(b"offline" in device.heard[topic][-1] for topic in topics), "wills")


def accepted(device: Device, job: str) -> None:
    device.wait(lambda: device.said(job, "ack"), f"the word on {job}")


def test_an_answer_survives_the_dispatcher_and_a_boards_own_answer_the_board(
    tmp_path: Path,
) -> None:
    with fleet(tmp_path, "w1", engine="echo") as (running, device):
        device.submit("first", **QUESTION)
        device.submit("site-first", privacy="site", **QUESTION)
        assert device.result("first")["answered_by"] == "edge"
        assert device.result("site-first")["answered_by"] == "edge"

        device.submit("again", prompt="  Is hall 7   warm? ")
        again = device.result("again")
        assert (again["answered_by"], again["model"]) == ("cache", "echo")
        assert again["text"] == device.result("first")["text"]
        assert (again["cost_usd"], again["worker"], again["attempts"]) == (0, None, 0)

        device.submit("site-again", privacy="site", **QUESTION)
        site = device.result("site-again")
        assert (site["answered_by"], site["worker"], site["attempts"]) == ("cache", "w1", 1)

        device.submit("fresh", cache="off", **QUESTION)
        assert device.result("fresh")["answered_by"] == "edge"

        for name in ("dispatcher", "w1"):
            running.kill(name)
        gone(device, "fleet/dispatcher", "workers/w1/presence")
        running.start_dispatcher()
        running.start_worker("w1", engine="echo")
        running.online(device, "w1")
        device.submit("later", **QUESTION)
        later = device.result("later")
        assert (later["answered_by"], later["attempts"]) == ("cache", 0)
        device.submit("site-later", privacy="site", **QUESTION)
        site = device.result("site-later")
        assert (site["answered_by"], site["worker"]) == ("cache", "w1")


def test_many_devices_that_ask_the_same_at_once_get_one_answer(tmp_path: Path) -> None:
    with fleet(tmp_path, "w1", engine="echo") as (running, device):
        others = [running.device(f"d{number}") for number in range(2, 5)]
        running.kill("w1")
        gone(device, "workers/w1/presence")
        for one in (device, *others):
            for number in range(5):
                one.submit(f"j{number}", **QUESTION)
        for one in (device, *others):
            accepted(one, "j4")
        running.start_worker("w1", engine="echo")
        told = [one.result(f"j{number}") for one in (device, *others) for number in range(5)]
        assert {result["text"] for result in told} == {told[0]["text"]}
        assert sum(result["answered_by"] == "edge" for result in told) == 1
        assert sum(result["answered_by"] == "cache" for result in told) == 19
        device.wait(lambda: running.jobs("told = 1") == 20, "all told")


def cache(running: Fleet, *words: str, given: str = "") -> dict[str, Any]:
    """Run `fleet cache` and return the object that it prints."""
    line = [sys.executable, "-m", "fleet_cli", "cache", *words]
    done = subprocess.run(
        [*line, "--json", "--broker", running.broker.url],
        input=given,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_operator_fills_looks_at_and_clears_the_cache_of_a_running_fleet(
    tmp_path: Path,
) -> None:
    with fleet(tmp_path, "w1", engine="echo") as (running, device):
        lines = "".join(f'{{"prompt": "Is hall {n} warm?", "text": "No."}}\n' for n in range(150))
        assert cache(running, "prewarm", "-", given=lines) == {"kept": 150, "failed": 0}
        device.submit("a", prompt="Is hall 149 warm?")
        assert (device.result("a")["text"], device.result("a")["answered_by"]) == ("No.", "cache")
        stats = cache(running, "stats")
        assert [(row["answers"], row["hits"]) for row in stats["tenants"]] == [(150, 1)]
        cache(running, "clear", "--yes")
        assert cache(running, "stats")["tenants"] == []
        device.submit("b", prompt="Is hall 149 warm?")
        assert device.result("b")["answered_by"] == "edge"
