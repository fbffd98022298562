"""A build is whole or not there, goes on where it stopped, and proves what it made."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from fleet_protocol.manifest import MANIFEST_NAME, Manifest
from models.artefacts.build import Build
from models.cache import FactoryCache, cache_root, fresh_folder, hash_file
from models.catalog import GoldenCheck, Recipe, with_source
from models.checkpoints.tiny import TinyCheckpoint, tiny_entry, write_tiny_folder, write_tiny_gguf
from models.errors import CannotWriteError, CheckpointError, VerificationError
from models.progress import SilentProgress
from models.proof.measure import measure
from models.proof.verify import architecture_of, read_manifest, verify_artefact


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("source") / "tiny.gguf"
    write_tiny_gguf(path, TinyCheckpoint())
    return tiny_entry(path)


@pytest.fixture(scope="module")
def built(entry: Recipe, tmp_path_factory: pytest.TempPathFactory) -> FactoryCache:
    """A cache with the tiny model in it; tests copy what they change."""
    cache = FactoryCache(tmp_path_factory.mktemp("cache"))
    Build(entry, cache, SilentProgress()).run()
    return cache


@pytest.fixture
def cache(built: FactoryCache, tmp_path: Path) -> FactoryCache:
    shutil.copytree(built.root, tmp_path / "cache")
    return FactoryCache(tmp_path / "cache")


def artefact(cache: FactoryCache) -> Path:
    return next((cache.artefacts / "tiny").iterdir())


def test_an_artefact_has_the_files_that_its_manifest_describes(built: FactoryCache) -> None:
    folder = artefact(built)
    manifest = msgspec.json.decode((folder / MANIFEST_NAME).read_bytes(), type=Manifest)
    described = {file.path: file.sha256 for file in manifest.files}
    assert described == {
        path.name: hash_file(path) for path in folder.iterdir() if path.name != MANIFEST_NAME
    }
    assert (manifest.name, manifest.opset, manifest.licence) == ("tiny", 21, "Apache-2.0")
    assert manifest.context_tokens == 512
    assert manifest.architecture.vocab == TinyCheckpoint().shape.vocab
    assert manifest.stop_tokens == (2,)


def test_an_unpinned_source_is_part_of_the_version(built: FactoryCache) -> None:
    manifest = read_manifest(artefact(built))
    digest = manifest.source.rpartition("=")[2]
    assert manifest.version == f"1.0.0+{digest[:8]}" == artefact(built).name


def test_a_second_build_has_nothing_to_do(cache: FactoryCache, entry: Recipe) -> None:
    progress = SilentProgress()
    assert not Build(entry, cache, progress).run().is_new
    assert progress.steps == ["pack"]


def test_force_does_every_step_again_and_comes_to_the_same_bytes(
    cache: FactoryCache, entry: Recipe
) -> None:
    before = read_manifest(artefact(cache)).files
    progress = SilentProgress()
    Build(entry, cache, progress, force=True).run()
    assert [step.split()[0] for step in progress.steps] == [
        *("tokenizer", "optimize", "quantize", "verify", "pack")
    ]
    assert read_manifest(artefact(cache)).files == before


class PowerCutError(BaseException):
    """The process ends here."""


class ProgressUntil(SilentProgress):
    """Ends the process when a step begins."""

    def __init__(self, last: str) -> None:
        super().__init__()
        self._last = last

    def step(self, name: str, detail: str = "") -> None:
        super().step(name, detail)
        if name == self._last:
            raise PowerCutError


@pytest.mark.parametrize(
    ("stopped_at", "left"),
    [
        ("tokenizer", ["tokenizer", "optimize", "quantize", "verify", "pack"]),
        ("optimize", ["optimize", "quantize", "verify", "pack"]),
        ("quantize", ["quantize", "verify", "pack"]),
        ("verify", ["verify", "pack"]),
        ("pack", ["pack"]),
    ],
)
def test_an_interrupted_build_goes_on_at_its_step(
    entry: Recipe, tmp_path: Path, stopped_at: str, left: list[str]
) -> None:
    cache = FactoryCache(tmp_path / "cache")
    with pytest.raises(PowerCutError):
        Build(entry, cache, ProgressUntil(stopped_at)).run()
    assert not cache.artefacts.exists()
    progress = SilentProgress()
    assert Build(entry, cache, progress).run().is_new
    assert [step.split()[0] for step in progress.steps] == left


def test_a_damaged_step_is_noticed_and_made_again(cache: FactoryCache, entry: Recipe) -> None:
    weights = next((cache.root / "factory" / "steps").glob("graphs-*/model.onnx.data"))
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    progress = SilentProgress()
    assert not Build(entry, cache, progress).run().is_new
    assert progress.steps[0].startswith("quantize")


def test_a_damaged_artefact_is_put_right_by_the_next_build(
    cache: FactoryCache, entry: Recipe
) -> None:
    (artefact(cache) / "tokenizer.json").write_text("{}", "utf-8")
    assert Build(entry, cache, SilentProgress()).run().is_new
    verify_artefact(artefact(cache))


def test_what_a_killed_build_left_is_swept_away(tmp_path: Path) -> None:
    orphan = tmp_path / ".graph.dead"
    orphan.mkdir()
    (orphan / "half").write_bytes(b"x")
    with fresh_folder(tmp_path / "graph") as folder:
        (folder / "whole").write_bytes(b"y")
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


def test_a_failing_step_leaves_nothing(tmp_path: Path) -> None:
    cache = FactoryCache(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise CheckpointError("no")

    with pytest.raises(CheckpointError):
        cache.step("graph", "0" * 64, make=fail)
    assert list((tmp_path / "factory" / "steps").iterdir()) == []


@pytest.mark.parametrize("victim", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_verify_refuses_a_changed_file_and_names_it(cache: FactoryCache, victim: str) -> None:
    path = artefact(cache) / victim
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(VerificationError, match=victim):
        verify_artefact(artefact(cache))


@pytest.mark.parametrize("victim", ["model.onnx.data", MANIFEST_NAME])
def test_verify_refuses_a_missing_file_and_names_it(cache: FactoryCache, victim: str) -> None:
    (artefact(cache) / victim).unlink()
    with pytest.raises(VerificationError, match=victim):
        verify_artefact(artefact(cache))


def test_verify_answers_the_golden_prompts_as_recorded(built: FactoryCache) -> None:
    report = verify_artefact(artefact(built))
    assert report.golden == read_manifest(artefact(built)).golden
    assert report.drifted == ()


@pytest.mark.parametrize(
    "check",
    [
        GoldenCheck(prompt="the 12 cats", tokens=(1, 1, 1), contains="\x00never"),
        GoldenCheck(prompt="the 12 cats", prompt_tokens=3),
    ],
)
def test_a_wrong_golden_answer_fails_the_build_and_packs_nothing(
    cache: FactoryCache, entry: Recipe, check: GoldenCheck
) -> None:
    shutil.rmtree(cache.artefacts)
    strict = msgspec.structs.replace(entry, golden=(check,))
    with pytest.raises(VerificationError, match="the 12 cats"):
        Build(strict, cache, SilentProgress()).run()
    assert not cache.artefacts.exists()


def test_other_words_with_the_right_content_are_noted_not_refused(
    cache: FactoryCache, entry: Recipe
) -> None:
    said = next(iter(Build(entry, cache, SilentProgress()).run().answers.values()))
    loose = GoldenCheck(prompt="the 12 cats", tokens=(1, 1, 1), contains=said[:3])
    report = Build(msgspec.structs.replace(entry, golden=(loose,)), cache, SilentProgress()).run()
    assert report.drifted == ("the 12 cats",)


def test_a_checkpoint_folder_gives_the_same_graph_as_a_gguf_file(
    cache: FactoryCache, entry: Recipe, tmp_path: Path
) -> None:
    text = (artefact(cache) / "tokenizer.json").read_text("utf-8")
    write_tiny_folder(tmp_path / "hf", TinyCheckpoint(), text)
    report = Build(with_source(entry, f"file:{tmp_path / 'hf'}"), cache, SilentProgress()).run()
    ours = {file.path: file.sha256 for file in read_manifest(Path(report.path)).files}
    theirs = {file.path: file.sha256 for file in read_manifest(artefact(cache)).files}
    assert ours == theirs


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, entry: Recipe) -> None:
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"GGUF" + bytes(50))
    with pytest.raises(CheckpointError, match=r"junk\.gguf"):
        Build(with_source(entry, f"file:{junk}"), FactoryCache(tmp_path), SilentProgress()).run()


def test_a_cut_off_checkpoint_is_refused(tmp_path: Path, entry: Recipe) -> None:
    whole = Path(entry.source.url.removeprefix("file:")).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    source = with_source(entry, f"file:{tmp_path / 'cut.gguf'}")
    with pytest.raises(CheckpointError, match=r"cut\.gguf"):
        Build(source, FactoryCache(tmp_path / "cache"), SilentProgress()).run()


def test_a_place_that_cannot_be_written_is_named(cache: FactoryCache, entry: Recipe) -> None:
    with pytest.raises(CannotWriteError, match="/dev/null/model") as caught:
        Build(entry, cache, SilentProgress()).run(Path("/dev/null/model"))
    assert "EDGEFLEET_CACHE" in caught.value.hint


def test_a_full_disk_is_named_and_leaves_no_half_artefact(entry: Recipe, tmp_path: Path) -> None:
    limit_bytes = 20_000

    def fill_the_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    source = entry.source.url
    done = subprocess.run(
        [sys.executable, "-m", "models", "build", "tiny", "--from", source, "--json"],
        env={**os.environ, "EDGEFLEET_CACHE": str(tmp_path)},
        preexec_fn=fill_the_disk,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 8
    assert msgspec.json.decode(done.stdout)["error"]["code"] == "cannot_write"
    assert not (tmp_path / "models").exists()
    assert list(tmp_path.glob("factory/steps/*graphs-*")) == []
    assert list(tmp_path.glob("factory/steps/.*")) == []


def test_the_cache_is_where_the_user_and_the_platform_want_it(tmp_path: Path) -> None:
    home = str(tmp_path)
    assert cache_root({"EDGEFLEET_CACHE": "/srv/fleet", "HOME": home}) == Path("/srv/fleet")
    assert cache_root({"HOME": home}, platform="linux") == tmp_path / ".cache" / "edgefleet"
    xdg = {"HOME": home, "XDG_CACHE_HOME": "/var/cache/me"}
    assert cache_root(xdg, platform="linux") == Path("/var/cache/me/edgefleet")
    relative = {"HOME": home, "XDG_CACHE_HOME": "cache"}
    assert cache_root(relative, platform="linux") == tmp_path / ".cache" / "edgefleet"
    assert cache_root(xdg, platform="darwin") == tmp_path / "Library" / "Caches" / "edgefleet"


def test_a_model_with_a_short_context_is_measured_within_it(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint()
    checkpoint.shape = msgspec.structs.replace(checkpoint.shape, context_tokens=100)
    write_tiny_gguf(tmp_path / "tiny.gguf", checkpoint)
    cache = FactoryCache(tmp_path / "cache")
    report = Build(tiny_entry(tmp_path / "tiny.gguf"), cache, SilentProgress()).run()
    assert read_manifest(Path(report.path)).context_tokens == 100
    assert report.measured.decode_tokens_per_s > 0


def test_a_graph_that_cannot_run_alone_says_why(tmp_path: Path) -> None:
    missing = tmp_path / "missing.onnx"
    with pytest.raises(VerificationError, match=r"missing\.onnx does not load"):
        measure(missing, architecture_of(TinyCheckpoint()), context_tokens=100)
