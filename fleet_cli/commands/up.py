"""`fleet up`."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import click

from fleet_cli.broker import BrokerKind
from fleet_cli.connection import Connection, connection_options
from fleet_cli.context import DataFolder, FleetContext
from fleet_cli.device_commands import device_commands
from fleet_cli.gateway import has_page
from fleet_cli.local_fleet import FleetPlan, LocalFleet
from fleet_cli.model import ensure_model
from fleet_cli.output import print_json_line, say
from fleet_protocol.errors import ConfigError
from fleet_protocol.folders import user_data_folder
from fleet_protocol.manifest import DEFAULT_MODEL


@click.command(
    help="""Run a fleet on this machine until Ctrl-C: broker, dispatcher, workers.

    Everything it writes lies in the data folder. Start it again there, and it comes back on the
    same ports with its jobs. It listens on this machine alone.

    \b
    Examples:
      fleet up
      fleet up --workers 2 --data ./lab
      fleet up --port-v3 1883                       where devices look for a broker
      fleet up --broker-kind mosquitto --port 1883
      fleet up --broker mqtt://broker.lan:1883      use a broker that runs already
      fleet up --engine echo --simulated-cloud      no model, no account: to try things
      fleet up --config dispatcher.toml             providers, budgets, tenants of your own
    """
)
@connection_options
@click.option("--workers", type=click.IntRange(0, 64), default=3, show_default=True)
@click.option("--engine", type=click.Choice(["onnx", "echo"]), default="onnx", show_default=True)
@click.option("--model", metavar="NAME", default=DEFAULT_MODEL, show_default=True)
@click.option(
    "--threads", type=click.IntRange(1, 256), help="CPU threads of each worker.  [cores / workers]"
)
@click.option(
    "--broker-kind",
    type=click.Choice([str(k) for k in BrokerKind]),
    help="Broker to start.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    help="Its port; with the embedded broker the one for MQTT 5, which ours speak.  "
    "[a free one, kept]",
)
@click.option(
    "--port-v3",
    type=click.IntRange(1, 65_535),
    help="The embedded broker's port for MQTT 3.1.1, which most devices speak; Mosquitto speaks "
    "both on --port.  [a free one, kept]",
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The dispatcher's settings (TOML).",
)
@click.option("--simulated-cloud", is_flag=True, help="Answer escalations with a simulator.")
@click.option("--json", "as_json", is_flag=True, help="When up, print one JSON object.")
def command(connection: Connection, /, *, as_json: bool, **how: Any) -> None:
    """Run a fleet."""
    plan = _plan(connection, **how)
    if plan.engine == "onnx" and plan.workers:
        ensure_model(plan.model)
    stop = _stop_on_signals()
    with LocalFleet(connection.data, plan, tell=say, stop=stop) as fleet:
        context = fleet.bring_up()
        if context is not None:
            _announce(connection, plan, context, as_json=as_json)
            fleet.serve()
        say("stopping ...")
    say("stopped; `fleet up` with the same folder brings everything back")


def _plan(connection: Connection, **how: Any) -> FleetPlan:
    kind, port = how.pop("broker_kind"), how.pop("port")
    if connection.given is not None and (kind or port or how["port_v3"]):
        raise ConfigError(
            "--broker names a broker that runs already; a kind and a port are for one to start",
            hint="give either",
        )
    threads = how.pop("threads") or max(1, (os.cpu_count() or 1) // max(1, how["workers"]))
    return FleetPlan(
        broker=connection.given,
        kind=BrokerKind(kind) if kind else None,
        port=port,
        threads=threads,
        simulates_cloud=how.pop("simulated_cloud"),
        **how,
    )


def _stop_on_signals() -> threading.Event:
    """Return an event that the first Ctrl-C or SIGTERM sets; a second one ends us at once."""
    stop = threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    return stop


def _announce(
    connection: Connection, plan: FleetPlan, context: FleetContext, *, as_json: bool
) -> None:
    if as_json:
        print_json_line(
            {
                "broker": context.broker.url.rpartition("@")[2],
                "broker_v3": context.url_v3,
                "gateway": context.gateway,
                "root": context.broker.root,
                "kind": context.kind,
                "data": str(connection.data),
                "workers": plan.worker_ids,
                "engine": plan.engine,
                "pid": os.getpid(),
            }
        )
        return
    is_default = connection.data.path == DataFolder(user_data_folder(os.environ)).path
    where = "" if is_default else f" --data {connection.data}"
    say(
        f"the fleet is up: {plan.workers} workers; logs in {connection.data.logs}\n"
        f'  fleet ask{where} "What is the capital of France?"\n'
        f"  fleet workers ls{where}\n"
        f"  fleet watch{where}\n"
        f"{device_commands(context)}"
        f"  an OpenAI-compatible API: {context.gateway}/v1\n"
        f"{_page(context, plan)}"
        "Ctrl-C stops it"
    )


def _page(context: FleetContext, plan: FleetPlan) -> str:
    """Say where the dashboard is; there is none before a broker that asks who we are."""
    is_there = context.broker.is_anonymous and has_page(plan.config, os.environ)
    return f"  the dashboard: {context.gateway}/\n" if is_there else ""
