"""Where the gateway listens, and to whom."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cloud_dispatcher.adapters.http.addresses import is_loopback
from cloud_dispatcher.adapters.http.page_settings import PageSettings
from cloud_dispatcher.adapters.http.webhook_settings import WebhookSettings


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The dispatcher over HTTP.

    Attributes:
        port: Where it listens; None: there is no gateway.
        host: On which address. Beyond loopback only with a `keys_file` or `page.users_file`.
        keys_file: Who may ask: see `cloud-dispatcher keys`. None: whoever is logged in, or where
            there is no login whoever is on this machine.
        page: The dashboard.
        webhooks: Calls to tenants' own servers when their jobs are over.
        max_open: Most requests that wait for answers at once; beyond it they are refused.
        timeout_s: Most seconds a request waits for its answer.
        drain_s: On a stop, requests under way get so long to end by themselves.
        worker_metrics: `/metrics` also tells of each worker: eight series for each.
    """

    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] | None = None
    host: Annotated[str, msgspec.Meta(min_length=1)] = "127.0.0.1"
    keys_file: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    page: PageSettings = PageSettings()
    webhooks: WebhookSettings = WebhookSettings()
    max_open: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1_000
    timeout_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = 600
    drain_s: Annotated[int, msgspec.Meta(ge=0, le=600)] = 5
    worker_metrics: bool = False

    def __post_init__(self) -> None:
        if is_loopback(self.host):
            return
        if self.keys_file is None and self.page.users_file is None:
            raise ValueError(
                "without `keys_file` the gateway answers anybody: listen on 127.0.0.1, or make a "
                "key with `cloud-dispatcher keys add`"
            )
        if self.page.users_file is not None and self.page.url is None:
            raise ValueError("`page.url` must say by which address people come: https://HOST")
