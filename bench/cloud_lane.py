"""Our chain of providers beside LiteLLM's Router, on the same bad evening, in the same run.

Both have a first provider that has a bad evening (`bench/evening.py`) and a backup that refuses one
call in ten. Calls come at random instants, the same for both; each side has providers of its own
with the very same fortune. Ours is asked as the dispatcher asks it: again where it invites that
(`[engine.retry]`). The Router is set up as its documentation suggests: fallbacks, as many retries
as we make, its own cooldowns. On the first run it is installed into an environment of its
own, as it needs another release of the OpenAI client than we do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.evening import Evening, misbehave
from bench.report import Aim, report
from cloud_dispatcher.adapters.providers import ProviderSettings, build_provider
from cloud_dispatcher.adapters.simulated_answers import Step
from cloud_dispatcher.adapters.simulated_deepseek import SimulatedDeepSeek
from cloud_dispatcher.core.commands import CompletionRequest
from cloud_dispatcher.core.outage import PROVIDER_OPEN
from cloud_dispatcher.core.settings import RetrySettings
from cloud_dispatcher.ports import Completion, CompletionProvider, ProviderError
from edge_worker.adapters.artefact import cache_folder
from fleet_protocol.log import set_up_logging
from fleet_protocol.messages import ChatMessage, ChatRole, Generation, JobKey

LITELLM = "litellm==1.106.2"
WHOLE = Evening(jobs=600, length_s=300.0, outage_s=(100.0, 160.0))
QUICK = Evening(jobs=180, length_s=90.0, outage_s=(30.0, 50.0))
BACKUP_SUCCESS_SHARE = 0.9
BACKUP_S = (0.8, 1.6)
RETRIES = 2
DEADLINE_S = 60.0
MODEL, BACKUP_MODEL = "deepseek-flash", "deepseek-v4-pro"
POLL_S = 0.02

Ends = Sequence[tuple[bool, float]]
"""Of each call: whether it was answered, and after how many seconds."""
Player = Callable[[str, str, list[float]], Awaitable[Ends]]


async def play(evening: Evening, player: Player) -> dict[str, float]:
    """Let one side make all calls; return what came of them."""
    chance = random.Random(evening.seed)  # noqa: S311 - no secret
    instants = sorted(chance.uniform(0, evening.length_s) for _ in range(evening.jobs))
    async with SimulatedDeepSeek() as first, SimulatedDeepSeek() as backup:
        backup.script(*backup_fortunes(evening.seed + 2))
        night = asyncio.create_task(misbehave(first, evening))
        watch = asyncio.create_task(recovery_s(first, evening))
        ends = await player(first.base_url, backup.base_url, instants)
        await night
        took = sorted(took_s for _, took_s in ends)
        # Nobody waits any more for what comes after the deadline, whoever it comes from.
        answered = sum(is_answered and took_s <= DEADLINE_S for is_answered, took_s in ends)
        return {
            "success_share": answered / len(ends),
            "mean_s": statistics.mean(took),
            "p95_s": took[int(0.95 * (len(took) - 1))],
            "wasted_calls_per_answer": (first.calls + backup.calls - answered) / max(1, answered),
            "recovery_s": await watch,
        }


async def recovery_s(provider: SimulatedDeepSeek, evening: Evening) -> float:
    """Return how long after its outage a provider answers again; the evening's rest if never."""
    ends_s = evening.outage_s[1]
    await asyncio.sleep(ends_s)
    before, ended = len(provider.requests), time.perf_counter()
    while len(provider.requests) == before:
        if time.perf_counter() - ended > evening.length_s - ends_s:
            break
        await asyncio.sleep(POLL_S)
    return time.perf_counter() - ended


async def play_ours(first_url: str, backup_url: str, instants: list[float]) -> Ends:
    """Let our chain answer, with its defaults."""
    first = ProviderSettings(name="first", base_url=first_url, model=MODEL)
    backup = ProviderSettings(name="backup", base_url=backup_url, model=BACKUP_MODEL)
    chain = build_provider(first, {"DEEPSEEK_API_KEY": "simulated"}, backups=[backup])
    begun = time.perf_counter()

    async def one(number: int, at_s: float) -> tuple[bool, float]:
        await asyncio.sleep(max(0.0, at_s - (time.perf_counter() - begun)))
        asked_at = time.perf_counter()
        is_answered = await ask_lane(chain, number)
        return is_answered, time.perf_counter() - asked_at

    try:
        return await asyncio.gather(*(one(*pair) for pair in enumerate(instants)))
    finally:
        await chain.close()


async def ask_lane(chain: CompletionProvider, number: int) -> bool:
    """Put one question by the dispatcher's rule (`core.retry`); return whether it was answered."""
    rule, tries = RetrySettings(), 0
    give_up_at = time.perf_counter() + DEADLINE_S
    while (left_s := give_up_at - time.perf_counter()) > 0:
        error = await ask_chain(chain, number, timeout_s=left_s)
        if error is None:
            return True
        tries += error.code != PROVIDER_OPEN  # then nobody was asked
        if error.retry_after_ms is None or tries >= rule.cloud_max_attempts:
            return False
        await asyncio.sleep(max(error.retry_after_ms, rule.backoff_ms) / 1_000)
    return False


async def ask_chain(
    chain: CompletionProvider, number: int, *, timeout_s: float
) -> ProviderError | None:
    """Put one question once; return why there is no answer."""
    request = CompletionRequest(
        job=JobKey(f"{number:026d}"),
        attempt=1,
        messages=(ChatMessage(role=ChatRole.USER, content=f"question {number}"),),
        generation=Generation(max_tokens=64),
        timeout_ms=int(timeout_s * 1_000),
    )
    try:
        async for part in chain.stream(request):
            if isinstance(part, Completion):
                return None
    except ProviderError as error:
        return error
    raise AssertionError("a call ends with an answer or an error")


class Router:
    """The peer, in a process of its own."""

    def __init__(self, python: Path) -> None:
        self._python = python

    async def play(self, first_url: str, backup_url: str, instants: list[float]) -> Ends:
        """Let LiteLLM's Router answer."""
        plan = {
            "first": first_url,
            "backup": backup_url,
            "first_model": MODEL,
            "backup_model": BACKUP_MODEL,
            "instants_s": instants,
            "retries": RETRIES,
            "deadline_s": DEADLINE_S,
        }
        child = await asyncio.create_subprocess_exec(
            *(self._python, Path(__file__).parent / "peers" / "litellm_router.py"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            limit=2**22,
        )
        try:
            if child.stdin is None or child.stdout is None:
                raise AssertionError("both are pipes")
            child.stdin.write(json.dumps(plan).encode() + b"\n\n")
            while (line := await child.stdout.readline()).strip() == b"ready":
                pass
            return [tuple(end) for end in json.loads(line)]
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()


def prepare_router() -> Path:
    """Return an interpreter that has the peer; installed once."""
    folder = cache_folder(os.environ) / "bench" / LITELLM.replace("==", "-")
    python = folder / "bin" / "python"
    if not (folder / "done").is_file():
        print(f"installing {LITELLM} into {folder} (once)", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", LITELLM]
        subprocess.run(pip, check=True, stdout=sys.stderr)
        (folder / "done").touch()
    return python


def backup_fortunes(seed: int) -> list[Step]:
    """Return what the backup does with each call."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    return [
        Step(keep_alive_s=chance.uniform(*BACKUP_S))
        if chance.random() < BACKUP_SUCCESS_SHARE
        else Step(status=503)
        for _ in range(20_000)
    ]


async def compare(evening: Evening, python: Path) -> Sequence[dict[str, float]]:
    """Let both have the evening at once; hardly any of it is computing."""
    return await asyncio.gather(play(evening, play_ours), play(evening, Router(python).play))


def main() -> None:
    """Run both and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under two minutes, not five")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    options = parser.parse_args()
    set_up_logging(level="error")  # what the chain says of each failure is no news here
    python = prepare_router()
    ours, theirs = asyncio.run(compare(QUICK if options.quick else WHOLE, python))
    report(
        "cloud_lane",
        ours=ours,
        peers={"litellm_router": theirs},
        ratios={
            "latency_vs_litellm": theirs["mean_s"] / ours["mean_s"],
            "wasted_vs_litellm": theirs["wasted_calls_per_answer"]
            / max(1e-3, ours["wasted_calls_per_answer"]),
            "recovery_vs_litellm": theirs["recovery_s"] / max(1e-3, ours["recovery_s"]),
        },
        aims={
            "success_share": Aim(ours["success_share"], at_least=theirs["success_share"]),
            "wasted_calls_per_answer": Aim(
                ours["wasted_calls_per_answer"], at_most=theirs["wasted_calls_per_answer"]
            ),
            "recovery_s": Aim(ours["recovery_s"], at_most=theirs["recovery_s"]),
        },
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
