"""The workers as the dispatcher knows them, and its own count of what each one holds."""

from __future__ import annotations

from collections.abc import Iterable, KeysView
from typing import Final, TypeAlias

from cloud_dispatcher.core.ejection import EjectionSettings, Outliers, Standing
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.labels import LabelledPools, names_of
from cloud_dispatcher.core.pace import Pace, work_tokens
from cloud_dispatcher.core.queue import Need
from cloud_dispatcher.core.scheduler import Policy, WorkerLoad
from cloud_dispatcher.core.settings import WeightSettings
from fleet_protocol.answer_cache import build_of
from fleet_protocol.messages import (
    JOINT_ASSIGNMENTS,
    Benchmark,
    JobKey,
    LocalAnswer,
    ModelInfo,
    Presence,
    PresenceStatus,
    WorkerId,
    WorkerInfo,
    WorkerState,
    WorkerView,
)

_SLOWEST_TOK_S: Final = 0.001
"""What is less was not measured: nothing can be told from it, nor compared with it."""


class Worker:
    """One worker. Changed by `Fleet` alone.

    Attributes:
        leases: The attempts it holds, each with the moment the assignment was last sent.
        company: For attempts given out in this run, how many it held with them at that moment.
        pace: What was learned of its speed.
        labels: By what names its labels may be asked for.
        standing: Whether it is trusted with jobs, after failures in a row.
        is_silent: Not heard of for too long: as good as offline until it is.
        is_held_back: An operator drains it; on top of what it says of itself.
        turn: See `WorkerLoad`.
    """

    __slots__ = (
        "bandwidth", "capacity", "company", "compute", "id", "info", "is_held_back", "is_silent",
        "labels", "leases", "pace", "presence", "seen_at_ms", "standing", "state", "turn", "weight",
    )  # fmt: skip

    def __init__(self, worker_id: WorkerId, weight: WeightSettings) -> None:
        self.id = worker_id
        self.presence: Presence | None = None
        self.info: WorkerInfo | None = None
        self.state: WorkerState | None = None
        self.seen_at_ms = 0
        self.is_silent = False
        self.is_held_back = False
        self.leases: dict[JobKey, int] = {}
        self.company: dict[JobKey, int] = {}
        self.pace = Pace()
        self.labels: frozenset[str] = frozenset()
        self.standing = Standing.IN
        self.capacity = 0
        self.turn = 0
        self.compute, self.bandwidth, self.weight = weigh(None, weight)

    @property
    def status(self) -> PresenceStatus:
        """Whether it takes jobs, all told."""
        if self.presence is None or self.is_silent:
            return PresenceStatus.OFFLINE
        if self.presence.status is PresenceStatus.ONLINE and self.is_held_back:
            return PresenceStatus.DRAINING
        return self.presence.status

    @property
    def takes_several(self) -> bool:
        """Whether one message may bring it several jobs."""
        return self.info is not None and JOINT_ASSIGNMENTS in self.info.capabilities

    @property
    def is_free(self) -> bool:
        """Whether it can be given a job now."""
        return (
            len(self.leases) < self.capacity
            and not self.is_silent
            and not self.is_held_back
            and (self.standing is Standing.IN or self._may_be_tried)
            and self.presence is not None
            and self.presence.status is PresenceStatus.ONLINE
        )

    @property
    def _may_be_tried(self) -> bool:
        return self.standing is Standing.PROBING and not self.leases

    @property
    def has_open_slot(self) -> bool:
        """Whether a job given to it now would be worked on at once."""
        return self.is_free and self.info is not None and len(self.leases) < self.info.slots

    def serves(self, need: Need) -> bool:
        """Whether one of its models answers such a job, and it has what else it needs."""
        if self.info is None or not (need.label is None or need.label in self.labels):
            return False
        for model in self.info.models:
            if need.tokens <= model.context_tokens and (
                need.model is None or need.model == model.name
            ):
                return True
        return False

    def view(self) -> WorkerView:
        """Return it as an operator sees it."""
        return WorkerView(
            worker=self.id,
            status=self.status,
            weight=self.weight,
            compute=self.compute,
            bandwidth=self.bandwidth,
            inflight=len(self.leases),
            slots=0 if self.info is None else self.info.slots,
            seen_at_ms=self.seen_at_ms,
            info=self.info,
            state=self.state,
            left_alone=self.standing is Standing.OUT,
        )


def weigh(
    benchmark: Benchmark | None, settings: WeightSettings, *, strain: float = 1.0
) -> tuple[float, float, float]:
    """Return (compute, bandwidth, weight) of a worker, each 0..1; the weight never below the floor.

    The coefficients need not add up to 1: the weight is clipped to 1, too.

    Args:
        benchmark: None: the worker has not measured itself.
        settings: See there.
        strain: It is so many times slower than it says.
    """
    compute = bandwidth = settings.unmeasured_share
    if benchmark is not None:
        compute = min(benchmark.decode_tok_s / strain / settings.reference_tok_s, 1.0)
        if benchmark.bandwidth_mbps is not None:
            bandwidth = min(benchmark.bandwidth_mbps / settings.reference_mbps, 1.0)
    weight = settings.compute_coefficient * compute + settings.bandwidth_coefficient * bandwidth
    return compute, bandwidth, min(max(weight, settings.floor), 1.0)


_Abilities: TypeAlias = tuple[tuple[ModelInfo, ...], frozenset[str]]


def _abilities(worker: Worker) -> _Abilities:
    return () if worker.info is None else worker.info.models, worker.labels


def _widen(contexts: dict[str | None, int], worker: Worker) -> None:
    """Let contexts be no less than those of a worker's models."""
    for model in _abilities(worker)[0]:
        for name in (None, model.name):
            contexts[name] = max(contexts.get(name, 0), model.context_tokens)


class Fleet:
    """All workers. Every change that touches a worker's load files it anew with the scheduler."""

    def __init__(
        self,
        settings: WeightSettings,
        policy: Policy,
        ejection: EjectionSettings = EjectionSettings(),  # noqa: B008 - frozen
    ) -> None:
        self.policy = policy
        self.outliers = Outliers(ejection)
        self._settings = settings
        self._workers: dict[WorkerId, Worker] = {}
        self._free = LabelledPools(policy.pool)
        self._turns = 0
        self._contexts: dict[str | None, dict[str | None, int]] | None = None
        self._labels: frozenset[str] | None = None
        self._builds: frozenset[str] | None = None

    @property
    def workers(self) -> Iterable[Worker]:
        """All of them, in the order they were first seen."""
        return self._workers.values()

    @property
    def contexts(self) -> dict[str | None, int]:
        """Largest context in tokens by model name, under None of all; empty: no worker known.

        Workers that are away count: they may be back before the job's deadline.
        """
        return self.contexts_of(None)

    def contexts_of(self, label: str | None) -> dict[str | None, int]:
        """Return the same of the workers with a label alone; None: of all."""
        if label is not None and label not in self.labels:
            return {}  # Of labels that devices made up nothing is kept.
        if self._contexts is None:
            self._contexts = {}
        contexts = self._contexts.get(label)
        if contexts is None:
            contexts = self._contexts[label] = {}
            for worker in self._workers.values():
                if label is None or label in worker.labels:
                    _widen(contexts, worker)
        return contexts

    @property
    def labels(self) -> frozenset[str]:
        """All labels of all workers, away or not."""
        if self._labels is None:
            labels = (worker.labels for worker in self._workers.values())
            self._labels = frozenset[str]().union(*labels)
        return self._labels

    def contexts_there(self, model: str | None, label: str | None = None) -> list[int]:
        """Return the contexts, smallest first, in which boards that are there answer with a model.

        Of all boards known, if none is there.

        Args:
            model: None: any.
            label: That they must have; None: none.
        """
        known = [
            worker
            for worker in self._workers.values()
            if worker.info is not None and (label is None or label in worker.labels)
        ]
        there = [worker for worker in known if worker.status is PresenceStatus.ONLINE]
        infos = [worker.info for worker in there or known if worker.info is not None]
        found = (offered for info in infos for offered in info.models)
        return sorted({x.context_tokens for x in found if model in (None, x.name)})

    @property
    def builds(self) -> frozenset[str]:
        """The builds of all workers' models, away or not; empty: none is known."""
        if self._builds is None:
            infos = (worker.info for worker in self._workers.values() if worker.info is not None)
            self._builds = frozenset(build_of(model) for info in infos for model in info.models)
        return self._builds

    def find(self, worker_id: WorkerId) -> Worker | None:
        """Return a worker, None if it was never seen."""
        return self._workers.get(worker_id)

    def see(self, worker_id: WorkerId, now_ms: int) -> Worker:
        """Return a worker that gave a sign of life just now; a silent one is back with it."""
        worker = self._workers.get(worker_id)
        if worker is None:
            worker = self._workers[worker_id] = Worker(worker_id, self._settings)
        worker.seen_at_ms = now_ms
        if worker.is_silent:
            worker.is_silent = False
            self._file(worker)
        return worker

    def remove(self, worker_id: WorkerId) -> None:
        """Forget a worker that holds no lease any more."""
        self._workers.pop(worker_id, None)
        self.outliers.forget(worker_id)
        self._free.strike(worker_id)
        self._contexts = self._labels = self._builds = None

    def set_presence(self, worker: Worker, presence: Presence) -> None:
        """Take note of what a worker, or its will, says; a new boot is free of an old drain."""
        if worker.presence is not None and worker.presence.boot != presence.boot:
            worker.is_held_back = False
        worker.presence = presence
        self._file(worker)

    def set_info(self, worker: Worker, info: WorkerInfo | None) -> None:
        """Take note of what a worker is and can do."""
        before = _abilities(worker)
        worker.info = info
        worker.labels = names_of({} if info is None else info.labels)
        worker.capacity = 0 if info is None else info.slots + info.prefetch
        benchmark = None if info is None else info.benchmark
        speed_tok_s = 0.0 if benchmark is None else benchmark.decode_tok_s
        model = info.models[0].name if info is not None and info.models else None
        is_speed = speed_tok_s >= _SLOWEST_TOK_S
        worker.pace.declare(model, 1_000 / speed_tok_s if is_speed else None)
        self._weigh(worker)
        self._note_abilities(worker, before)
        self._file(worker)

    def set_state(self, worker: Worker, state: WorkerState) -> None:
        """Take note of a heartbeat."""
        worker.state = state
        if worker.pace.is_hot is not bool(state.throttled):
            worker.pace.is_hot = bool(state.throttled)
            self._file(worker)

    def set_silent(self, worker: Worker) -> None:
        """Treat a worker as offline until it is heard of again."""
        worker.is_silent = True
        self._file(worker)

    def hold_back(self, worker: Worker, *, held: bool) -> None:
        """Give a worker no more jobs, or give it jobs again."""
        worker.is_held_back = held
        self._file(worker)

    def lease(self, worker: Worker, key: JobKey, now_ms: int) -> None:
        """Count one more attempt as held by a worker."""
        self._turns += 1
        worker.turn = self._turns
        worker.leases[key] = now_ms
        self._file(worker)

    def release(self, worker_id: WorkerId, key: JobKey) -> None:
        """Count an attempt as held no more. Unknown ones are ignored."""
        worker = self._workers.get(worker_id)
        if worker is not None and worker.leases.pop(key, None) is not None:
            worker.company.pop(key, None)
            self._file(worker)

    def begin(self, worker: Worker, key: JobKey) -> None:
        """Take note that a lease was given out just now: what it takes is learned from."""
        worker.company[key] = len(worker.leases)

    def started(self, job: Job, now_ms: int) -> None:
        """Learn how long the word that an attempt was begun took."""
        worker = self._learner(job)
        if worker is not None and job.assigned_at_ms is not None:
            worker.pace.started(now_ms - job.assigned_at_ms)

    def answered(self, job: Job, answer: LocalAnswer, now_ms: int) -> None:
        """Learn from an answer to a leased job, before the lease is released."""
        worker, usage = self._learner(job), answer.usage
        tokens = work_tokens(usage.prompt_tokens, usage.completion_tokens)
        if worker is None or worker.info is None or answer.cached or tokens <= 0.0:
            return
        if job.assigned_at_ms is not None:
            worker.pace.answered(
                answer.model,
                now_ms - job.assigned_at_ms,
                tokens,
                jobs=(worker.company[job.key] + len(worker.leases) + 1) // 2,
                slots=worker.info.slots,
            )
            self._weigh(worker)
        self.policy.answered(job, usage)

    def failed(self, worker_id: WorkerId, now_ms: int) -> None:
        """Take note that an attempt failed by its worker's fault."""
        self.outliers.failed(worker_id, now_ms, present=self._count_present)
        self._judge(worker_id)

    def unheard(self, worker_id: WorkerId, job: Job, now_ms: int) -> None:
        """Take note that an attempt was not heard of again."""
        given_at_ms, present = job.assigned_at_ms, self._count_present
        self.outliers.unheard(worker_id, now_ms, given_at_ms=given_at_ms, present=present)
        self._judge(worker_id)

    def worked(self, worker_id: WorkerId) -> None:
        """Take note that a worker did what it should."""
        self.outliers.worked(worker_id)
        self._judge(worker_id)

    def sweep(self, now_ms: int) -> None:
        """Let those be tried again that were left alone for long enough."""
        for worker_id in self.outliers.sweep(now_ms):
            self._judge(worker_id)

    def pick_worker(
        self, need: Need, *, avoid: WorkerId | None, prefer: WorkerId | None = None
    ) -> Worker | None:
        """Return the best worker with a free slot; `avoid` only if there is no other.

        `prefer` is taken before all others if it could begin at once.
        """
        if prefer is not None and prefer != avoid:
            preferred = self._workers.get(prefer)
            if preferred is not None and preferred.has_open_slot and preferred.serves(need):
                return preferred
        worker_id = self._free.pick_worker(need, avoid=avoid)
        return None if worker_id is None else self._workers[worker_id]

    @property
    def has_free(self) -> bool:
        """Whether any worker has a free slot."""
        return len(self._free) > 0

    @property
    def free_labels(self) -> KeysView[str]:
        """The labels of workers with a free slot."""
        return self._free.labels

    def _count_present(self) -> int:
        return sum(w.status is not PresenceStatus.OFFLINE for w in self._workers.values())

    def _judge(self, worker_id: WorkerId) -> None:
        worker, standing = self._workers.get(worker_id), self.outliers.standing(worker_id)
        if worker is not None and worker.standing is not standing:
            worker.standing = standing
            self._file(worker)

    def _learner(self, job: Job) -> Worker | None:
        """Return the holder of a lease that was given out in this run."""
        worker = None if job.worker is None else self._workers.get(job.worker)
        return worker if worker is not None and job.key in worker.company else None

    def _weigh(self, worker: Worker) -> None:
        """Let a worker's weight be what it says of itself, moved by what its answers say."""
        most, strain = self.policy.strain_most, worker.pace.strain
        benchmark = None if worker.info is None else worker.info.benchmark
        worker.compute, worker.bandwidth, worker.weight = weigh(
            benchmark, self._settings, strain=min(max(strain, 1.0 / most), most)
        )

    def _note_abilities(self, worker: Worker, before: _Abilities) -> None:
        """Keep what is known of all models; only what a worker can no longer do is counted anew."""
        models, labels = now = _abilities(worker)
        if now == before:
            return
        if before[0]:
            self._contexts = self._labels = self._builds = None
            return
        for label, contexts in (self._contexts or {}).items():
            if label is None or label in labels:
                _widen(contexts, worker)
        if self._labels is not None:
            self._labels |= labels
        if self._builds is not None:
            self._builds |= {build_of(model) for model in models}

    def _file(self, worker: Worker) -> None:
        if worker.is_free:
            slots = 1 if worker.info is None else worker.info.slots
            load = WorkerLoad(
                worker.weight, len(worker.leases), worker.turn, slots=slots, pace=worker.pace
            )
            self._free.file(worker.id, load, worker.serves, worker.labels)
        else:
            self._free.strike(worker.id)
