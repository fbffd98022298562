"""What the service works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from cloud_dispatcher.cluster import ClusterSettings
from cloud_dispatcher.core.spending import Payer
from cloud_dispatcher.home_assistant import HomeAssistantSettings
from cloud_dispatcher.membership import ClusterStore
from cloud_dispatcher.ports import (
    AlertArchive,
    AnswerLibrary,
    CompletionProvider,
    JobStore,
    Observer,
)
from fleet_protocol import messages as m
from fleet_protocol.access import Identity
from fleet_protocol.bus import MessageBus
from fleet_protocol.topics import Topics

Clock: TypeAlias = Callable[[], int]
"""UTC epoch milliseconds that never step back: leases and deadlines hang on them."""


class Outside(msgspec.Struct, frozen=True, kw_only=True):
    """What the service works with.

    Attributes:
        bus: Not connected yet: the service enters it once it knows its jobs again.
        store: Open.
        epoch: Name of this run; workers report what they hold when they see a new one.
        observers: See every decision after it was carried out.
        library: The same that the engine asks.
        memory: How full the machine's memory is, 0..100; None where nobody can tell.
        alerts: What an earlier run kept of alerts, and this one will; None: they end with it.
        home_assistant: Whether workers are told as its devices.
        payers: What each API key may spend now, and the device in whose name it asks.
        inquired: Hears who asked for what that the engine has no part in, and with which code it
            was refused; empty if it was not.
        alive: Called after each turn: a service manager watches that they go on.
        shared: The store once more, where several dispatchers share it; None: there is only one.
        cluster: What this dispatcher is among them.
    """

    bus: MessageBus
    store: JobStore
    provider: CompletionProvider
    clock: Clock
    topics: Topics
    epoch: str
    observers: tuple[Observer, ...] = ()
    library: AnswerLibrary | None = None
    memory: Callable[[], float | None] = lambda: None
    alerts: AlertArchive | None = None
    home_assistant: HomeAssistantSettings = HomeAssistantSettings()
    payers: Callable[[], Sequence[tuple[m.DeviceId, Payer]]] = tuple
    inquired: Callable[[Identity, m.AdminRequest, str], None] = lambda _who, _request, _code: None
    alive: Callable[[], None] = lambda: None
    shared: ClusterStore | None = None
    cluster: ClusterSettings = ClusterSettings()
