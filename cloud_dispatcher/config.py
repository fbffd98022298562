"""The dispatcher's settings: TOML, then the environment, checked once, passed as values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from cloud_dispatcher.adapters.audit_file import AuditSettings
from cloud_dispatcher.adapters.http.settings import GatewaySettings
from cloud_dispatcher.adapters.providers import CloudSettings, ProviderSettings
from cloud_dispatcher.adapters.stores import StoreSettings
from cloud_dispatcher.adapters.tracing_settings import TracingSettings
from cloud_dispatcher.cluster import ClusterSettings
from cloud_dispatcher.core.settings import EngineSettings
from cloud_dispatcher.home_assistant import HomeAssistantSettings
from cloud_dispatcher.housekeeping import HousekeepingSettings
from fleet_protocol.errors import ConfigError, cause_of
from fleet_protocol.messages import ID_PATTERN
from fleet_protocol.settings import BrokerSettings, parse_settings

ENVIRONMENT_PREFIX = "EDGEFLEET_DISPATCHER"


class LibrarySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers for when nobody else has one.

    Attributes:
        file: The offline answer library; it is read again when it changes. None: there is none.
    """

    file: Annotated[str, msgspec.Meta(min_length=1)] | None = None


class LogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The log, on standard error.

    Attributes:
        level: Least severe level that is written.
        json: None: JSON unless standard error is a terminal.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    json: bool | None = None


class DispatcherSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything an operator can set; `example.toml` shows each with its default.

    Attributes:
        client_id: Identity on the broker; one dispatcher at a time may use it.
        session_expiry_s: How long the broker keeps what arrives while the dispatcher is away.
        broker: Where the broker is.
        store: Where jobs are kept.
        cluster: What this dispatcher is among several.
        housekeeping: What is due by the clock.
        engine: Leases, retries, weights.
        provider: The cloud provider; without a key there is none.
        backup: Endpoints that go on where it fails, in this order.
        cloud: What holds for all of them.
        library: What is said where nobody answers.
        gateway: The dispatcher over HTTP.
        audit: The audit log.
        home_assistant: Workers as devices of Home Assistant.
        tracing: Traces of jobs.
        log: The log.
    """

    client_id: Annotated[str, msgspec.Meta(pattern=ID_PATTERN)] = "dispatcher"
    session_expiry_s: Annotated[int, msgspec.Meta(ge=0)] = 86_400
    broker: BrokerSettings = msgspec.field(default_factory=BrokerSettings)
    store: StoreSettings = msgspec.field(default_factory=StoreSettings)
    cluster: ClusterSettings = msgspec.field(default_factory=ClusterSettings)
    housekeeping: HousekeepingSettings = msgspec.field(default_factory=HousekeepingSettings)
    engine: EngineSettings = msgspec.field(default_factory=EngineSettings)
    provider: ProviderSettings = msgspec.field(default_factory=ProviderSettings)
    backup: tuple[ProviderSettings, ...] = ()
    cloud: CloudSettings = msgspec.field(default_factory=CloudSettings)
    library: LibrarySettings = msgspec.field(default_factory=LibrarySettings)
    gateway: GatewaySettings = msgspec.field(default_factory=GatewaySettings)
    audit: AuditSettings = msgspec.field(default_factory=AuditSettings)
    home_assistant: HomeAssistantSettings = msgspec.field(default_factory=HomeAssistantSettings)
    tracing: TracingSettings = msgspec.field(default_factory=TracingSettings)
    log: LogSettings = msgspec.field(default_factory=LogSettings)


def load_settings(
    path: Path | None,
    environ: Mapping[str, str],
    *,
    broker_url: str | None = None,
    data: Path | None = None,
) -> DispatcherSettings:
    """Read the settings; what the command line says goes on top.

    Args:
        path: TOML file; None: only the environment and the defaults.
        environ: `EDGEFLEET_DISPATCHER_BROKER__URL=…` sets `url` in table `broker`.
        broker_url: Replaces `broker.url`.
        data: Folder for `dispatcher.db`; replaces the folder of `store.path`.

    Raises:
        ConfigError: Naming the setting and what is wrong with it.
    """
    extra = {name: text for name, text in environ.items() if name.startswith(ENVIRONMENT_PREFIX)}
    if broker_url is not None:
        extra[f"{ENVIRONMENT_PREFIX}_BROKER__URL"] = broker_url
    settings = parse_settings(
        DispatcherSettings,
        toml=_read(path),
        environ=extra,
        prefix=ENVIRONMENT_PREFIX,
        origin="settings" if path is None else str(path),
    )
    if data is None:
        return settings
    store = msgspec.structs.replace(settings.store, path=str(data / Path(settings.store.path).name))
    return msgspec.structs.replace(settings, store=store)


def _read(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the settings file {path} cannot be read: {cause_of(error)}",
            hint="name another file with --config",
        ) from error
