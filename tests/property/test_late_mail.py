"""The engine, where whatever a worker ever said may come again, late, and out of order."""

from __future__ import annotations

from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.job import ReplyTo
from fleet_protocol import messages as m
from tests.property.modelled_shell import ModelledShell
from tests.property.test_engine_machine import EngineMachine

SUBMITS: Final = st.builds(
    m.JobSubmit,
    prompt=st.just("short"),
    escalate=st.sampled_from([m.Escalate.AUTO, m.Escalate.NEVER]),
    deadline_ms=st.sampled_from([None, None, 60_000]),
    stream=st.booleans(),
    cache=st.just(m.Caching.OFF),
)
OF_WORKERS: Final = (e.PresenceChanged, e.InfoReceived, e.StateReceived, e.HeldReceived)
OF_JOBS: Final = (
    e.StartReceived,
    e.ProgressReceived,
    e.TokensReceived,
    e.DoneReceived,
    e.FailureReceived,
    e.EscalationReceived,
)


def attempt_of(event: e.AnyEvent) -> tuple[m.JobKey, int]:
    """Return what the mail is about; of no job if it is about the worker itself."""
    match event:
        case e.DoneReceived(job=key, done=said):
            return key, said.attempt
        case e.FailureReceived(job=key, failure=said):
            return key, said.attempt
        case e.EscalationReceived(job=key, escalation=said):
            return key, said.attempt
        case e.TokensReceived(job=key, chunk=said):
            return key, said.attempt
        case (
            e.StartReceived(job=key, attempt=attempt) | e.ProgressReceived(job=key, attempt=attempt)
        ):
            return key, attempt
        case _:
            return m.JobKey(""), 0


class RememberingShell(ModelledShell):
    """Keeps all that workers said, for a broker that tells it again.

    Attributes:
        of_workers, of_jobs: In the order in which it came first.
    """

    def __init__(self) -> None:
        self.of_workers: list[e.AnyEvent] = []
        self.of_jobs: list[e.AnyEvent] = []
        super().__init__()

    def handle(self, event: e.AnyEvent) -> list[c.AnyCommand]:
        if isinstance(event, OF_WORKERS):
            self.of_workers.append(event)
        elif isinstance(event, OF_JOBS):
            self.of_jobs.append(event)
        return super().handle(event)


class LateMailMachine(EngineMachine):
    """No job is lost or answered twice, no attempt that runs is stopped, and the books are right.

    Those are the shell's own checks of each turn. What late mail may cost is another attempt.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shell: RememberingShell = RememberingShell()

    # What is tried elsewhere would only thin out what is tried here.
    submit = cancel = retry_a_job = None
    a_stale_outcome_moves_nothing = send_again_what_is_in_the_spool = None

    @initialize()
    def all_workers_are_there(self) -> None:
        for number in range(len(self.shell.workers)):
            self.come_online(number)

    @rule(submits=st.lists(SUBMITS, min_size=1, max_size=3))
    def jobs_come(self, submits: list[m.JobSubmit]) -> None:
        for submit in submits:
            self._submit("d1", f"{self.minted + 1}", submit, ReplyTo())

    @precondition(lambda self: self.shell.of_jobs)
    @rule(data=st.data(), times=st.integers(1, 6))
    def what_was_said_of_jobs_comes_again(self, data: st.DataObject, times: int) -> None:
        for _ in range(times):
            self._hear_again(data.draw(st.sampled_from(self.shell.of_jobs)))

    @precondition(lambda self: self.shell.of_workers)
    @rule(data=st.data())
    def what_workers_said_of_themselves_comes_again(self, data: st.DataObject) -> None:
        self._hear_again(data.draw(st.sampled_from(self.shell.of_workers)))

    def _hear_again(self, event: e.AnyEvent) -> None:
        shell, (key, attempt) = self.shell, attempt_of(event)
        before, may_crash = shell.engine.get(key), shell.crash_before_telling
        ModelledShell.handle(shell, event)
        if before is None or may_crash or not attempt < before.attempt:
            return
        after = shell.engine.get(key)
        assert after is not None
        if (after.status, after.attempt) != (m.JobStatus.ASSIGNED, before.attempt + 1):
            assert (after.status, after.attempt) == (before.status, before.attempt)
            assert after.result == before.result


LateMailMachine.TestCase.settings = settings(EngineMachine.TestCase.settings, max_examples=200)
TestLateMail = LateMailMachine.TestCase
