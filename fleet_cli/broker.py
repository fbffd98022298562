"""A broker of our own as a child process, on loopback, in a folder.

The embedded broker comes with the Python package; it forgets everything when it stops and has no
access control. Mosquitto is for everything else.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

from fleet_cli.broker_config import LOOPBACK, BrokerOptions, write_embedded, write_mosquitto
from fleet_cli.tether import tethered
from fleet_protocol.errors import ConfigError, RetryableError

__all__ = ["BrokerKind", "BrokerOptions", "BrokerProcess", "choose_broker", "find_mosquitto"]

# Debian keeps it outside a user's PATH.
_MORE_FOLDERS: Final = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
_START_S: Final = 15.0
_STOP_S: Final = 5.0
_POLL_S: Final = 0.02
_LOG_TAIL_CHARS: Final = 600
# CONNECT of a client without a name, with a clean session: any broker answers it with a CONNACK.
_HELLO_V3: Final = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"
_HELLO_V5: Final = b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00"
_CONNACK: Final = b"\x20"
_GOODBYE: Final = b"\xe0\x00"


class BrokerKind(StrEnum):
    """A broker we know how to start."""

    EMBEDDED = "embedded"
    MOSQUITTO = "mosquitto"

    @property
    def is_installed(self) -> bool:
        """Whether it can be started here."""
        if self is BrokerKind.MOSQUITTO:
            return find_mosquitto() is not None
        return importlib.util.find_spec("iotcore") is not None


def find_mosquitto() -> str | None:
    """Return the path of the Mosquitto broker, if it is installed."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return shutil.which("mosquitto", path=os.pathsep.join((*folders, *_MORE_FOLDERS)))


def choose_broker() -> BrokerKind:
    """Return the embedded broker where it is installed, else Mosquitto.

    Raises:
        ConfigError: Neither is there.
    """
    for kind in BrokerKind:
        if kind.is_installed:
            return kind
    raise ConfigError(
        "there is no broker to start",
        code="no_broker",
        hint="pip install 'edgefleet[cloud]', install mosquitto, or name one with --broker",
    )


class BrokerProcess:
    """A broker from start to stop; the ports stay the same when it starts again.

    It does not outlive this process, not even a kill -9. Start it from a thread that stays, such
    as the main one: on Linux the broker ends when that thread does.

    Args:
        kind: Which broker.
        folder: For its configuration, log and data; made if it is not there.
        port: For MQTT 5 (with Mosquitto for all versions); None takes a free one.
        port_v3: For MQTT 3.1.1 where the broker wants a port of its own for it.
        options: See `BrokerOptions`.
    """

    def __init__(
        self,
        kind: BrokerKind,
        folder: Path,
        *,
        port: int | None = None,
        port_v3: int | None = None,
        options: BrokerOptions | None = None,
    ) -> None:
        self.kind = kind
        self.folder = folder
        self.log_file = folder / "broker.log"
        self.port = port or _free_port()
        self.port_v3 = self.port
        if kind is BrokerKind.EMBEDDED:
            self.port_v3 = port_v3 or _free_port(but=self.port)
        self._options = options or BrokerOptions()
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = "stopped" if self.pid is None else f"pid {self.pid}"
        return f"<BrokerProcess {self.kind} at {self.url}, {state}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where MQTT 5 is spoken."""
        scheme = "mqtt" if self._options.cert_file is None else "mqtts"
        return f"{scheme}://{LOOPBACK}:{self.port}"

    @property
    def url_v3(self) -> str:
        """Where MQTT 3.1.1 is spoken."""
        return self.url.replace(str(self.port), str(self.port_v3))

    @property
    def pid(self) -> int | None:
        """Of the running broker."""
        is_running = self._process is not None and self._process.poll() is None
        return self._process.pid if self._process is not None and is_running else None

    def exit_code(self) -> int | None:
        """Return how it ended; None while it runs or before it was started."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            ConfigError: `port_in_use`, or it is not installed, or it cannot do what the options
                ask.
            RetryableError: `broker_failed`: it ended at once or never answered; the message has
                the end of its log.
        """
        if self.pid is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for port in {self.port, self.port_v3}:
            _require_free(port)
        words = self._command()
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  # a command line of our own
                tethered(words),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal is for us: the broker goes last.
                start_new_session=True,
            )
        try:
            self._wait_for_ports()
        except BaseException:
            self.kill()
            raise

    def ask_to_stop(self) -> None:
        """Send SIGTERM, without waiting."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """Stop it and wait; kill it if it takes too long."""
        self.ask_to_stop()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_S)
        self.kill()

    def kill(self) -> None:
        """End it as a power cut would, and wait."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()

    def last_words(self) -> str:
        """Return the end of its log."""
        if not self.log_file.exists():
            return ""
        return self.log_file.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL_CHARS:]

    def _command(self) -> list[str]:
        if self.kind is BrokerKind.EMBEDDED and self.kind.is_installed:
            config = write_embedded(
                self.folder, port=self.port, port_v3=self.port_v3, options=self._options
            )
            return [sys.executable, "-m", "fleet_cli.embedded_broker", str(config)]
        program = find_mosquitto()
        if self.kind is BrokerKind.EMBEDDED or program is None:
            raise ConfigError(
                f"the {self.kind} broker is not installed",
                code="no_broker",
                hint="pip install 'edgefleet[cloud]', or install mosquitto",
            )
        config = write_mosquitto(self.folder, port=self.port, options=self._options)
        return [program, "-c", str(config)]

    def _wait_for_ports(self) -> None:
        deadline_s = time.monotonic() + _START_S
        uses_tls = self._options.cert_file is not None
        waiting = {self.port_v3: _HELLO_V3, self.port: _HELLO_V5}
        while waiting:
            if self.pid is None or time.monotonic() > deadline_s:
                raise RetryableError(
                    f"the {self.kind} broker did not start: {self.last_words() or 'no word'}",
                    code="broker_failed",
                    hint=f"read {self.log_file}",
                )
            waiting = {
                port: hello
                for port, hello in waiting.items()
                if not _answers(port, hello, uses_tls=uses_tls)
            }
            if waiting:
                time.sleep(_POLL_S)


def _free_port(but: int = 0) -> int:
    port = but
    while port == but:
        with socket.create_server((LOOPBACK, 0)) as server:
            port = server.getsockname()[1]
    return port


def _require_free(port: int) -> None:
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError as error:
        raise ConfigError(
            f"port {port} on {LOOPBACK} cannot be used: {os.strerror(error.errno or 0)}",
            code="port_in_use",
            hint="stop what listens there, or choose another port",
        ) from error


def _answers(port: int, hello: bytes, *, uses_tls: bool) -> bool:
    """Tell whether a broker speaks on a port; that it is open may only be its last deed."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1.0) as connection:
            if uses_tls:
                _no_questions_asked().wrap_socket(connection).close()
                return True
            connection.sendall(hello)
            if connection.recv(1) != _CONNACK:
                return False
            connection.sendall(_GOODBYE)
            # To its end: iotcore may mistake a connection that is going for one that comes.
            while connection.recv(64):
                pass
            return True
    except OSError:
        return False


def _no_questions_asked() -> ssl.SSLContext:
    """A context that trusts everybody: we started the other end, and say nothing to it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
