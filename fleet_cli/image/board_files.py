"""The files that a card lays on its board: units, settings, and the script of the first boot.

Units and settings come from the very templates that Ansible's roles use, with the roles' defaults:
there is one source of each, whoever sets a board up.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import msgspec

from fleet_cli.image.card import Card, Payload
from fleet_protocol.errors import ConfigError

try:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
except ModuleNotFoundError as missing:
    raise ConfigError(
        "the package jinja2 is not installed here",
        code="no_jinja2",
        hint="pip install 'edgefleet[pki]'",
    ) from missing

UNIT: Final = "first-boot-edgefleet.service"
"""Not `edgefleet-...`: the sandbox of units with such names would not let it install anything."""
HERE: Final = "/etc/edgefleet/first-boot"
MODEL_PATH: Final = "/opt/edgefleet/models/current"
ROLE_DEFAULTS: Final[Mapping[str, Any]] = {
    "base_journal_mb": 64,
    "worker_cpu_quota": "",
    "worker_memory_mb": 900,
    "worker_drain_s": 30,
    "worker_watchdog_s": 60,
    "worker_model": MODEL_PATH,
    "worker_model_key": "",
    "worker_settings": {},
}
"""As in the roles' `defaults/main.yml`; a test holds them together."""
_TEMPLATES: Final = {
    "worker.toml.j2": ("/etc/edgefleet/worker.toml", 0o640),
    "edgefleet-worker.service.j2": ("/etc/systemd/system/edgefleet-worker.service", 0o644),
    "sandbox.conf.j2": ("/etc/systemd/system/edgefleet-.service.d/10-sandbox.conf", 0o644),
    "journald.conf.j2": ("/etc/systemd/journald.conf.d/edgefleet.conf", 0o644),
}
_FIRST_BOOT_UNIT: Final = f"""\
# Written by `fleet image render`; removes itself once the board has joined.
[Unit]
Description=edgefleet: join the fleet, once
Documentation=https://github.com/edgefleet/edgefleet
ConditionPathExists={HERE}/first-boot.sh
Wants=network-online.target
After=network-online.target time-sync.target
StartLimitIntervalSec=0

[Service]
Type=oneshot
ExecStart=/bin/sh {HERE}/first-boot.sh
TimeoutStartSec=infinity
Restart=on-failure
RestartSec=30

[Install]
WantedBy=multi-user.target
"""


class BoardFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file on the board, root's."""

    path: str
    text: str
    mode: int

    def __repr__(self) -> str:
        return f"BoardFile({self.path}, {self.mode:04o}, {len(self.text)} characters)"


def board_files(card: Card, *, ca_pem: str, token: str) -> list[BoardFile]:
    """Return all files; the token's is for root alone."""
    script = files("fleet_cli.image").joinpath("first-boot.sh").read_text("utf-8")
    return [
        BoardFile(path="/etc/edgefleet/ca.pem", text=ca_pem, mode=0o644),
        *_rendered(card),
        BoardFile(path=f"/etc/systemd/system/{UNIT}", text=_FIRST_BOOT_UNIT, mode=0o644),
        BoardFile(path=f"{HERE}/first-boot.sh", text=script, mode=0o700),
        BoardFile(path=f"{HERE}/settings", text=_settings(card), mode=0o600),
        BoardFile(path=f"{HERE}/token", text=f"{token}\n", mode=0o600),
    ]


def _rendered(card: Card) -> list[BoardFile]:
    folder = Path(str(files("fleet_cli.image").joinpath("templates")))
    jinja = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,  # as Ansible does
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - units and TOML, no HTML
    )
    # What the templates use of Ansible's filters.
    jinja.filters["to_json"] = json.dumps
    jinja.filters["combine"] = _combine
    values = {
        **ROLE_DEFAULTS,
        "ansible_managed": "Written by `fleet image render`",
        "worker_id": card.host,
        "worker_broker": card.broker,
        "worker_engine": card.engine,
        "worker_labels": dict(card.labels),
    }
    return [
        BoardFile(path=path, text=jinja.get_template(name).render(values), mode=mode)
        for name, (path, mode) in _TEMPLATES.items()
    ]


def _combine(
    mine: Mapping[str, Any], more: Mapping[str, Any], *, recursive: bool = False
) -> dict[str, Any]:
    merged = dict(mine)
    for name, value in more.items():
        both = recursive and isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _combine(merged[name], value, recursive=True) if both else value
    return merged


def _settings(card: Card) -> str:
    """Return what the script reads: assignments of the shell."""
    wheels, model = card.wheels, card.model
    values = {
        "BOARD": card.board.value,
        "VERSION": card.version,
        "PYTHON": card.python,
        "WHEELS_SHA256": wheels.sha256 if wheels else "",
        "WHEELS_URL": (wheels.url or "") if wheels else "",
        "WHEELS_PYTHON": _target(wheels),
        "MODEL": model.name if model else "",
        "MODEL_SHA256": model.sha256 if model else "",
        "MODEL_URL": (model.url or "") if model else "",
        "JOIN_AT": card.join_at or "",
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def _target(wheels: Payload | None) -> str:
    """Return for which interpreter and machine wheels are, by the name that the wheelhouse gave."""
    if wheels is None or not wheels.name.startswith("edgefleet-"):
        return ""
    python, _, machine = wheels.name.removesuffix(".tar").rpartition("-")
    version = python.rpartition("-")[2]
    return f"{version}-{machine}" if version.startswith("3.") else ""
