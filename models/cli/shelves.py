"""What is known, what is built, and where it goes."""

from __future__ import annotations

import os
from pathlib import Path

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Column, Table

from models.artefacts.publish import publish
from models.artefacts.shelf import open_shelf
from models.catalog import Recipe, load_catalog
from models.graphs.variants import describe
from models.proof.verify import verify_artefact
from models.terminal import (
    factory_cache,
    find_artefact,
    find_recipe,
    home_of,
    json_option,
    print_json,
    show_progress,
)


@click.command("list")
@json_option
def list_models(*, as_json: bool) -> None:
    """List the known models, and which of them are built here."""
    cache = factory_cache()
    rows = [
        {
            "name": recipe.name,
            "version": recipe.version,
            "is_built": (home_of(cache, recipe) / "manifest.json").is_file(),
            "licence": recipe.licence,
            "summary": recipe.summary,
        }
        for recipe in load_catalog().recipes
    ]
    if as_json:
        print_json({"models": rows})
        return
    name_column = Column("name", no_wrap=True)
    table = Table(name_column, "version", "built", "summary", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        built = "yes" if row["is_built"] else "no"
        name, version = str(row["name"]), str(row["version"])
        table.add_row(name, version, built, str(row["summary"]))
    Console().print(table)


@click.command(short_help="Show what is known about a model.")
@click.argument("name")
@json_option
def show(name: str, *, as_json: bool) -> None:
    """Show what is known about a model: a name, or a recipe's file."""
    recipe = find_recipe(name)
    home = home_of(factory_cache(), recipe)
    if as_json:
        facts = msgspec.to_builtins(recipe)
        print_json({**facts, "path": str(home), "is_built": home.is_dir()})
        return
    click.echo(f"{recipe.name} {recipe.version}: {recipe.summary}")
    for label, value in _facts(recipe).items():
        click.echo(f"  {label:<11} {value}")
    built = home if home.is_dir() else f"not built: python -m models build {name}"
    click.echo(f"  {'artefact':<11} {built}")


@click.command("publish", short_help="Copy a model to a folder or a server.")
@click.argument("target")
@click.argument("place")
@json_option
def publish_artefact(target: str, place: str, *, as_json: bool) -> None:
    """Publish TARGET (a built model's name, or an artefact's folder) to PLACE.

    PLACE is a folder or an https URL that takes PUT; $EDGEFLEET_PUBLISH_TOKEN is sent along as a
    bearer's token. Files that are there already are not sent again; index.json comes last. A
    version that is published with other bytes is refused.
    """
    folder, shelf = find_artefact(target), open_shelf(place, os.environ)
    with show_progress(as_json=as_json) as progress:
        report = publish(folder, shelf, progress)
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    done = "published" if report.is_new else "was published before"
    click.echo(f"{report.name} {report.version} {done}: {place.rstrip('/')}/{report.manifest}")
    click.echo(f"  {report.sent_bytes / 1e6:.1f} MB sent")


@click.command(short_help="Seal a model with a key of the fleet's.")
@click.argument("target")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    required=True,
    help="As `fleet pki key` made it: its first key seals.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the sealed artefact."
)
@json_option
def encrypt(target: str, *, key_file: Path, out: Path, as_json: bool) -> None:
    """Seal TARGET (a built model's name, or an artefact's folder) with a key of the fleet's.

    AES-256-GCM; the manifest stays readable. Boards that have the key (`model_key_file`) open the
    files into memory alone: see docs/security.md.
    """
    # Only here: nothing else in the factory needs cryptography.
    from fleet_pki.sealing import KeyRing  # noqa: PLC0415 - see above
    from models.artefacts.seal import seal_artefact  # noqa: PLC0415 - see above

    manifest = seal_artefact(find_artefact(target), out, KeyRing.read(key_file))
    if as_json:
        print_json({"name": manifest.name, "version": manifest.version, "path": str(out)})
        return
    click.echo(f"{manifest.name} {manifest.version}, sealed: {out}")


@click.command(short_help="Check hashes, graphs and golden prompts here.")
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def verify(path: Path, *, as_json: bool) -> None:
    """Check an artefact's hashes, its graphs and its golden prompts on this machine."""
    report = verify_artefact(path)
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    click.echo(
        f"{report.name} {report.version} is sound: {report.size_bytes / 1e6:.0f} MB, ", nl=False
    )
    click.echo(f"opset {report.opset}, loads in {report.load_s} s")
    for golden in report.golden:
        click.echo(f"  {golden.messages[-1][1]}  ->  {golden.expect_text} ...")


def _facts(recipe: Recipe) -> dict[str, object]:
    source = recipe.source
    facts: dict[str, object] = {
        "licence": recipe.licence,
        "languages": ", ".join(recipe.languages),
        "source": f"{source.url} ({source.download_mb or '?'} MB)",
        "sha256": source.sha256,
    }
    if recipe.adapter is not None:
        facts["adapter"] = recipe.adapter.path
    if recipe.layers is not None:
        facts["layers"] = f"{len(recipe.layers.keep)} kept"
    for variant in recipe.variants:
        facts[f"for {variant.cpu_class}"] = f"{variant.name}: {describe(variant.scheme)}"
    return facts | {"escalates": f"below a confidence of {recipe.routing.min_confidence}"}
