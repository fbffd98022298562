"""Every template, as the hosts of the sample inventories would get it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest
import yaml

import cloud_dispatcher.config
import edge_worker.config
from tests.conftest import require
from tests.deploy.playbooks import ANSIBLE, ansible_program, run_ansible

pytestmark = [pytest.mark.ansible, pytest.mark.timeout(600)]

SHARED: Final = "tables.toml.j2"
"""What others include; it makes no file of its own."""
TEMPLATES: Final = sorted(
    path for path in ANSIBLE.glob("roles/*/templates/*.j2") if path.name != SHARED
)
UNITS: Final = sorted(path.stem for path in TEMPLATES if path.name.endswith(".service.j2"))
HOSTS: Final = {
    "desk": ("desk", "pi-1"),
    # One of each kind: their sisters differ in name alone.
    "two-sites": ("broker.example.com", "north-pi-01", "south-jetson-1"),
}
EXPOSURE_MOST: Final = {"edgefleet-broker-renewal.service": 25}
"""In tenths, where it is not 20: root, once a week, for a second."""


@pytest.fixture(scope="module", params=HOSTS)
def rendered(
    request: pytest.FixtureRequest, ansible: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Render for the hosts of one inventory: a folder for each of them."""
    del ansible
    out = tmp_path_factory.mktemp(request.param)
    hosts = HOSTS[request.param]
    program = ansible_program("ansible-playbook")
    assert program
    inventory = str(ANSIBLE / f"inventories/{request.param}/hosts.yml")
    variables = {
        "render_out": str(out),
        "render_templates": [str(path) for path in TEMPLATES],
        "base_ntp_servers": ["time.example.com"],
        "dashboard_url": "https://fleet.example.com",
        "dashboard_proxies": ["127.0.0.1", "::1"],
        "monitoring_alertmanagers": ["alerts.example.com:9093"],
        "monitoring_ca_file": "/etc/ssl/certs/site.pem",
        "monitoring_keys_file": "/etc/edgefleet/gateway/keys.toml",
    }
    words = [program, "-i", inventory, str(Path(__file__).with_name("render.yml"))]
    done = run_ansible([*words, "--limit", ",".join(hosts), "-e", json.dumps(variables)], home=out)
    assert done.returncode == 0, done.stdout + done.stderr
    for host in hosts:
        (out / host).mkdir()
        for name, text in json.loads((out / f"{host}.json").read_text()).items():
            (out / host / name).write_text(text)
    return {host: out / host for host in hosts}


def test_the_sample_of_two_sites_has_forty_boards(ansible: None, tmp_path: Path) -> None:
    del ansible
    program = ansible_program("ansible-inventory")
    assert program
    inventory = str(ANSIBLE / "inventories/two-sites/hosts.yml")
    done = run_ansible([program, "-i", inventory, "--list"], home=tmp_path)
    groups = json.loads(done.stdout)
    assert sum(len(groups[site]["hosts"]) for site in groups["workers"]["children"]) == 40


def test_the_programs_take_their_settings(rendered: dict[str, Path]) -> None:
    for host, folder in rendered.items():
        worker = edge_worker.config.load_settings(
            config=folder / "worker.toml.j2", environ={}, flags={}
        )
        assert worker.worker == host.replace(".", "-")
        assert worker.broker.port == 8_883
        # By which the role `verify` asks for it.
        assert worker.label_values["board"] == worker.worker
        dispatcher = cloud_dispatcher.config.load_settings(folder / "dispatcher.toml.j2", {})
        assert dispatcher.broker.tls is not None


def test_no_template_leaves_anything_open(rendered: dict[str, Path]) -> None:
    for folder in rendered.values():
        for path in folder.iterdir():
            text = path.read_text()
            assert "{{" not in text.replace("{{ $", ""), path
            assert "None" not in text, path


def test_the_dispatcher_takes_what_the_dashboard_adds(rendered: dict[str, Path]) -> None:
    for folder in rendered.values():
        unit = (folder / "edgefleet-dispatcher.conf.j2").read_text()
        environ = dict(re.findall(r"^Environment='(\w+)=(.*)'$", unit, re.MULTILINE))
        settings = cloud_dispatcher.config.load_settings(folder / "dispatcher.toml.j2", environ)
        gateway = settings.gateway
        assert (gateway.port, gateway.worker_metrics) == (8_600, True)
        assert gateway.page.proxies == ("127.0.0.1", "::1")
        given = re.findall(r"^LoadCredential=([^:]+):", unit, re.MULTILINE)
        for role, broker in gateway.page.brokers().items():
            assert broker.user == f"page-{role}"
            assert broker.tls is not None
            assert Path(str(broker.tls.cert_file)).name in given
            assert Path(str(broker.tls.key_file)).name in given
        assert len(gateway.page.brokers()) == 3


def test_prometheus_takes_its_settings(rendered: dict[str, Path]) -> None:
    require(shutil.which("promtool") is not None, "promtool (Debian's package `prometheus`)")
    for folder in rendered.values():
        words = ["promtool", "check", "config", "--syntax-only", str(folder / "prometheus.yml.j2")]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_the_board_where_it_is_written(rendered: dict[str, Path]) -> None:
    tasks = yaml.safe_load((ANSIBLE / "roles/monitoring/tasks/grafana.yml").read_text())
    target = next(task["ansible.builtin.copy"]["dest"] for task in tasks if "board" in task["name"]
                  and "ansible.builtin.copy" in task)  # fmt: skip
    for folder in rendered.values():
        provider = yaml.safe_load((folder / "grafana-dashboards.yml.j2").read_text())["providers"]
        assert str(Path(target).parent) == provider[0]["options"]["path"]
        source = yaml.safe_load((folder / "grafana-datasource.yml.j2").read_text())["datasources"]
        assert source[0]["type"] == "prometheus"
        assert source[0]["url"] == "http://127.0.0.1:9090"


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_is_locked_in(rendered: dict[str, Path], unit: str, tmp_path: Path) -> None:
    require(shutil.which("systemd-analyze") is not None, "systemd-analyze")
    for host, folder in rendered.items():
        system = tmp_path / host / "etc/systemd/system"
        (system / "edgefleet-.service.d").mkdir(parents=True)
        shutil.copy(folder / "sandbox.conf.j2", system / "edgefleet-.service.d/10-sandbox.conf")
        shutil.copy(folder / f"{unit}.j2", system / unit)
        extra = folder / f"{Path(unit).stem}.conf.j2"
        if extra.exists():
            (system / f"{unit}.d").mkdir()
            shutil.copy(extra, system / f"{unit}.d/20-extra.conf")
        words = ["--offline=true", f"--threshold={EXPOSURE_MOST.get(unit, 20)}", "--no-pager"]
        done = subprocess.run(
            ["systemd-analyze", "security", *words, f"--root={tmp_path / host}", unit],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-500:] + done.stderr
