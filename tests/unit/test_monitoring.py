"""The monitoring files, as Prometheus reads them: rules, their tests, and Grafana's board.

`promtool` comes with Debian's package `prometheus`. What the files name is held to what a gateway
really serves.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from fleet_cli.local_fleet import free_port
from fleet_protocol import topics as t
from tests.conftest import require
from tests.unit.gateway_house import gateway
from tests.unit.service_house import PATIENCE_S, QUESTION, House, Peer, Worker

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
FOLDER: Final = DEPLOY / "monitoring"
RULES: Final = sorted((FOLDER / "rules").glob("*.yml"))
CASES: Final = sorted((FOLDER / "tests").glob("*.yml"))
BOARD: Final[dict[str, Any]] = json.loads((FOLDER / "grafana/edgefleet.json").read_text())

NODE: Final = re.compile(r"^node_\w+$")
PROMETHEUS_OWN: Final = {"up", "ALERTS"}
NOT_NAMES: Final = {"and", "or", "unless", "bool", "offset", "on", "by", "without", "ignoring"}
SENSORS: Final = {"node_hwmon_temp_celsius", "node_thermal_zone_temp"}
"""What a machine without sensors, a virtual one, does not serve."""


def rules_of(path: Path) -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(path.read_text())["groups"]:
        yield from group["rules"]


EVERY_RULE: Final = [rule for path in RULES for rule in rules_of(path)]
RECORDED: Final = {rule["record"] for rule in EVERY_RULE if "record" in rule}
ALERTS: Final = {rule["alert"] for rule in EVERY_RULE if "alert" in rule}


def board_expressions() -> list[str]:
    """Return what the board asks Prometheus, its variables filled in."""
    told = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", ())]
    told += [note["expr"] for note in BOARD["annotations"]["list"]]
    return [text.replace("$__rate_interval", "1m") for text in told]


EVERY_EXPRESSION: Final = [*(rule["expr"] for rule in EVERY_RULE), *board_expressions()]


def named_in(expression: str) -> dict[str, set[str]]:
    """Return the metrics that an expression names, each with the labels it is asked for by."""
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    grouped = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", text)
    text = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", " ", text)
    text = re.sub(r"\[[^\]]*\]", " ", text)
    found: dict[str, set[str]] = {}
    for name, _, matchers in re.findall(r"([a-zA-Z_:][\w:]*)(?!\w|\s*\()\s*({([^}]*)})?", text):
        if name not in NOT_NAMES and not name[0].isdigit():
            found.setdefault(name, set()).update(re.findall(r"(\w+)\s*[=!]", matchers))
    labels = {label.strip() for words in grouped for label in words.split(",") if label.strip()}
    if len(found) == 1:  # which metric a grouping is about is plain then
        next(iter(found.values())).update(labels - {"instance", "alertname"})
    return found


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    require(found is not None, "promtool (Debian's package `prometheus`)")
    return str(found)


def run(*words: str | Path) -> None:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_well_formed(promtool: str) -> None:
    run(promtool, "check", "rules", *RULES)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_the_rules_make_of_figures_what_they_should(promtool: str, case: Path) -> None:
    run(promtool, "test", "rules", case)


def test_every_alert_is_seen_to_fire_and_says_what_to_do() -> None:
    cases = "".join(case.read_text() for case in CASES)
    assert {name for name in ALERTS if f'alertname="{name}"' not in cases} == set()
    for rule in EVERY_RULE:
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"warning", "critical"}, rule
            assert rule["annotations"].keys() == {"summary", "description"}, rule


def test_every_alert_is_in_the_documents() -> None:
    page = (DEPLOY.parent / "docs/monitoring.md").read_text()
    assert {name for name in ALERTS if f"`{name}`" not in page} == set()


def test_every_expression_of_the_board_can_be_read(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"board:{number}", "expr": text}
        for number, text in enumerate(board_expressions())
    ]
    file = tmp_path / "board.yml"
    file.write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))
    run(promtool, "check", "rules", file)


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as reply:  # noqa: S310 - loopback
        text: str = reply.read().decode()
        return text


async def served_by_a_gateway(house: House, device: Peer, worker: Worker) -> str:
    """Let a fleet do a job; return what Prometheus would be told."""
    async with gateway(house, has_cloud=True, worker_metrics=True) as url:
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        worker.done(await worker.assignment())
        await device.result("j1")
        return await asyncio.to_thread(fetch, f"{url}/metrics")


def labels_of(served: str) -> dict[str, set[str]]:
    """Return every metric by all names that its samples may have, with the labels they showed."""
    found: dict[str, set[str]] = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", served, re.MULTILINE):
        suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        found |= {f"{name}{suffix}": set() for suffix in suffixes}
    for name, labels in re.findall(r"^(\w+)\{(.*)\} \S+$", served, re.MULTILINE):
        found[name] |= set(re.findall(r'(\w+)="', labels))
    return found


async def test_rules_and_board_name_only_what_is_served(
    house: House, device: Peer, worker: Worker
) -> None:
    served = labels_of(await served_by_a_gateway(house, device, worker))
    for expression in EVERY_EXPRESSION:
        for name, labels in named_in(expression).items():
            if name in RECORDED | PROMETHEUS_OWN or NODE.match(name):
                continue
            assert name in served, f"{name} in {expression}"
            # A counter without a sample yet shows no label.
            assert not served[name] or labels <= served[name], f"{labels} of {name}: {expression}"


def test_what_is_recorded_is_used_or_an_objective() -> None:
    used = {name for text in EVERY_EXPRESSION for name in named_in(text)}
    kept = {"edgefleet:jobs_answered:ratio_rate1h", "edgefleet:submissions_rejected:ratio_rate5m"}
    assert RECORDED - used - kept == set()


def test_the_panels_lie_side_by_side_and_are_explained() -> None:
    taken: set[tuple[int, int]] = set()
    numbers = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        area = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not taken & area, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= area
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}", panel["title"]


def test_debians_exporter_serves_what_is_asked_of_machines(tmp_path: Path) -> None:
    program = shutil.which("prometheus-node-exporter")
    require(program is not None, "prometheus-node-exporter")
    role = DEPLOY / "ansible/roles/monitoring/defaults/main.yml"
    collectors = yaml.safe_load(role.read_text())["monitoring_collectors"]
    port = free_port()
    words = [f"--web.listen-address=127.0.0.1:{port}", "--collector.disable-defaults"]
    words += [f"--collector.{name}" for name in collectors]
    with (tmp_path / "log").open("wb") as log:
        exporter = subprocess.Popen([str(program), *words], stderr=log)
    try:
        served = until_served(f"http://127.0.0.1:{port}/metrics", exporter, tmp_path / "log")
    finally:
        exporter.terminate()
        exporter.wait(PATIENCE_S)
    names = set(re.findall(r"^# TYPE (\S+)", served, re.MULTILINE))
    asked = {name for text in EVERY_EXPRESSION for name in named_in(text) if NODE.match(name)}
    assert asked - SENSORS - names == set()


def until_served(url: str, exporter: subprocess.Popen[bytes], log: Path) -> str:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return fetch(url)
        except OSError:
            assert exporter.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
