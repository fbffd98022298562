"""`/metrics` in Prometheus' text format (version 0.0.4).

The format is a line a sample; a client library would bring a registry of its own for counts that
the dispatcher has already.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cloud_dispatcher.adapters.http.gatekeeper import Gatekeeper
from cloud_dispatcher.adapters.http.inside import Inside
from cloud_dispatcher.metrics import Family, Labels
from cloud_dispatcher.worker_gauges import WORKER_GAUGES, lines_of
from fleet_protocol.messages import WorkerView
from fleet_protocol.roles import Action

_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SLICE: Final = 250
"""Workers whose lines are written at once: about a millisecond of the loop."""
_WORTH_PACKING_BYTES: Final = 16_384
_IN_LABELS: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_IN_HELP: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})


def metrics_routes(inside: Inside, gate: Gatekeeper, *, by_worker: bool) -> list[Route]:
    """Return `/metrics`; `by_worker`: each worker is told of by itself, too."""
    # Its own: the loop's threads may all be waiting for a name server, and just then people look.
    packing = ThreadPoolExecutor(1, thread_name_prefix="metrics")

    async def metrics(request: Request) -> Response:
        gate.admit(request, Action.WATCH)
        text = render(inside.metrics())
        if by_worker:
            await asyncio.sleep(0)
            text += await render_workers(inside.workers())
        body = text.encode()
        headers = {"content-type": _CONTENT_TYPE, "vary": "accept-encoding"}
        if len(body) >= _WORTH_PACKING_BYTES and _takes_gzip(request):
            headers["content-encoding"] = "gzip"
            loop = asyncio.get_running_loop()
            body = await loop.run_in_executor(packing, gzip.compress, body, 1)
        return Response(body, headers=headers)

    return [Route("/metrics", metrics)]


async def render_workers(workers: Sequence[WorkerView]) -> str:
    """Return the text of what is told of single workers; jobs go on meanwhile.

    All lines of a metric belong together, so those of each slice are put together at the end.
    """
    slices = list[list[str]]()
    for start in range(0, len(workers), _SLICE):
        await asyncio.sleep(0)
        slices.append(lines_of(workers[start : start + _SLICE]))
    heads = (render([gauge.family]) for gauge in WORKER_GAUGES)
    return "".join(chain.from_iterable(zip(heads, *slices, strict=True)))


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


def _takes_gzip(request: Request) -> bool:
    return "gzip" in request.headers.get("accept-encoding", "")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
