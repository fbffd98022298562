"""Which graph, execution provider and number of threads suit a machine, judged by measurements.

What a processor can do says which graphs are worth trying at all; the rest is measured: the same
number of cores means different things with another memory, another runtime, another model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import median
from typing import Final

import msgspec

from fleet_protocol.manifest import CpuClass, Manifest, Variant

DEFAULT_VARIANT: Final = "default"
"""Name of the manifest's own graph among its variants."""

TIE: Final = 0.05
"""Trials closer than this are equal: two runs of the same thing differ by as much."""
LAST_CORE: Final = 0.10
"""What the last core must gain at least: the system, the network and the tokenizer need it, too."""

READ_PER_WRITTEN: Final = 3
"""Tokens of a prompt for each of its answer: devices send a log line or a form, and want a word."""

QUIET_LOAD: Final = 0.10
"""Share of the processor that others may take without making a measurement doubtful."""
QUIET_SPREAD: Final = 0.15
LASTS_MS: Final = 30 * 86_400_000

_DOT_FEATURES: Final = frozenset(
    {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimddp", "i8mm", "sve2"}
)


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """A way to run a model here.

    Attributes:
        variant: Name of the graph.
        provider: Short name of the execution provider.
        threads: Of one run.
    """

    variant: str
    provider: str
    threads: int

    def __str__(self) -> str:
        words = [f"{self.threads} thread{'' if self.threads == 1 else 's'}"]
        if self.provider != "cpu":
            words.insert(0, self.provider)
        if self.variant != DEFAULT_VARIANT:
            words.insert(0, self.variant)
        return ", ".join(words)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a setup was, tokens per second of one request alone.

    Attributes:
        spread: Fastest less slowest of its decode windows, over the median.
    """

    setup: Setup
    decode_tok_s: float
    prefill_tok_s: float
    spread: float = 0.0


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What was tried on this machine, and what was chosen.

    Attributes:
        of: What it holds for: model, runtime, processor, settings. Anything else: measure anew.
        load: Share of the processor, 0..1, that other processes took meanwhile.
    """

    of: tuple[str, ...]
    chosen: Trial
    trials: tuple[Trial, ...]
    load: float
    measured_at_ms: int

    @property
    def is_steady(self) -> bool:
        """Whether the machine had hardly anything else to do."""
        return self.load <= QUIET_LOAD and self.chosen.spread <= QUIET_SPREAD

    def due_at_ms(self) -> int:
        """Return from when on it is worth taking again: at once if doubtful, else in a month."""
        return self.measured_at_ms + LASTS_MS if self.is_steady else 0


def cpu_class_of(features: Collection[str]) -> CpuClass:
    """Return the class of a processor by its feature flags, as `/proc/cpuinfo` spells them."""
    return CpuClass.DOT if _DOT_FEATURES.intersection(features) else CpuClass.BASELINE


def all_variants(manifest: Manifest) -> tuple[Variant, ...]:
    """Return every graph of an artefact, the manifest's own one first, as `default`."""
    own = Variant(
        name=DEFAULT_VARIANT,
        cpu_class=manifest.cpu_class,
        graph=manifest.graph,
        quantization=manifest.quantization,
        memory_mb=manifest.memory_mb,
    )
    return (own, *manifest.variants)


class Shortlist(msgspec.Struct, frozen=True, kw_only=True):
    """The graphs worth trying.

    Attributes:
        why: For people: what decided.
    """

    variants: tuple[Variant, ...]
    why: str


def shortlist(variants: Sequence[Variant], *, cpu_class: CpuClass, wanted: str | None) -> Shortlist:
    """Return the wanted graph, else those made for this class of processor.

    Where none is, those for processors without dot products, which run everywhere; else all.

    Args:
        variants: What is present here; not empty.
        cpu_class: Of this processor.
        wanted: The operator's choice.

    Raises:
        KeyError: The wanted one is not among them.
    """
    if wanted is not None:
        found = tuple(variant for variant in variants if variant.name == wanted)
        if not found:
            raise KeyError(wanted)
        return Shortlist(variants=found, why="set by the operator")
    for kind in (cpu_class, CpuClass.BASELINE):
        suited = tuple(variant for variant in variants if variant.cpu_class is kind)
        if suited:
            return Shortlist(variants=suited, why=_why(len(suited), made_for=kind, cpu=cpu_class))
    return Shortlist(
        variants=tuple(variants),
        why=f"none here is made for {cpu_class.value} processors as this one; it may crawl",
    )


def _why(count: int, *, made_for: CpuClass, cpu: CpuClass) -> str:
    if count > 1:
        return f"fastest of {count} for {cpu.value} processors"
    if made_for is cpu:
        return f"made for {cpu.value} processors as this one"
    return "made for every processor"


def thread_counts(*, cores: int, logical: int) -> tuple[int, ...]:
    """Return the numbers of threads worth trying, at most six, the physical cores among them."""
    few = range(1, cores) if cores <= 4 else (1 << power for power in range(8))
    counts = {count for count in few if count < cores} | {cores, max(cores, logical)}
    return tuple(sorted(counts))[-6:]


def choose_trial(trials: Sequence[Trial], *, cores: int) -> Trial:
    """Return the trial whose jobs are done soonest; of equal ones that with the fewest threads.

    A job writes one token for every `READ_PER_WRITTEN` that it reads. A trial that takes every core
    counts `LAST_CORE` less, and who is within `TIE` of the best is equal to it. Among equal ones
    with as many threads the best decides.
    """
    best = max(_worth(trial, cores) for trial in trials)
    equal = [trial for trial in trials if _worth(trial, cores) >= best * (1 - TIE)]
    return min(equal, key=lambda trial: (trial.setup.threads, -_worth(trial, cores)))


def spread_of(windows: Sequence[float]) -> float:
    """Return (fastest - slowest) / median."""
    middle = median(windows)
    return (max(windows) - min(windows)) / middle if middle else 0.0


def _worth(trial: Trial, cores: int) -> float:
    """Return tokens written per second, the reading before them included."""
    if not (trial.decode_tok_s > 0 and trial.prefill_tok_s > 0):
        return 0.0
    takes_all = trial.setup.threads >= cores > 1
    job_s = 1 / trial.decode_tok_s + READ_PER_WRITTEN / trial.prefill_tok_s
    return (1 - LAST_CORE if takes_all else 1.0) / job_s
