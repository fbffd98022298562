"""`python -m models embedding ...`: build and check sentence embeddings."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from models.embedding.build import EmbeddingBuild, EmbeddingReport
from models.embedding.recipe import find_recipe, load_recipes, with_source
from models.embedding.verify import verify_embedding
from models.terminal import factory_cache, json_option, print_json, show_progress

_DEFAULT = "all-minilm-l6-v2-int8"


@click.group(short_help="Build, verify and use sentence embeddings.")
def embedding() -> None:
    """Sentence embeddings: texts to vectors, for likeness between prompts."""


@embedding.command("list")
@json_option
def list_embeddings(*, as_json: bool) -> None:
    """List the known embedding models."""
    recipes = load_recipes()
    if as_json:
        print_json({"models": [msgspec.to_builtins(recipe) for recipe in recipes]})
        return
    for recipe in recipes:
        click.echo(f"{recipe.name} {recipe.version} ({recipe.licence}): {recipe.summary}")


@embedding.command(short_help="Build an embedding model.")
@click.argument("name", default=_DEFAULT)
@click.option("--from", "source", help="Other weights: a folder as file:PATH, or hf:ORG/NAME.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the artefact.")
@click.option("--force", is_flag=True, help="Do every step again; only the download is kept.")
@json_option
def build(name: str, source: str | None, out: Path | None, *, force: bool, as_json: bool) -> None:
    """Build an embedding model: fetch, convert to INT8 ONNX, compare with fp32, pack."""
    recipe = find_recipe(name)
    if source is not None:
        recipe = with_source(recipe, source)
    cache = factory_cache()
    with show_progress(as_json=as_json) as progress, cache.lock():
        report = EmbeddingBuild(recipe, cache, progress, force=force).run(out)
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        _print_report(report)


@embedding.command(short_help="Check hashes, graph and golden embeddings here.")
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def verify(path: Path, *, as_json: bool) -> None:
    """Check an artefact's hashes, its graph and its golden embeddings on this machine."""
    proof = verify_embedding(path)
    if as_json:
        print_json(msgspec.to_builtins(proof))
        return
    click.echo(
        f"{proof.name} {proof.version} is sound: {proof.size_bytes / 1e6:.1f} MB, "
        f"loads in {proof.load_s} s"
    )
    for text, cosine in proof.golden.items():
        click.echo(f"  {cosine:.4f}  {text}")


def _print_report(report: EmbeddingReport) -> None:
    done = "built" if report.is_new else "is up to date"
    quality, cost = report.quality, report.cost
    click.echo(f"{report.name} {report.version} {done} in {report.elapsed_s:.1f} s")
    click.echo(f"  {report.path}")
    click.echo(
        f"  {report.size_bytes / 1e6:.1f} MB, {report.fp32_share:.1%} of fp32; "
        f"{report.memory_mb} MB resident; {cost.ms_alone} ms a sentence, "
        f"{cost.ms_of_16} ms in a batch of 16"
    )
    click.echo(
        f"  cosine to fp32 {quality.mean_cosine} (worst {quality.min_cosine}), rank correlation "
        f"{quality.rank_correlation}, on {quality.sentences} sentences"
    )
    for language, found in quality.paraphrases_found.items():
        click.echo(
            f"  {language}: finds {found:.0%} of paraphrases "
            f"(fp32 {quality.paraphrases_found_fp32[language]:.0%}), "
            f"{quality.unknown_tokens[language]:.0%} of tokens unknown"
        )
