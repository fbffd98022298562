"""From a recipe and its families to an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import msgspec

from models.adapter import adapter_folder
from models.cache import FactoryCache, fresh_folder, hash_file, hash_key
from models.catalog import Recipe
from models.checkpoint import TextParts
from models.distill.example import Example
from models.distill.mix import Maker, built_in_makers, family_makers, stream
from models.distill.plan import LessonPlan
from models.distill.student import load_student
from models.errors import MissingExtraError, RecipeError, writing
from models.progress import Progress
from models.weights import open_source, recipe_checkpoint

ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
_OWN_SHARE: Final = 25.0
"""Of a user's families together, beside about 100 of the built-in ones."""


class TeachReport(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run.

    Attributes:
        sha256: Of the adapter's weights, for a recipe.
    """

    adapter: str
    sha256: str
    size_bytes: int
    steps: int


def lessons_of(plan: LessonPlan, families: Sequence[Path]) -> Iterator[Example]:
    """Return the endless stream of a plan's examples, with a user's own families among them.

    Raises:
        RecipeError: A family is not one, or a share names none.
    """
    makers: dict[str, Maker] = built_in_makers()
    shares: dict[str, float] = dict(plan.shares)
    for path in families:
        own = family_makers(path)
        if not own:
            raise RecipeError(
                f"{path} holds nothing to learn", hint="name a family's .toml or .jsonl file"
            )
        for number, maker in enumerate(own):
            makers[f"{path}#{number}"] = maker
            shares[f"{path}#{number}"] = _OWN_SHARE / len(families) / len(own)
    return stream(makers, shares, seed=plan.training.seed)


class Teaching:
    """One run of `distill`; interrupted, it goes on from its last saved step."""

    def __init__(
        self, recipe: Recipe, plan: LessonPlan, families: Sequence[Path], cache: FactoryCache
    ) -> None:
        self._recipe = recipe
        self._plan = plan
        self._families = families
        self._cache = cache

    def run(self, source: Path, text: TextParts, out: Path, progress: Progress) -> TeachReport:
        """Learn, and write the adapter in 16-bit floats to the folder `out`.

        With families of a user's own, learning goes on from the recipe's adapter.

        Raises:
            MissingExtraError: torch, transformers or peft is not installed.
            RecipeError, CheckpointError, CannotWriteError: As they say.
        """
        train = _load_trainer()
        examples = lessons_of(self._plan, self._families)
        training = self._plan.training
        bare = msgspec.structs.replace(self._recipe, adapter=None)
        checkpoint = recipe_checkpoint(bare, open_source(source))
        student = load_student(checkpoint, source if source.is_dir() else None)
        state = self._state(source)
        with writing(state):
            trainer = train.Trainer(student, training, state, progress)
            if self._families and self._recipe.adapter is not None:
                trainer.begin_with(adapter_folder(self._recipe.adapter))
            trainer.run(train.Lessons(text, training).batches(examples))
        with writing(out), fresh_folder(out) as folder:
            trainer.save_adapter(folder)
        weights = out / ADAPTER_WEIGHTS
        return TeachReport(
            adapter=str(out),
            sha256=hash_file(weights),
            size_bytes=weights.stat().st_size,
            steps=training.steps,
        )

    def _state(self, source: Path) -> Path:
        """Return the folder that an interrupted run left, if it was this very run."""
        families = [path.read_bytes().hex() for path in self._families]
        plan = msgspec.json.encode(self._plan)
        key = hash_key(source, plan, self._recipe.layers, self._recipe.adapter, *families)
        return self._cache.root / "factory" / "distill" / key[:32]


def _load_trainer() -> Any:
    try:
        return import_module("models.distill.train")
    except ImportError as error:
        raise MissingExtraError(
            f"teaching needs torch and peft: {error}", hint="pip install 'edgefleet[distill]'"
        ) from error
