"""`cloud-dispatcher simulate`: try policies out on a modelled fleet, in virtual time."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec.structs import replace

from cloud_dispatcher.core.policies import PolicyName
from cloud_dispatcher.simulation.arrivals import Demand, read_trace
from cloud_dispatcher.simulation.comparison import PolicyRow, Trial, rows_of, run_all
from cloud_dispatcher.simulation.drawing import draw_svg
from cloud_dispatcher.simulation.figures import Estimate
from cloud_dispatcher.simulation.oracle import POLICIES
from cloud_dispatcher.simulation.scenario import Scenario, read_scenario
from fleet_protocol.errors import ConfigError, cause_of

_REMARK = (
    "Modelled boards, not measured ones: see docs/simulation.md for where each figure is from."
)


def _boards(_context: click.Context, _option: click.Parameter, value: str | None) -> Any:
    """Read `pi4=50,pi5=30` as a mapping."""
    if value is None:
        return None
    try:
        pairs = [pair.split("=") for pair in value.split(",")]
        return {kind.strip(): int(count) for kind, count in pairs}
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not of the form pi4=50,pi5=30") from error


@click.command("simulate", short_help="Compare scheduling policies on a modelled fleet.")
@click.argument("scenario", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Choice(POLICIES),
    help="To compare, the first one being what others are compared with; again for more.  "
    "[default: all but the oracle]",
)
@click.option(
    "--seeds", default=20, show_default=True, type=click.IntRange(1, 10_000), help="Runs a policy."
)
@click.option("--boards", callback=_boards, metavar="KIND=N,..", help="Replaces the scenario's.")
@click.option("--jobs", type=click.IntRange(1), help="So many.")
@click.option("--load", type=click.FloatRange(0, min_open=True), help="Over what boards can do.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Jobs a second instead.")
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Jobs as `fleet jobs ls --jsonl` printed them, instead of drawn ones.",
)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw an SVG here.")
@click.option(
    "--processes", type=click.IntRange(1), help="Runs at a time.  [default: one a processor]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def simulate(
    scenario: Path | None,
    *,
    policies: tuple[str, ...],
    seeds: int,
    processes: int | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Compare scheduling policies on a modelled fleet: the real engine, in virtual time.

    SCENARIO is a TOML file; docs/simulation.md has one with every setting. Every policy meets the
    same jobs, boards and faults, once for each seed; intervals are 95 %.
    """
    trace: Path | None = how.pop("trace")
    plot: Path | None = how.pop("plot")
    tried = _changed(read_scenario(scenario), **how)
    demands = None if trace is None else read_trace(trace, tried.arrivals)
    trials = [
        Trial(scenario=tried, policy=str(policy), seed=seed, trace=demands)
        for policy in dict.fromkeys(policies or PolicyName)
        for seed in range(1, seeds + 1)
    ]
    most = min(processes or os.cpu_count() or 1, len(trials))
    rows = rows_of(trials, run_all(trials, processes=most, told=_progress(len(trials))))
    if plot is not None:
        _write(plot, draw_svg(rows, title=_title(tried, demands, seeds)))
    if as_json:
        click.echo(msgspec.json.encode(_report(tried, demands, seeds, rows)).decode())
    else:
        click.echo(_title(tried, demands, seeds))
        click.echo(_table(rows))
        click.echo(_REMARK)


def _changed(scenario: Scenario, *, boards: Any, jobs: Any, load: Any, rate: Any) -> Scenario:
    said = {"jobs": jobs, "load": load, "jobs_per_s": rate}
    arrivals = replace(scenario.arrivals, **{k: v for k, v in said.items() if v is not None})
    try:
        return replace(scenario, boards=boards or scenario.boards, arrivals=arrivals)
    except ValueError as error:
        raise ConfigError(str(error), hint="name a kind, or add it to the scenario") from error


def _progress(total: int) -> Any:
    def told(done: int) -> None:
        end = "\n" if done == total else ""
        click.echo(f"\r{done} of {total} runs{end}", err=True, nl=False)

    return told if sys.stderr.isatty() else lambda _: None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        hint = "name another file with --plot"
        raise ConfigError(f"{path} cannot be written: {cause_of(error)}", hint=hint) from error


def _title(scenario: Scenario, trace: list[Demand] | None, seeds: int) -> str:
    boards = " + ".join(f"{count} {kind}" for kind, count in scenario.boards.items() if count)
    arrivals = scenario.arrivals
    if trace is not None:
        jobs = f"{len(trace)} recorded jobs"
    elif arrivals.jobs_per_s is None:
        jobs = f"{arrivals.jobs} jobs, {arrivals.pattern}, load {arrivals.load:g}"
    else:
        jobs = f"{arrivals.jobs} jobs, {arrivals.pattern}, {arrivals.jobs_per_s:g} a second"
    return f"{boards}; {jobs}; {seeds} seeds"


def _report(
    scenario: Scenario, trace: list[Demand] | None, seeds: int, rows: list[PolicyRow]
) -> dict[str, Any]:
    kinds = scenario.all_kinds
    return {
        "title": _title(scenario, trace, seeds),
        "simulated": True,
        "seeds": seeds,
        "boards": {
            name: {"count": count, **msgspec.to_builtins(kinds[name])}
            for name, count in scenario.boards.items()
        },
        "policies": rows,
    }


def _table(rows: list[PolicyRow]) -> str:
    heads = ("policy", "p50 ms", "p95 ms", "p99 ms", "in time", "busy", "fairness", "p95 ratio")
    lines = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        )
        for line in lines
    )


def _cells(row: PolicyRow) -> tuple[str, ...]:
    return (
        row.policy,
        _with_interval(row.p50_ms, ".0f"),
        _with_interval(row.p95_ms, ".0f"),
        _with_interval(row.p99_ms, ".0f"),
        _with_interval(row.in_time, ".1%"),
        f"{row.busy.mean:.1%}",
        f"{row.fairness.mean:.3f}",
        _with_interval(row.p95_ratio, ".2f"),
    )


def _with_interval(found: Estimate, form: str) -> str:
    return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"
