"""What both MQTT libraries need of the broker settings."""

from __future__ import annotations

import ssl
from pathlib import Path

from fleet_protocol.errors import ConfigError
from fleet_protocol.settings import BrokerSettings


def broker_settings(broker: BrokerSettings | str) -> BrokerSettings:
    """Return settings for a URL; settings are returned as they are.

    Raises:
        ConfigError: The URL is none of a broker.
    """
    if isinstance(broker, BrokerSettings):
        return broker
    try:
        settings = BrokerSettings(url=broker)
        _ = settings.port
    except ValueError as error:
        raise ConfigError(
            f"broker {broker.rpartition('@')[2]!r} is not mqtt://HOST:PORT or mqtts://HOST:PORT",
            hint="give for example mqtt://127.0.0.1:1883",
        ) from error
    return settings


def password_of(broker: BrokerSettings) -> str | None:
    """Return the password, read from `password_file` where one is named.

    Raises:
        ConfigError: The file cannot be read.
    """
    if broker.password_file is None or broker.secret is not None:
        return broker.secret
    try:
        return Path(broker.password_file).read_text().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"password file {broker.password_file}: {error}", hint="name a readable text file"
        ) from error


def tls_context(broker: BrokerSettings) -> ssl.SSLContext | None:
    """Return the TLS context of an encrypted link, None for a plain one.

    Raises:
        ConfigError: A certificate or key file cannot be used.
    """
    if not broker.uses_tls:
        return None
    files = broker.tls
    try:
        context = ssl.create_default_context(cafile=files.ca_file if files else None)
        if files is not None and files.cert_file:
            context.load_cert_chain(files.cert_file, files.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"TLS files: {error}", hint="check ca_file, cert_file and key_file"
        ) from error
    return context
