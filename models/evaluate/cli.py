"""`python -m models evaluate`: what a built model is worth."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from models.artefacts.build import Build
from models.artefacts.card import CARD_NAME
from models.cache import FactoryCache
from models.catalog import RECIPE_SUFFIX, Recipe, load_catalog, read_recipe
from models.errors import UnknownModelError, writing
from models.evaluate.evaluation import Findings, Plan, examine
from models.evaluate.fp32 import save_fp32_graph
from models.evaluate.gates import enforce
from models.evaluate.report import EVALUATION_NAME, Evaluation, Score, SuiteResult
from models.evaluate.store import store
from models.graphs.builder import GRAPH_NAME
from models.progress import Progress
from models.proof.verify import read_manifest
from models.suite import read_items
from models.terminal import factory_cache, json_option, print_json, show_progress

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(short_help="Ask a model the held-out suite.")
@click.argument("target")
@click.option("--suite", type=_FILE, help="Ask these items instead (JSON lines).")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N of each family.")
@click.option("--base", help="Print another built model beside it: a name or a folder.")
@click.option("--fp32/--no-fp32", default=True, help="Compare with the unquantised weights.")
@click.option("--constrained/--free", default=True, help="Ask once more, held to the schemas.")
@click.option("--wrong", type=_FILE, help="Write the wrong answers there (JSON lines).")
@json_option
def evaluate(  # noqa: PLR0913 - one parameter an option
    target: str,
    *,
    suite: Path | None,
    limit: int | None,
    base: str | None,
    fp32: bool,
    constrained: bool,
    wrong: Path | None,
    as_json: bool,
) -> None:
    """Ask TARGET (a model's name, or an artefact's folder) the held-out suite.

    Prints right answers by family with 95 % intervals, the distance to the unquantised weights,
    size, speed and memory. An evaluation of the whole suite is kept beside the artefact, with a
    model card. Ends with exit code 7 where the artefact lost more than it may.
    """
    cache = factory_cache()
    with show_progress(as_json=as_json) as progress:
        folder, recipe = _find(target, cache)
        plan = Plan(
            items=None if suite is None else read_items(suite),
            limit=limit,
            base=None if base is None else _find(base, cache)[0],
            is_constrained=constrained,
        )
        with _fp32_graph(recipe if fp32 else None, cache, progress) as fp32_graph:
            plan = msgspec.structs.replace(plan, fp32_graph=fp32_graph)
            findings = examine(folder, progress=progress, plan=plan)
    if wrong is not None:
        _write_wrong(findings, wrong)
    evaluation = findings.evaluation
    if evaluation.is_whole_suite:
        store(evaluation, folder)
    if as_json:
        print_json(msgspec.to_builtins(evaluation))
    else:
        _print_report(evaluation, folder)
    enforce(evaluation.gates)


def _find(target: str, cache: FactoryCache) -> tuple[Path, Recipe | None]:
    """Return an artefact's folder and, where it is known, the recipe it was built by."""
    path = Path(target)
    if path.is_dir():
        return path, _recipe_of(path)
    recipe = read_recipe(path) if path.suffix == RECIPE_SUFFIX else load_catalog().find(target)
    versions = (recipe.version, f"{recipe.version}+*")
    home = cache.artefacts / recipe.name
    built = [folder for version in versions for folder in home.glob(version)]
    if not built:
        raise UnknownModelError(
            f"{recipe.name} {recipe.version} is not built here",
            hint=f"python -m models build {target}",
        )
    return max(built, key=lambda folder: folder.stat().st_mtime), recipe


def _recipe_of(folder: Path) -> Recipe | None:
    manifest = read_manifest(folder)
    try:
        recipe = load_catalog().find(manifest.name)
    except UnknownModelError:
        return None
    return recipe if manifest.version.partition("+")[0] == recipe.version else None


@contextmanager
def _fp32_graph(
    recipe: Recipe | None, cache: FactoryCache, progress: Progress
) -> Iterator[Path | None]:
    """Make the graph of a recipe's unquantised weights; it is gone afterwards: 540 MB."""
    if recipe is None:
        yield None
        return
    with cache.lock():
        checkpoint = Build(recipe, cache, progress).checkpoint
        home = cache.root / "factory"
        with writing(home), tempfile.TemporaryDirectory(prefix="fp32-", dir=home) as folder:
            save_fp32_graph(checkpoint, Path(folder), progress)
            yield Path(folder) / GRAPH_NAME


def _write_wrong(findings: Findings, path: Path) -> None:
    with writing(path):
        lines = (msgspec.json.encode(answer) + b"\n" for answer in findings.wrong)
        path.write_bytes(b"".join(lines))


def _print_report(evaluation: Evaluation, folder: Path) -> None:
    Console().print(_table(evaluation))
    if (held := evaluation.constrained) is not None:
        click.echo(
            f"held to a schema: {_cell(held.valid_json)} valid JSON, {_cell(held.total)} right"
        )
    if (text := evaluation.text) is not None:
        click.echo(
            f"perplexity {text.perplexity:.2f} (fp32 {text.perplexity_fp32:.2f}); divergence "
            f"{text.mean_kl_nats:.4f} nats; same token at {text.top1_share:.1%} of "
            f"{text.positions} positions"
        )
    if (size := evaluation.size) is not None:
        click.echo(f"size {size.graph_bytes / 1e6:.1f} MB, {size.share:.1%} of fp32")
    if (measured := evaluation.measured) is not None:
        click.echo(
            f"alone: {measured.decode_tokens_per_s:.0f} tokens/s written, "
            f"{measured.prefill_tokens_per_s:.0f} read; {measured.memory_mb} MB; "
            f"loads in {measured.load_s} s"
        )
    for gate in evaluation.gates:
        if gate.value is None:
            click.echo(f"gate {gate.name}: not measured")
        else:
            verdict = "kept" if gate.is_passed else "BROKEN"
            click.echo(f"gate {gate.name}: {gate.value:.4f} <= {gate.limit:g}: {verdict}")
    if evaluation.is_whole_suite:
        click.echo(f"kept in {folder}: {EVALUATION_NAME}, {CARD_NAME}")


def _table(evaluation: Evaluation) -> Table:
    results = [evaluation.answers, evaluation.fp32, evaluation.base]
    columns = [result for result in results if result is not None]
    table = Table("language", "family", "asked", *(result.model for result in columns))
    for row in evaluation.answers.families:
        place = (row.language, row.family)
        cells = [_cell(result.by_family().get(place)) for result in columns]
        table.add_row(row.language, row.family, str(row.score.asked), *cells)
    for name, pick in (("all", _total), ("valid JSON", _valid_json)):
        asked = str(pick(evaluation.answers).asked)
        table.add_row("", name, asked, *(_cell(pick(result)) for result in columns))
    table.add_row("", "seconds", "", *(f"{result.elapsed_s:.0f}" for result in columns))
    return table


def _total(result: SuiteResult) -> Score:
    return result.total


def _valid_json(result: SuiteResult) -> Score:
    return result.valid_json


def _cell(score: Score | None) -> str:
    if score is None or not score.asked:
        return ""
    return f"{100 * score.share:.1f} % ({100 * score.low:.0f}-{100 * score.high:.0f})"
