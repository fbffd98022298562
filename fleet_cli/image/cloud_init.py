"""What cloud-init reads from a card, its data source NoCloud: user-data and two smaller files.

YAML is written, never read: keys are ours, texts of several lines stand as blocks, everything else
in JSON's quotes, which YAML reads the same way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fleet_cli.image.board_files import UNIT, BoardFile
from fleet_cli.image.card import BoardKind, Card

_GROUPS: Final = {
    BoardKind.RPI: (
        "users,adm,dialout,audio,netdev,video,plugdev,cdrom,games,input,gpio,spi,i2c,render,sudo"
    ),
    BoardKind.JETSON: "users,adm,dialout,audio,video,plugdev,render,sudo",
}
"""As the makers' own tools give them to the first user."""
_PLAIN: Final = re.compile(r"[a-z_][a-z0-9_-]*")


def user_data(card: Card, laid: Iterable[BoardFile], *, note: str) -> str:
    """Return the settings of the first boot: name, user, files, and the service that joins."""
    document = {
        "hostname": card.host,
        "preserve_hostname": False,
        "manage_etc_hosts": True,
        "users": [
            {
                "name": card.user,
                "groups": _GROUPS[card.board],
                "shell": "/bin/bash",
                "lock_passwd": True,
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "ssh_authorized_keys": list(card.ssh_keys),
            }
        ],
        "ssh_pwauth": False,
        "write_files": [
            {"path": file.path, "permissions": f"{file.mode:04o}", "content": file.text}
            for file in laid
        ],
        "runcmd": [
            # Raspberry Pi OS leaves it off.
            ["systemctl", "enable", "--now", "ssh"],
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", UNIT],
            ["systemctl", "start", "--no-block", UNIT],
        ],
    }
    return f"#cloud-config\n# {note}\n{_yaml(document)}"


def network_config(card: Card) -> str:
    """Return the network, by DHCP; nobody waits at the start for what may not be plugged in."""
    wired: dict[str, Any] = {"dhcp4": True, "optional": True}
    name = "eth0"
    if card.board is BoardKind.JETSON:
        # Named by where the chip sits, which differs between modules.
        name, wired = "wired", {"match": {"name": "e*"}, **wired}
    network: dict[str, Any] = {"version": 2, "ethernets": {name: wired}}
    if card.wifi is not None:
        network["wifis"] = {
            "wlan0": {
                "dhcp4": True,
                "optional": True,
                "regulatory-domain": card.wifi.country,
                "access-points": {card.wifi.ssid: {"password": card.wifi.psk}},
            }
        }
    return _yaml({"network": network})


def meta_data(card: Card, *, instance: str) -> str:
    """Return who this is; another `instance` makes cloud-init begin anew."""
    return _yaml({"instance-id": f"{card.host}-{instance}", "local-hostname": card.host})


def _yaml(document: Mapping[str, Any]) -> str:
    return "".join(f"{line}\n" for line in _mapping(document))


def _mapping(value: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for key, item in value.items():
        name = key if _PLAIN.fullmatch(key) else json.dumps(key)
        first, *rest = _value(item)
        lines += [f"{name}:{first}", *rest]
    return lines


def _value(item: Any) -> list[str]:
    """Return what stands after the colon, and the lines below it."""
    if isinstance(item, Mapping):
        return ["", *_indented(_mapping(item))]
    if isinstance(item, list) and any(isinstance(one, Mapping | list) for one in item):
        return ["", *(line for one in item for line in _item(one))]
    if isinstance(item, str) and "\n" in item:
        return _block(item)
    return [f" {json.dumps(item, ensure_ascii=False)}"]


def _item(one: Mapping[str, Any] | Sequence[Any]) -> list[str]:
    if not isinstance(one, Mapping):
        return [f"  - {json.dumps(one, ensure_ascii=False)}"]
    first, *rest = _indented(_indented(_mapping(one)))
    return [f"  - {first[4:]}", *rest]


def _block(text: str) -> list[str]:
    """Return a text of several lines as it is, where YAML can say it; else in quotes."""
    body = text.removesuffix("\n")
    if body.startswith((" ", "\n")) or body.endswith("\n") or not _is_printable(body):
        return [f" {json.dumps(text)}"]
    chomp = "" if text.endswith("\n") else "-"
    return [f" |{chomp}", *_indented(body.split("\n"))]


def _is_printable(text: str) -> bool:
    return all(line.replace("\t", " ").isprintable() for line in text.split("\n"))


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" if line else "" for line in lines]
