"""What a recipe says about teaching: which families, how often, and how the adapter learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an adapter is learnt.

    Attributes:
        steps: Updates of the adapter.
        step_tokens: Tokens of prompts and answers an update is computed from, about.
        whole: Let the layers' matrices themselves learn, and cut their change to `rank` in the end;
            else two narrow matrices beside each of them learn (LoRA): those of the adapter that
            the run begins with, if there is one.
        rank: Of the two matrices that stand for a change of one; with `megabytes`, the most.
        megabytes: Largest file for the adapter: of the directions of all matrices, those that do
            most are kept, in 8-bit floats. None: `rank` of each, in 16-bit floats.
        alpha: The change is scaled by alpha / rank.
        learning_rate: Highest; it rises over `warmup_steps` and then falls as a cosine to a tenth.
        keep: Families whose answers are also held close to the teacher's distributions, or to the
            checkpoint's own where there is no teacher; `*`: all of them.
        keep_weight: Weight of that against the examples' own loss.
        layers: Layers that learn, counted from the last; None: all.
        seed: Of the examples and of the adapter's first values.
        save_every_steps: A run that was interrupted goes on from the last such step.
    """

    steps: Positive = 2_000
    step_tokens: Positive = 2_048
    whole: bool = False
    rank: Positive = 16
    megabytes: Annotated[float, msgspec.Meta(gt=0.2)] | None = None
    alpha: Positive = 32
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 8e-4
    warmup_steps: Positive = 40
    keep: tuple[str, ...] = ("facts",)
    keep_weight: float = 1.0
    layers: Positive | None = None
    seed: int = 1
    save_every_steps: Positive = 50


class LessonPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[distill]` section of a recipe.

    Attributes:
        shares: How often each family is asked, against the others; see `models.distill.mix`.
            Empty: as the teacher was taught.
        training: How the adapter learns.
        teacher: Recipe (a name, or a file) of a model of the same vocabulary whose distributions
            the `keep` families are held to. A student made of its layers also begins with its
            adapter. None: the checkpoint itself without the adapter.
    """

    shares: Mapping[str, Annotated[float, msgspec.Meta(gt=0)]] = {}
    training: Training = msgspec.field(default_factory=Training)
    teacher: str | None = None
