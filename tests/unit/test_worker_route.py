"""`edge-worker route`: why a prompt stays on a board, or leaves it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edge_worker.adapters.echo_engine import EchoEngine
from edge_worker.cli.route import Asked, Explanation, explain
from edge_worker.core.tuning import Measurement, Setup, Trial
from edge_worker.loading import LoadedEngine
from edge_worker.ports import EngineEvent, Finished
from fleet_protocol.messages import Escalate, Privacy, Reason
from fleet_protocol.routing import RoutePolicy

POLICY = RoutePolicy(context_tokens=64, min_confidence=0.6, refusals=("No.",))


class DoubtfulEngine(EchoEngine):
    """Echoes with the doubts that a test wants."""

    logprobs: tuple[float, ...] = ()

    def step(self) -> list[EngineEvent]:
        return [
            msgspec.structs.replace(event, logprobs=self.logprobs)
            if isinstance(event, Finished)
            else event
            for event in super().step()
        ]


def explained(
    prompt: str = "open the valve",
    *,
    logprobs: tuple[float, ...] = (-0.1,),
    policy: RoutePolicy = POLICY,
    measured: Measurement | None = None,
    **changes: object,
) -> Explanation:
    engine = DoubtfulEngine(slots=1, context_tokens=policy.context_tokens)
    engine.logprobs = logprobs
    asked = Asked(prompt=prompt, max_tokens=32, escalate=Escalate.AUTO, privacy=Privacy.ANY)
    setup = Setup(variant="default", provider="cpu", threads=1)
    loaded = LoadedEngine(
        engine=engine, policy=policy, setup=setup, why="a test", measured=measured
    )
    return explain(loaded, msgspec.structs.replace(asked, **changes))


def test_an_answer_that_is_trusted_stays_and_what_would_send_it_is_said() -> None:
    found = explained()

    assert found.before.route == "local"
    assert found.answer is not None
    assert found.answer.confidence == pytest.approx(0.905, abs=1e-3)
    assert found.after is not None
    assert found.after.route == "local"
    assert "min_confidence above 0.905" in found.would_change_it


def test_an_answer_below_the_threshold_leaves() -> None:
    found = explained(logprobs=(-1.0, -1.0))

    assert found.after is not None
    assert (found.after.route, found.after.reason) == ("escalate", Reason.LOW_CONFIDENCE)
    assert "min_confidence of 0.368 or less" in found.would_change_it


@pytest.mark.parametrize(
    "changes", [{"escalate": Escalate.NEVER}, {"privacy": Privacy.SITE}], ids=["never", "site"]
)
def test_a_job_that_may_not_leave_stays_however_doubtful(changes: dict[str, object]) -> None:
    found = explained(logprobs=(-3.0,), **changes)

    assert found.after is not None
    assert found.after.route == "local"
    assert "would let it leave" in found.would_change_it[0]


def test_the_models_own_word_is_heard() -> None:
    found = explained("No.")

    assert found.after is not None
    assert (found.after.route, found.after.reason) == ("escalate", Reason.UNSUPPORTED)


def test_a_prompt_decides_alone_where_nothing_needs_to_be_generated() -> None:
    asked_for = explained(escalate=Escalate.ALWAYS)
    too_long = explained("word " * 50)
    kept = explained("word " * 50, privacy=Privacy.SITE)

    assert (asked_for.before.reason, asked_for.answer) == (Reason.REQUESTED, None)
    assert (too_long.before.route, too_long.before.reason) == ("escalate", Reason.TOO_LONG)
    assert kept.before.route == "refuse"
    assert all(found.would_change_it for found in (asked_for, too_long, kept))


def test_a_prompt_in_no_language_of_the_model_leaves() -> None:
    policy = msgspec.structs.replace(POLICY, languages=("en", "zh"))
    found = explained("открой клапан", policy=policy)
    kept = explained("открой клапан", policy=policy, privacy=Privacy.SITE)

    assert (found.before.route, found.before.reason) == ("escalate", Reason.UNSUPPORTED)
    assert (found.foreign_script, found.languages) == ("Cyrillic", ("en", "zh"))
    assert found.would_change_it[0] == "a prompt in a language of the model (en, zh)"
    assert kept.before.route == "local"


def test_a_deadline_is_held_against_what_the_board_was_measured_at() -> None:
    trial = Trial(
        setup=Setup(variant="default", provider="cpu", threads=1),
        decode_tok_s=50.0,
        prefill_tok_s=100.0,
    )
    measured = Measurement(of=("a test",), chosen=trial, trials=(), load=0.0, measured_at_ms=0)
    prompt = "word " * 16  # 20 tokens: 200 ms to read, 20 ms for the first word
    late = explained(prompt, measured=measured, deadline_ms=219)

    assert (late.before.route, late.before.reason) == ("escalate", Reason.TOO_SLOW)
    assert late.would_change_it == ("a deadline of 220 ms or more", "escalate = never")
    assert late.timing is not None
    assert late.timing.needed_ms == pytest.approx(220)
    for in_time in (
        explained(prompt, measured=measured, deadline_ms=221),
        explained(prompt, measured=measured),
        explained(prompt, deadline_ms=1),
        explained(prompt, measured=measured, deadline_ms=1, escalate=Escalate.NEVER),
    ):
        assert in_time.before.route == "local"


@pytest.mark.parametrize("program", ["edge_worker", "fleet_cli"])
def test_both_programs_explain(program: str, tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", program, "route", "is it open?", "--engine", "echo", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"XDG_DATA_HOME": str(tmp_path)},
    )

    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["before"]["route"] == "local"
    assert found["answer"]["text"] == "is it open?"
