"""The first and last words with a broker: what we say, and what its answers mean for us.

An answer that a later try can change becomes RetryableError, one that it cannot RejectedError.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Final

import mqtt5

from fleet_protocol.bus import Publication, Session
from fleet_protocol.errors import BusClosedError, ConfigError, RejectedError, RetryableError
from fleet_protocol.settings import BrokerSettings

CLOCK_BEHIND: Final = "clock_behind"
GOODBYE: Final = mqtt5.DisconnectPacket().write()

# The codec's reason codes look like IntEnums but neither hash nor compare: hence `.value`.
_FAILURE: Final = 0x80
_SUBSCRIBE_ID: Final = 1
_RUMQTTD_TOPIC_ALIASES: Final = 4_096
_X509_NOT_YET_VALID: Final = 9
_X509_EXPIRED: Final = 10
_SIGN_IN_HINT: Final = "check the user name, the password and the broker's access list"
_LASTING: Final = {
    mqtt5.ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD.value: "not_authorized",
    mqtt5.ConnAckReasonCode.NOT_AUTHORIZED.value: "not_authorized",
    mqtt5.ConnAckReasonCode.BAD_AUTHENTICATION_METHOD.value: "not_authorized",
    mqtt5.ConnAckReasonCode.BANNED.value: "not_authorized",
    mqtt5.ConnAckReasonCode.CLIENT_ID_NOT_VALID.value: "client_id_refused",
    mqtt5.ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION.value: "unsupported_version",
}
_PASSING_SUBACKS: Final = frozenset(
    {
        mqtt5.SubAckReasonCode.UNSPECIFIED_ERROR.value,
        mqtt5.SubAckReasonCode.IMPLEMENTATION_SPECIFIC_ERROR.value,
        mqtt5.SubAckReasonCode.PACKET_ID_IN_USE.value,
        mqtt5.SubAckReasonCode.QUOTA_EXCEEDED.value,
    }
)


def connect(
    session: Session,
    *,
    user: str | None,
    password: str | None,
    keepalive_s: int,
    receive_maximum: int,
    max_packet_bytes: int,
) -> bytes:
    """Return the CONNECT packet."""
    return mqtt5.ConnectPacket(
        session.client_id,
        username=user,
        password=None if password is None else password.encode(),
        clean_start=session.expiry_s == 0,
        will=None if session.will is None else _will(session.will),
        keep_alive=keepalive_s,
        session_expiry_interval=session.expiry_s,
        receive_max=receive_maximum,
        max_packet_size=max_packet_bytes,
    ).write()


def _will(publication: Publication) -> mqtt5.Will:
    """Leave out what `carries_properties` is about: we do not know the broker yet."""
    return mqtt5.Will(
        publication.topic,
        payload=publication.payload,
        qos=mqtt5.QoS.AT_LEAST_ONCE if publication.qos else mqtt5.QoS.AT_MOST_ONCE,
        retain=publication.retain,
    )


def subscribe(filters: Iterable[str], packet_id: int = _SUBSCRIBE_ID) -> bytes:
    """Return the SUBSCRIBE packet for these filters, at QoS 1.

    `retain` on a delivery then tells a stored message from a live one, as in MQTT 3.1.1.
    """
    wanted = [
        mqtt5.TopicFilter(pattern, max_qos=mqtt5.QoS.AT_LEAST_ONCE, retain_as_published=False)
        for pattern in filters
    ]
    return mqtt5.SubscribePacket(packet_id, wanted).write()


def unsubscribe(filters: Iterable[str], packet_id: int) -> bytes:
    """Return the UNSUBSCRIBE packet for these filters."""
    return mqtt5.UnsubscribePacket(packet_id, list(filters)).write()


def judge_connack(packet: mqtt5.Packet) -> mqtt5.ConnAckPacket:
    """Return the broker's acceptance.

    Raises:
        RejectedError: It will say the same next time.
        RetryableError: It may not.
    """
    if not isinstance(packet, mqtt5.ConnAckPacket):
        raise RetryableError(f"the broker answered CONNECT with {type(packet).__name__}")
    reason = packet.reason_code
    if reason.value < _FAILURE:
        return packet
    said = _words(reason.name, packet.reason_str)
    code = _LASTING.get(reason.value)
    if code is None:
        raise RetryableError(f"the broker does not take us in now: {said}", code="broker_refused")
    raise RejectedError(f"the broker refused to let us in: {said}", code=code, hint=_SIGN_IN_HINT)


def carries_properties(connack: mqtt5.ConnAckPacket) -> bool:
    """Tell whether properties on our publications do no harm with this broker.

    iotcore (rumqttd) puts out a 3.1.1 subscriber whom a publication with any property would reach.
    It says nothing of itself, but no other broker offers this number of topic aliases; a mistake
    costs no more than a content type.
    """
    return connack.topic_alias_max != _RUMQTTD_TOPIC_ALIASES


def judge_suback(packet: mqtt5.Packet, filters: tuple[str, ...]) -> None:
    """Check that every subscription was granted; raises as `judge_connack` does."""
    if not isinstance(packet, mqtt5.SubAckPacket):
        raise RetryableError(f"the broker answered SUBSCRIBE with {type(packet).__name__}")
    for pattern, reason in zip(filters, packet.reason_codes, strict=False):
        if reason.value < _FAILURE:
            continue
        text = f"the broker refused the subscription {pattern}: {_words(reason.name, None)}"
        if reason.value in _PASSING_SUBACKS:
            raise RetryableError(text, code="subscription_refused")
        is_denied = reason == mqtt5.SubAckReasonCode.NOT_AUTHORIZED
        raise RejectedError(
            text,
            code="not_authorized" if is_denied else "subscription_refused",
            hint=_SIGN_IN_HINT if is_denied else "use a broker that offers this kind of filter",
        )


def judge_disconnect(packet: mqtt5.DisconnectPacket, client_id: str) -> BusClosedError | str:
    """Return the error that ends the bus, or, where a reconnect may help, the reason."""
    said = _words(packet.reason_code.name, packet.reason_str)
    if packet.reason_code == mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER:
        return BusClosedError(
            f"another client connected as {client_id}",
            code="session_taken_over",
            hint="two programs share one identity: stop one, or give it its own",
        )
    if packet.reason_code == mqtt5.DisconnectReasonCode.NOT_AUTHORIZED:
        return BusClosedError(
            f"the broker put us out: {said}", code="not_authorized", hint=_SIGN_IN_HINT
        )
    return f"the broker put us out: {said}"


def suspect_take_over(client_id: str, losses: int) -> BusClosedError:
    """Return what ends a bus that is put out, without a word, as soon as it is in.

    MQTT 5 has a word for it, but Mosquitto before 2.0.16 and iotcore do not say it, and two
    programs with one identity would push each other off for ever.
    """
    return BusClosedError(
        f"the broker closed the connection of {client_id} {losses} times in a row right after "
        "taking it in: most likely another client uses the same name",
        code="session_taken_over",
        hint="stop the other program or give it its own identity; else read the broker's log",
    )


def explain(error: OSError, broker: BrokerSettings) -> RetryableError | ConfigError:
    """Translate what the operating system or TLS said."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _untrusted(error, broker)
    if isinstance(error, ssl.SSLError):
        return ConfigError(
            f"no TLS with {broker.host}:{broker.port}: {error.reason or error}",
            code="tls_failed",
            hint="check that the port speaks TLS 1.2 or later, and our certificate and key",
        )
    return RetryableError(error.strerror or str(error) or type(error).__name__)


def _untrusted(
    error: ssl.SSLCertVerificationError, broker: BrokerSettings
) -> RetryableError | ConfigError:
    """A board without a battery for its clock starts in the past: that passes by itself."""
    whose = f"the certificate of {broker.host}:{broker.port}"
    if error.verify_code == _X509_NOT_YET_VALID:
        return RetryableError(
            f"{whose} does not hold yet, by this machine's clock",
            code=CLOCK_BEHIND,
            hint="set this machine's clock (timedatectl), and have it set over the network",
        )
    hint = "set tls.ca_file to the authority that signed it, and use the name it is for"
    if error.verify_code == _X509_EXPIRED:
        hint = "renew it with `fleet pki broker`; or this machine's clock is ahead: set it"
    return ConfigError(
        f"{whose} is not trusted: {error.verify_message}", code="certificate_untrusted", hint=hint
    )


def unreachable(broker: BrokerSettings, error: Exception) -> RetryableError:
    """Return what entering the bus raises when its time is over."""
    if isinstance(error, RetryableError) and error.code == CLOCK_BEHIND:
        return error
    return RetryableError(
        f"no MQTT 5 broker at {broker.host}:{broker.port}: {error}",
        code="broker_unreachable",
        hint="start the broker, or check its host, port and the firewall between",
    )


def tls_context(broker: BrokerSettings) -> ssl.SSLContext | None:
    """Return how to encrypt, or None where the URL says `mqtt://` without TLS settings.

    Raises:
        ConfigError: A file is missing or is not PEM.
    """
    if not broker.uses_tls:
        return None
    tls = broker.tls
    try:
        context = ssl.create_default_context(cafile=tls.ca_file if tls else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if tls is not None and tls.cert_file is not None:
            context.load_cert_chain(tls.cert_file, tls.key_file)
    except OSError as error:
        raise ConfigError(
            f"the TLS files cannot be used: {error}",
            code="tls_files",
            hint="check tls.ca_file, tls.cert_file and tls.key_file",
        ) from error
    return context


def _words(name: str, reason: str | None) -> str:
    words = name.lower().replace("_", " ")
    return f"{words} ({reason})" if reason else words
