"""A whole fleet behind certificates: what the access list leaves open is enough to work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_cli.broker import BrokerKind
from fleet_client.access_probe import AccessProbe
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
    one.enrol(Role.WORKER, "w1")
    one.enrol(Role.DEVICE, "d1")
    one.enrol(Role.DEVICE, "p1", secret=Secret.PASSWORD)
    one.enrol(Role.ADMIN, "ann")
    one.enrol(Role.VIEWER, "wall")
    with one:
        programs = [
            start(one, folder, "EDGEFLEET_DISPATCHER", "dispatcher", "cloud_dispatcher", "run"),
            start(one, folder, "EDGEFLEET_WORKER", "w1", "edge_worker", "run", "--engine", "echo"),
        ]
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


def wait_until_online(site: SecuredSite) -> None:
    """Wait for the dispatcher's own word that it has a worker."""
    with AccessProbe(site.settings("wall"), ("fleet/v1/fleet/summary",)) as wall:
        wall.wait_until(lambda heard: any(b'"online":1' in payload for _, payload in heard))


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


@pytest.mark.parametrize("name", ["d1", "p1"])
def test_a_device_is_answered(site: SecuredSite, name: str) -> None:
    outcome = fleet(site, name, "ask", f"a fine day, {name}", "--json")
    assert outcome.returncode == 0, outcome.stderr
    result = json.loads(outcome.stdout.splitlines()[-1])
    assert (result["answered_by"], result["worker"]) == ("edge", "w1")
    assert f"fine day, {name}" in result["text"]


def test_an_admin_commands_and_a_viewer_does_not(site: SecuredSite) -> None:
    outcome = fleet(site, "ann", "workers", "ls", "--json")
    assert outcome.returncode == 0, outcome.stderr
    [worker] = json.loads(outcome.stdout)["workers"]
    assert (worker["worker"], worker["status"]) == ("w1", "online")
    outcome = fleet(site, "wall", "workers", "ls", "--json")
    assert outcome.returncode == 5
    assert "admin role" in outcome.stderr


def test_a_viewer_sees_the_fleet_and_may_not_ask(site: SecuredSite) -> None:
    outcome = fleet(site, "wall", "doctor", "--json")
    checks = {one["name"]: one for one in json.loads(outcome.stdout)["checks"]}
    assert checks["dispatcher"]["ok"]
    assert checks["workers"]["ok"]
    assert fleet(site, "wall", "ask", "hello", "--timeout", "5").returncode != 0
