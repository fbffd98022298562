"""Which layers a student can best do without: those that hardly turn what passes through them.

The angle between what a block of consecutive layers reads and what it leaves says how much the
block does; blocks with small angles can go. Angles are measured at the positions from which
an answer's tokens are said, on examples of what the recipe teaches.

Sources: blocks by angle, arXiv 2403.17887; single layers by likeness, arXiv 2403.03853.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from models.checkpoint import EMBEDDING, HEAD, Checkpoint, Float32Array
from models.distill.lessons import Lesson
from models.progress import Progress
from models.reference import reference_hidden, residual_stream
from models.runner import log_softmax
from models.weights import PrunedCheckpoint

Angles: TypeAlias = npt.NDArray[np.float64]
"""[layers + 1, layers + 1]: mean angle between what layers read, in half turns, 0 to 1."""

_COMPARED: Final = 5


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive layers.

    Attributes:
        first: Counted from 0.
        angle: Between what the first one reads and the last one leaves, in half turns.
    """

    first: int
    layers: int
    angle: float

    def __str__(self) -> str:
        last = self.first + self.layers - 1
        return f"{self.first}-{last}" if self.layers > 1 else str(self.first)


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A way to prune.

    Attributes:
        keep: For a recipe's [layers].
        blocks: What goes.
        kl_nats: Mean divergence of the untaught student's answer tokens from the whole model's.
    """

    keep: tuple[int, ...]
    blocks: tuple[Block, ...]
    kl_nats: float


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to choose from.

    Attributes:
        positions: Of answers, that were measured.
        blocks: All blocks of as many layers as shall go, smallest angle first.
        choices: The best blocks, and the layers that turn least on their own; smallest divergence
            first, which decides: in a small model the angles alone do not.
    """

    recipe: str
    positions: int
    blocks: tuple[Block, ...]
    choices: tuple[Choice, ...]


def rank_layers(
    name: str, checkpoint: Checkpoint, lessons: Sequence[Lesson], progress: Progress, *, drop: int
) -> Ranking:
    """Rank the ways to leave out `drop` layers of a recipe's weights."""
    progress.step("angles", f"{len(lessons)} examples")
    angles = measure_angles(checkpoint, lessons, progress)
    layers = checkpoint.shape.layers
    blocks = sorted(
        (_block(angles, first, drop) for first in range(layers - drop + 1)),
        key=lambda block: block.angle,
    )
    ways: list[tuple[Block, ...]] = [(block,) for block in blocks[:_COMPARED]]
    if (still := still_layers(angles, drop)) not in ways:
        ways.append(still)
    choices = []
    for way in ways:
        keep = _left(layers, way)
        progress.step("compare", "without " + ", ".join(map(str, way)))
        student = PrunedCheckpoint(checkpoint, keep)
        distance = round(divergence(checkpoint, student, lessons, progress), 4)
        choices.append(Choice(keep=keep, blocks=way, kl_nats=distance))
    return Ranking(
        recipe=name,
        positions=sum(sum(lesson.learnt) for lesson in lessons),
        blocks=tuple(blocks),
        choices=tuple(sorted(choices, key=lambda choice: choice.kl_nats)),
    )


def measure_angles(checkpoint: Checkpoint, lessons: Sequence[Lesson], progress: Progress) -> Angles:
    """Return the mean angle between what any two layers read; the last row is what is left."""
    total = np.zeros((checkpoint.shape.layers + 1,) * 2)
    positions = 0
    for done, lesson in enumerate(lessons, start=1):
        said = _said_from(lesson)
        stream = [hidden[said] for hidden in residual_stream(checkpoint, lesson.tokens)]
        units = np.stack(stream).astype(np.float64)
        units /= np.linalg.norm(units, axis=-1, keepdims=True)
        likeness = np.einsum("aph,bph->abp", units, units).clip(-1.0, 1.0)
        total += np.arccos(likeness).sum(axis=-1) / np.pi
        positions += len(said)
        progress.advance(done, len(lessons))
    return total / positions


def still_layers(angles: Angles, drop: int) -> tuple[Block, ...]:
    """Return the `drop` layers that turn least, each on its own, as blocks in order."""
    single = np.diagonal(angles, 1)
    gone = sorted(int(layer) for layer in np.argsort(single, kind="stable")[:drop])
    starts = [layer for layer in gone if layer - 1 not in gone]
    ends = [layer + 1 for layer in gone if layer + 1 not in gone]
    return tuple(
        _block(angles, first, end - first) for first, end in zip(starts, ends, strict=True)
    )


def divergence(
    checkpoint: Checkpoint, student: Checkpoint, lessons: Sequence[Lesson], progress: Progress
) -> float:
    """Return the mean KL divergence of a student's next tokens from the checkpoint's, in nats."""
    total, positions = 0.0, 0
    for done, lesson in enumerate(lessons, start=1):
        wanted, given = (_ahead(model, lesson) for model in (checkpoint, student))
        total += float((np.exp(wanted) * (wanted - given)).sum())
        positions += len(wanted)
        progress.advance(done, len(lessons))
    return total / positions


def _ahead(checkpoint: Checkpoint, lesson: Lesson) -> npt.NDArray[np.float64]:
    """Return the log-probabilities [positions, vocab] of an answer's tokens."""
    hidden = reference_hidden(checkpoint, lesson.tokens)[_said_from(lesson)]
    head: Float32Array = checkpoint.weight(EMBEDDING if checkpoint.shape.ties_embedding else HEAD)
    return log_softmax(hidden @ head.T)


def _said_from(lesson: Lesson) -> list[int]:
    """Return the positions whose next token is to be said."""
    return [position - 1 for position, said in enumerate(lesson.learnt) if said]


def _block(angles: Angles, first: int, size: int) -> Block:
    angle = round(float(angles[first, first + size]), 5)
    return Block(first=first, layers=size, angle=angle)


def _left(layers: int, blocks: Sequence[Block]) -> tuple[int, ...]:
    gone = {layer for block in blocks for layer in range(block.first, block.first + block.layers)}
    return tuple(layer for layer in range(layers) if layer not in gone)
