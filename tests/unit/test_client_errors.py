"""What keeps a client from its broker, as a person reads it."""

import ssl

import pytest

from fleet_client.errors import not_reached
from fleet_protocol.settings import BrokerSettings

BROKER = BrokerSettings(url="mqtts://ann:secret@broker.lan:8883")


def untrusted() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate in certificate chain"
    return error


@pytest.mark.parametrize(
    ("error", "words", "hint"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "8883: Connection refused", "fleet up"),
        (untrusted(), "is not trusted: self-signed certificate", "--ca-file"),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "handshake", "mqtt://"),
        (ValueError("no such host"), "8883: no such host", "fleet up"),
    ],
)
def test_each_cause_has_its_words_and_its_next_step(
    error: Exception, words: str, hint: str
) -> None:
    told = not_reached(BROKER, error)
    assert told.code == "cannot_connect"
    assert words in str(told)
    assert hint in told.hint
    assert "secret" not in str(told)
    assert "Errno" not in str(told)
