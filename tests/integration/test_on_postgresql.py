"""A real dispatcher whose jobs are in a real PostgreSQL, and both of them killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.conftest import require
from tests.integration.fleet import Device, Fleet
from tests.postgres_server import PostgresServer, find_postgres

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

NAMES = [f"j{number}" for number in range(300)]


@pytest.fixture(scope="module")
def mortal() -> Iterator[PostgresServer]:
    """A server that may be killed: nobody else's test is on it."""
    require(find_postgres() is not None, "PostgreSQL")
    with PostgresServer() as server:
        yield server


@pytest.fixture
def place(mortal: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database over TCP, its password where libpq looks for it."""
    secrets = tmp_path / "pgpass"
    secrets.write_text(f"127.0.0.1:{mortal.port}:*:*:{mortal.password}\n")
    secrets.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(secrets))
    name = mortal.create()
    yield mortal.tcp_url(name)
    mortal.drop(name)


@contextmanager
def fleet_on(url: str, folder: Path) -> Iterator[tuple[Fleet, Device]]:
    """A running fleet with one worker, its jobs in that database, and 300 of them on their way."""
    with Fleet(folder) as running:
        device = running.device()
        running.start_dispatcher(STORE__URL=url)
        running.start_worker("w1", engine="echo")
        running.online(device, "w1")
        for name in NAMES:
            device.submit(name, prompt=f"echo {name}", max_tokens=8)
        device.wait(lambda: device.said("j20", "ack"), "some jobs to be accepted")
        yield running, device


def count(url: str, where: str) -> int:
    with psycopg.connect(url) as conn:
        found = conn.execute(f"SELECT count(*) FROM jobs WHERE {where}".encode()).fetchone()  # noqa: S608
    assert found
    return int(found[0])


def everything_is_answered_once(device: Device, url: str) -> None:
    for name in NAMES:
        assert device.result(name, 60)["status"] == "ok"
    device.submit("after", prompt="echo after", max_tokens=8)
    device.result("after")
    texts = {name: {one["text"] for one in device.said(name, "res")} for name in NAMES}
    assert texts == {name: {f"echo {name}"} for name in NAMES}
    assert count(url, "status = 'ok'") == count(url, "true") == len(NAMES) + 1
    device.wait(lambda: count(url, "NOT told") == 0, "the outbox to be empty")


def test_a_killed_dispatcher_finishes_every_accepted_job_after_its_restart(
    tmp_path: Path, place: str, mortal: PostgresServer
) -> None:
    with fleet_on(place, tmp_path) as (running, device):
        command = Path(f"/proc/{running.processes['dispatcher'].pid}/cmdline")
        assert not command.exists() or mortal.password not in command.read_text()
        running.kill("dispatcher")
        running.start_dispatcher(STORE__URL=place)
        everything_is_answered_once(device, place)
    assert mortal.password not in (tmp_path / "dispatcher.log").read_text()


def test_a_killed_database_is_waited_for_and_nothing_is_lost(
    tmp_path: Path, place: str, mortal: PostgresServer
) -> None:
    with fleet_on(place, tmp_path) as (running, device):
        mortal.kill()
        mortal.start()
        everything_is_answered_once(device, place)
        assert "dispatcher.recovered" in (tmp_path / "dispatcher.log").read_text()
        assert running.processes["dispatcher"].poll() is None
