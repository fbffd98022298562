"""Secrets lie in files of their own: a line that nobody else may read."""

from __future__ import annotations

from pathlib import Path

from fleet_protocol.errors import ConfigError, cause_of
from fleet_protocol.settings import BrokerSettings


def read_secret(file: str, setting: str) -> str:
    """Return the first line of a file; `setting` names it to people.

    Raises:
        ConfigError: It cannot be read, or is empty.
    """
    try:
        lines = Path(file).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{setting} {file} cannot be read: {cause_of(error)}",
            hint="correct the path, or the rights of the file",
        ) from error
    if not lines or not lines[0].strip():
        raise ConfigError(f"{setting} {file} is empty", hint="put the password on its first line")
    return lines[0].strip()


def broker_password(broker: BrokerSettings) -> str | None:
    """Return the password, from its file if there is one.

    Raises:
        ConfigError: The file cannot be read.
    """
    if broker.password_file is None:
        return broker.secret
    return read_secret(broker.password_file, "broker.password_file")
