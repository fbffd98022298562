"""A long text in parts, in a real fleet: processes, a broker, files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleet_protocol.messages import Assignment
from tests.integration.fleet import Fleet

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

LINES = [
    f"06:{n % 60:02} pump {n} runs as it should, nothing was found in hall {n}" for n in range(400)
]
REPORT = "Which pumps run?\n\n" + "\n".join(LINES)


def fleet_command(running: Fleet, *words: str, text: str = "") -> dict[str, Any]:
    """Run the `fleet` command; return what it prints as JSON."""
    line = [sys.executable, "-m", "fleet_cli", *words, "--broker", running.broker.url, "--json"]
    done = subprocess.run(line, input=text.encode(), capture_output=True, check=True)
    return dict(json.loads(done.stdout))


def test_many_boards_answer_a_text_that_waited_through_the_death_of_the_dispatcher(
    tmp_path: Path,
) -> None:
    with Fleet(tmp_path) as running:
        device = running.device()
        running.start_dispatcher()
        running.online(device)
        device.submit("1", prompt=REPORT, split="paragraphs", max_tokens=16, stream=True)
        device.wait(lambda: device.said("1", "ack"), "the word on it")
        parts = running.jobs("id like '%-%'")
        assert parts > 10

        running.kill("dispatcher")
        running.start_dispatcher()
        for name in ("w1", "w2"):
            running.start_worker(name, engine="echo")
        running.online(device, "w1", "w2")
        result = device.result("1")

        assert (result["status"], result["answered_by"]) == ("ok", "edge")
        assert result["text"].startswith("Which pumps run?")
        assert result["usage"]["completion_tokens"] == 16 * running.jobs("id like '%-%'")
        assert [chunk["i"] for chunk in device.said("1", "tok")] == list(range(parts))
        assert len(device.said("1", "res")) == 1
        device.wait(lambda: running.jobs("told = 0") == 0, "all told")
        told = {topic for topic in device.heard if topic.startswith("dev/d1/jobs/")}
        assert all(topic.startswith("dev/d1/jobs/1/") for topic in told)
        given = [
            msgspec.json.decode(x, type=Assignment)
            for w in ("w1", "w2")
            for x in device.heard[f"workers/{w}/assign"]
        ]
        by = {one.job for message in given for one in message.each}
        assert len(by) == running.jobs("id like '%-%'")

        job = fleet_command(running, "jobs", "show", min(by).rpartition("-")[0])
        assert (job["id"], job["status"], job["parts"]) == ("1", "ok", len(by))
        assert {part["job"] for part in job["part_jobs"]} == by
        assert {part["part_of"] for part in job["part_jobs"]} == {job["job"]}
        running.forget(f"{job['job']}-0")  # as the end of its retention would
        shown = fleet_command(running, "jobs", "show", job["job"])
        assert {part["job"] for part in shown["part_jobs"]} == by - {f"{job['job']}-0"}

        words = ("--split", "auto", "--system", "Which pumps run?", "--max-tokens", "16", "-")
        asked = fleet_command(running, "ask", *words, text="\n".join(LINES))
        assert (asked["status"], asked["answered_by"]) == ("ok", "edge")
        assert asked["usage"]["completion_tokens"] > 2 * 16
