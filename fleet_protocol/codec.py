"""Bytes to message and back: versioned, size-limited, strict.

A bad payload becomes a `ProtocolError` with a code, never a crash and never a guess.
"""

from __future__ import annotations

from functools import cache
from typing import Final, TypeVar

import msgspec

from fleet_protocol.errors import ProtocolError
from fleet_protocol.messages import PROTOCOL_VERSION, JobSubmit, Message, PlainText
from fleet_protocol.topics import CATALOGUE, Channel

CONTENT_TYPE_JSON = "application/json"
CONTENT_TYPE_TEXT = "text/plain; charset=utf-8"

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that reading somebody's JSON may raise, whatever type is wanted."""
_MAX_BYTES = {channel.name: channel.max_bytes for channel in CATALOGUE}
_M = TypeVar("_M", bound=Message)
_encoder = msgspec.json.Encoder()


class _Version(msgspec.Struct):
    v: int = PROTOCOL_VERSION


_version_decoder = msgspec.json.Decoder(_Version)


@cache
def _decoder(kind: type[_M]) -> msgspec.json.Decoder[_M]:
    return msgspec.json.Decoder(kind)


def encode(message: Message) -> bytes:
    """Return the payload of a message: JSON, or the bare text of a `PlainText`."""
    if isinstance(message, PlainText):
        return message.text.encode()
    return _encoder.encode(message)


def pack(message: Message) -> tuple[bytes, str]:
    """Return the payload of a message and its MQTT 5 Content Type."""
    if isinstance(message, PlainText):
        return message.text.encode(), CONTENT_TYPE_TEXT
    return _encoder.encode(message), CONTENT_TYPE_JSON


def content_type(message: Message) -> str:
    """Return the MQTT 5 Content Type of a message's payload."""
    return CONTENT_TYPE_TEXT if isinstance(message, PlainText) else CONTENT_TYPE_JSON


def decode(channel: Channel, payload: bytes) -> Message:
    """Read a payload that came on `channel`.

    Raises:
        ProtocolError: `too_large`, `malformed` (not JSON, not UTF-8), `invalid_field` (wrong type,
            out of range or missing) or `unsupported_version`.
    """
    max_bytes = _MAX_BYTES.get(channel.name) or channel.max_bytes
    if len(payload) > max_bytes:
        raise ProtocolError(
            f"{len(payload)} bytes on {channel.name}, at most {max_bytes} are allowed",
            code="too_large",
            hint="send less, or split the text over several jobs",
        )
    if channel.text:
        return _decode_text(channel, payload)
    return _decode_json(channel.message, payload)


def decode_as(kind: type[_M], payload: bytes) -> _M:
    """Read a payload whose type the caller knows; raises as `decode` does."""
    return _decode_json(kind, payload)


def _decode_text(channel: Channel, payload: bytes) -> Message:
    if channel.message is JobSubmit and payload.lstrip()[:1] == b"{":
        return _decode_json(JobSubmit, payload)
    try:
        text = payload.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError("the payload is not UTF-8 text", code="malformed") from error
    if channel.message is not JobSubmit:
        return PlainText(text=text)
    if not text.strip():
        raise ProtocolError("the question is empty", code="invalid_field")
    return JobSubmit(prompt=text.strip())


def _decode_json(kind: type[_M], payload: bytes) -> _M:
    try:
        message: _M = _decoder(kind).decode(payload)
    except msgspec.ValidationError as error:
        _check_version(payload)
        raise ProtocolError(str(error), code="invalid_field") from error
    except UNREADABLE as error:
        raise ProtocolError(f"the payload is not JSON: {error}", code="malformed") from error
    if message.v != PROTOCOL_VERSION:
        raise _unsupported(message.v)
    return message


def _check_version(payload: bytes) -> None:
    """A newer version may well look invalid to us: the version is the better thing to name."""
    try:
        version = _version_decoder.decode(payload).v
    except UNREADABLE:
        return
    if version != PROTOCOL_VERSION:
        raise _unsupported(version)


def _unsupported(version: int) -> ProtocolError:
    return ProtocolError(
        f"protocol version {version} is not spoken here, {PROTOCOL_VERSION} is",
        code="unsupported_version",
        hint="bring both sides to the same release",
    )
