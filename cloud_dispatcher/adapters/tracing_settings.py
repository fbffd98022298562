"""Whether traces are made, and where they go. Loads OpenTelemetry only where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from fleet_protocol.errors import ConfigError

if TYPE_CHECKING:
    from cloud_dispatcher.adapters.tracing import Tracing


class TracingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Traces.

    Attributes:
        endpoint: Where spans go, by OTLP over HTTP. None: there are none.
        share: Of the jobs whose device does not say whether it traces them.
    """

    endpoint: Annotated[str, msgspec.Meta(pattern=r"^https?://")] | None = None
    share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 1.0


def build_tracing(settings: TracingSettings) -> Tracing | None:
    """Return what makes traces and sends them; None: nobody wants any.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    if settings.endpoint is None:
        return None
    try:
        from cloud_dispatcher.adapters.tracing import exporting  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"tracing.endpoint needs OpenTelemetry, which cannot be loaded: {error}",
            hint="pip install 'edgefleet[cloud,otel]'",
        ) from error
    return exporting(settings.endpoint, share=settings.share)
