"""Two Mosquittos joined by a bridge, dispatchers and workers on either: one fleet all the same."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fleet_cli.tether import tethered
from tests.integration.cluster_house import LEASE_S, Cluster, insist
from tests.integration.fleet import PATIENCE_S, Device

BRIDGE = Path(__file__).parents[2] / "deploy" / "broker" / "mosquitto-bridge.conf"


@contextmanager
def second_broker(folder: Path, first_port: int) -> Iterator[int]:
    """A broker that is joined with the first one as the shipped file says; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    lines = [
        "max_queued_messages 100000",
        "set_tcp_nodelay true",
        "allow_anonymous true",
        "persistence false",
        *(["user root"] if os.geteuid() == 0 else []),
        f"listener {port} 127.0.0.1",
        BRIDGE.read_text("utf-8").replace("broker-1.example:1883", f"127.0.0.1:{first_port}"),
    ]
    config = folder / "second.conf"
    config.write_text("\n".join(lines), "utf-8")
    with (folder / "second.log").open("ab") as log:
        process = subprocess.Popen(
            tethered(["mosquitto", "-c", str(config)]), stdin=subprocess.PIPE, stderr=log
        )
    try:
        wait_for(port)
        yield port
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def wait_for(port: int) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            assert time.monotonic() < deadline_s, "the second broker never answered"
        else:
            return


@pytest.mark.timeout(240)
def test_one_fleet_on_two_brokers(tmp_path: Path, database: str) -> None:
    with Cluster(tmp_path) as fleet, second_broker(tmp_path, fleet.port) as port:
        fleet.database = database
        second = f"mqtt://127.0.0.1:{port}"
        here, there = fleet.device("d1"), Device(port, "d2")
        fleet.devices.append(there)
        fleet.start_member("a")
        fleet.start_member("b")
        fleet.start_member("c", url=second)
        fleet.members(here, "a", "b", "c")
        for number in range(6):
            url = second if number % 2 else None
            fleet.start_worker(f"w{number}", engine="echo", url=url)
        fleet.online(here, *(f"w{number}" for number in range(6)))
        fleet.share(here, 2, 2, 2)
        jobs = [f"job-{number}" for number in range(100)]
        for device in (here, there):
            insist(device, jobs, lambda job, at=device: at.said(job, "res"), device.name)  # type: ignore[misc]
        # The only dispatcher of the second broker dies: the others serve its devices and workers.
        fleet.kill("c")
        killed_at_s = time.monotonic()
        fleet.share(here, 3, 3)
        took_s = time.monotonic() - killed_at_s
        print(f"workers of the other broker taken over after {took_s:.1f} s")  # noqa: T201 - what the test is for
        assert took_s < LEASE_S + 5.0
        more = [f"more-{number}" for number in range(60)]
        insist(there, more, lambda job: there.said(job, "res"), "the second broker's device")
        for device, names in ((here, jobs), (there, jobs + more)):
            for job in names:
                said = device.said(job, "res")
                assert all(one == said[0] for one in said), "a job was answered twice"
        ((count,),) = fleet.rows("SELECT count(*) FROM jobs WHERE id LIKE 'job-%'")
        assert count == 2 * len(jobs), "a submission became two jobs"
