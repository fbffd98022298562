"""Grafana's board before a real Prometheus and a real fleet: every panel shows something."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from fleet_cli.local_fleet import free_port
from tests.conftest import require
from tests.integration.fleet import PATIENCE_S, Fleet

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
BOARD: Final[dict[str, Any]] = json.loads(
    (DEPLOY / "monitoring/grafana/edgefleet.json").read_text()
)
JOBS: Final = 12
NOTHING_WRONG: Final = {
    "Failures of boards a second",
    "Second best a second",
    "Messages dropped a second",
}
"""Panels of what did not happen here: what they ask must be an answer, and may be an empty one."""
SENSORS: Final = {"Temperature", "Hottest workers"}
"""A virtual machine has none."""


def panels() -> list[dict[str, Any]]:
    return [panel for panel in BOARD["panels"] if panel["type"] != "row"]


class Prometheus:
    """A Prometheus with the product's rules, every second."""

    def __init__(self, folder: Path, gateway: int, exporter: int) -> None:
        self._url = f"http://127.0.0.1:{free_port()}"
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in (DEPLOY / "monitoring/rules").glob("*.yml")],
            "scrape_configs": [
                {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
                for name, port in (("edgefleet", gateway), ("node", exporter))
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    str(shutil.which("prometheus")),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address={self._url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=log,
            )

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that it has for an expression; raises what it says against it."""
        told = urllib.parse.urlencode({"query": expression})
        address = f"{self._url}/api/v1/query?{told}"
        with urllib.request.urlopen(address, timeout=10) as reply:  # noqa: S310 - loopback
            found: list[dict[str, Any]] = json.load(reply)["data"]["result"]
        return found

    def until(self, expression: str, deadline_s: float) -> list[dict[str, Any]]:
        """Return the series as soon as there are any with a figure; none: time is over."""
        while True:
            assert self.process.poll() is None, self._log.read_text()
            try:
                found = [one for one in self.ask(expression) if one["value"][1] != "NaN"]
            except urllib.error.HTTPError as error:
                raise AssertionError(f"{expression}: {error.read().decode()}") from error
            except OSError:
                found = []
            if found or time.monotonic() > deadline_s:
                return found
            time.sleep(0.2)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It looks at a fleet that works, and at its machine."""
    programs = {name: shutil.which(name) for name in ("prometheus", "prometheus-node-exporter")}
    for name, found in programs.items():
        require(found is not None, name)
    role = DEPLOY / "ansible/roles/monitoring/defaults/main.yml"
    collectors = yaml.safe_load(role.read_text())["monitoring_collectors"]
    folder = tmp_path_factory.mktemp("board")
    gateway, exporter, cloud = free_port(), free_port(), free_port()
    words = [f"--web.listen-address=127.0.0.1:{exporter}", "--collector.disable-defaults"]
    words += [f"--collector.{name}" for name in collectors]
    with Fleet(folder / "fleet") as fleet, (folder / "exporter.log").open("wb") as log:
        machine = subprocess.Popen(
            [str(programs["prometheus-node-exporter"]), *words], stdout=log, stderr=log
        )
        fleet.start("cloud", "cloud_dispatcher", "simulate-cloud", "--port", str(cloud))
        fleet.start_dispatcher(
            GATEWAY__PORT=str(gateway),
            GATEWAY__WORKER_METRICS="true",
            PROVIDER__BASE_URL=f"http://127.0.0.1:{cloud}",
            PROVIDER__API_KEY_ENV="",
            ENGINE__BUDGET__DAILY_USD="1",
        )
        fleet.start_worker("w1", engine="echo")
        device = fleet.device()
        fleet.online(device, "w1")
        looker = Prometheus(folder, gateway, exporter)
        try:
            # A counter is counted from its first sample on: some before it looks, some after.
            for turn in ("first", "then"):
                if turn == "then":
                    seen = "edgefleet_jobs_finished_total"
                    assert looker.until(seen, time.monotonic() + PATIENCE_S), seen
                for number in range(JOBS):
                    job, escalate = f"{turn}-{number}", "always" if number % 3 == 0 else "never"
                    device.submit(job, prompt="Warm?", escalate=escalate, stream=True, cache="off")
                    assert device.result(job, 60)["status"] == "ok"
                device.submit(f"{turn}-refused", prompt="x", model="nobody-has-it")
                refused = f"{turn}-refused"
                device.wait(lambda job=refused: device.said(job, "ack"), "a refusal")
            yield looker
        finally:
            for process in (looker.process, machine):
                process.terminate()
                process.wait(PATIENCE_S)


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_shows_something(prometheus: Prometheus, panel: dict[str, Any]) -> None:
    is_quiet = panel["title"] in NOTHING_WRONG | SENSORS
    deadline_s = time.monotonic() + (0 if is_quiet else PATIENCE_S)
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", "1m")
        found = prometheus.until(expression, deadline_s)
        assert found or is_quiet, f"nothing for {expression}"
        # What the legend names is there to be read.
        for label in (word for word in ("answered_by", "state", "status", "code", "reason")):
            if f"{{{{{label}}}}}" in target["legendFormat"]:
                assert all(label in one["metric"] for one in found), target["legendFormat"]


def test_the_marks_of_alerts_can_be_asked_for(prometheus: Prometheus) -> None:
    for note in BOARD["annotations"]["list"]:
        prometheus.until(note["expr"], 0)
