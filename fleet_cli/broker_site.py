"""A production Mosquitto: the folder it reads, written from the authority and told to it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from fleet_cli.acl_file import render_acl
from fleet_cli.broker_log import LOG_FILE, log_of
from fleet_cli.pki import Authority
from fleet_pki.authority import SERVER_LIFE
from fleet_pki.certificates import hosts_of, read_certificate
from fleet_pki.files import make_folder, write_file
from fleet_pki.registry import Member
from fleet_protocol.access import join_user
from fleet_protocol.errors import ConfigError, RejectedError
from fleet_protocol.topics import Role, Topics

PORT: Final = 8_883
PASSWORD_PORT: Final = 8_884

_TLS_1_3: Final = "tls_version tlsv1.3"
# With a new key for each connection and authenticated encryption, as 1.3 has nothing else.
_TLS_1_2: Final = (
    "tls_version tlsv1.2",
    "ciphers ECDHE+AESGCM:ECDHE+CHACHA20",
)


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator decides about the broker.

    Attributes:
        folder: What Mosquitto reads.
        port: Where certificates are asked for.
        password_port: Where passwords are; nobody listens there while nobody has one.
        address: To listen at; None: all interfaces.
        user: Whom Mosquitto runs as, and who owns the folder; None: who we are.
        password_tls: Oldest TLS at the port for passwords, `1.2` or `1.3`; None: as it was so far,
            and at first 1.3.
        log: Where Mosquitto writes whom it turned away, and a line for every packet; None: where
            it did so far, and if it did not, only what is rare is logged, to standard error.
    """

    folder: Path
    topics: Topics
    port: int = PORT
    password_port: int = PASSWORD_PORT
    address: str | None = None
    user: str | None = None
    password_tls: str | None = None
    log: Path | None = None


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What was written.

    Attributes:
        identities: That may do something.
        revoked: That may no more.
        hosts: Names and addresses in the broker's certificate.
        renewed: The broker's certificate is new.
    """

    folder: str
    identities: int
    revoked: int
    hosts: tuple[str, ...]
    renewed: bool


def write_site(authority: Authority, site: Site, *, hosts: Sequence[str], now_ms: int) -> Written:
    """Write the folder. What a reload reads is replaced file by file, each of them whole.

    Args:
        authority: Who is enrolled, and who signs the broker's certificate.
        site: See there.
        hosts: Names and addresses of the broker; empty: those of its certificate so far.
        now_ms: The instant.

    Raises:
        ConfigError: The folder cannot be written, or nobody said what the broker is called.
    """
    make_folder(site.folder)
    make_folder(site.folder / "data")
    members = authority.members()
    active = [member for member in members if member.is_active]
    hosts, renewed = _certify(authority, site.folder, hosts, now_ms=now_ms)
    passwords = [f"{_user_of(m)}:{m.password_hash}\n" for m in active if m.password_hash]
    joining = [m.identity.id for m in active if _is_joining(m)]
    files = {
        "ca.pem": authority.trust_pem,
        "crl.pem": authority.revocations(now_ms=now_ms),
        "acl": render_acl(site.topics, [m.identity for m in active], joining=joining).encode(),
        "passwords": "".join(passwords).encode(),
        "mosquitto.conf": _config(site, has_passwords=_ever_had_password(site, passwords)).encode(),
    }
    for name, data in files.items():
        write_file(site.folder / name, data)
    _give_away(site)
    return Written(
        folder=str(site.folder),
        identities=len(active),
        revoked=len(members) - len(active),
        hosts=tuple(hosts),
        renewed=renewed,
    )


def reload_broker(folder: Path) -> int:
    """Have the Mosquitto that runs on this folder read it again; return its process id.

    Raises:
        RejectedError: `not_running`: none does.
    """
    pid_file = folder / "mosquitto.pid"
    try:
        pid = int(pid_file.read_text())
        # A stale file may name anybody by now.
        program = Path(f"/proc/{pid}/comm").read_text().strip()
        if program == "mosquitto":
            os.kill(pid, signal.SIGHUP)
            return pid
    except (OSError, ValueError):
        pass
    raise RejectedError(
        f"no Mosquitto runs on {folder}",
        code="not_running",
        hint=f"start it: mosquitto -c {folder / 'mosquitto.conf'}",
    )


def _is_joining(member: Member) -> bool:
    return member.password_hash is not None and member.identity.role is Role.WORKER


def _user_of(member: Member) -> str:
    """By what name it comes with its password: a worker's is its token, and good for little."""
    return join_user(member.identity.id) if _is_joining(member) else member.identity.id


def _certify(
    authority: Authority, folder: Path, hosts: Sequence[str], *, now_ms: int
) -> tuple[Sequence[str], bool]:
    """Keep the broker's certificate while it has these names and a third of its life left."""
    path = folder / "cert.pem"
    if path.exists():
        current = read_certificate(path.read_bytes())
        had = hosts_of(current)
        left = current.not_valid_after_utc - datetime.fromtimestamp(now_ms / 1_000, UTC)
        if set(hosts or had) == set(had) and left > SERVER_LIFE / 3:
            return had, False
        hosts = hosts or had
    if not hosts:
        raise ConfigError(
            "nobody said by which names the broker is reached",
            hint="add --host broker.example, for each name and address that clients use",
        )
    for name, data in authority.issue_server(hosts, now_ms=now_ms).items():
        write_file(folder / name, data)
    return hosts, True


def _ever_had_password(site: Site, passwords: Sequence[str]) -> bool:
    """A listener cannot be opened by a reload, so one that is open stays."""
    config = site.folder / "mosquitto.conf"
    listens = config.exists() and f"listener {site.password_port}" in config.read_text()
    return listens or bool(passwords)


def _password_tls(site: Site) -> list[str]:
    """What microcontrollers know is TLS 1.2; of it only what is as good as 1.3."""
    config = site.folder / "mosquitto.conf"
    so_far = config.read_text() if config.exists() else ""
    wanted = site.password_tls or ("1.2" if _TLS_1_2[0] in so_far else "1.3")
    return list(_TLS_1_2) if wanted == "1.2" else [_TLS_1_3]


def _config(site: Site, *, has_passwords: bool) -> str:
    folder = site.folder.absolute()
    address = f" {site.address}" if site.address else ""
    tls = [
        f"cafile {folder}/ca.pem",
        f"certfile {folder}/cert.pem",
        f"keyfile {folder}/key.pem",
    ]
    lines = [
        "# Written by `fleet pki broker`: changes here are lost.",
        f"pid_file {folder}/mosquitto.pid",
        *([f"user {site.user}"] if site.user else []),
        "",
        "# Who is not enrolled gets in nowhere, and may do nothing.",
        "allow_anonymous false",
        f"acl_file {folder}/acl",
        f"password_file {folder}/passwords",
        "",
        "# Beyond the default of 1,000 messages for one who is away are silently dropped.",
        "max_queued_messages 100000",
        "max_inflight_messages 1000",
        "# Without it a request and its response take 44 ms.",
        "set_tcp_nodelay true",
        "# The default of 30 minutes loses all of them at a power cut; what a few seconds cost is",
        "# said again. Not at each change: the whole file is written then, for every message.",
        "persistence true",
        f"persistence_location {folder}/data/",
        "autosave_interval 10",
        *_logging(site),
        "",
        "# By certificate: its common name is the user, whatever the client calls itself.",
        f"listener {site.port}{address}",
        *tls,
        _TLS_1_3,
        "require_certificate true",
        "use_identity_as_username true",
        f"crlfile {folder}/crl.pem",
    ]
    if has_passwords:
        lines += [
            "",
            "# By password, for devices that cannot show a certificate, and by token, for boards",
            "# that have none yet: the same access list.",
            f"listener {site.password_port}{address}",
            *tls,
            *_password_tls(site),
        ]
    elif (tls := _password_tls(site)) != [_TLS_1_3]:
        lines += ["", "# Nobody has a password yet. The port for them will have:"]
        lines += [f"# {line}" for line in tls]
    return "\n".join(lines) + "\n"


def _logging(site: Site) -> list[str]:
    kinds = ["error", "warning", "notice", "information"]
    log = site.log or log_of(site.folder)
    if log is None:
        return ["log_dest stderr", *(f"log_type {kind}" for kind in kinds)]
    return [
        "# A publication that is denied is said among the lines for every packet, so this file is",
        "# best in memory; `fleet audit broker` reads it, and gives back what it has read.",
        f"{LOG_FILE}{log.absolute()}",
        *(f"log_type {kind}" for kind in (*kinds, "subscribe", "debug")),
    ]


def _give_away(site: Site) -> None:
    """Let Mosquitto read what a reload reads: it has given up its rights by then."""
    if site.user is None:
        return
    try:
        for path in (site.folder, *site.folder.iterdir()):
            shutil.chown(path, user=site.user)
    except (LookupError, OSError) as error:
        raise ConfigError(
            f"{site.folder} cannot be given to {site.user}: {error}",
            hint="name the user that Mosquitto runs as, and run this as root",
        ) from error
