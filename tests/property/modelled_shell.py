"""A shell around the engine as the real one behaves, in memory: save, then tell, or crash between.

It checks what must hold of every single turn; `test_engine_machine.py` chooses the turns.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.labels import names_of
from cloud_dispatcher.core.outbox import NOT_STARTED
from cloud_dispatcher.core.overload import OverloadSettings
from cloud_dispatcher.core.parts import CUT_AGAIN
from cloud_dispatcher.core.results import as_message
from cloud_dispatcher.core.settings import EngineSettings
from fleet_protocol import messages as m
from fleet_protocol import topics
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.library import LibraryAnswer, MatchKind

SETTINGS = EngineSettings(
    lease_ms=10_000,
    worker_silence_ms=20_000,
    queue_limit=6,
    deferred_spread_ms=5_000,
    overload=OverloadSettings(hold_ms=1_000, relief_ms=1_000),
)
CONTEXT_TOKENS = 1_024
_PEAK_MS = 30_000
LEASED = {m.JobStatus.ASSIGNED, m.JobStatus.RUNNING}


def tariff(now_ms: int) -> int:
    """Half of the time it is peak."""
    spans = now_ms // _PEAK_MS
    return (spans + 1) * _PEAK_MS if spans % 2 else now_ms


def offline(submit: m.JobSubmit) -> LibraryAnswer | None:
    """The library knows what nobody is in a hurry to know."""
    if submit.priority > 0:
        return None
    return LibraryAnswer(text="written", kind=MatchKind.EXACT, entry="e", score=1.0)


class ModelledWorker:
    """A board with a spool that survives everything and an inbox that the broker may lose."""

    def __init__(self, name: str, *, slots: int, prefetch: int, tok_s: float) -> None:
        self.id = m.WorkerId(name)
        self.slots, self.prefetch, self.tok_s = slots, prefetch, tok_s
        self.labels = {"quick": ""} if tok_s > 50 else {"speed": "low"}
        self.boots = 0
        self.is_online = False
        self.inbox: list[m.Message] = []
        self.spool: dict[tuple[str, int], m.JobDone | m.JobFailed | m.Escalation | None] = {}

    @property
    def boot(self) -> str:
        return f"{self.id}-boot{self.boots}"

    @property
    def info(self) -> m.WorkerInfo:
        model = m.ModelInfo(name="small", version="1", context_tokens=CONTEXT_TOKENS)
        return m.WorkerInfo(
            boot=self.boot,
            slots=self.slots,
            prefetch=self.prefetch,
            models=(model,),
            benchmark=m.Benchmark(decode_tok_s=self.tok_s, prefill_tok_s=self.tok_s),
            labels=self.labels,
        )

    @property
    def held(self) -> m.HeldJobs:
        refs = {key: m.AttemptRef(job=key[0], attempt=key[1]) for key in self.spool}
        return m.HeldJobs(
            boot=self.boot,
            running=tuple(ref for key, ref in refs.items() if self.spool[key] is None),
            finished=tuple(ref for key, ref in refs.items() if self.spool[key] is not None),
        )

    def receive(self) -> None:
        """Deal with the oldest message of the inbox."""
        message = self.inbox.pop(0)
        if isinstance(message, m.Assignment):
            self.spool.setdefault((message.job, message.attempt), None)
        elif isinstance(message, m.WorkerCancel):
            self.spool.pop((message.job, message.attempt), None)
        elif isinstance(message, m.Settled):
            for ref in message.jobs:
                self.spool.pop((ref.job, ref.attempt), None)


class ModelledShell:
    """Holds what survives a crash (the store, the workers) and what does not (the engine)."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.store: dict[m.JobKey, Job] = {}
        self.names: dict[tuple[m.DeviceId, m.JobId], m.JobKey] = {}
        self.retried: set[m.JobKey] = set()
        self.told: dict[m.JobKey, m.Message] = {}
        self.unconfirmed: set[m.JobKey] = set()
        self.calls: dict[m.JobKey, c.CompletionRequest] = {}
        self.answers: dict[bytes, CachedAnswer] = {}
        self.crash_before_telling = False
        self.is_cloud_away = False
        self.workers = [
            ModelledWorker("fast", slots=2, prefetch=1, tok_s=87.0),
            ModelledWorker("slow", slots=1, prefetch=0, tok_s=9.0),
            ModelledWorker("even", slots=1, prefetch=1, tok_s=87.0),
        ]
        self.engine = Engine(SETTINGS, "epoch", tariff=tariff, offline=offline)

    def handle(self, event: e.AnyEvent) -> list[c.AnyCommand]:
        if isinstance(event, e.CompletionFinished):
            self.is_cloud_away = False
        elif isinstance(event, e.CompletionFailed):
            self.is_cloud_away = event.code != "provider_rate_limited"
        commands = self.engine.handle(event, self.now_ms)
        self.carry_out(commands)
        return commands

    def carry_out(self, commands: Sequence[c.AnyCommand]) -> None:
        for command in commands:
            if isinstance(command, c.SaveJob):
                self._save(command.job)
            elif isinstance(command, c.KeepAnswer):
                self._keep(command.answer)
        if self.crash_before_telling:
            self.restart()
            return
        for command in commands:
            self._tell(command)
        self.check_books()

    def restart(self) -> None:
        """Kill -9: what is not in the store is gone; retained messages come again."""
        self.crash_before_telling = False
        self.unconfirmed.clear()
        self.calls.clear()
        self.is_cloud_away = False
        self.engine = Engine(SETTINGS, "epoch", tariff=tariff, offline=offline)
        untold = [job for job in self.store.values() if job.is_open or not job.told]
        self.carry_out(self.engine.recover(untold, self.now_ms))
        for worker in self.workers:
            if worker.is_online:
                self.announce(worker)
                self.handle(e.HeldReceived(worker=worker.id, held=worker.held))

    def announce(self, worker: ModelledWorker) -> None:
        online = m.Presence(status=m.PresenceStatus.ONLINE, boot=worker.boot)
        self.handle(e.PresenceChanged(worker=worker.id, presence=online))
        self.handle(e.InfoReceived(worker=worker.id, info=worker.info))

    def report(self, worker: ModelledWorker, key: tuple[str, int]) -> None:
        """Send the outcome that lies in the spool."""
        job, outcome = m.JobKey(key[0]), worker.spool[key]
        if isinstance(outcome, m.JobDone):
            self.handle(e.DoneReceived(worker=worker.id, job=job, done=outcome))
        elif isinstance(outcome, m.JobFailed):
            self.handle(e.FailureReceived(worker=worker.id, job=job, failure=outcome))
        elif isinstance(outcome, m.Escalation):
            self.handle(e.EscalationReceived(worker=worker.id, job=job, escalation=outcome))

    def pass_time(self, span_ms: int) -> None:
        """Let time pass, waking the engine at each moment that it asked for."""
        until_ms = self.now_ms + span_ms
        for _ in range(200):
            wake_ms = self.engine.next_wake_at_ms()
            if wake_ms is None or wake_ms > until_ms:
                break
            self.now_ms = max(self.now_ms, wake_ms)
            self.handle(e.TimePassed())
        else:
            raise AssertionError("the engine asks to be woken without end")
        self.now_ms = until_ms

    def _save(self, job: Job) -> None:
        old = self.store.get(job.key)
        if old is not None:
            assert job.attempt >= old.attempt, "an attempt number went back"
            if job.key not in self.retried:
                assert old.result is None or job.result == old.result, "a final result changed"
                began = old.start_by_at_ms is None
                assert not began or job.start_by_at_ms is None, "what was begun was forgotten"
                code = "" if job.result is None else job.result.code
                assert not (began and code == NOT_STARTED), "it was begun, and said not to be"
        if old is None or job.result is None:
            self.retried.discard(job.key)
        assert self.names.setdefault((job.device, job.id), job.key) == job.key, "a job runs twice"
        self.store[job.key] = job
        if job.parts and job.result is not None and job.result.text:
            same = [x for x in self.store.values() if x.part is not None and x.part.job == job.key]
            given = [x.part for x in same if x.result and x.result.text == job.result.text]
            parts = [x.result for x in same if x.result and x.part and not x.part.round]
            agree = len({result.text for result in parts if result.code != CUT_AGAIN}) == 1
            whole = agree or all(part and part.round for part in given)
            assert whole, "a part passed for the whole"

    def _keep(self, answer: CachedAnswer) -> None:
        told = {job.result.text for job in self.store.values() if job.result is not None}
        assert answer.text in told, "an answer was kept that no job got"
        self.answers[answer.key] = answer

    def stored_answer(self, device: m.DeviceId, submit: m.JobSubmit) -> CachedAnswer | None:
        """Return what the shell finds in its store for a new submission."""
        key = self.engine.wanted_answer(device, submit)
        return None if key is None else self.answers.get(key)

    def _tell(self, command: c.AnyCommand) -> None:
        if isinstance(command, c.StartCompletion):
            job = self.store[command.request.job]
            assert job.submit.privacy is m.Privacy.ANY, "a site job reached a provider"
            assert job.status is m.JobStatus.ESCALATED, "a call was made before it was saved"
            assert job.attempt == command.request.attempt, "a call was made before it was saved"
            self.calls[job.key] = command.request
        elif isinstance(command, c.StopCompletion):
            self.calls.pop(command.job, None)
        elif isinstance(command, c.Send):
            self._publish(command)

    def _publish(self, send: c.Send) -> None:
        message = send.message
        if send.confirms is not None:
            self._check_result(send.confirms, message)
            self.unconfirmed.add(send.confirms)
        elif send.channel is topics.ACK and isinstance(message, m.JobAck):
            is_saved = send.ids in self.names
            assert message.status is m.AckStatus.REJECTED or is_saved, (
                "accepted before it was saved"
            )
        elif send.channel.receivers == (topics.Role.WORKER,):
            self._check_worker_message(m.WorkerId(send.ids[0]), message)
            next(w for w in self.workers if w.id == send.ids[0]).inbox.append(message)

    def _check_result(self, key: m.JobKey, message: m.Message) -> None:
        job = self.store[key]
        assert job.part is None, "a device was told of a part"
        assert job.result is not None, "a result was told before it was saved"
        assert message == as_message(job, job.result), "what was told is not what was saved"
        assert self.told.get(key, message) == message, "a job was answered twice"
        self.told[key] = message

    def _check_worker_message(self, worker: m.WorkerId, message: m.Message) -> None:
        if isinstance(message, m.Assignment):
            job = self.store[m.JobKey(message.job)]
            assert job.attempt == message.attempt, "an assignment was sent before it was saved"
            assert job.worker == worker, "an assignment was sent before it was saved"
            has = next(w.labels for w in self.workers if w.id == worker)
            assert job.submit.label in {None, *names_of(has)}, "a board has not what is needed"
            assert message.cloud_away == self.is_cloud_away, "a board was told wrong of the cloud"
            if message.cloud_away and not job.cloud_code:
                assert message.escalate is job.submit.escalate, "a doubt has no way up any more"
        elif isinstance(message, m.WorkerCancel):
            assert not self._holds(worker, message.job, message.attempt), "a live attempt cancelled"
        elif isinstance(message, m.Settled):
            for ref in message.jobs:
                assert not self._holds(worker, ref.job, ref.attempt), "a live attempt was settled"

    def _holds(self, worker: m.WorkerId, key: str, attempt: int) -> bool:
        job = self.store.get(m.JobKey(key))
        return (
            job is not None
            and job.attempt == attempt
            and job.status in LEASED
            and job.worker == worker
        )

    def check_books(self) -> None:
        """Leases, slots, counts and the queue all tell the same story."""
        ledger = self.engine._ledger
        leased = {key: job.worker for key, job in ledger.jobs.items() if job.status in LEASED}
        counted = {key: w.id for w in ledger.fleet.workers for key in w.leases}
        assert leased == counted, "inflight is not the leases held"
        for worker in ledger.fleet.workers:
            if worker.capacity:
                assert len(worker.leases) <= worker.capacity, "more leases than slots and prefetch"
        for key, holder in leased.items():
            assert self.store[key].worker == holder, "a lease was given out unsaved"
        waiting = [job for job in ledger.jobs.values() if job.status is m.JobStatus.QUEUED]
        parked = {job.key for job in waiting if job.key not in ledger.queue}
        assert len(ledger.queue) == len(waiting) - len(parked), "the queue is not the queued jobs"
        delayed = {job.key for job in waiting if job.is_delayed}
        assert delayed <= parked, "a job waits for a slot before its time"
        families = self._check_families()
        self._check_followers(parked - families - delayed)
        summary = self.engine.summary()
        assert summary.queued + summary.delayed == len(waiting)
        assert (summary.delayed, summary.inflight) == (len(delayed), len(leased))
        calling = {
            key
            for key, job in ledger.jobs.items()
            if job.status is m.JobStatus.ESCALATED and job.lease_until_ms is not None
        }
        assert calling == set(self.calls), "a provider call was forgotten, or is not called off"
        open_jobs = {key for key, job in ledger.jobs.items() if job.is_open}
        assert all(key in ledger.job_alarms for key in open_jobs), "nothing will ever wake a job"
        stored = {key for key, job in self.store.items() if job.is_open}
        assert open_jobs == stored, "a job was lost"

    def _check_families(self) -> set[m.JobKey]:
        """Return who waits for parts: exactly they have any, and somebody works for each."""
        jobs, families = self.engine._ledger.jobs, self.engine._parts._families
        for key, family in families.items():
            assert jobs[key].status is m.JobStatus.QUEUED, "a job works beside its parts"
            assert key not in self.engine._ledger.queue, "a job works beside its parts"
            assert any(jobs[part].is_open for part in family), "nobody works for a long text"
            self._check_rounds([jobs[part] for part in family])
        ours = {job.key: job.part.job for job in jobs.values() if job.part is not None}
        assert ours == {part: key for key, family in families.items() for part in family}
        untold = {k for k, job in self.store.items() if job.part is not None and not job.told}
        assert untold == set(ours), "a part outlived its job, or its answer was lost"
        return set(families)

    @staticmethod
    def _check_rounds(family: list[Job]) -> None:
        """The parts that count leave nothing out, and a merge has all answers of its round."""
        before = list[Job]()
        rounds = sorted({job.part.round for job in family if job.part is not None})
        for number in rounds:
            members = [
                (job.part.start, job.part.end, job)
                for job in family
                if job.part is not None and job.part.round == number
                if job.result is None or job.result.code != CUT_AGAIN
            ]
            members.sort(key=lambda member: member[0])
            assert members[0][0] == 0, "a part is missing"
            assert all(a[1] == b[0] for a, b in itertools.pairwise(members)), "a gap between parts"
            if number:
                assert members[-1][1] == len(before), "an answer is left out"
                assert all(x.result and x.result.status == "ok" for x in before), "merged too early"
            before = [job for _start, _end, job in members]

    def _check_followers(self, followers: set[m.JobKey]) -> None:
        """Whoever waits for another waits for one that is open and does not wait itself."""
        jobs, led = self.engine._ledger.jobs, set[m.JobKey]()
        for group in self.engine._coalescer._groups.values():
            assert jobs[group.leader].is_open, "a finished job leads"
            assert group.leader not in followers, "nobody works for those who wait"
            assert all(jobs[key].is_open for key in group.followers), "a finished job follows"
            assert len({jobs[key].answer_key for key in (group.leader, *group.followers)}) == 1
            led |= group.followers.keys()
        assert followers <= led, "a job waits for nobody"
