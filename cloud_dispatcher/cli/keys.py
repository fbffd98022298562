"""`cloud-dispatcher keys`: who may use the gateway."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from cloud_dispatcher.adapters.http.keys import ApiKey, new_key, read_keys, write_keys
from cloud_dispatcher.cli.options import file_options, tell
from fleet_protocol.errors import ConfigError


@click.group("keys")
def keys() -> None:
    """Make, list, change and remove API keys of the gateway.

    A running dispatcher notices by itself.
    """


_per_min_option = click.option(
    "--per-min", type=click.IntRange(1, 100_000), help="Most requests a minute."
)
_daily_usd_option = click.option(
    "--daily-usd",
    type=click.FloatRange(0, 1e9),
    help="Most USD of the cloud in a UTC day, besides what its tenant may spend.",
)
_file_options = file_options(
    "EDGEFLEET_DISPATCHER_GATEWAY__KEYS_FILE",
    "The file of keys, gateway.keys_file in the settings.",
)


@keys.command("add")
@click.argument("name")
@click.option("--tenant", default="default", show_default=True, help="Whose jobs and budget.")
@_per_min_option
@_daily_usd_option
@_file_options
def add(
    name: str,
    tenant: str,
    per_min: int | None,
    daily_usd: float | None,
    file: Path,
    *,
    as_json: bool,
) -> None:
    """Make a key and print it. It is not kept anywhere: only its hash is."""
    known = read_keys(file) if file.exists() else ()
    if any(key.name == name for key in known):
        raise ConfigError(f"a key called {name} is there already", hint="remove it first")
    random_hex = secrets.token_hex(32)
    secret, made = new_key(random_hex, name, tenant, per_min=per_min, daily_usd=daily_usd)
    write_keys(file, (*known, made))
    tell({"key": secret, **_view(made)}, secret, as_json=as_json)


@keys.command("ls")
@_file_options
def ls(file: Path, *, as_json: bool) -> None:
    """List the keys by name; what they are nobody knows any more.

    `fleet costs` says what they spent today of their budgets.
    """
    known = read_keys(file)
    lines = [f"{key.name:<32} {key.tenant:<32} {_limits(key)}" for key in known]
    tell({"keys": [_view(key) for key in known]}, "\n".join(lines), as_json=as_json)


@keys.command("set")
@click.argument("name")
@_per_min_option
@_daily_usd_option
@click.option("--no-per-min", is_flag=True, help="As many requests a minute as it likes.")
@click.option("--no-daily-usd", is_flag=True, help="As much of the cloud as its tenant may.")
@_file_options
def change(name: str, file: Path, *, as_json: bool, **limits: Any) -> None:
    """Change what a key may do; whoever has it goes on with it.

    What is not named stays as it is. The new budget holds from the key's next job on, and counts
    what was spent today.
    """
    known = read_keys(file)
    old = _named(known, name)
    made = replace(old, **_changes(**limits))
    write_keys(file, tuple(made if key is old else key for key in known))
    tell(_view(made), f"{name}: {_limits(made)}", as_json=as_json)


@keys.command("rm")
@click.argument("name")
@_file_options
def rm(name: str, file: Path, *, as_json: bool) -> None:
    """Remove a key: whoever has it is not answered any more."""
    known = read_keys(file)
    gone = _named(known, name)
    write_keys(file, tuple(key for key in known if key is not gone))
    tell({"removed": name}, f"removed {name}", as_json=as_json)


def _named(known: tuple[ApiKey, ...], name: str) -> ApiKey:
    found = next((key for key in known if key.name == name), None)
    if found is None:
        raise ConfigError(f"there is no key called {name}", hint="list them with `keys ls`")
    return found


def _changes(**said: Any) -> dict[str, Any]:
    """Return the fields that get another value.

    Raises:
        click.UsageError: Nothing is to be changed, or the same thing twice.
    """
    changes = dict[str, Any]()
    for field in ("per_min", "daily_usd"):
        flag = f"--{field.replace('_', '-')}"
        if said[f"no_{field}"] and said[field] is not None:
            raise click.UsageError(f"{flag} and --no-{flag[2:]} contradict each other")
        if said[f"no_{field}"] or said[field] is not None:
            changes[field] = said[field]
    if not changes:
        raise click.UsageError("say what to change: --per-min or --daily-usd")
    return changes


def _view(key: ApiKey) -> dict[str, Any]:
    return {
        "name": key.name,
        "tenant": key.tenant,
        "per_min": key.per_min,
        "daily_usd": key.daily_usd,
    }


def _limits(key: ApiKey) -> str:
    limits = list[str]()
    if key.per_min is not None:
        limits.append(f"{key.per_min} requests a minute")
    if key.daily_usd is not None:
        limits.append(f"{key.daily_usd:g} USD a day")
    return ", ".join(limits) or "no limit"
