"""Who may say and hear what: derived from the topic catalogue, for every role and identity.

Nothing is allowed that is not granted here. A broker's access list is written from `grants_of`,
so a new channel is opened to its sender and its receivers, and to nobody else, by being listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Final

import msgspec

from fleet_protocol.errors import ConfigError
from fleet_protocol.messages import ID_PATTERN
from fleet_protocol.topics import (
    CATALOGUE,
    CERTIFICATE,
    JOIN,
    Channel,
    Role,
    Topics,
)

_FAMILIES: Final = {
    Role.DEVICE: "dev",
    Role.WORKER: "workers",
    Role.VIEWER: "viewer",
    Role.OPERATOR: "operator",
    Role.ADMIN: "admin",
}
"""The roles that have topics of their own, and below what."""


class Access(StrEnum):
    """What is done with a topic."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody whom a broker knows.

    Attributes:
        id: Unique over all roles: it is the name that the broker's access list binds.
    """

    role: Role
    id: Annotated[str, msgspec.Meta(pattern=ID_PATTERN)]


class Grant(msgspec.Struct, frozen=True):
    """Leave to do something with all topics that a filter matches."""

    access: Access
    filter: str


def owner_role(channel: Channel) -> Role | None:
    """Return whose own id stands in the channel's topics; None if nobody's does."""
    family = channel.template.partition("/")[0]
    return next((role for role, name in _FAMILIES.items() if name == family), None)


def grants_of(topics: Topics, identity: Identity) -> tuple[Grant, ...]:
    """Return everything that an identity may do, in the catalogue's order.

    Whoever has topics of its own publishes there what the catalogue has it send, and hears all of
    them: a device may name any topic below its own for its answers (MQTT 5 Response Topic). The
    dispatcher, which answers there, has the whole root.
    """
    if identity.role is Role.DISPATCHER:
        return tuple(Grant(access, f"{topics.root}/#") for access in Access)
    grants = [
        Grant(Access.PUBLISH, topics.filter(channel, *_own(channel, identity)))
        for channel in CATALOGUE
        if channel.sender is identity.role
    ]
    family = _FAMILIES.get(identity.role)
    if family is not None:
        grants.append(Grant(Access.SUBSCRIBE, f"{topics.root}/{family}/{identity.id}/#"))
    grants += [
        Grant(Access.SUBSCRIBE, topics.filter(channel))
        for channel in CATALOGUE
        if identity.role in channel.receivers and owner_role(channel) is not identity.role
    ]
    return tuple(grants)


def join_user(worker: str) -> str:
    """Return under which name a worker that has a token only comes to the broker: nobody's id."""
    return f"{worker}.join"


def joining_grants(topics: Topics, worker: str) -> tuple[Grant, ...]:
    """Return what such a worker may: ask for its first certificate, and hear the answer."""
    return (
        Grant(Access.PUBLISH, topics.filter(JOIN, worker)),
        Grant(Access.SUBSCRIBE, topics.filter(CERTIFICATE, worker)),
    )


def may(grants: Iterable[Grant], access: Access, topic: str) -> bool:
    """Tell whether something may be done with a topic (a name, not a filter)."""
    return any(grant.access is access and matches(grant.filter, topic) for grant in grants)


def matches(pattern: str, topic: str) -> bool:
    """Tell whether an MQTT topic filter matches a topic."""
    levels, names = pattern.split("/"), topic.split("/")
    if levels[-1] == "#":
        levels.pop()
        # `a/#` matches `a` itself, too.
        names = names[: len(levels)]
    return len(levels) == len(names) and all(
        level in {"+", name} for level, name in zip(levels, names, strict=True)
    )


def check_identities(identities: Iterable[Identity]) -> tuple[Identity, ...]:
    """Return them as they are.

    Raises:
        ConfigError: An id is not usable, or stands for two: `invalid_id`, `duplicate_id`.
    """
    found: dict[str, Identity] = {}
    for identity in identities:
        if not re.match(ID_PATTERN, identity.id):
            raise ConfigError(
                f"id {identity.id[:64]!r} is not usable",
                code="invalid_id",
                hint="use 1 to 36 of the characters A-Z a-z 0-9 _ -",
            )
        if identity.id in found:
            raise ConfigError(
                f"id {identity.id!r} is given to a {found[identity.id].role} and a {identity.role}",
                code="duplicate_id",
                hint="one id is one identity with one role: rename one of them",
            )
        found[identity.id] = identity
    return tuple(found.values())


def _own(channel: Channel, identity: Identity) -> tuple[str, ...]:
    return (identity.id,) if owner_role(channel) is identity.role else ()
