"""`fleet demo`."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from pathlib import Path
from typing import Any, Final

import click

from fleet_cli.answers import origin, result_fields
from fleet_cli.commands.workers import print_workers
from fleet_cli.connection import Connection
from fleet_cli.context import DataFolder
from fleet_cli.demo_jobs import DemoJob, demo_jobs
from fleet_cli.device_commands import device_commands
from fleet_cli.exits import ExitCode
from fleet_cli.fleet_process import FleetProcess
from fleet_cli.model import ensure_model
from fleet_cli.output import console, print_json_line, say
from fleet_client.admin import AdminClient
from fleet_client.client import FleetClient, JobHandle
from fleet_protocol.folders import user_data_folder
from fleet_protocol.manifest import DEFAULT_MODEL
from fleet_protocol.messages import JobResult, JobStatus

_DEMO_DATA: Final = "edgefleet-demo"
"""Beside the user's own fleet."""
_JOB_S = 60.0


@click.command(
    help="""Start a fleet on this machine and put real questions to it.

    A broker, the dispatcher and a worker for each core start in a data folder of their own; the
    model is built first if it is not there. Without DEEPSEEK_API_KEY the cloud is a simulator, and
    its answers say so.

    \b
    Examples:
      fleet demo
      fleet demo --exit           end when everything was shown
      fleet demo --exit --json    one JSON object a job
    """
)
@click.option("--exit", "exits", is_flag=True, help="End instead of staying up.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a job.")
@click.option(
    "--simulated-cloud/--no-simulated-cloud",
    default=None,
    help="Answer escalations with a simulator.  [if there is no DEEPSEEK_API_KEY]",
)
@click.option("--data", metavar="DIR", envvar="EDGEFLEET_DATA", help="Data folder of the demo.")
@click.option("--workers", type=click.IntRange(1, 16), help="Workers.  [one a core, at most 4]")
def command(
    *, exits: bool, as_json: bool, simulated_cloud: bool | None, data: str | None, **how: Any
) -> int:
    """Show everything once."""
    workers = how["workers"] or max(1, min(4, os.cpu_count() or 1))
    has_key = bool(os.environ.get("DEEPSEEK_API_KEY"))
    simulates = not has_key if simulated_cloud is None else simulated_cloud
    ensure_model(DEFAULT_MODEL)
    words = ["--workers", str(workers), "--threads", "1"]
    connection = Connection(data=DataFolder(_folder(data)), given=None)
    signal.signal(signal.SIGTERM, _interrupt)
    show = _Show(connection, as_json=as_json)
    show.begin(workers, cloud=_cloud(simulates=simulates, has_key=has_key))
    with FleetProcess(
        connection.data, [*words, *(["--simulated-cloud"] if simulates else [])], tell=say
    ) as fleet:
        is_good = show.jobs()
        show.workers()
        if not exits:
            show.farewell()
            with contextlib.suppress(KeyboardInterrupt):
                fleet.serve()
    return int(ExitCode.OK if is_good else ExitCode.JOB_FAILED)


def _folder(named: str | None) -> Path:
    return Path(named) if named else user_data_folder(os.environ).with_name(_DEMO_DATA)


def _cloud(*, simulates: bool, has_key: bool) -> str:
    if simulates:
        return "a SIMULATOR (its answers say so and mean nothing)"
    return "DeepSeek" if has_key else "none: DEEPSEEK_API_KEY is not set"


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


class _Show:
    """Shows one thing after another: to people in colours, to scripts as JSON lines."""

    def __init__(self, connection: Connection, *, as_json: bool) -> None:
        self._connection = connection
        self._as_json = as_json
        self._console = console()
        self._device = f"demo-{secrets.token_hex(4)}"

    def begin(self, workers: int, *, cloud: str) -> None:
        """Say what is about to run."""
        text = (
            f"broker, dispatcher and {workers} workers with an INT8 model on this machine; "
            f"cloud: {cloud}"
        )
        if self._as_json:
            say(text)
            return
        self._title("edgefleet")
        self._console.print(text, markup=False)

    def jobs(self) -> bool:
        """Run the jobs one by one; return whether all were answered."""
        all_good = True
        with FleetClient(self._connection.broker, self._device) as client:
            for number, job in enumerate(demo_jobs(secrets.token_hex(3)), start=1):
                all_good &= self._job(client, number, job)
        return all_good

    def workers(self) -> None:
        """Show the workers and their weights."""
        with AdminClient(self._connection.broker, self._connection.admin) as admin:
            found = admin.workers()
        if self._as_json:
            for worker in found:
                say(f"worker {worker.worker}: weight {worker.weight:.2f}")
            return
        self._title("The workers, and why each gets its share")
        print_workers(found)
        self._console.print(
            "weight = 0.6 x compute + 0.4 x bandwidth, both measured by the worker against a "
            "reference board;\na job goes where (jobs at work + 1) / weight is least.",
            markup=False,
        )

    def farewell(self) -> None:
        """Say where to look next."""
        data = self._connection.data
        context = data.context()
        if self._as_json:
            say("the fleet stays up; Ctrl-C stops it")
            return
        self._title("Where to look next")
        self._console.print(
            f"from another terminal, while this one stays open:\n"
            f'  fleet ask --data {data} --stream "What is the capital of France?"\n'
            f"  fleet watch --data {data}\n"
            f"  fleet jobs ls --data {data}\n"
            f"from any MQTT client, here Mosquitto's:\n"
            f"{device_commands(context)}"
            f"on a page: {context.gateway}/\n"
            f"logs: {data.logs}\n"
            "Ctrl-C stops the fleet; its jobs stay in the data folder",
            markup=False,
            soft_wrap=True,
        )

    def _title(self, text: str) -> None:
        self._console.print(f"\n{text}", style="bold underline", markup=False)

    def _job(self, client: FleetClient, number: int, job: DemoJob) -> bool:
        if not self._as_json:
            self._title(f"{number}  {job.title}")
            self._console.print(f"> {job.shown}", style="cyan", markup=False)
        began_at_s = time.monotonic()
        handle = client.submit(job.question, job_id=job.id, accept_timeout_s=_JOB_S, **job.options)
        if job.streams and not self._as_json:
            self._stream(handle)
        result = handle.wait(max(1.0, _JOB_S - (time.monotonic() - began_at_s)))
        if self._as_json:
            print_json_line(_fields(job, handle, result))
            return result.status is JobStatus.OK
        if not job.streams:
            self._console.print(result.text, markup=False, style="bold")
        is_good = result.status is JobStatus.OK
        colour = ("yellow" if result.degraded else "green") if is_good else "red"
        self._console.print(origin(result), style=colour, markup=False)
        if result.code == "no_provider":
            self._console.print(
                "set DEEPSEEK_API_KEY for a real answer, or add --simulated-cloud", markup=False
            )
        return is_good

    def _stream(self, handle: JobHandle) -> None:
        for piece in handle.stream(_JOB_S):
            if piece.starts_over:
                self._console.print("\n(the answer starts over)", style="dim")
            self._console.print(piece, end="", markup=False, style="bold", soft_wrap=True)
        self._console.print()


def _fields(job: DemoJob, handle: JobHandle, result: JobResult) -> dict[str, Any]:
    fields = result_fields(result)
    del fields["id"]
    return {
        "job": job.id.partition("-")[0],
        "id": job.id,
        "prompt_chars": handle.prompt_chars,
        **fields,
    }
