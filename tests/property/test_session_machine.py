"""Whatever happens to a worker, in whatever order: what it promised, it keeps."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_worker.core import commands as c
from edge_worker.core import events as e
from edge_worker.core.attempt import Outcome
from edge_worker.core.generation import Broke, Grew
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from tests.unit.session_lab import COOL, SURE, UNSURE, SessionLab, finished

JOBS = st.sampled_from(["J1", "J2", "J3"])
ATTEMPTS = st.integers(1, 3)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "stream": st.booleans(),
        "escalate": st.sampled_from(list(m.Escalate)),
        "privacy": st.sampled_from(list(m.Privacy)),
        "deadline_ms": st.sampled_from([500, 5_000, 60_000]),
        "model": st.sampled_from(["tiny", "other"]),
        "cache_ttl_ms": st.sampled_from([1, 20_000]),
    },
)
OUTCOMES = {t.DONE.name, t.FAILED.name, t.ESCALATE.name}
Ref = tuple[str, int]


def ref_of(generation: str) -> Ref:
    job, attempt, _ = generation.split(".")
    return job, int(attempt)


class WatchedLab(SessionLab):
    """Checks each command against what was promised before it is carried out.

    Attributes:
        closed: Attempts that the dispatcher cancelled or settled, as far as this boot was told.
        may_forget: Attempts that may leave the disk.
        outcomes: The outcome each attempt on the disk got, once it has one.
        second_tries: Attempts that an earlier boot did not survive. Their end is on the disk
            already, and counts once another boot finds it there.
        dead: Generations that were stopped; what they said before that may still be under way.
    """

    def __init__(self) -> None:
        self.closed: set[Ref] = set()
        self.may_forget: set[Ref] = set()
        self.outcomes: dict[Ref, Outcome] = {}
        self.second_tries: set[Ref] = set()
        self.dead: list[str] = []
        super().__init__(linked=False)

    def boot(self) -> None:
        for ref in self.second_tries:
            ended = self.disk[ref].outcome
            assert ended is not None
            self.outcomes[ref] = ended
        self.second_tries.clear()
        super().boot()

    def carry_out(self, command: c.AnyCommand) -> None:
        match command:
            case c.KeepJob(job=job):
                self._check_kept((job.assignment.job, job.assignment.attempt), job.outcome)
            case c.ForgetJob(job=key, attempt=attempt):
                ref = (str(key), attempt)
                newer = any(kept[0] == key and kept[1] > attempt for kept in self.disk)
                assert ref in self.may_forget or newer, f"{ref} was forgotten too soon"
                self.outcomes.pop(ref, None)
                self.second_tries.discard(ref)
            case c.StartGeneration(request=request):
                running = {ref_of(name) for name in self.engine}
                assert ref_of(request.id) not in running, "one attempt is generated twice at once"
                assert request.id not in self.engine
            case c.StopGeneration(id=name):
                self.dead.append(name)
            case c.Send(channel=channel, ids=ids, message=message) if len(ids) > 1:
                self._check_told(channel, ids[1], message)
            case _:
                pass
        super().carry_out(command)

    def _check_kept(self, ref: Ref, outcome: Outcome | None) -> None:
        if isinstance(outcome, m.JobFailed) and outcome.code == "worker_died":
            assert ref not in self.outcomes
            self.second_tries.add(ref)
            return
        self.second_tries.discard(ref)
        first = self.outcomes.get(ref)
        assert first is None or first == outcome, f"{ref} ended twice"
        if outcome is not None:
            self.outcomes[ref] = outcome

    def _check_told(self, channel: t.Channel, job: str, message: m.Message) -> None:
        attempt: int = getattr(message, "attempt", 0)
        ref = (job, attempt)
        if isinstance(message, m.JobFailed) and message.code in {"draining", "busy"}:
            return  # A refusal promises nothing.
        assert ref in self.disk, f"{channel.name} of {ref} was told before it was on the disk"
        assert ref not in self.closed, f"{channel.name} of {ref} was told after it was closed"
        if channel.name in OUTCOMES:
            assert self.disk[ref].outcome == message, f"{ref} was told what is not on the disk"


class SessionMachine(RuleBasedStateMachine):
    """Events in any order, crashes included."""

    def __init__(self) -> None:
        super().__init__()
        self.lab = WatchedLab()
        self.epochs = 0

    # ------------------------------------------------------------ the dispatcher

    @rule(job=JOBS, attempt=ATTEMPTS, changes=CHANGES)
    def assign(self, job: str, attempt: int, changes: dict[str, object]) -> None:
        older = {ref for ref in self.lab.disk if ref[0] == job and ref[1] < attempt}
        self.lab.may_forget |= older
        self.lab.assign(job, attempt, **changes)

    @rule(job=JOBS, attempt=ATTEMPTS)
    def cancel(self, job: str, attempt: int) -> None:
        self._close(job, attempt)
        self.lab.do(e.CancelReceived(m.JobKey(job), attempt))

    @precondition(lambda self: self.lab.outcomes)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        job, attempt = data.draw(st.sampled_from(sorted(self.lab.outcomes)))
        self._close(job, attempt)
        self.lab.do(e.SettledReceived((m.AttemptRef(job=job, attempt=attempt),)))

    def _close(self, job: str, attempt: int) -> None:
        refs = {(job, number) for number in range(1, attempt + 1)}
        self.lab.closed |= refs
        self.lab.may_forget |= refs

    @rule(op=st.sampled_from(list(m.WorkerOp)))
    def command(self, op: m.WorkerOp) -> None:
        self.lab.do(e.CommandReceived(m.WorkerCommand(id="c", op=op)))

    @rule(online=st.booleans(), new=st.booleans())
    def dispatcher(self, *, online: bool, new: bool) -> None:
        self.epochs += new
        self.lab.see_dispatcher(f"e{self.epochs}", online=online)

    # ------------------------------------------------------------ the link, the host, the clock

    @rule(up=st.booleans())
    def link(self, *, up: bool) -> None:
        self.lab.do(e.LinkRestored() if up else e.LinkLost())

    @rule(ok=st.booleans())
    def spool(self, *, ok: bool) -> None:
        self.lab.do(e.SpoolRecovered() if ok else e.SpoolFailed())

    @rule(span_ms=st.sampled_from([0, 250, 3_000, 20_000]))
    def time_passes(self, span_ms: int) -> None:
        self.lab.do(e.TimePassed(), after_ms=span_ms)

    @rule()
    def beat(self) -> None:
        self.lab.do(e.HostRead(COOL))

    @rule()
    def crash(self) -> None:
        self.lab.dead.clear()  # Their process is gone with them.
        self.lab.closed.clear()
        self.lab.stopped = False
        self.lab.boot()

    @rule()
    def stop(self) -> None:
        self.lab.do(e.StopRequested())

    # ------------------------------------------------------------ the engine

    @precondition(lambda self: self.lab.encoding)
    @rule(data=st.data(), tokens=st.sampled_from([5, 90]))
    def encoded(self, data: st.DataObject, tokens: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.lab.encoding)))
        del self.lab.encoding[name]
        self.lab.do(e.PromptEncoded(name, tuple(range(tokens))))

    @precondition(lambda self: self.lab.engine)
    @rule(data=st.data(), how=st.sampled_from(["grew", "sure", "unsure", "broke"]))
    def engine_speaks(self, data: st.DataObject, how: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.lab.engine)))
        if how == "grew":
            self.lab.from_engine(Grew(name, "x", 1))
        elif how == "broke":
            self.lab.from_engine(Broke(name, "engine_error", "it broke"))
        else:
            sure = SURE if how == "sure" else UNSURE
            self.lab.from_engine(finished(name, logprobs=sure))

    @precondition(lambda self: self.lab.dead)
    @rule(data=st.data())
    def a_dead_generation_speaks(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.lab.dead))
        self.lab.do(e.PromptEncoded(name, (1, 2)))
        self.lab.do(Grew(name, "x", 1))
        self.lab.do(finished(name))

    # ------------------------------------------------------------ what always holds

    @invariant()
    def the_engine_works_for_what_is_held(self) -> None:
        unended = {ref for ref, job in self.lab.disk.items() if job.outcome is None}
        open_refs = unended | self.lab.second_tries
        at_work = [ref_of(name) for name in (*self.lab.engine, *self.lab.encoding)]
        assert sorted(at_work) == sorted(open_refs), "an open attempt is at work exactly once"

    def teardown(self) -> None:
        """At the end everything held gets its outcome told, is settled, and the worker stops."""
        lab = self.lab
        lab.do(e.LinkRestored())
        lab.encode_all()
        for name in list(lab.engine):
            lab.from_engine(finished(name))
        lab.sent.clear()
        lab.see_dispatcher("last")
        held = lab.told(t.HELD)[-1]
        told = {(job, message.attempt) for name, job, message in lab.sent if name in OUTCOMES}
        assert held.running == ()
        assert told == set(lab.disk) == {(ref.job, ref.attempt) for ref in held.finished}
        for job, attempt in list(lab.disk):
            self._close(job, attempt)
            lab.do(e.SettledReceived((m.AttemptRef(job=job, attempt=attempt),)))
        assert lab.disk == {}
        lab.do(e.StopRequested())
        assert lab.stopped


SessionMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_the_session_keeps_its_promises_whatever_happens = SessionMachine.TestCase
