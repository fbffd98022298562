"""What docs/backups.md tells people to type brings back what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import require
from tests.integration.fleet import Device, Fleet
from tests.postgres_server import ROLE, PostgresServer, find_postgres

PAGE: Final = (Path(__file__).parents[2] / "docs" / "backups.md").read_text()
DONE: Final = [f"done-{number}" for number in range(20)]
OPEN: Final = [f"open-{number}" for number in range(20)]

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]


def commands(heading: str) -> list[str]:
    """Return the blocks of shell below a heading, in order."""
    section = re.split(rf"^## {re.escape(heading)}$", PAGE, flags=re.MULTILINE)[1]
    section = section.split("\n## ")[0]
    shell = re.findall(r"^```(?:bash|console)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [re.sub(r"^\$ ", "", block, flags=re.MULTILINE) for block in shell]


def type_in(block: str, places: dict[str, str], **environ: str) -> str:
    for name, place in places.items():
        block = block.replace(name, place)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    outcome = subprocess.run(
        ["bash", "-ec", block],
        env={**os.environ, "PATH": path, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert outcome.returncode == 0, f"{block}\n{outcome.stdout}{outcome.stderr}"
    return outcome.stdout


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """Where this test has what the page's paths name."""
    for folder in ("backups", "state", "etc"):
        (tmp_path / folder).mkdir()
    return {
        "/var/backups/edgefleet": str(tmp_path / "backups"),
        "/var/lib/edgefleet": str(tmp_path / "state"),
        "/etc/edgefleet": str(tmp_path / "etc"),
        "chown edgefleet-dispatcher:": f"chown {os.getuid()}",
    }


def work(fleet: Fleet, **settings: str) -> Device:
    """Let a fleet answer some jobs and leave others waiting, for its one worker goes away."""
    device = fleet.device()
    fleet.start_dispatcher(**settings)
    fleet.start_worker("w1", engine="echo")
    fleet.online(device, "w1")
    for name in DONE:
        device.submit(name, prompt=f"echo {name}", max_tokens=8)
    for name in DONE:
        device.result(name)
    fleet.kill("w1")
    for name in OPEN:
        device.submit(name, prompt=f"echo {name}", max_tokens=8)
    device.wait(lambda: all(device.said(name, "ack") for name in OPEN), "jobs to be accepted")
    return device


def comes_back(fleet: Fleet, restore: Callable[[], None], **settings: str) -> None:
    """After the restart open jobs are answered, and done ones are known."""
    fleet.kill("dispatcher")
    restore()
    device = fleet.device("later")
    fleet.start_dispatcher(**settings)
    first = fleet.devices[0]
    for name in DONE:
        first.heard[f"dev/{first.name}/jobs/{name}/res"].clear()
        first.submit(name, prompt=f"echo {name}", max_tokens=8)
    for name in DONE:
        assert first.result(name)["status"] == "ok"
    fleet.start_worker("w2", engine="echo")
    fleet.online(device, "w2")
    for name in OPEN:
        assert first.result(name)["worker"] == "w2"


def test_a_copy_of_sqlite_made_at_work_brings_the_jobs_back(
    tmp_path: Path, places: dict[str, str]
) -> None:
    require(shutil.which("sqlite3") is not None, "sqlite3")
    save, restore = commands("Jobs in SQLite")
    store = tmp_path / "fleet" / "dispatcher" / "dispatcher.db"
    places = {"/var/lib/edgefleet/dispatcher/dispatcher.db": str(store), **places}
    with Fleet(tmp_path / "fleet") as fleet:
        work(fleet)

        def bring_back() -> None:
            store.write_bytes(b"the disk was not well")
            type_in(restore, places)

        assert store.exists()
        type_in(save, places)
        comes_back(fleet, bring_back)


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    require(find_postgres() is not None, "PostgreSQL")
    with PostgresServer() as server:
        yield server


def test_a_dump_of_postgresql_made_at_work_brings_the_jobs_back(
    tmp_path: Path, places: dict[str, str], server: PostgresServer
) -> None:
    save, restore = commands("Jobs in PostgreSQL")
    name = server.create()
    programs = find_postgres()
    environ = {
        "PGHOST": str(server.folder),
        "PGPORT": str(server.port),
        "PGUSER": "postgres",
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }
    with pytest.MonkeyPatch.context() as patch, Fleet(tmp_path / "fleet") as fleet:
        for key, value in environ.items():
            patch.setenv(key, value)
        url = server.url(name)
        work(fleet, STORE__URL=url)
        called = {"edgefleet\n": f"{name}\n", "--dbname=edgefleet": f"--dbname={name}"}
        called |= {"--owner edgefleet": f"--owner {ROLE}", "--role=edgefleet": f"--role={ROLE}"}
        type_in(save, called | places)

        def bring_back() -> None:
            type_in(restore, called | places)

        comes_back(fleet, bring_back, STORE__URL=url)


def test_a_copy_of_the_authority_still_issues_and_keeps_its_modes(
    tmp_path: Path, places: dict[str, str]
) -> None:
    save, restore, look = commands("The authority")
    pki = tmp_path / "state" / "authority"
    type_in(f"fleet pki init --pki {pki}", {})
    type_in(f"fleet enroll worker pi-1 --pki {pki} --out {tmp_path}/keys", {})
    modes = {path.relative_to(pki): path.stat().st_mode for path in pki.glob("**/*")}
    type_in(save, places)
    shutil.rmtree(pki)
    type_in(restore, places)
    assert modes == {path.relative_to(pki): path.stat().st_mode for path in pki.glob("**/*")}
    listing = look.splitlines()[0]
    assert "pi-1" in type_in(listing, places)
    type_in(f"fleet enroll worker pi-2 --pki {pki} --out {tmp_path}/keys", {})


def test_a_copy_of_the_audit_log_can_be_verified(tmp_path: Path, places: dict[str, str]) -> None:
    save, verify = commands("The audit log")
    audit = {"folder": str(tmp_path / "state/audit"), "key_file": str(tmp_path / "etc/audit.key")}
    with Fleet(tmp_path / "fleet") as fleet:
        work(fleet, AUDIT__FOLDER=audit["folder"], AUDIT__KEY_FILE=audit["key_file"])
        fleet.stop("dispatcher")
        type_in(save, places)
    assert type_in(verify, places)
