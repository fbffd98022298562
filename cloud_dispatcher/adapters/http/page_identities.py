"""As whom a page comes to the broker, and what it may say and hear there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from cloud_dispatcher.adapters.http.gatekeeper import page_id
from cloud_dispatcher.adapters.http.page_settings import PageSettings
from cloud_dispatcher.adapters.http.users import User
from fleet_protocol.access import Grant, Identity, grants_of
from fleet_protocol.errors import ConfigError
from fleet_protocol.settings import BrokerSettings
from fleet_protocol.topics import REPLIES, REQUESTS, Role, Topics

_ANYBODY: Final = "local"


class PageIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """One page's.

    Attributes:
        identity: Whose topics it has.
        broker: How to connect as that.
    """

    identity: Identity
    broker: BrokerSettings


class PageIdentities:
    """Knows who pages are to the broker; no page gets the dispatcher's own identity.

    Args:
        broker: The dispatcher's.
        root: Of the topics.
    """

    def __init__(self, broker: BrokerSettings, settings: PageSettings, root: str) -> None:
        self._dispatcher = broker
        self._named = settings.brokers()
        self._topics = Topics(root)

    def of(self, role: Role, user: str | None) -> PageIdentity | None:
        """Return who a page is; None: the broker asks for names, and this role has none.

        A broker that asks nobody sees each user's pages under the user's name, one that does sees
        all pages of a role as one.
        """
        named = self._named.get(role)
        if named is not None and named.user is not None:
            return PageIdentity(identity=Identity(role=role, id=named.user), broker=named)
        if self._dispatcher.is_anonymous:
            identity = Identity(role=role, id=page_id(user or _ANYBODY))
            return PageIdentity(identity=identity, broker=self._dispatcher)
        return None

    def grants(self, identity: Identity) -> tuple[Grant, ...]:
        """Return what its pages may say and hear, whatever the broker would let them."""
        return grants_of(self._topics, identity)

    def topics(self, identity: Identity) -> dict[str, str]:
        """Return where a page asks the dispatcher, and where it is answered."""
        channels = {"asks": REQUESTS[identity.role], "hears": REPLIES[identity.role]}
        root = f"{self._topics.root}/"
        return {
            name: self._topics.name(channel, identity.id).removeprefix(root)
            for name, channel in channels.items()
        }

    def check(self, users: Iterable[User]) -> None:
        """Raise ConfigError where somebody could log in and would see nothing."""
        for user in users:
            if self.of(user.role, user.name) is None:
                raise ConfigError(
                    f"pages of {user.name} cannot come to the broker: it asks for names, and "
                    f"[gateway.page.{user.role}] gives the role {user.role} none",
                    code="no_page_identity",
                    hint=f"`fleet enroll {user.role} page-{user.role} --out keys`, and name its "
                    f"url, username and tls in [gateway.page.{user.role}]",
                )
