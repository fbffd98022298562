"""An artefact's graphs are one model: in other numbers, sharing what is equal."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from fleet_protocol.manifest import CpuClass
from models.artefacts.build import Build
from models.cache import FactoryCache, hash_file
from models.catalog import Recipe, VariantRecipe, load_catalog, only_variant
from models.checkpoints.tiny import TinyCheckpoint, tiny_entry, tiny_shape, write_tiny_gguf
from models.errors import CheckpointError, RecipeError, VerificationError
from models.graphs.builder import GRAPH_NAME, WEIGHTS_NAME
from models.graphs.quantize import (
    dequantize_channels,
    quantize_channels,
    quantize_nibbles,
    turn_columns,
)
from models.graphs.reference import reference_logits
from models.graphs.row_products import turned_together
from models.graphs.variants import graph_bytes, graph_name, write_variants
from models.progress import SilentProgress
from models.proof.runner import GraphRunner, log_softmax
from models.proof.verify import architecture_of, read_manifest, verify_artefact

_SEQUENCE = [5, 17, 200, 3, 99, 99, 41, 7]
_DOT = VariantRecipe(name="dot", scheme="int8-block32")
_ROWS = VariantRecipe(name="rows", cpu_class=CpuClass.BASELINE, scheme="dynamic-u8")
_NIBBLES = VariantRecipe(name="nibbles", scheme="int4-block32")
_FLOATS = VariantRecipe(name="floats", scheme="int8-block32-fp32")
_ALL = (_DOT, _ROWS, _NIBBLES, _FLOATS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graphs")
    write_variants(TinyCheckpoint(), _ALL, path, SilentProgress())
    return path


def runner(folder: Path, variant: VariantRecipe, *, rows: int = 1) -> GraphRunner:
    graph = folder / graph_name(_ALL, variant)
    return GraphRunner(graph, architecture_of(TinyCheckpoint()), rows=rows, max_len=64)


@pytest.mark.parametrize(
    ("variant", "nats"), [(_DOT, 0.01), (_ROWS, 0.01), (_FLOATS, 0.01), (_NIBBLES, 1.0)]
)
@pytest.mark.parametrize("ties_embedding", [True, False])
def test_every_variant_is_near_the_unquantised_weights(
    tmp_path: Path, variant: VariantRecipe, nats: float, *, ties_embedding: bool
) -> None:
    checkpoint = TinyCheckpoint(tiny_shape(ties_embedding=ties_embedding))
    write_variants(checkpoint, (variant,), tmp_path, SilentProgress())
    graph = GraphRunner(tmp_path / GRAPH_NAME, architecture_of(checkpoint), max_len=64)
    ours = log_softmax(graph.prefill(_SEQUENCE))
    exact = log_softmax(reference_logits(checkpoint, _SEQUENCE)[-1])
    assert float((np.exp(exact) * (exact - ours)).sum()) < nats


@pytest.mark.parametrize("variant", _ALL)
def test_a_row_gets_the_same_logits_alone_and_among_others(
    folder: Path, variant: VariantRecipe
) -> None:
    alone = runner(folder, variant).step(np.array([[9]]), [0])
    batch = runner(folder, variant, rows=3)
    batch.prefill(_SEQUENCE, row=2)
    together = batch.step(np.array([[9], [250], [44]]), [0, 0, len(_SEQUENCE)])
    if variant in (_DOT, _ROWS):
        assert np.array_equal(alone[0], together[0])
    # 32-bit sums of another shape may be rounded in another order, no more.
    np.testing.assert_allclose(alone[0], together[0], atol=1e-4)


@pytest.mark.parametrize("variant", _ALL)
def test_a_prompt_gives_the_same_logits_in_chunks_and_at_once(
    folder: Path, variant: VariantRecipe
) -> None:
    whole = runner(folder, variant).prefill(_SEQUENCE)
    in_chunks = runner(folder, variant).prefill(_SEQUENCE, chunk=3)
    np.testing.assert_allclose(in_chunks, whole, atol=2e-4)


def test_a_row_of_zeros_is_no_division_by_zero(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint()
    checkpoint.weights["embedding"][9] = 0
    write_variants(checkpoint, (_ROWS,), tmp_path, SilentProgress())
    graph = GraphRunner(tmp_path / GRAPH_NAME, architecture_of(checkpoint), max_len=64)
    assert np.isfinite(graph.prefill([9])).all()


def test_variants_store_what_they_share_once(folder: Path) -> None:
    assert (folder / "floats.onnx.data").stat().st_size == 0
    assert graph_bytes(folder, "floats.onnx") > TinyCheckpoint().shape.parameters()


def test_rows_share_one_table_between_the_embedding_and_a_tied_head(tmp_path: Path) -> None:
    def table_bytes(*, ties_embedding: bool) -> int:
        checkpoint = TinyCheckpoint(tiny_shape(ties_embedding=ties_embedding))
        path = tmp_path / str(ties_embedding)
        path.mkdir()
        write_variants(checkpoint, (_ROWS,), path, SilentProgress())
        wanted = {(checkpoint.shape.hidden, checkpoint.shape.vocab)}
        model = onnx.load_model(path / GRAPH_NAME)
        return sum(len(t.raw_data) for t in model.graph.initializer if {tuple(t.dims)} == wanted)

    assert 2 * table_bytes(ties_embedding=True) == table_bytes(ties_embedding=False) > 0


def test_turning_twice_changes_nothing_and_spreads_what_is_large() -> None:
    matrix = np.zeros((3, 96), np.float32)
    matrix[1, 40] = 100
    size = turned_together(96)
    turned = turn_columns(matrix, size=size)
    assert size == 32
    assert np.abs(turned).max() < 18
    np.testing.assert_allclose(turn_columns(turned, size=size), matrix, atol=1e-4)
    assert turned_together(4096) == 64


def test_the_same_weights_give_the_same_files(folder: Path, tmp_path: Path) -> None:
    write_variants(TinyCheckpoint(), _ALL, tmp_path, SilentProgress())
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert all(hash_file(folder / name) == hash_file(tmp_path / name) for name in names)


def test_bytes_do_not_depend_on_the_variants_beside_them(folder: Path, tmp_path: Path) -> None:
    write_variants(TinyCheckpoint(), (_DOT,), tmp_path, SilentProgress())
    for name in (GRAPH_NAME, WEIGHTS_NAME):
        assert hash_file(folder / name) == hash_file(tmp_path / name)


def test_no_weight_moves_by_more_than_its_scale_in_rows_and_half_of_it_in_nibbles() -> None:
    matrix = np.random.default_rng(3).standard_normal((5, 96)).astype(np.float32)
    matrix[2] = 0
    matrix[3] = np.abs(matrix[3]) + 1
    rows = quantize_channels(matrix)
    back = dequantize_channels(rows)
    assert (np.abs(back - matrix) <= rows.scales[:, None] * 1.001).all()
    nibbles = quantize_nibbles(matrix, block=32)
    low, high = nibbles.values & 15, nibbles.values >> 4
    levels = np.stack([low, high], axis=-1).reshape(5, 3, 32).astype(np.float32)
    zeros = np.stack([nibbles.zero_points & 15, nibbles.zero_points >> 4], axis=-1)
    zeros = zeros.reshape(5, -1)[:, :3].astype(np.float32)
    back = (levels - zeros[..., None]) * nibbles.scales[..., None]
    error = ((back.reshape(5, 96) - matrix) ** 2).mean() / (matrix**2).mean()
    assert error < 0.01


@pytest.mark.parametrize("quantize", [quantize_channels, lambda m: quantize_nibbles(m, block=32)])
def test_weights_that_are_not_finite_are_refused(quantize: object) -> None:
    matrix = np.full((4, 32), np.nan, np.float32)
    with pytest.raises(CheckpointError, match="finite"):
        quantize(matrix)  # type: ignore[operator]  # one of the two above


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    write_tiny_gguf(tmp_path / "tiny.gguf", TinyCheckpoint())
    return msgspec.structs.replace(
        tiny_entry(tmp_path / "tiny.gguf"),
        variants=(_DOT, msgspec.structs.replace(_ROWS, memory_mb=123)),
    )


def test_an_artefact_holds_every_variant_of_its_recipe(recipe: Recipe, tmp_path: Path) -> None:
    report = Build(recipe, FactoryCache(tmp_path / "cache"), SilentProgress()).run()
    manifest = read_manifest(Path(report.path))
    assert (manifest.graph, manifest.cpu_class) == (GRAPH_NAME, CpuClass.DOT)
    (variant,) = manifest.variants
    assert (variant.name, variant.cpu_class, variant.graph) == (
        *("rows", CpuClass.BASELINE, "rows.onnx"),
    )
    assert variant.memory_mb == 123
    assert {"rows.onnx", "rows.onnx.data"} <= {file.path for file in manifest.files}
    assert set(report.variants) == {"dot", "rows"}
    verify_artefact(Path(report.path))


def test_a_damaged_variant_fails_verification(recipe: Recipe, tmp_path: Path) -> None:
    report = Build(recipe, FactoryCache(tmp_path / "cache"), SilentProgress()).run()
    weights = Path(report.path, "rows.onnx.data")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(VerificationError, match=r"rows\.onnx\.data"):
        verify_artefact(Path(report.path))


def test_one_variant_alone_is_another_version(recipe: Recipe, tmp_path: Path) -> None:
    alone = only_variant(recipe, "rows")
    report = Build(alone, FactoryCache(tmp_path / "cache"), SilentProgress()).run()
    manifest = read_manifest(Path(report.path))
    assert (manifest.cpu_class, manifest.variants) == (CpuClass.BASELINE, ())
    assert manifest.version.startswith("1.0.0+rows")
    with pytest.raises(RecipeError, match="no variant 'none'"):
        only_variant(recipe, "none")


def test_every_recipe_serves_boards_without_dot_products() -> None:
    for recipe in load_catalog().recipes:
        assert CpuClass.BASELINE in {variant.cpu_class for variant in recipe.variants}
        # The manifest's bytes must not depend on who builds it.
        assert all(variant.memory_mb for variant in recipe.variants)
