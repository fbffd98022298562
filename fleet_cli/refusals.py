"""What Mosquitto's log says of those whom it turned away. Pure: lines in, refusals out.

A line is believed only as far as the broker wrote it: client ids and topics are whatever a client
chose, so what stands around them is looked for from the end of the line, and of several readings
the one with the longest client id that is connected counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec
from msgspec.structs import replace

_SUBSTANTIAL: Final = re.compile(
    rb"^(\d{1,12}): (?!Received |Sending |\t|No will |Will message)([^\n]*)$", re.MULTILINE
)
"""All lines but what is said of every packet."""
_ARRIVED: Final = re.compile(r"New connection from (.+):\d+ on port \d+\.")
_JOINED: Final = re.compile(
    r"New (?:client|bridge) connected from (.+):\d+ as (.*) \(p\d+, c\d+, k\d+(?:, u'(.*)')?\)\."
)
_REFUSED: Final = re.compile(r"Client (.*) disconnected, not authorised\.")
_LEFT: Final = re.compile(
    r"Client (.*) (?:closed its connection|disconnected[^.]*|been disconnected by [^.]*|"
    r"has exceeded timeout, disconnecting)\."
)
_BROKE: Final = re.compile(r"Bad socket read/write on client (.*): [^:]*")
_PLACE: Final = re.compile(r" [\[(][^\[\]()]*[\])]$")
"""Newer brokers write the address behind the client's name."""
_TLS: Final = re.compile(r"OpenSSL Error\[(\d+)\]: .*?([^:]+)")
_FAILED: Final = re.compile(r"Client connection from (.+) failed: .*?([^:]+)\.")
"""What the broker says instead where the handshake fails within the first packets."""
_PACKET: Final = re.compile(r" \(d\d, q\d, r\d, m\d+, '")
_TOPIC: Final = re.compile(_PACKET.pattern + r"(.*?)(?:', \.\.\. \(\d+ bytes\)\))?$")
_SUBSCRIBED: Final = re.compile(r" (?=(?:[012]|128|135) )")
_HUNG_UP: Final = "unexpected eof while reading"
"""A client that went away, as whoever looks whether the port is open does: nobody refused it."""
_NOBODY: Final = "<unknown>"
_PENDING_MS: Final = 30_000
_PENDING_MOST: Final = 10_000
_NAMED_MOST: Final = 4
_ENTRIES_MOST: Final = 200


class Kind(StrEnum):
    """What was refused.

    Attributes:
        CONNECTION: Before it said who it is: a certificate that is none of ours, is revoked, over,
            or missing; another version of TLS.
        LOGIN: Who it said it is: a wrong password, or none.
        PUBLISH: To say something on a topic.
        SUBSCRIBE: To listen to a topic. Mosquitto grants it, and delivers nothing.
    """

    CONNECTION = "connection"
    LOGIN = "login"
    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the broker did not let somebody do.

    Attributes:
        at_ms: UTC epoch milliseconds, by the broker's clock, which it tells in seconds.
        user: Who, by certificate or password; empty before that is known.
        client: What it calls itself, which proves nothing.
        address: Where from; of several connections that were being made all that may be meant.
        topic: The topic, or the filter.
        times: How often.
    """

    at_ms: int
    kind: Kind
    why: str
    user: str = ""
    client: str = ""
    address: str = ""
    topic: str = ""
    times: int = 1

    @property
    def about(self) -> dict[str, Any]:
        """Its fields in an audit log: those that say something."""
        fields = msgspec.structs.asdict(self)
        fields["broker_at_ms"] = fields.pop("at_ms")
        return {name: value for name, value in fields.items() if value}


class Client(msgspec.Struct, frozen=True):
    """Somebody who is connected."""

    user: str
    address: str


class RefusalReader:
    """Reads Mosquitto's log in order, and remembers who is connected.

    Args:
        readable: By user, the filters that it may listen to; None: everybody may everything.
        clients: Who was connected when reading stopped the last time.
    """

    def __init__(
        self,
        readable: Mapping[str, Sequence[str]] | None = None,
        clients: Mapping[str, Client] | None = None,
    ) -> None:
        self.readable = readable
        self.clients = dict(clients or {})
        self._pending: dict[str, tuple[str, int]] = {}

    def read(self, lines: bytes) -> Iterator[Refusal | str]:
        """Yield the refusals of whole lines, and as text the other lines that people may want."""
        for found in _SUBSTANTIAL.finditer(lines):
            said = self._read(found[2].decode("utf-8", "replace"), int(found[1]) * 1_000)
            if said is not None:
                yield said

    def _read(self, text: str, at_ms: int) -> Refusal | str | None:
        if text.startswith("Denied PUBLISH from "):
            return self._denied(text.removeprefix("Denied PUBLISH from "), at_ms)
        if found := _TLS.fullmatch(text):
            # Further errors of the same handshake count on.
            is_new = found[1] == "0" and found[2] != _HUNG_UP
            return self._unnamed(Kind.CONNECTION, found[2], at_ms) if is_new else text
        if (found := _FAILED.fullmatch(text)) and found[2] != _HUNG_UP:
            return Refusal(at_ms=at_ms, kind=Kind.CONNECTION, why=found[2], address=found[1])
        if found := _REFUSED.fullmatch(text):
            client = _PLACE.sub("", found[1])
            client = "" if client == _NOBODY else client
            return self._unnamed(Kind.LOGIN, "not authorised", at_ms, client)
        if found := _ARRIVED.fullmatch(text):
            self._await(found[1], text, at_ms)
        elif found := _JOINED.fullmatch(text):
            self._join(found[1], found[2], found[3] or "")
        elif found := _LEFT.fullmatch(text) or _BROKE.fullmatch(text):
            if self.clients.pop(found[1], None) is None:
                self.clients.pop(_PLACE.sub("", found[1]), None)
        elif name := self._longest(text, _SUBSCRIBED.finditer(text)):
            return self._subscribed(name, text[len(name) + 1 :].partition(" ")[2], at_ms)
        return text

    def _await(self, address: str, text: str, at_ms: int) -> None:
        """Remember a connection of nobody yet; of a flood of them only so many."""
        self._pending = {
            key: one for key, one in self._pending.items() if at_ms - one[1] < _PENDING_MS
        }
        if len(self._pending) < _PENDING_MOST:
            self._pending[text] = (address, at_ms)

    def _join(self, address: str, client: str, user: str) -> None:
        self.clients[client] = Client(user, address)
        self._settle(address)

    def _settle(self, address: str) -> None:
        """One of the connections from there is nobody's no more."""
        for key, (other, _) in self._pending.items():
            if other == address:
                del self._pending[key]
                return

    def _unnamed(self, kind: Kind, why: str, at_ms: int, client: str = "") -> Refusal:
        """Return the refusal of somebody whom the broker does not name."""
        addresses = sorted({address for address, _ in self._pending.values()})
        if len(addresses) == 1:
            self._settle(addresses[0])
        named = ", ".join(addresses[:_NAMED_MOST]) + (", ..." if addresses[_NAMED_MOST:] else "")
        return Refusal(at_ms=at_ms, kind=kind, why=why, client=client, address=named)

    def _denied(self, text: str, at_ms: int) -> Refusal:
        name = self._longest(text, _PACKET.finditer(text)) or _PACKET.split(text)[0]
        topic = _TOPIC.match(text, len(name))
        refusal = Refusal(
            at_ms=at_ms, kind=Kind.PUBLISH, why="not in its list", topic=topic[1] if topic else ""
        )
        return self._by(refusal, name)

    def _subscribed(self, name: str, wanted: str, at_ms: int) -> Refusal | None:
        """Return a refusal where somebody listens to what it may not hear."""
        if self.readable is None:
            return None
        own = self.readable.get(self.clients[name].user, ())
        if any(covers(each, unshared(wanted)) for each in own):
            return None
        refusal = Refusal(at_ms=at_ms, kind=Kind.SUBSCRIBE, why="not in its list", topic=wanted)
        return self._by(refusal, name)

    def _by(self, refusal: Refusal, client: str) -> Refusal:
        known = self.clients.get(client)
        if known is None:
            return replace(refusal, client=client)
        return replace(refusal, client=client, user=known.user, address=known.address)

    def _longest(self, text: str, ends: Iterable[re.Match[str]]) -> str:
        """Return the longest client id that is connected and stands before one of these, or ""."""
        names = (text[: end.start()] for end in ends)
        return max((name for name in names if name in self.clients), key=len, default="")


def covers(pattern: str, wanted: str) -> bool:
    """Tell whether an MQTT filter matches every topic that another one does."""
    levels, others = pattern.split("/"), wanted.split("/")
    for at, level in enumerate(levels):
        if level == "#":
            return True
        if at == len(others) or others[at] == "#" or level not in {"+", others[at]}:
            return False
    return len(levels) == len(others)


def unshared(wanted: str) -> str:
    """Return the filter of a shared subscription."""
    return wanted.split("/", 2)[2] if wanted.startswith("$share/") else wanted


def condense(refusals: Iterable[Refusal]) -> list[Refusal]:
    """Return equal ones as one, and of a flood so many as a log can bear: the rest are counted."""
    found: dict[Refusal, Refusal] = {}
    for refusal in refusals:
        key = replace(refusal, at_ms=0, client="", times=1)
        if key not in found and len(found) >= _ENTRIES_MOST:
            key = Refusal(at_ms=0, kind=refusal.kind, why="and others")
        one = found.get(key) or replace(key, at_ms=refusal.at_ms, client=refusal.client, times=0)
        found[key] = replace(one, times=one.times + refusal.times)
    return list(found.values())
