"""What people see of a drill."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import median

import click

from fleet_cli.drill.audit import Audit
from fleet_cli.drill.drill import DrillReport, FaultReport
from fleet_cli.output import NOTHING, number, print_table

_FLAWS_SHOWN = 10


def fault_line(fault: FaultReport) -> str:
    """Return a fault's report on one line."""
    flowed = "no job since" if fault.flowed_s is None else f"jobs flow after {fault.flowed_s:.2f} s"
    what = f"{fault.fault} {fault.target}, {fault.held_s:.1f} s"
    return f"{fault.at_s:7.1f} s  {what:<34} {flowed}; {fault.open_jobs} jobs were open"


def print_report(report: DrillReport) -> None:
    """Print what happened by kind of fault, and the audit."""
    by_kind: dict[str, list[FaultReport]] = defaultdict(list)
    for fault in report.faults:
        by_kind[str(fault.fault)].append(fault)
    print_table(
        ("fault", "times", "jobs flow after, median", "longest", "open jobs answered within"),
        (_row(kind, faults) for kind, faults in by_kind.items()),
        empty="no fault was injected",
    )
    for line in (*_summary(report), *_jobs(report.audit), *_flaws(report.audit)):
        click.echo(line)


def _row(kind: str, faults: list[FaultReport]) -> tuple[str, ...]:
    flowed = [f.flowed_s for f in faults if f.flowed_s is not None]
    cleared = [f.cleared_s for f in faults if f.cleared_s is not None]
    return (
        kind,
        str(len(faults)),
        _span(median(flowed) if flowed else None),
        _span(max(flowed, default=None)),
        _span(max(cleared, default=None)),
    )


def _span(span_s: float | None) -> str:
    return NOTHING if span_s is None else f"{number(span_s, 2)} s"


def _summary(report: DrillReport) -> Iterable[str]:
    kills = ", ".join(f"{part} {count}" for part, count in sorted(report.kills.items()))
    keeps = "keeps what it has" if report.keeps else "forgets all when it ends"
    yield (
        f"{len(report.faults)} faults in {report.took_s:.0f} s on a broker ({report.broker}) that "
        f"{keeps}; killed by -9: {kills or 'nobody'}"
    )
    if report.skipped:
        yield f"{report.skipped} faults were left out: their target was never free"
    for end in report.ended:
        last = end.last_words.splitlines()[-1:] or ["no word"]
        yield f"{end.part} ended unasked with exit code {end.exit_code}: {last[0][:300]}"


def _jobs(audit: Audit) -> Iterable[str]:
    statuses = ", ".join(f"{name} {count}" for name, count in sorted(audit.statuses.items()))
    waits = ", ".join(f"{name} {span / 1_000:.2f} s" for name, span in audit.wait_ms.items())
    yield f"jobs: {audit.submitted} submitted, {audit.accepted} accepted; results: {statuses}"
    yield (
        f"{audit.retried} needed more than one attempt; {audit.repeated} results were heard again, "
        f"word by word the same; from submission to result: {waits}"
    )
    if audit.refused or audit.unanswered:
        refused = ", ".join(f"{code} {count}" for code, count in sorted(audit.refused.items()))
        yield f"refused: {refused or 'none'}; neither accepted nor refused: {audit.unanswered}"


def _flaws(audit: Audit) -> Iterable[str]:
    yield f"lost {len(audit.lost)}, doubled {len(audit.doubled)}, wrong {len(audit.wrong)}"
    for flaw in (*audit.lost, *audit.doubled, *audit.wrong)[:_FLAWS_SHOWN]:
        yield f"  {flaw.device}/{flaw.id}: {flaw.what}"
