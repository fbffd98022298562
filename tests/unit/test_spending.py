"""Budgets: whose they are, when they are spent and new, and what the engine makes of it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core.settings import EngineSettings
from cloud_dispatcher.core.spending import (
    Budget,
    BudgetSettings,
    Payer,
    Spend,
    TenantSettings,
    day_of,
)
from cloud_dispatcher.local_devices import local_device
from fleet_cli.commands.costs import add_up
from fleet_protocol import messages as m
from fleet_protocol import topics
from tests.unit.engine_desk import Desk

DAY_MS = 86_400_000
NORTH = TenantSettings(name="north", devices=("north-*", "gate-?"))
RICH = TenantSettings(name="rich", devices=("*-vip",), daily_usd=10.0)


def spend(tenant: str = "default", *, day: int = 0, cost_usd: float = 1.0) -> Spend:
    return Spend(day=day, tenant=tenant, reason="r", provider="p", model="m", cost_usd=cost_usd)


@pytest.mark.parametrize(
    ("device", "tenant"),
    [
        ("north-3", "north"),
        ("gate-7", "north"),
        ("gate-77", "default"),
        ("south-vip", "rich"),
        ("north-vip", "north"),
        ("x", "default"),
    ],
)
def test_the_first_pattern_that_fits_has_the_device(device: str, tenant: str) -> None:
    budget = Budget(BudgetSettings(tenants=(NORTH, RICH)))
    assert budget.tenant_of(m.DeviceId(device)) == tenant


def test_without_limits_anything_may_be_spent() -> None:
    budget = Budget(BudgetSettings())
    budget.record([spend(cost_usd=1e6)], 0)
    assert budget.refusal("default", None, 0) == ""


def test_a_tenant_that_spent_its_budget_stops_and_others_go_on() -> None:
    budget = Budget(BudgetSettings(tenant_daily_usd=1.0, tenants=(NORTH, RICH)))
    budget.record([spend("north"), spend("rich")], 0)
    assert "north" in budget.refusal("north", None, 0)
    assert budget.refusal("rich", None, 0) == ""
    assert budget.refusal("default", None, 0) == ""


def test_what_all_together_spent_stops_everybody() -> None:
    budget = Budget(BudgetSettings(daily_usd=2.0, tenants=(NORTH,)))
    budget.record([spend("north"), spend("default")], 0)
    assert "all tenants" in budget.refusal("other", None, 0)


def test_at_midnight_a_budget_is_new_and_yesterdays_spending_does_not_count() -> None:
    budget = Budget(BudgetSettings(daily_usd=1.0))
    budget.record([spend()], DAY_MS - 1)
    assert budget.refusal("default", None, DAY_MS - 1)
    assert budget.refusal("default", None, DAY_MS) == ""
    budget.record([spend(day=0)], DAY_MS)
    assert budget.refusal("default", None, DAY_MS) == ""


def test_a_budget_of_nothing_allows_nothing() -> None:
    assert Budget(BudgetSettings(daily_usd=0.0)).refusal("default", None, 0)


def desk_with(daily_usd: float) -> Desk:
    desk = Desk(EngineSettings(budget=BudgetSettings(daily_usd=daily_usd)))
    desk.worker()
    return desk


def test_each_answer_goes_on_the_bill_of_its_day_tenant_and_reason() -> None:
    desk = desk_with(1.0)
    desk.submit()
    desk.escalated()
    desk.cloud_finished(2)
    (record,) = desk.spends
    assert record == Spend(
        day=day_of(desk.now_ms),
        tenant="default",
        reason="low_confidence",
        provider="deepseek",
        model="deepseek",
        prompt_tokens=3,
        completion_tokens=1,
        cost_usd=0.001,
    )


def test_a_shared_answer_is_paid_once() -> None:
    desk = desk_with(1.0)
    desk.submit()
    desk.escalated()
    desk.cloud_finished(2, shared=True, cost_usd=0.0)
    assert desk.spends == []


def test_once_the_budget_is_spent_the_kept_answer_is_given_and_says_so() -> None:
    desk = desk_with(0.0)
    desk.submit()
    desk.escalated()
    assert not desk.all_of(c.StartCompletion)
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.text, result.degraded, result.code) == ("blue", True, "budget_spent")


def test_a_job_that_asked_for_the_cloud_is_answered_by_a_board_instead() -> None:
    desk = desk_with(0.0)
    desk.submit(escalate="always")
    assert desk.receivers(topics.ASSIGN) == ["w1"]
    desk.done()
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.status, result.degraded, result.code) == (m.JobStatus.OK, True, "budget_spent")


def test_a_restart_does_not_make_a_spent_budget_new() -> None:
    desk = desk_with(0.001)
    desk.submit(escalate="always")
    desk.cloud_finished(1)
    desk.confirmed()
    desk.restart()
    desk.worker()
    desk.submit(2, escalate="always")
    assert not desk.all_of(c.StartCompletion)
    assert desk.job("K2").cloud_code == "budget_spent"


def test_the_next_day_the_cloud_answers_again() -> None:
    desk = desk_with(0.001)
    desk.submit(escalate="always")
    desk.cloud_finished(1)
    desk.now_ms += DAY_MS
    desk.submit(2, escalate="always")
    assert desk.all_of(c.StartCompletion)


def test_a_job_that_only_the_cloud_could_answer_fails_with_the_reason() -> None:
    desk = desk_with(0.0)
    desk.submit(escalate="always", model="huge")
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.status, result.code) == (m.JobStatus.FAILED, "budget_spent")
    assert "0:00 UTC" in result.message


KITCHEN = Payer(key="kitchen", daily_usd=0.001)


def test_a_key_that_spent_its_budget_stops_and_others_of_its_tenant_go_on() -> None:
    budget = Budget(BudgetSettings())
    budget.record([replace(spend("north"), key="kitchen"), spend("north")], 0)
    assert "the key kitchen" in budget.refusal("north", KITCHEN, 0)
    assert budget.refusal("north", Payer(key="hall", daily_usd=0.001), 0) == ""
    assert budget.refusal("north", Payer(key="kitchen"), 0) == ""
    assert budget.refusal("north", None, 0) == ""
    assert budget.refusal("north", KITCHEN, DAY_MS) == ""


def test_what_all_dispatchers_wrote_down_replaces_what_one_counted_of_a_key() -> None:
    budget = Budget(BudgetSettings())
    kitchen = Payer(key="kitchen", daily_usd=1.5)
    budget.record([replace(spend(), key="kitchen")], 0)
    for written_usd, is_spent in ((1.0, False), (2.0, True)):
        budget.correct([replace(spend(cost_usd=written_usd), key="kitchen")], 0)
        assert bool(budget.refusal("default", kitchen, 0)) == is_spent


def test_a_keys_budget_is_besides_its_tenants_and_does_not_replace_it() -> None:
    budget = Budget(BudgetSettings(tenant_daily_usd=1.0))
    budget.record([spend("north")], 0)
    assert "north" in budget.refusal("north", Payer(key="hall", daily_usd=9.0), 0)


def test_what_a_key_spent_is_on_its_bill_and_shown_beside_its_budget() -> None:
    desk = Desk()
    desk.submit(escalate="always", payer=KITCHEN)
    desk.cloud_finished(1)
    assert [record.key for record in desk.spends] == ["kitchen"]
    views = desk.engine.budgets(0, [(local_device("default"), KITCHEN)])
    assert (views[-1].tenant, views[-1].key, views[-1].spent_usd) == ("default", "kitchen", 0.001)


def test_the_budgets_of_keys_and_of_their_tenants_are_shown_before_they_asked_anything() -> None:
    budget = Budget(BudgetSettings(tenant_daily_usd=1.0))
    keys = [(local_device("north"), KITCHEN), (local_device("south"), Payer(key="hall"))]
    assert [(view.tenant, view.key, view.daily_usd) for view in budget.views(0, keys)] == [
        ("", "", None),
        ("north", "", 1.0),
        ("south", "", 1.0),
        ("north", "kitchen", 0.001),
    ]


def test_a_restart_does_not_make_a_keys_spent_budget_new() -> None:
    desk = Desk()
    desk.submit(escalate="always", payer=KITCHEN)
    desk.cloud_finished(1)
    desk.confirmed()
    desk.restart()
    desk.submit(2, escalate="always", payer=KITCHEN)
    assert not desk.all_of(c.StartCompletion)
    desk.submit(3, escalate="always", payer=Payer(key="hall", daily_usd=0.001))
    assert desk.all_of(c.StartCompletion)


def test_a_job_that_waits_over_a_restart_is_still_its_keys() -> None:
    desk = Desk()
    desk.worker()
    desk.submit(payer=KITCHEN)
    desk.restart()
    assert desk.job().payer == KITCHEN


def test_a_dead_letter_that_starts_over_is_still_its_keys() -> None:
    desk = Desk()
    desk.submit(escalate="always", payer=KITCHEN)
    desk.now_ms += 600_000
    desk.wake()
    assert desk.job().dead
    assert desk.admin(m.AdminOp.JOB_RETRY, job="K1").ok
    desk.cloud_finished(2)
    assert [record.key for record in desk.spends] == ["kitchen"]


def test_a_board_is_told_that_the_cloud_is_away_for_a_key_without_money() -> None:
    desk = Desk()
    desk.worker(slots=2)
    desk.submit(payer=Payer(key="poor", daily_usd=0.0))
    (poor,) = desk.sent(topics.ASSIGN, m.Assignment)
    desk.submit(2, payer=Payer(key="rich"))
    (rich,) = desk.sent(topics.ASSIGN, m.Assignment)
    assert (poor.cloud_away, rich.cloud_away) == (True, False)


def test_nobody_waits_for_the_second_best_answer_of_a_key_without_money() -> None:
    desk = Desk()
    same = {"prompt": "how warm is it?", "escalate": "always"}
    desk.submit(1, payer=Payer(key="poor", daily_usd=0.0), **same)
    desk.submit(2, payer=Payer(key="rich", daily_usd=9.0), **same)
    assert desk.all_of(c.StartCompletion)
    desk.submit(3, **same)
    assert desk.all_of(c.StartCompletion)
    desk.submit(4, payer=Payer(key="unlimited"), **same)
    assert not desk.all_of(c.StartCompletion)


def test_costs_are_added_up_by_whatever_is_asked_for() -> None:
    rows = [
        m.CostRow(day=day, tenant=tenant, reason="r", provider="p", model="m", calls=1, cost_usd=1)
        for day, tenant in [("2026-11-21", "a"), ("2026-11-22", "a"), ("2026-11-22", "b")]
    ]
    assert [(row["day"], row["cost_usd"]) for row in add_up(rows, ("day",))] == [
        ("2026-11-21", 1),
        ("2026-11-22", 2),
    ]
    assert [row["calls"] for row in add_up(rows, ("tenant", "day"))] == [1, 1, 1]
    assert add_up(rows, ())[0]["cost_usd"] == 3
    assert add_up([], ()) == []
