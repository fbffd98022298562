"""One client that publishes and listens, to see what a broker lets it: nothing of what it means."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Final, Self

from fleet_client.errors import ConnectError
from fleet_client.link import LinkOptions, PahoLink
from fleet_protocol.settings import BrokerSettings

_PATIENCE_S: Final = 30.0


class AccessProbe:
    """A connection that remembers what it heard.

    Attributes:
        reconnects: How often the broker was lost and found again.

    Args:
        broker: Where, and as whom.
        filters: What it listens to.
        uses_mqtt5: False speaks 3.1.1.
    """

    def __init__(
        self, broker: BrokerSettings, filters: tuple[str, ...], *, uses_mqtt5: bool = True
    ) -> None:
        self.reconnects = -1
        self._settled = threading.Condition()
        self._heard: list[tuple[str, bytes]] = []
        self._answered: dict[object, bool] = {}
        name = f"{(broker.user or 'probe')[:27]}-{secrets.token_hex(4)}"
        self._link = PahoLink(
            broker,
            self,
            LinkOptions(
                client_id=name, filters=(), optional_filters=filters, uses_mqtt5=uses_mqtt5
            ),
        )

    def __enter__(self) -> Self:
        self._link.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self._link.close()

    @property
    def heard(self) -> set[tuple[str, bytes]]:
        """What was heard up to now and not asked for yet."""
        with self._settled:
            return set(self._heard)

    def say(self, topic: str, payload: bytes) -> bool:
        """Publish at QoS 1 and wait for the broker's answer; return False if it said no.

        With MQTT 3.1.1 a broker cannot say no: True then means nothing but that it answered.
        """
        token = object()
        self._link.publish(topic, payload, token=token)
        self._wait(lambda: token in self._answered, f"an answer to a publication on {topic}")
        return self._answered.pop(token)

    def heard_until(self, last: bytes) -> set[tuple[str, bytes]]:
        """Wait for a message with this payload; return all that came up to then, and forget it."""
        self._wait(lambda: any(payload == last for _, payload in self._heard), "the last message")
        with self._settled:
            heard, self._heard = self._heard, []
        return {(topic, payload) for topic, payload in heard if payload != last}

    def wait_until(self, is_met: Callable[[Sequence[tuple[str, bytes]]], bool]) -> None:
        """Wait until this is true of what was heard; it is asked again after each message."""
        self._wait(lambda: is_met(self._heard), "what was waited for")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        with self._settled:
            if not self._settled.wait_for(condition, _PATIENCE_S):
                raise ConnectError(f"the broker kept back {what} for {_PATIENCE_S:.0f} s")

    # ---------------------------------------------------------------- called in the network thread

    def message_arrived(self, topic: str, payload: bytes) -> None:
        """Remember it."""
        with self._settled:
            self._heard.append((topic, payload))
            self._settled.notify_all()

    def link_restored(self) -> None:
        """Count it; what is under way is sent again by the link."""
        self.reconnects += 1

    def publish_confirmed(self, token: object) -> None:
        """Remember that the broker has it."""
        self._answer(token, is_taken=True)

    def publish_denied(self, token: object) -> None:
        """Remember that the broker does not want it."""
        self._answer(token, is_taken=False)

    def _answer(self, token: object, *, is_taken: bool) -> None:
        with self._settled:
            self._answered[token] = is_taken
            self._settled.notify_all()
