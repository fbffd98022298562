"""The steps of a build, one command each, and the build itself."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from fleet_protocol.manifest import DEFAULT_MODEL
from models.artefacts.build import Build, BuildReport
from models.cache import step_files
from models.sources.fetch import fetch
from models.sources.optimum_export import export_with_optimum
from models.terminal import (
    factory_cache,
    find_recipe,
    force_option,
    json_option,
    print_json,
    show_progress,
    source_option,
    variant_option,
)

out_option = click.option("--out", type=click.Path(path_type=Path), help="Folder of the artefact.")


@click.command("fetch")
@click.argument("name")
@json_option
def fetch_source(name: str, *, as_json: bool) -> None:
    """Only download a model's source and check its hash."""
    recipe, cache = find_recipe(name), factory_cache()
    with show_progress(as_json=as_json) as progress, cache.lock():
        fetched = fetch(recipe.source, cache, progress)
    if as_json:
        print_json({"path": str(fetched.path), "sha256": fetched.sha256})
    else:
        click.echo(str(fetched.path))


@click.command(short_help="Up to the weights: prune, merge, smooth.")
@click.argument("name")
@source_option
@force_option
@json_option
def optimize(name: str, source: str | None, *, force: bool, as_json: bool) -> None:
    """Up to the weights: prune layers, merge the adapter, move outliers into the weights.

    The graph itself needs no passes: it is written fused (one matrix for q, k and v, grouped-query
    attention, an embedding that is the head's table, logits of the last positions only).
    """
    cache = factory_cache()
    with show_progress(as_json=as_json) as progress, cache.lock():
        folder = Build(find_recipe(name, source), cache, progress, force=force).optimized
    _print_step(folder, as_json=as_json)


@click.command(short_help="Up to the graphs: one for each variant.")
@click.argument("name")
@source_option
@variant_option
@force_option
@json_option
def quantize(
    name: str, source: str | None, variant: str | None, *, force: bool, as_json: bool
) -> None:
    """Up to the graphs: one for each variant, in its number format."""
    cache = factory_cache()
    with show_progress(as_json=as_json) as progress, cache.lock():
        folder = Build(find_recipe(name, source, variant), cache, progress, force=force).quantized
    _print_step(folder, as_json=as_json)


@click.command("pack")
@click.argument("name")
@source_option
@variant_option
@out_option
@json_option
def pack_artefact(
    name: str, source: str | None, variant: str | None, out: Path | None, *, as_json: bool
) -> None:
    """Up to the artefact; prints its folder alone."""
    cache = factory_cache()
    with show_progress(as_json=as_json) as progress, cache.lock():
        report = Build(find_recipe(name, source, variant), cache, progress).run(out)
    if as_json:
        print_json({"path": report.path, "is_new": report.is_new})
    else:
        click.echo(report.path)


@click.command(short_help="Build a model: every step that is not done yet.")
@click.argument("name", default=DEFAULT_MODEL)
@source_option
@variant_option
@out_option
@force_option
@json_option
def build(
    name: str,
    source: str | None,
    variant: str | None,
    out: Path | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Build NAME, a known model or a recipe's file: every step that is not done yet.

    Without a name, the model that workers take by default.
    """
    cache = factory_cache()
    with show_progress(as_json=as_json) as progress, cache.lock():
        report = Build(find_recipe(name, source, variant), cache, progress, force=force).run(out)
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        _print_report(report)


@click.command(short_help="Export a checkpoint with optimum, to compare.")
@click.argument("checkpoint")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to fill.")
@json_option
def export(checkpoint: str, out: Path, *, as_json: bool) -> None:
    """Export CHECKPOINT (a folder or ORG/NAME) with optimum, to compare; workers do not load it.

    Needs the extra `models`: pip install 'edgefleet[models]'.
    """
    with show_progress(as_json=as_json) as progress:
        progress.step("export", checkpoint)
        report = export_with_optimum(checkpoint, out)
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    click.echo(f"{report.graph}: {report.graph_bytes / 1e6:.1f} MB")
    click.echo(f"{report.quantized}: {report.quantized_bytes / 1e6:.1f} MB")


def _print_step(folder: Path, *, as_json: bool) -> None:
    """Print a step's folder and files."""
    files = step_files(folder)
    if as_json:
        print_json({"path": str(folder), "files": files})
        return
    click.echo(str(folder))
    for name in files:
        click.echo(f"  {name}  {(folder / name).stat().st_size / 1e6:.1f} MB")


def _print_report(report: BuildReport) -> None:
    done = "built" if report.is_new else "is up to date"
    click.echo(f"{report.name} {report.version} {done} in {report.elapsed_s:.1f} s")
    click.echo(f"  {report.path}")
    click.echo(
        f"  {report.size_bytes / 1e6:.0f} MB in all; a board loads {report.fp32_share:.0%} of "
        f"fp32, {report.memory_mb} MB resident"
    )
    for name, measured in report.variants.items():
        click.echo(
            f"  {name}: loads in {measured.load_s} s, {measured.decode_tokens_per_s:.0f} tokens/s "
            f"written, {measured.prefill_tokens_per_s:.0f} read here"
        )
    for prompt, answer in report.answers.items():
        click.echo(f"  {prompt}  ->  {answer} ...")
    for prompt in report.drifted:
        click.echo(f"  note: this CPU words its answer to {prompt!r} differently", err=True)
