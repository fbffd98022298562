"""Three dispatchers on one store under everything that can happen to them, in any order.

No attempt is given to two, no job is answered twice, nothing that was accepted is lost: also if a
dispatcher dies, falls silent and comes back, or saves late what it decided before others took over.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.job import ReplyTo
from fleet_protocol import messages as m
from tests.property.modelled_cluster import (
    ModelledCluster,
    ModelledMember,
    now,
    worker_words,
)
from tests.property.test_engine_machine import (
    DEVICES,
    EQUAL_SUBMITS,
    LONG_SUBMITS,
    SUBMITS,
    finish_one,
    finished,
    outcome_of,
)

MEMBERS = st.integers(0, 2)
WORKERS = st.integers(0, 3)
ANSWERS = st.sampled_from(["done", "done", "done", "failed", "low_confidence", "too_slow"])
TROUBLES = [
    "killed",
    "fell_silent",
    "fell_silent",
    "stopped",
    "came_back",
    "worker_vanishes",
    "worker_dies",
    "broker_forgets",
    "drained",
    "resumed",
    "link_back",
]


class ClusterMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = ModelledCluster()
        self.silent: set[str] = set()
        self.minted = 0

    @initialize(online=st.sets(WORKERS, min_size=1))
    def some_workers_are_there(self, online: set[int]) -> None:
        for number in online:
            self.world.come_online(self.world.workers[number])
        for member in self.world.up:
            member.beat()

    # ------------------------------------------------------------ devices and operators

    @precondition(lambda self: self.world.up)
    @rule(
        who=MEMBERS,
        again=st.none() | MEMBERS,
        device=DEVICES,
        job_id=st.sampled_from("1234"),
        submit=st.one_of(SUBMITS, SUBMITS, EQUAL_SUBMITS, LONG_SUBMITS),
    )
    def submit(
        self, who: int, again: int | None, device: str, job_id: str, submit: m.JobSubmit
    ) -> None:
        """The broker gives a submission to one member; a repetition may reach another one."""
        for number in (who, again):
            up = self.world.up
            if number is not None and up:
                self.minted += 1
                up[number % len(up)].hear(
                    e.JobSubmitted(
                        key=m.JobKey(f"K{self.minted:04}"),
                        device=m.DeviceId(device),
                        id=m.JobId(job_id),
                        submit=submit,
                        reply=ReplyTo(),
                    )
                )

    @rule(device=DEVICES, job_id=st.sampled_from("1234"))
    def cancel(self, device: str, job_id: str) -> None:
        self.world.say(e.JobCancelled(device=m.DeviceId(device), id=m.JobId(job_id)))

    @precondition(lambda self: self.world.jobs)
    @rule(data=st.data())
    def retry_a_job(self, data: st.DataObject) -> None:
        world = self.world
        key = data.draw(st.sampled_from(sorted(world.jobs)))
        world.retries[key] += 1
        request = m.AdminRequest(req="r", op=m.AdminOp.JOB_RETRY, job=key)
        world.say(e.AdminAsked(admin="a", request=request))

    # ------------------------------------------------------------ members

    @rule(who=MEMBERS)
    def beat(self, who: int) -> None:
        member = self.world.members[who]
        self.silent.discard(member.name)
        if member.is_up:
            member.beat()

    @rule(who=MEMBERS, turns=st.integers(1, 5))
    def save(self, who: int, turns: int) -> None:
        self.world.members[who].save(turns)

    @rule()
    def all_beat_and_save(self) -> None:
        self._beat()
        for member in self.world.up:
            if member.name not in self.silent:
                member.save()

    @rule(who=MEMBERS, submits=st.lists(SUBMITS, min_size=3, max_size=6))
    def much_comes_to_one(self, who: int, submits: list[m.JobSubmit]) -> None:
        """So that it has too much, and others have room."""
        for number, submit in enumerate(submits):
            self.submit(who, None, f"d{who}", f"{number}", submit)
        self.all_beat_and_save()
        self.time_passes(3_000)

    def _beat(self) -> None:
        for member in self.world.up:
            if member.name not in self.silent:
                member.beat()

    @rule(trouble=st.sampled_from(TROUBLES), who=MEMBERS, number=WORKERS)
    def trouble_comes(self, trouble: str, who: int, number: int) -> None:
        """One rule for all that is rare, so that ordinary work stays the larger part of a run."""
        getattr(self, trouble)(self.world.members[who], number)

    def killed(self, member: ModelledMember, _: int) -> None:
        member.crash()

    def fell_silent(self, member: ModelledMember, number: int) -> None:
        """Its process stands still, or it has lost the store: what it decided is saved later."""
        self.silent.add(member.name)
        if number % 2:
            self.time_passes(6_000)
            member.save()

    def stopped(self, member: ModelledMember, _: int) -> None:
        """SIGTERM: what was decided is saved, then it leaves."""
        member.save()
        if member.is_up:
            now(member.store.leave())
            member.crash()

    def came_back(self, member: ModelledMember, _: int) -> None:
        if not member.is_up:
            member.start()

    def link_back(self, member: ModelledMember, _: int) -> None:
        if member.is_up:
            member.hear(e.LinkRestored(session_present=False))

    def drained(self, _: ModelledMember, number: int) -> None:
        self._command(number, m.AdminOp.WORKER_DRAIN)

    def resumed(self, _: ModelledMember, number: int) -> None:
        self._command(number, m.AdminOp.WORKER_RESUME)

    def _command(self, number: int, op: m.AdminOp) -> None:
        request = m.AdminRequest(req="r", op=op, worker=self.world.workers[number].id)
        self.world.say(e.AdminAsked(admin="a", request=request))

    # ------------------------------------------------------------ workers

    @rule(number=WORKERS)
    def worker_comes(self, number: int) -> None:
        self.world.come_online(self.world.workers[number])

    def worker_vanishes(self, _: ModelledMember, number: int) -> None:
        self.world.workers[number].is_online = False

    def worker_dies(self, _: ModelledMember, number: int) -> None:
        worker = self.world.workers[number]
        worker.is_online = False
        self.world.say(*worker_words(worker))

    def broker_forgets(self, _: ModelledMember, number: int) -> None:
        self.world.workers[number].inbox.clear()

    @rule(number=WORKERS, kind=ANSWERS, told=st.booleans())
    def work(self, number: int, kind: str, told: bool) -> None:  # noqa: FBT001 - drawn
        worker = self.world.workers[number]
        self._read_inbox(number)
        key = finish_one(worker, kind)
        if key is not None and told and worker.is_online:
            self.world.report(worker, key)

    @rule(number=WORKERS)
    def show_signs_of_work(self, number: int) -> None:
        worker = self.world.workers[number]
        self._read_inbox(number)
        for (key, attempt), outcome in list(worker.spool.items()):
            if worker.is_online and outcome is None:
                job = m.JobKey(key)
                self.world.say(e.StartReceived(worker=worker.id, job=job, attempt=attempt))

    @rule(number=WORKERS)
    def send_again_what_is_in_the_spool(self, number: int) -> None:
        worker = self.world.workers[number]
        if worker.is_online:
            self._say_held(number)

    def _say_held(self, number: int) -> None:
        worker = self.world.workers[number]
        self.world.say(*worker_words(worker), e.HeldReceived(worker=worker.id, held=worker.held))
        for key in list(worker.spool):
            self.world.report(worker, key)

    def _read_inbox(self, number: int) -> None:
        worker = self.world.workers[number]
        while worker.is_online and worker.inbox:
            message = worker.inbox[0]
            worker.receive()
            if isinstance(message, m.WorkerCommand) and message.op is m.WorkerOp.REPORT:
                self._say_held(number)

    # ------------------------------------------------------------ the cloud, the broker, the clock

    @precondition(lambda self: any(member.calls for member in self.world.up))
    @rule(data=st.data(), refused=st.booleans())
    def the_provider_speaks(self, data: st.DataObject, *, refused: bool) -> None:
        calls = [(n, key) for n, member in enumerate(self.world.members) for key in member.calls]
        number, key = data.draw(st.sampled_from(sorted(calls)))
        self._complete(self.world.members[number], key, refused=refused)

    @precondition(lambda self: self.world.unconfirmed)
    @rule(data=st.data())
    def the_broker_confirms_a_result(self, data: st.DataObject) -> None:
        self._confirm(data.draw(st.sampled_from(sorted(self.world.unconfirmed))))

    @rule(span_ms=st.sampled_from([1, 500, 1_500, 3_000, 6_000, 12_000]))
    def time_passes(self, span_ms: int) -> None:
        while span_ms > 0:
            self.world.pass_time(min(span_ms, 2_000))
            span_ms -= 2_000
            self._beat()

    def _complete(self, member: ModelledMember, key: m.JobKey, *, refused: bool = False) -> None:
        attempt = member.calls.pop(key).attempt
        if refused:
            code = "no_provider"
            member.hear(e.CompletionFailed(job=key, attempt=attempt, code=code, message=""))
        else:
            member.hear(finished(key, attempt))

    def _confirm(self, which: tuple[str, m.JobKey]) -> None:
        """To whom it was told by: a member that is gone hears of it no more."""
        self.world.unconfirmed.discard(which)
        for member in self.world.up:
            if member.name == which[0]:
                member.hear(e.ResultConfirmed(job=which[1]))

    # ------------------------------------------------------------ the end

    def teardown(self) -> None:
        """With all dispatchers and boards well again, every accepted job gets its one result."""
        world = self.world
        for member in world.members:
            if not member.is_up or member.id not in world.database.members:
                member.start()
        for worker in world.workers:
            world.come_online(worker)
        for _ in range(400):
            self._live_on()
            if all(job.told for job in world.jobs.values()):
                break
        names = {(str(job.device), str(job.id)) for job in world.jobs.values()}
        assert world.accepted <= names, "an accepted job was lost"
        lost = {key for key, job in world.jobs.items() if job.result is None}
        assert not lost, f"accepted and never answered: {lost}"
        untold = {key for key, job in world.jobs.items() if not job.told}
        assert not untold, f"answered and never told: {untold}"
        for _ in range(4):
            self._live_on()
        world.check_books()
        shares = sorted(len(member.cluster._boards.mine) for member in world.members)
        assert shares == [1, 1, 2], "a worker is nobody's, or one has too many"

    def _live_on(self) -> None:
        world = self.world
        for member in world.members:
            if not member.is_up:  # It heard that it is over, and starts anew.
                member.start()
            member.beat()
            member.save()
        for number, worker in enumerate(world.workers):
            self._read_inbox(number)
            for key, outcome in list(worker.spool.items()):
                worker.spool[key] = outcome or outcome_of("done", key)
                world.report(worker, key)
            state = m.WorkerState(
                ts=0, seq=0, status=m.Activity.IDLE, cpu_pct=0, mem_pct=0, inflight=0
            )
            world.say(e.StateReceived(worker=worker.id, state=state))
        for member in world.members:
            for key in sorted(member.calls):
                self._complete(member, key)
        for which in sorted(world.unconfirmed):
            self._confirm(which)
        world.pass_time(2_000)


ClusterMachine.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestCluster = ClusterMachine.TestCase
