"""People who log in to the dashboard: a small file that an operator edits with `users`.

Passwords are hashed with Argon2id (RFC 9106, its choice for little memory: 64 MiB, 3 passes).
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Final

import argon2
import msgspec

from cloud_dispatcher.adapters.http.keys import NAME_PATTERN
from cloud_dispatcher.adapters.http.watched_file import WatchedFile, replace_file
from fleet_protocol.errors import ConfigError, cause_of
from fleet_protocol.roles import LADDER
from fleet_protocol.topics import Role

PASSWORD_LEAST_CHARS: Final = 12
PASSWORD_MOST_CHARS: Final = 256
_HEADER: Final = (
    "# Who may log in to the dashboard: `cloud-dispatcher users` writes this file;\n"
    "# it is read again when it changes.\n"
)
_HASHER: Final = argon2.PasswordHasher.from_parameters(argon2.profiles.RFC_9106_LOW_MEMORY)
_HASH_PATTERN: Final = r"^\$argon2id\$v=19\$[A-Za-z0-9+/=,$]{1,200}$(?!\n)"

_Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]


class User(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somebody who may log in.

    Attributes:
        name: For people, logs and the fleet's audit log, as `page-NAME`.
        password: Its hash.
        role: What may be done: `fleet_protocol.roles`.
        tenant: Whose questions those of the playground are.
    """

    name: _Name
    password: Annotated[str, msgspec.Meta(pattern=_HASH_PATTERN)]
    role: Role = Role.VIEWER
    tenant: _Name = "default"

    def __post_init__(self) -> None:
        if self.role not in LADDER:
            raise ValueError(f"`role` of {self.name} must be one of {', '.join(LADDER)}")


class _UserFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    user: tuple[User, ...] = ()


def new_user(name: str, password: str, *, role: str, tenant: str = "default") -> User:
    """Make a user; takes a tenth of a second on purpose.

    Raises:
        ConfigError: The name, the role, the tenant or the password is not usable.
    """
    if not PASSWORD_LEAST_CHARS <= len(password) <= PASSWORD_MOST_CHARS:
        raise ConfigError(
            f"a password has {PASSWORD_LEAST_CHARS} to {PASSWORD_MOST_CHARS} characters",
            code="bad_password",
            hint="take some words that nobody would put together",
        )
    fields = {"name": name, "password": _HASHER.hash(password), "role": role, "tenant": tenant}
    try:
        return msgspec.convert(fields, User)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"the user cannot be made: {error}",
            hint="use letters, digits, - and _, at most 31; a role is viewer, operator or admin",
        ) from error


NOBODY: Final = User(
    name="nobody",
    # Of no password that anybody knows: whoever is not in the file takes as long as who is.
    password="$argon2id$v=19$m=65536,t=3,p=4$"  # noqa: S106
    "gv172yA3MCSE0CojzHElMQ$3+FItmL4P9rD85dwJEJG+iL13Jy155eC1mvrX9VdGcc",
)


def is_password_of(user: User, password: str) -> bool:
    """Tell whether it is; takes a tenth of a second and 64 MiB, so it belongs into a thread."""
    try:
        return _HASHER.verify(user.password, password)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False


def parse_users(text: str, origin: str) -> tuple[User, ...]:
    """Read a file of users.

    Raises:
        ConfigError: Naming the user and what is wrong.
    """
    try:
        users = msgspec.convert(tomllib.loads(text), _UserFile).user
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{origin}: {error}", hint="correct that line") from error
    names = [user.name for user in users]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{origin}: two users are called {twice}", hint="rename one of them")
    return users


def read_users(path: Path) -> tuple[User, ...]:
    """Read a file of users; raises ConfigError also where it is not there."""
    try:
        return parse_users(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the users file {path} cannot be read: {cause_of(error)}",
            hint="make a first user: `cloud-dispatcher users add NAME --role admin --file FILE`",
        ) from error


def write_users(path: Path, users: tuple[User, ...]) -> None:
    """Replace the file in one step, readable by its owner alone.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        replace_file(path, _HEADER + "".join(_block(user) for user in users))
    except OSError as error:
        raise ConfigError(
            f"the users file {path} cannot be written: {cause_of(error)}",
            hint="name another with --file",
        ) from error


def watch_users(path: Path) -> WatchedFile[dict[str, User]]:
    """Return the users by name, read again when the file changes; raises ConfigError."""
    return WatchedFile(path, lambda file: {u.name: u for u in read_users(file)}, name="users")


def _block(user: User) -> str:
    fields = {"name": user.name, "password": user.password, "role": user.role.value}
    lines = [f"{name} = {json.dumps(text)}" for name, text in fields.items()]
    return "\n".join(["", "[[user]]", *lines, f"tenant = {json.dumps(user.tenant)}", ""])
