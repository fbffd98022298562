"""`fleet up` as a person starts it, and every command against it. The engine is an echo."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
import pytest

from fleet_cli.broker import BrokerKind, BrokerOptions, BrokerProcess
from fleet_cli.context import DataFolder
from fleet_cli.fleet_process import FleetProcess
from fleet_cli.local_fleet import StartError, free_port
from fleet_client import FleetClient

PATIENCE_S = 60.0
FLEET = (sys.executable, "-m", "fleet_cli")


class Up:
    """A running `fleet up`."""

    def __init__(self, data: Path, *words: str) -> None:
        self.data = data
        self.words = words
        self.said: list[str] = []
        self._news = threading.Condition()

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [*FLEET, "up", "--json", "--engine", "echo", "--data", str(self.data), *self.words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.__exit__()
            pytest.fail("\n".join(self.said))
        self.facts = json.loads(line)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.said.append(line.rstrip())
                self._news.notify_all()

    def hear(self, words: str) -> None:
        """Wait until it says something."""
        with self._news:
            assert self._news.wait_for(lambda: words in "\n".join(self.said), PATIENCE_S), self.said

    def children(self) -> list[int]:
        """Process ids of everything that was started for this folder."""
        return [pid for pid in running(str(self.data)) if pid != self.process.pid]

    def fleet(self, *words: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command against it."""
        return subprocess.run(
            [*FLEET, *words, "--data", str(self.data)],
            input=given,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def ok(self, *words: str, given: str | None = None) -> str:
        """Run a command that must succeed; return what it printed."""
        done = self.fleet(*words, given=given)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def object(self, *words: str) -> dict[str, Any]:
        """Run a command that prints one JSON object."""
        found: dict[str, Any] = json.loads(self.ok(*words, "--json"))
        return found


def words_of(pid: int) -> bytes:
    """The command line of a process, for all to read."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def running(text: str) -> list[int]:
    """Process ids whose command line has `text` in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                words = (entry / "cmdline").read_bytes().decode()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if text in words and state != "Z":
                found.append(int(entry.name))
    return found


def until(met: Callable[[], bool]) -> None:
    """Wait until `met()`, asking again and again."""
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with Up(tmp_path_factory.mktemp("up") / "data", "--workers", "2", "--simulated-cloud") as up:
        yield up


def test_a_question_is_answered_on_standard_output_alone(up: Up) -> None:
    done = up.fleet("ask", "hello there")
    assert (done.returncode, done.stdout) == (0, "hello there\n")
    assert done.stderr.startswith("answered by edge | worker w")


def test_a_question_from_standard_input_is_answered(up: Up) -> None:
    assert up.ok("ask", "-", given="from a pipe") == "from a pipe\n"


def test_the_gateway_answers_where_it_says(up: Up) -> None:
    url = f"{up.facts['gateway']}/readyz"
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as reply:  # noqa: S310 - loopback
        assert json.load(reply) == {"status": "ready", "workers_online": 2}


@pytest.mark.parametrize(("version", "name"), [(5, "MQTT 5"), (4, "MQTT 3.1.1")])
def test_the_port_that_is_named_for_a_version_of_mqtt_speaks_it(
    up: Up, version: int, name: str
) -> None:
    (line,) = [line for line in up.said if "listens on" in line]
    found = re.search(rf"mqtt://127\.0\.0\.1:(\d+) for {name}", line)
    assert found, line
    greeted = threading.Event()
    client = paho.Client(
        paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTProtocolVersion(version)
    )
    client.on_connect = lambda *_: greeted.set()
    client.connect("127.0.0.1", int(found[1]))
    client.loop_start()
    try:
        assert greeted.wait(PATIENCE_S)
    finally:
        client.disconnect()
        client.loop_stop()


def test_who_waits_for_a_fleet_is_told_when_it_ends(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    words = ["--engine", "echo", "--workers", "0"]
    with FleetProcess(folder, words, tell=lambda _: None) as fleet:
        os.kill(folder.context().pid, signal.SIGTERM)
        with pytest.raises(StartError, match="has ended"):
            fleet.serve()


def test_a_streamed_answer_is_the_answer(up: Up) -> None:
    assert up.ok("ask", "--stream", "one two three four") == "one two three four\n"


def test_an_answer_in_json_is_one_object_with_all_that_is_known(up: Up) -> None:
    answer = up.object("ask", "hello")
    assert (answer["text"], answer["answered_by"], answer["status"]) == ("hello", "edge", "ok")
    assert answer["worker"] in {"w1", "w2"}
    assert answer["timing_ms"]["total"] >= 0


def test_an_escalated_question_says_who_answered_and_that_it_was_simulated(up: Up) -> None:
    answer = up.object("ask", "hello", "--escalate", "always")
    assert (answer["answered_by"], answer["reason"]) == ("cloud", "requested")
    assert answer["simulated"] is True
    assert "SIMULATED" in up.fleet("ask", "hello", "--escalate", "always").stderr


def test_many_jobs_go_in_and_their_results_come_out(up: Up) -> None:
    lines = "".join(f'{{"id": "many-{i}", "prompt": "p{i}"}}\n' for i in range(100))
    printed = up.ok("submit", "-f", "-", "--wait", "--jsonl", given=lines)
    results = {r["id"]: r for r in map(json.loads, printed.splitlines())}
    assert {i: r["text"] for i, r in results.items()} == {f"many-{i}": f"p{i}" for i in range(100)}
    assert all(r["answered_by"] == "edge" and r["reason"] is None for r in results.values())


def test_bad_lines_are_reported_with_their_number_and_the_others_go_on(
    up: Up, tmp_path: Path
) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_text(
        '{"id": "l1", "prompt": "good"}\nnot json\n\n{"id": "a/b", "prompt": "x"}\n{"id": "l5"}\n'
        '[1]\n{"id": "l7", "prompt": "good too", "unknown": 1}\n'
    )
    done = up.fleet("submit", "-f", str(file), "--wait", "--jsonl")
    assert done.returncode == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {r["id"] for r in rows if r["status"] == "ok"} == {"l1", "l7"}
    assert sorted(r["line"] for r in rows if r["status"] == "failed") == [2, 4, 5, 6]
    assert all(f"line {n}:" in done.stderr for n in (2, 4, 5, 6))
    assert "2 answered, 4 failed" in done.stderr


def test_the_same_line_again_is_the_same_job(up: Up) -> None:
    line = '{"id": "again", "prompt": "once"}\n'
    for _ in range(2):
        assert up.ok("submit", "-f", "-", "--wait", given=line) == "again\tonce\n"
    assert [j["id"] for j in up.object("jobs", "ls")["jobs"]].count("again") == 1


def test_jobs_are_listed_and_shown_without_their_prompts(up: Up) -> None:
    up.ok("ask", "a secret question")
    newest = up.object("jobs", "ls", "--limit", "1")["jobs"][0]
    assert newest["status"] == "ok"
    assert newest["prompt_chars"] == len("a secret question")
    shown = up.object("jobs", "show", newest["job"])
    assert shown["job"] == newest["job"]
    assert newest["job"] in up.ok("jobs", "show", newest["job"])
    assert newest["job"] in up.ok("jobs", "ls", "--status", "ok")
    pages = [up.object("jobs", "ls", "--limit", "2")["jobs"]]
    pages.append(up.object("jobs", "ls", "--limit", "2", "--before", pages[0][-1]["job"])["jobs"])
    together = up.object("jobs", "ls", "--limit", "4")["jobs"]
    assert [job["job"] for page in pages for job in page] == [job["job"] for job in together]
    up.ok("ask", "another question")
    assert len(up.ok("jobs", "ls", "--jsonl", "--limit", "2").splitlines()) == 2


def test_a_job_that_does_not_exist_is_said_so(up: Up) -> None:
    done = up.fleet("jobs", "show", "01J00000000000000000000000")
    assert done.returncode == 1
    assert done.stderr.startswith("fleet: ")


def test_a_drained_worker_gets_nothing_until_it_is_resumed(up: Up) -> None:
    def status(worker: str) -> str:
        return {w["worker"]: w["status"] for w in up.object("workers", "ls")["workers"]}[worker]

    up.ok("workers", "drain", "w1")
    until(lambda: status("w1") == "draining")
    try:
        assert {up.object("ask", f"q{i}")["worker"] for i in range(4)} == {"w2"}
    finally:
        up.ok("workers", "resume", "w1")
    until(lambda: status("w1") == "online")


def test_a_reloaded_worker_starts_again_and_answers(up: Up) -> None:
    def boot() -> str | None:
        info = up.object("workers", "show", "w1")["info"]
        return str(info["boot"]) if info else None

    before = boot()
    assert up.object("workers", "reload", "w1")["worker"] == "w1"
    until(lambda: boot() not in {None, before})
    until(lambda: up.object("workers", "show", "w1")["status"] == "online")


def test_the_table_of_workers_shows_the_weight_with_its_two_parts(up: Up) -> None:
    printed = up.ok("workers", "ls")
    for word in ("w1", "w2", "weight", "compute", "bandwidth", "tok/s", "Mbit/s"):
        assert word in printed
    worker = up.object("workers", "show", "w1")
    expected = 0.6 * worker["compute"] + 0.4 * worker["bandwidth"]
    assert worker["weight"] == pytest.approx(expected, abs=0.01)
    assert "info.benchmark.decode_tok_s" in up.ok("workers", "show", "w1")


def test_a_cancelled_job_is_cancelled_for_its_device_too(up: Up) -> None:
    up.ok("workers", "drain", "w1")
    up.ok("workers", "drain", "w2")
    try:
        with FleetClient(up.facts["broker"], "canceller") as device:
            handle = device.submit("never mind")
            key = next(
                j["job"] for j in up.object("jobs", "ls")["jobs"] if j["device"] == "canceller"
            )
            up.ok("jobs", "cancel", key)
            assert handle.wait(PATIENCE_S).status == "cancelled"
    finally:
        up.ok("workers", "resume", "w1")
        up.ok("workers", "resume", "w2")


def test_a_question_that_nobody_answers_in_time_ends_with_exit_code_4_and_may_be_retried(
    up: Up,
) -> None:
    up.ok("workers", "drain", "w1")
    up.ok("workers", "drain", "w2")
    try:
        words = ("--timeout", "1", "--escalate", "never")
        assert up.fleet("ask", "too late", *words).returncode == 4
    finally:
        up.ok("workers", "resume", "w1")
        up.ok("workers", "resume", "w2")
    expired = up.object("jobs", "ls", "--status", "expired")["jobs"][0]["job"]
    up.ok("jobs", "retry", expired)
    until(lambda: up.object("jobs", "show", expired)["status"] == "ok")
    assert up.fleet("jobs", "retry", expired).returncode == 1


def test_watch_streams_pictures_and_paints_them(up: Up) -> None:
    picture = json.loads(up.ok("watch", "--json", "--count", "1"))
    assert picture["dispatcher"]["status"] == "online"
    assert [w["id"] for w in picture["workers"]] == ["w1", "w2"]
    assert all(0 < w["weight"] <= 1 for w in picture["workers"])
    painted = up.ok("watch", "--count", "1")
    assert "w1" in painted
    assert "\x1b" not in painted


def test_doctor_finds_a_healthy_fleet(up: Up) -> None:
    found = {check["name"]: check for check in up.object("doctor")["checks"]}
    for name in ("python", "packages [client]", "disk", "broker", "dispatcher", "workers"):
        assert found[name]["ok"], found[name]


def test_a_second_fleet_in_the_same_folder_is_refused(up: Up) -> None:
    done = up.fleet("up", "--engine", "echo")
    assert done.returncode == 2
    assert "already up" in done.stderr
    assert str(up.process.pid) in done.stderr


def test_a_port_in_use_is_said_so(up: Up, tmp_path: Path) -> None:
    port = up.facts["broker"].rpartition(":")[2]
    other = Up(tmp_path / "data")
    done = other.fleet("up", "--engine", "echo", "--port", port)
    assert done.returncode == 2
    assert f"port {port}" in done.stderr


def test_the_port_of_devices_is_chosen_and_one_that_had_it_gives_way(tmp_path: Path) -> None:
    few = ("--workers", "0", "--broker-kind", "embedded")
    chosen = str(free_port())
    with Up(tmp_path, *few, "--port", chosen) as first:
        assert first.facts["broker"].endswith(f":{chosen}")
    with Up(tmp_path, *few, "--port-v3", chosen) as second:
        assert second.facts["broker_v3"].endswith(f":{chosen}")
        assert second.facts["broker"] != second.facts["broker_v3"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--broker-kind", "embedded", "--port", "18830"), "--broker-kind mosquitto"),
        (("--broker-kind", "mosquitto"), "--port"),
    ],
)
def test_two_versions_have_two_ports_or_one_as_the_broker_has_it(
    tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    done = Up(tmp_path).fleet("up", "--engine", "echo", "--port-v3", "18830", *words)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_fleet_may_stand_on_a_broker_that_asks_for_a_password(
    tmp_path: Path, mosquitto: object
) -> None:
    del mosquitto  # asked for because it knows what to do where none is installed
    password = tmp_path / "password"
    password.write_text("1234\n")
    options = BrokerOptions(passwords={"ann": "1234"})
    with BrokerProcess(BrokerKind.MOSQUITTO, tmp_path / "broker", options=options) as broker:
        who = ("--username", "ann", "--password-file", str(password), "--root", "other/v1")
        with Up(tmp_path / "data", "--workers", "1", "--broker", broker.url, *who) as up:
            assert up.facts["kind"] == "external"
            assert up.ok("ask", "over there") == "over there\n"
            assert all(b"1234" not in words_of(pid) for pid in up.children())


def test_a_crashed_worker_is_started_again(up: Up) -> None:
    victim = next(pid for pid in running("edge_worker") if pid in up.children())
    os.kill(victim, signal.SIGKILL)
    up.hear("was killed by SIGKILL; starting it again")
    up.hear("is started again")


def test_a_fleet_that_is_started_again_has_its_ports_and_its_jobs(tmp_path: Path) -> None:
    with Up(tmp_path / "data", "--workers", "1") as first:
        first.ok("submit", "-f", "-", "--wait", given='{"id": "kept", "prompt": "keep me"}\n')
    assert first.process.returncode == 0
    assert first.children() == []
    with Up(tmp_path / "data", "--workers", "0") as second:
        assert second.facts["broker"] == first.facts["broker"]
        assert [j["id"] for j in second.object("jobs", "ls")["jobs"]] == ["kept"]
        replay = second.ok("submit", "-f", "-", "--wait", given='{"id": "kept", "prompt": "x"}\n')
        assert replay == "kept\tkeep me\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a child to its parent")
def test_a_fleet_that_is_killed_leaves_no_orphans_and_comes_back(tmp_path: Path) -> None:
    with Up(tmp_path / "data", "--workers", "1") as first:
        assert len(first.children()) == 3
        first.process.kill()
        first.process.wait()
        until(lambda: first.children() == [])
    with Up(tmp_path / "data", "--workers", "1") as second:
        assert second.ok("ask", "still there?") == "still there?\n"


def test_a_part_that_keeps_crashing_is_named_with_its_last_words(tmp_path: Path) -> None:
    damaged = tmp_path / "model"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{")
    words = ("--engine", "onnx", "--model", str(damaged), "--workers", "1")
    done = Up(tmp_path / "data").fleet("up", *words)
    assert done.returncode == 1
    assert "w1 keeps crashing" in done.stderr
    assert done.stderr.count("[model_damaged]") == 1
    assert running(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("part", "settings", "words", "cause"),
    [
        ("w1", "", ("--workers", "1", "--engine", "onnx", "--model", "none"), "model_unknown"),
        ("dispatcher", "no-such-setting = 1", ("--workers", "0"), "config"),
    ],
)
def test_a_part_whose_settings_are_wrong_is_not_started_again(
    tmp_path: Path, part: str, settings: str, words: tuple[str, ...], cause: str
) -> None:
    config = tmp_path / "dispatcher.toml"
    config.write_text(settings)
    done = Up(tmp_path / "data").fleet("up", *words, "--config", str(config))
    assert done.returncode == 1
    assert f"{part} cannot start" in done.stderr
    assert done.stderr.count(f"[{cause}]") == 1
    assert "again in" not in done.stderr


def test_the_dispatcher_takes_settings_of_ones_own(tmp_path: Path) -> None:
    config = tmp_path / "dispatcher.toml"
    config.write_text(
        '[provider]\nname = "one"\nbase_url = "http://127.0.0.1:9"\napi_key_env = ""\n'
        '[[backup]]\nname = "two"\nbase_url = "http://127.0.0.1:9"\napi_key_env = ""\n'
    )
    with Up(tmp_path / "data", "--workers", "0", "--config", str(config)) as fleet:
        costs = fleet.object("costs")
    assert [endpoint["name"] for endpoint in costs["endpoints"]] == ["one", "two"]


def test_mosquitto_may_be_the_broker(tmp_path: Path, mosquitto: object) -> None:
    del mosquitto  # asked for because it knows what to do where none is installed
    with Up(tmp_path / "data", "--workers", "1", "--broker-kind", "mosquitto") as up:
        assert up.facts["kind"] == "mosquitto"
        assert up.ok("ask", "hello") == "hello\n"
