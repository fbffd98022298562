"""Answers over many rows are those that each prompt gets alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.checkpoints.checkpoint import Float32Array
from models.checkpoints.tiny import TinyCheckpoint
from models.evaluate.run import Answerer, Question
from models.graphs.builder import GRAPH_NAME, GraphBuilder, save_graph
from models.progress import SilentProgress
from models.proof.runner import GraphRunner
from models.proof.verify import architecture_of

STOP = 2
PROMPTS = [
    [1, 5, 9, 13, 40, 41, 42],
    [1, 5, 9, 13, 40, 43],
    [1, 5, 9],
    [7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
    [1, 5, 9, 13, 40, 41, 42],
    [99],
    [1, 5, 200, 201, 202],
]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    save_graph(GraphBuilder(TinyCheckpoint(), block=32).build(SilentProgress()), folder)
    return folder / GRAPH_NAME


def runner(graph: Path, *, rows: int, max_len: int = 64) -> GraphRunner:
    return GraphRunner(graph, architecture_of(TinyCheckpoint()), rows=rows, max_len=max_len)


def ask(
    graph: Path, questions: list[Question], *, rows: int, stops: tuple[int, ...] = (STOP,)
) -> list[tuple[int, ...]]:
    answerer = Answerer(runner(graph, rows=rows), stops=stops)
    answers = answerer.answer_all(questions, advance=lambda *_: None)
    return [answer.tokens for answer in answers]


def alone(graph: Path, prompt: list[int], limit: int, stops: tuple[int, ...]) -> tuple[int, ...]:
    return runner(graph, rows=1).answer(prompt, max_tokens=limit, stops=stops).tokens


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
def test_answers_are_those_that_each_prompt_gets_alone(graph: Path, rows: int) -> None:
    limits = [12, 3, 20, 1, 12, 9, 5]
    questions = [
        Question(tokens=tuple(prompt), max_tokens=limit)
        for prompt, limit in zip(PROMPTS, limits, strict=True)
    ]
    # A token that these answers hold, so that some end by it and some by their length.
    stops = (alone(graph, PROMPTS[2], 4, ())[3],)
    wanted = [
        alone(graph, prompt, limit, stops) for prompt, limit in zip(PROMPTS, limits, strict=True)
    ]
    assert any(len(answer) < limit for answer, limit in zip(wanted, limits, strict=True))
    assert ask(graph, questions, rows=rows, stops=stops) == wanted


def test_progress_ends_when_all_are_answered(graph: Path) -> None:
    told: list[tuple[int, int]] = []
    questions = [Question(tokens=tuple(prompt), max_tokens=4) for prompt in PROMPTS]
    Answerer(runner(graph, rows=3), stops=(STOP,)).answer_all(
        questions, advance=lambda done, total: told.append((done, total))
    )
    assert told[-1] == (len(PROMPTS), len(PROMPTS))
    assert told == sorted(told)


def test_a_prompt_without_room_for_its_answer_gets_none(graph: Path) -> None:
    questions = [
        Question(tokens=(1,) * 61, max_tokens=4),
        Question(tokens=(1,) * 60, max_tokens=4),
    ]
    none, some = ask(graph, questions, rows=2, stops=())
    assert none == ()
    assert len(some) == 4


def test_nothing_asked_is_nothing_answered(graph: Path) -> None:
    assert ask(graph, [], rows=2) == []


class OnlyToken:
    """Forces one token, and remembers what it was told."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.told: list[int] = []
        self.hidden_tokens = 0

    def allow(self, logits: Float32Array) -> None:
        kept = logits[self.token]
        logits.fill(-np.inf)
        logits[self.token] = kept

    def accept(self, token: int) -> None:
        self.told.append(token)


def test_a_guide_holds_its_own_answer_only(graph: Path) -> None:
    guide = OnlyToken(17)
    held = Question(tokens=tuple(PROMPTS[0]), max_tokens=5, guide=guide)
    free = Question(tokens=tuple(PROMPTS[1]), max_tokens=5)
    answers = ask(graph, [held, free], rows=2, stops=())
    assert answers == [(17,) * 5, alone(graph, PROMPTS[1], 5, ())]
    assert guide.told == [17] * 5
