"""What every program in the inference benchmark is asked, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from fleet_protocol.messages import ChatMessage, ChatRole

Encode = Callable[[Sequence[ChatMessage]], tuple[int, ...]]

QUESTIONS = (
    "Describe what a thermostat does in a house.",
    "Write a short story about a lighthouse.",
    "Explain how rain forms, step by step.",
    "List ten animals and where they live.",
    "Tell me about the history of bread.",
    "What should I pack for a week at the sea?",
    "Describe a busy market in the morning.",
    "Explain why leaves change colour in autumn.",
)
# Prompts of boards are short or carry a log: so many log lines stand before each question.
LOG_LINES = (0, 12, 0, 4, 0, 8, 2, 0)
ANSWER_SHARES = (1.0, 0.5, 0.75, 1.0, 0.5, 1.0, 0.75, 0.5)
RULES = (
    "You are the assistant of a building. You answer questions about its rooms, its heating, its "
    "lamps, its doors and its sensors. Answer in one short sentence. Say that you do not know "
    "when you do not know. Never invent a device. Temperatures are in degrees Celsius, powers in "
    "watts, times in hours and minutes. Lamps are on or off. Doors are open, closed or locked. "
)
RECORD = (
    "Order 48213 was placed by Maria Lindqvist on 14 March 2025 and shipped to 27 Harbour Street, "
    "Gothenburg. It holds three items: a 40 W soldering iron, a 5 m spool of copper wire and a "
    "pack of 20 heat-shrink tubes. The parcel weighs 1.85 kg and the carrier is Nordfrakt."
)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One request: exactly `answer_tokens` tokens, greedily, even behind what ends an answer."""

    prompt_tokens: tuple[int, ...]
    answer_tokens: int


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a set of jobs.

    Attributes:
        took_s: From the first request to the last answer.
        tokens: Generated, all answers together.
        first_s: Per job, from its request to its first token.
        generating_s: Per job, from its first token to its last.
        answers: Their texts, where the program gives any.
    """

    took_s: float
    tokens: int
    first_s: list[float]
    generating_s: list[float]
    answers: list[str] = []


class Peer(Protocol):
    """A program that generates."""

    def run(self, jobs: Sequence[Job], *, at_once: int = 1) -> Run:
        """Work on the jobs in order, `at_once` of them at any time."""
        ...


def questions(encode: Encode, *, answer_tokens: int) -> list[Job]:
    """Return the plain questions: about 40 tokens each."""
    return [_job(encode, question, answer_tokens) for question in QUESTIONS]


def mixed(encode: Encode, *, answer_tokens: int) -> list[Job]:
    """Return requests of mixed lengths: from a question alone to one behind twelve log lines."""
    return [
        _job(encode, _log(lines) + question, max(2, round(share * answer_tokens)))
        for question, lines, share in zip(QUESTIONS, LOG_LINES, ANSWER_SHARES, strict=True)
    ]


def reading(encode: Encode, *, prompt_tokens: int) -> Job:
    """Return a prompt of so many tokens whose answer is one token."""
    text = _log(prompt_tokens // 8)
    return Job(
        prompt_tokens=encode([ChatMessage(role=ChatRole.USER, content=text)])[:prompt_tokens],
        answer_tokens=1,
    )


def ruled(encode: Encode, *, repeats: int) -> list[Job]:
    """Return the questions behind one long system prompt; of each, the first token is wanted."""
    system = ChatMessage(role=ChatRole.SYSTEM, content=RULES * repeats)
    return [
        Job(
            prompt_tokens=encode([system, ChatMessage(role=ChatRole.USER, content=question)]),
            answer_tokens=1,
        )
        for question in QUESTIONS
    ]


def extraction(encode: Encode, *, answer_tokens: int) -> list[Job]:
    """Return requests whose answers repeat what the prompt says."""
    asked = (
        "Copy this text word by word",
        "Repeat the following record exactly as it is",
        "Correct the spelling of this text and change nothing else",
    )
    return [_job(encode, f"{words}: {RECORD}", answer_tokens) for words in asked]


def _job(encode: Encode, text: str, answer_tokens: int) -> Job:
    message = ChatMessage(role=ChatRole.USER, content=text)
    return Job(prompt_tokens=encode([message]), answer_tokens=answer_tokens)


def _log(lines: int) -> str:
    rows = (
        f"{8 + n % 12:02}:{7 * n % 60:02} room {n % 9 + 1}: {18 + 5 * n % 17}.{n % 10} degrees, "
        f"window {'open' if n % 3 else 'closed'}\n"
        for n in range(lines)
    )
    return "".join(rows)
