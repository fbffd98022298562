"""Several dispatchers as processes, on one PostgreSQL and one broker: one of them is killed."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from fleet_client.admin import AdminClient
from tests.integration.cluster_house import LEASE_S, cluster, insist


@pytest.mark.timeout(180)
def test_one_of_three_dispatchers_is_killed_under_load(tmp_path: Path, database: str) -> None:
    workers = tuple(f"w{number}" for number in range(4))
    with cluster(tmp_path, database, *workers) as (fleet, device):
        insist(device, [f"before-{n}" for n in range(60)], lambda j: device.said(j, "res"), "warm")
        victim = next(name for name, mine in fleet.boards().items() if len(mine) == 2)
        held = fleet.boards()[victim][0]
        # This board stands still with jobs in its hands while its dispatcher dies.
        fleet.processes[held].send_signal(signal.SIGSTOP)
        jobs = [f"job-{number}" for number in range(300)]
        for job in jobs:
            device.submit(job, prompt=f"question {job}")
        device.wait(
            lambda: fleet.rows(f"SELECT 1 FROM jobs WHERE worker = '{held}'"),  # noqa: S608
            f"a job on {held}",
        )
        fleet.kill(victim)
        killed_at_s = time.monotonic()
        fleet.share(device, 2, 2)
        shared_s = time.monotonic() - killed_at_s
        fleet.processes[held].send_signal(signal.SIGCONT)
        insist(device, jobs, lambda job: device.said(job, "res"), "all answered")
        answered_s = time.monotonic() - killed_at_s
        print(  # noqa: T201 - what the test is for
            f"workers taken over after {shared_s:.1f} s, all answered after {answered_s:.1f} s"
        )
        assert shared_s < LEASE_S + 5.0
        for job in jobs:
            said = device.said(job, "res")
            assert all(one == said[0] for one in said), "a job was answered twice"
            assert said[0]["status"] == "ok"
        stored = fleet.rows("SELECT id, count(*) FROM jobs WHERE id LIKE 'job-%' GROUP BY id")
        assert Counter(dict(stored)) == Counter(jobs)  # type: ignore[arg-type]
        fleet.start_member(victim)
        fleet.share(device, 2, 1, 1)
        insist(device, [f"after-{n}" for n in range(60)], lambda j: device.said(j, "res"), "after")
        with AdminClient(fleet.broker.url, "op") as admin:
            shown = admin.workers()
        assert [view.worker for view in shown] == sorted(workers)


@pytest.mark.timeout(180)
def test_a_dispatcher_that_stood_still_is_over_when_it_wakes(tmp_path: Path, database: str) -> None:
    with cluster(tmp_path, database, "w1", "w2", "w3") as (fleet, device):
        insist(device, [f"before-{n}" for n in range(30)], lambda j: device.said(j, "res"), "warm")
        victim = next(iter(fleet.boards()))
        sleeper = fleet.processes[victim]
        jobs = [f"job-{number}" for number in range(90)]
        for job in jobs:
            device.submit(job, prompt=f"question {job}")
        sleeper.send_signal(signal.SIGSTOP)
        fleet.share(device, 1, 2)
        insist(device, jobs, lambda job: device.said(job, "res"), "all answered")
        sleeper.send_signal(signal.SIGCONT)
        assert sleeper.wait(20) != 0
        del fleet.processes[victim]
        assert "member_fenced" in (tmp_path / f"{victim}.log").read_text()
        for job in jobs:
            said = device.said(job, "res")
            assert all(one == said[0] for one in said), "a job was answered twice"
        stored = fleet.rows("SELECT id, count(*) FROM jobs WHERE id LIKE 'job-%' GROUP BY id")
        assert Counter(dict(stored)) == Counter(jobs)  # type: ignore[arg-type]


@pytest.mark.timeout(180)
def test_dispatchers_without_a_board_hand_their_jobs_over(tmp_path: Path, database: str) -> None:
    with cluster(tmp_path, database, "w1") as (_, device):
        jobs = [f"job-{number}" for number in range(30)]
        insist(device, jobs, lambda job: device.said(job, "res"), "all answered")
        handed = [
            (tmp_path / f"{name}.log").read_text().count("cluster.handed_over") for name in "abc"
        ]
        assert sum(map(bool, handed)) == 2, "both without a board gave theirs away"
        # All of them hear of it; one speaks for jobs that are nobody's.
        device.publish("dev/d1/jobs/none/cancel", "{}")
        device.wait(lambda: device.said("none", "ack"), "the word on an unknown job")
        assert [ack["code"] for ack in device.said("none", "ack")] == ["unknown_job"]
