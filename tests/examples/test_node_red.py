"""The Node-RED flow: what it says and hears is what its device may, and what it makes is a job.

With `node-red` on the PATH the flow runs in it, headless, against a fleet.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_cli.local_fleet import free_port
from fleet_protocol.codec import decode
from fleet_protocol.messages import JobSubmit
from fleet_protocol.topics import SUBMIT
from tests.examples.granted import check_topics
from tests.integration.fleet import fleet

FILE = Path(__file__).parents[2] / "examples" / "node_red" / "flows.json"
FLOWS: list[dict[str, Any]] = json.loads(FILE.read_text())
NODES = {node["id"]: node for node in FLOWS}
DEVICE = "nodered"


def of_type(name: str) -> list[dict[str, Any]]:
    return [node for node in FLOWS if node["type"] == name]


def test_every_wire_ends_at_a_node_of_the_flow() -> None:
    tabs = {node["id"] for node in of_type("tab")}
    for node in FLOWS:
        for targets in node.get("wires", []):
            assert set(targets) <= set(NODES)
        assert node.get("z") in {None, *tabs}
        assert node.get("broker") in {
            None,
            "${FLEET_HOST}",
            *(n["id"] for n in of_type("mqtt-broker")),
        }


def test_an_inject_ends_in_a_publication_and_an_arrival_in_debug() -> None:
    ends = {"inject": "mqtt out", "mqtt in": "debug"}
    for node in (*of_type("inject"), *of_type("mqtt in")):
        reached, open_ = set(), [node["id"]]
        while open_:
            one = NODES[open_.pop()]
            reached.add(one["type"])
            open_ += [target for targets in one["wires"] for target in targets]
        assert ends[node["type"]] in reached


def test_its_topics_are_the_catalogues_and_granted_to_a_device() -> None:
    [job] = [node for node in of_type("function") if node["name"] == "job"]
    [made] = re.findall(r"topic: `(.*)`", job["func"])
    says = [node["topic"] for node in of_type("mqtt out") if node["topic"]]
    check_topics(
        DEVICE,
        says=[*says, made.replace("${id}", "nr-1")],
        hears=[node["topic"] for node in of_type("mqtt in")],
    )


def test_its_broker_is_of_the_environment_and_no_secret_is_in_the_file() -> None:
    [broker] = of_type("mqtt-broker")
    assert (broker["broker"], broker["port"]) == ("${FLEET_HOST}", "${FLEET_PORT}")
    assert not any("credentials" in node for node in FLOWS)


def run_function(name: str, message: dict[str, Any]) -> Any:
    """Run one of its function nodes by Node, as Node-RED does: a body with `msg`."""
    [node] = [node for node in of_type("function") if node["name"] == name]
    script = f"""
const body = new Function("msg", {json.dumps(node["func"])});
console.log(JSON.stringify(body({json.dumps(message)})));
"""
    done = subprocess.run(
        ["node", "-e", script], capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


@needs_node
def test_the_job_that_it_makes_is_one() -> None:
    made = run_function("job", {"id": "r-1", "payload": "Is it warm?"})
    assert made["topic"] == f"fleet/v1/dev/{DEVICE}/jobs/r-1/submit"
    submit = decode(SUBMIT, json.dumps(made["payload"]).encode())
    assert isinstance(submit, JobSubmit)
    assert submit.prompt == "Is it warm?"
    assert submit.output is not None
    assert submit.output.choices == ("yes", "no")


@needs_node
@pytest.mark.parametrize(
    ("what", "told", "exit_"),
    [
        ("ack", {"status": "accepted"}, None),
        ("ack", {"status": "rejected", "code": "busy"}, 2),
        ("res", {"status": "ok", "text": "yes", "degraded": False}, 0),
        ("res", {"status": "ok", "text": "yes", "degraded": True}, 1),
        ("res", {"status": "failed", "code": "expired"}, 1),
    ],
)
def test_what_was_said_leaves_by_its_exit(
    what: str, told: dict[str, Any], exit_: int | None
) -> None:
    message = {"topic": f"fleet/v1/dev/{DEVICE}/jobs/r-1/{what}", "payload": told}
    left = run_function("what was said", message)
    if exit_ is None:
        assert left is None
    else:
        assert [one is not None for one in left] == [number == exit_ for number in range(3)]


@pytest.fixture
def printed(tmp_path: Path) -> Iterator[list[str]]:
    """The lines of a Node-RED that runs the flow and presses both buttons once."""
    program = shutil.which("node-red")
    if program is None:
        pytest.skip("node-red is not installed (npm install node-red)")
    pressed = [{**node, "once": True} if node["type"] == "inject" else node for node in FLOWS]
    (tmp_path / "flows.json").write_text(json.dumps(pressed))
    words = ["--userDir", str(tmp_path / "user"), "--port", str(free_port())]
    with fleet(tmp_path / "fleet", "w1", engine="echo") as (running, _):
        environ = {"FLEET_HOST": "127.0.0.1", "FLEET_PORT": str(running.port)}
        with subprocess.Popen(
            [program, *words, str(tmp_path / "flows.json")],
            env={**os.environ, **environ}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            assert process.stdout
            guard = threading.Timer(90, process.kill)
            guard.start()
            lines: list[str] = []
            # Both answers come as an object of several lines, or one line; the last says `yes`.
            for line in process.stdout:
                lines.append(line.rstrip())
                if any("answered]" in one for one in lines) and any(
                    "[debug:answer]" in one for one in lines
                ):
                    break
            guard.cancel()
            process.kill()
        yield lines


@pytest.mark.broker
def test_the_flow_runs_in_node_red(printed: list[str]) -> None:
    said = "\n".join(printed)
    assert "[debug:answer] " in said
    assert "What is the capital of France?" in said
    assert "[debug:answered]" in said
