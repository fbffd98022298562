"""`--defer`: what a device would submit, and how long the command waits for it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Self

import paho.mqtt.client as paho
import pytest

from fleet_cli.__main__ import run
from fleet_cli.broker import BrokerProcess
from fleet_cli.deferral import patience_s
from fleet_cli.exits import ExitCode
from fleet_protocol.codec import decode_as
from fleet_protocol.messages import Defer, JobSubmit

WAIT_S = 20.0


class Submissions:
    """Takes every job that is submitted, by its id; answers none."""

    def __init__(self, port: int) -> None:
        self.seen: dict[str, JobSubmit] = {}
        self._ready = threading.Event()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_connect = lambda c, *_: c.subscribe("fleet/v1/dev/+/jobs/+/submit", 1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)

    def __enter__(self) -> Self:
        self._client.loop_start()
        assert self._ready.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._client._reset_sockets()  # paho leaves some to the garbage collector

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        job = message.topic.split("/")[-2]
        self.seen[job] = decode_as(JobSubmit, bytes(message.payload))
        self._client.publish(message.topic.replace("submit", "ack"), '{"status":"accepted"}', 1)


def test_a_question_that_may_wait_says_so_and_so_do_all_lines_that_say_nothing_else(
    mosquitto: BrokerProcess, tmp_path: Path
) -> None:
    lines = tmp_path / "jobs.jsonl"
    lines.write_text('{"id": "a", "prompt": "x"}\n{"id": "b", "prompt": "x", "defer": "no"}\n')
    where = ["--broker", mosquitto.url, "--defer", "offpeak"]
    with Submissions(mosquitto.port) as submissions:
        assert run(["submit", "-f", str(lines), *where]) == ExitCode.OK
        assert {job: submit.defer for job, submit in submissions.seen.items()} == {
            "a": Defer.OFFPEAK,
            "b": Defer.NO,
        }
        submissions.seen.clear()
        assert run(["ask", "x", *where, "--timeout", "3"]) == ExitCode.TIMEOUT
        (asked,) = submissions.seen.values()
    assert (asked.defer, asked.deadline_ms) == (Defer.OFFPEAK, 3_000)


@pytest.mark.parametrize(
    ("given_s", "defer", "waits_s"),
    [(None, "no", 120.0), (None, "offpeak", 86_400.0), (7.0, "offpeak", 7.0), (7.0, "no", 7.0)],
)
def test_what_may_be_deferred_is_waited_for_a_day_unless_told_otherwise(
    given_s: float | None, defer: str, waits_s: float
) -> None:
    assert patience_s(given_s, defer=defer, usual_s=120.0) == waits_s
