"""What a device without any code of ours would type: Mosquitto's own tools, in MQTT 3.1.1."""

from __future__ import annotations

from fleet_cli.context import FleetContext
from fleet_protocol.settings import BrokerSettings

QUESTION = "What is the capital of France?"
"""One that a board answers itself: who tries this first may have no cloud."""


def device_commands(context: FleetContext) -> str:
    """Return two lines to type; none for a broker that asks who we are, or speaks TLS."""
    broker = context.broker
    if broker.uses_tls or not broker.is_anonymous:
        return ""
    at = BrokerSettings(url=context.url_v3 or broker.url)
    where, topic = f"-h {at.host} -p {at.port}", f"{broker.root}/dev/kitchen"
    return (
        f"  mosquitto_sub {where} -t {topic}/answer &\n"
        f'  mosquitto_pub {where} -t {topic}/ask -q 1 -m "{QUESTION}"\n'
    )
