"""`edge-worker route`: where a prompt would be answered, and why."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Final

import click
import msgspec

from edge_worker.app import benchmark_of, measurement_file
from edge_worker.cli.exits import ExitCode
from edge_worker.config import WorkerSettings
from edge_worker.core.pace import Pace
from edge_worker.loading import LoadedEngine, Measuring, load_engine
from edge_worker.ports import Broke, Finished, GenerationRequest, InferenceEngine
from fleet_protocol import routing
from fleet_protocol.confidence import Signs, confidence, is_value, read_signs
from fleet_protocol.errors import FleetError
from fleet_protocol.messages import (
    ChatMessage,
    ChatRole,
    Escalate,
    FinishReason,
    Generation,
    Privacy,
    Reason,
)
from fleet_protocol.scripts import foreign_script

_FEATURES_SHOWN: Final = 3


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt as a device would submit it.

    Attributes:
        deadline_ms: Span after which the answer is worthless; None: any time will do.
    """

    prompt: str
    max_tokens: int
    escalate: Escalate
    privacy: Privacy
    deadline_ms: int | None = None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One of the rule's two decisions.

    Attributes:
        route: `local`, `escalate` or `refuse`.
    """

    route: str
    reason: Reason | None = None
    detail: str = ""


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of this board's model, and how far it is trusted.

    Attributes:
        value: It is JSON or a number, not words: a calibration may weigh its doubts apart.
    """

    text: str
    tokens: int
    finish: FinishReason
    value: bool
    signs: Signs
    confidence: float


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Both decisions and what they were taken from.

    Attributes:
        languages: That the model was made for; none: nobody said.
        foreign_script: That most of the prompt is in, if none of them is written in it.
        timing: What answering takes on this board alone, and the deadline; None: there is none,
            or the board was not measured yet.
        difficulty: Probability of a wrong answer, by the prompt's looks; None: nobody knows.
        hardest_features: What of its looks says so, in log-odds.
        before: What the prompt alone decides.
        answer: None where none was generated.
        after: What the answer decides; None where there is none.
        would_change_it: What of the settings or the job would.
    """

    model: str
    prompt_tokens: int
    context_tokens: int
    languages: tuple[str, ...] = ()
    foreign_script: str | None = None
    timing: routing.Timing | None = None
    difficulty: float | None = None
    hardest_features: tuple[tuple[str, float], ...] = ()
    max_difficulty: float
    min_confidence: float
    before: Decision
    answer: Said | None = None
    after: Decision | None = None
    would_change_it: tuple[str, ...] = ()


def route(
    settings: WorkerSettings, environ: Mapping[str, str], asked: Asked, *, as_json: bool
) -> ExitCode:
    """Ask the rule, answer the prompt if it says so, ask it again, and print all of it.

    Raises:
        FleetError: The engine cannot be loaded, or the prompt cannot be answered.
    """
    measuring = Measuring(file=measurement_file(settings, environ), only_known=True)
    loaded = load_engine(settings, environ, measuring=measuring)
    try:
        explained = explain(loaded, asked)
    finally:
        loaded.engine.close()
    if as_json:
        click.echo(msgspec.json.encode(explained).decode())
    else:
        _show(explained)
    return ExitCode.OK


def explain(loaded: LoadedEngine, asked: Asked) -> Explanation:
    """Return what the rule decides, generating the answer where it is to be one of this board."""
    engine, policy, model = loaded.engine, loaded.policy, loaded.difficulty
    tokens = engine.encode([ChatMessage(role=ChatRole.USER, content=asked.prompt)])
    query = routing.RouteQuery(
        prompt_tokens=len(tokens),
        max_tokens=asked.max_tokens,
        escalate=asked.escalate,
        privacy=asked.privacy,
        timing=_timing(loaded, tokens, asked),
        foreign_script=foreign_script(asked.prompt, policy.languages),
        difficulty=None if model is None else model.predict(asked.prompt),
    )
    before = routing.decide(query, policy)
    found = Explanation(
        model=f"{engine.model.name} {engine.model.version}",
        prompt_tokens=len(tokens),
        context_tokens=policy.context_tokens,
        languages=policy.languages,
        foreign_script=query.foreign_script,
        timing=query.timing,
        difficulty=query.difficulty,
        hardest_features=() if model is None else model.explain(asked.prompt)[:_FEATURES_SHOWN],
        max_difficulty=policy.max_difficulty,
        min_confidence=policy.min_confidence,
        before=_decision(before),
        would_change_it=_before_changes(before, query, policy),
    )
    if not isinstance(before, routing.Local):
        return found
    ended = _generate(engine, tokens, max_tokens=asked.max_tokens)
    trusted = confidence(ended.text, ended.logprobs, policy.calibration)
    after = routing.judge(ended.text, trusted, query, policy)
    return msgspec.structs.replace(
        found,
        answer=Said(
            text=ended.text,
            tokens=ended.tokens,
            finish=ended.finish,
            value=is_value(ended.text),
            signs=read_signs(ended.text, ended.logprobs),
            confidence=trusted,
        ),
        after=_decision(after),
        would_change_it=_after_changes(after, trusted, query),
    )


def _timing(loaded: LoadedEngine, tokens: tuple[int, ...], asked: Asked) -> routing.Timing | None:
    """Return what a worker that has just started would reckon with."""
    if loaded.measured is None or asked.deadline_ms is None:
        return None
    return Pace().reckon(
        unread_tokens=len(tokens),
        max_tokens=asked.max_tokens,
        speed=benchmark_of(loaded.measured),
        left_ms=asked.deadline_ms,
    )


def _generate(engine: InferenceEngine, tokens: tuple[int, ...], *, max_tokens: int) -> Finished:
    request = GenerationRequest(
        id="route", prompt_tokens=tokens, generation=Generation(max_tokens=max_tokens), stream=False
    )
    engine.add(request)
    while True:
        for event in engine.step():
            match event:
                case Finished():
                    return event
                case Broke(code=code, message=message):
                    raise FleetError(f"{code}: {message}", hint="edge-worker selftest")


def _decision(route: routing.Route) -> Decision:
    match route:
        case routing.Local():
            return Decision(route="local")
        case routing.EscalateTo(reason=reason, detail=detail):
            return Decision(route="escalate", reason=reason, detail=detail)
        case routing.Refuse(reason=reason, detail=detail):
            return Decision(route="refuse", reason=reason, detail=detail)


def _before_changes(
    route: routing.Route, query: routing.RouteQuery, policy: routing.RoutePolicy
) -> tuple[str, ...]:
    """Say what would let the board answer."""
    if isinstance(route, routing.Local):
        return ()
    if route.reason is Reason.REQUESTED:
        return ("escalate = auto",)
    if route.reason is Reason.TOO_SLOW and query.timing is not None:
        return (f"a deadline of {ceil(query.timing.needed_ms)} ms or more", "escalate = never")
    if route.reason is Reason.UNSUPPORTED:
        known = ", ".join(policy.languages)
        return (f"a prompt in a language of the model ({known})", "escalate = never")
    if route.reason is Reason.COMPLEX:
        return ("a simpler prompt", "escalate = never")
    room = policy.context_tokens - query.prompt_tokens
    shorter = (f"max_tokens of {room} or fewer",) if room > 0 else ("a shorter prompt",)
    return (*shorter, "a larger context (max_tokens and memory_mb of the worker)")


def _after_changes(
    route: routing.Route, trusted: float, query: routing.RouteQuery
) -> tuple[str, ...]:
    """Say what would send the answer away, or keep it."""
    if isinstance(route, routing.Local):
        if not query.may_escalate:
            return ("escalate = auto and privacy = any would let it leave at all",)
        return (f"min_confidence above {trusted:.3f}", "escalate = always")
    if route.reason is Reason.LOW_CONFIDENCE:
        return (f"min_confidence of {trusted:.3f} or less", "escalate = never")
    return ("escalate = never, which keeps the refusal as the answer",)


def _show(found: Explanation) -> None:
    click.echo(f"model       {found.model}")
    click.echo(f"prompt      {found.prompt_tokens} of {found.context_tokens} tokens")
    if found.timing is not None:
        needed_s, left_s = found.timing.needed_ms / 1_000, found.timing.left_ms / 1_000
        click.echo(f"time        {needed_s:.2f} s at least, the deadline is in {left_s:.2f} s")
    if found.difficulty is not None:
        looks = ", ".join(f"{name} {odds:+.1f}" for name, odds in found.hardest_features)
        click.echo(f"difficulty  {found.difficulty:.3f} of {found.max_difficulty:.3f}; {looks}")
    click.echo(f"before      {_words(found.before)}")
    if found.answer is not None and found.after is not None:
        said = found.answer
        click.echo(f"answer      {said.text!r} ({said.tokens} tokens, {said.finish.value})")
        click.echo(
            f"doubt       {said.signs.mean:.2f} on the mean, {said.signs.worst:.2f} at worst, "
            f"{said.signs.repeated:.0%} repeated, as a {'value' if said.value else 'text'}"
        )
        click.echo(
            f"confidence  {said.confidence:.3f}; answers below {found.min_confidence:.3f} leave"
        )
        click.echo(f"after       {_words(found.after)}")
    for change in found.would_change_it:
        click.echo(f"otherwise   {change}")


def _words(decision: Decision) -> str:
    if decision.reason is None:
        return "answered here"
    where = "to the cloud" if decision.route == "escalate" else "refused"
    return f"{where}, {decision.reason.value}: {decision.detail}"
