"""Which files of an artefact a board needs, and which graphs it has."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edge_worker.adapters.artefact import (
    cache_folder,
    check_file,
    files_of,
    load_artefact,
    present_variants,
    read_manifest,
)
from edge_worker.core.tuning import all_variants
from edge_worker.ports import ModelError
from fleet_protocol.manifest import Architecture, CpuClass, Manifest, ModelFile, Variant
from models.cache import cache_root
from tests.contract.tiny_model import describe, write_manifest

FILES = (
    "model.onnx",
    "model.onnx.data",
    "u8/graph.onnx",
    "u8/weights.bin",
    "int4.onnx",
    "tokenizer.json",
)


def variant(name: str, graph: str, cpu_class: CpuClass) -> Variant:
    return Variant(name=name, cpu_class=cpu_class, graph=graph, quantization="x", memory_mb=1)


U8 = variant("u8", "u8/graph.onnx", CpuClass.BASELINE)
INT4 = variant("int4", "int4.onnx", CpuClass.DOT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An artefact with three graphs; their bytes are of no matter here."""
    (tmp_path / "u8").mkdir()
    for name in FILES:
        (tmp_path / name).write_text(name)
    manifest = Manifest(
        name="tiny",
        version="1",
        graph="model.onnx",
        tokenizer="tokenizer.json",
        chat_template="",
        context_tokens=1,
        memory_mb=1,
        stop_tokens=(),
        opset=22,
        source="x",
        licence="x",
        quantization="x",
        architecture=Architecture(layers=1, kv_heads=1, head_dim=1, vocab=1),
        files=tuple(describe(tmp_path, name) for name in FILES),
        variants=(U8, INT4),
    )
    write_manifest(tmp_path, manifest)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("default", {"model.onnx", "model.onnx.data", "tokenizer.json"}),
        ("u8", {"u8/graph.onnx", "u8/weights.bin", "tokenizer.json"}),
        ("int4", {"int4.onnx", "tokenizer.json"}),
    ],
)
def test_a_board_needs_the_files_of_its_graph_and_what_all_need(
    folder: Path, *, name: str, needed: set[str]
) -> None:
    for path in set(FILES) - needed:
        (folder / path).unlink()
    assert load_artefact(folder, variant=name).variant == name
    manifest = read_manifest(folder)
    (chosen,) = (each for each in all_variants(manifest) if each.name == name)
    assert {file.path for file in files_of(manifest, chosen)} == needed
    assert [each.name for each in present_variants(folder, manifest)] == [name]


def test_an_artefact_with_one_graph_needs_every_file(folder: Path) -> None:
    manifest = msgspec.structs.replace(read_manifest(folder), variants=())
    (only,) = all_variants(manifest)
    assert files_of(manifest, only) == manifest.files


def test_two_graphs_in_one_folder_do_not_own_it(folder: Path) -> None:
    other = msgspec.structs.replace(INT4, graph="u8/weights.bin")
    manifest = msgspec.structs.replace(read_manifest(folder), variants=(U8, other))
    assert "u8/graph.onnx" not in {file.path for file in files_of(manifest, other)}


def test_a_graph_of_a_variant_is_checked_like_any(folder: Path) -> None:
    (folder / "u8/weights.bin").write_text("other bytes!!!")
    assert load_artefact(folder).variant == "default"
    with pytest.raises(ModelError) as damaged:
        load_artefact(folder, variant="u8")
    assert damaged.value.code == "model_damaged"


def test_each_graph_has_its_own_hash(folder: Path) -> None:
    hashes = {load_artefact(folder, variant=name).graph_sha256 for name in ("default", "u8")}
    assert len(hashes) == 2


def test_a_variant_the_manifest_does_not_know_is_named(folder: Path) -> None:
    with pytest.raises(ModelError) as unknown:
        load_artefact(folder, variant="int2")
    assert unknown.value.code == "variant_unknown"
    assert "default, u8, int4" in unknown.value.hint


def test_a_graph_that_the_manifest_does_not_list_is_refused(folder: Path) -> None:
    manifest = read_manifest(folder)
    files = tuple(file for file in manifest.files if file.path != "int4.onnx")
    write_manifest(folder, msgspec.structs.replace(manifest, files=files))
    with pytest.raises(ModelError, match=r"does not list int4\.onnx"):
        read_manifest(folder)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"EDGEFLEET_CACHE": "/srv/cache"},
        {"EDGEFLEET_CACHE": "~/cache"},
        {"XDG_CACHE_HOME": "/srv/caches"},
        {"XDG_CACHE_HOME": "caches"},
        {"EDGEFLEET_CACHE": "", "XDG_CACHE_HOME": ""},
    ],
)
def test_a_worker_looks_where_the_factory_puts_its_models(
    more: dict[str, str], platform: str
) -> None:
    environ = {"HOME": "/home/ann", **more}
    assert cache_folder(environ, platform=platform) == cache_root(environ, platform=platform)


def test_a_file_outside_the_artefact_is_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"x")
    for path in (str(outside), "../outside"):
        with pytest.raises(ModelError, match="outside the artefact"):
            check_file(folder, ModelFile(path=path, sha256="0" * 64, size_bytes=1))
