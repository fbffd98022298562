"""API keys: a small file that an operator edits, by hand or with `cloud-dispatcher keys`.

A key is 256 random bits, so its plain SHA-256 gives nothing away: no salt, no slow hash.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Final

import msgspec

from cloud_dispatcher.adapters.http.watched_file import WatchedFile, replace_file
from cloud_dispatcher.core.spending import Payer
from cloud_dispatcher.local_devices import local_device
from fleet_protocol.errors import ConfigError, cause_of
from fleet_protocol.messages import DeviceId

KEY_PREFIX: Final = "ef-"
NAME_PATTERN: Final = r"^[A-Za-z0-9_-]{1,31}$(?!\n)"
"""With the prefix of local devices it is an id of at most 36 characters."""
_HEADER: Final = (
    "# Who may use the gateway: hashes of their keys. `cloud-dispatcher keys` writes this file;\n"
    "# it is read again when it changes.\n"
)

_Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key.

    Attributes:
        name: For people and logs.
        sha256: Of the key, as hexadecimal digits.
        tenant: Whose jobs they are: who may see them, and whose budget pays.
        per_min: Most requests within any minute; None: no limit.
        daily_usd: What its jobs may spend on the cloud in a UTC day, besides what its tenant may;
            None: no limit of its own.
    """

    name: _Name
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
    tenant: _Name = "default"
    per_min: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    daily_usd: Annotated[float, msgspec.Meta(ge=0.0, le=1e9)] | None = None

    @property
    def payer(self) -> Payer:
        """Who pays for what is asked with it."""
        return Payer(key=self.name, daily_usd=self.daily_usd)


class _KeyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: tuple[ApiKey, ...] = ()


def new_key(
    random_hex: str,
    name: str,
    tenant: str,
    *,
    per_min: int | None = None,
    daily_usd: float | None = None,
) -> tuple[str, ApiKey]:
    """Make a key of 64 random hex digits: as its user gets it, once, and as the file has it.

    Raises:
        ConfigError: The name or the tenant is not usable.
    """
    secret = f"{KEY_PREFIX}{random_hex}"
    fields = {
        "name": name,
        "sha256": hash_of(secret),
        "tenant": tenant,
        "per_min": per_min,
        "daily_usd": daily_usd,
    }
    try:
        return secret, msgspec.convert(fields, ApiKey)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"the key cannot be made: {error}", hint="use letters, digits, - and _, at most 31"
        ) from error


def hash_of(secret: str) -> str:
    """Return what the file has of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()


def parse_keys(text: str, origin: str) -> tuple[ApiKey, ...]:
    """Read a file of keys.

    Raises:
        ConfigError: Naming the key and what is wrong with it.
    """
    try:
        keys = msgspec.convert(tomllib.loads(text), _KeyFile).key
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{origin}: {error}", hint="correct that line") from error
    names = [key.name for key in keys]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{origin}: two keys are called {twice}", hint="rename one of them")
    return keys


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read a file of keys; raises ConfigError also where it is not there."""
    try:
        return parse_keys(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the keys file {path} cannot be read: {cause_of(error)}",
            hint="make a first key with `cloud-dispatcher keys add NAME --file FILE`",
        ) from error


def write_keys(path: Path, keys: tuple[ApiKey, ...]) -> None:
    """Replace the file in one step, readable by its owner alone.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        replace_file(path, _HEADER + "".join(_block(key) for key in keys))
    except OSError as error:
        raise ConfigError(
            f"the keys file {path} cannot be written: {cause_of(error)}",
            hint="name another with --file",
        ) from error


class KeyRing:
    """The keys of a file, read again when it changes. A bad file changes nothing but the log."""

    def __init__(self, path: Path) -> None:
        """Read it; raises ConfigError where it is missing or wrong."""
        self._file = WatchedFile(path, _by_hash, name="keys")

    def find(self, secret: str) -> ApiKey | None:
        """Return the key; None: there is none like it."""
        self._file.refresh()
        return self._file.value.get(hash_of(secret))

    def payers(self) -> list[tuple[DeviceId, Payer]]:
        """Return what each key may spend, by name, and the device in whose name it asks."""
        self._file.refresh()
        keys = sorted(self._file.value.values(), key=lambda key: key.name)
        return [(local_device(key.tenant), key.payer) for key in keys]


def _by_hash(path: Path) -> dict[str, ApiKey]:
    return {key.sha256: key for key in read_keys(path)}


def _block(key: ApiKey) -> str:
    lines = ["", "[[key]]", f"name = {json.dumps(key.name)}", f"sha256 = {json.dumps(key.sha256)}"]
    lines.append(f"tenant = {json.dumps(key.tenant)}")
    if key.per_min is not None:
        lines.append(f"per_min = {key.per_min}")
    if key.daily_usd is not None:
        lines.append(f"daily_usd = {key.daily_usd!r}")
    return "\n".join(lines) + "\n"
