"""Results over a WebSocket: the events that SSE tells, for who cannot read that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from websockets.frames import CloseCode

from cloud_dispatcher.cli.main import main
from fleet_protocol.settings import BrokerSettings
from tests.unit.gateway_house import gateway, says
from tests.unit.service_house import House, Worker
from tests.unit.visitor import PASSWORD, Visitor

QUESTION = {"id": "q1", "prompt": "Is the hall warm?", "max_tokens": 9, "stream": True}


def socket(url: str, job: str = "q1", **headers: str) -> connect:
    place = url.replace("http", "ws", 1)
    return connect(f"{place}/jobs/{job}/events", additional_headers=headers)


async def all_of(follower: ClientConnection) -> list[dict[str, object]]:
    """Read until the gateway says that it was all."""
    found = [json.loads(message) async for message in follower]
    assert follower.close_code == CloseCode.NORMAL_CLOSURE
    return found


async def test_a_follower_hears_every_piece_and_the_result(house: House, worker: Worker) -> None:
    async with gateway(house) as url:
        await Visitor(url).post("/jobs", QUESTION)
        got = await worker.assignment()
        async with socket(url) as follower:
            says(worker, got, 0, "It ")
            says(worker, got, 1, "is.")
            worker.done(got, "It is.")
            events = await all_of(follower)
    assert [event["event"] for event in events] == ["token", "token", "result"]
    assert "".join(event["data"]["t"] for event in events[:2]) == "It is."  # type: ignore[index]
    assert events[2]["data"]["text"] == "It is."  # type: ignore[index]


async def test_who_comes_late_hears_the_result(house: House, worker: Worker) -> None:
    async with gateway(house) as url:
        await Visitor(url).post("/jobs", QUESTION)
        worker.done(await worker.assignment(), "It is.")
        await house.until(lambda: all(job.result for job in house.store._jobs.values()))
        async with socket(url) as follower:
            [event] = await all_of(follower)
    assert event["event"] == "result"


async def test_leaving_leaves_the_job_alone_and_nobody_behind(house: House, worker: Worker) -> None:
    async with gateway(house) as url:
        await Visitor(url).post("/jobs", QUESTION)
        got = await worker.assignment()
        async with socket(url):
            pass
        worker.done(got)
        async with socket(url) as follower:
            assert (await all_of(follower))[-1]["event"] == "result"


async def test_an_unknown_job_is_told_with_the_status(house: House) -> None:
    async with gateway(house) as url:
        with pytest.raises(InvalidStatus) as refused:
            await socket(url)
    assert refused.value.response.status_code == 404
    assert json.loads(refused.value.response.body or b"")["error"]["code"] == "unknown_job"


async def test_another_sites_page_hears_nothing(house: House, tmp_path: Path) -> None:
    async with gateway(house) as url:
        await Visitor(url).post("/jobs", QUESTION)
        with pytest.raises(InvalidStatus) as refused:
            await socket(url, Origin="https://evil.example")
        assert refused.value.response.status_code == 403
    users = tmp_path / "users.toml"
    line = ["users", "add", "ann", "--role", "operator", "--password-file", "-"]
    CliRunner().invoke(main, [*line, "--file", str(users)], input=f"{PASSWORD}\n")
    page = {"users_file": str(users)}
    async with gateway(house, broker=BrokerSettings(), page=page) as url:
        visitor = Visitor(url)
        await visitor.log_in("ann")
        cookie = f"edgefleet={visitor.cookies['edgefleet']}"
        for origin, status in (("https://evil.example", 403), ("", 403), (url, 404)):
            headers = {"Cookie": cookie, **({"Origin": origin} if origin else {})}
            with pytest.raises(InvalidStatus) as refused:
                await socket(url, "none", **headers)
            assert refused.value.response.status_code == status


async def test_a_key_opens_it(house: House, worker: Worker, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    line = ["keys", "add", "app", "--file", str(keys), "--json"]
    secret = json.loads(CliRunner().invoke(main, line).stdout)["key"]
    async with gateway(house, keys_file=str(keys)) as url:
        own = {"Authorization": f"Bearer {secret}"}
        await Visitor(url).post("/jobs", QUESTION, **own)
        got = await worker.assignment()
        with pytest.raises(InvalidStatus) as refused:
            await socket(url)
        assert refused.value.response.status_code == 401
        async with socket(url, **own) as follower:
            worker.done(got)
            assert (await all_of(follower))[-1]["event"] == "result"
