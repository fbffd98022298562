"""`fleet submit`."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO

import click
import msgspec

from fleet_cli.answers import origin, result_fields
from fleet_cli.asking import connected
from fleet_cli.connection import Connection, connection_options
from fleet_cli.deferral import defer_option, patience_s, timeout_help
from fleet_cli.exits import ExitCode
from fleet_cli.forms import form_options
from fleet_cli.limits import limit_options
from fleet_cli.output import print_json_line, said_while_stuck, say
from fleet_client.client import FleetClient
from fleet_client.options import JobOptions
from fleet_protocol.errors import BusClosedError, FleetError, RejectedError
from fleet_protocol.messages import JobResult, JobStatus, OutputFormat

_OPTIONS = frozenset(JobOptions.__annotations__)
_USUAL_S = 600.0


@click.command(
    help="""Submit many jobs: one JSON object a line, with `prompt` (or `messages`) and, where
    wanted, `id`, `max_tokens`, `escalate`, `deadline_ms`, `defer`, `output`, `needs`, ...

    A line that names its id may be submitted again: it is the same job, and its answer is replayed.
    A line that cannot be used is reported with its number, and the others go on.

    \b
    Examples:
      fleet submit -f jobs.jsonl --wait --jsonl > results.jsonl
      echo '{"id": "1", "prompt": "Is 85 above 80?"}' | fleet submit -f - --wait
      fleet submit -f events.jsonl --choices ok,fault --wait
      fleet submit -f reports.jsonl --defer offpeak
      fleet submit -f night.jsonl --not-before 8h --attempt-limit 2m --label site=north
    """
)
@connection_options
@click.option("-f", "--file", "file", type=click.File(), required=True, help="`-` is stdin.")
@defer_option
@form_options
@limit_options
@click.option("--wait", is_flag=True, help="Wait for the results, not only for acceptance.")
@click.option("--jsonl", is_flag=True, help="Print one JSON object a job.")
@click.option(
    "--window",
    type=click.IntRange(1, 256),
    default=32,
    show_default=True,
    help="Most jobs under way at once.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 86_400),
    show_default=timeout_help(_USUAL_S),
    help="Seconds for each job.",
)
def command(
    connection: Connection,
    /,
    *,
    file: TextIO,
    window: int,
    wait: bool,
    jsonl: bool,
    timeout_s: float | None,
    **how: Any,
) -> int:
    """Submit the lines of a file."""
    device = FleetClient(connection.broker, connection.device, client_id=connection.client_id)
    with connected(device, connection.broker) as client:
        run = _Run(client, _options(**how), wait=wait, jsonl=jsonl, timeout_s=timeout_s)
        with said_while_stuck(run.summary):
            run.all(file, window)
    say(run.summary())
    return int(ExitCode.JOB_FAILED if run.failed else ExitCode.OK)


class _Run:
    """One pass over a file. Lines are read as the window allows; results come as they finish."""

    def __init__(
        self,
        client: FleetClient,
        options: JobOptions,
        *,
        wait: bool,
        jsonl: bool,
        timeout_s: float | None,
    ) -> None:
        """`options` are for the lines that name none of their own."""
        self._client = client
        self._waits = wait
        self._as_jsonl = jsonl
        self._accept_s = timeout_s or _USUAL_S
        self._timeout_s = patience_s(
            timeout_s,
            defer=options["defer"],
            usual_s=_USUAL_S,
            not_before_ms=options.get("not_before_ms", 0),
        )
        self._options: dict[str, Any] = {**options}
        self._printing = threading.Lock()
        self.succeeded = 0
        self.failed = 0

    def all(self, lines: Iterable[str], window: int) -> None:
        """Run every line, at most `window` at once."""
        free = threading.BoundedSemaphore(window)
        with ThreadPoolExecutor(window, thread_name_prefix="fleet-submit") as pool:
            try:
                for line_number, line in enumerate(lines, start=1):
                    if line.strip():
                        free.acquire()
                        future = pool.submit(self._one, line_number, line)
                        future.add_done_callback(lambda _: free.release())
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                self._client.close()
                raise

    def summary(self) -> str:
        """Say how it went."""
        word = "answered" if self._waits else "accepted"
        return f"{self.succeeded} {word}, {self.failed} failed"

    def _one(self, line_number: int, line: str) -> None:
        job_id: str | None = None
        try:
            fields = _read(line)
            job_id = fields.pop("id", None)
            question = fields.pop("messages", None) or fields.pop("prompt", None)
            wanted = {name: value for name, value in fields.items() if name in _OPTIONS}
            handle = self._client.submit(
                "" if question is None else question,
                job_id=None if job_id is None else str(job_id),
                accept_timeout_s=self._accept_s,
                **(self._options | wanted),
            )
            job_id = handle.id
            result = handle.wait(self._timeout_s) if self._waits else None
        except BusClosedError:
            return
        except FleetError as error:
            self._failed(line_number, job_id, error)
            return
        self._finished(job_id, result)

    def _finished(self, job_id: str, result: JobResult | None) -> None:
        is_good = result is None or result.status is JobStatus.OK
        with self._printing:
            self.succeeded += is_good
            self.failed += not is_good
            if self._as_jsonl:
                print_json_line(
                    {"id": job_id, "status": "accepted"}
                    if result is None
                    else result_fields(result)
                )
            elif result is None:
                click.echo(f"{job_id}\taccepted")
            else:
                click.echo(f"{job_id}\t{result.text or origin(result)}")

    def _failed(self, line_number: int, job_id: object, error: FleetError) -> None:
        with self._printing:
            self.failed += 1
            say(f"line {line_number}: {error}" + (f" ({error.hint})" if error.hint else ""))
            if self._as_jsonl:
                print_json_line(
                    {
                        "id": job_id,
                        "line": line_number,
                        "status": "failed",
                        "text": "",
                        "answered_by": None,
                        "reason": None,
                        "code": error.code,
                        "message": str(error),
                    }
                )


def _options(*, defer: str, output: OutputFormat | None, limits: JobOptions) -> JobOptions:
    options: JobOptions = {"defer": defer, **limits}
    return options if output is None else {**options, "output": output}


def _read(line: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise RejectedError(
            f"not a JSON object: {error}",
            code="malformed",
            hint='write {"id": "1", "prompt": "..."}',
        ) from error
