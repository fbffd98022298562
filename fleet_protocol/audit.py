"""The audit log: lines that are chained by a key, so that none can be changed, moved or taken out.

Each line is its seal, a space and a JSON object. The seal is HMAC-SHA256, under the fleet's audit
key, of the seal before it and the object; the first one follows `GENESIS`. Files are named by the
UTC day, and the chain runs through all of them. Whoever has the files and not the key can neither
change a line nor add one. Lines at the very end can be taken off unnoticed; note a seal elsewhere
from time to time, and `verify` looks whether it is still there.

Pure: no file is opened here.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from fleet_protocol.errors import ConfigError

GENESIS: Final = "0" * 64
KEY_BYTES: Final = 32
_SEAL_CHARS: Final = 64

_encode = msgspec.json.Encoder().encode


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line's object.

    Attributes:
        seq: Counts up from 1 over all files.
        at_ms: UTC epoch milliseconds, by the dispatcher's clock.
        what: `job.accepted`, `job.finished`, `admin`, `broker.refused`, `started`, `stopped`,
            `pruned` (an old file was removed; `about` has its last seal) or `lost` (so many entries
            were not written).
        about: Its fields, by `what`: never a text that was asked or answered.
    """

    seq: int
    at_ms: int
    what: str
    about: dict[str, Any] = msgspec.field(default_factory=dict)


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a log.

    Attributes:
        ok: Every line is what was written, and where it was written.
        lines: So many were looked at.
        first_ms: When the first one was written; None of an empty log.
        last_ms: When the last one was.
        seal: The last good line's: note it elsewhere.
        where: The first line that is not as it was: `FILE:LINE`; empty if all are.
        why: What is wrong there.
        torn: The last line is half a line: a power cut did that, and the next start mends it.
    """

    ok: bool
    lines: int
    first_ms: int | None = None
    last_ms: int | None = None
    seal: str = GENESIS
    where: str = ""
    why: str = ""
    torn: bool = False


def parse_key(text: str) -> bytes:
    """Return the key that a file has as 64 hexadecimal digits.

    Raises:
        ConfigError: It is none.
    """
    with contextlib.suppress(ValueError):
        key = bytes.fromhex(text.strip())
        if len(key) == KEY_BYTES:
            return key
    raise ConfigError(
        "this is no audit key", code="bad_key", hint=f"it has {2 * KEY_BYTES} hexadecimal digits"
    )


def digest(key: bytes, text: str) -> str:
    """Return what stands for a prompt: the same one can be recognised, by who has the key alone."""
    return hmac.new(key, b"prompt\0" + text.encode(), hashlib.sha256).hexdigest()[:32]


def sealed(key: bytes, before: str, entry: AuditEntry) -> tuple[str, bytes]:
    """Return an entry's seal, and its line without the end of the line."""
    body = _encode(entry)
    seal = _seal(key, before, body)
    return seal, seal.encode() + b" " + body


def read_line(line: bytes) -> tuple[str, AuditEntry]:
    """Return a line's seal and entry; it is not judged.

    Raises:
        ValueError: It is no line of an audit log.
    """
    seal, _, body = line.partition(b" ")
    return seal.decode("ascii"), msgspec.json.decode(body, type=AuditEntry)


def verify(files: Sequence[tuple[str, bytes]], key: bytes, *, noted: str = "") -> Verdict:
    """Look at every line, in order.

    Args:
        files: Name and contents, by day.
        key: The audit key.
        noted: A seal that was noted elsewhere: one of the lines must have it.
    """
    seal, seq = _start(files)
    lines, first_ms, last_ms = 0, None, None
    where = why = ""
    was_seen = noted in {"", seal}
    for name, number, line in _lines(files):
        found = _judge(line, key, seal, seq)
        if isinstance(found, str):
            where, why = f"{name}:{number}", found
            break
        seal, entry = found
        seq, lines, last_ms = entry.seq, lines + 1, entry.at_ms
        first_ms = entry.at_ms if first_ms is None else first_ms
        was_seen = was_seen or seal == noted
    if not was_seen and not where:
        why = "the noted seal is on none of the lines: the end was taken off"
    return Verdict(
        ok=not why,
        lines=lines,
        first_ms=first_ms,
        last_ms=last_ms,
        seal=seal,
        where=where,
        why=why,
        torn=bool(files) and not files[-1][1].endswith(b"\n") and bool(files[-1][1]),
    )


def _lines(files: Sequence[tuple[str, bytes]]) -> Iterator[tuple[str, int, bytes]]:
    """Yield file, number and text of each line; what a power cut left of the very last one not."""
    for at, (name, data) in enumerate(files, 1):
        *whole, rest = data.split(b"\n")
        if rest and at < len(files):
            whole.append(rest)
        for number, line in enumerate(whole, 1):
            yield name, number, line


def _start(files: Sequence[tuple[str, bytes]]) -> tuple[str, int | None]:
    """Return the seal that the first line follows, and its number if that is known.

    Where older files were pruned, a later line says so, with the last seal of them; the chain
    vouches for that line as for any other.
    """
    there = {name for name, _ in files}
    seal: object = None
    for _, _, line in _lines(files):
        if b'"what":"pruned"' in line:
            try:
                about = read_line(line)[1].about
            except (ValueError, UnicodeDecodeError):
                continue
            if about.get("file") not in there:  # a power cut may leave a file that was to go
                seal = about.get("seal")
    return (seal, None) if isinstance(seal, str) else (GENESIS, 0)


def _judge(line: bytes, key: bytes, before: str, seq: int | None) -> tuple[str, AuditEntry] | str:
    """Return a line's seal and entry, or what is wrong with it."""
    try:
        seal, entry = read_line(line)
    except (ValueError, UnicodeDecodeError):
        return "this is no line of an audit log"
    if not hmac.compare_digest(seal, _seal(key, before, line[_SEAL_CHARS + 1 :])):
        return "this line, or the one before it, is not as it was written; or the key is another"
    if seq is not None and entry.seq != seq + 1:
        return f"line {entry.seq} follows line {seq}"
    return seal, entry


def _seal(key: bytes, before: str, body: bytes) -> str:
    return hmac.new(key, before.encode() + b"\n" + body, hashlib.sha256).hexdigest()
