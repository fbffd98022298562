"""What a worker says of an answer that must have a form."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edge_worker.core.generation import Broke, Grew
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from tests.unit.session_lab import SessionLab, finished

FORM = m.Generation(output=m.OutputFormat(json=True))
BOUND = [{"escalate": m.Escalate.NEVER}, {"privacy": m.Privacy.SITE}]


def half(name: str) -> Any:
    whole = finished(name, text='{"device": "la')
    return msgspec.structs.replace(whole, fits_output=False, finish=m.FinishReason.LENGTH)


def test_a_whole_answer_of_the_form_is_the_answer() -> None:
    lab = SessionLab()
    lab.from_engine(finished(lab.start(generation=FORM), text='{"device": "lamp"}'))
    (done,) = lab.told(t.DONE, "J1")
    assert done.answer.text == '{"device": "lamp"}'


def test_half_a_form_is_escalated_and_not_kept() -> None:
    lab = SessionLab()
    lab.from_engine(half(lab.start(generation=FORM)))
    (escalation,) = lab.told(t.ESCALATE, "J1")
    assert (escalation.reason, escalation.answer) == (m.Reason.LOW_CONFIDENCE, None)
    assert "did not complete" in escalation.detail


@pytest.mark.parametrize("changes", BOUND)
def test_half_a_form_that_may_not_leave_fails_for_good(changes: dict[str, Any]) -> None:
    lab = SessionLab()
    lab.from_engine(half(lab.start(generation=FORM, **changes)))
    (failed,) = lab.told(t.FAILED, "J1")
    assert (failed.code, failed.retryable) == ("output_incomplete", False)
    assert "raise max_tokens" in failed.message


@pytest.mark.parametrize("changes", [{}, *BOUND])
def test_a_wrong_form_fails_for_good_and_costs_no_provider_call(changes: dict[str, Any]) -> None:
    lab = SessionLab()
    name = lab.start(generation=FORM, **changes)
    lab.from_engine(Broke(name, "bad_output_format", "unclosed group"))
    (failed,) = lab.told(t.FAILED, "J1")
    assert (failed.code, failed.retryable) == ("bad_output_format", False)
    assert failed.message == "unclosed group"
    assert not lab.told(t.ESCALATE, "J1")


def test_a_form_beyond_this_worker_is_escalated_as_unsupported() -> None:
    lab = SessionLab()
    name = lab.start(generation=FORM)
    lab.from_engine(Broke(name, "unsupported_output_format", "uniqueItems"))
    (escalation,) = lab.told(t.ESCALATE, "J1")
    assert (escalation.reason, escalation.detail) == (m.Reason.UNSUPPORTED, "uniqueItems")


@pytest.mark.parametrize("changes", BOUND)
def test_a_form_beyond_this_worker_fails_where_it_may_not_leave(changes: dict[str, Any]) -> None:
    lab = SessionLab()
    name = lab.start(generation=FORM, **changes)
    lab.from_engine(Broke(name, "unsupported_output_format", "uniqueItems"))
    (failed,) = lab.told(t.FAILED, "J1")
    assert (failed.code, failed.retryable) == ("unsupported_output_format", False)


def test_a_breakage_in_mid_form_leaves_no_half_behind() -> None:
    lab = SessionLab()
    name = lab.start(generation=FORM)
    lab.from_engine(Grew(name, '{"dev', 2))
    lab.from_engine(Broke(name, "output_broken", "nothing may follow"))
    (escalation,) = lab.told(t.ESCALATE, "J1")
    assert (escalation.reason, escalation.answer) == (m.Reason.LOCAL_ERROR, None)
