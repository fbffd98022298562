"""A real nginx or Caddy before a gateway, with the sample configuration, as seen from outside."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from fleet_cli.local_fleet import free_port
from fleet_cli.pki import now_ms
from fleet_cli.tether import tethered
from fleet_pki.authority import Authority, PkiFolder, found
from tests.integration.fleet import PATIENCE_S
from tests.unit.visitor import Visitor

SAMPLES = Path(__file__).parents[2] / "deploy" / "proxy"
NAME = "fleet.example"

_AROUND_NGINX = """
# One process: what it starts nobody would end if the tests were killed.
daemon off;
master_process off;
pid {prefix}/nginx.pid;
error_log {prefix}/error.log info;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {prefix}/body;
    proxy_temp_path {prefix}/proxy;
    fastcgi_temp_path {prefix}/fastcgi;
    uwsgi_temp_path {prefix}/uwsgi;
    scgi_temp_path {prefix}/scgi;
    include {prefix}/edgefleet.conf;
}}
"""


_AROUND_CADDY = """
{{
	admin off
	http_port {plain_port}
	https_port {port}
	default_bind 127.0.0.1
	storage file_system {prefix}/caddy
}}
"""


class _Tls(HTTPConnection):
    """HTTP over TLS to the proxy, from an address of one's own."""

    def __init__(self, proxy: Proxy, source: str) -> None:
        super().__init__(proxy.host, timeout=PATIENCE_S)
        self._open = lambda: proxy.socket(source)

    def connect(self) -> None:
        self.sock = self._open()


class Outsider(Visitor):
    """A browser somewhere: this machine has 16 million addresses of its own."""

    def __init__(self, proxy: Proxy, source: str = "127.0.0.2") -> None:
        super().__init__(proxy.url)
        self.proxy = proxy
        self.source = source

    def connection(self) -> HTTPConnection:
        """Return a new connection to the proxy."""
        return _Tls(self.proxy, self.source)

    def open(
        self,
        path: str,
        *,
        origin: str | None = None,
        speaks: Subprotocol | None = None,
        **headers: str,
    ) -> ClientConnection:
        """Open a WebSocket, as the page's scripts do."""
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return connect(
            f"wss://{self.proxy.host}{path}",
            sock=self.proxy.tcp(self.source),
            ssl=self.proxy.trust,
            origin=Origin(origin or self.origin),
            subprotocols=None if speaks is None else [speaks],
            additional_headers={**headers, **({"Cookie": cookie} if cookie else {})},
            open_timeout=PATIENCE_S,
        )


class Proxy(ABC):
    """Where it is, and whose certificates it shows.

    Attributes:
        url: As people type it; nothing but the test knows that name.
        plain_port: Where it answers without TLS.
    """

    program: str

    def __init__(self, folder: Path) -> None:
        self.port, self.plain_port = free_port(), free_port()
        self.host = f"{NAME}:{self.port}"
        self.url = f"https://{self.host}"
        self.folder = folder
        pki = PkiFolder(folder / "pki")
        found(pki, "lab", now_ms=now_ms())
        with Authority(pki) as authority:
            self.trust = ssl.create_default_context(cadata=authority.ca_pem.decode())
            for name, pem in authority.issue_server([NAME], now_ms=now_ms()).items():
                (folder / name).write_bytes(pem)

    def tcp(self, source: str) -> socket.socket:
        """Connect from an address of this machine."""
        at = ("127.0.0.1", self.port)
        return socket.create_connection(at, PATIENCE_S, source_address=(source, 0))

    def socket(self, source: str) -> ssl.SSLSocket:
        """The same with TLS."""
        return self.trust.wrap_socket(self.tcp(source), server_hostname=NAME)

    @classmethod
    def found(cls) -> str | None:
        """Return where the program is; Debian keeps some where only root looks."""
        return shutil.which(cls.program) or shutil.which(cls.program, path="/usr/sbin")

    @abstractmethod
    def words(self, gateway: str) -> list[str]:
        """Write the sample down but for names and ports; return what the program is told."""

    def sample(self, name: str, *changes: tuple[str, str]) -> str:
        """Return a sample with what is different here."""
        text = (SAMPLES / name).read_text()
        for its, ours in (*changes, ("/etc/ssl/edgefleet/", f"{self.folder}/")):
            assert its in text
            text = text.replace(its, ours)
        return text

    @contextmanager
    def before(self, gateway: str) -> Iterator[None]:
        """Run it before a gateway."""
        program = self.found()
        assert program is not None
        words = tethered([program, *self.words(gateway)])
        environ = {**os.environ, "HOME": str(self.folder)}
        with (self.folder / "out.log").open("ab") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log, env=environ)
        try:
            self._until_up(process)
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE_S)

    def _until_up(self, process: subprocess.Popen[bytes]) -> None:
        ends_at_s = time.monotonic() + PATIENCE_S
        while True:
            with suppress(OSError), self.tcp("127.0.0.1"):
                return
            assert process.poll() is None, (self.folder / "out.log").read_text()
            assert time.monotonic() < ends_at_s
            time.sleep(0.02)


class Nginx(Proxy):
    """Debian's `nginx-light`."""

    program = "nginx"

    def words(self, gateway: str) -> list[str]:
        prefix = self.folder
        text = self.sample(
            "nginx.conf",
            ("listen 80;", f"listen 127.0.0.1:{self.plain_port};"),
            ("listen 443 ssl http2;", f"listen 127.0.0.1:{self.port} ssl http2;"),
            ("server 127.0.0.1:8600;", f"server {gateway.removeprefix('http://')};"),
        )
        (prefix / "edgefleet.conf").write_text(text)
        (prefix / "nginx.conf").write_text(_AROUND_NGINX.format(prefix=prefix))
        return ["-p", str(prefix), "-c", str(prefix / "nginx.conf"), "-e", "stderr"]


class Caddy(Proxy):
    """Debian's `caddy`."""

    program = "caddy"

    def words(self, gateway: str) -> list[str]:
        ports = {"port": self.port, "plain_port": self.plain_port}
        text = self.sample("Caddyfile", ("127.0.0.1:8600", gateway.removeprefix("http://")))
        file = self.folder / "Caddyfile"
        file.write_text(_AROUND_CADDY.format(prefix=self.folder, **ports) + text)
        return ["run", "--adapter", "caddyfile", "--config", str(file)]
