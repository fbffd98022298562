"""The worker's settings: TOML and environment, read once, checked, passed on as a value."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import msgspec

from fleet_protocol.errors import ConfigError, cause_of
from fleet_protocol.folders import user_data_folder
from fleet_protocol.manifest import DEFAULT_MODEL
from fleet_protocol.messages import Id, WorkerId
from fleet_protocol.settings import BrokerSettings, parse_settings

PREFIX: Final = "EDGEFLEET_WORKER"
_ECHO_SLOTS: Final = 64
_ONNX_SLOTS: Final = 4
_Label = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class EngineName(StrEnum):
    """What answers: a model, or a stand-in that repeats the prompt."""

    ONNX = "onnx"
    ECHO = "echo"


class LogLevel(StrEnum):
    """Least severity that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything an operator can decide about a worker; see `example.toml`.

    Attributes:
        id: The worker's name and MQTT identity; None: the host's name.
        data: Folder of the spool and what else must survive; None: in the user's data folder.
        measurements: File of what was measured on this machine; None: in the data folder. Workers
            that share one measure one after the other, or not at all.
        model: Name of a built model, or the path of an artefact.
        model_key_file: Keys that open a sealed model, one a line: a credential of systemd's. None:
            the model is not sealed.
        slots: Jobs answered at once; None: 4 with a model, 64 with the echo engine.
        prefetch: Jobs held beyond that; None: 1 with a model, as many as slots with echo.
        threads: Of the model; None: as many as a measurement at the first start finds best.
        variant: Which of the model's graphs, `default` being the first; None: what suits the
            processor, and if there are several, a measurement at the first start.
        context: Most tokens of prompt and answer together, within what the model can.
        memory_mb: Most megabytes for running jobs; one more waits until it fits. None: 96, or one
            job of the whole context if that is more.
        prefix_mb: Most megabytes for beginnings of prompts kept for later ones; 0: none is kept.
        draft_tokens: Most tokens guessed and checked at once while one job runs alone; 0: none.
        provider: Execution provider of the ONNX runtime, e.g. `cpu`; `auto`: the CPU, or CUDA
            where the runtime has it and a measurement finds it faster.
        min_confidence: Answers below it are escalated, 0..1; None: as the model's manifest says.
        drain_timeout_s: How long running jobs get to finish when the worker is told to stop.
        limit_c: Temperature in degrees Celsius from which on fewer jobs are answered at once;
            None: 80 on a Raspberry Pi, 90 elsewhere.
        critical_c: Temperature from which on none is begun; None: 84 on a Raspberry Pi, 97
            elsewhere, and in any case above `limit_c`.
        disk_low_mb: With less room on the spool's disk no job is taken; 0: it is never looked at.
        spool_max_mb: Bound of the spool's file.
        spool_key_file: Keys that seal prompts and answers in the spool, one a line: the first
            seals, all open. None: they are kept as they are.
        cache_mb: Most megabytes of earlier answers, in memory and within that file; 0: none.
        labels: The operator's own names for what the board has, for jobs that ask for it: `camera`,
            `site=north`; or a table of names and values.
    """

    id: Id | None = None
    broker: BrokerSettings = msgspec.field(default_factory=BrokerSettings)
    data: str | None = None
    measurements: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    engine: EngineName = EngineName.ONNX
    model: Annotated[str, msgspec.Meta(min_length=1)] = DEFAULT_MODEL
    model_key_file: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    slots: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    prefetch: Annotated[int, msgspec.Meta(ge=0, le=256)] | None = None
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    context: Annotated[int, msgspec.Meta(ge=16, le=1_048_576)] = 2_048
    memory_mb: Annotated[int, msgspec.Meta(ge=1)] | None = None
    prefix_mb: Annotated[int, msgspec.Meta(ge=0)] = 24
    draft_tokens: Annotated[int, msgspec.Meta(ge=0, le=15)] = 7
    variant: Annotated[str, msgspec.Meta(min_length=1, max_length=32)] | None = None
    provider: str = "auto"
    min_confidence: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] | None = None
    drain_timeout_s: Annotated[float, msgspec.Meta(ge=0.0, le=3_600.0)] = 30.0
    limit_c: Annotated[float, msgspec.Meta(ge=30.0, le=120.0)] | None = None
    critical_c: Annotated[float, msgspec.Meta(ge=30.0, le=130.0)] | None = None
    disk_low_mb: Annotated[int, msgspec.Meta(ge=0, le=1_048_576)] = 100
    spool_max_mb: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 256
    spool_key_file: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    cache_mb: Annotated[int, msgspec.Meta(ge=0, le=65_536)] = 8
    labels: tuple[_Label, ...] | dict[_Label, str] = ()
    log_level: LogLevel = LogLevel.INFO

    @property
    def worker(self) -> WorkerId:
        """The worker's id, from the host's name if none was given."""
        host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0])
        return WorkerId(self.id or host[:36] or "worker")

    @property
    def label_values(self) -> dict[str, str]:
        """The labels with their values, empty where they have none."""
        if isinstance(self.labels, dict):
            return dict(self.labels)
        parts = (label.partition("=") for label in self.labels)
        return {name: value for name, _, value in parts}

    @property
    def slot_count(self) -> int:
        """Jobs answered at once."""
        return self.slots or (_ECHO_SLOTS if self.engine is EngineName.ECHO else _ONNX_SLOTS)

    @property
    def prefetch_count(self) -> int:
        """Jobs held beyond the slots, so that none waits for the network.

        A job of a model takes a second and one in reserve is enough; an echo takes nothing, and
        the round trip to the dispatcher is what must be bridged.
        """
        if self.prefetch is not None:
            return self.prefetch
        return self.slot_count if self.engine is EngineName.ECHO else 1


def load_settings(
    *,
    config: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, str | int | None],
) -> WorkerSettings:
    """Read the settings: the file, on top the environment, on top the command line.

    Args:
        config: TOML file; None: none.
        environ: Variables `EDGEFLEET_WORKER_…`, `__` between levels.
        flags: Settings by their path in the same notation, lower case; None: not given.

    Raises:
        ConfigError: Naming the setting and what is wrong with it.
    """
    toml = ""
    if config is not None:
        try:
            toml = config.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{config} cannot be read: {cause_of(error)}",
                hint="give --config a readable TOML file",
            ) from error
    given = {
        f"{PREFIX}_{name.upper()}": str(value) for name, value in flags.items() if value is not None
    }
    return parse_settings(
        WorkerSettings,
        toml=toml,
        environ={**environ, **given},
        prefix=PREFIX,
        origin=str(config) if config is not None else "settings",
    )


def data_folder(settings: WorkerSettings, environ: Mapping[str, str]) -> Path:
    """Return where the worker keeps what must survive; it need not exist."""
    if settings.data is not None:
        return Path(settings.data).expanduser()
    return user_data_folder(environ) / "workers" / settings.worker


def broker_password(broker: BrokerSettings) -> str | None:
    """Return the password, from its file if one is named.

    Raises:
        ConfigError: The file cannot be read or is empty.
    """
    if broker.secret is not None or broker.password_file is None:
        return broker.secret
    try:
        lines = Path(broker.password_file).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the password file cannot be read: {cause_of(error)}",
            hint="check broker.password_file and who may read it",
        ) from error
    if not lines or not lines[0].strip():
        raise ConfigError(
            f"the password file {broker.password_file} is empty",
            hint="put the password on its first line",
        )
    return lines[0].strip()
