"""Which layers a student can best do without: those that hardly turn what passes through them.

The angle between what a block of consecutive layers reads and what it leaves says how much the
block does; blocks with small angles can go. In a small model some layers that hardly turn anything
are needed all the same, so what decides is how far the answers' distributions move without them.
All is measured at the positions from which an answer's tokens are said, on examples of what the
recipe teaches.

Sources: blocks by angle, arXiv 2403.17887; single layers by likeness, arXiv 2403.03853.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from models.checkpoints.checkpoint import EMBEDDING, HEAD, Checkpoint, Float32Array
from models.checkpoints.weights import PrunedCheckpoint
from models.distill.lessons import Lesson
from models.graphs.reference import reference_hidden, residual_stream
from models.progress import Progress
from models.proof.runner import log_softmax

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
        kl_nats: Mean divergence of the untaught student's next tokens from the whole model's.
    """

    keep: tuple[int, ...]
    blocks: tuple[Block, ...]
    kl_nats: float


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to choose from.

    Attributes:
        positions: Of answers, that were measured.
        blocks: All blocks of as many layers as shall go, smallest angle first.
        choices: The best blocks, the layers that turn least on their own, and those that were
            peeled off one by one; smallest divergence first.
    """

    positions: int
    blocks: tuple[Block, ...]
    choices: tuple[Choice, ...]


def rank_layers(
    checkpoint: Checkpoint,
    lessons: Sequence[Lesson],
    progress: Progress,
    *,
    drop: int,
    is_quick: bool = False,
) -> Ranking:
    """Rank the ways to leave out `drop` layers; `is_quick`: only those that angles suggest."""
    progress.step("angles", f"{len(lessons)} examples")
    angles = measure_angles(checkpoint, lessons, progress)
    layers = checkpoint.shape.layers
    blocks = sorted(
        (_block(angles, first, drop) for first in range(layers - drop + 1)),
        key=lambda block: block.angle,
    )
    divergence = Divergence(checkpoint, lessons)
    progress.step("compare", "what angles suggest")
    ways = {_left(layers, [block]) for block in blocks[:_COMPARED]}
    ways.add(_left(layers, still_layers(angles, drop)))
    found = {}
    for done, keep in enumerate(sorted(ways), start=1):
        found[keep] = divergence.of(PrunedCheckpoint(checkpoint, keep))
        progress.advance(done, len(ways))
    if not is_quick:
        keep = peel(checkpoint, divergence, progress, drop=drop)
        found[keep] = divergence.of(PrunedCheckpoint(checkpoint, keep))
    return Ranking(
        positions=divergence.positions,
        blocks=tuple(blocks),
        choices=tuple(
            Choice(keep=keep, blocks=_missing(angles, keep), kl_nats=round(nats, 4))
            for keep, nats in sorted(found.items(), key=lambda item: (item[1], item[0]))
        ),
    )


def peel(
    checkpoint: Checkpoint, divergence: Divergence, progress: Progress, *, drop: int
) -> tuple[int, ...]:
    """Return what is left when, `drop` times, the layer goes without which least is lost."""
    keep = tuple(range(checkpoint.shape.layers))
    for gone in range(drop):
        progress.step("peel", f"layer {gone + 1} of {drop}")
        losses = []
        for done, layer in enumerate(keep, start=1):
            left = tuple(other for other in keep if other != layer)
            losses.append((divergence.of(PrunedCheckpoint(checkpoint, left)), left))
            progress.advance(done, len(keep))
        keep = min(losses)[1]
    return keep


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
    order = np.argsort(np.diagonal(angles, 1), kind="stable")
    return _missing(angles, [int(layer) for layer in order[drop:]])


class Divergence:
    """How far a student's next tokens are from the checkpoint's, in nats.

    Attributes:
        positions: Of answers, that are compared.
    """

    def __init__(self, checkpoint: Checkpoint, lessons: Sequence[Lesson]) -> None:
        self._lessons = lessons
        self._wanted = [_ahead(checkpoint, lesson) for lesson in lessons]
        self.positions = sum(len(wanted) for wanted in self._wanted)

    def of(self, student: Checkpoint) -> float:
        """Return the mean KL divergence."""
        total = 0.0
        for lesson, wanted in zip(self._lessons, self._wanted, strict=True):
            given = _ahead(student, lesson)
            total += float((np.exp(wanted) * (wanted - given)).sum())
        return total / self.positions


def _ahead(checkpoint: Checkpoint, lesson: Lesson) -> Float32Array:
    """Return the log-probabilities [positions, vocab] of an answer's tokens."""
    hidden = reference_hidden(checkpoint, lesson.tokens)[_said_from(lesson)]
    head: Float32Array = checkpoint.weight(EMBEDDING if checkpoint.shape.ties_embedding else HEAD)
    return log_softmax(hidden @ head.T).astype(np.float32)


def _said_from(lesson: Lesson) -> list[int]:
    """Return the positions whose next token is to be said."""
    return [position - 1 for position, said in enumerate(lesson.learnt) if said]


def _block(angles: Angles, first: int, size: int) -> Block:
    angle = round(float(angles[first, first + size]), 5)
    return Block(first=first, layers=size, angle=angle)


def _left(layers: int, blocks: Sequence[Block]) -> tuple[int, ...]:
    gone = {layer for block in blocks for layer in range(block.first, block.first + block.layers)}
    return tuple(layer for layer in range(layers) if layer not in gone)


def _missing(angles: Angles, keep: Sequence[int]) -> tuple[Block, ...]:
    """Return the layers that are not kept, those in a row as one block."""
    gone = [layer for layer in range(len(angles) - 1) if layer not in keep]
    starts = [layer for layer in gone if layer - 1 not in gone]
    ends = [layer + 1 for layer in gone if layer + 1 not in gone]
    return tuple(
        _block(angles, first, end - first) for first, end in zip(starts, ends, strict=True)
    )
