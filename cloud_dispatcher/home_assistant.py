"""Workers and the fleet as devices of Home Assistant, by its MQTT discovery.

A retained description a worker names the topics on which the worker says how it is; Home Assistant
reads those by itself, so nothing else is published for it.

Source: https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from cloud_dispatcher.publisher import Publisher
from fleet_protocol import __version__, topics
from fleet_protocol.messages import PresenceStatus, WorkerId, WorkerView
from fleet_protocol.topics import Topics

_LOOK_EVERY_MS: Final = 5_000
_AT_ONCE: Final = 200
"""Descriptions told in one look: ten thousand would keep jobs waiting."""
_SILENT_S: Final = 30
"""After so long without a heartbeat its figures are unknown."""
_URL: Final = "https://github.com/edgefleet/edgefleet"
_FLEET: Final = "the-fleet"


class HomeAssistantSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Home Assistant's discovery.

    Attributes:
        enabled: False: nothing is told.
        prefix: Home Assistant's own `discovery_prefix`; empty: `ROOT/homeassistant`, which viewers
            may read. Another one needs a broker that lets the dispatcher write there.
    """

    enabled: bool = False
    prefix: Annotated[str, msgspec.Meta(pattern=r"^([^#+$/\x00][^#+\x00]*)?$(?!\n)")] = ""


class HomeAssistant:
    """Tells which workers there are, and clears those that are no more.

    Args:
        publisher: Tells.
        names: Of the topics that are described.
        prefix: Where descriptions belong; empty: below the root.
        roll: Who is there.
        view: All that is known of one; None: it is gone.
    """

    def __init__(
        self,
        publisher: Publisher,
        names: Topics,
        *,
        prefix: str,
        roll: Callable[[], Iterable[WorkerId]],
        view: Callable[[WorkerId], WorkerView | None],
    ) -> None:
        self._publisher = publisher
        self._names = names
        self._prefix = prefix
        self._roll = roll
        self._view = view
        self._told: dict[str, bytes] = {}
        self._look_at_ms = 0

    def announce(self) -> None:
        """Say all of it again: the broker may have forgotten it."""
        self._told.clear()
        self._look_at_ms = 0

    async def keep(self, now_ms: int) -> None:
        """Look, if it is time to."""
        if now_ms < self._look_at_ms:
            return
        self._look_at_ms = now_ms + _LOOK_EVERY_MS
        left = _AT_ONCE
        self._tell(_FLEET, fleet_device(self._names))
        there = {_FLEET}
        for worker in self._roll():
            there.add(worker)
            view = self._view(worker) if left else None
            if view is not None:
                left -= self._tell(worker, worker_device(view, self._names))
        for thing in self._told.keys() - there:
            self._publish(thing, b"")
            del self._told[thing]

    def _tell(self, thing: str, device: dict[str, Any]) -> bool:
        """Tell a description that is new; return whether it was."""
        payload = msgspec.json.encode(device)
        if self._told.get(thing) == payload:
            return False
        if self._publish(thing, payload):
            self._told[thing] = payload
        return True

    def _publish(self, thing: str, payload: bytes) -> bool:
        if self._prefix:  # There may be others' devices.
            topic = f"{self._prefix}/device/edgefleet-{thing}/config"
        else:
            topic = self._names.name(topics.HOME_ASSISTANT, thing)
        return self._publisher.retain(topic, payload)


def worker_device(view: WorkerView, names: Topics) -> dict[str, Any]:
    """Return a worker as Home Assistant wants it."""
    presence = names.name(topics.PRESENCE, view.worker)
    info = view.info
    owner = _owner(names, view.worker)
    device: dict[str, Any] = {"ids": [owner], "name": view.worker, "mf": "edgefleet"}
    if info is not None:
        known = {"mdl": info.board, "sw": info.software, "hw": info.cpu}
        device |= {name: text for name, text in known.items() if text}
    figures = _figures(owner, _OF_A_WORKER, names.name(topics.STATE, view.worker))
    status = _entity(owner, "status", "Status", presence, "value_json.status")
    status |= {"device_class": "enum", "options": [status.value for status in PresenceStatus]}
    return {
        "dev": device,
        "o": _ORIGIN,
        "cmps": {"status": status} | figures,
        "availability": [
            {
                "topic": presence,
                "value_template": "{{ 'offline' if value_json.status == 'offline' else 'online' }}",
            }
        ],
    }


def fleet_device(names: Topics) -> dict[str, Any]:
    """Return the fleet as a device: what its overview says."""
    dispatcher, owner = names.name(topics.DISPATCHER), _owner(names, _FLEET)
    return {
        "dev": {"ids": [owner], "name": "edgefleet", "mf": "edgefleet"},
        "o": _ORIGIN,
        "cmps": _figures(owner, _OF_THE_FLEET, names.name(topics.SUMMARY)),
        "availability": [{"topic": dispatcher, "value_template": "{{ value_json.status }}"}],
    }


_Row: TypeAlias = tuple[str, str, str, dict[str, str], str | None]
"""Name, title, template, what else Home Assistant wants, unit."""
_ORIGIN: Final = {"name": "edgefleet", "sw": __version__, "url": _URL}
_OF_A_WORKER: Final[tuple[_Row, ...]] = (
    ("temperature", "Temperature", "value_json.temp_c", {"device_class": "temperature"}, "°C"),
    ("cpu", "Processor", "value_json.cpu_pct", {}, "%"),
    ("memory", "Memory", "value_json.mem_pct", {}, "%"),
    ("jobs", "Jobs", "value_json.inflight", {}, "jobs"),
    ("speed", "Speed", "value_json.tok_s | default(0)", {}, "tokens/s"),
)
_OF_THE_FLEET: Final[tuple[_Row, ...]] = (
    ("workers", "Workers online", "value_json.workers.online | default(0)", {}, "workers"),
    ("queued", "Jobs waiting", "value_json.queued | default(0)", {}, "jobs"),
    ("jobs_per_s", "Jobs per second", "value_json.jobs_per_s | default(0)", {}, "jobs/s"),
    ("latency", "Answer time", "value_json.latency_ms.p50 | default(0)",
     {"device_class": "duration"}, "ms"),
    ("load", "Overload step", "value_json.load.step | default(0)", {}, None),
)  # fmt: skip


def _figures(owner: str, rows: Iterable[_Row], topic: str) -> dict[str, Any]:
    found = {}
    for name, title, template, extra, unit in rows:
        entity = _entity(owner, name, title, topic, template)
        entity |= {"state_class": "measurement", "expire_after": _SILENT_S, **extra}
        found[name] = entity if unit is None else entity | {"unit_of_measurement": unit}
    return found


def _owner(names: Topics, thing: str) -> str:
    """Return a name that no device of another fleet has."""
    return f"{names.root.replace('/', '_')}_{thing}"


def _entity(owner: str, name: str, title: str, topic: str, template: str) -> dict[str, Any]:
    return {
        "p": "sensor",
        "name": title,
        "unique_id": f"{owner}_{name}",
        "state_topic": topic,
        "value_template": f"{{{{ {template} }}}}",
    }
