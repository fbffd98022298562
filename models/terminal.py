"""What the factory's commands share: recipes, where they work, how they show what they do."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import click
import msgspec

from models.cache import FactoryCache, cache_root
from models.catalog import (
    RECIPE_SUFFIX,
    Recipe,
    load_catalog,
    only_variant,
    read_recipe,
    uncatalogued,
    with_source,
)
from models.errors import UnknownModelError
from models.progress import BarProgress, SilentProgress

json_option = click.option("as_json", "--json", is_flag=True, help="Print one JSON object.")
source_option = click.option(
    "--from",
    "source",
    help="Other weights: file:PATH, https://..., pypi:NAME==VERSION or hf:ORG/NAME.",
)
variant_option = click.option("--variant", help="Only this graph; all of the recipe's by default.")
force_option = click.option(
    "--force", is_flag=True, help="Do every step again; only the download is kept."
)


def factory_cache() -> FactoryCache:
    """Return the cache that the environment names."""
    return FactoryCache(cache_root(os.environ))


def show_progress(*, as_json: bool) -> BarProgress | nullcontext[SilentProgress]:
    """Return bars for people; a program that reads JSON gets a quiet standard error."""
    return nullcontext(SilentProgress()) if as_json else BarProgress()


def print_json(value: object) -> None:
    """Print one JSON object."""
    click.echo(msgspec.json.encode(value).decode())


def find_recipe(name: str, source: str | None = None, variant: str | None = None) -> Recipe:
    """Return the recipe of a catalog name or a TOML file.

    Raises:
        UnknownModelError: The catalog has no such name, and no source was given for it.
        RecipeError: The file is not a recipe, or has no such variant.
    """
    recipe = _named(name, source)
    return recipe if variant is None else only_variant(recipe, variant)


def home_of(cache: FactoryCache, recipe: Recipe) -> Path:
    """Return the folder of the newest artefact of the recipe's version, whether it is there."""
    exact = cache.artefacts / recipe.name / recipe.version
    # A source or adapter that nobody pinned names itself behind the version.
    others = sorted((cache.artefacts / recipe.name).glob(f"{recipe.version}+*/manifest.json"))
    if exact.is_dir() or not others:
        return exact
    return max(others, key=lambda path: path.stat().st_mtime_ns).parent


def find_artefact(target: str) -> Path:
    """Return the folder of an artefact: the folder itself, or the one of a built model's name.

    Raises:
        UnknownModelError: It is not built here, or nobody knows it.
    """
    folder = Path(target)
    if folder.is_dir():
        return folder
    folder = home_of(factory_cache(), find_recipe(target))
    if not folder.is_dir():
        raise UnknownModelError(
            f"{target} is not built here", hint=f"python -m models build {target}"
        )
    return folder


def _named(name: str, source: str | None) -> Recipe:
    if name.endswith(RECIPE_SUFFIX):
        recipe = read_recipe(Path(name))
        return recipe if source is None else with_source(recipe, source)
    catalog = load_catalog()
    if source is None:
        return catalog.find(name)
    try:
        return with_source(catalog.find(name), source)
    except UnknownModelError:
        return uncatalogued(name, source)
