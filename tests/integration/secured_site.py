"""A fleet's authority and its broker, as an operator sets them up: real files, a real Mosquitto."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Self

from fleet_cli.broker import find_mosquitto
from fleet_cli.broker_site import Site, reload_broker, write_site
from fleet_cli.pki import hand_out, now_ms
from fleet_cli.tether import tethered
from fleet_pki.authority import Authority, Enrolment, PkiFolder, found
from fleet_pki.registry import Secret
from fleet_protocol.access import Identity
from fleet_protocol.settings import BrokerSettings, TlsSettings
from fleet_protocol.topics import Role, Topics

LOOPBACK = "127.0.0.1"
START_S = 15.0


class SecuredSite:
    """An authority, its members' folders, and a Mosquitto that lets in nobody else."""

    def __init__(self, folder: Path) -> None:
        self.keys = folder / "keys"
        self.pki = PkiFolder(folder / "pki")
        found(self.pki, "lab", now_ms=now_ms())
        self.site = Site(
            folder=folder / "broker",
            topics=Topics(),
            port=free_port(),
            password_port=free_port(),
            address=LOOPBACK,
            user="root",
        )
        self._log = folder / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.write()
        program = find_mosquitto()
        assert program is not None
        words = tethered([program, "-c", str(self.site.folder / "mosquitto.conf")])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        deadline_s = time.monotonic() + START_S
        config = (self.site.folder / "mosquitto.conf").read_text()
        ports = [int(port) for port in re.findall(r"^listener (\d+)", config, re.MULTILINE)]
        while not (self.site.folder / "mosquitto.pid").exists() or not all(map(listens, ports)):
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline_s, self.log
            time.sleep(0.02)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdin
            self._process.stdin.close()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def enrol(
        self,
        role: Role,
        *names: str,
        secret: Secret = Secret.CERTIFICATE,
        ago: timedelta = timedelta(),
    ) -> None:
        wishes: Sequence[Enrolment] = [
            Enrolment(identity=Identity(role=role, id=name), secret=secret) for name in names
        ]
        at_ms = now_ms() - int(ago.total_seconds() * 1_000)
        with Authority(self.pki) as authority:
            authority.enrol(wishes, hand_out(self.keys, again=False), now_ms=at_ms)

    def revoke(self, name: str) -> None:
        with Authority(self.pki) as authority:
            authority.revoke(name, now_ms=now_ms())

    def write(self) -> None:
        with Authority(self.pki) as authority:
            write_site(authority, self.site, hosts=(LOOPBACK, "localhost"), now_ms=now_ms())

    def reload(self) -> None:
        """Write and tell the broker, as an operator does; it says in its log that it read."""
        self.write()
        reloads = self.log.count("Reloading config")
        reload_broker(self.site.folder)
        deadline_s = time.monotonic() + START_S
        while self.log.count("Reloading config") == reloads:
            assert time.monotonic() < deadline_s, self.log
            time.sleep(0.02)

    def settings(self, name: str, *, keys: Path | None = None) -> BrokerSettings:
        """Return how somebody who was enrolled connects."""
        mine = (keys or self.keys) / name
        ca = str(self.keys / name / "ca.pem")
        if (mine / "password").exists():
            url = f"mqtts://{LOOPBACK}:{self.site.password_port}"
            words = str(mine / "password")
            tls = TlsSettings(ca_file=ca)
            return BrokerSettings(url=url, username=name, password_file=words, tls=tls)
        tls = TlsSettings(
            ca_file=ca, cert_file=str(mine / "cert.pem"), key_file=str(mine / "key.pem")
        )
        return BrokerSettings(url=self.url, username=name, tls=tls)

    @property
    def url(self) -> str:
        return f"mqtts://{LOOPBACK}:{self.site.port}"


def greeting(site: SecuredSite, context: ssl.SSLContext) -> bytes:
    """Say CONNECT over TLS and return the first byte of the answer."""
    with connection(site, context) as link:
        link.sendall(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00")
        return link.recv(1)


def listen_for_alert(site: SecuredSite, context: ssl.SSLContext) -> None:
    """Connect and raise what TLS says of it.

    In TLS 1.3 the client is done before the broker has judged its certificate. Whoever speaks at
    once may find the door shut and not hear why, so nothing is said here.
    """
    with connection(site, context) as link:
        link.recv(1)


@contextmanager
def connection(site: SecuredSite, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection((LOOPBACK, site.site.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=LOOPBACK) as link,
    ):
        yield link


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as server:
        port: int = server.getsockname()[1]
    return port


def listens(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True
