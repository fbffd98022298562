"""The simulator as any HTTP client sees it, and its command as a process."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import pytest
from click.testing import CliRunner

from cloud_dispatcher.adapters.simulated_answers import Step
from cloud_dispatcher.adapters.simulated_deepseek import SimulatedDeepSeek, SimulatorSettings
from cloud_dispatcher.cli.simulate_cloud import simulate_cloud

CHAT = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "Warm?"}]}
RUN = ("-m", "cloud_dispatcher", "simulate-cloud", "--json")
PATIENCE_S = 30.0


@pytest.fixture
async def simulator() -> AsyncIterator[SimulatedDeepSeek]:
    async with SimulatedDeepSeek() as running:
        yield running


async def call(url: str, body: Any = None, *, key: str | None = "sk-any") -> tuple[int, str]:
    """Return status and text, over urllib: a client that knows nothing of the API."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers)  # noqa: S310 - loopback

    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:  # noqa: S310 - same
                return response.status, response.read().decode()
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, refusal.read().decode()

    return await asyncio.to_thread(fetch)


@pytest.mark.parametrize("root", ["", "/v1"])
async def test_a_stream_has_keep_alives_thoughts_answer_usage_and_an_end(
    simulator: SimulatedDeepSeek, root: str
) -> None:
    simulator.script(Step(keep_alive_s=0.01))
    asked = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    _, text = await call(f"{simulator.base_url}{root}/chat/completions", asked)
    assert text.endswith("data: [DONE]\n\n")
    marks = [": keep-alive", "reasoning_content", '"content":"[simulated ', '"usage"']
    places = [text.find(mark) for mark in marks]
    assert places == sorted(places)
    assert places[0] > 0


async def test_a_whole_answer_comes_after_blank_lines_under_load(
    simulator: SimulatedDeepSeek,
) -> None:
    simulator.script(Step(keep_alive_s=0.01))
    _, text = await call(f"{simulator.base_url}/chat/completions", CHAT)
    assert text.startswith("\n")
    answer = json.loads(text)
    assert answer["choices"][0]["message"]["content"].startswith("[simulated cloud answer]")
    assert answer["choices"][0]["message"]["reasoning_content"]
    assert answer["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("path", ["/chat/completions", "/models", "/user/balance"])
async def test_without_a_key_nothing_is_told(simulator: SimulatedDeepSeek, path: str) -> None:
    body = CHAT if path.startswith("/chat") else None
    status, text = await call(simulator.base_url + path, body, key=None)
    assert status == 401
    assert json.loads(text)["error"]["type"] == "authentication_error"


async def test_a_wrong_key_is_refused_where_one_is_set() -> None:
    async with SimulatedDeepSeek(SimulatorSettings(api_key="sk-right")) as simulator:
        assert (await call(f"{simulator.base_url}/models", key="sk-wrong"))[0] == 401
        assert (await call(f"{simulator.base_url}/models", key="sk-right"))[0] == 200


async def test_an_empty_account_says_so_and_answers_nothing() -> None:
    async with SimulatedDeepSeek(SimulatorSettings(balance_usd=0)) as simulator:
        _, text = await call(f"{simulator.base_url}/user/balance")
        assert json.loads(text)["is_available"] is False
        assert (await call(f"{simulator.base_url}/chat/completions", CHAT))[0] == 402


async def test_faults_are_scripted_over_http(simulator: SimulatedDeepSeek) -> None:
    steps = [{"status": 503}, {"status": 429, "retry_after_s": 1}]
    status, _ = await call(f"{simulator.base_url}/_simulator/script", steps)
    assert status == 200
    chat = f"{simulator.base_url}/chat/completions"
    assert [(await call(chat, CHAT))[0] for _ in range(3)] == [503, 429, 200]


async def test_a_step_that_does_not_exist_is_refused(simulator: SimulatedDeepSeek) -> None:
    status, text = await call(f"{simulator.base_url}/_simulator/script", [{"explode": True}])
    assert status == 422
    assert "explode" in text


async def test_the_command_says_where_it_listens_answers_and_ends_on_sigterm() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *RUN, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            assert process.stdout is not None
            base_url = json.loads(await process.stdout.readline())["base_url"]
            status, text = await call(f"{base_url}/chat/completions", CHAT)
            assert status == 200
            assert "[simulated cloud answer]" in text
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_a_port_in_use_is_named_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(simulate_cloud, ["--port", str(port)])
    assert result.exit_code == 1
    assert f"127.0.0.1:{port}" in result.output
    assert "another --port" in result.output
