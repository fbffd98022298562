"""Settings in, an engine out: what it runs on, and what is remembered of that."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_worker import loading
from edge_worker.adapters.artefact import Artefact
from edge_worker.adapters.measurements import LoadMeter, MeasurementFile
from edge_worker.app import _meter
from edge_worker.config import WorkerSettings
from edge_worker.loading import LoadedEngine, Measuring, load_engine, measure_again
from edge_worker.ports import HostFacts, ModelError
from fleet_protocol.manifest import CpuClass, Variant
from tests.contract import tiny_model

PI_5 = HostFacts(board="Pi 5", cpu="A76", cores=4, memory_mb=1, cpu_features=("asimddp",))
PI_4 = msgspec.structs.replace(PI_5, board="Pi 4", cpu="A72", cpu_features=("asimd",))


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """The tiny model with a second graph, for boards without dot products."""
    made = tiny_model.build_artefact(tmp_path_factory.mktemp("tiny"))
    (made.folder / "u8").mkdir()
    (made.folder / "u8/model.onnx").write_bytes(made.graph.read_bytes())
    other = Variant(
        name="u8", cpu_class=CpuClass.BASELINE, graph="u8/model.onnx", quantization="x", memory_mb=1
    )
    file = tiny_model.describe(made.folder, other.graph)
    manifest = msgspec.structs.replace(
        made.manifest, variants=(other,), files=(*made.manifest.files, file)
    )
    tiny_model.write_manifest(made.folder, manifest)
    return msgspec.structs.replace(made, manifest=manifest)


class Desk:
    """Loads the tiny model and closes what it loaded.

    Attributes:
        tried: A line for each trial.
    """

    def __init__(self, artefact: Artefact, folder: Path) -> None:
        self.model = str(artefact.folder)
        self.file = MeasurementFile(folder / "benchmark.json")
        self.tried: list[str] = []
        self.loaded: list[LoadedEngine] = []

    def load(
        self, *, facts: HostFacts = PI_5, known: dict[str, bool] | None = None, **wanted: Any
    ) -> LoadedEngine:
        settings = WorkerSettings(model=self.model, context=64, **wanted)
        measuring = Measuring(file=self.file, report=self.tried.append, **(known or {}))
        loaded = load_engine(settings, {}, facts=facts, measuring=measuring)
        self.loaded.append(loaded)
        return loaded


@pytest.fixture
def desk(artefact: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(LoadMeter, "share", lambda _meter: 0.0)
    monkeypatch.setattr("edge_worker.core.tuning.QUIET_SPREAD", 1_000.0)
    desk = Desk(artefact, tmp_path)
    yield desk
    for loaded in desk.loaded:
        loaded.engine.close()


@pytest.mark.parametrize(("facts", "variant"), [(PI_5, "default"), (PI_4, "u8")])
def test_the_graph_is_the_one_for_the_processor(desk: Desk, facts: HostFacts, variant: str) -> None:
    loaded = desk.load(facts=facts, threads=1)
    assert loaded.setup.variant == variant
    assert "as this one" in loaded.why


def test_the_operator_overrides_graph_and_threads(desk: Desk) -> None:
    loaded = desk.load(variant="u8", threads=1)
    assert (loaded.setup.variant, loaded.setup.threads) == ("u8", 1)
    assert len(desk.tried) == 1


def test_a_graph_that_is_not_there_is_named(desk: Desk) -> None:
    with pytest.raises(ModelError) as unknown:
        desk.load(variant="int2")
    assert unknown.value.code == "variant_unknown"


def test_the_second_start_measures_nothing_and_runs_alike(desk: Desk) -> None:
    first = desk.load()
    assert desk.tried
    desk.tried.clear()
    second = desk.load()
    assert desk.tried == []
    assert (second.setup, second.measured) == (first.setup, first.measured)


def test_who_waited_for_another_worker_takes_what_that_one_found(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = desk.load(threads=1)
    found = iter([None, first.measured])
    monkeypatch.setattr(MeasurementFile, "find", lambda _file, _of: next(found))
    assert desk.load(threads=1).measured == first.measured
    assert len(desk.tried) == 1


def test_another_processor_is_measured_anew(desk: Desk) -> None:
    desk.load(threads=1)
    desk.load(threads=1, facts=msgspec.structs.replace(PI_5, cpu="another"))
    assert len(desk.tried) == 2


def test_a_selftest_measures_what_is_known_and_a_check_nothing(desk: Desk) -> None:
    assert desk.load(threads=1, known={"only_known": True}).measured is None
    assert desk.tried == []
    desk.load(threads=1)
    desk.load(threads=1, known={"again": True})
    assert len(desk.tried) == 2
    assert desk.load(threads=1, known={"only_known": True}).measured is not None


@pytest.mark.parametrize(("load_now", "tries"), [(0.0, 2), (0.9, 1)])
def test_a_doubtful_measurement_is_taken_again_once_the_machine_is_quiet(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, *, load_now: float, tries: int
) -> None:
    monkeypatch.setattr(LoadMeter, "share", lambda _meter: 0.9)
    first = desk.load(threads=1)
    assert first.measured is not None
    assert not first.measured.is_steady
    monkeypatch.setattr(LoadMeter, "share", lambda _meter: load_now)
    monkeypatch.setattr(loading, "_LOOK_S", 0.0)
    desk.load(threads=1)
    assert len(desk.tried) == tries


def test_running_workers_do_not_measure_at_the_same_time(desk: Desk) -> None:
    loaded = desk.load(threads=1)
    measure = _meter(loaded.measured, desk.file)
    with desk.file.alone():
        assert measure(loaded.engine).speed is None
    assert measure(loaded.engine).speed is not None


def test_a_running_engine_is_measured_in_its_own_setup(desk: Desk) -> None:
    loaded = desk.load(threads=1)
    assert loaded.measured is not None
    again = measure_again(loaded.engine, loaded.measured)
    assert (again.of, again.chosen.setup) == (loaded.measured.of, loaded.setup)
    assert again.chosen.decode_tok_s > 0
    assert loaded.engine.is_idle


@pytest.mark.parametrize("word", [b"GroupQueryAttention", b"tiny"], ids=["fatal", "harmless"])
def test_a_damaged_file_is_named_whether_or_not_it_loads(
    artefact: Artefact, tmp_path: Path, word: bytes
) -> None:
    folder = shutil.copytree(artefact.folder, tmp_path / "damaged")
    graph = (folder / "model.onnx").read_bytes()
    assert word in graph
    (folder / "model.onnx").write_bytes(graph.replace(word, word[::-1]))
    settings = WorkerSettings(model=str(folder), context=64, threads=1)
    with pytest.raises(ModelError, match=r"model\.onnx has the sha256") as refused:
        load_engine(settings, {}, facts=PI_5)
    assert refused.value.code == "model_damaged"
