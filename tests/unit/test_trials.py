"""How a worker finds out what runs best on its machine, and remembers it."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from edge_worker.adapters.echo_engine import EchoEngine
from edge_worker.adapters.measurements import ENTRIES_MOST, LoadMeter, MeasurementFile
from edge_worker.adapters.onnx_session import available_providers, choose_providers
from edge_worker.core.tuning import Measurement, Setup, Trial
from edge_worker.ports import InferenceEngine, ModelError
from edge_worker.service.trials import TrialPlan, run_trials

PLAN = TrialPlan(variants=["default"], providers=["cpu"], counts=(1, 2, 4), cores=2)


class Bench:
    """Opens echo engines and notes for what.

    Attributes:
        opened: Setups, in order.
        broken: Names of variants and providers that cannot be loaded.
        lines: What people were told.
    """

    def __init__(self, *broken: str) -> None:
        self.opened: list[Setup] = []
        self.broken = broken
        self.lines: list[str] = []

    def open(self, setup: Setup) -> InferenceEngine:
        self.opened.append(setup)
        if setup.variant in self.broken or setup.provider in self.broken:
            raise ModelError("it does not start here", code="provider_failed")
        return EchoEngine(slots=1, context_tokens=256)

    def run(self, plan: TrialPlan, **limits: float) -> tuple[Trial, ...]:
        return run_trials(plan, self.open, report=self.lines.append, **limits)


def test_every_count_of_threads_is_tried_once_and_told() -> None:
    bench = Bench()
    trials = bench.run(PLAN)
    assert sorted(setup.threads for setup in bench.opened) == [1, 2, 4]
    assert [trial.setup for trial in trials] == bench.opened
    assert len(bench.lines) == 3
    assert all(trial.decode_tok_s > 0 for trial in trials)


def test_threads_are_tried_for_the_best_graph_alone() -> None:
    bench = Bench()
    plan = msgspec.structs.replace(PLAN, variants=["default", "int4"])
    bench.run(plan)
    assert [setup.threads for setup in bench.opened[:2]] == [2, 2]
    assert len({setup.variant for setup in bench.opened[2:]}) == 1
    assert len(bench.opened) == 4


def test_what_does_not_start_here_is_told_and_the_rest_is_tried() -> None:
    bench = Bench("cuda")
    trials = bench.run(msgspec.structs.replace(PLAN, providers=["cpu", "cuda"]))
    assert {trial.setup.provider for trial in trials} == {"cpu"}
    assert any("cuda, 2 threads: it does not start here" in line for line in bench.lines)


def test_if_nothing_starts_the_reason_is_raised() -> None:
    with pytest.raises(ModelError, match="does not start"):
        Bench("default").run(PLAN)


def test_a_start_never_waits_for_ever() -> None:
    bench = Bench()
    assert len(bench.run(PLAN, most_s=0.0)) == 1
    assert sum("not tried" in line for line in bench.lines) == 2


@pytest.mark.parametrize(
    ("wanted", "available", "chosen"),
    [
        ("auto", ("cpu",), ("cpu",)),
        ("auto", ("tensorrt", "cuda", "cpu"), ("cpu", "cuda")),
        ("auto", ("azure", "cpu"), ("cpu",)),
        ("CUDAExecutionProvider", ("cuda", "cpu"), ("cuda",)),
        ("tensorrt", ("tensorrt", "cuda", "cpu"), ("tensorrt",)),
        ("xnnpack", ("xnnpack", "cpu"), ("xnnpack",)),
    ],
)
def test_auto_is_the_cpu_and_cuda_where_it_is_and_a_name_is_taken_at_its_word(
    wanted: str, available: tuple[str, ...], chosen: tuple[str, ...]
) -> None:
    assert choose_providers(wanted, available) == chosen


@pytest.mark.parametrize(
    ("wanted", "says"),
    [("cuda", "JetPack"), ("tensorrt", "GroupQueryAttention"), ("npu", "auto, cpu")],
)
def test_a_provider_that_is_missing_says_what_to_install(wanted: str, says: str) -> None:
    with pytest.raises(ModelError) as missing:
        choose_providers(wanted, ("cpu",))
    assert missing.value.code == "provider_missing"
    assert says in missing.value.hint


def test_the_cpu_is_always_there() -> None:
    assert "cpu" in available_providers()


@pytest.fixture
def file(tmp_path: Path) -> MeasurementFile:
    return MeasurementFile(tmp_path / "benchmark.json")


def measurement(*of: str, decode_tok_s: float = 1.0) -> Measurement:
    setup = Setup(variant="default", provider="cpu", threads=2)
    trial = Trial(setup=setup, decode_tok_s=decode_tok_s, prefill_tok_s=1.0)
    return Measurement(of=of, chosen=trial, trials=(trial,), load=0.0, measured_at_ms=1)


def test_a_measurement_counts_for_exactly_what_it_was_taken_of(file: MeasurementFile) -> None:
    file.keep(measurement("model", "onnxruntime 1"))
    assert file.find(("model", "onnxruntime 1")) is not None
    assert file.find(("model", "onnxruntime 2")) is None


def test_a_new_measurement_takes_the_place_of_the_old_one_and_of_no_other(
    file: MeasurementFile,
) -> None:
    for of, speed in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        file.keep(measurement(of, decode_tok_s=speed))
    found = [file.find((of,)) for of in "ab"]
    assert [each and each.chosen.decode_tok_s for each in found] == [3.0, 2.0]


def test_the_file_does_not_grow_for_ever(file: MeasurementFile) -> None:
    for number in range(ENTRIES_MOST + 2):
        file.keep(measurement(str(number)))
    assert file.find(("1",)) is None
    assert file.find(("2",)) is not None


@pytest.mark.parametrize("left", [b"", b"{}", b'[{"of": 1}]', b"\0", b'[{"of":["\xff\xfe"]}]'])
def test_a_file_that_cannot_be_read_is_no_measurement(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "benchmark.json"
    path.write_bytes(left)
    file = MeasurementFile(path)
    assert file.find(("a",)) is None
    file.keep(measurement("a"))
    assert file.find(("a",)) is not None


def test_a_file_that_cannot_be_written_is_no_reason_not_to_work(tmp_path: Path) -> None:
    MeasurementFile(tmp_path / "gone" / "benchmark.json").keep(measurement("a"))


def test_who_shares_the_file_measures_after_the_other_one(file: MeasurementFile) -> None:
    order: list[str] = []

    def second() -> None:
        with file.alone(waits.set):
            order.append("second")

    waits = threading.Event()
    thread = threading.Thread(target=second)
    with file.alone(pytest.fail):
        thread.start()
        assert waits.wait(10)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_who_will_not_wait_learns_that_another_one_measures(file: MeasurementFile) -> None:
    with file.alone() as first, file.alone() as second:
        assert (first, second) == (True, False)
    with file.alone() as later:
        assert later


def test_where_nothing_can_be_locked_nobody_waits(tmp_path: Path) -> None:
    with MeasurementFile(tmp_path / "gone" / "benchmark.json").alone(pytest.fail) as alone:
        assert alone


def test_the_load_of_others_is_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([(10.0, 1.0, 100.0), (16.0, 5.0, 108.0), (16.0, 5.0, 100.01)])
    monkeypatch.setattr(LoadMeter, "_read", lambda _meter: next(readings))
    meter = LoadMeter()
    assert meter.share() == 0.25
    assert meter.share() == 0.0
