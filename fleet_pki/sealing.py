"""What lies on a disk, sealed with a key of the fleet's: AES-256-GCM, of files and of records.

A nonce must never be used twice with one key. So no key of the fleet's seals anything itself: each
file, and for records each run of a program, has a key of its own, derived (HKDF-SHA256) with a
random salt that stands in front of what it sealed. Under that key nonces simply count.

A file is sealed in segments, so that a reader needs no more memory than the file itself, and sees
nothing that was not verified: the STREAM construction (Hoang, Reyhanitabar, Rogaway and Vizar,
"Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", 2015). A segment's nonce
has its number and whether it is the last one, so none can be moved, doubled, left out or cut off;
and each segment vouches for the header.

A key ring is a file of keys, one a line: the first one seals, all of them open. Each thing sealed
names its key, so keys can be changed without sealing everything anew at once.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import struct
from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Final, Self

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fleet_protocol.errors import ConfigError, FleetError

KEY_BYTES: Final = 32
SEGMENT_BYTES: Final = 1_048_576
_FILE_MARK: Final = b"EFSEAL\x00\x01"
_RECORD_MARK: Final = b"\xf5\x01"
"""No text and no JSON begins with 0xF5: it is in no UTF-8."""
_ID_BYTES: Final = 8
_SALT_BYTES: Final = 32
_TAG_BYTES: Final = 16
_FILE_HEADER: Final = struct.Struct(f">8s{_ID_BYTES}s{_SALT_BYTES}sIQ")
_RECORD_HEADER: Final = struct.Struct(f">2s{_ID_BYTES}s{_SALT_BYTES}sQ")
_NONCE: Final = struct.Struct(">7xIB")
_RUNS_MOST: Final = 1_024


class SealError(FleetError):
    """Something sealed cannot be opened: `seal_broken` or `unknown_key`."""

    code = "seal_broken"


class KeyRing:
    """Keys of the fleet's. The first one seals, all of them open."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise ConfigError("a key ring has at least one key, of 32 bytes", code="bad_key")
        self._keys = {_id_of(key): key for key in keys}
        self.newest = _id_of(keys[0])

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of keys: 64 hexadecimal digits a line, empty lines and `#` ignored.

        Raises:
            ConfigError: `bad_key`, `secret_exposed`, or it cannot be read.
        """
        try:
            text = path.expanduser().read_text("utf-8", "replace")
            mode = path.expanduser().stat().st_mode
        except OSError as error:
            raise ConfigError(
                f"the key file {path} cannot be read: {error.strerror}",
                code="no_key",
                hint="make one with `fleet pki key FILE`, and check who may read it",
            ) from error
        if mode & 0o007:
            raise ConfigError(
                f"{path} can be read by others", code="secret_exposed", hint=f"chmod 600 {path}"
            )
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        try:
            return cls([bytes.fromhex(line) for line in lines if line])
        except (ValueError, ConfigError) as error:
            raise ConfigError(
                f"{path} is no key file",
                code="bad_key",
                hint=f"each line has {2 * KEY_BYTES} hexadecimal digits; `fleet pki key` makes one",
            ) from error

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(name.hex() for name in self._keys)})"

    def cipher(self, key_id: bytes, salt: bytes, purpose: bytes) -> AESGCM:
        """Return what seals and opens under the key that is derived for one file or run.

        Raises:
            SealError: `unknown_key`.
        """
        key = self._keys.get(key_id)
        if key is None:
            raise SealError(
                f"it was sealed with the key {key_id.hex()}, which is not there",
                code="unknown_key",
                hint="add that key to the key file: old ones stay below the new one",
            )
        derived = HKDF(SHA256(), KEY_BYTES, salt, b"edgefleet " + purpose).derive(key)
        return AESGCM(derived)


def new_key() -> str:
    """Return a new key as a key file has it."""
    return secrets.token_hex(KEY_BYTES)


def _id_of(key: bytes) -> bytes:
    return hashlib.sha256(b"edgefleet key id\0" + key).digest()[:_ID_BYTES]


# -------------------------------------------------------------------- files


class FileSeal(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in front of a sealed file.

    Attributes:
        raw: Its bytes, for which each segment vouches.
        size_bytes: Of what is sealed.
    """

    raw: bytes
    key_id: bytes
    salt: bytes
    segment_bytes: int
    size_bytes: int

    def segments(self) -> Iterator[tuple[bytes, int]]:
        """Yield each segment's nonce and how many bytes it holds; an empty file has one of none."""
        count = max(1, -(-self.size_bytes // self.segment_bytes))
        for number in range(count):
            is_last = number == count - 1
            size = self.size_bytes - number * self.segment_bytes if is_last else self.segment_bytes
            yield _NONCE.pack(number, is_last), size


def seal_file(source: Path, target: Path, ring: KeyRing) -> None:
    """Write a file's sealed form; it is on the disk when this returns. Raises OSError."""
    size_bytes = source.stat().st_size
    salt = secrets.token_bytes(_SALT_BYTES)
    raw = _FILE_HEADER.pack(_FILE_MARK, ring.newest, salt, SEGMENT_BYTES, size_bytes)
    seal = _read_seal(raw, str(source))
    cipher = ring.cipher(seal.key_id, salt, b"file")
    with source.open("rb") as plain, target.open("xb") as sealed:
        sealed.write(raw)
        for nonce, size in seal.segments():
            data = plain.read(size)
            if len(data) != size:
                raise OSError(f"{source} became shorter while it was read")
            sealed.write(cipher.encrypt(nonce, data, raw))
        sealed.flush()
        os.fsync(sealed.fileno())


def open_file(path: Path, ring: KeyRing) -> bytearray:
    """Return what is sealed in a file; nothing is written anywhere.

    Raises:
        SealError: It is not as it was sealed, or its key is not there.
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        seal = _read_seal(stream.read(_FILE_HEADER.size), str(path))
        expected = path.stat().st_size - _FILE_HEADER.size
        count = sum(1 for _ in seal.segments())
        if expected != seal.size_bytes + count * _TAG_BYTES:
            raise SealError(f"{path} was cut off, or something was added to it")
        return _opened(stream, seal, ring, path)


def _opened(stream: BufferedIOBase, seal: FileSeal, ring: KeyRing, path: Path) -> bytearray:
    cipher = ring.cipher(seal.key_id, seal.salt, b"file")
    plain, at = bytearray(seal.size_bytes), 0
    for nonce, size in seal.segments():
        try:
            plain[at : at + size] = cipher.decrypt(nonce, stream.read(size + _TAG_BYTES), seal.raw)
        except InvalidTag as error:
            raise SealError(
                f"{path} is not as it was sealed, from byte {at} on",
                hint="copy it again from where it was sealed",
            ) from error
        at += size
    return plain


def _read_seal(raw: bytes, name: str) -> FileSeal:
    try:
        mark, key_id, salt, segment_bytes, size_bytes = _FILE_HEADER.unpack(raw)
    except struct.error as error:
        raise SealError(f"{name} is no sealed file: it is too short") from error
    if mark != _FILE_MARK or segment_bytes == 0 or size_bytes > segment_bytes * 2**32:
        raise SealError(f"{name} is no sealed file, or of another release")
    return FileSeal(
        raw=raw, key_id=key_id, salt=salt, segment_bytes=segment_bytes, size_bytes=size_bytes
    )


# -------------------------------------------------------------------- records


class RecordSealer:
    """Seals and opens short records, such as a prompt in a store.

    A record is bound to its place (`about`): copied to another row, it does not open.
    """

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring
        salt = secrets.token_bytes(_SALT_BYTES)
        self._run = (ring.newest, salt)
        self._cipher = ring.cipher(ring.newest, salt, b"record")
        self._count = 0
        self._runs = {self._run: self._cipher}

    def seal(self, data: bytes, about: bytes) -> bytes:
        """Return a record's sealed form: 66 bytes longer."""
        self._count += 1
        header = _RECORD_HEADER.pack(_RECORD_MARK, *self._run, self._count)
        nonce = self._count.to_bytes(12, "big")
        return header + self._cipher.encrypt(nonce, data, header + about)

    def open(self, data: bytes, about: bytes) -> bytes:
        """Return what a record holds; one that was never sealed is returned as it is.

        Raises:
            SealError: It is not as it was sealed, not in its place, or its key is not there.
        """
        if not data.startswith(_RECORD_MARK):
            return data
        header = data[: _RECORD_HEADER.size]
        try:
            _, key_id, salt, count = _RECORD_HEADER.unpack(header)
            cipher = self._runs.get((key_id, salt)) or self._remembered(key_id, salt)
            nonce = count.to_bytes(12, "big")
            return cipher.decrypt(nonce, data[_RECORD_HEADER.size :], header + about)
        except (struct.error, InvalidTag) as error:
            raise SealError(
                "a record is not as it was sealed, or not where it was",
                hint="restore the store from a copy",
            ) from error

    def _remembered(self, key_id: bytes, salt: bytes) -> AESGCM:
        if len(self._runs) >= _RUNS_MOST:
            self._runs = {self._run: self._cipher}
        cipher = self._runs[key_id, salt] = self._ring.cipher(key_id, salt, b"record")
        return cipher


def is_sealed(data: bytes) -> bool:
    """Tell whether a record was sealed."""
    return data.startswith(_RECORD_MARK)
