"""A connection over paho-mqtt that heals itself, in paho's own network thread.

What paho leaves to its user is done here: it does not resubscribe (so we subscribe on every
connection), an exception in a callback kills its thread (so none leaves one), and it leaves Nagle's
algorithm on, which costs 40 ms a round trip.
"""

from __future__ import annotations

import functools
import logging
import secrets
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from fleet_client.credentials import password_of, tls_context
from fleet_client.errors import ConnectError, DeniedError, not_reached
from fleet_client.latency import acknowledge_at_once, send_at_once
from fleet_protocol.errors import FleetError
from fleet_protocol.settings import BrokerSettings

_log = logging.getLogger("fleet_client")
_F = TypeVar("_F", bound=Callable[..., None])
# CONNACK codes that name our credentials: bad user name or password, not authorised.
_DENIALS = frozenset({"Bad user name or password", "Not authorized", "Bad authentication method"})


class LinkListener(Protocol):
    """Who uses the link. Called in the network thread: must not block."""

    def message_arrived(self, topic: str, payload: bytes) -> None:
        """A message came."""
        ...

    def link_restored(self) -> None:
        """Connected and subscribed, for the first time or again."""
        ...

    def publish_confirmed(self, token: object) -> None:
        """The broker has the publication made with this token."""
        ...

    def publish_denied(self, token: object) -> None:
        """The broker refused the publication made with this token (MQTT 5 only)."""
        ...


class LinkOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to connect.

    Attributes:
        client_id: MQTT client id; two connections with the same one push each other off.
        filters: Subscribed on each connection; a denial of one is fatal.
        optional_filters: Subscribed too; a denial of one is ignored.
        uses_mqtt5: False speaks 3.1.1.
        connect_timeout_s: For the first connection, the broker's greeting included.
    """

    client_id: str
    filters: tuple[str, ...]
    optional_filters: tuple[str, ...] = ()
    uses_mqtt5: bool = True
    connect_timeout_s: float = 10.0


def _contained(callback: _F) -> _F:
    """Keep a callback's exception from killing paho's network thread."""

    @functools.wraps(callback)
    def run(*args: Any) -> None:
        try:
            callback(*args)
        except Exception:  # noqa: BLE001  # whatever it was: paho's thread must live on
            _log.exception("link.callback_failed")

    return run  # type: ignore[return-value]  # wraps keeps the signature


class PahoLink:
    """A connection to the broker; `open` and `close` it once each."""

    def __init__(
        self, broker: BrokerSettings, listener: LinkListener, options: LinkOptions
    ) -> None:
        self._broker = broker
        self._listener = listener
        self._options = options
        self._ready = threading.Event()
        self._failure: FleetError | None = None
        self._tokens_lock = threading.Lock()
        self._tokens: dict[int, object] = {}
        self._early: dict[int, bool] = {}
        self._client = self._build()

    @property
    def is_connected(self) -> bool:
        """Whether the link is up and subscribed now."""
        return self._ready.is_set() and self._client.is_connected()

    def open(self) -> None:
        """Connect and subscribe; on return both are done.

        Raises:
            ConnectError: Nobody answers there, or not as a broker does.
            DeniedError: The broker refused us or our subscriptions.
        """
        where = self._broker.place
        try:
            self._client.connect(
                self._broker.host, self._broker.port, keepalive=self._broker.keepalive_s
            )
        except (OSError, ValueError) as error:
            self._client._reset_sockets()  # noqa: SLF001  # see `close`
            raise not_reached(self._broker, error) from error
        self._client.loop_start()
        heard = self._ready.wait(self._options.connect_timeout_s)
        if self._failure is not None or not heard:
            self.close()
            raise self._failure or ConnectError(
                f"{where} takes connections but did not greet as an MQTT broker within "
                f"{self._options.connect_timeout_s:g} s",
                hint="name the port for MQTT, not the one for HTTP; a TLS port wants mqtts://",
            )

    def close(self) -> None:
        """Disconnect; no callback runs after the return."""
        self._client.disconnect()
        self._client.loop_stop()
        # paho leaves its wake-up sockets to the garbage collector, which complains about them.
        self._client._reset_sockets()  # noqa: SLF001  # there is no public way

    def publish(self, topic: str, payload: bytes, *, token: object = None) -> paho.MQTTMessageInfo:
        """Publish at QoS 1. Never call it with a lock held that a listener's method takes."""
        info = self._client.publish(topic, payload, qos=1)
        with self._tokens_lock:
            early = self._early.pop(info.mid, None)
            if early is None:
                self._tokens[info.mid] = token
        if early is not None:
            self._tell_outcome(token, is_denied=early)
        return info

    def _build(self) -> paho.Client:
        five = self._options.uses_mqtt5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._options.client_id,
            clean_session=None if five else True,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
        )
        client.connect_timeout = self._options.connect_timeout_s
        client.reconnect_delay_set(min_delay=1, max_delay=20 + secrets.randbelow(10))
        if self._broker.user is not None:
            client.username_pw_set(self._broker.user, password_of(self._broker))
        context = tls_context(self._broker)
        if context is not None:
            client.tls_set_context(context)
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return client

    @_contained
    def _on_socket_open(self, _client: paho.Client, _data: object, link: Any) -> None:
        send_at_once(link)

    @_contained
    def _on_connect(
        self, client: paho.Client, _data: object, _flags: object, reason: ReasonCode, _p: object
    ) -> None:
        if reason.is_failure:
            self._fail(_connect_refused(reason, self._broker.user))
            return
        wanted = (*self._options.filters, *self._options.optional_filters)
        if self._options.uses_mqtt5:
            client.subscribe([(f, SubscribeOptions(qos=1)) for f in wanted])
        else:
            client.subscribe([(f, 1) for f in wanted])

    @_contained
    def _on_subscribe(
        self, _c: paho.Client, _data: object, _mid: int, reasons: list[ReasonCode], _p: object
    ) -> None:
        for topic, reason in zip(self._options.filters, reasons, strict=False):
            if reason.is_failure:
                self._fail(_subscription_refused(topic, reason))
                return
        self._failure = None
        self._ready.set()
        self._listener.link_restored()

    @_contained
    def _on_disconnect(
        self, _c: paho.Client, _data: object, _flags: object, reason: ReasonCode, _p: object
    ) -> None:
        if self._failure is None:
            self._ready.clear()
        _log.debug("link.lost reason=%s", reason)

    @_contained
    def _on_message(self, client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        acknowledge_at_once(client.socket())
        self._listener.message_arrived(message.topic, bytes(message.payload))

    @_contained
    def _on_publish(
        self, client: paho.Client, _data: object, mid: int, reason: ReasonCode, _p: object
    ) -> None:
        acknowledge_at_once(client.socket())
        with self._tokens_lock:
            known = mid in self._tokens
            token = self._tokens.pop(mid, None)
            if not known:
                # The answer overtook `publish`, which will find it here.
                self._early[mid] = reason.is_failure
        if known:
            self._tell_outcome(token, is_denied=reason.is_failure)

    def _tell_outcome(self, token: object, *, is_denied: bool) -> None:
        if is_denied:
            self._listener.publish_denied(token)
        else:
            self._listener.publish_confirmed(token)

    def _fail(self, error: FleetError) -> None:
        self._failure = error
        self._ready.set()


def _connect_refused(reason: ReasonCode, user: str | None) -> FleetError:
    if str(reason) in _DENIALS:
        return DeniedError(
            f"the broker refused {user or 'an anonymous client'}: {reason}",
            hint="check --username and --password-file",
        )
    return ConnectError(f"the broker refused the connection: {reason}", hint="try again later")


def _subscription_refused(topic: str, reason: ReasonCode) -> FleetError:
    return DeniedError(
        f"the broker does not let us read {topic}: {reason}",
        hint="the device id must be the MQTT user name, or the certificate's CN",
    )
