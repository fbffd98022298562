"""Who may use the gateway, how often, and what nobody gets to see."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import openai
import pytest
import structlog
from click.testing import CliRunner
from starlette.requests import Request

from cloud_dispatcher.adapters.http import keys
from cloud_dispatcher.adapters.http.gatekeeper import RequestMeter
from cloud_dispatcher.adapters.http.settings import GatewaySettings
from cloud_dispatcher.cli.main import main
from cloud_dispatcher.core.spending import Budget, BudgetSettings, TenantSettings
from cloud_dispatcher.local_devices import local_device
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.errors import ConfigError
from fleet_protocol.messages import DeviceId
from tests.unit.gateway_house import gateway, openai_client
from tests.unit.service_house import House, Peer, Worker

FACTS: dict[str, Any] = {"model": "fleet", "messages": [{"role": "user", "content": "Warm?"}]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def keys_command(*words: str, file: Path) -> dict[str, Any]:
    """Run `cloud-dispatcher keys ...` and return what it prints as JSON."""
    done = CliRunner().invoke(main, ["keys", *words, "--file", str(file), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_key_is_shown_once_and_only_its_hash_is_kept(file: Path) -> None:
    made = keys_command("add", "app", "--tenant", "north", "--per-min", "5", file=file)
    assert made["key"].startswith("ef-")
    assert made["key"] not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    (kept,) = keys.read_keys(file)
    assert (kept.sha256, kept.tenant, kept.per_min) == (keys.hash_of(made["key"]), "north", 5)
    assert keys_command("ls", file=file)["keys"] == [
        {"name": "app", "tenant": "north", "per_min": 5, "daily_usd": None}
    ]


def test_keys_are_removed_by_name(file: Path) -> None:
    keys_command("add", "one", file=file)
    keys_command("add", "two", file=file)
    keys_command("rm", "one", file=file)
    assert [key.name for key in keys.read_keys(file)] == ["two"]


def test_a_keys_limits_change_and_it_stays_the_same_key(file: Path) -> None:
    secret = keys_command("add", "app", "--tenant", "north", "--per-min", "5", file=file)["key"]
    keys_command("add", "other", file=file)
    said = keys_command("set", "app", "--daily-usd", "0.5", file=file)
    assert said == {"name": "app", "tenant": "north", "per_min": 5, "daily_usd": 0.5}
    said = keys_command("set", "app", "--daily-usd", "2", "--no-per-min", file=file)
    assert said == {"name": "app", "tenant": "north", "per_min": None, "daily_usd": 2.0}
    app, other = keys.read_keys(file)
    assert (app.sha256, app.daily_usd) == (keys.hash_of(secret), 2.0)
    assert other.name == "other"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_file_that_root_changes_is_still_the_dispatchers(file: Path) -> None:
    keys_command("add", "app", file=file)
    os.chown(file, 4242, 4243)
    keys_command("set", "app", "--per-min", "7", file=file)
    found = file.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (4242, 4243, 0o600)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["set", "nobody", "--per-min", "1"], "no key called"),
        (["set", "app"], "say what to change"),
        (["set", "app", "--per-min", "1", "--no-per-min"], "contradict each other"),
        (["add", "app"], "is there already"),
        (["add", "a/b"], "cannot be made"),
        (["rm", "nobody"], "no key called"),
    ],
)
def test_what_cannot_be_done_to_the_file_is_said(file: Path, words: list[str], says: str) -> None:
    keys_command("add", "app", file=file)
    before = file.read_bytes()
    done = CliRunner().invoke(main, ["keys", *words, "--file", str(file)])
    assert (done.exit_code, says in done.stderr) == (2, True), done.stderr
    assert file.read_bytes() == before


def test_two_keys_of_one_name_are_refused(file: Path) -> None:
    keys_command("add", "app", file=file)
    file.write_text(file.read_text() * 2)
    with pytest.raises(ConfigError, match="two keys are called app"):
        keys.read_keys(file)


async def test_only_who_has_a_key_is_answered_and_only_while_it_is_in_the_file(
    house: House, worker: Worker, file: Path
) -> None:
    secret = keys_command("add", "app", file=file)["key"]
    async with gateway(house, keys_file=str(file)) as url:
        for wrong in ("none", secret.upper()):
            async with openai_client(url, key=wrong) as stranger:
                with pytest.raises(openai.AuthenticationError):
                    await stranger.models.list()
        async with openai_client(url, key=secret) as client:
            assert [model.id async for model in client.models.list()] == ["fleet", "tiny"]
            keys_command("rm", "app", file=file)
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
    assert worker.heard == []


def test_a_check_of_the_settings_reads_the_keys(file: Path) -> None:
    keys_command("add", "app", file=file)
    environ = {
        "EDGEFLEET_DISPATCHER_GATEWAY__PORT": "8600",
        "EDGEFLEET_DISPATCHER_GATEWAY__KEYS_FILE": str(file),
    }

    def gateway_row() -> dict[str, Any]:
        words = ["check", "--json", "--broker", "mqtt://127.0.0.1:1", "--data", str(file.parent)]
        said = CliRunner().invoke(main, words, env=environ)
        return {row["name"]: row for row in json.loads(said.stdout)["checks"]}["gateway"]

    assert gateway_row()["detail"] == f"http://127.0.0.1:8600 for 1 keys of {file}"
    file.unlink()
    assert "keys add" in gateway_row()["hint"]


async def test_a_broken_file_locks_nobody_out(house: House, file: Path) -> None:
    secret = keys_command("add", "app", file=file)["key"]
    async with gateway(house, keys_file=str(file)) as url, openai_client(url, key=secret) as client:
        file.write_text("[[key]")  # noqa: ASYNC240 - of some bytes, in a test
        assert (await client.models.list()).data


async def test_a_tenant_asks_as_its_own_device(house: House, worker: Worker, file: Path) -> None:
    secret = keys_command("add", "app", "--tenant", "north", file=file)["key"]
    async with gateway(house, keys_file=str(file)) as url, openai_client(url, key=secret) as client:
        asking = asyncio.create_task(client.chat.completions.create(**FACTS))
        got = await worker.assignment()
        worker.done(got)
        await asking
    assert house.store._jobs[got.job].device == local_device("north")


@pytest.mark.usefixtures("worker")
async def test_a_key_that_spent_its_budget_is_told_so_over_restarts_and_others_are_answered(
    house: House, file: Path
) -> None:
    poor = keys_command("add", "poor", "--daily-usd", "0.000001", file=file)["key"]
    rich = keys_command("add", "rich", "--daily-usd", "1", file=file)["key"]
    of_cloud = {**FACTS, "model": "none-here", "extra_body": {"escalate": "always", "cache": "off"}}
    async with (
        gateway(house, has_cloud=True, keys_file=str(file)) as url,
        openai_client(url, key=poor) as client,
    ):
        assert (await client.chat.completions.create(**of_cloud)).choices
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(**of_cloud)
    assert (refused.value.code, refused.value.type) == ("insufficient_quota", "insufficient_quota")
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert "the key poor" in str(refused.value)
    async with gateway(house, has_cloud=True, keys_file=str(file)) as url:
        async with openai_client(url, key=poor) as client:
            with pytest.raises(openai.RateLimitError):
                await client.chat.completions.create(**of_cloud)
        async with openai_client(url, key=rich) as client:
            assert (await client.chat.completions.create(**of_cloud)).choices
    assert {spend.key for spend in await house.store.spending(since_day=0)} == {"poor", "rich"}


@pytest.mark.usefixtures("worker")
async def test_a_key_whose_budget_is_raised_asks_on_and_what_it_spent_counts(
    house: House, file: Path
) -> None:
    secret = keys_command("add", "app", "--daily-usd", "0.000001", file=file)["key"]
    of_cloud = {**FACTS, "model": "none-here", "extra_body": {"escalate": "always", "cache": "off"}}
    async with (
        gateway(house, has_cloud=True, keys_file=str(file)) as url,
        openai_client(url, key=secret) as client,
    ):
        await client.chat.completions.create(**of_cloud)
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(**of_cloud)
        keys_command("set", "app", "--daily-usd", "1", file=file)
        assert (await client.chat.completions.create(**of_cloud)).choices
        keys_command("set", "app", "--daily-usd", "0.000001", file=file)
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(**of_cloud)


async def test_an_operator_sees_a_keys_budget_before_it_asked_and_when_it_changes(
    house: House, admin: Peer, file: Path
) -> None:
    keys_command("add", "app", "--tenant", "north", "--daily-usd", "0.5", file=file)
    house.payers = keys.KeyRing(file).payers

    async def budget(after: int) -> tuple[str, str, float | None, float]:
        admin.say(t.ADMIN_REQUEST, m.AdminRequest(req="r", op=m.AdminOp.COSTS), "a1")
        reply = await admin.read(m.AdminReply, t.ADMIN_REPLY, "a1", after=after)
        view = reply.budgets[-1]
        return view.tenant, view.key, view.daily_usd, view.spent_usd

    async with house.dispatcher():
        assert await budget(0) == ("north", "app", 0.5, 0.0)
        keys_command("set", "app", "--daily-usd", "2", file=file)
        assert await budget(1) == ("north", "app", 2.0, 0.0)


async def test_a_key_that_asks_too_often_is_told_when_to_come_again(
    house: House, file: Path
) -> None:
    secret = keys_command("add", "app", "--per-min", "2", file=file)["key"]
    async with gateway(house, keys_file=str(file)) as url, openai_client(url, key=secret) as client:
        for _ in range(2):
            await client.models.list()
        with pytest.raises(openai.RateLimitError) as refused:
            await client.models.list()
        assert refused.value.response.headers["retry-after"] == "60"
        house.clock.now_ms += 60_000
        await client.models.list()


def test_a_meter_never_lets_more_than_so_many_into_any_minute() -> None:
    meter, key = RequestMeter(), keys.ApiKey(name="k", sha256="0" * 64, per_min=3)
    entered = [at for at in range(0, 300_000, 700) if meter.wait_ms(key, at) == 0]
    for first in entered:
        assert sum(first <= at < first + 60_000 for at in entered) <= 3
    assert len(entered) == 15


async def test_no_key_and_no_words_reach_the_log(house: House, worker: Worker, file: Path) -> None:
    secret = keys_command("add", "app", file=file)["key"]
    with structlog.testing.capture_logs() as lines:
        async with (
            gateway(house, keys_file=str(file)) as url,
            openai_client(url, key=secret) as client,
        ):
            asking = asyncio.create_task(client.chat.completions.create(**FACTS))
            worker.done(await worker.assignment(), "quite so")
            await asking
    written = repr(lines)
    assert "http.answered" in written
    assert "'caller': 'app'" in written
    for hidden in (secret, keys.hash_of(secret), "Warm?", "quite so"):
        assert hidden not in written


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://[nonsense"},
        {"content-type": "text/plain"},
    ],
)
async def test_without_keys_a_page_of_the_web_gets_nothing(
    house: House, headers: dict[str, str]
) -> None:
    async with gateway(house) as url, openai_client(url, default_headers=headers) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.chat.completions.create(**FACTS)
    assert refused.value.status_code in {403, 415}
    assert house.store._jobs == {}


@pytest.mark.parametrize("chars", [262_144, 1_100_000])
async def test_more_than_a_device_may_say_is_refused(house: House, chars: int) -> None:
    async with gateway(house) as url, openai_client(url) as client:
        turns = [{"role": "user", "content": "x" * chars}]
        with pytest.raises(openai.APIStatusError) as refused:
            await client.post(
                "/chat/completions", body={"model": "fleet", "messages": turns}, cast_to=Request
            )
    assert refused.value.status_code == 413


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "fleet.example", "::"])
def test_beyond_this_machine_it_takes_keys(host: str) -> None:
    with pytest.raises(ValueError, match="keys_file"):
        GatewaySettings(port=1, host=host)
    assert GatewaySettings(port=1, host=host, keys_file="keys.toml").host == host


def test_a_tenants_budget_counts_what_it_asks_over_http() -> None:
    north = TenantSettings(name="north", devices=("gate-*",), daily_usd=1.0)
    budget = Budget(BudgetSettings(tenants=(north,)))
    assert budget.tenant_of(local_device("north")) == "north"
    assert budget.tenant_of(local_device("south")) == "south"
    assert budget.tenant_of(DeviceId("gate-1")) == "north"
    assert budget.tenant_of(DeviceId("d1")) == "default"
