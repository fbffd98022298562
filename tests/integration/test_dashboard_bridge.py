"""A page's MQTT over the gateway: whose pages may, as whom, and how it ends."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import mqtt5
import pytest
from websockets.exceptions import InvalidStatus
from websockets.extensions import ClientExtensionFactory, Extension
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    PerMessageDeflate,
)
from websockets.frames import Frame
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from fleet_cli.local_fleet import free_port
from tests.integration.fleet import PATIENCE_S, ROOT, Device, Fleet
from tests.integration.page_socket import MQTT, ended, receive

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]


class Site:
    """A dispatcher with a page, and somebody who listens to the broker itself."""

    def __init__(self, running: Fleet, device: Device, port: int) -> None:
        self.running = running
        self.device = device
        self.host = f"127.0.0.1:{port}"
        self.url = f"http://{self.host}"

    def open(
        self,
        *,
        origin: str | None = None,
        speaks: Sequence[Subprotocol] | None = (MQTT,),
        extensions: Sequence[ClientExtensionFactory] | None = None,
        compression: str | None = "deflate",
    ) -> ClientConnection:
        """Open the bridge as a page of that origin does."""
        return connect(
            f"ws://{self.host}/mqtt",
            origin=Origin(origin or self.url),
            subprotocols=speaks,
            extensions=extensions,
            compression=compression,
            open_timeout=PATIENCE_S,
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    port = free_port()
    with Fleet(tmp_path_factory.mktemp("bridge")) as running:
        running.start_dispatcher(GATEWAY__PORT=str(port))
        device = running.device()
        running.online(device)
        yield Site(running, device, port)


def test_a_page_hears_the_fleet_though_its_connect_comes_in_pieces(site: Site) -> None:
    with site.open() as socket:
        assert socket.subprotocol == MQTT
        hello = mqtt5.ConnectPacket(client_id="dispatcher", keep_alive=30, clean_start=True)
        for byte in hello.write():
            socket.send(bytes([byte]))
        receive(socket, mqtt5.ConnAckPacket)
        wanted = mqtt5.TopicFilter(f"{ROOT}/fleet/dispatcher")
        socket.send(mqtt5.SubscribePacket(1, [wanted]).write())
        heard = receive(socket, mqtt5.PublishPacket)
        assert isinstance(heard, mqtt5.PublishPacket)
        # Under its own name of "dispatcher" it would have thrown the dispatcher off the broker.
        assert json.loads(bytes(heard.payload or b""))["status"] == "online"


class Weighing(ClientPerMessageDeflateFactory):
    """Adds up what is on the wire before it is unpacked."""

    def __init__(self) -> None:
        super().__init__()
        self.packed_bytes = 0

    def process_response_params(
        self, params: Sequence[tuple[str, str | None]], accepted: Sequence[Extension]
    ) -> PerMessageDeflate:
        deflate = super().process_response_params(params, accepted)
        unpack = deflate.decode

        def decode(frame: Frame, *, max_size: int | None = None) -> Frame:
            self.packed_bytes += len(frame.data)
            return unpack(frame, max_size=max_size)

        deflate.decode = decode  # type: ignore[method-assign]
        return deflate


def test_the_table_of_workers_is_packed_for_pages_that_can_unpack_it(site: Site) -> None:
    row = ["board", "online", 0.5, 0.5, 0.5, 0, 2, 1_763_847_000_000, False, None, "echo"]
    table = json.dumps({"rows": [[f"{row[0]}{number}", *row[1:]] for number in range(600)]})
    topic = f"{ROOT}/fleet/roster/15"
    site.device.publish("fleet/roster/15", table.encode(), retain=True)
    weighing = Weighing()
    for opened in (site.open(extensions=[weighing]), site.open(compression=None)):
        with opened as socket:
            socket.send(mqtt5.ConnectPacket(client_id="x", keep_alive=30).write())
            receive(socket, mqtt5.ConnAckPacket)
            socket.send(mqtt5.SubscribePacket(1, [mqtt5.TopicFilter(topic)]).write())
            heard = receive(socket, mqtt5.PublishPacket)
            assert isinstance(heard, mqtt5.PublishPacket)
            assert bytes(heard.payload or b"").decode() == table
    assert 0 < weighing.packed_bytes < len(table) / 4
    site.device.publish("fleet/roster/15", b"", retain=True)


def test_a_page_leaves_no_will(site: Site) -> None:
    topic = f"{ROOT}/fleet/dispatcher"
    will = mqtt5.Will(topic=topic, payload=b'{"status":"offline"}', retain=True)
    before = len(site.device.heard["fleet/dispatcher"])
    with site.open() as socket:
        socket.send(mqtt5.ConnectPacket(client_id="x", keep_alive=30, will=will).write())
        receive(socket, mqtt5.ConnAckPacket)
        socket.socket.close()
    site.device.publish("dev/d1/mark")
    site.device.wait(lambda: site.device.heard["dev/d1/mark"], "a word after the page's end")
    assert len(site.device.heard["fleet/dispatcher"]) == before


@pytest.mark.parametrize(
    ("origin", "speaks"),
    [("http://evil.example", [MQTT]), ("http://127.0.0.1:1", [MQTT]), (None, None)],
)
def test_other_pages_are_refused_before_they_are_heard(
    site: Site, origin: str | None, speaks: Sequence[Subprotocol] | None
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        site.open(origin=origin, speaks=speaks)
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("said", [b"\x10\x02\x00", b"\xc0\x00", b"GET / HTTP/1.1\r\n\r\n"])
def test_what_is_no_connect_ends_the_bridge_with_the_reason(site: Site, said: bytes) -> None:
    with site.open() as socket:
        socket.send(said + bytes(70_000))
        assert ended(socket) == 1003


def test_the_page_is_told_when_the_broker_goes(tmp_path: Path) -> None:
    port = free_port()
    with Fleet(tmp_path) as running:
        running.start_dispatcher(GATEWAY__PORT=str(port))
        device = running.device()
        running.online(device)
        site = Site(running, device, port)
        with site.open() as socket:
            socket.send(mqtt5.ConnectPacket(client_id="x", keep_alive=30).write())
            receive(socket, mqtt5.ConnAckPacket)
            running.broker.kill()
            assert ended(socket) == 1014
        with site.open() as again:
            again.send(mqtt5.ConnectPacket(client_id="x", keep_alive=30).write())
            assert ended(again) == 1014


def fetch(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Get something; return status, headers, body."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=PATIENCE_S)
    with closing(connection):
        connection.request("GET", parts.path, headers=headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def test_the_page_runs_nothing_but_its_own_files(site: Site) -> None:
    status, headers, body = fetch(f"{site.url}/")
    policy = headers["content-security-policy"]
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert b"<script>" not in body
    assert fetch(f"{site.url}/", **{"If-None-Match": headers["etag"]})[0] == 304
    status, headers, _ = fetch(f"{site.url}/assets/app.js", **{"Accept-Encoding": "gzip"})
    assert (status, headers["content-encoding"]) == (200, "gzip")


@pytest.mark.parametrize(
    "path", ["../index.html", "..%2f..%2fconfig.py", "%2e%2e/service.py", "nothing.js", ""]
)
def test_no_other_file_can_be_asked_for(site: Site, path: str) -> None:
    status, _, body = fetch(f"{site.url}/assets/{path}")
    assert status == 404
    assert b"import" not in body


def test_a_page_of_the_web_that_points_its_name_here_gets_nothing(site: Site) -> None:
    for path in ("", "page/session", "page/history"):
        assert fetch(f"{site.url}/{path}", Host="evil.example")[0] == 403


def test_history_has_a_row_of_every_column(site: Site) -> None:
    site.device.wait(lambda: site.device.heard["fleet/dispatcher"], "the dispatcher")
    _, headers, packed = fetch(f"{site.url}/page/history")
    assert headers["content-encoding"] == "gzip"
    history = json.loads(gzip.decompress(packed))
    assert all(len(row) == len(history["columns"]) for row in history["rows"])
    assert history["columns"][0] == "at_ms"


def test_with_keys_or_a_broker_that_asks_for_names_there_is_no_page(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "keys.toml").write_text("")
    with Fleet(tmp_path) as running:
        running.start_dispatcher(
            GATEWAY__PORT=str(port), GATEWAY__KEYS_FILE=str(tmp_path / "keys.toml")
        )
        running.online(running.device())
        for path in ("", "page/session", "assets/app.js"):
            assert fetch(f"http://127.0.0.1:{port}/{path}")[0] == 404
