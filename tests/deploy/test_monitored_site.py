"""The page and Prometheus on a site of test boards: real systemd, real SSH, Debian's own packages.

The boards have no internet; what the role installs lies in their images, as on such a site.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest

from fleet_protocol import __version__
from tests.deploy.board_lab import BoardLab
from tests.deploy.field_site import exposure_of
from tests.deploy.patience import wait_until
from tests.deploy.playbooks import Operator
from tests.deploy.releases import Target, fill_wheelhouse

pytestmark = [pytest.mark.boards, pytest.mark.timeout(1_800)]

SERVICES: Final = {
    "hub": ("prometheus", "prometheus-node-exporter"),
    "pi-1": ("prometheus-node-exporter",),
}
"""What Debian starts where its packages are installed."""
PROMETHEUS: Final = "http://127.0.0.1:9090/api/v1"
PASSWORD: Final = "rain on a tin roof"
UNITS: Final = {"hub": ("edgefleet-prometheus", "edgefleet-node"), "pi-1": ("edgefleet-node",)}


class MonitoredSite:
    """A hub with Prometheus, and one board that it looks at."""

    def __init__(self, lab: BoardLab, operator: Operator) -> None:
        self.lab = lab
        self.hub = lab.boards["hub"]
        self.pi = lab.boards["pi-1"]
        self.operator = operator

    def ask(self, path: str) -> Any:
        """Ask Prometheus, from the hub: it listens nowhere else."""
        code = (
            f"import urllib.request as u; print(u.urlopen('{PROMETHEUS}/{path}').read().decode())"
        )
        told = self.hub.ssh("python3", "-c", f'"{code}"', check=False)
        return json.loads(told.stdout)["data"] if told.returncode == 0 else None

    def query(self, expression: str) -> dict[str, float]:
        """Return the value by instance, or by worker."""
        found = self.ask(f"query?query={quote(expression)}")
        result = found["result"] if found else []
        return {
            one["metric"].get("worker", one["metric"].get("instance", "")): float(one["value"][1])
            for one in result
        }


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    wheelhouse: Path,
    boards_can_start: None,  # noqa: ARG001 - looks first
) -> Iterator[MonitoredSite]:
    folder = tmp_path_factory.mktemp("monitored")
    fill_wheelhouse(wheelhouse, Target.hub("3.11"), Target.board("3.11"))
    settings = {
        "fleet_version": __version__,
        "fleet_wheelhouse": str(wheelhouse),
        "fleet_dashboard": True,
        "dashboard_users": [{"name": "ann", "role": "operator", "password": PASSWORD}],
        "fleet_monitoring": True,
        "dispatcher_settings": {"gateway": {"worker_metrics": True}},
        "base_timesync": False,
        "verify_patience_s": 900,
        "verify_timeout_s": 300,
        "worker_engine": "echo",
        "verify_question": "golden",
        "verify_expect": "golden",
    }
    with BoardLab(folder) as lab:
        for name, services in SERVICES.items():
            board = lab.add(name)
            words = ["systemctl", f"--root={board.root}", "--quiet", "enable", *services]
            subprocess.run(words, check=True)
            board.switch_on()
        yield MonitoredSite(lab, Operator(lab, lab.boards["hub"], settings, {}))


def _wait_until(is_so: Callable[[], bool], why: Callable[[], object]) -> None:
    """Look once a second: each look costs a login and an interpreter."""
    wait_until(is_so, why, every_s=1)


def test_a_blank_site_is_looked_at_when_the_play_is_over(site: MonitoredSite) -> None:
    site.operator.must_play("site")
    _wait_until(
        lambda: set(site.query("up").values()) == {1.0} and len(site.query("up")) == 3,
        lambda: site.ask("targets"),
    )
    assert site.query("up").keys() == {"127.0.0.1:8600", "hub", "pi-1"}


def test_it_knows_workers_machines_and_rules(site: MonitoredSite) -> None:
    _wait_until(
        lambda: site.query("edgefleet_worker_online") == {"pi-1": 1.0},
        lambda: site.query("edgefleet_worker_online"),
    )
    _wait_until(
        lambda: site.query("edgefleet:node_root_free:ratio").keys() == {"hub", "pi-1"},
        lambda: site.query("node_filesystem_size_bytes"),
    )
    # Its disk is not read-only, though everything is to whoever runs in the sandbox.
    assert set(site.query("node_filesystem_readonly{mountpoint='/'}").values()) == {0.0}
    groups = {group["name"] for group in site.ask("rules")["groups"]}
    assert groups == {"edgefleet-objectives", "edgefleet-alerts", "edgefleet-nodes"}


BROWSER: Final = """
import http.cookiejar, json, urllib.request as u
from websockets.sync.client import connect
url = "http://127.0.0.1:8600"
jar = http.cookiejar.CookieJar()
browser = u.build_opener(u.HTTPCookieProcessor(jar))
told = {}
for name in ("/", "/metrics"):
    try:
        told[name] = u.urlopen(url + name).status
    except u.HTTPError as error:
        told[name] = error.code
body = json.dumps({"name": "ann", "password": "%s"}).encode()
headers = {"content-type": "application/json", "origin": url}
told["login"] = browser.open(u.Request(url + "/page/login", body, headers)).status
told["session"] = json.load(browser.open(url + "/page/session"))
cookie = {"cookie": "; ".join(f"{one.name}={one.value}" for one in jar)}
with connect(
    "ws" + url[4:] + "/mqtt", origin=url, additional_headers=cookie, subprotocols=["mqtt"]
) as page:
    page.send(b"\\x10\\x10\\x00\\x04MQTT\\x05\\x02\\x00\\x1e\\x00\\x00\\x03abc")
    told["connack"] = list(page.recv(timeout=20)[:4])
print(json.dumps(told))
"""
"""What a browser does, as far as the broker's word that the page is let in."""


def test_the_page_is_for_those_who_log_in(site: MonitoredSite) -> None:
    look_at_the_page(site)


def look_at_the_page(site: MonitoredSite) -> None:
    python = "sudo /opt/edgefleet/current/venv/bin/python - <<'EOF'"
    told = json.loads(site.hub.ssh(f"{python}\n{BROWSER % PASSWORD}\nEOF").stdout)
    assert (told["/"], told["/metrics"], told["login"]) == (200, 401, 204)
    assert told["session"]["role"] == "operator"
    packet, _, _, reason = told["connack"]
    assert (packet, reason) == (0x20, 0)


def test_a_second_run_changes_nothing(site: MonitoredSite) -> None:
    recap = site.operator.must_play("site")
    assert set(recap.changed.values()) == {0}, recap.text


def test_its_units_are_locked_in(site: MonitoredSite) -> None:
    for name, units in UNITS.items():
        for unit in units:
            assert exposure_of(site.lab.boards[name], unit) <= 2.0, unit


def test_a_machine_tells_nobody_else_how_it_is(site: MonitoredSite) -> None:
    code = (
        "import ssl, urllib.request as u; c = ssl._create_unverified_context(); "
        f"u.urlopen('https://{site.pi.address}:9100/metrics', context=c)"
    )
    refused = site.hub.ssh("python3", "-c", f'"{code}"', check=False)
    assert refused.returncode != 0
    assert "alert" in refused.stderr.lower(), refused.stderr


def test_a_dispatcher_that_is_gone_fires_an_alert(site: MonitoredSite) -> None:
    fires = "ALERTS{alertname='FleetDispatcherDown',alertstate='firing'}"
    assert site.query(fires) == {}
    site.hub.ssh("sudo systemctl stop edgefleet-dispatcher")
    _wait_until(lambda: site.query(fires) != {}, lambda: site.ask("alerts"))
    site.hub.ssh("sudo systemctl start edgefleet-dispatcher")
    _wait_until(lambda: site.query(fires) == {}, lambda: site.ask("alerts"))


def test_new_keys_are_for_pages_too(site: MonitoredSite) -> None:
    sums = "sudo sha256sum /etc/edgefleet/identities/page-operator/key.pem"
    before = site.hub.ssh(sums).stdout
    site.operator.must_play("rotate_certs")
    assert site.hub.ssh(sums).stdout != before
    _wait_until(lambda: set(site.query("up").values()) == {1.0}, lambda: site.ask("targets"))
    look_at_the_page(site)


def test_a_board_that_is_taken_off_is_looked_at_no_more(site: MonitoredSite) -> None:
    site.operator.must_play("reset", "--limit", "pi-1")
    _wait_until(lambda: "pi-1" not in site.query("up"), lambda: site.query("up"))
    assert site.pi.ssh("ls /etc/edgefleet", check=False).returncode != 0
    site.operator.must_play("reset", "--limit", "hub")
    words = "sudo find / -xdev -iname '*edgefleet*' -not -path '/var/log/*' -not -path '/proc/*'"
    for board in (site.hub, site.pi):
        assert board.ssh(words).stdout == ""
