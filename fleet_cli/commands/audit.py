"""`fleet audit`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from fleet_cli.broker_log import follow, log_of, watching
from fleet_cli.exits import ExitCode
from fleet_cli.output import print_json, print_json_line, say
from fleet_pki.files import read_file
from fleet_protocol.audit import AuditEntry, parse_key, read_line, verify
from fleet_protocol.audit_folder import KEEP_DAYS, AuditFolder
from fleet_protocol.errors import ConfigError
from fleet_protocol.log import set_up_logging

_HINT = "check the path and who may read it"
_DAY = click.DateTime(["%Y-%m-%d"])
_FOLDER = click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))


@click.group(
    help="""Look at audit logs: who asked for what, when, what became of it, and who was refused.

    docs/audit.md says what is in them, and what their seals can and cannot prove.

    \b
    Examples:
      fleet audit verify /var/lib/edgefleet/audit
      fleet audit export /var/lib/edgefleet/audit --since 2026-11-01 --what admin
    """
)
def command() -> None:
    """Group the verbs."""


@command.command(
    "verify",
    short_help="Look whether every line is what was written.",
    help="""Look whether every line is what was written, and where it was written.

    Exit code 1 if any is not; the first one is named. Note the seal it prints somewhere else, and
    give it as --noted the next time: then it is found out, too, if the end was taken off.

    \b
    Examples:
      fleet audit verify /var/lib/edgefleet/audit
      fleet audit verify ./audit --key-file /etc/edgefleet/audit.key --noted 3f9c...
    """,
)
@_FOLDER
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    help="The key of the seals; default: audit.key in the folder.",
)
@click.option("--noted", metavar="SEAL", default="", help="A seal that was printed earlier.")
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
def verify_command(folder: Path, *, key_file: Path | None, noted: str, as_json: bool) -> int:
    """Verify a log."""
    key_path = key_file or folder / "audit.key"
    key = parse_key(read_file(key_path, hint=_HINT).decode("utf-8", "replace"))
    verdict = verify(
        [(path.name, read_file(path, hint=_HINT)) for path in _files(folder)], key, noted=noted
    )
    if as_json:
        print_json(verdict)
    elif verdict.ok:
        click.echo(
            f"{verdict.lines} lines are as they were written, "
            f"{_moment(verdict.first_ms)} to {_moment(verdict.last_ms)}"
        )
        click.echo(f"seal  {verdict.seal}")
    else:
        click.echo(f"{verdict.where or 'the end'}: {verdict.why}")
        click.echo(f"{verdict.lines} lines before it are good, the last {_moment(verdict.last_ms)}")
    if verdict.torn:
        say("the last line is half a line: a power cut, or it is being written now")
    return ExitCode.OK if verdict.ok else ExitCode.JOB_FAILED


@command.command(
    "export",
    short_help="Print the log as JSON lines, without its seals.",
    help="""Print the log as JSON lines, for other programs; without its seals.

    `verify` first: this command believes what it reads.

    \b
    Examples:
      fleet audit export /var/lib/edgefleet/audit --what admin
      fleet audit export ./audit --device door --since 2026-11-01 --until 2026-11-30
    """,
)
@_FOLDER
@click.option("--since", type=_DAY, help="First UTC day.")
@click.option("--until", type=_DAY, help="Last UTC day.")
@click.option("--device", metavar="ID", help="Only what is about this device.")
@click.option("--what", metavar="NAME", help="Only job.accepted, job.finished, admin, ...")
def export_command(
    folder: Path,
    *,
    since: datetime | None,
    until: datetime | None,
    device: str | None,
    what: str | None,
) -> None:
    """Print a log."""
    for path in _files(folder):
        if (since and path.stem < f"{since:%Y-%m-%d}") or (
            until and path.stem > f"{until:%Y-%m-%d}"
        ):
            continue
        for number, line in enumerate(read_file(path, hint=_HINT).splitlines(), 1):
            entry = _entry(path, number, line)
            if device in {None, entry.about.get("device")} and what in {None, entry.what}:
                print_json_line({"at": _moment(entry.at_ms), "what": entry.what, **entry.about})


@command.command(
    "broker",
    help="""Put down whom the broker turned away, until it is stopped.

    FOLDER is what `fleet pki broker FOLDER --log FILE` wrote: its log is read, and who was refused
    becomes lines of an audit log of its own. The broker's other lines but those for every packet
    go to standard error. Run it beside the broker, as its user.

    \b
    Examples:
      fleet audit broker /etc/mosquitto/fleet --audit /var/lib/edgefleet/broker-audit
      fleet audit verify /var/lib/edgefleet/broker-audit
      fleet audit export /var/lib/edgefleet/broker-audit --what broker.refused
    """,
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--audit",
    metavar="DIR",
    type=click.Path(path_type=Path),
    required=True,
    help="Where the audit log is kept.",
)
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    help="The key of the seals, made if there is none; default: audit.key in the log's folder.",
)
@click.option("--keep-days", default=KEEP_DAYS, show_default=True, type=click.IntRange(1, 36_500))
@click.option("--once", is_flag=True, help="End when all that is there was read.")
def broker_command(
    folder: Path, *, audit: Path, key_file: Path | None, keep_days: int, once: bool
) -> None:
    """Follow a broker's log."""
    log = log_of(folder)
    if log is None:
        raise ConfigError(
            f"the broker of {folder} keeps no log for this",
            code="no_broker_log",
            hint="fleet pki broker FOLDER --log /run/edgefleet-broker/broker.log, and restart it",
        )
    set_up_logging()
    kept = AuditFolder(audit, key_file, keep_days=keep_days)
    with watching(log, acl=folder / "acl", audit=kept) as watch:
        follow(watch, once=once)


def _entry(path: Path, number: int, line: bytes) -> AuditEntry:
    try:
        return read_line(line)[1]
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path.name}:{number} is no line of an audit log: {error}",
            code="audit_damaged",
            hint=f"fleet audit verify {path.parent}",
        ) from error


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.log"))


def _moment(at_ms: int | None) -> str:
    if at_ms is None:
        return "never"
    return datetime.fromtimestamp(at_ms / 1_000, UTC).isoformat(timespec="milliseconds")
