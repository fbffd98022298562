"""The protocol as an AsyncAPI document, made from the topic catalogue and the messages. Pure.

It speaks for the dispatcher, as the specification wants somebody to be spoken for: it receives what
others send it, and sends what others hear. Who else is at the ends of a channel is said beside it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from fleet_protocol import __version__
from fleet_protocol.messages import ID_PATTERN
from fleet_protocol.topics import CATALOGUE, DEFAULT_ROOT, Channel, Role

VERSION: Final = "3.0.0"
_SCHEMAS: Final = "#/components/schemas/{name}"
_PLAIN: Final = "PlainWords"
_ABOUT: Final = (
    "What travels between devices, workers, the dispatcher and whoever looks after the fleet. "
    "Unknown fields are ignored, a missing or wrong one is rejected with a code."
)


def document(root: str = DEFAULT_ROOT) -> dict[str, Any]:
    """Return the document for the topics below a root."""
    return {
        "asyncapi": VERSION,
        "info": {
            "title": "edgefleet over MQTT",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {channel.name: _channel(channel, root) for channel in CATALOGUE},
        "operations": {
            f"{action}-{channel.name}": _operation(channel, action)
            for channel in CATALOGUE
            for action in _actions(channel)
        },
        "components": {"messages": _messages(), "schemas": schemas(_kinds(CATALOGUE))},
    }


def schemas(kinds: Iterable[type]) -> dict[str, Any]:
    """Return the JSON schemas of structs and of all that is in them, by name."""
    _, found = msgspec.json.schema_components(kinds, ref_template=_SCHEMAS)
    for schema in found.values():
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    return found


def _channel(channel: Channel, root: str) -> dict[str, Any]:
    ids = re.findall(r"{(\w+)}", channel.template)
    receivers = ", ".join(channel.receivers)
    words = {name: {"$ref": f"#/components/messages/{name}"} for name in _names(channel)}
    return {
        "address": f"{root}/{channel.template}",
        "description": f"From {channel.sender} to {receivers}; {channel.max_bytes} bytes at most.",
        "parameters": {name: {"description": f"An id: {ID_PATTERN}"} for name in ids},
        "messages": words,
    }


def _actions(channel: Channel) -> list[str]:
    """Return what the dispatcher does with a channel; nothing with the authority's."""
    if channel.sender is Role.DISPATCHER:
        return ["send"]
    return ["receive"] if Role.DISPATCHER in channel.receivers else []


def _operation(channel: Channel, action: str) -> dict[str, Any]:
    where = f"#/channels/{channel.name}"
    return {
        "action": action,
        "channel": {"$ref": where},
        "messages": [{"$ref": f"{where}/messages/{name}"} for name in _names(channel)],
        "bindings": {
            "mqtt": {"qos": channel.qos, "retain": channel.retain, "bindingVersion": "0.2.0"}
        },
    }


def _messages() -> dict[str, Any]:
    found: dict[str, Any] = {
        kind.__name__: {
            "title": kind.__name__,
            "contentType": "application/json",
            "payload": {"$ref": _SCHEMAS.format(name=kind.__name__)},
        }
        for kind in _kinds(CATALOGUE)
    }
    found[_PLAIN] = {
        "title": "Plain words",
        "contentType": "text/plain",
        "payload": {"type": "string"},
    }
    return found


def _names(channel: Channel) -> list[str]:
    plain = [_PLAIN] if channel.text else []
    return [kind.__name__ for kind in (channel.message, *channel.also)] + plain


def _kinds(channels: Iterable[Channel]) -> list[type]:
    kinds = {kind for channel in channels for kind in (channel.message, *channel.also)}
    return sorted(kinds, key=lambda kind: kind.__name__)
