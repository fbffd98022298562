"""A real fleet for the fault tests: every part a process of its own, each of them killable."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho

from fleet_cli.broker import BrokerKind, BrokerProcess
from tests.integration.wall_clock import WallClock

ROOT = "fleet/v1"
PATIENCE_S = 20.0


class Device:
    """A device that knows nothing of the project: paho-mqtt and JSON. Remembers all it was told."""

    def __init__(self, port: int, name: str) -> None:
        self.name = name
        self.heard: dict[str, list[bytes]] = defaultdict(list)
        self._news = threading.Condition()
        self._client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=f"{name}-{os.getpid()}",
            protocol=paho.MQTTv5,
        )
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(PATIENCE_S)

    def _on_connect(self, client: paho.Client, *_: object) -> None:
        mine, everybody = f"dev/{self.name}/#", ("workers/#", "fleet/dispatcher")
        client.subscribe([(f"{ROOT}/{topic}", 1) for topic in (mine, *everybody)])

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        with self._news:
            self.heard[message.topic.removeprefix(f"{ROOT}/")].append(message.payload)
            self._news.notify_all()

    def submit(self, job: str, **fields: object) -> None:
        """Publish a job; the paho client repeats the publish by itself after a reconnect."""
        topic = f"{ROOT}/dev/{self.name}/jobs/{job}/submit"
        self._last = self._client.publish(topic, json.dumps(fields), qos=1)

    def confirmed(self) -> None:
        """Wait until the broker has what was published last, and so everything before it."""
        self._last.wait_for_publish(PATIENCE_S)
        assert self._last.is_published()

    def publish(self, topic: str, payload: bytes | str = b"", *, retain: bool = False) -> None:
        """Publish anything below the root."""
        self._last = self._client.publish(f"{ROOT}/{topic}", payload, qos=1, retain=retain)

    def said(self, job: str, what: str) -> list[dict[str, Any]]:
        """Return what was heard of a job so far: `ack`, `tok` or `res` messages."""
        return [json.loads(p) for p in self.heard[f"dev/{self.name}/jobs/{job}/{what}"]]

    def wait(self, met: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until `met()` is true; it is asked again after each message."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            while not met():
                left = deadline - time.monotonic()
                assert left > 0, f"waited {timeout_s} s for {what}"
                self._news.wait(min(left, 0.2))

    def result(self, job: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for a job's result."""
        self.wait(lambda: self.said(job, "res"), f"the result of {job}", timeout_s)
        return self.said(job, "res")[0]

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()
        # paho leaves its wake-up sockets to the garbage collector, which warns of them.
        self._client._reset_sockets()


class Fleet:
    """Broker, dispatcher and workers as processes; kills and starts each of them again."""

    def __init__(
        self, folder: Path, kind: BrokerKind = BrokerKind.MOSQUITTO, **broker: object
    ) -> None:
        self.folder = folder
        self.broker = BrokerProcess(kind, folder / "broker", **broker)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.devices: list[Device] = []
        self._clocks: dict[str, WallClock] = {}

    def __enter__(self) -> Self:
        self.broker.start()
        return self

    def __exit__(self, *_: object) -> None:
        for device in self.devices:
            device.close()
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.broker.stop()

    @property
    def port(self) -> int:
        """Of the broker, MQTT 5."""
        return int(self.broker.url.rsplit(":", 1)[1])

    def device(self, name: str = "d1") -> Device:
        """Connect a device."""
        self.devices.append(Device(self.port, name))
        return self.devices[-1]

    def start(self, name: str, *words: str, environ: Mapping[str, str] | None = None) -> None:
        """Start one of our programs under a name, its output in a log of that name."""
        clock = self._clocks.get(name)
        program = [sys.executable, "-m"] if clock is None else clock.program
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*program, *words],
                env={**os.environ, **(environ or {})},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def start_dispatcher(self, *, url: str | None = None, **environ: str) -> None:
        """Start the dispatcher; settings as environment variables without their prefix."""
        self.start(
            "dispatcher",
            *("cloud_dispatcher", "run", "--broker", url or self.broker.url),
            *("--data", str(self.folder / "dispatcher")),
            environ={f"EDGEFLEET_DISPATCHER_{k}": v for k, v in environ.items()},
        )

    def start_worker(
        self,
        name: str,
        *,
        engine: str = "onnx",
        url: str | None = None,
        data: str | None = None,
        **environ: str,
    ) -> None:
        """Start a worker; another folder for its `data` lets two have one name."""
        settings = {"THREADS": "1", "SLOTS": "4", **environ}
        self.start(
            data or name,
            *("edge_worker", "run", "--id", name, "--engine", engine),
            *("--broker", url or self.broker.url, "--data", str(self.folder / (data or name))),
            environ={f"EDGEFLEET_WORKER_{k}": v for k, v in settings.items()},
        )

    def clock(self, name: str) -> WallClock:
        """Return the wall clock of what is started under this name from now on."""
        return self._clocks.setdefault(name, WallClock(self.folder / f"{name}.wall"))

    def url_of(self, port: int) -> str:
        """Return where a link takes connections for the broker."""
        return self.broker.url.replace(str(self.port), str(port))

    def kill(self, name: str) -> None:
        """Kill -9."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self, name: str) -> int:
        """Ask to stop; return the exit code."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(PATIENCE_S)

    def online(self, device: Device, *names: str) -> None:
        """Wait until the dispatcher and these workers are online."""
        topics = ("fleet/dispatcher", *(f"workers/{name}/presence" for name in names))

        def are_online() -> bool:
            said = [device.heard[topic] for topic in topics]
            return all(one and json.loads(one[-1])["status"] == "online" for one in said)

        device.wait(are_online, f"{names} online", 60)

    def account_for(self, device: str, *names: str) -> None:
        """See by the store that each of a device's jobs has one final result, told, and it alone.

        A result may come to a device more than once; it is the same each time.
        """
        listener = self.devices[0]
        listener.wait(lambda: self.jobs("told = 0") == 0, "the outbox to be empty", 60)
        with contextlib.closing(sqlite3.connect(self._database)) as db:
            rows = db.execute("select id, status, told from jobs where device = ?", (device,))
            assert sorted(rows) == sorted((name, "ok", 1) for name in names)
        for one in self.devices:
            for name in names if one.name == device else ():
                assert len({json.dumps(x, sort_keys=True) for x in one.said(name, "res")}) == 1

    def attempts(self) -> set[int]:
        """Return how many attempts the jobs in the store took."""
        with contextlib.closing(sqlite3.connect(self._database)) as db:
            return {int(row[0]) for row in db.execute("select distinct attempt from jobs")}

    def memory_kb(self, name: str) -> int:
        """Return how much memory a program has."""
        status = Path(f"/proc/{self.processes[name].pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    def says(self, name: str, words: str) -> None:
        """Wait until a program says something in its log."""
        log = self.folder / f"{name}.log"
        self.devices[0].wait(lambda: words in log.read_text(), f"{name} to say {words}", 60)

    def forget(self, key: str) -> None:
        """Take a finished job out of the dispatcher's database."""
        with contextlib.closing(sqlite3.connect(self._database)) as db, db:
            db.execute("delete from jobs where key = ?", (key,))

    @property
    def _database(self) -> Path:
        return next((self.folder / "dispatcher").rglob("*.db"))

    def jobs(self, where: str = "1") -> int:
        """Count jobs in the dispatcher's database."""
        with contextlib.closing(sqlite3.connect(self._database)) as db:
            return int(db.execute(f"select count(*) from jobs where {where}").fetchone()[0])  # noqa: S608 - the test's own words


@contextlib.contextmanager
def fleet(
    folder: Path,
    *workers: str,
    engine: str = "onnx",
    environ: Mapping[str, str] | None = None,
) -> Iterator[tuple[Fleet, Device]]:
    """A running fleet with these workers online, and one device; `environ`: the dispatcher's."""
    with Fleet(folder) as running:
        device = running.device()
        running.start_dispatcher(**(environ or {}))
        for name in workers:
            running.start_worker(name, engine=engine)
        running.online(device, *workers)
        yield running, device
