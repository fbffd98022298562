"""The embedding models that this package knows how to build: `models/recipes/embedding/*.toml`."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Annotated, Literal

import msgspec

from models.catalog import Source
from models.errors import UnknownModelError


class EmbeddingRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one embedding artefact is made.

    Attributes:
        source: Of a sentence-transformers folder.
        block: Weights that share a scale, 8 bits each.
        max_unknown_share: See `EmbeddingManifest`.
        golden: Texts whose embeddings the manifest holds.
    """

    kind: Literal["embedding"] = "embedding"
    name: str
    version: str
    summary: str
    licence: str
    languages: tuple[str, ...] = ("en",)
    source: Source
    block: Annotated[int, msgspec.Meta(ge=16)] = 128
    max_unknown_share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.1
    golden: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]


def load_recipes() -> tuple[EmbeddingRecipe, ...]:
    """Read the recipes that ship with this package, by name."""
    folder = resources.files("models") / "recipes" / "embedding"
    texts = [path.read_text("utf-8") for path in folder.iterdir() if path.name.endswith(".toml")]
    recipes = [msgspec.convert(tomllib.loads(text), EmbeddingRecipe) for text in texts]
    return tuple(sorted(recipes, key=lambda recipe: recipe.name))


def find_recipe(name: str) -> EmbeddingRecipe:
    """Return the recipe of that name; raises UnknownModelError naming the known ones."""
    recipes = load_recipes()
    for recipe in recipes:
        if recipe.name == name:
            return recipe
    known = ", ".join(recipe.name for recipe in recipes)
    raise UnknownModelError(f"there is no embedding model {name!r}", hint=f"known: {known}")


def with_source(recipe: EmbeddingRecipe, url: str) -> EmbeddingRecipe:
    """Return the recipe with other weights, which nobody pinned."""
    return msgspec.structs.replace(recipe, source=Source(url=url), licence="NOASSERTION")
