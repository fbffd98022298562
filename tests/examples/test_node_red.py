"""The Node-RED flow: what it says and hears is what its device may, and what it makes is a job.

In `make examples` it is imported by a real Node-RED, headless, and runs against a fleet.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from fleet_cli.local_fleet import free_port
from fleet_cli.tether import tethered
from fleet_protocol.codec import decode
from fleet_protocol.messages import JobSubmit
from fleet_protocol.topics import SUBMIT
from tests.conftest import require
from tests.examples.device_site import HOST, DeviceSite
from tests.examples.granted import check_topics

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".venv-examples"
NODE_RED = TOOLS / "node_red" / "node_modules" / ".bin" / "node-red"
FILE = ROOT / "examples" / "node_red" / "flows.json"
FLOWS: list[dict[str, Any]] = json.loads(FILE.read_text())
NODES = {node["id"]: node for node in FLOWS}
DEVICE = "nodered"
PATIENCE_S = 60.0


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


class Editor:
    """A Node-RED of one's own, and what its debug nodes print."""

    def __init__(self, folder: Path, broker_port: int) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._url = f"http://127.0.0.1:{(port := free_port())}"
        self._process = subprocess.Popen(
            tethered([str(NODE_RED), "--userDir", str(folder), "--port", str(port)]),
            env={
                **os.environ,
                "PATH": os.pathsep.join((os.environ["PATH"], str(TOOLS / "bin"))),
                "FLEET_HOST": HOST,
                "FLEET_PORT": str(broker_port),
                "NODE_RED_DISABLE_TELEMETRY": "1",
            },
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._reading = threading.Thread(target=self._read, name="node-red")
        self._reading.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reading.join()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()
        self._process.stdout.close()

    def until(self, words: str) -> None:
        """Wait until a line has these words in it."""

        def is_said() -> bool:
            return any(words in line for line in self.lines)

        with self._news:
            assert self._news.wait_for(is_said, PATIENCE_S), "\n".join(self.lines)

    def post(self, path: str, body: object) -> None:
        """Ask as the editor in the browser does."""
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self._url}{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:  # noqa: S310 - loopback
            assert reply.status in {200, 204}


@pytest.fixture
def editor(site: DeviceSite, tmp_path: Path) -> Iterator[Editor]:
    """A Node-RED that has imported the flow, as its page says, and is connected to a fleet."""
    require(NODE_RED.exists(), "what `make examples` installs")
    with Editor(tmp_path, site.port) as editor:
        editor.until("Started flows")
        editor.post("/flows", [{**node, **filled_in(node, site)} for node in FLOWS] + [trust(site)])
        editor.until("Connected to broker")
        yield editor


def filled_in(node: dict[str, Any], site: DeviceSite) -> dict[str, Any]:
    """Return what somebody enters into the node `fleet`."""
    if node["type"] != "mqtt-broker":
        return {}
    credentials = {"user": DEVICE, "password": site.passwords[DEVICE]}
    return {"usetls": True, "tls": "trust", "credentials": credentials}


def trust(site: DeviceSite) -> dict[str, Any]:
    """Return the node that names the authority."""
    ca = {"ca": str(site.ca_file), "verifyservercert": True}
    return {"id": "trust", "type": "tls-config", "cert": "", "key": "", **ca}


@pytest.mark.examples
@pytest.mark.broker
@pytest.mark.timeout(240)
def test_the_flow_is_imported_and_runs_in_node_red(editor: Editor) -> None:
    """Both buttons are pressed; a plain answer and one of a job come back."""
    for button in of_type("inject"):
        editor.post(f"/inject/{button['id']}", {})
    editor.until("[debug:answer] ")
    editor.until("What is the capital of France?")
    editor.until("[debug:answered]")
    unknown = ("missing types", "unknown type", "Error", "TypeError", "[error]")
    assert not [line for line in editor.lines if any(word in line for word in unknown)]
