"""GGUF files of every family hold the shape and the weights they were written from."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from gguf import GGUFWriter

from models.checkpoints.checkpoint import LAYER_BIASES, layer_weight
from models.checkpoints.gguf_reader import GgufSource, unpermute
from models.checkpoints.rope import Rope
from models.checkpoints.tiny import TinyCheckpoint, tiny_shape, write_tiny_gguf
from models.errors import CheckpointError


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
@pytest.mark.parametrize("ties_embedding", [True, False])
def test_shape_and_weights_come_back(
    tmp_path: Path, architecture: str, *, ties_embedding: bool
) -> None:
    checkpoint = TinyCheckpoint(tiny_shape(architecture, ties_embedding=ties_embedding))
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path, checkpoint, architecture=architecture)
    source = GgufSource(path)
    assert source.shape == checkpoint.shape
    for name, weight in checkpoint.weights.items():
        assert np.array_equal(source.weight(name), weight), name


def test_the_families_differ_in_the_tiny_shapes_too() -> None:
    shapes = [tiny_shape(name) for name in ("llama", "qwen2", "qwen3", "gemma3")]
    assert len({msgspec.json.encode(shape) for shape in shapes}) == 4
    assert layer_weight(1, LAYER_BIASES[2]) in shapes[1].sizes()


def test_rows_of_a_bias_are_put_back_as_those_of_its_matrix() -> None:
    matrix = np.arange(32, dtype=np.float32)[:, None].repeat(3, axis=1)
    assert np.array_equal(unpermute(matrix, heads=2)[:, 0], unpermute(matrix[:, 0], heads=2))


def test_rotary_divisors_stored_as_a_tensor_belong_to_the_shape(tmp_path: Path) -> None:
    rope = Rope(divisors=(1, 1, 2, 2, 4, 4, 8, 8))
    checkpoint = TinyCheckpoint(msgspec.structs.replace(tiny_shape(), rope=rope))
    write_tiny_gguf(tmp_path / "tiny.gguf", checkpoint)
    assert GgufSource(tmp_path / "tiny.gguf").shape.rope == rope


@pytest.mark.parametrize("architecture", ["qwen3moe", "mamba", "gemma2"])
def test_another_architecture_is_refused_by_name(tmp_path: Path, architecture: str) -> None:
    writer = GGUFWriter(str(tmp_path / "odd.gguf"), architecture)
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=architecture) as caught:
        GgufSource(tmp_path / "odd.gguf")
    assert "Gemma 3" in caught.value.hint


def test_a_tensor_that_nobody_would_read_is_refused(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(tiny_shape("gemma3"))
    write_tiny_gguf(tmp_path / "tiny.gguf", checkpoint, architecture="qwen3")
    with pytest.raises(CheckpointError, match=r"post_(attention|ffw)_norm\.weight"):
        GgufSource(tmp_path / "tiny.gguf")
