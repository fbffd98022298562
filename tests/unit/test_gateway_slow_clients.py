"""Clients that send or read so slowly that waiting for them would hold the gateway."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cloud_dispatcher.adapters.http import gatekeeper, server, slow_clients
from fleet_protocol.settings import BrokerSettings
from tests.unit.gateway_house import gateway
from tests.unit.service_house import PATIENCE_S, House
from tests.unit.visitor import Visitor

WAIT_S = 0.2
BODY = b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ten seconds in a test."""
    monkeypatch.setattr(slow_clients, "HEAD_WAIT_S", WAIT_S)
    monkeypatch.setattr(slow_clients, "READ_WAIT_S", WAIT_S)
    monkeypatch.setattr(gatekeeper, "_BODY_WAIT_S", WAIT_S)


@asynccontextmanager
async def connection(
    url: str,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client that decides byte by byte what it sends."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


async def until_cut(reader: asyncio.StreamReader) -> bytes:
    """Read until the gateway ends the connection."""
    said = bytearray()
    async with asyncio.timeout(PATIENCE_S):
        try:
            while data := await reader.read(65_536):
                said += data
        except ConnectionResetError:
            pass
    return bytes(said)


async def trickle(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bytes_: bytes
) -> bytes:
    """Send a byte again and again until the gateway ends the connection."""
    cut = asyncio.create_task(until_cut(reader))
    for byte in bytes_:
        writer.write(bytes([byte]))
        if (await asyncio.wait({cut}, timeout=WAIT_S / 10))[0]:
            break
    else:
        pytest.fail("it was listened to for ever")
    return cut.result()


@pytest.mark.parametrize("said", [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"])
async def test_who_never_ends_the_head_of_a_request_is_cut(house: House, said: bytes) -> None:
    async with gateway(house) as url, connection(url) as (reader, writer):
        writer.write(said)
        assert await until_cut(reader) == b""


async def test_a_head_that_comes_byte_by_byte_gains_no_time(house: House) -> None:
    async with gateway(house) as url, connection(url) as (reader, writer):
        head = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: " + b"x" * 1_000
        assert await trickle(reader, writer, head) == b""


async def test_a_second_request_has_no_more_time_than_the_first(house: House) -> None:
    async with gateway(house) as url, connection(url) as (reader, writer):
        writer.write(GET)
        assert b"200 OK" in await reader.readuntil(b"}")
        assert await trickle(reader, writer, b"GET /" + b"x" * 1_000) == b""


async def test_a_body_that_does_not_come_is_given_up(house: House) -> None:
    async with gateway(house) as url, connection(url) as (reader, writer):
        writer.write(BODY + b"Content-Length: 100\r\n\r\n{")
        said = await trickle(reader, writer, b" " * 90)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"body_too_slow" in said


async def test_a_body_that_nobody_wants_is_not_listened_to(house: House) -> None:
    async with gateway(house) as url, connection(url) as (reader, writer):
        writer.write(BODY.replace(b"application/json", b"text/plain"))
        writer.write(b"Content-Length: 100000\r\n\r\n")
        said = await trickle(reader, writer, b" " * 1_000)
    assert said.startswith(b"HTTP/1.1 415 ")


async def test_an_answer_that_nobody_reads_is_thrown_away(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, client = asyncio.Event(), socket.socket()
    lost = slow_clients.PatientHttp.connection_lost

    def connection_lost(self: slow_clients.PatientHttp, exc: Exception | None) -> None:
        lost(self, exc)
        if self.client == client.getsockname():
            cut.set()

    async with gateway(house, broker=BrokerSettings()) as url:
        size, many = len((await Visitor(url).get("/assets/vendor.js")).body), 60
        monkeypatch.setattr(slow_clients.PatientHttp, "connection_lost", connection_lost)
        loop = asyncio.get_running_loop()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setblocking(False)  # noqa: FBT003
        with client:
            await loop.sock_connect(client, _place(url))
            await loop.sock_sendall(client, GET.replace(b"/healthz", b"/assets/vendor.js") * many)
            async with asyncio.timeout(PATIENCE_S):
                await cut.wait()
            # What lies in the system's buffers can still be read; the rest was thrown away.
            got = 0
            try:
                while data := await loop.sock_recv(client, 1_048_576):
                    got += len(data)
            except ConnectionResetError:
                pass
        assert got < many * size


async def test_others_are_answered_while_slow_ones_are_waited_for(house: House) -> None:
    async with gateway(house) as url:
        slow = [await asyncio.open_connection(*_place(url)) for _ in range(50)]
        for _, writer in slow:
            writer.write(b"GET /healthz HTTP/1.1\r\n")
        assert (await Visitor(url).get("/healthz")).status == 200
        for reader, writer in slow:
            assert await until_cut(reader) == b""
            writer.close()


async def test_more_connections_than_there_may_be_are_told_to_come_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_PAGES_MOST", 1)
    async with (
        gateway(house, max_open=1) as url,
        connection(url) as (first, talks),
        connection(url) as (second, _),
    ):
        talks.write(GET)
        assert b"200 OK" in await first.readuntil(b"}")
        async with connection(url) as (third, _):
            said = await until_cut(third)
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in said
        await until_cut(second)
        async with connection(url) as (fourth, again):
            again.write(GET)
            assert b"200 OK" in await fourth.readuntil(b"}")


async def test_a_head_without_end_is_refused_before_it_fills_the_memory(house: House) -> None:
    async with gateway(house) as url, connection(url) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nX-Large: " + b"x" * 100_000)
        assert (await until_cut(reader)).startswith(b"HTTP/1.1 400 ")


def _place(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)
