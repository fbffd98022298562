"""`/metrics` in Prometheus' text format (version 0.0.4).

The format is a line a sample; a client library would bring a registry of its own for counts that
the dispatcher has already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cloud_dispatcher.adapters.http.gatekeeper import Gatekeeper
from cloud_dispatcher.metrics import Family, Labels
from fleet_protocol.roles import Action

_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_IN_LABELS: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_IN_HELP: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})


def metrics_routes(count: Callable[[], list[Family]], gate: Gatekeeper) -> list[Route]:
    """Return `/metrics`."""

    async def metrics(request: Request) -> Response:
        gate.admit(request, Action.WATCH)
        return Response(render(count()), headers={"content-type": _CONTENT_TYPE})

    return [Route("/metrics", metrics)]


def render(families: Iterable[Family]) -> str:
    """Return the text."""
    lines: list[str] = []
    for family in families:
        lines.append(f"# HELP {family.name} {family.help.translate(_IN_HELP)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines += [
            f"{family.name}{suffix}{_labels(labels)} {_number(value)}"
            for suffix, labels, value in family.samples
        ]
    return "\n".join([*lines, ""])


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{text.translate(_IN_LABELS)}"' for key, text in labels) + "}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
