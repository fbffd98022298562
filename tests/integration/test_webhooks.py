"""A webhook of a real dispatcher, which is killed between the result and the word of it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from fleet_cli.local_fleet import free_port
from tests.integration.fleet import PATIENCE_S, fleet
from tests.integration.test_gateway import ready

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]


class Tenant:
    """A server that is out of order until somebody says that it is not."""

    def __init__(self) -> None:
        self.works = False
        self.calls: list[tuple[dict[str, str], bytes, bool]] = []
        self.news = threading.Condition()
        self.url = ""

    def wait(self, count: int) -> None:
        """Wait for so many calls."""
        with self.news:
            assert self.news.wait_for(lambda: len(self.calls) >= count, PATIENCE_S + 10)


@contextmanager
def tenant() -> Iterator[Tenant]:
    found = Tenant()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            with found.news:
                headers = {name.lower(): value for name, value in self.headers.items()}
                found.calls.append((headers, body, found.works))
                found.news.notify_all()
            self.send_response(204 if found.works else 503)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}/done"
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield found
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def call(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    with urlopen(Request(url, data, headers), timeout=PATIENCE_S) as reply:  # noqa: S310 - loopback
        return json.load(reply)


def test_a_kill_between_the_result_and_its_word_loses_neither(tmp_path: Path) -> None:
    secret_file, port = tmp_path / "webhook.secret", free_port()
    secret_file.write_text("0123456789abcdef" * 4)
    url = f"http://127.0.0.1:{port}"
    environ = {
        "GATEWAY__PORT": str(port),
        "GATEWAY__WEBHOOKS__SECRET_FILE": str(secret_file),
        "GATEWAY__WEBHOOKS__ALLOW": '["127.0.0.0/8"]',
    }
    with tenant() as there, fleet(tmp_path, "w1", engine="echo", environ=environ) as (running, _):
        ready(url)
        call(f"{url}/jobs", {"id": "q1", "prompt": "Is the hall warm?", "webhook": there.url})
        there.wait(1)
        running.kill("dispatcher")
        there.works = True
        running.start_dispatcher(**environ)
        there.wait(2)
        running.says("dispatcher", '"event":"webhook.told"')
        secret = call(f"{url}/webhooks/secret")["secret"]
        log = (tmp_path / "dispatcher.log").read_text()
    (first, _, _), (headers, body, _) = there.calls
    assert len(there.calls) == 2
    assert first["webhook-id"] == headers["webhook-id"]
    told = json.loads(body)
    assert (told["type"], told["data"]["id"], told["data"]["status"]) == (
        "job.finished",
        "q1",
        "ok",
    )
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
    assert secret not in log
    assert "/done" not in log
