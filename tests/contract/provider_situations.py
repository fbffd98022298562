"""What goes wrong with providers, and what the cloud lane does about it: a table that is run.

Each row is played against the simulator over HTTP in virtual time; `docs/providers.md` shows the
same rows. `deepseek` comes first in the chain, `backup` second where there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from structlog.testing import capture_logs

from cloud_dispatcher.adapters.deepseek import DeepSeekProvider
from cloud_dispatcher.adapters.provider_chain import ProviderChain
from cloud_dispatcher.adapters.providers import ProviderSettings
from cloud_dispatcher.adapters.shared_calls import SharedCalls
from cloud_dispatcher.adapters.simulated_answers import Step
from cloud_dispatcher.adapters.simulated_deepseek import SimulatedDeepSeek, SimulatorSettings
from cloud_dispatcher.core.commands import CompletionRequest
from cloud_dispatcher.ports import Completion, ProviderError
from fleet_protocol.messages import ChatMessage, ChatRole, Generation, JobKey, OutputFormat

LONG = " ".join(f"w{number:02}" for number in range(60))
PREFIX = "[simulated cloud answer] "


class Outcome:
    """What one request brought, and when."""

    def __init__(self) -> None:
        self.shown = ""
        self.whole: Completion | None = None
        self.error: ProviderError | None = None
        self.took_s = 0.0

    @property
    def code(self) -> str:
        return self.error.code if self.error else ""

    @property
    def provider(self) -> str:
        return self.whole.provider if self.whole else ""


class Stage:
    """A chain over simulators, in virtual time."""

    def __init__(self, chain: ProviderChain, simulators: list[SimulatedDeepSeek]) -> None:
        self.chain = chain
        self.calls = SharedCalls(chain)
        self.first, self.backup = simulators[0], simulators[-1]
        self.lines: list[Any] = []

    @property
    def state(self) -> str:
        return self.chain.endpoints[0].state

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    async def until_ready(self) -> None:
        """Let the time pass that the first endpoint is left alone for."""
        await asyncio.sleep(self.chain.endpoints[0].ready_in_ms / 1_000)

    async def ask(
        self,
        *,
        prompt: str = "How warm is it?",
        timeout_s: float = 300,
        output: OutputFormat | None = None,
    ) -> Outcome:
        outcome, loop = Outcome(), asyncio.get_running_loop()
        began_s = loop.time()
        request = CompletionRequest(
            job=JobKey("01J"),
            attempt=1,
            messages=(ChatMessage(role=ChatRole.USER, content=prompt),),
            generation=Generation(max_tokens=200, output=output),
            timeout_ms=int(timeout_s * 1_000),
        )
        try:
            async for part in self.calls.stream(request):
                if isinstance(part, Completion):
                    outcome.whole = part
                else:
                    outcome.shown += part
        except ProviderError as error:
            outcome.error = error
        outcome.took_s = round(loop.time() - began_s, 1)
        return outcome


@asynccontextmanager
async def stage(
    *, backup: bool = False, hedge_after_ms: int = 0, **settings: Any
) -> AsyncIterator[Stage]:
    """Set up a chain of one or two endpoints, each with a simulator of its own."""
    async with contextlib.AsyncExitStack() as stack:
        keep_alive = SimulatorSettings(keep_alive_every_s=5.0)
        names = ["deepseek", "backup"] if backup else ["deepseek"]
        simulators = [await stack.enter_async_context(SimulatedDeepSeek(keep_alive)) for _ in names]
        endpoints = [
            DeepSeekProvider(
                ProviderSettings(name=name, base_url=simulator.base_url, **settings), "sk-situation"
            )
            for name, simulator in zip(names, simulators, strict=True)
        ]
        chain = ProviderChain(endpoints, hedge_after_ms=hedge_after_ms, luck=lambda: 1.0)
        found = Stage(chain, simulators)
        stack.push_async_callback(found.calls.close)
        found.lines = stack.enter_context(capture_logs())
        yield found


async def errors_in_a_row() -> None:
    async with stage(backup=True) as on:
        on.first.script(*[Step(status=500)] * 25)
        for job in range(1, 6):
            assert (await on.ask()).provider == "backup"
            assert on.first.calls == job
        assert on.state == "open"
        while on.first.calls < 25:
            outcome = await on.ask()
            assert (outcome.provider, outcome.took_s) == ("backup", 0.0)
            before = on.first.calls
            await asyncio.sleep(0.25)
            assert on.first.calls <= before + 1
        await asyncio.sleep(0.5)
        assert (on.first.calls, on.state) == (26, "closed")
        assert {line["ready_in_ms"] for line in on.logged("breaker.open")} == {250}
        assert (await on.ask()).provider == "deepseek"


async def slow_errors_in_a_row() -> None:
    async with stage(backup=True) as on:
        on.first.script(fallback=Step(keep_alive_s=0.4, cut_after_chars=0))
        for _ in range(6):
            assert (await on.ask()).provider == "backup"
        before = on.first.calls
        await asyncio.sleep(25)
        assert 5 <= on.first.calls - before <= 7
        await asyncio.sleep(3_600)
        assert on.first.calls - before <= 9


async def errors_without_a_backup() -> None:
    async with stage() as on:
        on.first.script(fallback=Step(status=500))
        first = await on.ask()
        assert (first.code, on.first.calls, first.took_s) == ("provider_unavailable", 3, 3.0)
        assert first.error is not None
        assert first.error.retry_after_ms is not None
        second = asyncio.create_task(on.ask())
        await asyncio.sleep(1.1)
        assert on.state == "open"
        third = await on.ask(prompt="How cold is it?")
        assert (third.code, third.took_s) == ("provider_open", 0.0)
        assert third.error is not None
        assert third.error.retry_after_ms is not None
        assert 0 < third.error.retry_after_ms <= 1_000
        assert (await second).code in {"provider_unavailable", "provider_open"}


async def too_many_with_a_date() -> None:
    async with stage() as on:
        on.first.script(Step(status=429, retry_after_s=7))
        outcome = await on.ask()
        assert outcome.took_s == 7.0
        assert (outcome.provider, on.state) == ("deepseek", "closed")


async def too_many_with_a_backup() -> None:
    async with stage(backup=True) as on:
        on.first.script(Step(status=429, retry_after_s=7))
        providers = [(await on.ask()).provider]
        await asyncio.sleep(4)
        providers.append((await on.ask()).provider)
        await asyncio.sleep(3)
        providers.append((await on.ask()).provider)
        assert (providers, on.first.calls) == (["backup", "backup", "deepseek"], 2)


async def too_many_without_a_date() -> None:
    async with stage() as on:
        on.first.script(Step(status=429), Step(status=429))
        outcome = await on.ask()
        assert outcome.took_s == 3.0
        assert (outcome.provider, on.state) == ("deepseek", "closed")


async def fewer_at_once() -> None:
    async with stage(max_concurrency=8) as on:
        on.first.script(Step(status=429, retry_after_s=1), fallback=Step(keep_alive_s=10))
        await on.ask(prompt="Alone?")
        asked = [asyncio.create_task(on.ask(prompt=f"{n}?")) for n in range(10)]
        await asyncio.sleep(5)
        assert on.first.inflight == 4
        await asyncio.wait(asked)
        assert on.first.calls == 12


async def the_same_question() -> None:
    async with stage() as on:
        on.first.script(Step(keep_alive_s=10))
        asked = [asyncio.create_task(on.ask()) for _ in range(20)]
        await asyncio.wait(asked)
        wholes = [task.result().whole for task in asked]
        assert on.first.calls == 1
        assert sum(whole is not None and whole.cost_usd > 0 for whole in wholes) == 1
        assert len({task.result().shown for task in asked}) == 1


async def more_than_the_rate() -> None:
    async with stage() as on:
        asked = [asyncio.create_task(on.ask(prompt=f"{n}?")) for n in range(15)]
        await asyncio.wait(asked)
        assert sorted(task.result().took_s for task in asked) == [0.0] * 10 + [
            0.1, 0.2, 0.3, 0.4, 0.5,
        ]  # fmt: skip


async def cut_and_gone_on() -> None:
    async with stage(backup=True) as on:
        said = Step(text=LONG, word_every_s=1)
        on.first.script(Step(text=LONG, word_every_s=1, cut_after_chars=len(PREFIX) + 38 * 4))
        on.backup.script(said)
        outcome = await on.ask()
        assert outcome.whole is not None
        assert outcome.provider == "backup"
        assert outcome.shown == outcome.whole.text == PREFIX + LONG
        assert 41 + 60 < outcome.took_s < 41 + 66


async def cut_and_superseded() -> None:
    async with stage() as on:
        on.first.script(
            Step(text=LONG, word_every_s=1, cut_after_chars=len(PREFIX) + 38 * 4),
            Step(text="Something else."),
        )
        outcome = await on.ask()
        assert outcome.whole is not None
        assert outcome.shown == PREFIX + LONG[: 38 * 4]
        assert outcome.whole.text == PREFIX + "Something else."


async def nothing_but_keep_alives() -> None:
    async with stage() as on:
        on.first.script(Step(keep_alive_s=300))
        outcome = await on.ask()
        assert (outcome.provider, on.first.calls) == ("deepseek", 2)
        assert 61 <= outcome.took_s < 62


async def keep_alives_with_a_backup() -> None:
    async with stage(backup=True) as on:
        on.first.script(Step(keep_alive_s=300))
        outcome = await on.ask(timeout_s=60)
        assert (outcome.provider, round(outcome.took_s)) == ("backup", 30)


async def hedged() -> None:
    async with stage(backup=True, hedge_after_ms=2_000) as on:
        on.first.script(Step(keep_alive_s=240), Step(keep_alive_s=1))
        on.backup.script(Step(keep_alive_s=1))
        outcome = await on.ask()
        assert (outcome.provider, outcome.took_s) == ("backup", 3.0)
        assert (on.first.inflight, on.state) == (0, "closed")
        outcome = await on.ask()
        assert (outcome.provider, outcome.took_s, on.backup.calls) == ("deepseek", 1.0, 1)


async def hedged_and_both_fail() -> None:
    async with stage(backup=True, hedge_after_ms=2_000) as on:
        on.first.script(Step(keep_alive_s=4, cut_after_chars=0))
        on.backup.script(Step(status=503))
        outcome = await on.ask()
        assert (outcome.provider, outcome.took_s) == ("deepseek", 5.0)
        assert (on.first.calls, on.backup.calls) == (2, 1)


async def silence_in_mid_answer() -> None:
    async with stage(backup=True) as on:
        on.first.script(Step(stall_after_chars=40))
        outcome = await on.ask()
        assert (outcome.provider, round(outcome.took_s)) == ("backup", 30)
        assert outcome.whole is not None
        assert outcome.shown == outcome.whole.text


async def an_empty_account() -> None:
    async with stage(backup=True) as on:
        on.first.balance_usd = 0.0
        assert (await on.ask()).provider == "backup"
        assert on.chain.endpoints[0].code == "provider_no_balance"
        await asyncio.sleep(1_000)
        assert (await on.ask()).provider == "backup"
        assert on.first.calls == 1
        on.first.balance_usd = 20.0
        await asyncio.sleep(300)
        assert (await on.ask()).provider == "deepseek"
        assert on.logged("breaker.closed")


async def an_empty_account_alone() -> None:
    async with stage() as on:
        on.first.balance_usd = 0.0
        outcome = await on.ask()
        assert (outcome.code, outcome.took_s) == ("provider_no_balance", 0.0)
        assert outcome.error is not None
        assert outcome.error.retry_after_ms is None
        on.first.balance_usd = 20.0
        await asyncio.sleep(301)
        assert (await on.ask()).provider == "deepseek"


async def blank_json() -> None:
    async with stage() as on:
        on.first.script(Step(blank=True), Step(text='{"c": 21}'))
        schema = {"type": "object", "properties": {"c": {"type": "number"}}, "required": ["c"]}
        outcome = await on.ask(output=OutputFormat(json_schema=schema))
        formats = [chat.response_format.type for chat in on.first.requests]
        assert formats == ["json_object", "text"]
        assert outcome.whole is not None
        blank_usd = outcome.whole.cost_usd
        alone = await on.ask(output=OutputFormat(json_schema=schema))
        assert alone.whole is not None
        assert blank_usd > alone.whole.cost_usd


async def blank_json_with_a_backup() -> None:
    async with stage(backup=True) as on:
        on.first.script(Step(blank=True))
        outcome = await on.ask(output=OutputFormat(json=True))
        assert outcome.whole is not None
        assert (outcome.provider, outcome.whole.misfit) == ("backup", "")
        assert on.backup.requests[0].response_format.type == "json_object"


async def nobody_there() -> None:
    async with stage(backup=True) as on:
        await on.first.__aexit__()
        outcome = await on.ask()
        assert (outcome.provider, outcome.took_s) == ("backup", 0.0)
        for _ in range(4):
            await on.ask()
        assert (on.state, on.chain.endpoints[0].code) == ("open", "provider_unavailable")


async def blank_text() -> None:
    async with stage() as on:
        on.first.script(Step(blank=True))
        outcome = await on.ask()
        assert outcome.whole is not None
        assert outcome.shown == outcome.whole.text
        assert (on.first.calls, on.state) == (2, "closed")


async def thoughts() -> None:
    async with stage(thinking=True) as on:
        outcome = await on.ask()
        assert on.first.requests[0].thinks
        assert outcome.whole is not None
        assert "thought" not in outcome.shown + outcome.whole.text
        assert outcome.whole.usage.completion_tokens > len(outcome.shown) / 4


async def short_answers() -> None:
    async with stage() as on:
        await on.ask()
        assert not on.first.requests[0].thinks


async def another_checkpoint() -> None:
    async with stage() as on:
        on.first.script(*[Step()] * 2, *[Step(model="deepseek-flash-1122")] * 2)
        models = []
        for _ in range(4):
            whole = (await on.ask()).whole
            assert whole is not None
            assert whole.cost_usd > 0
            models.append(whole.model)
        assert models == ["deepseek-flash"] * 2 + ["deepseek-flash-1122"] * 2
        (line,) = on.logged("provider.model_changed")
        assert (line["was"], line["now"]) == ("deepseek-flash", "deepseek-flash-1122")
        assert on.chain.endpoints[0].model == "deepseek-flash-1122"


async def a_refused_key() -> None:
    async with stage(backup=True) as on:
        on.first.script(fallback=Step(status=401))
        assert [(await on.ask()).provider for _ in range(3)] == ["backup"] * 3
        assert (on.first.calls, on.chain.endpoints[0].code) == (1, "provider_denied")


async def a_bad_request() -> None:
    async with stage(backup=True) as on:
        on.first.script(Step(status=422))
        outcome = await on.ask()
        assert (outcome.code, outcome.took_s) == ("provider_bad_request", 0.0)
        assert (on.first.calls, on.backup.calls, on.state) == (1, 0, "closed")


async def a_filtered_answer() -> None:
    async with stage(backup=True) as on:
        on.first.script(Step(finish="content_filter"))
        outcome = await on.ask()
        assert (outcome.code, on.backup.calls, on.state) == ("provider_filtered", 0, "closed")


async def out_of_resources() -> None:
    async with stage() as on:
        on.first.script(Step(blank=True, finish="insufficient_system_resource"))
        outcome = await on.ask()
        assert (outcome.provider, on.first.calls) == ("deepseek", 2)


async def a_cut_before_the_bill() -> None:
    async with stage() as on:
        on.first.script(Step(cut_before_usage=True))
        outcome = await on.ask()
        assert (outcome.provider, on.first.calls) == ("deepseek", 1)


async def the_deadline() -> None:
    async with stage() as on:
        on.first.script(Step(keep_alive_s=240))
        outcome = await on.ask(timeout_s=20)
        assert (outcome.code, round(outcome.took_s)) == ("provider_timeout", 20)
        assert outcome.error is not None
        assert outcome.error.retry_after_ms is None


class Situation(NamedTuple):
    """One row."""

    situation: str
    reaction: str
    play: Callable[[], Awaitable[None]]


SITUATIONS = (
    Situation(
        "25 times HTTP 500 in a row, with a backup",
        "The backup answers every job at once. After 5 failures no job is sent there; a call of "
        "our own, of some twenty tokens, finds out every 250 ms, and the first good one puts the "
        "endpoint back.",
        errors_in_a_row,
    ),
    Situation(
        "Failures that take their time, with a backup",
        "The same, every ten times as long as a failure takes (5 s at most), and only while jobs "
        "come: 30 s after the last one nobody asks.",
        slow_errors_in_a_row,
    ),
    Situation(
        "HTTP 500 without a backup",
        "3 calls with jittered pauses (up to 1 s, 2 s). Once the breaker is open, `provider_open` "
        "within no time, with the span after which to come again.",
        errors_without_a_backup,
    ),
    Situation(
        "Nobody listens at an endpoint's address, with a backup",
        "The backup answers every job at once; after 5 such calls the endpoint is left alone.",
        nobody_there,
    ),
    Situation(
        "429 with Retry-After: 7",
        "No call of this account for 7 s, then the same job again. The breaker does not mind.",
        too_many_with_a_date,
    ),
    Situation(
        "429 with Retry-After: 7, with a backup",
        "The backup answers, for all jobs, until the 7 s are over.",
        too_many_with_a_backup,
    ),
    Situation(
        "429 without Retry-After, twice",
        "Pauses with full jitter, longer with each 429 in a row (up to 1 s, 2 s ... 30 s).",
        too_many_without_a_date,
    ),
    Situation(
        "429 while there are many calls",
        "Half as many calls at once; answers let the number grow again, one by one.",
        fewer_at_once,
    ),
    Situation(
        "More jobs than `requests_per_s`",
        "A burst of 10 at once, then one every 100 ms, in order.",
        more_than_the_rate,
    ),
    Situation(
        "The same question from 20 devices at once",
        "One call; all get its answer, the first one pays.",
        the_same_question,
    ),
    Situation(
        "A stream is cut after 41 s, the next call says the same",
        "The backup is called at once; the device sees the answer go on where it stopped.",
        cut_and_gone_on,
    ),
    Situation(
        "A stream is cut after 41 s, the next call says something else",
        "The device sees no more pieces, and never a second beginning; the result is whole.",
        cut_and_superseded,
    ),
    Situation(
        "Keep-alives for 5 minutes, no content",
        "Given up after `first_content_timeout_s` (60 s), then called again.",
        nothing_but_keep_alives,
    ),
    Situation(
        "Keep-alives for 5 minutes, with a backup",
        "Given up after half of the time that is left; the backup has the other half.",
        keep_alives_with_a_backup,
    ),
    Situation(
        "No content for 2 s, `hedge_after_ms` = 2000 (off by default)",
        "The backup is asked, too; whoever speaks first answers, the other call is given up.",
        hedged,
    ),
    Situation(
        "Both of these calls fail",
        "A pause with jitter, then the first endpoint again.",
        hedged_and_both_fail,
    ),
    Situation(
        "Silence in mid-answer",
        "Given up after `idle_timeout_s` (30 s); the backup goes on.",
        silence_in_mid_answer,
    ),
    Situation(
        "402, later topped up, with a backup",
        "The backup answers. The balance is asked for every 5 minutes, no call is made before it "
        "is there; then the endpoint is used again.",
        an_empty_account,
    ),
    Situation(
        "402 without a backup",
        "`provider_no_balance` at once: the kept answer or a board answers, `degraded`. It "
        "recovers by itself.",
        an_empty_account_alone,
    ),
    Situation(
        "Blank answer in JSON mode",
        "Called again without JSON mode, the form asked for in words and checked; the blanks are "
        "on the bill of the job.",
        blank_json,
    ),
    Situation(
        "Blank answer in JSON mode, with a backup",
        "The backup is asked in JSON mode: the blanks speak against the first one's alone.",
        blank_json_with_a_backup,
    ),
    Situation("Blank answer", "Called again; nobody saw the blanks.", blank_text),
    Situation(
        "`reasoning_content` beside the answer",
        "Never shown, never part of the answer; counted and paid.",
        thoughts,
    ),
    Situation("Any job, default settings", "Thinking is switched off.", short_answers),
    Situation(
        "Another checkpoint behind the same name",
        "The answer says which; `provider.model_changed` is logged once; it costs what the name "
        "costs.",
        another_checkpoint,
    ),
    Situation(
        "401 or 403",
        "The breaker opens at once; the backup answers.",
        a_refused_key,
    ),
    Situation(
        "400 or 422",
        "The job fails with the provider's words: it would fail everywhere. No retry.",
        a_bad_request,
    ),
    Situation("`content_filter`", "No retry, no backup.", a_filtered_answer),
    Situation("`insufficient_system_resource`", "Called again.", out_of_resources),
    Situation(
        "Cut after the last word, before the usage",
        "The answer counts; its cost is unknown.",
        a_cut_before_the_bill,
    ),
    Situation(
        "No content before the job's deadline",
        "`provider_timeout` at the deadline, no retry.",
        the_deadline,
    ),
)
