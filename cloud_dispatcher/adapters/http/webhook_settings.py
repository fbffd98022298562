"""Whether results are told by webhooks, and where they may go."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated

import msgspec


class WebhookSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Calls to a tenant's own server when a job ends.

    Attributes:
        secret_file: Its first line makes the secrets that calls are signed with, a tenant's each.
            None: there are no webhooks.
        allow: Networks that calls may go to besides the internet, such as 10.1.0.0/16; to these
            `http` may be spoken, too.
        ca_file: PEM of the authority that signed the servers' certificates; None: the system's.
        max_waiting: Most calls that may be owed at once; beyond it jobs with one are refused.
    """

    secret_file: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    allow: tuple[str, ...] = ()
    ca_file: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    max_waiting: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000

    def __post_init__(self) -> None:
        for network in self.allow:
            ip_network(network)
