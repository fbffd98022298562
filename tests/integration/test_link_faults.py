"""Links that are worse than cut: half-open, slow, stalled, stuttering, out of order."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet_client import FleetClient, ResendSchedule
from tests.integration.fleet import Device, Fleet
from tests.integration.link import Link

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

KEEPALIVE = {"BROKER__KEEPALIVE_S": "5"}
JOBS = tuple(f"j{number}" for number in range(200))


def submit_all(device: Device, names: tuple[str, ...] = JOBS, *, padding: str = "") -> None:
    for name in names:
        device.submit(name, prompt=f"echo {name} {padding}", max_tokens=8, cache="off")


def results(device: Device, names: tuple[str, ...] = JOBS, timeout_s: float = 60) -> None:
    for name in names:
        assert device.result(name, timeout_s)["status"] == "ok"


def test_a_worker_whose_link_is_half_open_is_given_up_and_comes_back(tmp_path: Path) -> None:
    with Fleet(tmp_path) as running, Link(running.port) as link:
        device = running.device()
        running.start_dispatcher(ENGINE__WORKER_SILENCE_MS="10000", ENGINE__LEASE_MS="60000")
        running.start_worker("far", engine="echo", url=running.url_of(link.port), **KEEPALIVE)
        running.online(device, "far")
        link.strand()
        # The broker takes it for connected, and so does the dispatcher.
        submit_all(device, ("lost",))
        device.wait(lambda: device.said("lost", "ack"), "the job to be accepted")
        assert not device.said("lost", "res")
        before = link.connections
        # The worker finds out by its keepalive. The broker then tells of the old connection's end.
        result = device.result("lost", 60)
        assert (result["status"], result["worker"]) == ("ok", "far")
        assert link.connections == before + 1
        running.account_for(device.name, "lost")


def test_a_dead_worker_behind_a_half_open_link_loses_its_jobs_to_another(tmp_path: Path) -> None:
    with Fleet(tmp_path) as running, Link(running.port) as link:
        device = running.device()
        running.start_dispatcher(ENGINE__WORKER_SILENCE_MS="6000", ENGINE__LEASE_MS="60000")
        running.start_worker("far", engine="echo", url=running.url_of(link.port))
        running.online(device, "far")
        link.strand()
        running.kill("far")
        submit_all(device, ("lost",))
        device.wait(lambda: device.heard["workers/far/assign"], "the job to be given to nobody")
        running.start_worker("near", engine="echo")
        result = device.result("lost", 60)
        assert (result["worker"], result["attempts"]) == ("near", 2)
        running.account_for(device.name, "lost")


def test_a_half_open_link_of_the_dispatcher_is_no_death_of_its_workers(tmp_path: Path) -> None:
    with Fleet(tmp_path) as running, Link(running.port) as link:
        device = running.device()
        running.start_dispatcher(url=running.url_of(link.port), ENGINE__WORKER_SILENCE_MS="10000")
        for name in ("w1", "w2"):
            running.start_worker(name, engine="echo")
        running.online(device, "w1", "w2")
        submit_all(device, JOBS[:50])
        results(device, JOBS[:50])
        link.strand()
        submit_all(device, JOBS[50:])
        results(device, JOBS[50:])
        running.account_for(device.name, *JOBS)
        assert running.attempts() == {1}, "nobody was taken for dead, no job was given out again"


def test_a_link_that_is_slow_and_far_costs_time_and_nothing_else(tmp_path: Path) -> None:
    with Fleet(tmp_path) as running, Link(running.port) as link:
        device = running.device()
        running.start_dispatcher()
        running.start_worker("far", engine="echo", url=running.url_of(link.port))
        running.online(device, "far")
        link.slow_down(delay_s=0.1, bytes_per_s=100_000)
        names = JOBS[:40]
        submit_all(device, names, padding="x" * 2_000)
        results(device, names)
        running.account_for(device.name, *names)
        assert running.attempts() == {1}


def test_what_arrives_twice_and_out_of_order_is_answered_once(tmp_path: Path) -> None:
    with Fleet(tmp_path) as running, Link(running.port) as up, Link(running.port) as down:
        device = running.device()
        for link in (up, down):
            link.stutter()
            link.shuffle()
        running.start_dispatcher(url=running.url_of(up.port))
        for name in ("w1", "w2"):
            running.start_worker(name, engine="echo", url=running.url_of(down.port))
        running.online(device, "w1", "w2")
        submit_all(device)
        results(device)
        running.account_for(device.name, *JOBS)
        assert min(up.doubled, down.doubled) > len(JOBS)
        assert up.moved + down.moved > 0


def test_what_a_broker_confirms_and_loses_costs_no_job(tmp_path: Path) -> None:
    """As a full queue does, or a kill -9: nobody is told, so each hop has to find out."""
    with Fleet(tmp_path) as running, Link(running.port) as up, Link(running.port) as down:
        device = running.device()
        running.start_dispatcher(url=running.url_of(up.port), ENGINE__LEASE_MS="3000")
        running.start_worker("w1", engine="echo", url=running.url_of(down.port))
        running.online(device, "w1")
        up.lose("submit", "ack", "res", times=5)
        down.lose("done", "settled", times=5)
        down.lose("assign", times=1)  # It brings all the jobs that its board has room for.
        schedule = ResendSchedule(unanswered_ms=500, silence_ms=1_000, silence_most_ms=4_000)
        with FleetClient(running.broker.url, "d2", schedule=schedule) as client:
            handles = [
                client.submit(
                    f"echo {name}", job_id=name, accept_timeout_s=None, max_tokens=8, cache="off"
                )
                for name in JOBS[:40]
            ]
            assert {handle.wait(90).status for handle in handles} == {"ok"}
        running.account_for("d2", *JOBS[:40])
        assert up.lost == {"submit": 5, "ack": 5, "res": 5}
        assert down.lost == {"assign": 1, "done": 5, "settled": 5}


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_broker_that_takes_or_gives_nothing_for_a_while_is_waited_for(
    tmp_path: Path, way: str
) -> None:
    """What the dispatcher cannot tell, it does not take in either: MQTT's windows hold it back."""
    with Fleet(tmp_path) as running, Link(running.port) as link:
        device = running.device()
        running.start_dispatcher(url=running.url_of(link.port))
        for name in ("w1", "w2"):
            running.start_worker(name, engine="echo")
        running.online(device, "w1", "w2")
        submit_all(device, JOBS[:20])
        results(device, JOBS[:20])
        before_kb = running.memory_kb("dispatcher")
        link.stall(up=way == "up", down=way == "down")
        names = tuple(f"k{number}" for number in range(1_500))
        submit_all(device, names, padding="x" * 4_000)
        device.confirmed()
        grown_kb = running.memory_kb("dispatcher") - before_kb
        assert grown_kb < 32 * 1_024, "1,500 jobs are 6 MB"
        assert not any(device.said(name, "ack") for name in names), "the link carried something"
        link.restore()
        results(device, names, 120)
        running.account_for(device.name, *JOBS[:20], *names)
