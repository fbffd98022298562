"""Settings in, a loaded engine out: which graph, provider and threads it runs on, and why.

What is not settled by the settings is measured at the first start on a machine, within seconds, and
kept in the data folder. A measurement counts for one model, runtime, processor and set of settings.
One that was taken beside other work is used, but doubted: the next start that has the machine to
itself takes it again, and so does any after a month; a running worker measures its speed anew in an
idle moment. Workers that share the file measure one after the other, and the later ones take what
the first one found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from edge_worker.adapters.artefact import (
    Artefact,
    cache_folder,
    check_artefact,
    find_artefact,
    load_artefact,
    present_variants,
    read_manifest,
    resolve_model,
    unseal,
)
from edge_worker.adapters.echo_engine import EchoEngine
from edge_worker.adapters.host_linux import LinuxHost
from edge_worker.adapters.measurements import LoadMeter, MeasurementFile
from edge_worker.config import EngineName, WorkerSettings
from edge_worker.core.batching import EngineSettings
from edge_worker.core.difficulty import DifficultyModel, DifficultyModelError
from edge_worker.core.tuning import (
    DEFAULT_VARIANT,
    QUIET_LOAD,
    Measurement,
    Setup,
    Shortlist,
    Trial,
    choose_trial,
    cpu_class_of,
    shortlist,
    thread_counts,
)
from edge_worker.ports import HostFacts, InferenceEngine, ModelError
from edge_worker.service.benchmark import measure_speed
from edge_worker.service.trials import TrialPlan, run_trials
from fleet_protocol import __version__
from fleet_protocol.errors import ConfigError
from fleet_protocol.manifest import GoldenPrompt, Manifest
from fleet_protocol.routing import RoutePolicy

if TYPE_CHECKING:
    from edge_worker.adapters.onnx_engine import OnnxEngine

MEASUREMENT_FILE: Final = "benchmark.json"
_LOOK_S: Final = 0.2
"""So long a doubted measurement's machine is watched for whether it is quiet now."""


class LoadedEngine(msgspec.Struct, frozen=True, kw_only=True):
    """An engine with what its artefact says beyond the engine port.

    Attributes:
        setup: How it runs.
        why: For people: what decided that.
        difficulty: Says how hard a prompt is for the model; None: nobody knows, or it is of another
            release.
        measured: What was measured of this setup; None: nothing yet.
        folder: Of the artefact; None without a model.
    """

    engine: InferenceEngine
    policy: RoutePolicy
    setup: Setup
    why: str
    difficulty: DifficultyModel | None = None
    measured: Measurement | None = None
    golden: tuple[GoldenPrompt, ...] = ()
    folder: Path | None = None


class Measuring(msgspec.Struct, frozen=True, kw_only=True):
    """Whether and where measurements are taken and kept.

    Attributes:
        file: None: nothing is known and nothing is measured.
        again: Measure even what is known.
        only_known: Measure nothing.
        report: Takes a line for people about each trial.
    """

    file: MeasurementFile | None = None
    again: bool = False
    only_known: bool = False
    report: Callable[[str], None] = lambda _line: None


def load_engine(
    settings: WorkerSettings,
    environ: Mapping[str, str],
    *,
    facts: HostFacts | None = None,
    measuring: Measuring | None = None,
) -> LoadedEngine:
    """Verify and load what answers, as it is fastest here.

    Raises:
        ModelError: The artefact is missing, damaged or not for this machine.
        ConfigError: The settings ask for what is not installed or cannot be.
    """
    facts = facts or LinuxHost().facts()
    measuring = measuring or Measuring()
    if settings.engine is EngineName.ECHO:
        return _load_echo(settings, facts, measuring)
    try:
        # Only here: an echo worker must not pay for the runtime, nor need it.
        from edge_worker.adapters.onnx_engine import OnnxEngine  # noqa: PLC0415 - see above
    except ImportError as error:
        raise ConfigError(
            f"the ONNX engine is not installed: {error}",
            hint="pip install 'edgefleet[edge]', or run with --engine echo",
        ) from error
    return _Loader(settings, environ, OnnxEngine, facts=facts, measuring=measuring).load()


def measure_again(engine: InferenceEngine, before: Measurement) -> Measurement:
    """Return the measurement with the setup's speed of now, in place of the one of then."""
    meter = LoadMeter()
    speed = measure_speed(engine)
    chosen = msgspec.structs.replace(
        before.chosen,
        decode_tok_s=speed.decode_tok_s,
        prefill_tok_s=speed.prefill_tok_s,
        spread=speed.spread,
    )
    return msgspec.structs.replace(
        before, chosen=chosen, load=meter.share(), measured_at_ms=_now_ms()
    )


def _load_echo(settings: WorkerSettings, facts: HostFacts, measuring: Measuring) -> LoadedEngine:
    engine = EchoEngine(slots=settings.slot_count, context_tokens=settings.context)
    setup = Setup(variant=DEFAULT_VARIANT, provider="cpu", threads=1)
    measured = None
    if measuring.file is not None:
        of = ("echo", facts.cpu, str(settings.slot_count), __version__)
        measured = None if measuring.again else measuring.file.find(of)
        if measured is None and not measuring.only_known:
            trial = Trial(setup=setup, decode_tok_s=0.0, prefill_tok_s=0.0)
            blank = Measurement(of=of, chosen=trial, trials=(), load=0.0, measured_at_ms=0)
            measured = measure_again(engine, blank)
            measuring.file.keep(measured)
    policy = RoutePolicy(context_tokens=settings.context)
    return LoadedEngine(
        engine=engine, policy=policy, setup=setup, why="it repeats the prompt", measured=measured
    )


class _Loader:
    """Chooses how to run an artefact, and loads it so."""

    def __init__(
        self,
        settings: WorkerSettings,
        environ: Mapping[str, str],
        kind: type[OnnxEngine],
        *,
        facts: HostFacts,
        measuring: Measuring,
    ) -> None:
        self._settings = settings
        self._kind = kind
        self._facts = facts
        self._measuring = measuring
        self._folder = resolve_model(settings.model, cache_folder(environ))
        self._manifest = read_manifest(self._folder)
        self._checked: dict[str, Artefact] = {}

    def load(self) -> LoadedEngine:
        plan, listed = self._plan()
        measured = self._measurement(plan)
        threads = plan.cores if plan.cores in plan.counts else plan.counts[-1]
        usual = Setup(variant=plan.variants[0], provider=plan.providers[0], threads=threads)
        if measured is not None:
            usual = measured.chosen.setup
        engine = self._open(usual, _engine_settings(self._settings))
        return LoadedEngine(
            engine=engine,
            policy=_policy(self._settings, self._manifest, engine),
            difficulty=_difficulty(self._manifest),
            setup=usual,
            why=_explain(listed, measured),
            measured=measured,
            golden=self._manifest.golden,
            folder=self._folder,
        )

    def _plan(self) -> tuple[TrialPlan, Shortlist]:
        """Say what to try; without a measurement the first of each is taken."""
        from edge_worker.adapters import onnx_session  # noqa: PLC0415 - as the engine itself

        settings, manifest = self._settings, self._manifest
        variants = present_variants(self._folder, manifest)
        cpu_class = cpu_class_of(self._facts.cpu_features)
        if settings.variant is not None:
            # It says from which it could be chosen.
            artefact = find_artefact(self._folder, variant=settings.variant)
            if settings.variant not in {variant.name for variant in variants}:
                check_artefact(artefact)
        if not variants:
            load_artefact(self._folder, key_file=settings.model_key_file)
        listed = shortlist(variants, cpu_class=cpu_class, wanted=settings.variant)
        cores = onnx_session.count_cores()
        if settings.threads is not None:
            counts: tuple[int, ...] = (settings.threads,)
        elif self._measuring.file is None:
            counts = (cores,)
        else:
            counts = thread_counts(cores=cores, logical=onnx_session.count_logical_cores())
        plan = TrialPlan(
            variants=[variant.name for variant in listed.variants],
            providers=onnx_session.choose_providers(
                settings.provider, onnx_session.available_providers()
            ),
            counts=counts,
            cores=cores,
        )
        return plan, listed

    def _measurement(self, plan: TrialPlan) -> Measurement | None:
        """Return what is known of this machine, else what is found out now."""
        file = self._measuring.file
        if file is None:
            return None
        of = self._key(plan)
        known = None if self._measuring.again else file.find(of)
        if self._measuring.only_known or (known and not _is_worth_repeating(known)):
            return known
        with file.alone(lambda: self._measuring.report("waiting: another worker measures")):
            fresh = file.find(of)
            if fresh != known and not self._measuring.again:
                return fresh
            found = self._measure(plan, of)
            file.keep(found)
            return found

    def _measure(self, plan: TrialPlan, of: tuple[str, ...]) -> Measurement:
        meter = LoadMeter()
        one_slot = msgspec.structs.replace(_engine_settings(self._settings), slots=1)
        trials = run_trials(
            plan, partial(self._open, settings=one_slot), report=self._measuring.report
        )
        return Measurement(
            of=of,
            chosen=choose_trial(trials, cores=plan.cores),
            trials=trials,
            load=meter.share(),
            measured_at_ms=_now_ms(),
        )

    def _key(self, plan: TrialPlan) -> tuple[str, ...]:
        """Name everything a measurement depends on."""
        from edge_worker.adapters.onnx_session import runtime_version  # noqa: PLC0415 - see _plan

        files = ",".join(sorted(file.sha256[:12] for file in self._manifest.files))
        facts = self._facts
        return (
            f"{self._manifest.name} {self._manifest.version}",
            files,
            f"onnxruntime {runtime_version()}",
            f"{facts.cpu}, {facts.cores} cores",
            ",".join(plan.variants),
            ",".join(plan.providers),
            ",".join(str(count) for count in plan.counts),
            __version__,
        )

    def _open(self, setup: Setup, settings: EngineSettings) -> InferenceEngine:
        """Load the model so; its files are checked once."""
        wanted = msgspec.structs.replace(
            settings, intra_op_threads=setup.threads, provider=setup.provider
        )
        checked = self._checked.get(setup.variant)
        if checked is not None:
            return self._kind(checked, settings=wanted)
        artefact = find_artefact(self._folder, variant=setup.variant)
        artefact = unseal(artefact, self._settings.model_key_file)
        # Hashing takes as long as a fifth of loading: beside it, on another core.
        with ThreadPoolExecutor(1, "artefact-check") as pool:
            check = pool.submit(check_artefact, artefact)
            try:
                engine = self._kind(artefact, settings=wanted)
            except ModelError:
                # Of a damaged file the check knows better what is wrong.
                check.result()
                raise
        _close_unless(check, engine)
        self._checked[setup.variant] = artefact
        return engine


def _close_unless(check: Future[None], engine: InferenceEngine) -> None:
    """Raise what the check found, the engine closed before."""
    try:
        check.result()
    except ModelError:
        engine.close()
        raise


def _is_worth_repeating(known: Measurement) -> bool:
    """Tell whether a doubtful or old measurement would be a better one now."""
    if _now_ms() < known.due_at_ms():
        return False
    meter = LoadMeter()
    time.sleep(_LOOK_S)
    return meter.share() <= QUIET_LOAD


def _explain(listed: Shortlist, measured: Measurement | None) -> str:
    if measured is None:
        return f"{listed.why}; not measured"
    tried = len(measured.trials)
    if tried <= 1:
        return listed.why
    doubt = "" if measured.is_steady else ", while the machine had other work"
    return f"{listed.why}; best of {tried} trials{doubt}"


def _policy(settings: WorkerSettings, manifest: Manifest, engine: InferenceEngine) -> RoutePolicy:
    routing, least = manifest.routing, settings.min_confidence
    return RoutePolicy(
        context_tokens=engine.model.context_tokens,
        max_prompt_tokens=routing.max_prompt_tokens,
        min_confidence=routing.min_confidence if least is None else least,
        max_difficulty=routing.max_difficulty,
        calibration=routing.calibration,
        refusals=manifest.refusals,
        languages=manifest.languages,
    )


def _difficulty(manifest: Manifest) -> DifficultyModel | None:
    fitted = manifest.routing.difficulty
    if fitted is None:
        return None
    try:
        return DifficultyModel(fitted)
    except DifficultyModelError:
        # It reads features that this release has not: answer without, rather than not at all.
        return None


def _engine_settings(settings: WorkerSettings) -> EngineSettings:
    wanted = {
        "slots": settings.slot_count,
        "max_tokens": settings.context,
        "memory_mb": settings.memory_mb,
        "prefix_mb": settings.prefix_mb,
        "draft_tokens": settings.draft_tokens,
        "intra_op_threads": settings.threads,
    }
    try:
        return msgspec.convert(wanted, EngineSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the model's settings: {error}", hint="see example.toml") from error


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
