"""`python -m models distill`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from models.artefacts.build import Build
from models.catalog import Recipe
from models.distill.plan import LessonPlan
from models.distill.teach import Teaching, TeachReport, lessons_of, whole_plan
from models.errors import RecipeError
from models.terminal import factory_cache, find_recipe, json_option, print_json, show_progress

_SHOWN: int = 12


@click.command(
    short_help="Teach a recipe's checkpoint its task families.",
    help="""Teach a recipe's checkpoint its task families; the outcome is a small LoRA adapter.

    RECIPE is the name of one that ships, or the path of your own. Families of your own join with
    --family: a TOML file of templates, a JSONL file of fixed examples, or both under one name; the
    run then goes on from the recipe's adapter, and few steps are enough. An interrupted run goes
    on from its last saved step. Needs the extra `distill` (torch).

    \b
    Examples:
      python -m models distill smollm2-135m-device-int8 --show
      python -m models distill smollm2-135m-device-int8 --out my-adapter
      python -m models distill smollm2-135m-device-int8 --family my_devices.toml --steps 150 \\
          --out my-adapter
    """,
)
@click.argument("recipe")
@click.option(
    "--family",
    "families",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A task family of your own; may be given several times.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Updates.  [as the recipe says]")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="The adapter's folder."
)
@click.option("--show", is_flag=True, help="Print some of the examples instead of learning.")
@json_option
def distill(
    recipe: str,
    *,
    families: tuple[Path, ...],
    steps: int | None,
    out: Path | None,
    show: bool,
    as_json: bool,
) -> None:
    """Teach, or show what would be taught."""
    found = find_recipe(recipe)
    plan = _with_steps(plan_of(found), steps)
    if show:
        _show(plan, families)
        return
    if out is None:
        raise click.UsageError("say where the adapter goes: --out FOLDER")
    with factory_cache().lock(), show_progress(as_json=as_json) as progress:
        cache = factory_cache()
        build = Build(found, cache, progress)
        teacher = None if plan.teacher is None else find_recipe(plan.teacher)
        teaching = Teaching(found, plan, families, cache, teacher=teacher)
        report = teaching.run(build.fetched.path, build.text_parts, out, progress)
    _print(report, as_json=as_json)


def plan_of(recipe: Recipe) -> LessonPlan:
    """Return how a recipe is taught; raises RecipeError where it is not."""
    if recipe.distill is None:
        raise RecipeError(
            f"{recipe.name} has no [distill] section", hint="name a recipe that is taught"
        )
    teacher = recipe.distill.teacher
    return whole_plan(recipe.distill, None if teacher is None else find_recipe(teacher))


def _with_steps(plan: LessonPlan, steps: int | None) -> LessonPlan:
    if steps is None:
        return plan
    training = msgspec.structs.replace(plan.training, steps=steps)
    return msgspec.structs.replace(plan, training=training)


def _show(plan: LessonPlan, families: tuple[Path, ...]) -> None:
    """Print examples, one JSON object a line."""
    examples = lessons_of(plan, families)
    for _ in range(_SHOWN):
        print_json(msgspec.to_builtins(next(examples)))


def _print(report: TeachReport, *, as_json: bool) -> None:
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    click.echo(f"{report.adapter}: {report.size_bytes / 1e6:.1f} MB after {report.steps} steps")
    click.echo("  for a recipe's [adapter]:")
    click.echo(f'  path = "{report.adapter}"')
    click.echo(f'  sha256 = "{report.sha256}"')
