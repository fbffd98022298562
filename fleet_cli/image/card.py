"""What an operator decides about a board's card, checked before anything is made of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from fleet_protocol.errors import ConfigError

_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,34}[A-Za-z0-9])?")
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_VERSION: Final = re.compile(r"[0-9][A-Za-z0-9.+!-]{0,63}")
_PUBLIC_KEY: Final = re.compile(
    r"(?:ssh-(?:ed25519|rsa)|ecdsa-sha2-nistp(?:256|384|521)|sk-(?:ssh-ed25519|ecdsa-sha2-nistp256)"
    r"@openssh\.com) [A-Za-z0-9+/=]+(?: [^\n'\"\\]*)?"
)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_PSK_ROUNDS: Final = 4_096
_PSK_BYTES: Final = 32
_PASSPHRASE_CHARACTERS: Final = range(8, 64)
_SSID_MOST_BYTES: Final = 32


class BoardKind(StrEnum):
    """Whose images, and whose boot partition."""

    RPI = "rpi"
    JETSON = "jetson"


class Wifi(msgspec.Struct, frozen=True, kw_only=True):
    """A wireless network.

    Attributes:
        psk: 64 hexadecimal digits that stand for the passphrase in this network alone.
        country: Two letters; radio is off until a board knows where it is.
    """

    ssid: str
    psk: str
    country: str

    def __repr__(self) -> str:
        return f"Wifi({self.ssid!r}, {self.country})"


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """Something too large for a settings file: an archive on the card, or somewhere else.

    Attributes:
        name: Of the archive, or of what is in it.
        sha256: Without which the board takes nothing.
        url: Where it is fetched from; None: it lies on the card.
    """

    name: str
    sha256: str
    url: str | None = None


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One board's card.

    Attributes:
        host: The board's name in the network and its id in the fleet.
        user: Who may log in, by one of `ssh_keys`, never by a password.
        broker: `mqtts://HOST:PORT`, where boards show certificates.
        join_at: Where tokens are taken; None: the same host, port 8884.
        engine: `onnx` or `echo`.
        version: Of edgefleet.
        python: The board's interpreter, 3.11 or newer.
        wheels: Archive of wheels; None: the package index.
        model: Archive of a model; None: none is put there.
    """

    board: BoardKind
    host: str
    user: str
    ssh_keys: tuple[str, ...]
    broker: str
    join_at: str | None
    engine: str
    version: str
    python: str
    labels: Mapping[str, str]
    wifi: Wifi | None = None
    wheels: Payload | None = None
    model: Payload | None = None


def check_host(name: str) -> str:
    """Return a name that is good for a host and for a worker."""
    if not _HOST.fullmatch(name):
        raise ConfigError(
            f"{name[:64]!r} cannot be a host's name",
            code="invalid_id",
            hint="use 1 to 36 letters, digits and hyphens, no hyphen at either end",
        )
    return name


def check_user(name: str) -> str:
    """Return a name that Linux takes for a user who is not root."""
    if not _USER.fullmatch(name) or name == "root":
        raise ConfigError(
            f"{name[:64]!r} cannot be the board's user",
            hint="use small letters, digits, _ and -, and not root",
        )
    return name


def check_version(text: str) -> str:
    """Return what is a version, and the name of a folder."""
    if not _VERSION.fullmatch(text):
        raise ConfigError(
            f"{text[:64]!r} is no version", hint="such as 1.2.3; see `fleet --version`"
        )
    return text


def read_public_keys(text: str, *, origin: Path) -> tuple[str, ...]:
    """Return the SSH keys of a file, one a line.

    Raises:
        ConfigError: There is none, a line is none, or it is a private one: `private_key`.
    """
    if "PRIVATE KEY" in text:
        raise ConfigError(
            f"{origin} is a private key, which belongs on no card",
            code="private_key",
            hint=f"name the public one: {origin}.pub",
        )
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    wrong = next((key for key in keys if not _PUBLIC_KEY.fullmatch(key)), None)
    if wrong is not None or not keys:
        raise ConfigError(
            f"{origin} holds no SSH key" if wrong is None else f"{origin}: a line is no SSH key",
            code="bad_ssh_key",
            hint="name the public part of your key, such as ~/.ssh/id_ed25519.pub",
        )
    return keys


def wifi_of(ssid: str, passphrase: str, country: str) -> Wifi:
    """Return a wireless network; the passphrase itself goes on no card.

    Source: IEEE 802.11i, annex H.4: PBKDF2-SHA1 with the network's name for salt.
    """
    if not 0 < len(ssid.encode()) <= _SSID_MOST_BYTES or not ssid.isprintable():
        raise ConfigError("the wireless network's name has 1 to 32 bytes", hint="check --wifi")
    if not re.fullmatch(r"[A-Z]{2}", country):
        raise ConfigError(
            f"{country[:8]!r} is no country", hint="--wifi-country takes two letters, such as DE"
        )
    if len(passphrase) not in _PASSPHRASE_CHARACTERS or not passphrase.isascii():
        raise ConfigError(
            "a wireless network's passphrase has 8 to 63 characters, ASCII",
            hint="check the first line of --wifi-password-file",
        )
    psk = hashlib.pbkdf2_hmac("sha1", passphrase.encode(), ssid.encode(), _PSK_ROUNDS, _PSK_BYTES)
    return Wifi(ssid=ssid, psk=psk.hex(), country=country)


def check_broker(url: str) -> str:
    """Return a URL under which a board reaches the broker and knows it again."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme == "mqtts" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or re.search(r"[\s'\"\\]", url):
        raise ConfigError(
            f"{url[:100]!r} is not where a board shows a certificate",
            hint="name the broker as boards reach it: --broker mqtts://broker.example:8883",
        )
    if parts.hostname in {"localhost", "127.0.0.1", "::1"}:
        raise ConfigError(
            f"{url} is this machine, and on the board it would be the board itself",
            hint="name the broker by the name or address that the board reaches it by",
        )
    return url


def fetched(url: str, sha256: str | None, *, option: str) -> Payload:
    """Return what a board fetches by itself.

    Raises:
        ConfigError: `no_digest`: nobody says what it must be.
    """
    if sha256 is None or not _SHA256.fullmatch(sha256):
        raise ConfigError(
            f"a board cannot know whether {url[:100]} is what you mean",
            code="no_digest",
            hint=f"add {option}-sha256 with the 64 digits that `sha256sum` prints",
        )
    if re.search(r"[\s'\"\\]", url):
        raise ConfigError(f"{url[:100]!r} is no URL", hint="write it with %20 and the like")
    return Payload(name=Path(urlsplit(url).path).name or "archive", sha256=sha256, url=url)
