"""Results told to tenants' own servers: signed, again until heard, and nowhere they may not go."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trustme

from cloud_dispatcher.adapters.http import webhook_call
from cloud_dispatcher.adapters.http.webhook_call import WebhookCaller
from cloud_dispatcher.adapters.http.webhook_courier import PAUSES_S, WebhookCourier
from cloud_dispatcher.adapters.http.webhook_settings import WebhookSettings
from cloud_dispatcher.adapters.http.webhook_store import Webhook
from fleet_cli.local_fleet import free_port
from fleet_protocol import messages as m
from fleet_protocol.errors import ConfigError, RejectedError
from tests.unit.gateway_house import gateway
from tests.unit.service_house import House, Worker
from tests.unit.visitor import Visitor
from tests.unit.webhook_receiver import receiver

QUESTION = {"prompt": "Is the hall warm?", "max_tokens": 9}
HERE = ("127.0.0.0/8",)


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "webhook.secret"
    file.write_text("0123456789abcdef" * 4 + "\n")
    return file


@asynccontextmanager
async def courier(
    house: House, secret_file: Path, allow: tuple[str, ...] = HERE, **more: Any
) -> AsyncIterator[WebhookCourier]:
    """One life of it, over the one file of what is owed."""
    settings = WebhookSettings(secret_file=str(secret_file), allow=allow, **more)
    path = secret_file.with_name("owed.webhooks")
    async with WebhookCourier(settings, path, house.store, house.clock) as running:
        yield running


async def submit(visitor: Visitor, url: str, job: str = "q1") -> int:
    return (await visitor.post("/jobs", {"id": job, "webhook": url, **QUESTION})).status


def later(house: House, running: WebhookCourier, *, seconds: int) -> None:
    """Let so much time be over, and have the courier look at its clock."""
    house.clock.now_ms += seconds * 1_000
    running._news.set()


async def until_settled(house: House, running: WebhookCourier) -> None:
    await house.until(lambda: not running._owed and not running._busy)


async def test_a_result_is_told_once_signed_and_without_the_question(
    house: House, worker: Worker, secret_file: Path
) -> None:
    with structlog.testing.capture_logs() as lines:
        async with (
            receiver() as there,
            courier(house, secret_file) as running,
            gateway(house, webhooks=running) as url,
        ):
            visitor = Visitor(url)
            assert await submit(visitor, there.url) == 202
            worker.done(await worker.assignment(), "It is.")
            call = await there.call()
            await until_settled(house, running)
            secret = json.loads((await visitor.get("/webhooks/secret")).body)["secret"]
    assert call.line == "POST /hook?to=me HTTP/1.1"
    assert call.headers["content-type"] == "application/json"
    assert call.is_signed_with(secret)
    assert not call.is_signed_with(running.secret("another-tenant"))
    assert (call.told["type"], call.told["data"]["id"]) == ("job.finished", "q1")
    assert call.told["data"]["result"]["text"] == "It is."
    assert QUESTION["prompt"] not in call.body.decode()
    assert len(there.calls) == 1
    written = repr(lines)
    assert "'event': 'webhook.told'" in written
    for hidden in (secret, "to=me", "It is."):
        assert hidden not in written


@pytest.mark.parametrize("status", [500, 302, 404, 429])
async def test_who_does_not_take_it_is_told_again_under_the_same_name(
    house: House, worker: Worker, secret_file: Path, status: int
) -> None:
    async with (
        receiver(status, status, 200) as there,
        courier(house, secret_file) as running,
        gateway(house, webhooks=running) as url,
    ):
        await submit(Visitor(url), there.url)
        worker.done(await worker.assignment())
        for number, pause_s in enumerate(PAUSES_S[:2]):
            await there.call(after=number)
            await house.until(lambda: not running._busy)
            later(house, running, seconds=pause_s - 1)
            assert len(there.calls) == number + 1  # not before its time
            later(house, running, seconds=1 + pause_s // 4 + 1)
        calls = [await there.call(after=number) for number in range(3)]
        await until_settled(house, running)
    assert len({call.headers["webhook-id"] for call in calls}) == 1
    assert len({call.headers["webhook-timestamp"] for call in calls}) == 3
    assert all(call.is_signed_with(running.secret("default")) for call in calls)


async def test_what_is_owed_survives_a_restart(
    house: House, worker: Worker, secret_file: Path
) -> None:
    port = free_port()
    async with courier(house, secret_file) as running, gateway(house, webhooks=running) as url:
        await submit(Visitor(url), f"http://127.0.0.1:{port}/")
        worker.done(await worker.assignment())
        await house.until(lambda: any(hook.tries for hook in running._owed.values()))
        await house.until(lambda: not running._busy)
    house.clock.now_ms += 10_000
    async with receiver(port=port) as there, courier(house, secret_file) as running:
        assert (await there.call()).told["data"]["status"] == "ok"
        await until_settled(house, running)
    async with courier(house, secret_file) as running:
        assert running._owed == {}
        assert secret_file.with_name("owed.webhooks").stat().st_mode & 0o077 == 0


async def test_a_job_that_ended_while_nobody_listened_is_told_after_the_start(
    house: House, worker: Worker, secret_file: Path
) -> None:
    async with receiver() as there:
        async with gateway(house) as url:
            await Visitor(url).post("/jobs", {"id": "q1", **QUESTION})
            worker.done(await worker.assignment())
            await house.until(lambda: all(job.result for job in house.store._jobs.values()))
        hook = Webhook(device=m.DeviceId("http-default"), id=m.JobId("q1"), tenant="default",
                       url=there.url)  # fmt: skip
        async with courier(house, secret_file) as running:
            await running.promise(hook)  # by the life before, which did not hear of the end
        async with courier(house, secret_file) as running:
            await there.call()
            await until_settled(house, running)


async def test_nothing_is_owed_for_a_job_that_never_came(house: House, secret_file: Path) -> None:
    hook = Webhook(device=m.DeviceId("http-default"), id=m.JobId("q1"), tenant="default",
                   url="http://127.0.0.1:9/")  # fmt: skip
    async with courier(house, secret_file) as running:
        await running.promise(hook)  # then the power was cut, before the job was taken in
    async with courier(house, secret_file) as running:
        await until_settled(house, running)
    async with courier(house, secret_file) as running:
        assert running._owed == {}


async def test_who_names_another_address_meanwhile_is_called_there_and_not_where_it_was(
    house: House, worker: Worker, secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_call, "_ANSWER_S", 0.5)
    async with (
        receiver(0) as before,
        receiver() as there,
        courier(house, secret_file) as running,
        gateway(house, webhooks=running) as url,
    ):
        visitor = Visitor(url)
        await submit(visitor, before.url)
        worker.done(await worker.assignment())
        await before.call()
        assert await submit(visitor, there.url) == 202
        await there.call()
        await house.until(lambda: not running._busy)
        assert running._owed == {}


@pytest.mark.parametrize(("statuses", "tries"), [((410,), 1), ((500,), len(PAUSES_S) + 1)])
async def test_it_is_given_up_where_nobody_wants_it_and_after_a_day(
    house: House, worker: Worker, secret_file: Path, statuses: tuple[int, ...], tries: int
) -> None:
    async with (
        receiver(*statuses) as there,
        courier(house, secret_file) as running,
        gateway(house, webhooks=running) as url,
    ):
        await submit(Visitor(url), there.url)
        worker.done(await worker.assignment())
        for number in range(tries):
            await there.call(after=number)
            await house.until(lambda: not running._busy)
            later(house, running, seconds=40_000)
        await until_settled(house, running)
        later(house, running, seconds=1_000_000)
        assert len(there.calls) == tries


async def test_a_server_that_does_not_answer_is_left_and_tried_again(
    house: House, worker: Worker, secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_call, "_ANSWER_S", 0.1)
    async with (
        receiver(0, 200) as there,
        courier(house, secret_file) as running,
        gateway(house, webhooks=running) as url,
    ):
        await submit(Visitor(url), there.url)
        worker.done(await worker.assignment())
        await there.call()
        await house.until(lambda: not running._busy)
        later(house, running, seconds=10)
        await there.call(after=1)
        await until_settled(house, running)


async def test_a_job_that_is_over_already_is_told_at_once(
    house: House, worker: Worker, secret_file: Path
) -> None:
    async with (
        receiver() as there,
        courier(house, secret_file) as running,
        gateway(house, webhooks=running) as url,
    ):
        visitor = Visitor(url)
        await visitor.post("/jobs", {"id": "q1", **QUESTION})
        worker.done(await worker.assignment(), "It is.")
        await house.until(lambda: all(job.result for job in house.store._jobs.values()))
        assert await submit(visitor, there.url) == 202
        assert (await there.call()).told["data"]["result"]["text"] == "It is."


async def test_where_nobody_is_called_a_webhook_is_refused(house: House) -> None:
    async with gateway(house) as url:
        body = {"webhook": "https://tenant.example/", **QUESTION}
        answer = await Visitor(url).post("/jobs", body)
    assert (answer.status, answer.code) == (400, "webhooks_off")
    assert house.store._jobs == {}


async def test_a_webhook_that_may_not_be_called_keeps_the_job_out(
    house: House, secret_file: Path
) -> None:
    async with (
        courier(house, secret_file, allow=()) as running,
        gateway(house, webhooks=running) as url,
    ):
        body = {"webhook": "https://169.254.169.254/latest", **QUESTION}
        answer = await Visitor(url).post("/jobs", body)
        told = json.loads(answer.body)["error"]
    assert (answer.status, told["code"], told["param"]) == (400, "webhook_refused", "webhook")
    assert house.store._jobs == {}
    assert running._owed == {}


async def test_no_more_is_owed_than_may_be(house: House, secret_file: Path) -> None:
    async with (
        courier(house, secret_file, max_waiting=1) as running,
        gateway(house, webhooks=running) as url,
    ):
        visitor = Visitor(url)
        assert await submit(visitor, "http://127.0.0.1:9/", "q1") == 202
        assert await submit(visitor, "http://127.0.0.1:9/", "q2") == 503
        assert await submit(visitor, "http://127.0.0.1:9/", "q1") == 202  # the same job again
    assert {job.id for job in house.store._jobs.values()} == {"q1"}


@pytest.mark.usefixtures("worker")
async def test_a_job_that_is_refused_owes_nobody_anything(house: House, secret_file: Path) -> None:
    async with (
        courier(house, secret_file) as running,
        gateway(house, webhooks=running) as url,
    ):
        body = {"webhook": "http://127.0.0.1:9/", "model": "nobody-has-it", **QUESTION}
        assert (await Visitor(url).post("/jobs", body)).status in {400, 404}
        assert running._owed == {}
    async with courier(house, secret_file) as running:
        assert running._owed == {}


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/", "https://[::1]/", "https://10.1.2.3/", "https://192.168.0.1:8443/",
        "https://169.254.169.254/latest/meta-data", "https://[fe80::1]/", "https://[fd00::1]/",
        "https://[::ffff:10.0.0.1]/", "https://[64:ff9b::a00:1]/", "https://[2002:a00:1::1]/",
        "https://0.0.0.0/", "https://224.0.0.1/", "https://100.64.0.1/", "http://93.184.215.14/",
        "ftp://tenant.example/", "https://", "https://tenant.example:0/", "//tenant.example/",
        "https://user:word@tenant.example/", "https://tenant.example/a b",
        "https://tenant.example/\r\nX: y", "https://tenänt.example/", "https://[::1/",
        "https://tenant.example:99999/", "https://tenant.example/" + "x" * 2_048, "",
    ],
)  # fmt: skip
def test_what_is_no_address_of_the_internet_is_refused(url: str) -> None:
    with pytest.raises(RejectedError) as refused:
        WebhookCaller(WebhookSettings()).check(url)
    assert refused.value.code == "webhook_refused"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "[::ffff:127.0.0.1]"])
def test_a_network_that_was_allowed_may_be_called_in_every_spelling(host: str) -> None:
    WebhookCaller(WebhookSettings(allow=HERE)).check(f"http://{host}/")


@pytest.mark.parametrize(
    "url",
    ["https://localhost/", "https://2130706433/", "https://0x7f.1/", "https://127.1/",
     "https://" + "x" * 70 + "/"],
)  # fmt: skip
async def test_a_name_that_leads_inside_is_refused_when_it_is_asked_for(url: str) -> None:
    caller = WebhookCaller(WebhookSettings())
    caller.check(url)
    with pytest.raises(RejectedError):
        await caller.call(url, b"{}", {})


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Which name has which addresses; and, under "asked", who was asked for."""
    known: dict[str, list[str]] = {"asked": []}
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *words: Any, **more: Any) -> Any:
        known["asked"].append(host)
        found = known.get(host)
        if found is None:
            return real(host, port, *words, **more)
        return [entry for address in found for entry in real(address, port, *words, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["93.184.215.14", "127.0.0.1"]])
async def test_one_private_address_among_a_names_is_one_too_many(
    names: dict[str, list[str]], addresses: list[str]
) -> None:
    names["tenant.example"] = addresses
    with pytest.raises(RejectedError):
        await WebhookCaller(WebhookSettings()).call("https://tenant.example/", b"{}", {})


async def test_a_name_that_leads_elsewhere_a_moment_later_leads_nowhere(
    names: dict[str, list[str]],
) -> None:
    names["tenant.example"] = ["127.0.0.1"]
    async with receiver() as there:
        url = there.url.replace("127.0.0.1", "tenant.example")
        status = await WebhookCaller(WebhookSettings(allow=HERE)).call(url, b"{}", {})
    assert status == 204
    assert names["asked"].count("tenant.example") == 1
    assert there.calls[0].headers["host"].startswith("tenant.example:")


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_over_tls_the_server_must_be_who_it_says(
    names: dict[str, list[str]], tmp_path: Path, *, is_trusted: bool
) -> None:
    names["tenant.example"] = ["127.0.0.1"]
    authority, other = trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("tenant.example").configure_cert(context)
    (authority if is_trusted else other).cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    caller = WebhookCaller(WebhookSettings(allow=HERE, ca_file=str(tmp_path / "ca.pem")))
    async with receiver(tls=context) as there:
        url = there.url.replace("127.0.0.1", "tenant.example")
        if is_trusted:
            assert await caller.call(url, b"{}", {}) == 204
            with pytest.raises(ssl.SSLCertVerificationError):
                await caller.call(there.url, b"{}", {})  # its certificate is for the name
        else:
            with pytest.raises(ssl.SSLCertVerificationError):
                await caller.call(url, b"{}", {})


@pytest.mark.parametrize(
    "said", [b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000, b""]
)
async def test_what_answers_no_http_is_no_answer(said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        caller = WebhookCaller(WebhookSettings(allow=HERE))
        with pytest.raises(OSError, match=r"HTTP|before it answered"):
            await caller.call(f"http://127.0.0.1:{port}/", b"", {})


def test_a_secret_that_could_be_guessed_is_refused(house: House, tmp_path: Path) -> None:
    (tmp_path / "s").write_text("short\n")
    settings = WebhookSettings(secret_file=str(tmp_path / "s"))
    with pytest.raises(ConfigError, match="32 characters"):
        WebhookCourier(settings, tmp_path / "w", house.store, house.clock)
