"""`python -m models label`, `calibrate` and `evaluate-router`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from fleet_protocol.manifest import Routing
from models.errors import writing
from models.evaluate.store import store_routing
from models.proof.verify import read_manifest
from models.routing.answers import label_answers, read_answers
from models.routing.calibrate import calibrate
from models.routing.compare import RouterReport, compare_rules
from models.routing.record import write_record
from models.suite import load_reasoning, load_suite, read_items
from models.terminal import find_artefact, json_option, print_json, show_progress

_FILE = click.Path(path_type=Path, dir_okay=False)
_EXISTING = click.Path(path_type=Path, exists=True, dir_okay=False)
_data_option = click.option(
    "--data", type=_EXISTING, required=True, help="Labelled answers: JSON lines, or CSV."
)
_error_option = click.option(
    "--error-rate",
    type=click.FloatRange(0.005, 0.5),
    default=0.1,
    show_default=True,
    help="Share of wrong answers among those that are kept.",
)


@click.command(short_help="Write which prompts a model gets right.")
@click.argument("target")
@click.option("--out", type=_FILE, required=True, help="JSON lines, one an answer.")
@click.option("--suite", type=_EXISTING, help="Put these items instead of the project's.")
@json_option
def label(target: str, *, out: Path, suite: Path | None, as_json: bool) -> None:
    """Put prompts with a known answer to TARGET, a built model; write which it got right.

    By default the held-out suite, and questions of several steps that a small model is to hand on.
    The file holds how sure the model was of each answer, not what it said.
    """
    items = (*load_suite(), *load_reasoning()) if suite is None else read_items(suite)
    folder = find_artefact(target)
    with show_progress(as_json=as_json) as progress:
        answers = label_answers(folder, items, progress)
    with writing(out):
        out.write_bytes(b"".join(msgspec.json.encode(answer) + b"\n" for answer in answers))
    right = sum(answer.right for answer in answers)
    if as_json:
        print_json({"path": str(out), "answers": len(answers), "right": right})
    else:
        click.echo(f"{out}: {len(answers)} answers, {right} of them right")


@click.command("calibrate", short_help="Fit a model's thresholds on labelled answers.")
@click.argument("target")
@_data_option
@_error_option
@click.option("--record", type=_FILE, help="Write them there, too, for builds of these bytes.")
@json_option
def calibrate_command(
    target: str, *, data: Path, error_rate: float, record: Path | None, as_json: bool
) -> None:
    """Fit TARGET's thresholds on labelled answers, and keep them in its manifest.

    A confidence is then the probability that the answer is right, and prompts that look too
    hard leave before anything is generated. Calibrate again what you build again.
    """
    folder = find_artefact(target)
    answers, model = read_answers(data), read_manifest(folder).name
    with show_progress(as_json=as_json) as progress:
        routing = calibrate(answers, error_rate=error_rate, model=model, progress=progress)
    routing = store_routing(routing, folder)
    if record is not None:
        write_record(routing, read_manifest(folder), record)
    if as_json:
        print_json(msgspec.to_builtins(routing))
    else:
        _print_routing(routing)


@click.command("evaluate-router", short_help="Compare the rules of escalation.")
@_data_option
@_error_option
@click.option("--right-column", default="right", show_default=True, help="Of the edge model.")
@click.option("--strong-column", default="strong_right", show_default=True, help="Of the cloud's.")
@json_option
def evaluate_router(
    *, data: Path, error_rate: float, right_column: str, strong_column: str, as_json: bool
) -> None:
    """Compare the rules that say which prompts leave the edge, on labelled answers.

    Everything that is fitted is judged on answers left out of the fit; intervals are those of 1,000
    resamples. Where nobody asked the model in the cloud, it is taken to be right.
    """
    answers = read_answers(data, right_column=right_column, strong_column=strong_column)
    report = compare_rules(answers, error_rate=error_rate)
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        _print_report(report)


def _print_routing(routing: Routing) -> None:
    fitted = routing.calibration
    if fitted is None:
        raise AssertionError("a calibration was fitted")
    click.echo(f"{fitted.answers} answers, {fitted.right_share:.1%} of them right")
    click.echo(f"  keep from   {routing.min_confidence:.3f} on: P(right)")
    click.echo(f"  keeps       {fitted.kept_right_share:.1%} of the right answers, left out")
    click.echo(
        f"  of the kept {fitted.kept_wrong_share:.1%} are wrong, {fitted.error_rate:.1%} allowed"
    )
    click.echo(f"  AUC         {fitted.auc:.3f}")
    if routing.difficulty is None:
        click.echo("  difficulty  prompts alone say too little: all are tried")
    else:
        click.echo(f"  difficulty  prompts above {routing.max_difficulty:.3f} leave untried")


def _print_report(report: RouterReport) -> None:
    click.echo(
        f"{report.answers} prompts: the edge answers {report.right_share:.1%} rightly, "
        f"the cloud {report.strong_right_share:.1%}"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("rule", "APGR", "CPT(50)", "CPT(80)", "AUC"):
        table.add_column(name)
    for name in ("kept", "right kept", "wrong in kept", "right in all", "in vain"):
        table.add_column(name, justify="right")
    for name, rule in report.rules.items():
        curve, kept = rule.curve, rule.kept
        table.add_row(
            name,
            *(str(figure) for figure in (curve.apgr, curve.cpt_50, curve.cpt_80, curve.auc)),
            *(f"{share:.1%}" for share in (kept.all, kept.of_right, kept.wrong)),
            *(f"{share:.1%}" for share in (rule.right_in_all, rule.tokens_in_vain)),
        )
    Console(width=None if Console().is_terminal else 160).print(table)
    click.echo(
        f"kept: at a threshold for {report.error_rate:.1%} wrong among them, chosen on other "
        "prompts; in vain: tokens of answers that were sent away"
    )
