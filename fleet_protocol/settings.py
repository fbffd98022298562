"""Settings from TOML and the environment into frozen structs; a bad one names itself.

This module reads no file and no environment itself: it is given both.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args
from urllib.parse import unquote, urlsplit

import msgspec

from fleet_protocol.errors import ConfigError
from fleet_protocol.topics import DEFAULT_ROOT

_S = TypeVar("_S", bound=msgspec.Struct)


class TlsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TLS to the broker.

    Attributes:
        ca_file: PEM of the authority that signed the broker's certificate; None: the system's.
        cert_file: PEM of our own certificate, for mutual TLS.
        key_file: PEM of its key.
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


class BrokerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the broker is and who we are to it.

    Attributes:
        url: `mqtt://HOST:PORT` or `mqtts://HOST:PORT`; a user and password in it are honoured.
        username: Identity that the broker's ACL binds; None: anonymous.
        password: Prefer `password_file` or the environment: it is never shown or logged.
        password_file: File whose first line is the password.
        root: Topic root.
        keepalive_s: Silence after which either side takes the link for dead.
    """

    url: str = "mqtt://127.0.0.1:1883"
    username: str | None = None
    password: str | None = None
    password_file: str | None = None
    root: str = DEFAULT_ROOT
    tls: TlsSettings | None = None
    keepalive_s: Annotated[int, msgspec.Meta(ge=5, le=3_600)] = 30

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname:
            raise ValueError(f"broker url {parts.scheme}://… is not mqtt://HOST:PORT or mqtts://…")

    def __repr__(self) -> str:
        return f"BrokerSettings({self.place}, user={self.user!r})"

    @property
    def place(self) -> str:
        """Where it is, without who we are: for logs."""
        return f"{self.host}:{self.port}"

    @property
    def host(self) -> str:
        """Name or address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """TCP port; 1883, or 8883 with TLS, where the URL names none."""
        return urlsplit(self.url).port or (8883 if self.uses_tls else 1883)

    @property
    def uses_tls(self) -> bool:
        """Whether the link is encrypted."""
        return urlsplit(self.url).scheme == "mqtts" or self.tls is not None

    @property
    def user(self) -> str | None:
        """The identity, from `username` or the URL."""
        name = urlsplit(self.url).username
        return self.username or (unquote(name) if name else None)

    @property
    def is_anonymous(self) -> bool:
        """Whether we tell the broker neither a name nor a certificate of ours."""
        return self.user is None and (self.tls is None or self.tls.cert_file is None)

    @property
    def secret(self) -> str | None:
        """The password, from `password` or the URL; `password_file` is read by the program."""
        word = urlsplit(self.url).password
        return self.password or (unquote(word) if word else None)


def parse_settings(
    kind: type[_S], *, toml: str, environ: Mapping[str, str], prefix: str, origin: str = "settings"
) -> _S:
    """Build `kind` from TOML text, with environment variables on top.

    `PREFIX_BROKER__URL=mqtt://…` sets `url` in table `broker`. A value is text, which becomes a
    number or a boolean where the setting is one; lists and tables are written as in TOML.

    Raises:
        ConfigError: Naming the setting, what is wrong with it and where it came from.
    """
    try:
        tree: dict[str, Any] = tomllib.loads(toml)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin} is not TOML: {error}", hint="fix that line") from error
    variables: dict[tuple[str, ...], str] = {}
    for name, text in environ.items():
        if name.startswith(f"{prefix}_"):
            path = name.removeprefix(f"{prefix}_").lower().split("__")
            _put(tree, path, text, name)
            variables[tuple(path)] = name
    try:
        return msgspec.convert(tree, kind, strict=False)
    except msgspec.ValidationError as error:
        setting, meant = _fault(kind, str(error))
        variable = variables.get(setting)
        where = origin if variable is None else f"{origin}, {variable}"
        hint = f"did you mean `{meant}`?" if meant else "docs/configuration.md lists every setting"
        raise ConfigError(f"{where}: {error}", hint=hint) from error


def _fault(kind: type[msgspec.Struct], text: str) -> tuple[tuple[str, ...], str | None]:
    """Return which setting msgspec complains of, and what an unknown one was meant to be."""
    at = re.search(r"at `\$\.(.*?)`$", text)
    tables = tuple(re.sub(r"\[.*?\]", "", at[1]).split(".")) if at else ()
    unknown = re.search(r"unknown field `(.*?)`", text)
    if unknown is None:
        return tables, None
    table: type[msgspec.Struct] | None = kind
    for name in tables:
        fields = msgspec.structs.fields(table) if table is not None else ()
        table = next((_struct_in(f.type) for f in fields if f.encode_name == name), None)
    known = [f.encode_name for f in msgspec.structs.fields(table)] if table is not None else []
    meant = difflib.get_close_matches(unknown[1], known, n=1)
    return (*tables, unknown[1]), meant[0] if meant else None


def _struct_in(annotation: Any) -> type[msgspec.Struct] | None:
    """Return the struct of a field's type, also in an optional or a list."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    return next(filter(None, map(_struct_in, get_args(annotation))), None)


def _put(tree: dict[str, Any], path: list[str], text: str, name: str) -> None:
    table = tree
    for level in path[:-1]:
        table = table.setdefault(level, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{name}: {level} is a value, not a table")
    table[path[-1]] = _value(text)


def _value(text: str) -> Any:
    if not text.lstrip().startswith(("[", "{")):
        return text  # a password of digits must stay one
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
