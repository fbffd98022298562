"""`fleet workers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
import msgspec

from fleet_cli.asking import asking
from fleet_cli.connection import Connection, connection_options
from fleet_cli.output import (
    NOTHING,
    age,
    console,
    json_option,
    number,
    print_json,
    print_json_line,
    print_table,
    shown,
    tell,
)
from fleet_client.options import check_job_id
from fleet_protocol.messages import AdminOp, WorkerView

_WIDE_COLUMNS = 132
_NARROW_CELLS = 8


def _told_worker(function: Callable[..., None]) -> Callable[..., None]:
    """Add what a command has that tells one worker something."""
    return connection_options(click.argument("worker")(json_option(function)))


@click.group(
    help="""List, show, drain, resume and reload workers.

    \b
    Examples:
      fleet workers ls
      fleet workers drain w2      finish what it has, take nothing new
      fleet workers resume w2
      fleet workers reload w2     start it again, with the model that lies there now
    """
)
def command() -> None:
    """Group the verbs."""


@command.command(
    short_help="List workers with their weights.",
    help="""List workers with their weights: 0.6 x compute + 0.4 x bandwidth by default.

    \b
    Examples:
      fleet workers ls
      fleet workers ls --json
    """,
)
@connection_options
@click.option("--json", "as_json", is_flag=True, help='Print one object: {"workers": [..]}.')
@click.option("--jsonl", is_flag=True, help="Print one JSON object a worker.")
def ls(connection: Connection, /, *, as_json: bool, jsonl: bool) -> None:
    """List workers."""
    with asking(connection) as admin:
        workers = admin.workers()
    if as_json:
        print_json({"workers": [msgspec.to_builtins(w) for w in workers]})
    elif jsonl:
        for worker in workers:
            print_json_line(worker)
    else:
        print_workers(workers)


@command.command(
    help="""Show one worker: hardware, models, measurements, heartbeat.

    \b
    Example:
      fleet workers show w1
    """
)
@connection_options
@click.argument("worker")
@json_option
def show(connection: Connection, /, *, worker: str, as_json: bool) -> None:
    """Show a worker."""
    with asking(connection) as admin:
        found = admin.request(AdminOp.WORKER_SHOW, worker=check_job_id(worker)).workers[0]
    if as_json:
        print_json(found)
        return
    for name, value in _flat(msgspec.to_builtins(found)):
        title, text = shown(name, value)
        click.echo(f"{title:<34} {text}")


@command.command(
    help="""Let a worker finish what it has and take nothing new.

    \b
    Example:
      fleet workers drain w2
    """
)
@_told_worker
def drain(connection: Connection, /, *, worker: str, as_json: bool) -> None:
    """Drain a worker."""
    _tell(connection, AdminOp.WORKER_DRAIN, worker, as_json=as_json)


@command.command(
    help="""Let a drained worker take jobs again.

    \b
    Example:
      fleet workers resume w2
    """
)
@_told_worker
def resume(connection: Connection, /, *, worker: str, as_json: bool) -> None:
    """Resume a worker."""
    _tell(connection, AdminOp.WORKER_RESUME, worker, as_json=as_json)


@command.command(
    short_help="Start a worker again, with the model that lies there now.",
    help="""Start a worker again, with the model that lies there now.

    It finishes what it has first, and takes nothing new meanwhile. Its service manager, or
    `fleet up`, starts it again; a drained one takes jobs again then.

    \b
    Example:
      fleet workers reload w2
    """,
)
@_told_worker
def reload(connection: Connection, /, *, worker: str, as_json: bool) -> None:
    """Reload a worker."""
    _tell(connection, AdminOp.WORKER_RELOAD, worker, as_json=as_json)


def print_workers(workers: tuple[WorkerView, ...]) -> None:
    """Print the table of workers, each weight with its two parts; less on a narrow terminal."""
    columns = (
        *("worker", "status", "weight", "= compute", "+ bandwidth", "tok/s", "Mbit/s"),
        *("jobs/slots", "temp", "cpu", "model", "labels", "seen"),
    )
    shown = len(columns) if console().width >= _WIDE_COLUMNS else _NARROW_CELLS
    print_table(
        columns[:shown],
        [_row(worker)[:shown] for worker in workers],
        empty="no workers yet: `edge-worker run` starts one, `fleet up` a whole fleet here",
    )


def _row(worker: WorkerView) -> tuple[str, ...]:
    info, state = worker.info, worker.state
    measured = info.benchmark if info else None
    temp_c = state.temp_c if state else None
    return (
        worker.worker,
        str(worker.status),
        f"{worker.weight:.2f}",
        f"{worker.compute:.2f}",
        f"{worker.bandwidth:.2f}",
        number(measured.decode_tok_s if measured else None, 1),
        number(measured.bandwidth_mbps if measured else None),
        f"{worker.inflight}/{worker.slots}",
        NOTHING if temp_c is None else f"{temp_c:.0f} °C",
        NOTHING if state is None else f"{state.cpu_pct:.0f} %",
        info.models[0].name if info and info.models else NOTHING,
        _labels(info.labels if info else {}),
        age(worker.seen_at_ms),
    )


def _labels(labels: Mapping[str, str]) -> str:
    """As a job asks for them."""
    return " ".join(f"{name}={value}" if value else name for name, value in labels.items())


def _tell(connection: Connection, op: AdminOp, worker: str, *, as_json: bool) -> None:
    with asking(connection) as admin:
        reply = admin.request(op, worker=check_job_id(worker))
    facts = {"worker": worker, "message": reply.message}
    tell(f"worker {worker}: {reply.message}", facts, as_json=as_json)


def _flat(value: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, inner in value.items():
        if isinstance(inner, dict):
            rows += _flat(inner, f"{before}{name}.")
        elif inner not in (None, "", [], ()):
            rows.append((f"{before}{name}", inner))
    return rows
