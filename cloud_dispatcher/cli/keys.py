"""`cloud-dispatcher keys`: who may use the gateway."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from cloud_dispatcher.adapters.http.keys import ApiKey, new_key, read_keys, write_keys
from cloud_dispatcher.cli.exits import told_errors
from fleet_protocol.errors import ConfigError

_F = TypeVar("_F", bound=Callable[..., Any])


@click.group("keys")
def keys() -> None:
    """Make, list and remove API keys of the gateway. A running dispatcher notices by itself."""


def _file_options(command: _F) -> _F:
    as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    file = click.option(
        "--file",
        required=True,
        envvar="EDGEFLEET_DISPATCHER_GATEWAY__KEYS_FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The file of keys, gateway.keys_file in the settings.",
    )
    return file(as_json(command))


@keys.command("add")
@click.argument("name")
@click.option("--tenant", default="default", show_default=True, help="Whose jobs and budget.")
@click.option("--per-min", type=click.IntRange(1, 100_000), help="Most requests a minute.")
@_file_options
def add(name: str, tenant: str, per_min: int | None, file: Path, *, as_json: bool) -> None:
    """Make a key and print it. It is not kept anywhere: only its hash is."""
    with told_errors():
        known = read_keys(file) if file.exists() else ()
        if any(key.name == name for key in known):
            raise ConfigError(f"a key called {name} is there already", hint="remove it first")
        secret, made = new_key(secrets.token_hex(32), name, tenant, per_min=per_min)
        write_keys(file, (*known, made))
    _print({"key": secret, **_view(made)}, secret, as_json=as_json)


@keys.command("ls")
@_file_options
def ls(file: Path, *, as_json: bool) -> None:
    """List the keys by name; what they are nobody knows any more."""
    with told_errors():
        known = read_keys(file)
    lines = [f"{key.name:<32} {key.tenant:<32} {_limit(key)}" for key in known]
    _print({"keys": [_view(key) for key in known]}, "\n".join(lines), as_json=as_json)


@keys.command("rm")
@click.argument("name")
@_file_options
def rm(name: str, file: Path, *, as_json: bool) -> None:
    """Remove a key: whoever has it is not answered any more."""
    with told_errors():
        known = read_keys(file)
        left = tuple(key for key in known if key.name != name)
        if len(left) == len(known):
            raise ConfigError(f"there is no key called {name}", hint="list them with `keys ls`")
        write_keys(file, left)
    _print({"removed": name}, f"removed {name}", as_json=as_json)


def _view(key: ApiKey) -> dict[str, Any]:
    return {"name": key.name, "tenant": key.tenant, "per_min": key.per_min}


def _limit(key: ApiKey) -> str:
    return "no limit" if key.per_min is None else f"{key.per_min} requests a minute"


def _print(fields: dict[str, Any], text: str, *, as_json: bool) -> None:
    click.echo(msgspec.json.encode(fields).decode() if as_json else text)
