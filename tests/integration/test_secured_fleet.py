"""A whole fleet behind certificates: what the access list leaves open is enough to work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from fleet_cli.broker import BrokerKind
from fleet_client.access_probe import AccessProbe
from fleet_pki.certificates import read_certificate
from fleet_pki.registry import Secret
from fleet_protocol.topics import Role
from tests.conftest import require
from tests.integration.secured_site import SecuredSite

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredSite]:
    require(BrokerKind.MOSQUITTO.is_installed, "mosquitto")
    folder = tmp_path_factory.mktemp("secured")
    one = SecuredSite(folder)
    one.enrol(Role.DISPATCHER, "dispatcher")
    one.enrol(Role.AUTHORITY, "authority")
    # A certificate of three days, two and a half of which are over.
    one.enrol(Role.WORKER, "w1", ago=timedelta(hours=60))
    one.enrol(Role.DEVICE, "d1")
    one.enrol(Role.DEVICE, "p1", secret=Secret.PASSWORD)
    one.enrol(Role.ADMIN, "ann")
    one.enrol(Role.OPERATOR, "otto")
    one.enrol(Role.VIEWER, "wall")
    with one:
        programs = [
            start(one, folder, "EDGEFLEET_DISPATCHER", "dispatcher", "cloud_dispatcher", "run"),
            serve(one, folder),
        ]
        # A worker whom nobody answers asks again half a minute later.
        wait_for_line(folder / "authority.log", '"event":"link.up"')
        programs.append(
            start(one, folder, "EDGEFLEET_WORKER", "w1", "edge_worker", "run", "--engine", "echo")
        )
        wait_until_online(one)
        yield one
        for program in programs:
            program.send_signal(signal.SIGTERM)
        for program in programs:
            program.wait(30)


def start(
    site: SecuredSite, folder: Path, prefix: str, name: str, *words: str
) -> subprocess.Popen[bytes]:
    keys = site.keys / name
    environ = {
        f"{prefix}_BROKER__URL": site.url,
        f"{prefix}_BROKER__TLS__CA_FILE": str(keys / "ca.pem"),
        f"{prefix}_BROKER__TLS__CERT_FILE": str(keys / "cert.pem"),
        f"{prefix}_BROKER__TLS__KEY_FILE": str(keys / "key.pem"),
        "EDGEFLEET_WORKER_ID": name,
    }
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *words, "--data", str(folder / f"{name}-data")],
            env={**os.environ, **environ},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def serve(site: SecuredSite, folder: Path) -> subprocess.Popen[bytes]:
    words = ["--broker", site.url, "--identity", str(site.keys / "authority")]
    with (folder / "authority.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fleet_cli", "pki", "serve", "--pki", str(site.pki), *words],
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def wait_until_online(site: SecuredSite) -> None:
    """Wait for the dispatcher's own word that it has a worker."""
    with AccessProbe(site.settings("wall"), ("fleet/v1/fleet/summary",)) as wall:
        wall.wait_until(lambda heard: any(b'"online":1' in payload for _, payload in heard))


def wait_for_line(log: Path, words: str) -> None:
    """Wait until a program has written them."""
    deadline_s = time.monotonic() + 60
    while words not in log.read_text():
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.05)


def fleet(site: SecuredSite, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    url = site.settings(name).url
    mine = ("--broker", url, "--identity", str(site.keys / name))
    return subprocess.run(
        [sys.executable, "-m", "fleet_cli", *words, *mine],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_worker_renews_its_certificate_while_it_works(site: SecuredSite) -> None:
    path = site.keys / "w1" / "cert.pem"
    wait_for_line(site.keys.parent / "w1.log", "certificate.renewed")
    left_s = read_certificate(path.read_bytes()).not_valid_after_utc.timestamp() - time.time()
    assert 71.9 * 3_600 < left_s <= 72 * 3_600
    issued = (site.keys.parent / "authority.log").read_text()
    assert '"event":"certificate.issued"' in issued
    assert '"worker":"w1"' in issued
    # With the new one, too.
    with AccessProbe(site.settings("w1"), ("none",)):
        pass
    outcome = fleet(site, "d1", "ask", "after the renewal", "--json")
    assert json.loads(outcome.stdout.splitlines()[-1])["worker"] == "w1"


@pytest.mark.parametrize("name", ["d1", "p1"])
def test_a_device_is_answered(site: SecuredSite, name: str) -> None:
    outcome = fleet(site, name, "ask", f"a fine day, {name}", "--json")
    assert outcome.returncode == 0, outcome.stderr
    result = json.loads(outcome.stdout.splitlines()[-1])
    assert (result["answered_by"], result["worker"]) == ("edge", "w1")
    assert f"fine day, {name}" in result["text"]


@pytest.mark.parametrize("name", ["wall", "otto", "ann"])
def test_whoever_looks_after_the_fleet_sees_its_workers(site: SecuredSite, name: str) -> None:
    outcome = fleet(site, name, "workers", "ls", "--json")
    assert outcome.returncode == 0, outcome.stderr
    [worker] = json.loads(outcome.stdout)["workers"]
    assert (worker["worker"], worker["status"]) == ("w1", "online")


def test_an_operator_commands_and_a_viewer_does_not(site: SecuredSite) -> None:
    for words in (
        ("workers", "drain", "w1"),
        ("workers", "resume", "w1"),
        ("cache", "clear", "--yes"),
    ):
        refused = fleet(site, "wall", *words)
        assert refused.returncode != 0
        assert "not for the role viewer" in refused.stderr
    assert fleet(site, "otto", "workers", "resume", "w1").returncode == 0
    refused = fleet(site, "otto", "cache", "clear", "--yes")
    assert "ask as admin" in refused.stderr
    assert fleet(site, "ann", "cache", "clear", "--yes").returncode == 0


def test_a_viewer_sees_the_fleet_and_may_not_ask(site: SecuredSite) -> None:
    outcome = fleet(site, "wall", "doctor", "--json")
    checks = {one["name"]: one for one in json.loads(outcome.stdout)["checks"]}
    assert checks["dispatcher"]["ok"]
    assert checks["workers"]["ok"]
    assert fleet(site, "wall", "ask", "hello", "--timeout", "5").returncode != 0


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_worker_under_another_name_than_its_certificates_is_told(
    site: SecuredSite, tmp_path: Path, command: str
) -> None:
    keys = site.keys / "w1"
    tls = {f"{name.upper()}_FILE": str(keys / f"{name}.pem") for name in ("ca", "cert", "key")}
    environ = {f"EDGEFLEET_WORKER_BROKER__TLS__{name}": path for name, path in tls.items()}
    words = ["--engine", "echo", "--id", "raspberrypi", "--data", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-m", "edge_worker", command, "--broker", site.url, *words],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 5, ended.stderr
    assert "not speak as worker 'raspberrypi' [not_authorized]" in ended.stderr


def test_a_check_under_its_own_name_does_not_disturb_a_worker_at_work(site: SecuredSite) -> None:
    folder = site.keys.parent / "w1-check"
    folder.mkdir()
    program = start(
        site, folder, "EDGEFLEET_WORKER", "w1", "edge_worker", "check", "--engine", "echo"
    )
    assert program.wait(60) == 0, (folder / "w1.log").read_text()
    assert fleet(site, "d1", "ask", "still there?").returncode == 0
