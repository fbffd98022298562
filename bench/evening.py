"""A bad evening at the provider, and what devices ask meanwhile: the same for all who are compared.

The provider refuses a third of the calls, is slow with one in eight of the others, and for a while
answers nothing at all. What it does with the n-th call is drawn beforehand, so that whoever calls
it n times meets the same fortune.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from itertools import islice

import msgspec

from cloud_dispatcher.adapters.simulated_answers import Step
from cloud_dispatcher.adapters.simulated_deepseek import SimulatedDeepSeek
from models.suite import SuiteItem, load_reasoning, load_suite

SUCCESS_SHARE = 0.65
SLOW_SHARE = 0.12
QUICK_S, SLOW_S = (0.4, 1.0), (3.5, 6.3)
"""Of calls that are answered: 1.2 s on the mean."""
SIMPLE_SHARE = 0.8
# What a board's model is made for; Chinese and refusals are other matters.
_SIMPLE = frozenset({"command", "classify", "extract", "threshold", "arithmetic", "units", "facts"})
_SCRIPTED_CALLS = 100_000


class Evening(msgspec.Struct, frozen=True, kw_only=True):
    """How long it lasts.

    Attributes:
        jobs: Asked in all, at random instants.
        length_s: Within which they are asked.
        outage_s: From when to when the provider answers nothing at all.
        seed: Of everything that is drawn.
    """

    jobs: int
    length_s: float
    outage_s: tuple[float, float]
    seed: int = 20_261


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One job of the trace.

    Attributes:
        at_s: When it is submitted.
        item: With a check for answers of the edge, where it is one that a board is to answer.
    """

    at_s: float
    item: SuiteItem
    is_simple: bool
    in_outage: bool


def draw_trace(evening: Evening) -> list[Asked]:
    """Return the jobs in the order of their instants; no prompt comes twice."""
    chance = random.Random(evening.seed)  # noqa: S311 - no secret
    simple = [item for item in load_suite() if item.language == "en" and item.family in _SIMPLE]
    hard = list(load_reasoning())
    chance.shuffle(simple)
    chance.shuffle(hard)
    count = round(evening.jobs * SIMPLE_SHARE)
    kinds = [True] * count + [False] * (evening.jobs - count)
    chance.shuffle(kinds)
    instants = sorted(chance.uniform(0, evening.length_s) for _ in kinds)
    begins, ends = evening.outage_s
    sources = {True: _again(simple), False: _again(hard)}
    return [
        Asked(
            at_s=at_s,
            item=next(sources[is_simple]),
            is_simple=is_simple,
            in_outage=begins <= at_s < ends,
        )
        for at_s, is_simple in zip(instants, kinds, strict=True)
    ]


async def misbehave(simulator: SimulatedDeepSeek, evening: Evening) -> None:
    """Let a provider have that evening; ends with it."""
    fortunes = _fortunes(evening.seed + 1)
    begins, ends = evening.outage_s
    simulator.script(*islice(fortunes, _SCRIPTED_CALLS))
    await asyncio.sleep(begins)
    simulator.script(fallback=Step(status=503))
    await asyncio.sleep(ends - begins)
    simulator.script(*islice(fortunes, _SCRIPTED_CALLS))
    await asyncio.sleep(evening.length_s - ends)


def _fortunes(seed: int) -> Iterator[Step]:
    chance = random.Random(seed)  # noqa: S311 - no secret
    while True:
        if chance.random() >= SUCCESS_SHARE:
            yield Step(status=503)
        else:
            span = SLOW_S if chance.random() < SLOW_SHARE else QUICK_S
            yield Step(keep_alive_s=chance.uniform(*span))


def _again(items: list[SuiteItem]) -> Iterator[SuiteItem]:
    """Repeat the items, each round marked so that no question is asked twice in the same words."""
    number = 0
    while True:
        for item in items:
            mark = f" (case {number + 1})" if number else ""
            yield msgspec.structs.replace(item, prompt=item.prompt + mark)
        number += 1
