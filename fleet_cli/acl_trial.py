"""The access list tried out on a real broker: every role says and listens to every topic."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from fleet_cli.acl_file import render_acl
from fleet_cli.broker import BrokerKind, BrokerOptions, BrokerProcess
from fleet_client.access_probe import AccessProbe
from fleet_protocol.access import Access, Identity, grants_of, may, owner_role
from fleet_protocol.settings import BrokerSettings
from fleet_protocol.topics import CATALOGUE, Channel, Role, Topics

CAST: Final = (
    Identity(role=Role.DISPATCHER, id="dispatcher"),
    Identity(role=Role.WORKER, id="w1"),
    Identity(role=Role.DEVICE, id="d1"),
    Identity(role=Role.VIEWER, id="v1"),
    Identity(role=Role.OPERATOR, id="o1"),
    Identity(role=Role.ADMIN, id="a1"),
    Identity(role=Role.AUTHORITY, id="authority"),
)
"""One of each role; `w2`, `d2`, `v2`, `o2` and `a2` are those whose topics are not theirs."""
VERSIONS: Final = {"3.1.1": False, "5": True}
_WITNESS: Final = "witness"


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """What one identity may do with one topic."""

    role: Role
    id: str
    topic: str
    publish: bool
    subscribe: bool


class Deviation(msgspec.Struct, frozen=True, kw_only=True):
    """Where a broker does otherwise than the catalogue says."""

    mqtt: str
    role: Role
    id: str
    topic: str
    access: Access
    allowed: bool
    happened: bool


def matrix(topics: Topics) -> list[Cell]:
    """Return what everybody of the cast may do with every topic."""
    grants = {identity: grants_of(topics, identity) for identity in CAST}
    return [
        Cell(
            role=identity.role,
            id=identity.id,
            topic=topic,
            publish=may(grants[identity], Access.PUBLISH, topic),
            subscribe=may(grants[identity], Access.SUBSCRIBE, topic),
        )
        for topic in sample_topics(topics)
        for identity in CAST
    ]


def sample_topics(topics: Topics) -> list[str]:
    """Return a topic of every channel; where an owner's id stands in it, one of another, too."""
    return [topics.name(channel, *ids) for channel in CATALOGUE for ids in _ids(channel)]


def _ids(channel: Channel) -> Iterator[tuple[str, ...]]:
    places = channel.template.count("{")
    owner = owner_role(channel)
    if owner is None:
        yield ("1",) * places
        return
    for number in (1, 2):
        yield (f"{owner[0]}{number}", *("1",) * (places - 1))


def try_out(topics: Topics, folder: Path) -> list[Deviation]:
    """Start a Mosquitto with the rendered list and return where it does otherwise.

    Raises:
        ConfigError: `no_broker`: Mosquitto is not installed.
    """
    expected = matrix(topics)
    passwords = {name: secrets.token_hex() for name in (_WITNESS, *(one.id for one in CAST))}
    everybody = f"user {_WITNESS}\ntopic readwrite {topics.root}/#\npattern read {_end(topics)}\n"
    acl = f"{render_acl(topics, CAST)}\n{everybody}"
    options = BrokerOptions(passwords=passwords, acl=acl)
    found: list[Deviation] = []
    with BrokerProcess(BrokerKind.MOSQUITTO, folder, options=options) as broker:
        for version, uses_mqtt5 in VERSIONS.items():
            with _connected(broker.url, topics, passwords, uses_mqtt5=uses_mqtt5) as probes:
                happened = _play(probes, topics)
            found += _deviations(version, expected, happened)
    return found


@contextmanager
def _connected(
    url: str, topics: Topics, passwords: dict[str, str], *, uses_mqtt5: bool
) -> Iterator[dict[str, AccessProbe]]:
    """Connect everybody, each listening to all there is and to each topic by its name."""
    filters = (f"{topics.root}/#", *sample_topics(topics))
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                AccessProbe(
                    BrokerSettings(url=url, username=name, password=word),
                    filters,
                    uses_mqtt5=uses_mqtt5,
                )
            )
            for name, word in passwords.items()
        }


def _play(probes: dict[str, AccessProbe], topics: Topics) -> set[tuple[str, str, Access]]:
    """Return who could do what with which topic.

    A broker delivers to one client in the order in which it took: whoever has heard the last
    message, which all may hear, was not given what it did not hear before.
    """
    done: set[tuple[str, str, Access]] = set()
    everybody_hears = _end(topics)
    witness, names = probes[_WITNESS], sample_topics(topics)
    for topic in names:
        witness.say(topic, b"hear")
    witness.say(everybody_hears, b"all was said")
    for name, probe in probes.items():
        for topic, payload in probe.heard_until(b"all was said"):
            if payload == b"hear":
                done.add((name, topic, Access.SUBSCRIBE))
    for name, probe in probes.items():
        for topic in names:
            probe.say(topic, name.encode())
    witness.say(everybody_hears, b"all have spoken")
    for topic, payload in witness.heard_until(b"all have spoken"):
        done.add((payload.decode(), topic, Access.PUBLISH))
    return done


def _end(topics: Topics) -> str:
    """Return a topic of the trial alone, which everybody may hear."""
    return f"{topics.root}/trial/end"


def _deviations(
    version: str, expected: list[Cell], happened: set[tuple[str, str, Access]]
) -> Iterator[Deviation]:
    for cell in expected:
        for access, allowed in (
            (Access.PUBLISH, cell.publish),
            (Access.SUBSCRIBE, cell.subscribe),
        ):
            if ((cell.id, cell.topic, access) in happened) is not allowed:
                yield Deviation(
                    mqtt=version,
                    role=cell.role,
                    id=cell.id,
                    topic=cell.topic,
                    access=access,
                    allowed=allowed,
                    happened=not allowed,
                )
