"""Figures come with their uncertainty, gates only with figures, and a card with both."""

from __future__ import annotations

import msgspec
import pytest

from fleet_protocol.manifest import Architecture, Manifest
from models.artefacts.card import model_card
from models.errors import ExitCode, exit_code_of
from models.evaluate.gates import EvaluationGateError, enforce, judge
from models.evaluate.quality import TextQuality
from models.evaluate.report import (
    Evaluation,
    Example,
    Gate,
    SizeShare,
    SuiteResult,
    family_scores,
    score,
)


def result(right: int, asked: int, *, model: str = "tiny 1") -> SuiteResult:
    verdicts = [("en", "command", place < right) for place in range(asked)]
    return SuiteResult(
        model=model,
        total=score(right, asked),
        families=family_scores(verdicts),
        valid_json=score(asked, asked),
        elapsed_s=2.0,
        tokens_per_s=50.0,
    )


TEXT = TextQuality(
    positions=100, perplexity=21.4, perplexity_fp32=21.3, mean_kl_nats=0.004, top1_share=0.96
)
SMALL = SizeShare(graph_bytes=269, fp32_bytes=1000, share=0.269)
LARGE = SizeShare(graph_bytes=288, fp32_bytes=1000, share=0.288)


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [
        # Published values of Wilson's interval.
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
        (0, 0, 0.0, 1.0),
    ],
)
def test_a_score_has_wilsons_interval(right: int, asked: int, low: float, high: float) -> None:
    found = score(right, asked)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_scores_are_counted_by_language_and_family() -> None:
    rows = family_scores(
        [("zh", "a", True), ("en", "b", False), ("en", "a", True), ("zh", "a", False)]
    )
    assert [(row.language, row.family, row.score.right, row.score.asked) for row in rows] == [
        ("en", "a", 1, 1),
        ("en", "b", 0, 1),
        ("zh", "a", 1, 2),
    ]


def test_an_artefact_that_keeps_enough_passes() -> None:
    gates = judge(answers=result(391, 500), fp32=result(400, 500), text=TEXT, size=SMALL)
    assert [gate.is_passed for gate in gates] == [True, True, True]
    assert gates[0].value == pytest.approx(0.0225)
    enforce(gates)


@pytest.mark.parametrize(
    ("right", "text", "size", "said"),
    [
        (390, TEXT, SMALL, "relative accuracy loss to fp32 is 0.025, more than 0.023"),
        (400, TEXT, LARGE, "share of the fp32 size is 0.288, more than 0.27"),
        (
            400,
            msgspec.structs.replace(TEXT, mean_kl_nats=10.9),
            SMALL,
            "divergence from fp32 in nats is 10.9, more than 0.05",
        ),
    ],
)
def test_one_that_lost_too_much_is_refused(
    right: int, text: TextQuality, size: SizeShare, said: str
) -> None:
    gates = judge(answers=result(right, 500), fp32=result(400, 500), text=text, size=size)
    with pytest.raises(EvaluationGateError) as caught:
        enforce(gates)
    assert str(caught.value) == said
    assert len(caught.value.gates) == 1
    assert exit_code_of(caught.value) is ExitCode.VERIFICATION


def test_what_was_not_measured_is_neither_passed_nor_refused() -> None:
    few = judge(answers=result(1, 10), fp32=result(10, 10), text=None, size=None)
    assert [gate.value for gate in few] == [None, None, None]
    assert not any(gate.is_passed for gate in few)
    enforce(few)


def test_a_model_better_than_its_weights_loses_nothing() -> None:
    gates = judge(answers=result(410, 500), fp32=result(400, 500), text=TEXT, size=SMALL)
    assert gates[0].is_passed


def manifest() -> Manifest:
    return Manifest(
        name="tiny",
        version="1",
        graph="model.onnx",
        tokenizer="tokenizer.json",
        chat_template="",
        context_tokens=512,
        memory_mb=100,
        stop_tokens=(2,),
        opset=21,
        source="file:tiny.gguf",
        licence="Apache-2.0",
        quantization="int8 weight-only, block 64",
        architecture=Architecture(layers=1, kv_heads=1, head_dim=2, vocab=3),
        files=(),
        languages=("en", "zh"),
        refusals=("I cannot answer that here.",),
    )


def evaluation() -> Evaluation:
    answers = result(90, 100)
    return Evaluation(
        model="tiny",
        version="1",
        quantization="int8 weight-only, block 64",
        artefact_sha256="a" * 64,
        suite_sha256="b" * 64,
        is_whole_suite=True,
        answers=answers,
        fp32=result(92, 100, model="fp32 weights"),
        base=result(20, 100, model="teeny 1"),
        text=TEXT,
        size=SMALL,
        gates=judge(answers=answers, fp32=None, text=TEXT, size=SMALL),
        examples=(
            Example(
                family="command",
                language="en",
                prompt="lamp on\nas JSON | now",
                before="Sure! `{`",
                after='{"device": "lamp"}',
            ),
        ),
    )


def test_a_card_has_the_models_side_by_side() -> None:
    lines = model_card(manifest(), evaluation()).splitlines()
    assert lines[0] == "# tiny 1"
    heading = "| language | family | prompts | this model | its weights in fp32 | teeny 1 |"
    assert heading in lines
    row = "| English | command | 100 | 90.0 % (83-94) | 92.0 % (85-96) | 20.0 % (13-29) |"
    assert row in lines
    assert "- licence of the weights: Apache-2.0" in lines
    assert "- gate, share of the fp32 size: 0.2690, at most 0.27: kept" in lines


def test_a_card_shows_answers_as_they_are() -> None:
    text = model_card(manifest(), evaluation())
    assert "- prompt: ` lamp on ⏎ as JSON | now `" in text
    assert "- before: `` Sure! `{` ``" in text
    assert '- after: ` {"device": "lamp"} `' in text


def test_a_card_claims_nothing_that_was_not_measured() -> None:
    bare = msgspec.structs.replace(
        evaluation(), fp32=None, base=None, text=None, size=None, gates=(), examples=()
    )
    text = model_card(manifest(), bare)
    for claim in ("fp32", "undistilled", "perplexity", "gate", "Before and after", "resident"):
        assert claim not in text


def test_a_card_names_the_families_that_it_is_weak_at() -> None:
    weak = msgspec.structs.replace(evaluation(), answers=result(40, 100))
    assert "- Weak at command in English: 40.0 % (31-50) right." in model_card(manifest(), weak)
    assert "Weak at" not in model_card(manifest(), evaluation())


def test_an_unmeasured_gate_is_not_passed() -> None:
    assert not Gate(name="x", value=None, limit=1).is_passed
