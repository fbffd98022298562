"""The engine under everything that can happen, in any order.

No accepted job is lost, none is answered twice, nobody is told what is not saved, inflight is the
leases held, stale attempts move nothing. The invariants of a single turn are in `ModelledShell`.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.job import Job, ReplyTo
from fleet_protocol import messages as m
from tests.property.modelled_shell import ModelledShell, ModelledWorker

NUMBERS = st.integers(0, 2)
DEVICES = st.sampled_from(["d1", "d2"])
JOB_IDS = st.sampled_from("1234")
SUBMITS = st.builds(
    m.JobSubmit,
    prompt=st.sampled_from(["short", "x" * 9_000]),
    priority=st.sampled_from([0, 5, 9]),
    escalate=st.sampled_from(m.Escalate),
    defer=st.sampled_from(m.Defer),
    privacy=st.sampled_from(m.Privacy),
    deadline_ms=st.sampled_from([None, 15_000]),
    not_before_ms=st.sampled_from([None, None, None, 3_000]),
    start_within_ms=st.sampled_from([None, None, 2_000, 20_000]),
    attempt_ms=st.sampled_from([None, None, 1_000, 10_000]),
    lease_ms=st.sampled_from([None, None, 5_000]),
    needs=st.sampled_from([None, None, m.Needs(label="quick"), m.Needs(label="speed=low")]),
    stream=st.booleans(),
    compact=st.booleans(),
    cache=st.sampled_from([m.Caching.AUTO, m.Caching.OFF]),
    cache_ttl_ms=st.sampled_from([1, 1, 60_000]),
)
EQUAL_SUBMITS = st.builds(
    m.JobSubmit,
    prompt=st.sampled_from(["the same", "the same", "the  same ", "another"]),
    priority=st.sampled_from([0, 5, 9]),
    deadline_ms=st.sampled_from([None, 15_000, 40_000]),
    start_within_ms=st.sampled_from([None, None, 2_000]),
    attempt_ms=st.sampled_from([None, None, 10_000]),
    defer=st.sampled_from([m.Defer.NO, m.Defer.NO, m.Defer.OFFPEAK]),
    # Of an answer's time nothing is left when the next job comes: only what is open is shared.
    cache_ttl_ms=st.sampled_from([1, 1, 60_000]),
)
REPLIES = st.sampled_from(
    [ReplyTo(), ReplyTo(topic="fleet/v1/dev/d1/reply", correlation_data=b"c"), ReplyTo(plain=True)]
)
LONG_SUBMITS = st.builds(
    m.JobSubmit,
    # Of 1,024 tokens two of these paragraphs take more, by the dispatcher's estimate.
    prompt=st.sampled_from(
        ["short", "do\n\n" + "word " * 300, "do\n\n" + "\n\n".join(["word " * 400] * 3)]
    ),
    split=st.sampled_from([m.Split.PARAGRAPHS, m.Split.PARAGRAPHS, m.Split.AUTO]),
    priority=st.sampled_from([0, 5, 9]),
    max_tokens=st.sampled_from([64, 300]),
    escalate=st.sampled_from(m.Escalate),
    privacy=st.sampled_from(m.Privacy),
    deadline_ms=st.sampled_from([None, None, 15_000]),
    start_within_ms=st.sampled_from([None, None, 2_000]),
    stream=st.booleans(),
)
ANSWERS = st.sampled_from(["done", "failed", "broken", "low_confidence", "overheated", "too_slow"])
TROUBLES = [
    "vanish",
    "die_with_a_will",
    "late_will_of_an_earlier_boot",
    "broker_forgets",
    "drain",
    "resume",
    "clock_set_back",
    "memory_is_short",
    "memory_is_there",
    "link_lost",
    "link_back",
    "link_back_to_a_broker_that_forgot",
    "dispatcher_dies",
    "dispatcher_will_die_between_save_and_tell",
]


def outcome_of(kind: str, key: tuple[str, int]) -> m.JobDone | m.JobFailed | m.Escalation:
    """Every run of a job gives a text of its own, so that a second answer would show."""
    answer = m.LocalAnswer(text=f"{key}", model="small", confidence=0.4)
    if kind == "done":
        return m.JobDone(attempt=key[1], answer=answer)
    if kind in {"failed", "broken"}:
        return m.JobFailed(attempt=key[1], code="onnx", retryable=kind == "failed")
    kept = answer if kind == "low_confidence" else None
    return m.Escalation(attempt=key[1], reason=m.Reason(kind), answer=kept)


def finish_one(worker: ModelledWorker, kind: str) -> tuple[str, int] | None:
    """Let a worker end the first attempt that it works on; return which, None if on none."""
    for key, outcome in worker.spool.items():
        if outcome is None:
            worker.spool[key] = outcome_of(kind, key)
            return key
    return None


def finished(key: m.JobKey, attempt: int) -> e.CompletionFinished:
    text, usage = f"cloud {key}/{attempt}", m.Usage()
    return e.CompletionFinished(
        job=key, attempt=attempt, text=text, model="cloud", usage=usage, cost_usd=0.1
    )


class EngineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.shell = ModelledShell()
        self.minted = 0

    @initialize(online=st.sets(NUMBERS, min_size=1))
    def some_workers_are_there(self, online: set[int]) -> None:
        for number in online:
            self.come_online(number)

    # ------------------------------------------------------------ devices and operators

    @rule(device=DEVICES, job_id=JOB_IDS, submit=SUBMITS, reply=REPLIES)
    def submit(self, device: str, job_id: str, submit: m.JobSubmit, reply: ReplyTo) -> None:
        self._submit(device, job_id, submit, reply)

    def _submit(self, device: str, job_id: str, submit: m.JobSubmit, reply: ReplyTo) -> None:
        self.minted += 1
        known = self._stored(device, job_id)
        answer = self.shell.stored_answer(m.DeviceId(device), submit)
        self.shell.handle(
            e.JobSubmitted(
                key=m.JobKey(f"K{self.minted:04}"),
                device=m.DeviceId(device),
                id=m.JobId(job_id),
                submit=submit,
                reply=reply,
                known=known,
                answer=answer,
            )
        )

    @rule(device=DEVICES, job_id=JOB_IDS)
    def cancel(self, device: str, job_id: str) -> None:
        known = self._stored(device, job_id)
        name = (m.DeviceId(device), m.JobId(job_id))
        self.shell.handle(e.JobCancelled(device=name[0], id=name[1], known=known))

    @precondition(lambda self: self.shell.store)
    @rule(data=st.data())
    def retry_a_job(self, data: st.DataObject) -> None:
        shell = self.shell
        key = data.draw(st.sampled_from(sorted(shell.store)))
        job = shell.store[key]
        if job.result is not None and job.status is not m.JobStatus.OK:
            shell.retried.add(key)
            shell.told.pop(key, None)
            shell.unconfirmed.discard(key)
        request = m.AdminRequest(req="r", op=m.AdminOp.JOB_RETRY, job=key)
        shell.handle(e.AdminAsked(admin="a", request=request, found=job))

    @rule(trouble=st.sampled_from(TROUBLES), number=NUMBERS)
    def trouble_comes(self, trouble: str, number: int) -> None:
        """One rule for all that is rare, so that ordinary work stays the larger part of a run."""
        getattr(self, trouble)(self.shell.workers[number])

    # ------------------------------------------------------------ workers

    @rule(number=NUMBERS)
    def come_online(self, number: int) -> None:
        worker = self.shell.workers[number]
        worker.boots += 1
        worker.is_online = True
        self.shell.announce(worker)
        self.shell.handle(e.HeldReceived(worker=worker.id, held=worker.held))

    @rule(number=NUMBERS)
    def read_the_inbox(self, number: int) -> None:
        worker = self.shell.workers[number]
        while worker.is_online and worker.inbox:
            worker.receive()

    @rule(kinds=st.lists(ANSWERS, min_size=1, max_size=4), signs=st.booleans(), told=st.booleans())
    def work(self, kinds: list[str], *, signs: bool, told: bool) -> None:
        """All of them at once: where each turn was one worker's, a run saw hardly any answer."""
        for turn, kind in enumerate(kinds):
            number = turn % len(self.shell.workers)
            self.read_the_inbox(number)
            if signs:
                self.show_signs_of_work(number)
            self._work(number, kind, told=told)

    def _work(self, number: int, kind: str, *, told: bool) -> None:
        worker = self.shell.workers[number]
        self.read_the_inbox(number)
        key = finish_one(worker, kind)
        if key is not None and told and worker.is_online:
            self.shell.report(worker, key)

    def show_signs_of_work(self, number: int) -> None:
        worker = self.shell.workers[number]
        for (key, attempt), outcome in list(worker.spool.items()):
            if worker.is_online and outcome is None:
                job, chunk = m.JobKey(key), m.WorkerTokenChunk(attempt=attempt, i=0, t="so")
                start = e.StartReceived(worker=worker.id, job=job, attempt=attempt)
                self.shell.handle(start)
                self.shell.handle(e.TokensReceived(worker=worker.id, job=job, chunk=chunk))

    @rule(number=NUMBERS)
    def send_again_what_is_in_the_spool(self, number: int) -> None:
        worker = self.shell.workers[number]
        if worker.is_online:
            self.shell.handle(e.HeldReceived(worker=worker.id, held=worker.held))
            for key in list(worker.spool):
                self.shell.report(worker, key)

    @precondition(
        lambda self: self.shell.engine._ledger.jobs and not self.shell.crash_before_telling
    )
    @rule(data=st.data(), number=st.integers(0, 3), kind=ANSWERS, back=st.integers(0, 2))
    def a_stale_outcome_moves_nothing(
        self, data: st.DataObject, number: int, kind: str, back: int
    ) -> None:
        jobs, workers = self.shell.engine._ledger.jobs, self.shell.workers
        key = data.draw(st.sampled_from(sorted(jobs)))
        job = jobs[key]
        holders = [worker for worker in workers if worker.id == job.worker]
        worker = (workers + (holders or workers[:1]))[number]
        stale = (key, job.attempt - back)
        is_holder = worker.id in {job.worker, job.last_worker}
        if not worker.is_online or stale[1] < 1 or (back == 0 and is_holder):
            return
        worker.spool.setdefault(stale, outcome_of(kind, stale))
        self.shell.report(worker, stale)
        after = self.shell.engine.get(key)
        assert after is not None
        moved = (after.status, after.attempt, after.result) != (job.status, job.attempt, job.result)
        given_out = after.status is m.JobStatus.ASSIGNED and after.attempt == job.attempt + 1
        assert not moved or given_out, "a stale attempt moved the job"

    # ------------------------------------------------------------ the cloud

    @precondition(lambda self: self.shell.calls)
    @rule(
        data=st.data(),
        how=st.sampled_from(["grew", "finished", "refused", "later", "open", "stale"]),
    )
    def the_provider_speaks(self, data: st.DataObject, how: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.shell.calls)))
        self._complete(key, how)

    # ------------------------------------------------------------ the broker, the clock, the power

    @precondition(lambda self: self.shell.unconfirmed)
    @rule(data=st.data(), refused=st.booleans())
    def the_broker_speaks_of_a_result(self, data: st.DataObject, *, refused: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.shell.unconfirmed)))
        self.shell.unconfirmed.discard(key)
        if refused:
            self.shell.handle(e.ResultRefused(job=key, code="not_authorized"))
            is_due = key in self.shell.engine._ledger.job_alarms
            assert is_due or self.shell.store[key].told or key in self.shell.unconfirmed
        else:
            self.shell.handle(e.ResultConfirmed(job=key))

    @rule(span_ms=st.sampled_from([1, 500, 1_500, 4_000, 12_000, 25_000, 90_000]))
    def time_passes(self, span_ms: int) -> None:
        self.shell.pass_time(span_ms)

    # ------------------------------------------------------------ troubles

    def vanish(self, worker: ModelledWorker) -> None:
        worker.is_online = False

    def die_with_a_will(self, worker: ModelledWorker) -> None:
        worker.is_online = False
        self._say_offline(worker, worker.boot)

    def late_will_of_an_earlier_boot(self, worker: ModelledWorker) -> None:
        may_crash = self.shell.crash_before_telling
        before = {key: job.worker for key, job in self.shell.engine._ledger.jobs.items()}
        self._say_offline(worker, "an-earlier-boot")
        if worker.is_online and not may_crash:
            after = {key: job.worker for key, job in self.shell.engine._ledger.jobs.items()}
            assert before == after, "the will of an earlier boot took jobs away"

    def broker_forgets(self, worker: ModelledWorker) -> None:
        worker.inbox.clear()

    def drain(self, worker: ModelledWorker) -> None:
        self._command(worker, m.AdminOp.WORKER_DRAIN)

    def resume(self, worker: ModelledWorker) -> None:
        self._command(worker, m.AdminOp.WORKER_RESUME)

    def clock_set_back(self, _: ModelledWorker) -> None:
        self.shell.now_ms -= 7_000
        self.shell.handle(e.TimePassed())

    def memory_is_short(self, _: ModelledWorker) -> None:
        self._look(99.0)

    def memory_is_there(self, _: ModelledWorker) -> None:
        self._look(9.0)

    def _look(self, memory_pct: float) -> None:
        """Long enough for a step, down or back."""
        for _ in range(2):
            self.shell.handle(e.LoadLooked(memory_pct=memory_pct))
            self.shell.pass_time(1_000)
        self.shell.handle(e.LoadLooked(memory_pct=memory_pct))

    def link_lost(self, _: ModelledWorker) -> None:
        self.shell.handle(e.LinkLost())

    def link_back(self, _: ModelledWorker) -> None:
        self.shell.handle(e.LinkRestored(session_present=True))

    def link_back_to_a_broker_that_forgot(self, _: ModelledWorker) -> None:
        self.shell.handle(e.LinkRestored(session_present=False))

    def dispatcher_dies(self, _: ModelledWorker) -> None:
        self.shell.restart()

    def dispatcher_will_die_between_save_and_tell(self, _: ModelledWorker) -> None:
        self.shell.crash_before_telling = True

    # ------------------------------------------------------------ the end

    def teardown(self) -> None:
        """With the fleet well again, every accepted job gets its one result."""
        shell = self.shell
        shell.crash_before_telling = False
        shell.handle(e.LinkRestored(session_present=False))
        for number in range(len(shell.workers)):
            self.come_online(number)
        for _ in range(300):
            if all(job.told for job in shell.store.values()):
                break
            self._live_on()
        lost = {key for key, job in shell.store.items() if job.result is None}
        assert not lost, f"accepted and never answered: {lost}"
        untold = {key for key, job in shell.store.items() if not job.told}
        assert not untold, f"answered and never told: {untold}"
        assert not shell.engine._ledger.jobs

    def _live_on(self) -> None:
        shell = self.shell
        for worker in shell.workers:
            while worker.inbox:
                worker.receive()
            for key, outcome in list(worker.spool.items()):
                worker.spool[key] = outcome or outcome_of("done", key)
                shell.report(worker, key)
            state = m.WorkerState(
                ts=0, seq=0, status=m.Activity.IDLE, cpu_pct=0, mem_pct=0, inflight=0
            )
            shell.handle(e.StateReceived(worker=worker.id, state=state))
        for key in sorted(shell.calls):
            self._complete(key, "finished")
        for key in sorted(shell.unconfirmed):
            shell.unconfirmed.discard(key)
            shell.handle(e.ResultConfirmed(job=key))
        shell.pass_time(2_000)

    def _complete(self, key: m.JobKey, how: str) -> None:
        shell, attempt = self.shell, self.shell.calls[key].attempt
        if how == "grew":
            shell.handle(e.CompletionGrew(job=key, attempt=attempt, text="so"))
        elif how == "stale":
            before, may_crash = shell.engine.get(key), shell.crash_before_telling
            shell.handle(finished(key, attempt - 1))
            assert may_crash or shell.engine.get(key) == before, "a stale call moved the job"
        elif how == "finished":
            del shell.calls[key]
            shell.handle(finished(key, attempt))
        else:
            del shell.calls[key]
            code = {"open": "provider_open", "later": "provider_rate_limited"}.get(
                how, "no_provider"
            )
            wait_ms = {"open": 250, "later": 3_000}.get(how)
            shell.handle(
                e.CompletionFailed(
                    job=key, attempt=attempt, code=code, message="", retry_after_ms=wait_ms
                )
            )

    def _command(self, worker: ModelledWorker, op: m.AdminOp) -> None:
        request = m.AdminRequest(req="r", op=op, worker=worker.id)
        self.shell.handle(e.AdminAsked(admin="a", request=request))

    def _say_offline(self, worker: ModelledWorker, boot: str) -> None:
        offline = m.Presence(status=m.PresenceStatus.OFFLINE, boot=boot)
        self.shell.handle(e.PresenceChanged(worker=worker.id, presence=offline))

    def _stored(self, device: str, job_id: str) -> Job | None:
        if self.shell.engine.find_open(m.DeviceId(device), m.JobId(job_id)) is not None:
            return None
        key = self.shell.names.get((m.DeviceId(device), m.JobId(job_id)))
        return None if key is None else self.shell.store[key]


EngineMachine.TestCase.settings = settings(
    max_examples=250,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestEngine = EngineMachine.TestCase


class EqualQuestionsMachine(EngineMachine):
    """The same, where nearly all ask the same: any order of submit, cancel, fail, restart."""

    @rule(
        device=DEVICES,
        job_id=st.sampled_from("123456"),
        submit=EQUAL_SUBMITS,
        reply=REPLIES,
    )
    def submit(self, device: str, job_id: str, submit: m.JobSubmit, reply: ReplyTo) -> None:
        self._submit(device, job_id, submit, reply)

    @rule(device=DEVICES, job_id=st.sampled_from("123456"))
    def cancel(self, device: str, job_id: str) -> None:
        known = self._stored(device, job_id)
        name = (m.DeviceId(device), m.JobId(job_id))
        self.shell.handle(e.JobCancelled(device=name[0], id=name[1], known=known))


EqualQuestionsMachine.TestCase.settings = settings(
    EngineMachine.TestCase.settings, max_examples=150
)
TestEqualQuestions = EqualQuestionsMachine.TestCase
