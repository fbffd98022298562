"""The page before a broker that asks everybody for a certificate: a role is what it says it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import mqtt5
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from fleet_cli.broker import BrokerKind
from fleet_client.access_probe import AccessProbe
from fleet_protocol.topics import Role
from tests.conftest import require
from tests.integration.fleet import PATIENCE_S, ROOT
from tests.integration.page_socket import MQTT, ended, receive
from tests.integration.secured_site import SecuredSite, free_port

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

PASSWORD = "correct horse battery"
SECRET = "the code of the door is 4711"


class Site:
    """A secured broker, a dispatcher with logins, and a worker."""

    def __init__(self, broker: SecuredSite, host: str, environ: dict[str, str]) -> None:
        self.broker = broker
        self.host = host
        self.folder = broker.keys.parent
        self._environ = environ
        self.begin()

    def begin(self) -> None:
        """Start the dispatcher; wait until it serves."""
        self.dispatcher = start(
            self.folder, "cloud_dispatcher", "run", prefix="DISPATCHER", environ=self._environ
        )
        ends_at_s = time.monotonic() + PATIENCE_S
        while not self.is_ready():
            assert time.monotonic() < ends_at_s
            assert self.dispatcher.poll() is None
            time.sleep(0.05)

    def is_ready(self) -> bool:
        """Tell whether it is connected to the broker and answers."""
        with closing(HTTPConnection(self.host, timeout=PATIENCE_S)) as connection:
            try:
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
            except OSError:
                return False

    def log_in(self, role: str) -> str:
        """Log in; return the cookie."""
        body = json.dumps({"name": role, "password": PASSWORD})
        headers = {"Content-Type": "application/json", "Origin": f"http://{self.host}"}
        with closing(HTTPConnection(self.host, timeout=PATIENCE_S)) as connection:
            connection.request("POST", "/page/login", body=body, headers=headers)
            reply = connection.getresponse()
            assert reply.status == 204, reply.read()
            cookie = SimpleCookie(reply.getheader("set-cookie"))
        return "; ".join(f"{name}={morsel.value}" for name, morsel in cookie.items())

    def log_out(self, cookie: str) -> None:
        """End a login."""
        headers = {"Origin": f"http://{self.host}", "Cookie": cookie}
        headers["x-csrf-token"] = self.session(cookie)["csrf"]
        with closing(HTTPConnection(self.host, timeout=PATIENCE_S)) as connection:
            connection.request("POST", "/page/logout", headers=headers)
            assert connection.getresponse().status == 204

    def session(self, cookie: str) -> dict[str, Any]:
        """Return who the page is."""
        with closing(HTTPConnection(self.host, timeout=PATIENCE_S)) as connection:
            connection.request("GET", "/page/session", headers={"Cookie": cookie})
            found: dict[str, Any] = json.load(connection.getresponse())
            return found

    @contextmanager
    def page(self, cookie: str) -> Iterator[ClientConnection]:
        """Open the bridge and connect."""
        with self.socket(cookie) as socket:
            socket.send(mqtt5.ConnectPacket("x", username="dispatcher", keep_alive=30).write())
            receive(socket, mqtt5.ConnAckPacket)
            yield socket

    def socket(self, cookie: str, *, origin: str | None = None) -> ClientConnection:
        return connect(
            f"ws://{self.host}/mqtt",
            origin=Origin(origin or f"http://{self.host}"),
            subprotocols=[MQTT],
            additional_headers={"Cookie": cookie} if cookie else {},
            open_timeout=PATIENCE_S,
        )

    def ask(self, cookie: str, **request: object) -> dict[str, Any]:
        """Ask the dispatcher as the page does."""
        topics = self.session(cookie)["topics"]
        with self.page(cookie) as socket:
            hear(socket, topics["hears"])
            say(socket, topics["asks"], {"v": 1, "req": "r1", **request})
            heard = receive(socket, mqtt5.PublishPacket)
            assert isinstance(heard, mqtt5.PublishPacket)
            found: dict[str, Any] = json.loads(heard.payload)
            return found


def hear(socket: ClientConnection, topic: str) -> None:
    wanted = [mqtt5.TopicFilter(f"{ROOT}/{topic}")]
    socket.send(mqtt5.SubscribePacket(1, wanted).write())
    receive(socket, mqtt5.SubAckPacket)


def say(socket: ClientConnection, topic: str, message: dict[str, object]) -> None:
    payload = json.dumps(message).encode()
    qos = mqtt5.QoS.AT_LEAST_ONCE
    socket.send(mqtt5.PublishPacket(f"{ROOT}/{topic}", payload, qos=qos, packet_id=2).write())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    require(BrokerKind.MOSQUITTO.is_installed, "mosquitto")
    folder = tmp_path_factory.mktemp("logins")
    broker = SecuredSite(folder)
    broker.enrol(Role.DISPATCHER, "dispatcher")
    broker.enrol(Role.WORKER, "w1")
    broker.enrol(Role.DEVICE, "d1")
    broker.enrol(Role.VIEWER, "page-viewer")
    broker.enrol(Role.VIEWER, "wall")
    broker.enrol(Role.OPERATOR, "page-operator")
    users = folder / "users.toml"
    for role in ("viewer", "operator"):
        subprocess.run(
            [sys.executable, "-m", "cloud_dispatcher", "users", "add", role, "--role", role,
             "--password-file", "-", "--file", str(users)],
            input=f"{PASSWORD}\n", text=True, check=True,
        )  # fmt: skip
    host = f"127.0.0.1:{free_port()}"
    pages = {
        "GATEWAY__PORT": host.rpartition(":")[2],
        "GATEWAY__PAGE__USERS_FILE": str(users),
        **identity(broker, "page-viewer", "GATEWAY__PAGE__VIEWER"),
        **identity(broker, "page-operator", "GATEWAY__PAGE__OPERATOR"),
        **identity(broker, "dispatcher", "BROKER"),
    }
    with broker:
        site = Site(broker, host, pages)
        programs = [
            start(folder, "edge_worker", "run", "--engine", "echo", prefix="WORKER",
                  environ={"ID": "w1", **identity(broker, "w1", "BROKER")}),
        ]  # fmt: skip
        with AccessProbe(broker.settings("wall"), ("fleet/v1/fleet/summary",)) as wall:
            wall.wait_until(lambda heard: any(b'"online":1' in payload for _, payload in heard))
        yield site
        programs.append(site.dispatcher)
        for program in programs:
            program.send_signal(signal.SIGTERM)
        for program in programs:
            program.wait(30)


def identity(broker: SecuredSite, name: str, table: str) -> dict[str, str]:
    """Return the settings of somebody who was enrolled."""
    keys = broker.keys / name
    return {
        f"{table}__URL": broker.url,
        f"{table}__USERNAME": name,
        f"{table}__TLS__CA_FILE": str(keys / "ca.pem"),
        f"{table}__TLS__CERT_FILE": str(keys / "cert.pem"),
        f"{table}__TLS__KEY_FILE": str(keys / "key.pem"),
    }


def start(
    folder: Path, *words: str, prefix: str, environ: dict[str, str]
) -> subprocess.Popen[bytes]:
    with (folder / f"{words[0]}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *words, "--data", str(folder / words[0])],
            env={**os.environ, **{f"EDGEFLEET_{prefix}_{k}": v for k, v in environ.items()}},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def ask_as_device(site: Site, question: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fleet_cli", "ask", question, "--json", "--broker",
         site.broker.url, "--identity", str(site.broker.keys / "d1")],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert SECRET in done.stdout


def test_a_viewers_page_sees_the_fleet_and_no_answer(site: Site) -> None:
    ask_as_device(site, SECRET)
    cookie = site.log_in("viewer")
    with site.page(cookie) as socket:
        hear(socket, "fleet/summary")
        heard = receive(socket, mqtt5.PublishPacket)
        assert isinstance(heard, mqtt5.PublishPacket)
        assert json.loads(heard.payload)["workers"]["online"] == 1
    reply = site.ask(cookie, op="jobs.ls")
    assert (reply["ok"], reply["jobs"][0]["device"]) == (True, "d1")
    reply = site.ask(cookie, op="jobs.show", job=reply["jobs"][0]["job"])
    assert reply["jobs"][0]["result"]["status"] == "ok"
    assert SECRET not in json.dumps(reply)


def test_an_operators_page_sees_answers_and_commands(site: Site) -> None:
    ask_as_device(site, SECRET)
    cookie = site.log_in("operator")
    job = site.ask(cookie, op="jobs.ls")["jobs"][0]["job"]
    reply = site.ask(cookie, op="jobs.show", job=job)
    assert SECRET in reply["jobs"][0]["result"]["text"]
    for op in ("workers.drain", "workers.resume"):
        assert site.ask(cookie, op=op, worker="w1")["ok"]
    refused = site.ask(cookie, op="cache.clear")
    assert (refused["ok"], refused["code"]) == (False, "not_authorized")


def test_a_viewers_page_cannot_command_whatever_it_says(site: Site) -> None:
    cookie = site.log_in("viewer")
    refused = site.ask(cookie, op="workers.drain", worker="w1")
    assert (refused["ok"], refused["code"]) == (False, "not_authorized")
    command = {"v": 1, "req": "r1", "op": "workers.drain", "worker": "w1"}
    for topic in ("operator/page-operator/req", "admin/ann/req", "workers/w1/cmd"):
        with site.page(cookie) as socket:
            say(socket, topic, command)
            assert ended(socket) == 1008
    for topic in ("dev/#", "operator/page-operator/res", "#"):
        with site.page(cookie) as socket:
            wanted = [mqtt5.TopicFilter(f"{ROOT}/{topic}")]
            socket.send(mqtt5.SubscribePacket(1, wanted).write())
            assert ended(socket) == 1008
    [worker] = site.ask(cookie, op="workers.ls")["workers"]
    assert worker["status"] == "online"
    assert '"event":"bridge.not_allowed"' in (site.folder / "cloud_dispatcher.log").read_text()


def test_a_page_ends_with_its_login(site: Site) -> None:
    cookie = site.log_in("viewer")
    with site.page(cookie) as socket:
        site.log_out(cookie)
        assert ended(socket) == 1008
    with pytest.raises(InvalidStatus) as refused:
        site.socket(cookie)
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("cookie", ["", "edgefleet=guessed"])
def test_without_a_login_there_is_no_bridge(site: Site, cookie: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        site.socket(cookie)
    assert refused.value.response.status_code == 403


def test_another_sites_page_does_not_get_in_with_the_cookie(site: Site) -> None:
    cookie = site.log_in("operator")
    with pytest.raises(InvalidStatus) as refused:
        site.socket(cookie, origin="http://evil.example")
    assert refused.value.response.status_code == 403


def test_a_login_survives_a_kill_of_the_dispatcher_and_a_logout_does_too(site: Site) -> None:
    stays, leaves = site.log_in("operator"), site.log_in("operator")
    site.log_out(leaves)
    site.dispatcher.kill()
    site.dispatcher.wait(30)
    site.begin()
    assert site.session(stays)["user"] == "operator"
    assert "user" not in site.session(leaves)
    with site.page(stays) as socket:
        hear(socket, "fleet/dispatcher")
        assert receive(socket, mqtt5.PublishPacket)
    [kept] = (site.folder / "cloud_dispatcher").glob("*.logins")
    assert kept.stat().st_mode & 0o077 == 0


def test_nobodys_password_or_answer_is_in_the_log(site: Site) -> None:
    log = (site.folder / "cloud_dispatcher.log").read_text()
    assert '"event":"login.done"' in log
    for hidden in (PASSWORD, SECRET, "argon2"):
        assert hidden not in log
