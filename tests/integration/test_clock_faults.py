"""Wall clocks that are set while a fleet works, and while a part of it is down."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.fleet import Device, Fleet

HOUR_S = 3_600
SINCE_1970_S = 56 * 365 * 24 * HOUR_S
# Sixty words, whatever the model thinks of it: an answer that takes its time.
LONG = {
    "prompt": "Words, please.",
    "output": {"regex": "(?:[a-z]{2,6} ){60}"},
    "max_tokens": 400,
    "stream": True,
    "escalate": "never",
    "cache": "off",
}

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]


def begin(device: Device, job: str) -> None:
    """Let a job be in generation."""
    device.submit(job, **LONG)
    device.wait(lambda: device.said(job, "tok"), f"{job} to be in generation", 60)


@pytest.mark.model
def test_clocks_that_are_set_while_jobs_run_change_nothing(tmp_path: Path) -> None:
    with Fleet(tmp_path) as running:
        clocks, device = [running.clock(name) for name in ("dispatcher", "w1")], running.device()
        running.start_dispatcher()
        running.start_worker("w1")
        running.online(device, "w1")
        names = []
        for clock in clocks:
            for off_s in (HOUR_S, -HOUR_S):
                names.append(f"j{len(names)}")
                begin(device, names[-1])
                clock.set(off_s)
                result = device.result(names[-1], 120)
                assert result["status"] == "ok"
                assert 0 <= result["timing_ms"]["total"] < 120_000
        running.account_for(device.name, *names)
        assert running.attempts() == {1}


@pytest.mark.parametrize("off_s", [HOUR_S, -HOUR_S])
def test_a_dispatcher_whose_clock_was_set_while_it_was_down_ends_and_delays_nothing(
    tmp_path: Path, off_s: int
) -> None:
    with Fleet(tmp_path) as running:
        clock, device = running.clock("dispatcher"), running.device()
        running.start_dispatcher()
        running.online(device)
        names = tuple(f"j{number}" for number in range(20))
        for name in names:
            device.submit(name, prompt=f"echo {name}", max_tokens=8, cache="off")
        device.submit("later", prompt="echo later", max_tokens=8, not_before_ms=3_000)
        device.wait(lambda: all(device.said(n, "ack") for n in (*names, "later")), "all accepted")
        running.kill("dispatcher")
        clock.set(off_s)
        running.start_dispatcher()
        running.start_worker("w1", engine="echo")
        for name in (*names, "later"):
            result = device.result(name, 60)
            assert result["status"] == "ok"
            assert 0 <= result["timing_ms"]["total"] < 120_000
        running.says("dispatcher", "clock.apart")
        running.account_for(device.name, *names, "later")


@pytest.mark.model
@pytest.mark.parametrize("off_s", [HOUR_S, -SINCE_1970_S])
def test_a_worker_that_starts_with_a_wrong_clock_goes_on_with_what_it_has(
    tmp_path: Path, off_s: int
) -> None:
    with Fleet(tmp_path) as running:
        clock, device = running.clock("w1"), running.device()
        running.start_dispatcher()
        running.start_worker("w1")
        running.online(device, "w1")
        begin(device, "story")
        running.kill("w1")
        clock.set(off_s)
        running.start_worker("w1")
        assert device.result("story", 120)["status"] == "ok"
        begin(device, "again")
        running.kill("w1")
        clock.set(0)
        running.start_worker("w1")
        assert device.result("again", 120)["status"] == "ok"
        running.account_for(device.name, "story", "again")
