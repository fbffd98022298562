"""`edge-worker selftest`: how does the model run best on this board, how fast, and is it right?"""

from __future__ import annotations

from collections.abc import Mapping

import click
import msgspec

from edge_worker.app import measurement_file
from edge_worker.cli.exits import ExitCode
from edge_worker.config import WorkerSettings
from edge_worker.core.tuning import DEFAULT_VARIANT, Measurement
from edge_worker.loading import LoadedEngine, Measuring, load_engine
from edge_worker.service import GoldenReport, golden_report


def selftest(settings: WorkerSettings, environ: Mapping[str, str], *, as_json: bool) -> ExitCode:
    """Try the ways to run the model, keep what was found for the next start, check the answers.

    Progress goes to standard error. On another graph than the manifest's own the answers may
    differ in a word from what was written down at build time; only their prompts must not.

    Raises:
        FleetError: The engine cannot be loaded or does not work.
    """
    file = measurement_file(settings, environ)
    measuring = Measuring(file=file, again=True, report=_show_progress)
    loaded = load_engine(settings, environ, measuring=measuring)
    try:
        if loaded.golden:
            _show_progress("golden prompts")
        report = golden_report(loaded.engine, loaded.golden)
    finally:
        loaded.engine.close()
    is_own = loaded.setup.variant == DEFAULT_VARIANT
    is_ok = not (report.wrong if is_own else report.miscounted)
    if as_json:
        click.echo(msgspec.json.encode(_summary(loaded, report, is_ok=is_ok)).decode())
    else:
        _show(loaded, report)
    if not is_ok:
        click.echo("edge-worker: this model does not answer here as where it was built", err=True)
        click.echo(
            "next: build or fetch it again; report the CPU if that changes nothing", err=True
        )
    return ExitCode.OK if is_ok else ExitCode.FAILED


def _summary(loaded: LoadedEngine, report: GoldenReport, *, is_ok: bool) -> dict[str, object]:
    measured = _measured(loaded)
    return {
        "ok": is_ok,
        "model": loaded.engine.model,
        "setup": loaded.setup,
        "why": loaded.why,
        "decode_tok_s": measured.chosen.decode_tok_s,
        "prefill_tok_s": measured.chosen.prefill_tok_s,
        "steady": measured.is_steady,
        "load": measured.load,
        "trials": measured.trials,
        "golden": report,
    }


def _show(loaded: LoadedEngine, report: GoldenReport) -> None:
    model, measured = loaded.engine.model, _measured(loaded)
    click.echo(f"model    {model.name} {model.version}")
    click.echo(f"runs on  {loaded.setup} ({loaded.why})")
    click.echo(f"decode   {measured.chosen.decode_tok_s:.1f} tokens/s")
    click.echo(f"prefill  {measured.chosen.prefill_tok_s:.1f} tokens/s")
    click.echo(f"golden   {report.checked - len(report.wrong)} of {report.checked} right")
    if not measured.is_steady:
        click.echo(
            f"doubtful: other programs took {measured.load:.0%} of the processor, and the speed "
            f"varied by {measured.chosen.spread:.0%}; the worker will measure again"
        )


def _measured(loaded: LoadedEngine) -> Measurement:
    if loaded.measured is None:
        raise AssertionError("a selftest measures")
    return loaded.measured


def _show_progress(line: str) -> None:
    click.echo(f"... {line}", err=True)
