"""Both clients against real brokers, with a dispatcher of a few lines."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import mqtt5
import paho.mqtt.client as paho
import pytest

from fleet_cli.broker import BrokerKind, BrokerOptions, BrokerProcess
from fleet_client import (
    AsyncFleetClient,
    ConnectError,
    DeniedError,
    FleetClient,
    JobTimeoutError,
    ResendSchedule,
)
from fleet_protocol.errors import BusClosedError, RejectedError
from fleet_protocol.messages import JobStatus
from tests.contract.scripted_broker import Answer, ScriptedBroker, friendly

HASTY = ResendSchedule(
    unanswered_ms=100, unanswered_most_ms=100, silence_ms=100, silence_most_ms=200
)
CALM = ResendSchedule(silence_ms=1_000, silence_most_ms=1_000)
PATIENT = ResendSchedule(silence_ms=600_000, silence_most_ms=600_000)
WAIT_S = 20.0

Reply = Callable[["Responder", str, dict[str, Any]], None]


class Responder:
    """Answers submissions as told; knows nothing of the project."""

    def __init__(self, port: int, device: str, answer: Reply) -> None:
        self.seen: list[str] = []
        self._answer = answer
        self._ready = threading.Event()
        self._client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=f"responder-{device}",
            protocol=paho.MQTTv5,
        )
        self._topic = f"fleet/v1/dev/{device}/jobs"
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda c, *_: c.subscribe(f"{self._topic}/+/+", 1)
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

    def say(self, job: str, what: str, payload: dict[str, Any] | bytes) -> None:
        raw = payload if isinstance(payload, bytes) else json.dumps(payload)
        self._client.publish(f"{self._topic}/{job}/{what}", raw, qos=1)

    def finish(self, job: str, text: str, status: str = "ok") -> None:
        self.say(job, "ack", {"status": "accepted"})
        self.say(job, "res", {"id": job, "status": status, "text": text})

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        *_, job, what = message.topic.split("/")
        if what in {"submit", "cancel"}:
            self.seen.append(what)
            self._answer(self, job, json.loads(message.payload))


def echo(responder: Responder, job: str, submit: dict[str, Any]) -> None:
    responder.finish(job, submit.get("prompt", ""))


@pytest.fixture(params=["embedded", "mosquitto"])
def broker(request: pytest.FixtureRequest) -> BrokerProcess:
    process: BrokerProcess = request.getfixturevalue(request.param)
    return process


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """An id of the test's own: the broker is shared."""
    return f"d{abs(hash(request.node.nodeid)):x}"


@pytest.mark.parametrize("uses_mqtt5", [True, False])
def test_a_question_gets_its_answer(broker: BrokerProcess, device: str, uses_mqtt5: bool) -> None:  # noqa: FBT001  # a parameter
    url = broker.url if uses_mqtt5 else broker.url_v3
    with (
        Responder(broker.port, device, echo),
        FleetClient(url, device, uses_mqtt5=uses_mqtt5) as client,
    ):
        assert client.ask("hello", timeout_s=WAIT_S).text == "hello"


async def test_a_question_gets_its_answer_with_asyncio(broker: BrokerProcess, device: str) -> None:
    with Responder(broker.port, device, echo):
        async with AsyncFleetClient(broker.url, device) as client:
            asked = [client.ask(f"q{i}", timeout_s=WAIT_S) for i in range(20)]
            assert [r.text for r in await asyncio.gather(*asked)] == [f"q{i}" for i in range(20)]


def test_many_threads_may_ask_at_once(broker: BrokerProcess, device: str) -> None:
    with Responder(broker.port, device, echo), FleetClient(broker.url, device) as client:
        handles = [client.submit(f"q{i}", accept_timeout_s=None) for i in range(50)]
        assert [h.wait(WAIT_S).text for h in handles] == [f"q{i}" for i in range(50)]


def on_the_third(responder: Responder, job: str, submit: dict[str, Any]) -> None:
    if len(responder.seen) >= 3:
        echo(responder, job, submit)


def test_a_submission_that_nobody_heard_is_repeated(broker: BrokerProcess, device: str) -> None:
    with (
        Responder(broker.port, device, on_the_third) as responder,
        FleetClient(broker.url, device, schedule=HASTY) as client,
    ):
        assert client.ask("hello", timeout_s=WAIT_S).text == "hello"
        assert len(responder.seen) >= 3


async def test_a_submission_that_nobody_heard_is_repeated_with_asyncio(
    broker: BrokerProcess, device: str
) -> None:
    with Responder(broker.port, device, on_the_third):
        async with AsyncFleetClient(broker.url, device, schedule=HASTY) as client:
            assert (await client.ask("hello", timeout_s=WAIT_S)).text == "hello"


def test_a_result_that_was_lost_is_asked_for_again(broker: BrokerProcess, device: str) -> None:
    def lose_it_once(responder: Responder, job: str, submit: dict[str, Any]) -> None:
        responder.say(job, "ack", {"status": "accepted"})
        if len(responder.seen) > 1:
            echo(responder, job, submit)

    with (
        Responder(broker.port, device, lose_it_once),
        FleetClient(broker.url, device, schedule=HASTY) as client,
    ):
        assert client.submit("hello").wait(WAIT_S).text == "hello"


def grow(responder: Responder, job: str, _submit: dict[str, Any]) -> None:
    responder.say(job, "ack", {"status": "accepted"})
    for i, text in enumerate(["one ", "two ", "three"]):
        responder.say(job, "tok", {"i": i, "t": text})
    responder.finish(job, "one two three")


def test_an_answer_streams(broker: BrokerProcess, device: str) -> None:
    with Responder(broker.port, device, grow), FleetClient(broker.url, device) as client:
        handle = client.submit("count", stream=True)
        assert list(handle.stream(WAIT_S)) == ["one ", "two ", "three"]
        assert handle.result is not None


async def test_an_answer_streams_with_asyncio(broker: BrokerProcess, device: str) -> None:
    with Responder(broker.port, device, grow):
        async with AsyncFleetClient(broker.url, device) as client:
            handle = await client.submit("count", stream=True)
            assert [p async for p in handle.stream(WAIT_S)] == ["one ", "two ", "three"]


def test_garbage_from_the_broker_does_not_stop_the_client(
    broker: BrokerProcess, device: str
) -> None:
    def babble_first(responder: Responder, job: str, submit: dict[str, Any]) -> None:
        for what in ("ack", "tok", "res"):
            responder.say(job, what, b"\xff\x00 not json")
        echo(responder, job, submit)

    with Responder(broker.port, device, babble_first), FleetClient(broker.url, device) as client:
        assert client.ask("hello", timeout_s=WAIT_S).text == "hello"


def test_an_exception_in_a_callback_does_not_stop_the_client(
    broker: BrokerProcess, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Responder(broker.port, device, echo), FleetClient(broker.url, device) as client:
        with monkeypatch.context() as broken:
            broken.setattr(client._table, "receive", None)
            client.submit("lost", accept_timeout_s=None)
            with pytest.raises(JobTimeoutError):
                client.submit("lost too", accept_timeout_s=0.2)
        assert client.ask("hello", timeout_s=WAIT_S).text == "hello"


def refuse(responder: Responder, job: str, _submit: dict[str, Any]) -> None:
    responder.say(job, "ack", {"status": "rejected", "code": "unknown_model"})


def test_a_refusal_is_raised_with_its_code(broker: BrokerProcess, device: str) -> None:
    with Responder(broker.port, device, refuse), FleetClient(broker.url, device) as client:
        with pytest.raises(RejectedError) as caught:
            client.submit("hello", model="none-such")
        assert caught.value.code == "unknown_model"


async def test_a_refusal_is_raised_with_its_code_with_asyncio(
    broker: BrokerProcess, device: str
) -> None:
    with Responder(broker.port, device, refuse):
        async with AsyncFleetClient(broker.url, device) as client:
            with pytest.raises(RejectedError):
                await client.submit("hello", model="none-such")


def wait_for_cancel(responder: Responder, job: str, _submit: dict[str, Any]) -> None:
    if responder.seen[-1] == "cancel":
        responder.finish(job, "", status="cancelled")


def test_a_cancelled_job_ends_with_a_result_that_says_so(
    broker: BrokerProcess, device: str
) -> None:
    with (
        Responder(broker.port, device, wait_for_cancel),
        FleetClient(broker.url, device) as client,
    ):
        handle = client.submit("hello", accept_timeout_s=None)
        handle.cancel()
        assert handle.wait(WAIT_S).status is JobStatus.CANCELLED


async def test_a_cancelled_job_ends_with_a_result_that_says_so_with_asyncio(
    broker: BrokerProcess, device: str
) -> None:
    with Responder(broker.port, device, wait_for_cancel):
        async with AsyncFleetClient(broker.url, device) as client:
            handle = await client.submit("hello", accept_timeout_s=None)
            await handle.cancel()
            assert (await handle.wait(WAIT_S)).status is JobStatus.CANCELLED


def test_a_cancellation_without_a_link_is_a_timeout_and_no_foreign_error() -> None:
    client = FleetClient("mqtt://127.0.0.1:1", "away")
    try:
        with pytest.raises(JobTimeoutError, match="cancellation"):
            client.cancel("of-an-earlier-process", timeout_s=0.0)
    finally:
        client.close()


def test_no_answer_in_time_is_a_timeout_that_names_the_next_step(
    broker: BrokerProcess, device: str
) -> None:
    with FleetClient(broker.url, device) as client:
        with pytest.raises(JobTimeoutError) as caught:
            client.submit("hello", accept_timeout_s=0.1)
        assert "fleet doctor" in caught.value.hint


class Deaf:
    """An answer that is none; it remembers who asked what.

    Attributes:
        heard: What was said of each job, in order.
        enough: Set once the job `next` was submitted three times.
    """

    def __init__(self) -> None:
        self.heard: dict[str, list[str]] = {}
        self.enough = threading.Event()

    def __call__(self, responder: Responder, job: str, _payload: dict[str, Any]) -> None:
        self.heard.setdefault(job, []).append(responder.seen[-1])
        if len(self.heard.get("next", ())) >= 3:
            self.enough.set()

    def check(self) -> None:
        """What nobody waits for any more was called off, and then said no more."""
        assert self.enough.wait(WAIT_S)
        (given_up,) = (said for job, said in self.heard.items() if job != "next")
        assert given_up.count("cancel") == 1
        assert given_up[-1] == "cancel"


def test_what_nobody_waits_for_any_more_is_called_off(broker: BrokerProcess, device: str) -> None:
    deaf = Deaf()
    with (
        Responder(broker.port, device, deaf),
        FleetClient(broker.url, device, schedule=HASTY) as client,
    ):
        with pytest.raises(JobTimeoutError):
            client.ask("hello", timeout_s=0.3)
        client.submit("next", job_id="next", accept_timeout_s=None)
        deaf.check()


async def test_what_nobody_waits_for_any_more_is_called_off_with_asyncio(
    broker: BrokerProcess, device: str
) -> None:
    deaf = Deaf()
    with Responder(broker.port, device, deaf):
        async with AsyncFleetClient(broker.url, device, schedule=HASTY) as client:
            with pytest.raises(JobTimeoutError):
                await client.ask("hello", timeout_s=0.3)
            await client.submit("next", job_id="next", accept_timeout_s=None)
            await asyncio.to_thread(deaf.check)


def test_who_waits_when_the_client_is_closed_is_told(broker: BrokerProcess, device: str) -> None:
    client = FleetClient(broker.url, device)
    client.open()
    handle = client.submit("hello", accept_timeout_s=None)
    closer = threading.Thread(target=client.close)
    closer.start()
    with pytest.raises(BusClosedError):
        handle.wait(WAIT_S)
    closer.join()


def test_a_broker_that_forgot_everything_costs_a_retry_not_a_job(tmp_path: Path) -> None:
    broker = BrokerProcess(BrokerKind.EMBEDDED, tmp_path)
    restarted = threading.Event()

    def answer_the_second_life(responder: Responder, job: str, submit: dict[str, Any]) -> None:
        responder.say(job, "ack", {"status": "accepted"})
        if restarted.is_set():
            echo(responder, job, submit)

    with (
        broker,
        Responder(broker.port, "d1", answer_the_second_life),
        FleetClient(broker.url, "d1", schedule=CALM) as client,
    ):
        handle = client.submit("hello")
        broker.kill()
        restarted.set()
        broker.start()
        assert handle.wait(WAIT_S).text == "hello"


def test_everything_open_is_said_again_over_a_link_that_was_cut(
    broker: BrokerProcess, device: str
) -> None:
    def answer_the_second_time(responder: Responder, job: str, submit: dict[str, Any]) -> None:
        responder.say(job, "ack", {"status": "accepted"})
        if len(responder.seen) > 1:
            echo(responder, job, submit)

    with (
        Responder(broker.port, device, answer_the_second_time),
        FleetClient(broker.url, device, schedule=PATIENT) as client,
    ):
        handle = client.submit("hello")
        link = client._link._client.socket()
        assert isinstance(link, socket.socket)
        link.shutdown(socket.SHUT_RDWR)
        assert handle.wait(WAIT_S).text == "hello"


def test_nobody_at_the_address_is_a_connect_error() -> None:
    with pytest.raises(ConnectError) as caught:
        FleetClient("mqtt://127.0.0.1:1", "d1").open()
    assert "fleet up" in caught.value.hint


async def test_nobody_at_the_address_is_a_connect_error_with_asyncio() -> None:
    with pytest.raises(ConnectError):
        async with AsyncFleetClient("mqtt://127.0.0.1:1", "d1"):
            pass


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
async def test_a_name_that_no_host_can_have_is_a_connect_error(host: str) -> None:
    with pytest.raises(ConnectError):
        FleetClient(f"mqtt://{host}", "d1").open()
    with pytest.raises(ConnectError):
        async with asyncio.timeout(WAIT_S), AsyncFleetClient(f"mqtt://{host}", "d1"):
            pass


def cut_at_the_first_submission(packet: mqtt5.Packet) -> list[Answer]:
    return [None] if isinstance(packet, mqtt5.PublishPacket) else friendly(packet)


async def test_what_was_under_way_when_the_link_broke_is_said_on_the_next_one() -> None:
    async with (
        ScriptedBroker(cut_at_the_first_submission, friendly) as broker,
        AsyncFleetClient(broker.url, "d1") as client,
    ):
        await client.submit("hello", job_id="j1", accept_timeout_s=None)
        await broker.until(lambda links: len(links) > 1 and bool(submissions(links[1])))
        await client.submit("hello", job_id="j2", accept_timeout_s=None)
        await broker.until(lambda links: len(submissions(links[1])) > 1)


def submissions(packets: list[mqtt5.Packet]) -> set[str]:
    return {packet.topic for packet in packets if isinstance(packet, mqtt5.PublishPacket)}


@pytest.fixture(scope="module")
def strict_broker(
    mosquitto: BrokerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrokerProcess]:
    """A Mosquitto with a user `d1` who may read everything and write nothing."""
    del mosquitto  # asked for because it knows what to do where none is installed
    options = BrokerOptions(passwords={"d1": "right"}, acl="user d1\ntopic read #\n")
    folder = tmp_path_factory.mktemp("strict")
    with BrokerProcess(BrokerKind.MOSQUITTO, folder, options=options) as process:
        yield process


def with_password(broker: BrokerProcess, password: str) -> str:
    return broker.url.replace("mqtt://", f"mqtt://d1:{password}@")


def test_a_wrong_password_is_denied(strict_broker: BrokerProcess) -> None:
    with pytest.raises(DeniedError):
        FleetClient(with_password(strict_broker, "wrong"), "d1").open()


async def test_a_wrong_password_is_denied_with_asyncio(strict_broker: BrokerProcess) -> None:
    with pytest.raises(DeniedError):
        async with AsyncFleetClient(with_password(strict_broker, "wrong"), "d1"):
            pass


def test_a_publication_that_the_acl_forbids_is_denied_at_once(strict_broker: BrokerProcess) -> None:
    with (
        FleetClient(with_password(strict_broker, "right"), "d1") as client,
        pytest.raises(DeniedError),
    ):
        client.submit("hello", accept_timeout_s=WAIT_S)


def test_a_3_1_1_broker_denies_in_silence_and_the_timeout_says_so(
    strict_broker: BrokerProcess,
) -> None:
    url = with_password(strict_broker, "right")
    with FleetClient(url, "d1", uses_mqtt5=False) as client:
        with pytest.raises(JobTimeoutError) as caught:
            client.submit("hello", accept_timeout_s=0.3)
        assert caught.value.hint
