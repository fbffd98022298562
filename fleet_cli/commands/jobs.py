"""`fleet jobs`."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from fleet_cli.answers import result_fields
from fleet_cli.asking import asking
from fleet_cli.connection import Connection, connection_options
from fleet_cli.output import (
    NOTHING,
    age,
    json_option,
    print_json,
    print_json_line,
    print_table,
    say,
    shown,
    tell,
)
from fleet_client.admin import AdminClient
from fleet_protocol.errors import RejectedError
from fleet_protocol.messages import AdminOp, AnsweredBy, JobStatus, JobView

_DONE = {AdminOp.JOB_RETRY: "queued again", AdminOp.JOB_PURGE: "forgotten"}
_device_option = click.option("--device", metavar="ID", help="Only this device's jobs.")
_all_option = click.option("--all", "every", is_flag=True, help="All there are, 1,000 at a time.")

_json_option = click.option(
    "--json", "as_json", is_flag=True, help='Print one object: {"jobs": [..]}.'
)
_jsonl_option = click.option("--jsonl", is_flag=True, help="Print one JSON object a job.")


@click.group(
    help="""List, show, cancel and retry jobs.

    \b
    Examples:
      fleet jobs ls --status failed
      fleet jobs dead ls
      fleet jobs show 01JD0000000000000000000000
    """
)
def command() -> None:
    """Group the verbs."""


@command.command(
    help="""List jobs, newest first.

    \b
    Examples:
      fleet jobs ls
      fleet jobs ls --status queued --limit 200
      fleet jobs ls --worker pi-7 --route cloud
      fleet jobs ls --before 01JD0000000000000000000000    older ones than that
      fleet jobs ls --dead        dead letters: `fleet jobs retry JOB` runs one again
    """
)
@connection_options
@click.option("--status", type=click.Choice([str(s) for s in JobStatus]))
@click.option("--device", metavar="ID", help="Only this device's jobs.")
@click.option("--tenant", "of_tenant", metavar="NAME", help="Only this tenant's devices' jobs.")
@click.option("--worker", metavar="ID", help="Only what it has, or answered.")
@click.option("--route", type=click.Choice([str(x) for x in AnsweredBy]), help="What answered.")
@click.option("--code", metavar="CODE", help="Why there is no answer, or why a job left its board.")
@click.option("--id", "text", metavar="TEXT", help="A part of the device's id for the job.")
@click.option("--before", metavar="JOB", help="Only jobs older than this one.")
@click.option("--dead", is_flag=True, help="Only dead letters: failed for good.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, show_default=True)
@_json_option
@_jsonl_option
def ls(
    connection: Connection, /, *, status: str | None, as_json: bool, jsonl: bool, **how: Any
) -> None:
    """List jobs."""
    if status is not None:
        how["status"] = JobStatus(status)
    if how["route"] is not None:
        how["route"] = AnsweredBy(how["route"])
    chosen = {name: value for name, value in how.items() if value is not None}
    with asking(connection) as admin:
        jobs = find_jobs(admin, chosen)
    if as_json:
        print_json({"jobs": [_fields(job) for job in jobs]})
    elif jsonl:
        for job in jobs:
            print_json_line(_fields(job))
    else:
        _print_jobs(jobs)


@command.command(
    help="""Show one job and its parts: all but the prompts.

    \b
    Example:
      fleet jobs show 01JD0000000000000000000000
    """
)
@connection_options
@click.argument("job")
@json_option
def show(connection: Connection, /, *, job: str, as_json: bool) -> None:
    """Show a job."""
    with asking(connection) as admin:
        found = admin.request(AdminOp.JOB_SHOW, job=_id(job)).jobs
        parts = _parts_of(admin, found[0])
    fields = _fields(found[0])
    if as_json:
        print_json({**fields, "part_jobs": [_fields(part) for part in parts]} if parts else fields)
        return
    result = fields.pop("result", None) or {}
    for name, value in {**fields, **{f"result.{k}": v for k, v in result.items()}}.items():
        if value not in (None, "", {}):
            title, text = shown(name, value)
            click.echo(f"{title:<22} {text}")
    if parts:
        click.echo()
        _print_jobs(parts)
    if len(parts) < found[0].parts:
        say(f"{found[0].parts - len(parts)} of its {found[0].parts} parts are no longer kept")


@command.command(
    help="""Cancel a job; its device gets a result that says so.

    \b
    Example:
      fleet jobs cancel 01JD0000000000000000000000
    """
)
@connection_options
@click.argument("job")
@json_option
def cancel(connection: Connection, /, *, job: str, as_json: bool) -> None:
    """Cancel a job."""
    with asking(connection) as admin:
        reply = admin.request(AdminOp.JOB_CANCEL, job=_id(job))
    message = reply.message or "cancelled"
    tell(f"job {job}: {message}", {"job": job, "message": message}, as_json=as_json)


@command.command(
    help="""Run a job that ended without an answer again, from the beginning.

    \b
    Examples:
      fleet jobs ls --dead
      fleet jobs retry 01JD0000000000000000000000
    """
)
@connection_options
@click.argument("job")
@json_option
def retry(connection: Connection, /, *, job: str, as_json: bool) -> None:
    """Retry a job."""
    with asking(connection) as admin:
        reply = admin.request(AdminOp.JOB_RETRY, job=_id(job))
    message = reply.message or "queued again"
    tell(f"job {job}: {message}", {"job": job, "message": message}, as_json=as_json)


@command.group(
    short_help="Deal with dead letters: jobs that failed for good.",
    help="""Deal with dead letters: jobs that failed for good, kept to be looked at.

    \b
    Examples:
      fleet jobs dead ls
      fleet jobs dead replay --all --device cam-7
      fleet jobs dead purge 01JD0000000000000000000000
    """,
)
def dead() -> None:
    """Group the verbs."""


@dead.command(
    "ls",
    help="""List dead letters, newest first, and why they failed.

    \b
    Examples:
      fleet jobs dead ls
      fleet jobs dead ls --device cam-7 --jsonl
    """,
)
@connection_options
@_device_option
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, show_default=True)
@_json_option
@_jsonl_option
def dead_ls(
    connection: Connection, /, *, device: str | None, limit: int, as_json: bool, jsonl: bool
) -> None:
    """List dead letters."""
    with asking(connection) as admin:
        jobs = _dead(admin, device, limit)
    if as_json:
        print_json({"jobs": [_fields(job) for job in jobs]})
        return
    if jsonl:
        for job in jobs:
            print_json_line(_fields(job))
        return
    print_table(
        ("job", "device", "id", "status", "code", "tries", "age", "why"),
        [
            (job.job, job.device, job.id, str(job.status), code, str(job.attempts), since, why)
            for job in jobs
            for code, why in [(job.result.code, job.result.message) if job.result else ("", "")]
            for since in [age(job.received_at_ms)]
        ],
        empty="no dead letters",
    )


dead.add_command(show, "show")


@dead.command(
    short_help="Run dead letters again; devices get the new result.",
    help="""Run dead letters again, from the beginning; their devices get the new result.

    \b
    Examples:
      fleet jobs dead replay 01JD0000000000000000000000
      fleet jobs dead replay --all --device cam-7
    """,
)
@connection_options
@click.argument("job", nargs=-1)
@_all_option
@_device_option
@json_option
def replay(connection: Connection, /, **which: Any) -> None:
    """Retry dead letters."""
    _for_each(connection, AdminOp.JOB_RETRY, **which)


@dead.command(
    help="""Forget dead letters for good. A device may use the id of a forgotten job again.

    \b
    Examples:
      fleet jobs dead purge 01JD0000000000000000000000
      fleet jobs dead purge --all
    """
)
@connection_options
@click.argument("job", nargs=-1)
@_all_option
@_device_option
@json_option
def purge(connection: Connection, /, **which: Any) -> None:
    """Purge dead letters."""
    _for_each(connection, AdminOp.JOB_PURGE, **which)


def find_jobs(admin: AdminClient, chosen: dict[str, Any]) -> tuple[JobView, ...]:
    """Return jobs, asking on where the dispatcher looked at many and found less than wanted."""
    jobs, wanted = tuple[JobView, ...](), chosen["limit"]
    while True:
        reply = admin.request(AdminOp.JOBS_LIST, **{**chosen, "limit": wanted - len(jobs)})
        jobs += reply.jobs
        if len(jobs) >= wanted or reply.go_on is None:
            return jobs
        chosen = {**chosen, "before": reply.go_on}


def _for_each(
    connection: Connection,
    op: AdminOp,
    *,
    job: tuple[str, ...],
    every: bool,
    device: str | None,
    as_json: bool,
) -> None:
    """Do something with each of the dead letters that were chosen, and say how many it was.

    Raises:
        RejectedError: The dispatcher refused the one that was named, or the last of several.
    """
    if bool(job) == every:
        raise click.UsageError("name jobs, or give --all")
    through, refused = list[str](), None
    with asking(connection) as admin:
        chosen = [_id(name) for name in job] or [x.job for x in _dead(admin, device, 1_000)]
        for name in chosen:
            try:
                _check_dead(admin, name)
                admin.request(op, job=name)
                through.append(name)
            except RejectedError as error:
                refused = error
                if len(chosen) > 1:
                    say(f"job {name}: {error}")
    words = f"{len(through)} of {len(chosen)} dead letters {_DONE[op]}"
    if refused is not None:
        say(words)
        raise refused
    tell(words, {"jobs": through, "message": words}, as_json=as_json)


def _dead(admin: AdminClient, device: str | None, limit: int) -> tuple[JobView, ...]:
    if device is None:
        return admin.request(AdminOp.JOBS_LIST, dead=True, limit=limit).jobs
    return admin.request(AdminOp.JOBS_LIST, dead=True, limit=limit, device=device).jobs


def _check_dead(admin: AdminClient, name: str) -> None:
    found = admin.request(AdminOp.JOB_SHOW, job=name).jobs[0]
    if not found.dead:
        raise RejectedError(f"the job is {found.status}, no dead letter", code="not_dead")


def _parts_of(admin: AdminClient, job: JobView) -> tuple[JobView, ...]:
    """Return the parts that the dispatcher still keeps: they ended before their job did."""
    parts = list[JobView]()
    for number in range(job.parts):
        try:
            parts += admin.request(AdminOp.JOB_SHOW, job=f"{job.job}-{number}").jobs
        except RejectedError as error:
            if error.code != "unknown_job":
                raise
    return tuple(parts)


def _id(job: str) -> str:
    from fleet_client.options import check_job_id  # noqa: PLC0415  # only where a job is named

    return check_job_id(job)


def _fields(job: JobView) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(job)
    if job.result is not None:
        fields["result"] = result_fields(job.result)
    return fields


def _print_jobs(jobs: tuple[JobView, ...]) -> None:
    print_table(
        ("job", "device", "id", "status", "answered by", "worker", "tries", "chars", "age"),
        [
            (
                job.job,
                job.device,
                job.id,
                f"{job.status} (dead)" if job.dead else str(job.status),
                str(job.result.answered_by or NOTHING) if job.result else NOTHING,
                job.worker or (job.result.worker if job.result else None) or NOTHING,
                str(job.attempts),
                str(job.prompt_chars),
                age(job.received_at_ms),
            )
            for job in jobs
        ],
        empty='no jobs; submit one with `fleet ask "..."`',
    )
