"""Which graph and how many threads suit a machine."""

from __future__ import annotations

import msgspec
import pytest

from edge_worker.core.tuning import (
    LASTS_MS,
    Measurement,
    Setup,
    Trial,
    choose_trial,
    cpu_class_of,
    shortlist,
    spread_of,
    thread_counts,
)
from fleet_protocol.manifest import CpuClass, Variant

PI_4 = ["fp", "asimd", "evtstrm", "crc32", "cpuid"]
PI_5 = [
    "fp",
    "asimd",
    "evtstrm",
    "aes",
    "pmull",
    "sha1",
    "sha2",
    "crc32",
    "atomics",
    "fphp",
    "asimdhp",
    "cpuid",
    "asimdrdm",
    "asimddp",
]
ORIN = [*PI_5, "i8mm"]
OLD_PC = ["fpu", "sse", "sse2", "ssse3", "sse4_1", "sse4_2", "avx"]
PC = [*OLD_PC, "avx2", "fma"]


@pytest.mark.parametrize(
    ("features", "cpu_class"),
    [
        (PI_4, CpuClass.BASELINE),
        (PI_5, CpuClass.DOT),
        (ORIN, CpuClass.DOT),
        (OLD_PC, CpuClass.BASELINE),
        (PC, CpuClass.DOT),
        ((), CpuClass.BASELINE),
    ],
)
def test_the_class_of_a_processor_is_what_its_flags_say(
    features: list[str], cpu_class: CpuClass
) -> None:
    assert cpu_class_of(features) is cpu_class


def variant(name: str, cpu_class: CpuClass) -> Variant:
    return Variant(
        name=name, cpu_class=cpu_class, graph=f"{name}.onnx", quantization="x", memory_mb=1
    )


DEFAULT = variant("default", CpuClass.DOT)
INT4 = variant("int4", CpuClass.DOT)
DYNAMIC = variant("dynamic-u8", CpuClass.BASELINE)


@pytest.mark.parametrize(
    ("cpu_class", "wanted", "names"),
    [
        (CpuClass.DOT, None, ["default", "int4"]),
        (CpuClass.BASELINE, None, ["dynamic-u8"]),
        (CpuClass.BASELINE, "default", ["default"]),
    ],
)
def test_what_is_tried_is_made_for_the_processor_or_wanted_by_the_operator(
    cpu_class: CpuClass, wanted: str | None, names: list[str]
) -> None:
    found = shortlist([DEFAULT, INT4, DYNAMIC], cpu_class=cpu_class, wanted=wanted)
    assert [variant.name for variant in found.variants] == names


def test_a_graph_that_needs_no_dot_products_serves_every_processor() -> None:
    for cpu_class in CpuClass:
        found = shortlist([DYNAMIC], cpu_class=cpu_class, wanted=None)
        assert (found.variants, "crawl" in found.why) == ((DYNAMIC,), False)


def test_a_processor_nothing_is_made_for_tries_what_is_there_and_says_so() -> None:
    found = shortlist([DEFAULT], cpu_class=CpuClass.BASELINE, wanted=None)
    assert [variant.name for variant in found.variants] == ["default"]
    assert "crawl" in found.why


def test_a_wanted_variant_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError, match="int2"):
        shortlist([DEFAULT], cpu_class=CpuClass.DOT, wanted="int2")


@pytest.mark.parametrize(
    ("cores", "logical", "counts"),
    [
        (1, 1, (1,)),
        (1, 2, (1, 2)),
        (2, 2, (1, 2)),
        (4, 4, (1, 2, 3, 4)),
        (4, 8, (1, 2, 3, 4, 8)),
        (6, 6, (1, 2, 4, 6)),
        (16, 32, (1, 2, 4, 8, 16, 32)),
        (64, 128, (4, 8, 16, 32, 64, 128)),
        (8, 4, (1, 2, 4, 8)),
    ],
)
def test_few_counts_of_threads_are_tried(cores: int, logical: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(cores=cores, logical=logical) == counts


def trial(threads: int, decode_tok_s: float, *, spread: float = 0.0, prefill: float = 1e9) -> Trial:
    setup = Setup(variant="default", provider="cpu", threads=threads)
    return Trial(setup=setup, decode_tok_s=decode_tok_s, prefill_tok_s=prefill, spread=spread)


@pytest.mark.parametrize(
    ("speeds", "threads"),
    [
        ([55.0, 87.0], 2),
        ([10.0, 18.0, 21.0, 22.0], 3),
        ([10.0, 18.0, 19.0, 30.0], 4),
        ([10.0, 10.2, 9.0, 5.0], 1),
        ([10.0, 15.0, 15.7, 15.5], 2),
        ([12.0], 1),
    ],
)
def test_the_best_decode_wins_a_tie_takes_fewer_threads_and_the_last_core_must_pay(
    speeds: list[float], threads: int
) -> None:
    trials = [trial(number, speed) for number, speed in enumerate(speeds, 1)]
    assert choose_trial(trials, cores=len(speeds)).setup.threads == threads


def test_who_reads_much_faster_wins_although_it_writes_a_little_slower() -> None:
    slow, fast = trial(2, 10.0, prefill=50.0), trial(2, 9.0, prefill=90.0)
    assert choose_trial([slow, fast], cores=4) is fast


def test_a_trial_without_a_speed_is_never_chosen() -> None:
    broken, sound = trial(1, 90.0, prefill=0.0), trial(2, 1.0)
    assert choose_trial([broken, sound], cores=4) is sound


def measurement(*, load: float, spread: float) -> Measurement:
    chosen = trial(2, 10.0, spread=spread)
    return Measurement(of=(), chosen=chosen, trials=(chosen,), load=load, measured_at_ms=1_000)


@pytest.mark.parametrize(
    ("load", "spread", "due_at_ms"),
    [(0.0, 0.0, 1_000 + LASTS_MS), (0.3, 0.0, 0), (0.0, 0.3, 0)],
)
def test_a_measurement_under_load_is_doubtful_at_once_and_a_quiet_one_after_a_month(
    load: float, spread: float, due_at_ms: int
) -> None:
    assert measurement(load=load, spread=spread).due_at_ms() == due_at_ms


def test_the_spread_is_relative_to_the_median() -> None:
    assert spread_of([9.0, 10.0, 12.0]) == pytest.approx(0.3)
    assert spread_of([0.0]) == 0.0


def test_a_measurement_survives_its_file() -> None:
    before = measurement(load=0.1, spread=0.1)
    assert msgspec.json.decode(msgspec.json.encode(before), type=Measurement) == before
