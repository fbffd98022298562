"""Adapters are added, cut down to a student's layers and written without losing anything."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.cache import FactoryCache
from models.catalog import AdapterSource, Layers
from models.checkpoints.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdaptedCheckpoint, Adapter
from models.checkpoints.checkpoint import layer_weight
from models.checkpoints.gguf_reader import GgufSource
from models.checkpoints.tiny import TinyCheckpoint, tiny_entry, write_tiny_gguf
from models.checkpoints.weights import PrunedCheckpoint, recipe_checkpoint
from models.distill.low_rank import (
    LowRank,
    of_layers,
    read_low_rank,
    write_adapter,
)
from models.distill.plan import LessonPlan
from models.distill.teach import Teaching
from models.errors import CheckpointError

SIZES = TinyCheckpoint().shape.sizes()
Q, DOWN = layer_weight(0, "q"), layer_weight(1, "down")


def random_adapter(rank: int, names: tuple[str, ...] = (Q, DOWN), *, seed: int = 1) -> LowRank:
    """Numbers that 16 bits hold exactly."""
    random = np.random.default_rng(seed)

    def draw(rows: int, columns: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return (random.integers(-64, 64, (rows, columns)) / 128).astype(np.float32)

    return {name: (draw(rank, SIZES[name][1]), draw(SIZES[name][0], rank)) for name in names}


def added(adapter: LowRank, name: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    down, up = adapter[name]
    return np.asarray(up.astype(np.float64) @ down)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    adapter = random_adapter(4)
    write_adapter(tmp_path, adapter, scale=2.0)

    read = read_low_rank(Adapter(tmp_path))

    assert Adapter(tmp_path).scale == 2.0
    for name in (Q, DOWN):
        np.testing.assert_array_equal(added(read, name), added(adapter, name))


def test_the_same_adapter_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_adapter(tmp_path / name, random_adapter(4))

    for file in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_teachers_adapter_cut_down_is_that_of_the_pruned_teacher(tmp_path: Path) -> None:
    adapter = random_adapter(4)
    (tmp_path / "whole").mkdir()
    write_adapter(tmp_path / "whole", adapter)
    checkpoint = TinyCheckpoint()
    teacher = PrunedCheckpoint(
        AdaptedCheckpoint(checkpoint, Adapter(tmp_path / "whole")), keep=(1,)
    )

    write_adapter(tmp_path, of_layers(adapter, (1,)))

    student = AdaptedCheckpoint(PrunedCheckpoint(checkpoint, (1,)), Adapter(tmp_path))
    for name in student.shape.sizes():
        np.testing.assert_array_equal(student.weight(name), teacher.weight(name))


def test_an_adapter_with_half_a_pair_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, random_adapter(4))
    path = tmp_path / ADAPTER_WEIGHTS
    # Another name of the same length: the header keeps its size.
    path.write_bytes(
        path.read_bytes().replace(
            b"layers.0.self_attn.q_proj.lora_A", b"layers.0.self_attn.k_proj.lora_A"
        )
    )

    with pytest.raises(CheckpointError, match="only one half"):
        read_low_rank(Adapter(tmp_path))


def test_a_student_begins_as_its_teacher_without_the_other_layers(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", TinyCheckpoint())
    adapter = random_adapter(4)
    (tmp_path / "teacher").mkdir()
    write_adapter(tmp_path / "teacher", adapter)
    source = GgufSource(tmp_path / "tiny.gguf")
    teacher = msgspec.structs.replace(
        tiny_entry(tmp_path / "tiny.gguf"), adapter=AdapterSource(path=str(tmp_path / "teacher"))
    )
    student = msgspec.structs.replace(teacher, adapter=None, layers=Layers(keep=(1,)))
    cache = FactoryCache(tmp_path / "cache")
    teaching = Teaching(student, LessonPlan(), (), cache, teacher=teacher)

    begins = teaching._beginning(source, recipe_checkpoint(teacher, source))

    name = layer_weight(0, "down")
    above = source.weight(layer_weight(1, "down"))
    np.testing.assert_array_equal(begins.checkpoint.weight(name), above)
    assert begins.adapter is not None
    np.testing.assert_array_equal(added(begins.adapter, name), added(adapter, DOWN))
