"""From a recipe and its families to an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import msgspec

from models.cache import FactoryCache, fresh_folder, hash_file, hash_key
from models.catalog import AdapterSource, Recipe
from models.checkpoints.adapter import ADAPTER_WEIGHTS, Adapter, adapter_folder
from models.checkpoints.checkpoint import Checkpoint, SourceModel, TextParts
from models.checkpoints.weights import (
    hash_weights,
    open_source,
    recipe_checkpoint,
)
from models.distill.example import Example
from models.distill.lessons import Lessons
from models.distill.low_rank import LowRank, of_layers, read_low_rank
from models.distill.mix import Maker, built_in_makers, family_makers, stream
from models.distill.plan import LessonPlan
from models.distill.student import load_student
from models.errors import MissingExtraError, RecipeError, writing
from models.progress import Progress
from models.sources.fetch import fetch

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
    if not shares:
        raise RecipeError(
            "[distill.shares] names no family", hint="name some, or a teacher that has them"
        )
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


def whole_plan(plan: LessonPlan, teacher: Recipe | None) -> LessonPlan:
    """Return the plan with its teacher's shares, where it has none of its own."""
    if plan.shares or teacher is None or teacher.distill is None:
        return plan
    return msgspec.structs.replace(plan, shares=teacher.distill.shares)


class _Beginning(msgspec.Struct, frozen=True, kw_only=True):
    """What a run begins with.

    Attributes:
        checkpoint: The student's bare weights: what is learnt is a change of them.
        adapter: Taken as learnt already.
    """

    checkpoint: Checkpoint
    adapter: LowRank | None = None


class Teaching:
    """One run of `distill`; interrupted, it goes on from its last saved step."""

    def __init__(
        self,
        recipe: Recipe,
        plan: LessonPlan,
        families: Sequence[Path],
        cache: FactoryCache,
        *,
        teacher: Recipe | None = None,
    ) -> None:
        """`plan` is the recipe's, or a changed one; `teacher` the recipe that it names."""
        self._recipe = recipe
        self._plan = plan
        self._families = families
        self._cache = cache
        self._teacher = teacher

    def run(self, source: Path, text: TextParts, out: Path, progress: Progress) -> TeachReport:
        """Learn, and write the adapter to the folder `out`.

        With families of a user's own, learning goes on from the recipe's adapter.

        Raises:
            MissingExtraError: torch, transformers or peft is not installed.
            RecipeError, CheckpointError, CannotWriteError: As they say.
        """
        train = _load_trainer()
        examples = lessons_of(self._plan, self._families)
        training = self._plan.training
        state = self._state(source)
        taught_by = None if self._teacher is None else self._open(self._teacher, progress)
        start = self._beginning(open_source(source), taught_by)
        model = load_student(start.checkpoint)
        teacher = None if taught_by is None else load_student(taught_by)
        with writing(state):
            trainer = train.Trainer(
                model, training, state, progress, begin=start.adapter, teacher=teacher
            )
            trainer.run(Lessons(text, training).batches(examples))
        with writing(out), fresh_folder(out) as folder:
            trainer.save_adapter(folder)
        weights = out / ADAPTER_WEIGHTS
        return TeachReport(
            adapter=str(out),
            sha256=hash_file(weights),
            size_bytes=weights.stat().st_size,
            steps=training.steps,
        )

    def _open(self, teacher: Recipe, progress: Progress) -> Checkpoint:
        fetched = fetch(teacher.source, self._cache, progress)
        return recipe_checkpoint(teacher, open_source(fetched.path))

    def _beginning(self, source: SourceModel, taught_by: Checkpoint | None) -> _Beginning:
        """Return what the student begins with.

        With families of a user's own: the recipe's adapter. Else a student of the teacher's layers
        has the teacher's.
        """
        bare = recipe_checkpoint(msgspec.structs.replace(self._recipe, adapter=None), source)
        if taught_by is not None and bare.shape.vocab != taught_by.shape.vocab:
            raise RecipeError(
                "the teacher has another vocabulary",
                hint="name one of the same tokenizer, or let it answer: models ask-teacher",
            )
        adapter = None
        if self._families and self._recipe.adapter is not None:
            adapter = _read(self._recipe.adapter)
        elif self._teacher is not None and self._teacher.source == self._recipe.source:
            places = self._places(self._teacher, bare.shape.layers)
            if self._teacher.adapter is not None:
                adapter = of_layers(_read(self._teacher.adapter), places)
        return _Beginning(checkpoint=bare, adapter=adapter)

    def _places(self, teacher: Recipe, layers: int) -> tuple[int, ...]:
        """Return where the student's layers are among the teacher's of the same checkpoint."""
        ours = tuple(range(layers)) if self._recipe.layers is None else self._recipe.layers.keep
        if teacher.layers is None:
            return ours
        missing = sorted(set(ours) - set(teacher.layers.keep))
        if missing:
            raise RecipeError(
                f"{self._recipe.name} keeps layers {missing}, which its teacher has not",
                hint=f"keep some of {list(teacher.layers.keep)}",
            )
        return tuple(teacher.layers.keep.index(layer) for layer in ours)

    def _state(self, source: Path) -> Path:
        """Return the folder that an interrupted run left, if it was this very run."""
        families = [path.read_bytes().hex() for path in self._families]
        plan = msgspec.json.encode(self._plan)
        parts = [source, plan, self._recipe.layers, self._recipe.adapter, *families]
        if self._teacher is not None:
            parts.append(hash_weights(self._teacher, str(self._teacher.source)))
        key = hash_key(*parts)
        return self._cache.root / "factory" / "distill" / key[:32]


def _read(source: AdapterSource) -> LowRank:
    return read_low_rank(Adapter(adapter_folder(source)))


def _load_trainer() -> Any:
    try:
        return import_module("models.distill.train")
    except ImportError as error:
        raise MissingExtraError(
            f"teaching needs torch and peft: {error}", hint="pip install 'edgefleet[distill]'"
        ) from error
