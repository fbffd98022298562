"""Commits of the job store on PostgreSQL beside SQLite's: `python -m bench.store [--quick]`.

Whole lives of jobs (accepted, assigned, answered, told) in turns of 1, 50 and 500, each turn one
durable commit: SQLite with `synchronous = full`, a PostgreSQL of its own with `fsync` and
`synchronous_commit` on, over its socket, both on the disk of the temporary folder. They take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from bench.report import report
from bench.rounds import Rounds
from cloud_dispatcher.adapters.store_postgres import PostgresJobStore
from cloud_dispatcher.adapters.store_sqlite import SqliteJobStore
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.ports import JobStore
from fleet_protocol import messages as m
from tests.postgres_server import PostgresServer

TURNS: Final = {1: 100, 50: 20, 500: 6}
"""How many turns of each size are measured in a round; some more go before."""
_PROMPT: Final = "Is 85 above the limit of 80? " * 4
_ANSWER: Final = "Yes, it is above the limit. " * 8
_numbers = itertools.count(1)


def life(jobs: int) -> list[list[Job]]:
    """Return the values that so many jobs have one after the other."""
    numbers = [next(_numbers) for _ in range(jobs)]
    submit = m.JobSubmit(prompt=_PROMPT)
    queued = [
        Job(
            key=m.JobKey(f"01J{number:023}"),
            device=m.DeviceId(f"d{number % 97}"),
            id=m.JobId(str(number)),
            submit=submit,
            received_at_ms=number,
        )
        for number in numbers
    ]
    worker, status = m.WorkerId("w1"), m.JobStatus
    given = [replace(job, status=status.ASSIGNED, attempt=1, worker=worker) for job in queued]
    done = [
        replace(
            job,
            status=status.OK,
            result=m.JobResult(id=job.id, status=status.OK, text=_ANSWER),
            finished_at_ms=job.received_at_ms + 1,
        )
        for job in given
    ]
    return [queued, given, done, [replace(job, told=True) for job in done]]


async def jobs_per_s(store: JobStore, jobs: int, turns: int) -> float:
    """Let so many turns of jobs live, one after the other."""
    lives = [life(jobs) for _ in range(turns)]
    began_s = time.perf_counter()
    for values in itertools.chain.from_iterable(lives):
        await store.commit(values)
    return jobs * turns / (time.perf_counter() - began_s)


async def measure(server: PostgresServer | None, jobs: int, turns: int) -> float:
    """Return the jobs per second of a new store."""
    with tempfile.TemporaryDirectory() as folder:
        store: JobStore = SqliteJobStore(Path(folder) / "jobs.db")
        if server is not None:
            store = PostgresJobStore(server.url(server.create()))
        async with store:
            await jobs_per_s(store, jobs, max(2, turns // 5))
            return await jobs_per_s(store, jobs, turns)


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds instead of nine")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    rounds = Rounds({})
    with PostgresServer(fsync=True) as server:
        for number in range(3 if options.quick else 9):
            sides = [("postgresql", server), ("sqlite", None)]
            for jobs, turns in TURNS.items():
                for name, place in sides[:: 1 if number % 2 else -1]:
                    figure = f"jobs_per_s_in_turns_of_{jobs}"
                    rounds.note(number, name, figure, asyncio.run(measure(place, jobs, turns)))
    figures = [f"jobs_per_s_in_turns_of_{jobs}" for jobs in TURNS]
    report(
        "store",
        ours=rounds.medians("postgresql"),
        peers={"sqlite": rounds.medians("sqlite")},
        ratios={
            f"sqlite, {figure.removeprefix('jobs_per_s_in_')}": rounds.ratios(
                ("postgresql", figure), ("sqlite", figure)
            )
            for figure in figures
        },
        aims={},
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
