"""The engine under everything that can happen, where nearly all jobs are long texts in parts."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from cloud_dispatcher.core.job import ReplyTo
from fleet_protocol import messages as m
from tests.property.test_engine_machine import (
    DEVICES,
    JOB_IDS,
    LONG_SUBMITS,
    REPLIES,
    EngineMachine,
)

LONG_ANSWERS = st.sampled_from(["done", "done", "done", "failed", "low_confidence", "too_long"])


class LongTextsMachine(EngineMachine):
    """Any order of submit, cut, fail, merge, restart."""

    @rule(device=DEVICES, job_id=JOB_IDS, submit=LONG_SUBMITS, reply=REPLIES)
    def submit(self, device: str, job_id: str, submit: m.JobSubmit, reply: ReplyTo) -> None:
        self._submit(device, job_id, submit, reply)

    @rule(kinds=st.lists(LONG_ANSWERS, min_size=3, max_size=6), told=st.sampled_from([1, 1, 0]))
    def work(self, kinds: list[str], told: int) -> None:
        """Many parts at once, so that a run comes to a merge."""
        for turn, kind in enumerate(kinds):
            self._work(turn % len(self.shell.workers), kind, told=bool(told))

    @precondition(lambda self: self.shell.engine._parts._families)
    @rule(at_once=st.booleans())
    def the_dispatcher_dies_while_parts_are_answered(self, at_once: bool) -> None:  # noqa: FBT001 - drawn
        if at_once:
            self.shell.restart()
        else:
            self.shell.crash_before_telling = True


LongTextsMachine.TestCase.settings = settings(EngineMachine.TestCase.settings, max_examples=150)
TestLongTexts = LongTextsMachine.TestCase
