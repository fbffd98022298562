"""A board with a one-time token joins over the network, and a token is good for nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from fleet_cli.broker import BrokerKind
from fleet_client.access_probe import AccessProbe
from fleet_pki import certificates as c
from fleet_pki.registry import Secret
from fleet_protocol import codec
from fleet_protocol import messages as m
from fleet_protocol.access import join_user
from fleet_protocol.settings import BrokerSettings, TlsSettings
from fleet_protocol.topics import Role
from tests.conftest import require
from tests.integration.secured_site import LOOPBACK, SecuredSite
from tests.integration.test_secured_fleet import serve, wait_for_line

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

DENIED, TIMEOUT, USAGE = 5, 4, 2


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredSite]:
    require(BrokerKind.MOSQUITTO.is_installed, "mosquitto")
    folder = tmp_path_factory.mktemp("joining")
    one = SecuredSite(folder)
    one.enrol(Role.AUTHORITY, "authority")
    one.enrol(Role.WORKER, "pi-1", "pi-2", "pi-3", "pi-4", secret=Secret.TOKEN)
    one.enrol(Role.WORKER, "pi-old", secret=Secret.TOKEN, ago=timedelta(hours=25))
    with one:
        authority = serve(one, folder)
        wait_for_line(folder / "authority.log", '"event":"link.up"')
        yield one
        authority.terminate()
        authority.wait(30)


class Board:
    """A board's own folder, with what was put on its card."""

    def __init__(self, site: SecuredSite, name: str, folder: Path) -> None:
        self.site, self.name, self.folder = site, name, folder
        self.token = folder / "token"
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"
        folder.mkdir(exist_ok=True)
        self.token.write_bytes((site.keys / name / "token").read_bytes())
        self.token.chmod(0o600)

    def join(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `edge-worker join` as the service does before it starts the worker."""
        tls = {
            "CA_FILE": str(self.site.keys / self.name / "ca.pem"),
            "CERT_FILE": str(self.certificate),
            "KEY_FILE": str(self.key),
        }
        environ = {f"EDGEFLEET_WORKER_BROKER__TLS__{key}": path for key, path in tls.items()}
        at = f"mqtts://{LOOPBACK}:{self.site.site.password_port}"
        return subprocess.run(
            [
                *(sys.executable, "-m", "edge_worker", "join", "--id", self.name),
                *("--broker", self.site.url, "--at", at, "--token-file", str(self.token)),
                *("--json", *words),
            ],
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def settings(self) -> BrokerSettings:
        """How the board comes to the broker with nothing but its token."""
        return BrokerSettings(
            url=f"mqtts://{LOOPBACK}:{self.site.site.password_port}",
            username=join_user(self.name),
            password_file=str(self.site.keys / self.name / "token"),
            tls=TlsSettings(ca_file=str(self.site.keys / self.name / "ca.pem")),
        )


def test_a_board_joins_with_a_key_of_its_own(site: SecuredSite, tmp_path: Path) -> None:
    board = Board(site, "pi-1", tmp_path)
    joined = board.join()
    assert joined.returncode == 0, joined.stderr
    assert json.loads(joined.stdout) == {"ok": True, "worker": "pi-1", "joined": True}
    assert not board.token.exists()
    assert board.key.stat().st_mode & 0o777 == 0o600
    certificate = c.read_certificate(board.certificate.read_bytes())
    key = c.read_key(board.key.read_bytes())
    assert c.public_digest(certificate) == c.key_digest(key.public_key())
    as_worker = BrokerSettings(
        url=site.url,
        tls=TlsSettings(
            ca_file=str(site.keys / "pi-1" / "ca.pem"),
            cert_file=str(board.certificate),
            key_file=str(board.key),
        ),
    )
    with AccessProbe(as_worker, ("none",)):
        pass
    again = board.join()
    assert (again.returncode, json.loads(again.stdout)["joined"]) == (0, False)


def test_a_power_cut_before_the_token_was_deleted_costs_nothing(
    site: SecuredSite, tmp_path: Path
) -> None:
    board = Board(site, "pi-2", tmp_path)
    assert board.join().returncode == 0
    first = board.certificate.read_bytes()
    board.certificate.unlink()
    board.token.write_bytes((site.keys / "pi-2" / "token").read_bytes())
    board.token.chmod(0o600)
    assert board.join().returncode == 0
    assert board.certificate.read_bytes() == first


def test_whoever_finds_a_used_token_gets_nothing_for_it(site: SecuredSite, tmp_path: Path) -> None:
    board = Board(site, "pi-3", tmp_path / "board")
    assert board.join().returncode == 0
    thief = Board(site, "pi-3", tmp_path / "thief")
    refused = thief.join()
    assert refused.returncode == DENIED
    assert "token_refused" in refused.stdout
    assert "fleet enroll worker" in refused.stdout
    assert thief.token.exists()
    assert not thief.certificate.exists()
    token = thief.token.read_text().strip()
    assert token not in refused.stderr + refused.stdout + site.log
    site.reload()
    assert thief.join("--timeout-s", "5").returncode == DENIED


def test_a_token_that_is_too_old_is_refused(site: SecuredSite, tmp_path: Path) -> None:
    refused = Board(site, "pi-old", tmp_path).join()
    assert refused.returncode == DENIED
    assert "too old" in refused.stdout


def test_a_token_for_another_board_is_found_out_here(site: SecuredSite, tmp_path: Path) -> None:
    board = Board(site, "pi-4", tmp_path)
    board.token.write_bytes((site.keys / "pi-1" / "token").read_bytes())
    refused = board.join()
    assert refused.returncode == USAGE
    assert "wrong_token" in refused.stdout


def test_a_token_that_others_can_read_is_not_used(site: SecuredSite, tmp_path: Path) -> None:
    board = Board(site, "pi-4", tmp_path)
    board.token.chmod(0o644)
    assert "secret_exposed" in board.join().stdout


def test_with_a_token_a_board_may_ask_for_its_certificate_and_nothing_else(
    site: SecuredSite, tmp_path: Path
) -> None:
    board = Board(site, "pi-4", tmp_path)
    root = "fleet/v1"
    presence = codec.encode(m.Presence(status=m.PresenceStatus.ONLINE, boot="b"))
    with AccessProbe(board.settings(), ("none",)) as joining:
        for topic in ("workers/pi-4/presence", "workers/pi-4/csr", "workers/pi-1/join"):
            assert not joining.say(f"{root}/{topic}", presence)
        assert joining.say(f"{root}/workers/pi-4/join", b"{}")


def test_without_an_authority_the_board_says_so_and_keeps_its_token(tmp_path: Path) -> None:
    require(BrokerKind.MOSQUITTO.is_installed, "mosquitto")
    alone = SecuredSite(tmp_path)
    alone.enrol(Role.WORKER, "pi-9", secret=Secret.TOKEN)
    with alone:
        board = Board(alone, "pi-9", tmp_path / "board")
        began_s = time.monotonic()
        refused = board.join("--timeout-s", "3")
        assert time.monotonic() - began_s < 60
    assert refused.returncode == TIMEOUT
    assert "fleet pki serve" in refused.stdout
    assert board.token.exists()
