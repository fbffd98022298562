"""How many new jobs a second a device, and a tenant, may bring."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.job import ReplyTo
from cloud_dispatcher.core.rate_limits import RateLimits, RateSettings
from cloud_dispatcher.core.settings import EngineSettings
from cloud_dispatcher.core.spending import BudgetSettings, TenantSettings
from fleet_protocol import messages as m
from fleet_protocol import topics
from tests.unit.engine_desk import Desk
from tests.unit.gateway_house import gateway, openai_client
from tests.unit.service_house import House, Worker

SLOW = RateSettings(device_per_s=2.0, device_burst=3)


def desk_of(rate: RateSettings, *tenants: TenantSettings) -> Desk:
    return Desk(EngineSettings(rate=rate, budget=BudgetSettings(tenants=tenants)))


def bring(desk: Desk, number: int, device: str = "d1", **fields: object) -> m.JobAck:
    submit = msgspec.convert({"prompt": f"Is hall {number} warm?"} | fields, m.JobSubmit)
    desk.handle(
        e.JobSubmitted(
            key=m.JobKey(f"K{number}"),
            device=m.DeviceId(device),
            id=m.JobId(str(number)),
            submit=submit,
            reply=ReplyTo(),
            known=desk.saved.get(m.JobKey(f"K{number}")),
        )
    )
    return desk.sent(topics.ACK, m.JobAck)[0]


def is_in(ack: m.JobAck) -> bool:
    return ack.status is m.AckStatus.ACCEPTED


def test_a_burst_comes_in_and_then_so_many_a_second() -> None:
    desk = desk_of(SLOW)
    acks = [bring(desk, number) for number in range(1, 5)]
    assert [is_in(ack) for ack in acks] == [True, True, True, False]
    assert (acks[3].code, acks[3].retry_after_ms, acks[3].rate) == ("busy", 500, m.RateOf.DEVICE)
    assert "2 new jobs a second" in acks[3].message
    assert desk.all_of(c.SaveJob) == []


def test_the_wait_that_is_told_is_enough_and_not_a_millisecond_too_long() -> None:
    desk = desk_of(RateSettings(device_per_s=3.0, device_burst=1))
    assert is_in(bring(desk, 1))
    wait_ms = bring(desk, 2).retry_after_ms
    desk.now_ms += wait_ms - 1
    assert bring(desk, 2).retry_after_ms == 1
    desk.now_ms += 1
    assert is_in(bring(desk, 2))


def test_devices_have_a_rate_each() -> None:
    desk = desk_of(RateSettings(device_per_s=1.0, device_burst=1))
    assert [is_in(bring(desk, number, f"d{number}")) for number in (1, 2)] == [True, True]


def test_devices_of_a_tenant_share_another() -> None:
    north = TenantSettings(name="north", devices=("n-*",))
    desk = desk_of(RateSettings(tenant_per_s=1.0, tenant_burst=2), north)
    acks = [bring(desk, number, f"n-{number}") for number in (1, 2, 3)]
    assert [is_in(ack) for ack in acks] == [True, True, False]
    assert acks[2].rate is m.RateOf.TENANT
    assert "the tenant north" in acks[2].message
    assert is_in(bring(desk, 4, "south"))


def test_a_tenant_may_have_rates_of_its_own() -> None:
    quick = TenantSettings(name="q", devices=("q-*",), device_jobs_per_s=9.0, device_jobs_burst=5)
    slow = TenantSettings(name="s", devices=("s-*",), jobs_per_s=1.0, jobs_burst=1)
    desk = desk_of(SLOW, quick, slow)
    assert [is_in(bring(desk, number, "q-1")) for number in range(6)] == [True] * 5 + [False]
    assert [is_in(bring(desk, number, f"s-{number}")) for number in (11, 12)] == [True, False]
    assert [is_in(bring(desk, number, "x")) for number in range(20, 24)] == [True] * 3 + [False]


def test_what_is_known_does_not_count_and_is_never_refused() -> None:
    desk = desk_of(RateSettings(device_per_s=1.0, device_burst=2))
    assert is_in(bring(desk, 1))
    assert [is_in(bring(desk, 1)) for _ in range(5)] == [True] * 5
    assert is_in(bring(desk, 2))
    assert not is_in(bring(desk, 3))
    assert is_in(bring(desk, 2))


def test_what_is_refused_does_not_count() -> None:
    rate = RateSettings(device_per_s=1.0, device_burst=2)
    desk = Desk(EngineSettings(rate=rate, queue_limit=1))
    assert is_in(bring(desk, 1))
    assert [bring(desk, number).message for number in (2, 3)] == ["the queue is full"] * 2
    desk.worker(slots=9)
    assert is_in(bring(desk, 4))
    assert not is_in(bring(desk, 5))


def test_an_answer_that_is_known_counts_all_the_same() -> None:
    desk = desk_of(RateSettings(device_per_s=1.0, device_burst=2))
    desk.worker()
    bring(desk, 1, prompt="Is it warm?")
    desk.done()
    assert is_in(bring(desk, 2, prompt="Is it warm?"))
    assert not is_in(bring(desk, 3, prompt="Is it warm?"))
    assert desk.all_of(c.UseAnswer) == []


def test_who_asks_in_plain_text_is_told_in_words() -> None:
    desk = desk_of(RateSettings(device_per_s=0.4, device_burst=1))
    for number in (1, 2):
        desk.submit(number, reply=ReplyTo(plain=True))
    (answer,) = desk.sent(topics.ANSWER, m.PlainText)
    assert answer.text.endswith("Try again in 3 s.")


def test_what_the_dispatcher_itself_asks_is_free() -> None:
    desk = desk_of(RateSettings(device_per_s=0.001, device_burst=1))
    for number in (1, 2, 3):
        desk.submit(number, reply=ReplyTo(silent=True))
    assert desk.engine.summary().queued == 3


def test_without_settings_any_number_comes_in() -> None:
    limits = RateLimits(RateSettings())
    assert not limits.are_set
    device = m.DeviceId("d")
    for _ in range(1_000):
        limits.count(device, "t", 0)
    assert limits.excess(device, "t", 0) is None


def test_devices_that_bring_nothing_more_are_forgotten() -> None:
    limits = RateLimits(RateSettings(device_per_s=1.0, device_burst=1))
    for number in range(50_000):
        limits.count(m.DeviceId(f"d{number}"), "t", now_ms=10 * number)
    assert len(limits._buckets) < 10_000


@given(
    pauses=st.lists(st.integers(0, 700), min_size=1, max_size=80),
    per_s=st.sampled_from([0.5, 1.0, 3.0, 7.0]),
    burst=st.integers(1, 5),
)
def test_no_more_comes_in_than_burst_and_rate_allow_and_whoever_waits_does(
    pauses: list[int], per_s: float, burst: int
) -> None:
    limits = RateLimits(RateSettings(device_per_s=per_s, device_burst=burst))
    device, now_ms, taken = m.DeviceId("d"), 1_000_000, list[int]()
    for pause_ms in pauses:
        now_ms += pause_ms
        excess = limits.excess(device, "t", now_ms)
        if excess is None:
            limits.count(device, "t", now_ms)
            taken.append(now_ms)
        else:
            free_at_ms = now_ms + excess.wait_ms
            assert limits.excess(device, "t", free_at_ms) is None
            assert limits.excess(device, "t", free_at_ms - 1) is not None
    for first in range(len(taken)):
        span_s = (taken[-1] - taken[first]) / 1_000
        assert len(taken) - first <= burst + per_s * span_s + 1e-6


def test_an_ack_says_nothing_of_rates_unless_one_is_exceeded() -> None:
    desk = desk_of(RateSettings(device_per_s=1.0, device_burst=1))
    assert b"rate" not in msgspec.json.encode(bring(desk, 1))
    assert b'"rate":"device"' in msgspec.json.encode(bring(desk, 2))


async def test_http_says_429_and_when_to_come_again(house: House, worker: Worker) -> None:
    house.settings = EngineSettings(rate=RateSettings(device_per_s=0.1, device_burst=1))
    async with gateway(house) as url, openai_client(url) as client:
        asked = asyncio.create_task(ask(client, "Is the hall warm?"))
        worker.done(await worker.assignment())
        await asked
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(client, "And now?")
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.response.headers["retry-after"] == "10"


async def ask(client: openai.AsyncOpenAI, question: str) -> None:
    words: Any = [{"role": "user", "content": question}]
    await client.chat.completions.create(model="fleet", messages=words)
