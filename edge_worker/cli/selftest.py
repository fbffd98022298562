"""`edge-worker selftest`: how fast is the model on this board, and is it right?"""

from __future__ import annotations

from collections.abc import Mapping

import click
import msgspec

from edge_worker.app import load_engine
from edge_worker.cli.exits import ExitCode
from edge_worker.config import WorkerSettings
from edge_worker.service import golden_report, measure_speed


def selftest(settings: WorkerSettings, environ: Mapping[str, str], *, as_json: bool) -> ExitCode:
    """Measure, compare with the artefact's golden prompts, print.

    Raises:
        FleetError: The engine cannot be loaded or does not work.
    """
    loaded = load_engine(settings, environ)
    engine = loaded.engine
    try:
        report = golden_report(engine, loaded.golden)
        speed = measure_speed(engine)
    finally:
        engine.close()
    is_ok = not report.wrong
    if as_json:
        result = {
            "ok": is_ok,
            "model": engine.model,
            "decode_tok_s": speed.decode_tok_s,
            "prefill_tok_s": speed.prefill_tok_s,
            "golden": report,
        }
        click.echo(msgspec.json.encode(result).decode())
    else:
        right = report.checked - len(report.wrong)
        click.echo(f"model    {engine.model.name} {engine.model.version}")
        click.echo(f"decode   {speed.decode_tok_s:.1f} tokens/s")
        click.echo(f"prefill  {speed.prefill_tok_s:.1f} tokens/s")
        click.echo(f"golden   {right} of {report.checked} right")
    if not is_ok:
        click.echo("edge-worker: this model does not answer here as where it was built", err=True)
        click.echo(
            "next: build or fetch it again; report the CPU if that changes nothing", err=True
        )
    return ExitCode.OK if is_ok else ExitCode.FAILED
