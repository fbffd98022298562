"""An answer that would be sent away however it goes on is not generated to its end."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_worker.adapters.artefact import Artefact
from edge_worker.adapters.onnx_engine import OnnxEngine
from edge_worker.core.batching import EngineSettings
from edge_worker.core.generation import Finished, GenerationRequest, Trust
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.confidence import best_possible, confidence
from fleet_protocol.manifest import Calibration, DoubtWeights
from fleet_protocol.routing import RoutePolicy
from tests.contract import tiny_model
from tests.unit.session_lab import SessionLab, finished

PROMPTS = [[3, 5, 8], [13, 21], [34, 55, 7, 9], [11], [12, 40, 41], [60, 61], [5, 5, 5, 9]]
LENGTH = 24


VALUES = DoubtWeights(bias=-3.0, mean=2.0, worst=0.5, repeated=0.0)


def calibration(
    bias: float = -2.0,
    mean: float = 1.0,
    worst: float = 1.0,
    values: DoubtWeights | None = None,
) -> Calibration:
    return Calibration(
        bias=bias,
        values=values,
        mean=mean,
        worst=worst,
        repeated=1.0,
        answers=100,
        right_share=0.8,
        error_rate=0.1,
        kept_right_share=0.9,
        kept_wrong_share=0.1,
        auc=0.8,
    )


LOGPROBS = st.lists(st.floats(-9.0, 0.0), min_size=1, max_size=12)


@given(
    LOGPROBS,
    st.lists(st.floats(-9.0, 0.0), max_size=12),
    st.integers(0, 9),
    st.tuples(st.text(" -5{a", max_size=4), st.text(" -5{a", min_size=1, max_size=4)),
    st.sampled_from([None, VALUES]),
)
def test_no_continuation_is_trusted_more_than_what_is_possible(
    begun: list[float],
    more: list[float],
    room: int,
    texts: tuple[str, str],
    values: DoubtWeights | None,
) -> None:
    fitted, whole = calibration(values=values), [*begun, *more]

    best = best_possible(
        -sum(begun),
        -min(begun),
        most_tokens=len(whole) + room,
        calibration=fitted,
        begun=texts[0],
    )

    assert confidence("".join(texts), whole, fitted) <= best + 1e-12


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return tiny_model.build_artefact(tmp_path_factory.mktemp("tiny"))


def answer_all(artefact: Artefact, trust: Trust | None) -> dict[str, Finished]:
    engine = OnnxEngine(artefact, settings=EngineSettings(slots=3, intra_op_threads=1))
    for number, prompt in enumerate(PROMPTS):
        engine.add(
            GenerationRequest(
                id=str(number),
                prompt_tokens=tuple(prompt),
                generation=m.Generation(max_tokens=LENGTH),
                trust=trust,
            )
        )
    ends: dict[str, Finished] = {}
    for _ in range(500):
        for event in engine.step():
            if isinstance(event, Finished):
                ends[event.id] = event
    assert engine.is_idle
    engine.close()
    return ends


@pytest.mark.parametrize("values", [None, VALUES], ids=["alike", "apart"])
def test_exactly_answers_that_would_leave_are_given_up(
    artefact: Artefact, values: DoubtWeights | None
) -> None:
    whole = answer_all(artefact, None)
    fitted = calibration(bias=-4.0, values=values)
    trusted = sorted(confidence(end.text, end.logprobs, fitted) for end in whole.values())
    trust = Trust(calibration=fitted, least=trusted[len(trusted) // 2])

    cut = answer_all(artefact, trust)

    given_up = {name for name, end in cut.items() if end.gave_up}
    assert given_up
    for name, end in whole.items():
        if name in given_up:
            assert confidence(end.text, end.logprobs, fitted) < trust.least
            assert cut[name].logprobs == end.logprobs[: len(cut[name].logprobs)]
            assert cut[name].tokens < LENGTH
        else:
            assert cut[name] == end


def test_a_job_that_may_leave_is_given_up_and_takes_no_half_answer_along() -> None:
    policy = RoutePolicy(context_tokens=100, min_confidence=0.5, calibration=calibration())
    lab = SessionLab(policy=policy)
    name = lab.start()
    assert lab.engine[name].trust == Trust(calibration=calibration(), least=0.5)

    lab.from_engine(msgspec.structs.replace(finished(name, text="The pu"), gave_up=True))

    (escalation,) = lab.told(t.ESCALATE, "J1")
    assert (escalation.reason, escalation.answer) == (m.Reason.LOW_CONFIDENCE, None)
    assert "given up after 1 tokens" in escalation.detail


@pytest.mark.parametrize("changes", [{"escalate": m.Escalate.NEVER}, {"privacy": m.Privacy.SITE}])
def test_a_job_that_may_not_leave_gets_its_whole_answer(changes: dict[str, Any]) -> None:
    policy = RoutePolicy(context_tokens=100, min_confidence=0.5, calibration=calibration())
    lab = SessionLab(policy=policy)

    assert lab.engine[lab.start(**changes)].trust is None


def test_while_the_cloud_is_away_a_doubtful_answer_is_finished_and_goes_along() -> None:
    policy = RoutePolicy(context_tokens=100, min_confidence=0.99, calibration=calibration())
    lab = SessionLab(policy=policy)
    name = lab.start(cloud_away=True)
    assert lab.engine[name].trust is None

    lab.from_engine(finished(name, text="The pump"))

    (escalation,) = lab.told(t.ESCALATE, "J1")
    assert escalation.reason is m.Reason.LOW_CONFIDENCE
    assert escalation.answer is not None
    assert escalation.answer.text == "The pump"


@pytest.mark.parametrize(
    "fitted",
    [
        None,
        calibration(mean=-1.0),
        calibration(worst=-0.1),
        calibration(values=msgspec.structs.replace(VALUES, worst=-0.1)),
    ],
)
def test_without_a_calibration_that_bounds_it_all_is_generated(fitted: Calibration | None) -> None:
    policy = RoutePolicy(context_tokens=100, min_confidence=0.5, calibration=fitted)
    lab = SessionLab(policy=policy)

    assert lab.engine[lab.start()].trust is None
