"""A data folder: everything a fleet on this machine writes, and how to reach it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec

from fleet_client import ConnectError
from fleet_protocol.errors import ConfigError
from fleet_protocol.settings import BrokerSettings

CONTEXT_NAME = "context.json"


class FleetContext(msgspec.Struct, frozen=True, kw_only=True):
    """`context.json`: written by `fleet up`, read by every other command.

    Attributes:
        broker: How to reach it.
        url_v3: Where MQTT 3.1.1 is spoken, if that is another port.
        kind: `embedded`, `mosquitto`, or `external` when `fleet up` did not start it.
        gateway: Where the dispatcher answers over HTTP; None: it does not.
        pid: Of the `fleet up` that wrote it.
        ports: Free ports that were found once and are used again, by what listens there.
    """

    format: int = 1
    broker: BrokerSettings
    url_v3: str | None = None
    kind: str = "embedded"
    gateway: str | None = None
    pid: int = 0
    ports: dict[str, Annotated[int, msgspec.Meta(ge=1, le=65_535)]] = msgspec.field(
        default_factory=dict
    )


class DataFolder:
    """The paths below one data folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()

    def __str__(self) -> str:
        return str(self.path)

    @property
    def lock(self) -> Path:
        """Held by the `fleet up` that runs here."""
        return self.path / "up.lock"

    @property
    def logs(self) -> Path:
        """One file a process."""
        return self.path / "logs"

    @property
    def broker(self) -> Path:
        """What the broker writes."""
        return self.path / "broker"

    @property
    def dispatcher(self) -> Path:
        """What the dispatcher writes."""
        return self.path / "dispatcher"

    def worker(self, worker: str) -> Path:
        """What a worker writes."""
        return self.path / "workers" / worker

    def make(self) -> None:
        """Create the folders, readable by their owner alone: prompts lie in them.

        Raises:
            ConfigError: They cannot be made.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.logs, self.broker, self.dispatcher):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"data folder {self}: {error.strerror}", hint="name another with --data DIR"
            ) from error

    def read(self) -> FleetContext | None:
        """Return what is known of the fleet here; None if there never was one.

        Raises:
            ConfigError: The file is damaged.
        """
        path = self.path / CONTEXT_NAME
        try:
            return msgspec.json.decode(path.read_bytes(), type=FleetContext)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(
                f"{path}: {error}", hint="remove the file and run `fleet up` again"
            ) from error

    def context(self) -> FleetContext:
        """Return how to reach the fleet here.

        Raises:
            ConnectError: There never was one.
        """
        context = self.read()
        if context is None:
            raise ConnectError(
                f"no fleet was ever started in {self}",
                hint="start one with `fleet up`, or name a broker with --broker mqtt://HOST:PORT",
            )
        return context

    def write(self, context: FleetContext) -> None:
        """Save how to reach the fleet, in one step: a reader sees the old or the new."""
        path = self.path / CONTEXT_NAME
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        # It may hold the password of an external broker.
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(context), indent=2))
        fresh.replace(path)
