"""Brokers that restart, forget, freeze, or drop what is too much without a word to anybody."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from fleet_cli.broker import BrokerOptions
from fleet_client import FleetClient, ResendSchedule
from fleet_protocol.mqtt import BusLimits
from tests.integration.fleet import Device, Fleet

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

QUICK = ResendSchedule(
    unanswered_ms=500, unanswered_most_ms=2_000, silence_ms=1_000, silence_most_ms=4_000
)
NARROW = BrokerOptions(queued=20, inflight=10)


def ask_all(client: FleetClient, names: tuple[str, ...]) -> None:
    """Submit without waiting for anybody."""
    for name in names:
        client.submit(f"echo {name}", job_id=name, accept_timeout_s=None, max_tokens=8, cache="off")


def hear_all(client: FleetClient, names: tuple[str, ...]) -> None:
    """Every job is answered, once and for all."""
    for name in names:
        # The same id again is the same job: of one that is answered, this is its answer.
        handle = client.submit(
            f"echo {name}", job_id=name, accept_timeout_s=None, max_tokens=8, cache="off"
        )
        assert handle.wait(60).status == "ok"


def insist(device: Device, names: tuple[str, ...]) -> None:
    """Submit again, as a device without our client should, until every result was heard.

    Not all at once: results that come faster than they are read are dropped, too.
    """
    for name in names:
        while not device.said(name, "res"):
            device.submit(name, prompt=f"echo {name}", max_tokens=8, cache="off")
            with contextlib.suppress(AssertionError):
                device.result(name, 2)
        assert device.said(name, "res")[0]["status"] == "ok"


def a_fleet(running: Fleet, **environ: str) -> Device:
    device = running.device()
    running.start_dispatcher(**environ)
    for name in ("w1", "w2"):
        running.start_worker(name, engine="echo")
    running.online(device, "w1", "w2")
    return device


@pytest.mark.parametrize("is_persistent", [True, False])
def test_a_broker_killed_again_and_again_under_load_loses_no_job(
    tmp_path: Path, *, is_persistent: bool
) -> None:
    with Fleet(tmp_path, options=BrokerOptions(persistent=is_persistent)) as running:
        a_fleet(running)
        with FleetClient(running.broker.url, "d2", schedule=QUICK) as client:
            names = tuple(f"j{number}" for number in range(60))
            for start in range(0, len(names), 20):
                ask_all(client, names[start : start + 20])
                client.submit("last", job_id=names[start], max_tokens=8, cache="off").wait(60)
                running.broker.kill()
                running.broker.start()
            hear_all(client, names)
        running.account_for("d2", *names)
        assert all(process.poll() is None for process in running.processes.values())


def test_a_broker_that_freezes_is_left_and_found_again(tmp_path: Path) -> None:
    """Whoever connects finds its port open and nobody behind it."""
    with Fleet(tmp_path) as running:
        keepalive = {"BROKER__KEEPALIVE_S": "5"}
        device = running.device()
        running.start_dispatcher(ENGINE__WORKER_SILENCE_MS="10000")
        running.start_worker("w1", engine="echo", **keepalive)
        running.online(device, "w1")
        with FleetClient(running.broker.url, "d2", schedule=QUICK) as client:
            names = tuple(f"j{number}" for number in range(100))
            ask_all(client, names[:50])
            assert running.broker.pid is not None
            os.kill(running.broker.pid, signal.SIGSTOP)
            for name in ("dispatcher", "w1"):
                running.says(name, "link.down")
            ask_all(client, names[50:])
            os.kill(running.broker.pid, signal.SIGCONT)
            hear_all(client, names)
        running.account_for("d2", *names)


def test_what_a_full_broker_drops_on_its_way_to_the_dispatcher_is_said_again(
    tmp_path: Path,
) -> None:
    """Submissions are, until they are acknowledged; answers are, until they are settled."""
    with Fleet(tmp_path, options=NARROW) as running:
        device = a_fleet(running)
        with FleetClient(running.broker.url, "d2", schedule=QUICK) as client:
            first = tuple(f"a{number}" for number in range(100))
            ask_all(client, first)
            assert running.stop("dispatcher") == 0
            second = tuple(f"b{number}" for number in range(200))
            ask_all(client, second)
            for name in second:
                device.submit(name, prompt=f"echo {name}", max_tokens=8, cache="off")
            device.confirmed()
            running.start_dispatcher()
            hear_all(client, (*first, *second))
            lost = [name for name in second if not device.said(name, "ack")]
            assert lost, "the broker dropped nothing: what was tried here?"
            insist(device, second)
        running.account_for("d2", *first, *second)
        running.account_for(device.name, *second)


def test_a_fleet_that_a_full_broker_forgot_to_tell_of_is_known_all_the_same(
    tmp_path: Path,
) -> None:
    """Each worker is two retained messages, and all of them come at once to a new dispatcher."""
    with Fleet(tmp_path, options=BrokerOptions(queued=5)) as running:
        device = running.device()
        gone = json.dumps({"v": 1, "status": "offline", "boot": "b"})
        # More than the broker may send ahead of our acknowledgements, which is no use of its queue.
        for number in range(BusLimits().receive_maximum + 200):
            device.publish(f"workers/gone{number}/presence", gone, retain=True)
        device.confirmed()
        running.start_worker("real", engine="echo")
        running.says("real", "link.up")
        running.start_dispatcher()
        with FleetClient(running.broker.url, "d2", schedule=QUICK) as client:
            assert client.ask("echo", max_tokens=8, job_id="j1").worker == "real"
        (asked,) = device.heard["workers/real/cmd"]
        assert json.loads(asked)["op"] == "report", "it was known: what was tried here?"
        running.account_for("d2", "j1")
