"""`fleet drill`."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import click

from fleet_cli.broker import BrokerKind
from fleet_cli.drill.drill import Drill, DrillReport, DrillSettings, FaultReport
from fleet_cli.drill.faults import MEANINGS, FaultKind
from fleet_cli.drill.processes import HAS_FULL_DISK, DrillPlan
from fleet_cli.drill.report import fault_line, print_report
from fleet_cli.exits import ExitCode
from fleet_cli.model import ensure_model
from fleet_cli.output import json_option, print_json, print_table, say
from fleet_protocol.errors import ConfigError
from fleet_protocol.manifest import DEFAULT_MODEL

_ECHO_PER_S = 20.0
_MODEL_PER_S = 0.5


@click.command(
    help="""Pull the plugs of a test fleet, and audit what became of its jobs.

    Starts a fleet of its own on this machine (broker, simulated cloud, dispatcher, workers: real
    processes), lets simulated devices submit jobs, injects faults, and compares at the end what
    devices were told with what is stored: every accepted job has exactly one final result. It
    touches no other fleet. Boards echo their prompts unless --model names a model.

    Exit code 0 if nothing was lost, 7 if a job was lost, doubled or got another one's answer. The
    seed decides on the faults, their order and spans; the processes themselves are never twice the
    same.

    \b
    Examples:
      fleet drill
      fleet drill --list
      fleet drill --faults kill-dispatcher,kill-broker --count 20
      fleet drill --duration 1800 --every 4 --seed 7 --json
      fleet drill --keeps --broker-kind mosquitto      a broker that keeps what it has
    """
)
@click.option("--list", "lists", is_flag=True, help="List the faults and end.")
@click.option("--faults", metavar="KIND,...", help="Kinds of faults.  [all that work here]")
@click.option("--seed", type=click.IntRange(0), help="Repeats the faults of a run.  [a new one]")
@click.option(
    "--duration", type=click.FloatRange(1), default=60.0, show_default=True, help="Seconds."
)
@click.option("--count", type=click.IntRange(1), help="End after so many faults.")
@click.option(
    "--every",
    type=click.FloatRange(0.1),
    default=6.0,
    show_default=True,
    help="Seconds between faults, on average.",
)
@click.option("--jobs-per-s", type=click.FloatRange(0.01, 1_000), help="Load.  [20; model: 0.5]")
@click.option(
    "--burst",
    type=click.IntRange(0, 1_000),
    help="Jobs submitted at once shortly before each fault.  [40; model: 4]",
)
@click.option("--workers", type=click.IntRange(1, 16), default=3, show_default=True)
@click.option("--devices", type=click.IntRange(1, 64), default=6, show_default=True)
@click.option("--model", metavar="NAME", help="Answer with a model instead of echoes.")
@click.option(
    "--broker-kind",
    type=click.Choice([str(k) for k in BrokerKind]),
    help="Broker to start.  [mosquitto where it is installed]",
)
@click.option("--keeps", is_flag=True, help="The broker keeps what it has (Mosquitto).")
@click.option(
    "--data", metavar="DIR", help="New folder for logs and store.  [kept only if a job was lost]"
)
@json_option
def command(*, lists: bool, data: str | None, as_json: bool, **how: Any) -> int:
    """Run a drill."""
    if lists:
        rows = [(str(kind), MEANINGS[kind]) for kind in _possible()]
        print_table(("fault", "what it does"), rows, empty="")
        return int(ExitCode.OK)
    plan, settings = _plan(how), _settings(how)
    if plan.engine == "onnx":
        ensure_model(plan.model)
    folder = _folder(data)
    say(f"drill with --seed {settings.seed}; logs and store in {folder}")
    report = Drill(folder, plan, settings, tell=_tell, stop=_stop_on_signals()).run()
    if as_json:
        print_json(report)
    else:
        print_report(report)
    say(f"to repeat its faults: {_again(settings, how)}")
    return _conclude(report, folder, is_ours=data is None)


def _conclude(report: DrillReport, folder: Path, *, is_ours: bool) -> int:
    if report.audit.is_good:
        if is_ours:
            shutil.rmtree(folder, ignore_errors=True)
        return int(ExitCode.OK)
    say(f"logs and store are in {folder}")
    return int(ExitCode.JOB_LOST)


def _plan(how: dict[str, Any]) -> DrillPlan:
    kind = how["broker_kind"] or next(
        (k for k in (BrokerKind.MOSQUITTO, BrokerKind.EMBEDDED) if k.is_installed),
        BrokerKind.MOSQUITTO,
    )
    return DrillPlan(
        workers=tuple(f"w{n}" for n in range(1, how["workers"] + 1)),
        devices=tuple(f"d{n}" for n in range(1, how["devices"] + 1)),
        engine="onnx" if how["model"] else "echo",
        model=how["model"] or DEFAULT_MODEL,
        kind=BrokerKind(kind),
        keeps=how["keeps"],
    )


def _settings(how: dict[str, Any]) -> DrillSettings:
    per_s, burst = (_MODEL_PER_S, 4) if how["model"] else (_ECHO_PER_S, 40)
    return DrillSettings(
        seed=secrets.randbelow(1_000_000) if how["seed"] is None else how["seed"],
        faults=_faults(how["faults"]),
        duration_s=how["duration"],
        count=how["count"],
        every_s=how["every"],
        jobs_per_s=how["jobs_per_s"] or per_s,
        burst_jobs=burst if how["burst"] is None else how["burst"],
    )


def _possible() -> tuple[FaultKind, ...]:
    return tuple(k for k in FaultKind if HAS_FULL_DISK or k is not FaultKind.FULL_DISK)


def _faults(named: str | None) -> tuple[FaultKind, ...]:
    if named is None:
        return _possible()
    names = [name.strip() for name in named.split(",") if name.strip()]
    unknown = [name for name in names if name not in set(_possible())]
    if unknown or not names:
        raise ConfigError(
            f"there is no fault {unknown[0] if unknown else ''!r} here",
            hint="see `fleet drill --list`",
        )
    return tuple(dict.fromkeys(FaultKind(name) for name in names))


def _folder(data: str | None) -> Path:
    if data is None:
        return Path(tempfile.mkdtemp(prefix="edgefleet-drill-"))
    folder = Path(data).expanduser().absolute()
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if any(folder.iterdir()):
            raise ConfigError(
                f"{folder} is not empty", hint="a drill wants a new folder for itself"
            ) from None
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}", hint="name another --data DIR") from error
    return folder


def _again(settings: DrillSettings, how: dict[str, Any]) -> str:
    words = [f"fleet drill --seed {settings.seed} --every {settings.every_s:g}"]
    words += [f"--workers {how['workers']} --devices {how['devices']}"]
    if how["faults"]:
        words.append(f"--faults {how['faults']}")
    words.append(
        f"--duration {settings.duration_s:g}"
        if settings.count is None
        else f"--duration {settings.duration_s:g} --count {settings.count}"
    )
    return " ".join([*words, *(["--keeps"] if how["keeps"] else [])])


def _tell(fault: FaultReport) -> None:
    say(fault_line(fault))


def _stop_on_signals() -> threading.Event:
    """Return an event that the first Ctrl-C or SIGTERM sets; a second one ends us at once."""
    stop = threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        say("no more faults; settling what is open (again: end at once) ...")
        stop.set()
        signal.signal(number, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):
            signal.signal(number, on_signal)
    return stop
