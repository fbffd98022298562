"""When which device asks what: drawn, or as it was recorded."""

from __future__ import annotations

import bisect
import itertools
from pathlib import Path
from random import Random
from typing import Final

import msgspec

from cloud_dispatcher.simulation.scenario import Arrivals, Pattern
from fleet_protocol.errors import ConfigError, cause_of
from fleet_protocol.messages import JobView

CHARS_PER_TOKEN: Final = 4
_PROMPT_MOST: Final = 1_500


class Demand(msgspec.Struct, frozen=True):
    """One job, with what only its answer will show.

    Attributes:
        at_ms: When it is submitted.
        prompt_tokens: As the board will count them.
        answer_tokens: As long as the answer will be; the dispatcher is told `max_tokens` alone.
        deadline_ms: Span from the submission.
    """

    at_ms: int
    device: int
    prompt_tokens: int
    answer_tokens: int
    max_tokens: int
    deadline_ms: int
    priority: int = 5


def draw(arrivals: Arrivals, *, capacity_tok_s: float, cost: float, random: Random) -> list[Demand]:
    """Draw jobs, in order of time.

    Args:
        arrivals: See there.
        capacity_tok_s: Tokens that the whole fleet could write in a second.
        cost: Of reading a prompt token, in tokens written.
        random: Nothing else is drawn from it.
    """
    sizes = [_size(arrivals, random) for _ in range(arrivals.jobs)]
    mean_tokens = sum(answer + cost * prompt for prompt, answer in sizes) / len(sizes)
    jobs_per_s = arrivals.jobs_per_s or arrivals.load * capacity_tok_s / mean_tokens
    cumulative = list(itertools.accumulate(1 / n for n in range(1, arrivals.devices + 1)))
    times = _times_ms(arrivals, jobs_per_s, random)
    deadline_ms = round(arrivals.deadline_s * 1_000)
    return [
        Demand(
            at_ms,
            bisect.bisect_left(cumulative, random.random() * cumulative[-1]),
            prompt,
            answer,
            arrivals.max_tokens,
            deadline_ms,
        )
        for at_ms, (prompt, answer) in zip(times, sizes, strict=True)
    ]


def read_trace(path: Path, arrivals: Arrivals) -> list[Demand]:
    """Read what `fleet jobs ls --jsonl` or `--json` printed, and play it from its first job on.

    A job that was answered in parts was work for no board; its parts are jobs of their own. A job
    without an answer is taken to have needed one of median length. With `arrivals.jobs_per_s` time
    is stretched to that mean rate.

    Raises:
        ConfigError: It cannot be read, or holds no job.
    """
    hint = "write it with `fleet jobs ls --limit 1000 --jsonl > jobs.jsonl`"
    try:
        views = {view.job: view for view in _views(path.read_bytes()) if not view.parts}
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"the log {path} cannot be read: {cause_of(error)}", hint=hint) from error
    if not views:
        raise ConfigError(f"the log {path} holds no job", hint=hint)
    ordered = sorted(views.values(), key=lambda view: (view.received_at_ms, view.job))
    devices = {name: number for number, name in enumerate(sorted({v.device for v in ordered}))}
    begin_ms, end_ms = ordered[0].received_at_ms, ordered[-1].received_at_ms
    stretch = 1.0
    if arrivals.jobs_per_s is not None and end_ms > begin_ms:
        stretch = len(ordered) * 1_000 / arrivals.jobs_per_s / (end_ms - begin_ms)
    return [
        _recorded(view, arrivals, devices[view.device], (view.received_at_ms - begin_ms) * stretch)
        for view in ordered
    ]


def _recorded(view: JobView, arrivals: Arrivals, device: int, at_ms: float) -> Demand:
    usage = None if view.result is None else view.result.usage
    answer = usage.completion_tokens if usage is not None else 0
    answer = answer or round(arrivals.answer_tokens)
    prompt = usage.prompt_tokens if usage is not None else 0
    deadline_ms = round(arrivals.deadline_s * 1_000)
    if view.deadline_at_ms is not None:
        deadline_ms = max(view.deadline_at_ms - view.received_at_ms, 1)
    return Demand(
        round(at_ms),
        device,
        max(prompt or view.prompt_chars // CHARS_PER_TOKEN, 1),
        answer,
        min(max(arrivals.max_tokens, answer), 4_096),
        deadline_ms,
        view.priority,
    )


def _views(raw: bytes) -> list[JobView]:
    if b'"jobs"' in raw[:32]:
        return msgspec.json.decode(raw, type=dict[str, list[JobView]])["jobs"]
    return msgspec.json.Decoder(JobView).decode_lines(raw)


def _size(arrivals: Arrivals, random: Random) -> tuple[int, int]:
    def length(median: float) -> int:
        return max(1, round(median * random.lognormvariate(0.0, arrivals.spread)))

    prompt = min(length(arrivals.prompt_tokens), _PROMPT_MOST)
    return prompt, min(length(arrivals.answer_tokens), arrivals.max_tokens)


def _times_ms(arrivals: Arrivals, jobs_per_s: float, random: Random) -> list[int]:
    """Return moments in order; bursts by leaving out what comes too fast between them."""
    factor, share = 1.0, 0.0
    if arrivals.pattern is Pattern.BURSTS:
        factor = arrivals.burst_factor
        share = min(arrivals.burst_span_s / arrivals.burst_every_s, 1.0)
    calm = jobs_per_s / (1.0 + (factor - 1.0) * share)
    peak, at_s, times = calm * max(factor, 1.0), 0.0, list[int]()
    while len(times) < arrivals.jobs:
        at_s += random.expovariate(peak)
        in_burst = at_s % arrivals.burst_every_s < share * arrivals.burst_every_s
        if random.random() * peak < calm * (factor if in_burst else 1.0):
            times.append(round(at_s * 1_000))
    return times
