"""`cloud-dispatcher users`: who may log in to the dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import click

from cloud_dispatcher.adapters.http.users import User, new_user, read_users, write_users
from cloud_dispatcher.cli.options import file_options, tell
from fleet_protocol.errors import ConfigError
from fleet_protocol.roles import LADDER


@click.group("users")
def users() -> None:
    """Make, list and remove logins of the dashboard. A running dispatcher notices by itself."""


_file_options = file_options(
    "EDGEFLEET_DISPATCHER_GATEWAY__PAGE__USERS_FILE",
    "The file of users, gateway.page.users_file in the settings.",
)


_password_option = click.option(
    "--password-file",
    type=click.File("r", encoding="utf-8"),
    help="Its first line is the password; - for standard input. Asked for without it.",
)


@users.command("add")
@click.argument("name")
@click.option("--role", type=click.Choice([role.value for role in LADDER]), default="viewer",
              show_default=True, help="What they may do: docs/security.md.")  # fmt: skip
@click.option("--tenant", default="default", show_default=True, help="Whose budget they ask from.")
@_password_option
@_file_options
def add(
    name: str, role: str, tenant: str, password_file: IO[str] | None, file: Path, *, as_json: bool
) -> None:
    """Make a login."""
    known = read_users(file) if file.exists() else ()
    if any(user.name == name for user in known):
        raise ConfigError(
            f"a user called {name} is there already",
            hint="change the password with `users password`, or remove it first",
        )
    made = new_user(name, _password(password_file), role=role, tenant=tenant)
    write_users(file, (*known, made))
    tell({"user": _view(made)}, f"{name} may log in as {role}", as_json=as_json)


@users.command("password")
@click.argument("name")
@_password_option
@_file_options
def password(name: str, password_file: IO[str] | None, file: Path, *, as_json: bool) -> None:
    """Set another password. Whoever is logged in with the old one is logged out."""
    known = read_users(file)
    old = _named(known, name)
    made = new_user(name, _password(password_file), role=old.role, tenant=old.tenant)
    write_users(file, tuple(made if user is old else user for user in known))
    tell({"user": _view(made)}, f"{name} has another password", as_json=as_json)


@users.command("ls")
@_file_options
def ls(file: Path, *, as_json: bool) -> None:
    """List who may log in, and as what."""
    known = read_users(file)
    lines = [f"{user.name:<32} {user.role.value:<9} {user.tenant}" for user in known]
    tell({"users": [_view(user) for user in known]}, "\n".join(lines), as_json=as_json)


@users.command("rm")
@click.argument("name")
@_file_options
def rm(name: str, file: Path, *, as_json: bool) -> None:
    """Remove a login. Whoever is logged in with it is logged out."""
    known = read_users(file)
    gone = _named(known, name)
    write_users(file, tuple(user for user in known if user is not gone))
    tell({"removed": name}, f"removed {name}", as_json=as_json)


def _named(known: tuple[User, ...], name: str) -> User:
    found = next((user for user in known if user.name == name), None)
    if found is None:
        raise ConfigError(f"there is no user called {name}", hint="list them with `users ls`")
    return found


def _password(file: IO[str] | None) -> str:
    if file is not None:
        return file.readline().rstrip("\r\n")
    asked: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    return asked


def _view(user: User) -> dict[str, Any]:
    return {"name": user.name, "role": user.role.value, "tenant": user.tenant}
