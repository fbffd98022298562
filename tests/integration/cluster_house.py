"""Several dispatchers as processes, on one PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

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

    def members(self, device: Device, *names: str) -> None:
        """Wait until these dispatchers are there, however long their start takes."""
        there = "SELECT to_regclass('members') IS NOT NULL"
        device.wait(
            lambda: self.rows(there) == [(True,)] and self.boards().keys() == set(names),
            f"dispatchers {names}",
            120.0,
        )

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
        running.members(device, *NAMES)
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
