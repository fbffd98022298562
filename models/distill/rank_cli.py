"""`python -m models rank-layers`."""

from __future__ import annotations

from itertools import islice

import click
import msgspec
from rich.console import Console
from rich.table import Table

from models.artefacts.build import Build
from models.distill.cli import plan_of
from models.distill.lessons import Lessons
from models.distill.prune import Ranking, rank_layers
from models.distill.teach import lessons_of
from models.errors import RecipeError
from models.terminal import factory_cache, find_recipe, json_option, print_json, show_progress

_SHOWN: int = 5
# Of the stream that is learnt: others than the first ones of a run.
_SEED: int = 1_000


@click.command("rank-layers", short_help="Find the layers that a student can do without.")
@click.argument("recipe")
@click.option("--drop", type=click.IntRange(min=1), required=True, help="Layers to leave out.")
@click.option(
    "--examples",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Measured on so many.",
)
@click.option("--quick", is_flag=True, help="Only what angles suggest: seconds, and worse.")
@json_option
def rank_layers_command(
    recipe: str, *, drop: int, examples: int, quick: bool, as_json: bool
) -> None:
    """Find the layers that a pruned student of RECIPE can best do without.

    Measures how far blocks of consecutive layers turn what passes through them (arXiv 2403.17887),
    then how far the answers move without them, and without layers that go one by one, each time
    the one that is missed least. On examples of what the recipe teaches, with its adapter merged,
    before the student learns anything. Prints the `keep` of a recipe's [layers]. Needs no torch.
    """
    found = find_recipe(recipe)
    plan = plan_of(found)
    training = msgspec.structs.replace(plan.training, seed=_SEED)
    cache = factory_cache()
    with show_progress(as_json=as_json) as progress, cache.lock():
        build = Build(found, cache, progress)
        layers = build.checkpoint.shape.layers
        if drop >= layers:
            raise RecipeError(
                f"{found.name} has {layers} layers: {drop} cannot be left out",
                hint="leave out fewer; about a third can be healed",
            )
        stream = lessons_of(msgspec.structs.replace(plan, training=training), ())
        lessons = Lessons(build.text_parts, training)
        some = [lessons.lesson(example) for example in islice(stream, examples)]
        ranking = rank_layers(build.checkpoint, some, progress, drop=drop, is_quick=quick)
    if as_json:
        print_json(msgspec.to_builtins(ranking))
    else:
        _print(ranking)


def _print(ranking: Ranking) -> None:
    table = Table("without layers", "angle in half turns", title=f"{ranking.positions} positions")
    for block in ranking.blocks[:_SHOWN]:
        table.add_row(str(block), f"{block.angle:.4f}")
    Console().print(table)
    for choice in ranking.choices:
        gone = ", ".join(map(str, choice.blocks))
        click.echo(f"without {gone}: divergence {choice.kl_nats:.3f} nats before learning")
        click.echo(f"  keep = {list(choice.keep)}")
