"""Configuration files of the brokers we can start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from fleet_pki.passwords import hash_password
from fleet_protocol.errors import ConfigError

LOOPBACK: Final = "127.0.0.1"

# Below what a program takes (6 MiB): the embedded broker does not heed a client's own limit.
_PAYLOAD_MAX_BYTES: Final = 5 * 1_048_576


class BrokerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker may be asked for beyond a loopback port; all but the first need Mosquitto.

    Attributes:
        inflight: QoS 1 messages on their way to one client at once.
        queued: QoS 1 messages that wait for one client, away or slow; it drops what is beyond, and
            tells nobody.
        persistent: Sessions, queues and retained messages survive a restart; a kill -9 takes what
            the last second brought.
        passwords: By user; anonymous clients are turned away if there are any.
        acl: Text of an access list.
        cert_file: PEM of the broker's certificate: the port speaks TLS.
        key_file: PEM of its key.
        client_ca_file: PEM of the authority that clients' certificates must be signed by.
    """

    inflight: int = 1_000
    queued: int = 100_000
    persistent: bool = False
    passwords: Mapping[str, str] = msgspec.field(default_factory=dict)
    acl: str | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None


def write_embedded(folder: Path, *, port: int, port_v3: int, options: BrokerOptions) -> Path:
    """Write and return the embedded broker's configuration file.

    Raises:
        ConfigError: It cannot do what is asked.
    """
    if options != BrokerOptions(inflight=options.inflight):
        raise ConfigError(
            "the embedded broker has no persistence, passwords, access list or TLS",
            hint="install Mosquitto, or name a broker of your own with --broker mqtt://HOST:PORT",
        )
    # Segments bound what it remembers of each subscription filter: 4 x 8 MiB.
    lines = [
        "id = 0",
        "[router]",
        "id = 0",
        "max_connections = 10010",
        "max_outgoing_packet_count = 1000",
        "max_segment_size = 8388608",
        "max_segment_count = 4",
    ]
    for version, number in (("v5", port), ("v4", port_v3)):
        lines += [
            f"[{version}.1]",
            f'name = "{version}"',
            f'listen = "{LOOPBACK}:{number}"',
            "next_connection_delay_ms = 1",
            f"[{version}.1.connections]",
            "connection_timeout_ms = 60000",
            f"max_payload_size = {_PAYLOAD_MAX_BYTES}",
            f"max_inflight_count = {options.inflight}",
            "dynamic_filters = true",
        ]
    return _write(folder / "embedded.toml", lines)


def write_mosquitto(folder: Path, *, port: int, options: BrokerOptions) -> Path:
    """Write and return Mosquitto's configuration file."""
    lines = [
        # Below 2.0.16 a 0 for "no limit" means "nothing": name a number.
        f"max_queued_messages {options.queued}",
        f"max_inflight_messages {options.inflight}",
        # Without it a request and its response take 44 ms.
        "set_tcp_nodelay true",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        f"allow_anonymous {'false' if options.passwords else 'true'}",
        *_persistence(folder, is_wanted=options.persistent),
    ]
    if os.geteuid() == 0:
        # Else it becomes user `mosquitto`, who may not read this folder, and a process that
        # changes its user no longer dies with its parent.
        lines.append("user root")
    if options.passwords:
        hashes = [f"{user}:{hash_password(word)}" for user, word in options.passwords.items()]
        lines.append(f"password_file {_write(folder / 'passwords', hashes)}")
    if options.acl is not None:
        lines.append(f"acl_file {_write(folder / 'acl', [options.acl])}")
    lines.append(f"listener {port} {LOOPBACK}")
    if options.cert_file is not None:
        lines += [f"certfile {options.cert_file}", f"keyfile {options.key_file}"]
    if options.client_ca_file is not None:
        lines += [f"cafile {options.client_ca_file}", "require_certificate true"]
    return _write(folder / "mosquitto.conf", lines)


def _persistence(folder: Path, *, is_wanted: bool) -> list[str]:
    if not is_wanted:
        return ["persistence false"]
    return [
        "persistence true",
        f"persistence_location {folder.absolute()}/",
        # The default of 30 minutes loses all of them at a kill -9. In seconds, not by changes: the
        # whole file is written each time.
        "autosave_interval 1",
    ]


def _write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.chmod(0o600)
    return path.absolute()
