"""What a device may say and hear, for examples that name their topics in files."""

from __future__ import annotations

from collections.abc import Iterable

from fleet_protocol.access import Access, Identity, grants_of, matches, may
from fleet_protocol.topics import CATALOGUE, Role, Topics

TOPICS = Topics()


def check_topics(device: str, *, says: Iterable[str], hears: Iterable[str]) -> None:
    """Fail where a device says or hears what is not of the catalogue, or not granted to it.

    `says` are topics, `hears` may have wildcards.
    """
    grants = grants_of(TOPICS, Identity(role=Role.DEVICE, id=device))
    for topic in says:
        assert may(grants, Access.PUBLISH, topic), topic
    templates = [f"{TOPICS.root}/{channel.template}" for channel in CATALOGUE]
    known = [one.replace("{device}", device).replace("{job}", "some-job") for one in templates]
    for wanted in hears:
        named = [topic for topic in known if matches(wanted, topic)]
        assert named, wanted
        assert all(may(grants, Access.SUBSCRIBE, topic) for topic in named), wanted
