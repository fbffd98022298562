"""Several dispatchers as processes, on one PostgreSQL and one broker: one of them is killed."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.integration.fleet import Device, Fleet

NAMES = ("a", "b", "c")
LEASE_S = 3.0


class Cluster(Fleet):
    """A fleet with several dispatchers."""

    database = ""

    def start_member(self, name: str, *, url: str | None = None) -> None:
        """Start a dispatcher of that name."""
        self.start(
            name,
            *("cloud_dispatcher", "run", "--broker", url or self.broker.url),
            *("--data", str(self.folder / name)),
            environ={
                "EDGEFLEET_DISPATCHER_STORE__URL": self.database,
                "EDGEFLEET_DISPATCHER_CLUSTER__NAME": name,
                "EDGEFLEET_DISPATCHER_CLUSTER__LEASE_S": f"{LEASE_S}",
                "EDGEFLEET_DISPATCHER_CLUSTER__BEAT_MS": "200",
            },
        )

    def rows(self, words: str) -> list[tuple[object, ...]]:
        """Ask the database."""
        with psycopg.connect(self.database, autocommit=True) as conn:
            return conn.execute(words.encode()).fetchall()

    def boards(self) -> dict[str, list[str]]:
        """Return the workers of each dispatcher that is there."""
        found: dict[str, list[str]] = {
            name: [] for (name,) in self.rows("SELECT name FROM members")
        }  # type: ignore[misc]
        for name, worker in self.rows(
            "SELECT m.name, b.worker FROM members m JOIN boards b ON b.member = m.id"
        ):
            found[str(name)].append(str(worker))
        return found

    def share(self, device: Device, *sizes: int) -> None:
        """Wait until the workers are shared like that."""
        device.wait(
            lambda: sorted(map(len, self.boards().values())) == sorted(sizes),
            f"workers shared as {sizes}",
        )


@contextmanager
def cluster(folder: Path, database: str, *workers: str) -> Iterator[tuple[Cluster, Device]]:
    """Three dispatchers and these workers; each has its share."""
    with Cluster(folder) as running:
        running.database = database
        device = running.device()
        for name in NAMES:
            running.start_member(name)
        for name in workers:
            running.start_worker(name, engine="echo")
        running.online(device, *workers)
        each, rest = divmod(len(workers), len(NAMES))
        running.share(device, *(each + (rank < rest) for rank in range(len(NAMES))))
        yield running, device


def insist(device: Device, jobs: list[str], met: Callable[[str], object], what: str) -> None:
    """Submit jobs as a device does: again, until the dispatcher's own word came."""
    for _ in range(60):
        for job in jobs:
            if not device.said(job, "ack") and not device.said(job, "res"):
                device.submit(job, prompt=f"question {job}")
        try:
            device.wait(lambda: all(met(job) for job in jobs), what, 1.0)
        except AssertionError:
            continue
        return
    missing = [job for job in jobs if not met(job)]
    raise AssertionError(f"{what}: {len(missing)} are missing, {missing[:5]}")


@pytest.mark.timeout(180)
def test_one_of_three_dispatchers_is_killed_under_load(tmp_path: Path, database: str) -> None:
    workers = tuple(f"w{number}" for number in range(6))
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
        fleet.share(device, 3, 3)
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
        fleet.share(device, 2, 2, 2)
        insist(device, [f"after-{n}" for n in range(60)], lambda j: device.said(j, "res"), "after")
