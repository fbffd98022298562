"""What the gateway works with: the dispatcher, seen from its own process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from cloud_dispatcher.adapters.http.keys import KeyRing
from cloud_dispatcher.adapters.http.login_file import LoginFile
from cloud_dispatcher.adapters.http.webhook_courier import WebhookCourier
from cloud_dispatcher.history import History
from cloud_dispatcher.local_devices import LocalDevices
from cloud_dispatcher.metrics import Family
from cloud_dispatcher.ports import JobStore
from fleet_protocol.messages import PresenceStatus, WorkerId, WorkerView
from fleet_protocol.settings import BrokerSettings
from fleet_protocol.topics import DEFAULT_ROOT


class Inside(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway works with.

    Attributes:
        local: Submits and listens.
        store: Open; only read.
        is_ready: Whether the dispatcher serves.
        has_cloud: Whether a job may be escalated at all.
        workers: All of them, with all that is known of each: a moment's work where there are many.
        roll: Who is there, and whether: cheap.
        metrics: What is counted, and how things stand.
        clock: UTC epoch milliseconds.
        history: The last day's figures.
        broker: The dispatcher's own, for pages to be connected to as somebody else; None: there is
            no dashboard.
        webhooks: Tells tenants' servers of results; None: nobody is called.
        keys: With which applications ask; None: no key lets anybody in.
        logins: Where logins outlive the dispatcher; None: they end with it.
        audit: Takes what belongs into the audit log: what it was, and about whom.
        root: Topic root.
    """

    local: LocalDevices
    store: JobStore
    is_ready: Callable[[], bool]
    has_cloud: Callable[[], bool]
    workers: Callable[[], Sequence[WorkerView]]
    roll: Callable[[], Sequence[tuple[WorkerId, PresenceStatus]]]
    metrics: Callable[[], list[Family]]
    clock: Callable[[], int]
    history: History
    broker: BrokerSettings | None = None
    webhooks: WebhookCourier | None = None
    keys: KeyRing | None = None
    logins: LoginFile | None = None
    audit: Callable[[str, dict[str, Any]], None] = lambda _what, _about: None
    root: str = DEFAULT_ROOT

    def models(self) -> list[str]:
        """Return the names of the models that boards have which are there, sorted."""
        there = (w.info for w in self.workers() if w.status is not PresenceStatus.OFFLINE)
        return sorted({model.name for info in there if info is not None for model in info.models})
