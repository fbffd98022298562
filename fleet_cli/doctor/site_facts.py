"""What lies on a cloud host: the folder that a Mosquitto of `fleet pki broker` reads."""

from __future__ import annotations

import ipaddress
import re
import subprocess
from pathlib import Path
from typing import Final

import msgspec

from fleet_cli.broker import find_mosquitto
from fleet_cli.doctor.board_facts import LinkFacts, Validity, reach, validity_of
from fleet_protocol.errors import ConfigError, FleetError, cause_of

SITE: Final = Path("/etc/mosquitto/fleet")
_VERSION: Final = re.compile(r"mosquitto version (\d+)\.(\d+)\.(\d+)")


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """A port of the broker, with its own settings."""

    port: int
    address: str = ""
    settings: dict[str, str] = msgspec.field(default_factory=dict)


class MosquittoConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration: what holds for all of it, and its ports."""

    settings: dict[str, str]
    listeners: tuple[Listener, ...]


class SiteFacts(msgspec.Struct, frozen=True, kw_only=True):
    """All that the checks of a broker look at.

    Attributes:
        acl: Text of its access list; None: none is named.
        passwords: Users that have one.
        version: Of the Mosquitto here; None: nobody knows.
        certificate: The broker's own.
        revocations: When its list of revoked certificates was made and lapses.
        hosts: Names and addresses in its certificate.
        links: Whether each port answers, by this machine itself.
        names: Whether the names in its certificate are known here.
    """

    folder: str
    config: MosquittoConfig
    acl: str | None = None
    passwords: tuple[str, ...] = ()
    version: tuple[int, int, int] | None = None
    certificate: Validity | None = None
    certificate_error: str = ""
    revocations: Validity | None = None
    hosts: tuple[str, ...] = ()
    links: tuple[LinkFacts, ...] = ()
    names: tuple[LinkFacts, ...] = ()
    is_clock_synced: bool | None = None
    now_ms: int = 0


def read_site(folder: Path, *, is_clock_synced: bool | None, now_ms: int) -> SiteFacts:
    """Read everything; ports are connected to and nothing is said.

    Raises:
        ConfigError: The folder cannot be read.
    """
    try:
        config = parse_config((folder / "mosquitto.conf").read_text("utf-8"))
        acl = _named(config, "acl_file")
        passwords = (_named(config, "password_file") or "").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the broker's folder cannot be read: {cause_of(error)}",
            hint="run it as root, or name another folder: --site DIR",
        ) from error
    first = next((one.settings for one in config.listeners if "certfile" in one.settings), {})
    validity, why = validity_of(Path(first["certfile"])) if first else (None, "")
    hosts = _hosts(first)
    return SiteFacts(
        folder=str(folder),
        config=config,
        acl=acl,
        passwords=tuple(line.partition(":")[0] for line in passwords if line),
        version=_version(),
        certificate=validity,
        certificate_error=why,
        revocations=_revocations(config),
        hosts=hosts,
        links=tuple(reach(one.address or "127.0.0.1", one.port) for one in config.listeners),
        names=tuple(_known(host) for host in hosts if not _is_address(host)),
        is_clock_synced=is_clock_synced,
        now_ms=now_ms,
    )


def parse_config(text: str) -> MosquittoConfig:
    """Return a mosquitto.conf: a line a setting; those after `listener` are that port's.

    Raises:
        ValueError: A port is no number.
    """
    everywhere: dict[str, str] = {}
    listeners: list[Listener] = []
    into = everywhere
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if not name or name.startswith("#"):
            continue
        if name == "listener":
            port, _, address = value.strip().partition(" ")
            into = {}
            listeners.append(Listener(port=int(port), address=address.strip(), settings=into))
        elif name in _GLOBAL:
            everywhere[name] = value.strip()
        else:
            into[name] = value.strip()
    return MosquittoConfig(settings=everywhere, listeners=tuple(listeners))


_GLOBAL: Final = frozenset(
    {
        *("max_queued_messages", "max_inflight_messages", "set_tcp_nodelay", "persistence"),
        *("autosave_interval", "max_queued_bytes", "pid_file", "user"),
    }
)
"""Holds for all ports, wherever it stands (mosquitto.conf(5))."""


def _named(config: MosquittoConfig, name: str) -> str | None:
    path = config.settings.get(name)
    return None if path is None else Path(path).read_text("utf-8")


def _revocations(config: MosquittoConfig) -> Validity | None:
    paths = (one.settings["crlfile"] for one in config.listeners if "crlfile" in one.settings)
    path = next(paths, None)
    if path is None:
        return None
    try:
        from fleet_pki.certificates import revocations_span  # noqa: PLC0415 - only where it is used

        span = revocations_span(Path(path).read_bytes())
    except (OSError, FleetError, ModuleNotFoundError):
        return None
    return Validity(int(span.begin.timestamp() * 1_000), int(span.end.timestamp() * 1_000))


def _hosts(settings: dict[str, str]) -> tuple[str, ...]:
    try:
        from fleet_pki.certificates import hosts_of, read_certificate  # noqa: PLC0415

        return tuple(hosts_of(read_certificate(Path(settings["certfile"]).read_bytes())))
    except Exception:  # noqa: BLE001 - the certificate has a check of its own
        return ()


def _known(host: str) -> LinkFacts:
    facts = reach(host, 1)
    return LinkFacts(host=host, port=0, addresses=facts.addresses, error="")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _version() -> tuple[int, int, int] | None:
    program = find_mosquitto()
    if program is None:
        return None
    done = subprocess.run(  # noqa: S603 - a program of the system, found by us
        [program, "-h"], capture_output=True, text=True, timeout=5, check=False
    )
    found = _VERSION.search(done.stdout)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3]))
