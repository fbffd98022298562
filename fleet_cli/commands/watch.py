"""`fleet watch`."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Self

import click
import msgspec

from fleet_cli.asking import connected
from fleet_cli.connection import Connection, connection_options
from fleet_cli.output import NOTHING, console, number, print_json_line
from fleet_client.admin import AdminClient
from fleet_client.errors import DeniedError
from fleet_client.watch import FleetPicture, FleetWatcher, WorkerSight
from fleet_protocol.errors import FleetError
from fleet_protocol.messages import EndpointView, LoadView

if TYPE_CHECKING:
    from rich.console import RenderableType

_ROWS_MOST = 40
_PERIOD_S = 0.5
_WEIGHTS_PERIOD_S = 5.0


@click.command(
    help="""Follow the fleet live: jobs, latency, who answers, and every worker. Ctrl-C ends it.

    \b
    Examples:
      fleet watch
      fleet watch --json          one JSON object a second, for scripts
      fleet watch --json --count 1
    """
)
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a second.")
@click.option("--count", type=click.IntRange(1), help="End after this many pictures.")
def command(connection: Connection, /, *, as_json: bool, count: int | None) -> None:
    """Follow the fleet."""
    with (
        connected(
            FleetWatcher(connection.broker, connection.client_id), connection.broker
        ) as watcher,
        _Weights(connection) as weights,
    ):
        # What is retained comes at once, a summary within a second.
        watcher.wait_until(_is_complete, timeout_s=3.0)
        if as_json:
            _stream(watcher, weights, count)
        else:
            _live(watcher, weights, connection, count)


class _Weights:
    """The dispatcher's weights, asked for now and then; none for who may only look."""

    def __init__(self, connection: Connection) -> None:
        self._admin = AdminClient(connection.broker, connection.admin)
        self._stack = contextlib.ExitStack()
        self._known: dict[str, float] = {}
        self._ask_at_s: float | None = None

    def __enter__(self) -> Self:
        with contextlib.suppress(DeniedError):
            self._stack.enter_context(self._admin)
            self._ask_at_s = 0.0
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def on(self, picture: FleetPicture) -> FleetPicture:
        """Return the picture with the newest weights."""
        now_s = time.monotonic()
        if self._ask_at_s is not None and now_s >= self._ask_at_s and picture.has_dispatcher:
            self._ask_at_s = now_s + _WEIGHTS_PERIOD_S
            with contextlib.suppress(FleetError):
                workers = self._admin.workers(timeout_s=1.0)
                self._known = {view.worker: view.weight for view in workers}
        return picture.with_weights(self._known)


def _is_complete(picture: FleetPicture) -> bool:
    summary = picture.summary
    return summary is not None and len(picture.workers) >= sum(summary.workers.values())


def _stream(watcher: FleetWatcher, weights: _Weights, count: int | None) -> None:
    printed = 0
    while True:
        print_json_line(_fields(weights.on(watcher.picture)))
        printed += 1
        if printed == count:
            return
        time.sleep(1.0)


def _live(
    watcher: FleetWatcher, weights: _Weights, connection: Connection, count: int | None
) -> None:
    from rich.live import Live  # noqa: PLC0415  # Rich costs 60 ms: only who shows tables

    broker = connection.broker
    title = f"{broker.host}:{broker.port} {broker.root}"
    with Live(
        _page(weights.on(watcher.picture), title),
        console=console(),
        auto_refresh=False,
        screen=False,
    ) as live:
        shown = 1
        while shown != count:
            time.sleep(_PERIOD_S)
            link = "" if watcher.is_connected else "  (link lost, reconnecting)"
            live.update(_page(weights.on(watcher.picture), title + link), refresh=True)
            shown += 1


def _fields(picture: FleetPicture) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(picture)
    fields["workers"] = [fields["workers"][name] for name in sorted(fields["workers"])]
    return fields


def _page(picture: FleetPicture, title: str) -> RenderableType:
    from rich import box  # noqa: PLC0415  # as above
    from rich.console import Group  # noqa: PLC0415  # as above
    from rich.table import Table  # noqa: PLC0415  # as above

    columns = ("worker", "status", "weight", "tok/s", "jobs/slots", "cpu", "mem", "temp", "model")
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    workers = sorted(picture.workers.values(), key=lambda w: (not w.is_online, w.id))
    for worker in workers[:_ROWS_MOST]:
        table.add_row(*_row(worker), style=None if worker.is_online else "dim")
    more = len(workers) - _ROWS_MOST
    end = [f"... and {more} more: `fleet workers ls`"] if more > 0 else []
    return Group(f"[bold]fleet[/bold] at {title}", *_headline(picture), table, *end)


def _headline(picture: FleetPicture) -> list[str]:
    state = "online" if picture.has_dispatcher else "[red]offline[/red]: see `fleet doctor`"
    now = picture.summary
    if now is None:
        return [f"dispatcher {state}"]
    later = f"for later {now.delayed}   " if now.delayed else ""
    load = (
        f"queued {now.queued}   {later}at work {now.inflight}   in the cloud {now.escalated}   "
        f"{now.jobs_per_s:.1f} jobs/s   p50 {now.latency_ms.p50:.0f} ms   "
        f"p99 {now.latency_ms.p99:.0f} ms   {now.cost_usd:.4f} USD"
    )
    outcome = (
        f"finished {_counts(now.finished)}   answered by {_counts(now.answered_by)}   "
        f"escalated {_counts(now.reasons)}   second best {_counts(now.degraded)}"
    )
    chain = "   ".join(map(_endpoint, now.endpoints))
    lines = [f"dispatcher {state}", load, outcome, f"cloud {chain}" if chain else ""]
    return [line for line in (*lines, _overload(now.load)) if line]


def _overload(load: LoadView) -> str:
    """Say what is given up, and what was; nothing where nothing ever was."""
    given_up = f"refused as busy {load.refused}   shed {load.shed}"
    causes = ", ".join(load.causes)
    if load.step:
        below = f"priorities below {load.refuses_below} are refused"
        if load.spares_below:
            below += f", below {load.spares_below} the library answers"
        step = f"[yellow]overload step {load.step}[/yellow] ({causes or 'ebbing'})"
        return f"{step}: {below}   {given_up}"
    if causes:
        return f"[yellow]beyond its limit: {causes}[/yellow]   {given_up}"
    return given_up if load.refused or load.shed else ""


def _endpoint(endpoint: EndpointView) -> str:
    if endpoint.state == "closed":
        return f"{endpoint.name} well, {endpoint.inflight} at work"
    return f"[yellow]{endpoint.name} left alone[/yellow] ({endpoint.code})"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items()) if n) or NOTHING


def _row(worker: WorkerSight) -> tuple[str, ...]:
    info, state = worker.info, worker.state
    temp_c = state.temp_c if state else None
    hot = bool(state and state.throttled)
    return (
        worker.id,
        str(worker.presence.status) if worker.presence else NOTHING,
        number(worker.weight, 2),
        number(state.tok_s if state else None, 1),
        f"{state.inflight if state else 0}/{info.slots if info else 0}",
        f"{state.cpu_pct:.0f} %" if state else NOTHING,
        f"{state.mem_pct:.0f} %" if state else NOTHING,
        NOTHING if temp_c is None else f"{temp_c:.0f} °C{' throttled' if hot else ''}",
        info.models[0].name if info and info.models else NOTHING,
    )
