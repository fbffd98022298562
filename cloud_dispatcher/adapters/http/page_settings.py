"""To whom the page is shown, and as whom it comes to the broker."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cloud_dispatcher.adapters.http.addresses import origin_of
from fleet_protocol.settings import BrokerSettings
from fleet_protocol.topics import Role

_Hours = Annotated[int, msgspec.Meta(ge=1, le=8_760)]


class PageSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The dashboard.

    Attributes:
        users_file: Who may log in: see `cloud-dispatcher users`. None: nobody needs to, and the
            page is for this machine alone.
        url: As people type it, where a proxy stands before the gateway. With `https` the cookie
            of a login goes over TLS only.
        proxies: Addresses whose `X-Forwarded-For` is believed: it says who guesses passwords.
        idle_h: A login that nobody uses ends after so many hours; an open page uses it.
        login_h: Every login ends after so many hours.
        viewer: As whom pages of viewers come to a broker that asks for names: `username` is the
            identity, `tls` its certificate.
        operator: The same, for operators.
        admin: The same, for admins.
    """

    users_file: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    url: str | None = None
    proxies: tuple[str, ...] = ()
    idle_h: _Hours = 12
    login_h: _Hours = 168
    viewer: BrokerSettings | None = None
    operator: BrokerSettings | None = None
    admin: BrokerSettings | None = None

    def __post_init__(self) -> None:
        if self.url is not None:
            origin_of(self.url)
            if self.users_file is None:
                raise ValueError("`page.url` without `page.users_file`: anybody would be let in")
        for role, broker in self.brokers().items():
            if broker.user is None:
                raise ValueError(f"`page.{role}` needs a `username`: the identity of its topics")

    def brokers(self) -> dict[Role, BrokerSettings]:
        """Return as whom the pages of each role come, where it was said."""
        named = {Role.VIEWER: self.viewer, Role.OPERATOR: self.operator, Role.ADMIN: self.admin}
        return {role: broker for role, broker in named.items() if broker is not None}
