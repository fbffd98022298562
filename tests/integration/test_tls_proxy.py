"""The gateway behind nginx or Caddy with TLS, by the samples of `deploy/proxy`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import mqtt5
import pytest
from websockets.exceptions import InvalidStatus

from cloud_dispatcher.adapters.http import keys, users
from fleet_cli.broker import BrokerProcess
from fleet_protocol import topics as t
from fleet_protocol.bus import Confirmed, Publication, Session
from fleet_protocol.mqtt import MqttBus
from fleet_protocol.settings import BrokerSettings
from tests.conftest import require
from tests.integration.fleet import PATIENCE_S, ROOT
from tests.integration.page_socket import MQTT, receive
from tests.integration.tls_proxy import Caddy, Nginx, Outsider, Proxy
from tests.unit.gateway_house import gateway, says
from tests.unit.service_house import House, Worker
from tests.unit.visitor import PASSWORD, Visitor

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

ASKED = {
    "model": "fleet",
    "messages": [{"role": "user", "content": "Is the hall warm?"}],
    "stream": True,
}
GUESS = {"name": "ann", "password": "guess guess guess"}


class Site:
    """A fleet behind a proxy.

    Attributes:
        direct: Where the gateway listens, for who is on its machine.
        bearer: The header of somebody with a key.
    """

    def __init__(self, house: House, worker: Worker, proxy: Proxy, direct: str, key: str) -> None:
        self.house = house
        self.worker = worker
        self.proxy = proxy
        self.direct = direct
        self.bearer = {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The files of users and keys, and the key."""
    folder = tmp_path_factory.mktemp("who")
    users.write_users(folder / "users.toml", (users.new_user("ann", PASSWORD, role="operator"),))
    secret, key = keys.new_key("7" * 64, "app", "default")
    keys.write_keys(folder / "keys.toml", (key,))
    return folder, secret


@pytest.fixture(params=[Nginx, Caddy], ids=["nginx", "caddy"])
async def site(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    made: tuple[Path, str],
    mosquitto: BrokerProcess,
) -> AsyncIterator[Site]:
    kind: type[Proxy] = request.param
    require(kind.found() is not None, kind.program)
    house, proxy, (folder, key) = House(), kind(tmp_path), made
    page = {
        "users_file": str(folder / "users.toml"),
        "url": proxy.url,
        "proxies": ["127.0.0.1"],
    }
    async with house.peer(Worker, "w1", "workers/w1") as worker:
        worker.join()
        async with gateway(
            house,
            broker=BrokerSettings(url=mosquitto.url),
            keys_file=str(folder / "keys.toml"),
            page=page,
        ) as direct:
            with proxy.before(direct):
                yield Site(house, worker, proxy, direct, key)


async def test_people_come_over_tls_and_log_in_with_a_cookie_that_goes_no_other_way(
    site: Site,
) -> None:
    browser = Outsider(site.proxy)
    page = await browser.get("/")
    assert (page.status, b"<title>" in page.body) == (200, True)
    assert page.headers["strict-transport-security"] == "max-age=31536000"
    told = (await browser.log_in("ann")).headers["set-cookie"]
    assert told.startswith("__Host-edgefleet=")
    assert {"secure", "httponly", "samesite=strict", "path=/"} <= set(told.lower().split("; "))
    assert (await browser.session())["user"] == "ann"
    assert (await browser.post("/page/logout", None)).status == 204
    assert "user" not in await browser.session()


async def test_who_comes_without_tls_is_led_to_it(site: Site) -> None:
    plain = Visitor(f"http://127.0.0.1:{site.proxy.plain_port}")
    told = await plain.get("/jobs?limit=1", Host="fleet.example")
    assert (told.status, told.headers["location"]) == (301, "https://fleet.example/jobs?limit=1")


async def test_a_page_of_elsewhere_gets_nothing_by_the_login(site: Site) -> None:
    browser = Outsider(site.proxy)
    await browser.log_in("ann")
    for origin in ("https://evil.example", "https://fleet.example", "null"):
        told = await browser.post("/jobs", {"prompt": "Warm?"}, Origin=origin)
        assert (told.status, told.code) == (403, "not_our_page")
        with pytest.raises(InvalidStatus) as refused:
            await asyncio.to_thread(browser.open, "/mqtt", origin=origin, speaks=MQTT)
        assert refused.value.response.status_code == 403


async def test_the_page_speaks_mqtt_through_it(site: Site, mosquitto: BrokerProcess) -> None:
    topic = f"{ROOT}/fleet/alerts/behind-the-proxy"
    browser = Outsider(site.proxy)
    await browser.log_in("ann")

    def hears() -> bytes:
        with browser.open("/mqtt", speaks=MQTT) as socket:
            assert socket.subprotocol == MQTT
            socket.send(mqtt5.ConnectPacket("page", keep_alive=30, clean_start=True).write())
            receive(socket, mqtt5.ConnAckPacket)
            socket.send(mqtt5.SubscribePacket(1, [mqtt5.TopicFilter(topic)]).write())
            heard = receive(socket, mqtt5.PublishPacket)
            assert isinstance(heard, mqtt5.PublishPacket)
            return bytes(heard.payload or b"")

    session = Session(client_id="says-behind-the-proxy")
    async with MqttBus(BrokerSettings(url=mosquitto.url), session) as bus:
        for payload in (b"x" * 200_000, b""):
            bus.publish(Publication(topic=topic, payload=payload, retain=True, token="told"))
            while not any(isinstance(event, Confirmed) for event in await bus.receive()):
                pass
            if payload:
                assert await asyncio.to_thread(hears) == payload


async def test_a_stream_comes_token_by_token(site: Site) -> None:
    async with streaming(site) as (_, reply):
        assert reply.headers["content-type"].startswith("text/event-stream")
        got = await site.worker.assignment()
        for index, word in enumerate(("It ", "is ", "warm.")):
            says(site.worker, got, index, word)
            # Nobody has said the next word yet: what is kept back now never comes.
            assert await asyncio.to_thread(next_word, reply) == word
        site.worker.done(got, "It is warm.")
        assert (await asyncio.to_thread(reply.read)).endswith(b"data: [DONE]\n\n")


async def test_who_goes_away_cancels_the_job(site: Site) -> None:
    async with streaming(site) as (connection, reply):
        says(site.worker, await site.worker.assignment(), 0, "It ")
        assert await asyncio.to_thread(next_word, reply) == "It "
        reply.close()
        connection.close()
        await site.worker.hear(t.WORKER_CANCEL, "w1")


async def test_results_come_over_a_websocket(site: Site) -> None:
    app = Outsider(site.proxy)
    await app.post("/jobs", {"id": "q1", "prompt": "Warm?", "stream": True}, **site.bearer)
    got = await site.worker.assignment()
    socket = await asyncio.to_thread(app.open, "/jobs/q1/events", **site.bearer)
    with socket:
        says(site.worker, got, 0, "It is.")
        assert json.loads(await asyncio.to_thread(socket.recv, PATIENCE_S))["event"] == "token"
        site.worker.done(got, "It is.")
        told = json.loads(await asyncio.to_thread(socket.recv, PATIENCE_S))
    assert (told["event"], told["data"]["text"]) == ("result", "It is.")


async def test_guesses_count_where_they_come_from_whatever_they_say(site: Site) -> None:
    guesser, other = Outsider(site.proxy, "127.0.0.2"), Outsider(site.proxy, "127.0.0.3")
    statuses = []
    for number in range(6):
        lie = {"X-Forwarded-For": f"203.0.113.{number}", "Forwarded": f"for=203.0.113.{number}"}
        statuses.append((await guesser.post("/page/login", GUESS, **lie)).status)
    assert statuses == [401] * 5 + [429]
    assert (await other.log_in("ann")).status == 204
    told = [(what, about["address"]) for what, about in site.house.audited]
    assert told == [("login.failed", "127.0.0.2")] * 5 + [("login", "127.0.0.3")]


async def test_who_comes_past_the_proxy_is_not_believed_either(site: Site) -> None:
    past = Visitor(site.direct, origin=site.proxy.url)

    def connection() -> HTTPConnection:
        host = site.direct.removeprefix("http://")
        return HTTPConnection(host, timeout=PATIENCE_S, source_address=("127.0.0.9", 0))

    past.connection = connection  # type: ignore[method-assign]
    told = await past.post("/page/login", GUESS, **{"X-Forwarded-For": "203.0.113.7"})
    assert told.status == 401
    assert [about["address"] for _, about in site.house.audited] == ["127.0.0.9"]


async def test_what_is_too_large_is_refused_in_the_apis_own_words(site: Site) -> None:
    app = Outsider(site.proxy)
    turn = {"role": "user", "content": "x" * 1_100_000}
    told = await app.post("/v1/chat/completions", {**ASKED, "messages": [turn]}, **site.bearer)
    assert (told.status, told.code) == (413, "too_large")
    turn["content"] *= 2
    told = await app.post("/v1/chat/completions", {**ASKED, "messages": [turn]}, **site.bearer)
    assert told.status == 413


@asynccontextmanager
async def streaming(site: Site) -> AsyncIterator[tuple[HTTPConnection, HTTPResponse]]:
    """Ask for a stream from outside; from here on its head is there."""
    connection = Outsider(site.proxy).connection()

    def asked() -> HTTPResponse:
        headers = {**site.bearer, "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(ASKED), headers)
        return connection.getresponse()

    reply = await asyncio.to_thread(asked)
    try:
        yield connection, reply
    finally:
        reply.close()
        connection.close()


def next_word(reply: HTTPResponse) -> str:
    """Return what the next chunk with a word in it says."""
    while True:
        line = reply.readline()
        assert line, "the stream ended"
        if line.startswith(b"data: {"):
            delta = json.loads(line[6:])["choices"][0]["delta"]
            if word := str(delta.get("content") or ""):
                return word
