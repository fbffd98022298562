"""Which fleet a command speaks to: options first, then the environment, then the data folder."""

from __future__ import annotations

import functools
import getpass
import os
import re
import secrets
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from fleet_cli.context import DataFolder
from fleet_client.credentials import broker_settings
from fleet_protocol.access import Identity
from fleet_protocol.errors import ConfigError
from fleet_protocol.folders import user_data_folder
from fleet_protocol.messages import ID_PATTERN
from fleet_protocol.settings import BrokerSettings, TlsSettings
from fleet_protocol.topics import Role, Topics

_F = TypeVar("_F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--data",
        metavar="DIR",
        help="Data folder of the fleet. [EDGEFLEET_DATA]",
    ),
    click.option("--broker", metavar="URL", help="mqtt://HOST:PORT instead. [EDGEFLEET_BROKER]"),
    click.option("--root", metavar="TOPIC", help="Topic root. [EDGEFLEET_ROOT]"),
    click.option("--username", metavar="NAME", help="MQTT user. [EDGEFLEET_USERNAME]"),
    click.option(
        "--password-file",
        metavar="FILE",
        help="Its first line is the password. [EDGEFLEET_PASSWORD_FILE, EDGEFLEET_PASSWORD]",
    ),
    click.option("--ca-file", metavar="FILE", help="PEM that signs it. [EDGEFLEET_CA_FILE]"),
    click.option(
        "--identity",
        metavar="DIR",
        help="Folder that `fleet enroll` wrote, named by its id. [EDGEFLEET_IDENTITY]",
    ),
)


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet a command speaks to, and as whom.

    Attributes:
        data: The data folder, also where another broker is named.
        given: The broker named by options or environment; None reads the folder's context.
        role: As what we look after the fleet, by the folder that `fleet enroll` wrote.
    """

    data: DataFolder
    given: BrokerSettings | None
    role: Role = Role.ADMIN

    @property
    def broker(self) -> BrokerSettings:
        """How to reach the broker.

        Raises:
            ConnectError: No broker is named and the data folder knows none.
        """
        return self.given if self.given is not None else self.data.context().broker

    @property
    def device(self) -> str:
        """Our device id: the MQTT user where there is one, for an ACL binds it to that."""
        user = self.broker.user
        if user is not None and re.match(ID_PATTERN, user):
            return user
        return _clean(f"cli-{socket.gethostname().partition('.')[0]}")[:36]

    @property
    def admin(self) -> Identity:
        """Who asks the dispatcher: the MQTT user where there is one, else an id of our own."""
        user = self.broker.user
        if user is None or not re.match(ID_PATTERN, user):
            user = f"{_clean(f'cli-{_user()}')[:27]}-{secrets.token_hex(4)}"
        return Identity(role=self.role, id=user)

    @property
    def client_id(self) -> str:
        """An MQTT client id that no other process has."""
        return f"{self.device[:27]}-{secrets.token_hex(4)}"


def connection_options(command: _F) -> _F:
    """Add the options that name a fleet; the command gets a `Connection` as first argument."""

    @functools.wraps(command)
    def run(**options: Any) -> Any:
        mine = {name: options.pop(name) for name in _NAMES}
        return command(resolve(mine, os.environ), **options)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run  # type: ignore[return-value]  # wraps keeps what click needs of it


_NAMES = ("data", "broker", "root", "username", "password_file", "ca_file", "identity")


def resolve(options: Mapping[str, str | None], environ: Mapping[str, str]) -> Connection:
    """Return the connection that options and environment describe.

    An option beats the environment; `--data` on the command line beats a broker named there.

    Raises:
        ConfigError: A broker URL, a topic root or a combination that cannot be.
    """
    named = {n: options.get(n) or environ.get(f"EDGEFLEET_{n.upper()}") or None for n in _NAMES}
    data = DataFolder(Path(named["data"]) if named["data"] else user_data_folder(environ))
    if options.get("data") and not options.get("broker"):
        named["broker"] = None
    if named["broker"] is None:
        given = [n for n in _NAMES[2:] if options.get(n)]
        if given:
            raise ConfigError(
                f"--{given[0].replace('_', '-')} belongs to a broker that is named",
                hint="add --broker mqtt://HOST:PORT",
            )
        return Connection(data=data, given=None)
    role = _role(Path(named["identity"]).expanduser()) if named["identity"] else Role.ADMIN
    return Connection(data=data, given=_settings(named, environ), role=role)


def _settings(named: Mapping[str, str | None], environ: Mapping[str, str]) -> BrokerSettings:
    settings = broker_settings(named["broker"] or "")
    both = [name for name in ("username", "password_file", "ca_file") if named[name]]
    if named["identity"] and both:
        raise ConfigError(
            f"--identity and --{both[0].replace('_', '-')} contradict each other",
            hint="the folder says who we are: give only --identity",
        )
    if named["password_file"] and not (named["username"] or settings.user):
        raise ConfigError("a password without a user", hint="add --username NAME")
    changes: dict[str, Any] = {
        "username": named["username"],
        "password_file": named["password_file"],
        "password": None if named["password_file"] else environ.get("EDGEFLEET_PASSWORD"),
    }
    if named["root"]:
        changes["root"] = Topics(named["root"]).root
    if named["ca_file"]:
        changes["tls"] = TlsSettings(ca_file=named["ca_file"])
    if named["identity"]:
        changes |= _identity(Path(named["identity"]).expanduser().absolute())
    return msgspec.structs.replace(settings, **changes)


def _identity(folder: Path) -> dict[str, Any]:
    """Return what a folder of `fleet enroll` says: who we are, and by what the broker knows us."""
    ca, key, certificate, password = (
        folder / name for name in ("ca.pem", "key.pem", "cert.pem", "password")
    )
    if password.exists():
        tls = TlsSettings(ca_file=str(ca))
        return {"username": folder.name, "password_file": str(password), "tls": tls}
    if not (certificate.exists() and key.exists()):
        raise ConfigError(
            f"{folder} has neither cert.pem and key.pem nor a password",
            hint="name a folder that `fleet enroll` wrote",
        )
    tls = TlsSettings(ca_file=str(ca), cert_file=str(certificate), key_file=str(key))
    return {"username": folder.name, "tls": tls}


def _role(folder: Path) -> Role:
    """Return the role that a folder of `fleet enroll` names; older ones, and devices', name none.

    Raises:
        ConfigError: It names none that there is.
    """
    try:
        return Role((folder / "role").read_text("utf-8").strip())
    except FileNotFoundError:
        return Role.ADMIN
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder / 'role'} names no role: {error}",
            hint="enrol the identity again: fleet enroll ROLE ID --again",
        ) from error


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "user"
