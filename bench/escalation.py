"""Edge and cloud together, beside the cloud alone, while the provider has a bad evening.

Three ways to get the same jobs answered at the same instants: (a) `naive`: each job calls the
provider, and after a refusal again, twice at most, a second later; (b) `lane`: every job goes
through our dispatcher to the cloud, no board is there; (c) ours: boards with the default model
answer what they can, the rest goes to the cloud. Each has a provider of its own with the very same
fortune, so they run side by side: what the machine does hits all alike.

An answer is useful if a model gave it within the deadline; one of the offline library does not
count. What boards answered is checked, too: `right_share` takes the cloud's answers as right.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import msgspec
import openai

from bench.evening import Asked, Evening, draw_trace, misbehave
from bench.processes import module, process
from bench.report import Aim, report
from cloud_dispatcher.adapters.price_table import load_prices
from cloud_dispatcher.adapters.simulated_deepseek import SimulatedDeepSeek
from fleet_cli.broker import BrokerProcess, choose_broker
from fleet_client.aio import AsyncFleetClient
from fleet_client.watch import FleetWatcher
from fleet_protocol.errors import FleetError
from fleet_protocol.messages import AnsweredBy, JobStatus, Usage
from fleet_protocol.settings import BrokerSettings
from models.evaluate.checks import is_right

WHOLE = Evening(jobs=500, length_s=480.0, outage_s=(180.0, 300.0))
QUICK = Evening(jobs=120, length_s=110.0, outage_s=(40.0, 70.0))
WORKERS = ("w1", "w2")
DEADLINE_S = 60.0
NAIVE_TRIES, NAIVE_PAUSE_S = 3, 1.0
MAX_TOKENS = 64
REPEATED = 24
MODEL = "deepseek-flash"
START_S = 180.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one job.

    Attributes:
        took_s: Until the answer, or until it was given up.
        by: Who answered; empty if nobody did.
    """

    asked: Asked
    is_useful: bool
    took_s: float
    cost_usd: float = 0.0
    by: str = ""
    text: str = ""


Answerer = Callable[[Asked], Awaitable[Outcome]]


async def play(trace: Sequence[Asked], answer: Answerer) -> list[Outcome]:
    """Submit every job at its instant; return when the last one is through."""
    begun = time.perf_counter()

    async def one(asked: Asked) -> Outcome:
        await asyncio.sleep(max(0.0, asked.at_s - (time.perf_counter() - begun)))
        return await answer(asked)

    return list(await asyncio.gather(*(one(asked) for asked in trace)))


class Naive:
    """Calls the provider as a first version of anything does."""

    def __init__(self, base_url: str) -> None:
        self._client = openai.AsyncOpenAI(
            base_url=base_url, api_key="simulated", max_retries=0, timeout=DEADLINE_S
        )
        self._prices = load_prices()

    async def answer(self, asked: Asked) -> Outcome:
        """Try, and try again."""
        begun = time.perf_counter()
        for number in range(NAIVE_TRIES):
            if number:
                await asyncio.sleep(NAIVE_PAUSE_S)
            with contextlib.suppress(openai.APIError):
                said = await self._client.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": asked.item.prompt}],
                    max_tokens=MAX_TOKENS,
                    extra_body={"thinking": {"type": "disabled"}},
                )
                used = Usage(
                    prompt_tokens=said.usage.prompt_tokens if said.usage else 0,
                    completion_tokens=said.usage.completion_tokens if said.usage else 0,
                )
                cost = self._prices.cost_usd(MODEL, used, at_ms=time.time_ns() // 1_000_000)
                return Outcome(
                    asked=asked,
                    is_useful=True,
                    took_s=time.perf_counter() - begun,
                    cost_usd=cost or 0.0,
                    by="cloud",
                )
        return Outcome(asked=asked, is_useful=False, took_s=time.perf_counter() - begun)


class Fleet:
    """Submits as one device and waits."""

    def __init__(self, client: AsyncFleetClient, *, escalate: str) -> None:
        self._client = client
        self._escalate = escalate

    async def answer(self, asked: Asked) -> Outcome:
        """Ask; a job that fails or is refused has no useful answer."""
        begun = time.perf_counter()
        try:
            result = await self._client.ask(
                [{"role": role, "content": text} for role, text in asked.item.messages],
                timeout_s=DEADLINE_S,
                max_tokens=MAX_TOKENS,
                stream=False,
                escalate=self._escalate,
            )
        except FleetError:
            return Outcome(asked=asked, is_useful=False, took_s=time.perf_counter() - begun)
        is_useful = (
            result.status is JobStatus.OK
            and bool(result.text.strip())
            and result.answered_by is not AnsweredBy.OFFLINE
        )
        return Outcome(
            asked=asked,
            is_useful=is_useful,
            took_s=time.perf_counter() - begun,
            cost_usd=result.cost_usd,
            by=str(result.answered_by or ""),
            text=result.text,
        )


@contextlib.asynccontextmanager
async def fleet(folder: Path, provider: str, workers: Sequence[str]) -> AsyncIterator[str]:
    """Broker, dispatcher and boards, ready; yields the broker's URL."""
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(BrokerProcess(choose_broker(), folder / "broker"))
        own = {
            "EDGEFLEET_DISPATCHER_PROVIDER__BASE_URL": provider,
            "EDGEFLEET_DISPATCHER_PROVIDER__MODEL": MODEL,
            "DEEPSEEK_API_KEY": "simulated",
        }
        words = ("run", "--broker", broker.url, "--data", folder / "dispatcher")
        command = module("cloud_dispatcher", *words)
        stack.enter_context(process(command, log=folder / "dispatcher.log", environ=own))
        for worker in workers:
            own_words = ("run", "--id", worker, "--broker", broker.url, "--data", folder / worker)
            stack.enter_context(
                process(
                    module("edge_worker", *own_words),
                    log=folder / f"{worker}.log",
                    environ={
                        "EDGEFLEET_WORKER_THREADS": "1",
                        "EDGEFLEET_WORKER_MEASUREMENTS": str(folder / "benchmark.json"),
                    },
                )
            )
        await asyncio.to_thread(wait_until_ready, broker.url, workers)
        yield broker.url


def wait_until_ready(url: str, workers: Sequence[str]) -> None:
    """Wait until dispatcher and boards say that they are there."""
    with FleetWatcher(BrokerSettings(url=url), f"bench-{os.getpid()}") as watcher:
        is_ready = watcher.wait_until(
            lambda picture: (
                picture.dispatcher is not None and all(name in picture.workers for name in workers)
            ),
            timeout_s=START_S,
        )
    if not is_ready:
        raise SystemExit("the fleet does not come up; see the logs in the benchmark's folder")


async def repeat(client: AsyncFleetClient, outcomes: Sequence[Outcome]) -> list[float]:
    """Ask again what boards answered; return how many times as fast each answer came."""
    ratios = []
    answered = [one for one in outcomes if one.by == "edge"][-REPEATED:]
    for before in answered:
        again = await Fleet(client, escalate="auto").answer(before.asked)
        if again.by == "cache":
            ratios.append(before.took_s / again.took_s)
    return ratios


async def compare(evening: Evening, folder: Path) -> tuple[dict[str, list[Outcome]], list[float]]:
    """Let all three have the evening; return their outcomes, and how much faster repeats are."""
    trace = draw_trace(evening)
    for name in ("lane", "ours"):
        await asyncio.to_thread((folder / name).mkdir)
    async with contextlib.AsyncExitStack() as stack:
        providers = [await stack.enter_async_context(SimulatedDeepSeek()) for _ in range(3)]
        urls = [provider.base_url for provider in providers]
        lane_url = await stack.enter_async_context(fleet(folder / "lane", urls[1], ()))
        ours_url = await stack.enter_async_context(fleet(folder / "ours", urls[2], WORKERS))
        lane = await stack.enter_async_context(AsyncFleetClient(lane_url, "bench"))
        ours = await stack.enter_async_context(AsyncFleetClient(ours_url, "bench"))
        say(f"{len(trace)} jobs in {evening.length_s:.0f} s")
        evenings = [asyncio.create_task(misbehave(one, evening)) for one in providers]
        found = await asyncio.gather(
            play(trace, Naive(urls[0]).answer),
            play(trace, Fleet(lane, escalate="always").answer),
            play(trace, Fleet(ours, escalate="auto").answer),
        )
        await asyncio.gather(*evenings)
        ratios = await repeat(ours, found[2])
    return dict(zip(("naive", "lane", "ours"), found, strict=True)), ratios


def figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return what is compared."""
    took = sorted(one.took_s for one in outcomes)
    hit = [one for one in outcomes if one.asked.in_outage]
    return {
        "success_share": statistics.mean(one.is_useful for one in outcomes),
        "success_share_outage": statistics.mean(one.is_useful for one in hit),
        "mean_s": statistics.mean(took),
        "p95_s": took[int(0.95 * (len(took) - 1))],
        "p99_s": took[int(0.99 * (len(took) - 1))],
        "cost_usd": sum(one.cost_usd for one in outcomes),
        "cost_per_answer_usd": statistics.mean(one.cost_usd for one in outcomes)
        / max(statistics.mean(one.is_useful for one in outcomes), 1e-9),
        "edge_share": statistics.mean(one.by == "edge" for one in outcomes),
        "right_share": statistics.mean(map(is_answered_rightly, outcomes)),
    }


def is_answered_rightly(one: Outcome) -> bool:
    """Tell whether a useful answer is right; a simulated cloud's words mean nothing, and count."""
    return one.is_useful and (one.by != "edge" or is_right(one.asked.item.check, one.text))


def main() -> None:
    """Run all three and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="about three minutes, not ten")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found, repeated = asyncio.run(compare(QUICK if options.quick else WHOLE, Path(folder)))
    mine, naive = figures(found["ours"]), figures(found["naive"])
    ratios: dict[str, float | Sequence[float]] = {
        "mean_latency_vs_naive": naive["mean_s"] / mine["mean_s"],
        "cost_vs_naive": naive["cost_usd"] / max(mine["cost_usd"], 1e-9),
        "cost_per_answer_vs_naive": naive["cost_per_answer_usd"]
        / max(mine["cost_per_answer_usd"], 1e-9),
    }
    if repeated:
        ratios["cache_hit_vs_answer"] = repeated
    report(
        "escalation",
        ours=mine,
        peers={"naive": naive, "lane": figures(found["lane"])},
        ratios=ratios,
        aims={
            "success_share": Aim(mine["success_share"], at_least=0.99),
            "success_share_outage": Aim(mine["success_share_outage"], at_least=0.87),
            "mean_latency_vs_naive": Aim(naive["mean_s"] / mine["mean_s"], at_least=1 / 0.6),
            "cost_vs_naive": Aim(naive["cost_usd"] / max(mine["cost_usd"], 1e-9), at_least=2.5),
        }
        | (
            {"cache_hit_vs_answer": Aim(statistics.median(repeated), at_least=10)}
            if repeated
            else {}
        ),
        as_json=options.json,
    )


def say(line: str) -> None:
    """Tell the person who waits."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
