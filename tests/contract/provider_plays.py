"""What is played for each row of the table in `provider_situations`.

`deepseek` comes first in the chain, `backup` second where there is one.
"""

from __future__ import annotations

import asyncio

from cloud_dispatcher.adapters.simulated_answers import Step
from fleet_protocol.messages import OutputFormat
from tests.contract.provider_stage import stage

LONG = " ".join(f"w{number:02}" for number in range(60))
PREFIX = "[simulated cloud answer] "


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


async def slow_but_alive() -> None:
    async with stage(backup=True) as on:
        on.first.script(Step(keep_alive_s=50))
        outcome = await on.ask(timeout_s=120)
        assert (outcome.provider, on.first.calls, on.backup.calls) == ("deepseek", 1, 0)
        assert 50 <= outcome.took_s < 51


async def a_probe_that_hangs() -> None:
    async with stage(backup=True) as on:
        on.first.script(*[Step(status=500)] * 5, Step(hang=True))
        for _ in range(5):
            await on.ask()
        await on.first.until_inflight(1)
        for _ in range(3):
            outcome = await on.ask()
            assert (outcome.provider, outcome.took_s) == ("backup", 0.0)
        await asyncio.sleep(29)
        assert (on.first.inflight, on.first.calls) == (1, 6)
        await on.ask()
        await asyncio.sleep(7)
        assert (on.first.calls, on.state) == (7, "closed")


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


async def a_model_file() -> None:
    async with stage() as on:
        paths = "/srv/private/qwen3-8b.gguf", "C:\\private\\qwen3-8b.gguf", "qwen/qwen3-8b"
        on.first.script(*[Step(model=path) for path in paths])
        wholes = [(await on.ask()).whole for _ in paths]
        models = [whole.model for whole in wholes if whole is not None]
        assert models == ["qwen3-8b.gguf", "qwen3-8b.gguf", "qwen/qwen3-8b"]


async def a_long_name() -> None:
    async with stage() as on:
        on.first.script(Step(model="m" * 300))
        whole = (await on.ask()).whole
        assert whole is not None
        assert len(whole.model) == 128


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
