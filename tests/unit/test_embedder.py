"""A board embeds texts as the factory promised, or says why it cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edge_worker.adapters.embedder import OnnxEmbedder
from edge_worker.ports import Embedder, ModelError
from fleet_protocol.manifest import MANIFEST_NAME
from models.cache import FactoryCache
from models.catalog import Source
from models.embedding.build import EmbeddingBuild
from models.embedding.recipe import EmbeddingRecipe
from models.progress import SilentProgress
from tests.data.tiny_encoder import tiny_encoder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tiny_encoder.write(tmp_path_factory.mktemp("source") / "tiny")
    recipe = EmbeddingRecipe(
        name="tiny-encoder",
        version="1.0.0",
        summary="made-up weights",
        licence="Apache-2.0",
        source=Source(url=f"file:{source}"),
        block=16,
        golden=tiny_encoder.TEXTS[:3],
    )
    cache = FactoryCache(tmp_path_factory.mktemp("cache"))
    return Path(EmbeddingBuild(recipe, cache, SilentProgress()).run().path)


@pytest.fixture
def artefact(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "artefact"))


def test_vectors_have_length_one_and_do_not_depend_on_their_batch(built: Path) -> None:
    embedder: Embedder = OnnxEmbedder(built)
    texts = list(tiny_encoder.TEXTS[:3]) * 7
    vectors = embedder.embed(texts)
    assert vectors.shape == (21, embedder.dimensions)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[:3], vectors[18:], atol=1e-6)
    assert embedder.model[0] == "tiny-encoder"


def test_no_texts_give_no_vectors(built: Path) -> None:
    assert OnnxEmbedder(built).embed([]).shape == (0, tiny_encoder.HIDDEN)


def test_a_text_of_unknown_words_is_like_nothing(built: Path) -> None:
    known, unknown, empty = OnnxEmbedder(built).embed(["the door", "打开厨房的灯", ""])
    assert np.linalg.norm(known) == pytest.approx(1, abs=1e-5)
    assert not unknown.any()
    assert np.isfinite(empty).all()


def test_nothing_is_loaded_before_the_first_text(artefact: Path) -> None:
    embedder = OnnxEmbedder(artefact)
    (artefact / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"model\.onnx") as caught:
        embedder.embed(["door"])
    assert caught.value.code == "model_damaged"


def test_a_graph_that_breaks_its_promise_is_not_used(artefact: Path) -> None:
    manifest = json.loads((artefact / MANIFEST_NAME).read_text())
    manifest["golden"][0]["vector"] = manifest["golden"][1]["vector"]
    (artefact / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="promises") as caught:
        OnnxEmbedder(artefact).embed(["door"])
    assert caught.value.code == "model_wrong_graph"


@pytest.mark.parametrize(
    ("text", "code"),
    [(None, "model_missing"), ("{}", "model_damaged"), ('{"kind":"difficulty"}', "model_damaged")],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, text: str | None, code: str) -> None:
    if text is not None:
        (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(ModelError) as caught:
        OnnxEmbedder(tmp_path)
    assert caught.value.code == code
    assert caught.value.hint
