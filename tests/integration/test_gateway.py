"""The gateway of a real fleet, before clients that nobody here wrote; and its page, tried out."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from fleet_cli.local_fleet import free_port
from tests.integration.fleet import PATIENCE_S, Device, Fleet, fleet

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

PAGE = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text()
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
QUESTION = "How warm is the hall?"


class Site:
    """A fleet with a gateway, and a key to it."""

    def __init__(self, running: Fleet, device: Device, url: str, key: str) -> None:
        self.running = running
        self.device = device
        self.url = url
        self.key = key

    @property
    def environ(self) -> dict[str, str]:
        """As the page asks its readers to set it."""
        given = {"FLEET_URL": self.url, "FLEET_KEY": self.key}
        given |= {"OPENAI_BASE_URL": f"{self.url}/v1", "OPENAI_API_KEY": self.key}
        return {
            **os.environ,
            **given,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }


def make_key(file: Path, *words: str) -> str:
    """Make a key as an operator does."""
    done = subprocess.run(
        [sys.executable, "-m", "cloud_dispatcher", "keys", "add", *words, "--file", str(file)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def ready(url: str) -> None:
    """Wait until the gateway says that the dispatcher serves."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=PATIENCE_S) as reply:  # noqa: S310 - loopback
                if json.load(reply)["workers_online"]:
                    return
        except (OSError, urllib.error.HTTPError):
            pass
    pytest.fail(f"{url} did not become ready")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("gateway")
    keys = folder / "keys.toml"
    key = make_key(keys, "app", "--tenant", "north")
    port = free_port()
    environ = {"GATEWAY__PORT": str(port), "GATEWAY__KEYS_FILE": str(keys)}
    with fleet(folder, "w1", engine="echo", environ=environ) as (running, device):
        ready(f"http://127.0.0.1:{port}")
        yield Site(running, device, f"http://127.0.0.1:{port}", key)


@pytest.fixture
def client(site: Site) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=site.key) as client:
        yield client


def test_the_sdk_gets_an_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="fleet", messages=[{"role": "user", "content": QUESTION}], max_tokens=50, seed=1
    )
    assert answer.choices[0].message.content == QUESTION
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_sdk_gets_a_stream(client: openai.OpenAI) -> None:
    words = " ".join(f"word{i}" for i in range(200))
    stream = client.chat.completions.create(
        model="echo",
        messages=[{"role": "user", "content": words}],
        max_tokens=600,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == words
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


async def test_the_asynchronous_sdk_gets_both(site: Site) -> None:
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=site.key) as client:
        names = [model.id async for model in client.models.list()]
        stream = await client.chat.completions.create(
            model="fleet", messages=[{"role": "user", "content": "one two"}], stream=True
        )
        text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
    assert (names, text) == (["fleet", "echo"], "one two")


def test_who_has_no_key_gets_nothing(site: Site) -> None:
    with (
        openai.OpenAI(base_url=f"{site.url}/v1", api_key="ef-guessed") as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


KEY_PLACES = [
    "GET /v1/models HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}",
    "GET /v1/models HTTP/1.1\r\nHost: h\r\nAuthorization: Basic {key}",
    "GET /v1/models?api_key={key} HTTP/1.1\r\nHost: h",
    "GET /v1/{key} HTTP/1.1\r\nHost: h",
    "GET /v1/models HTTP/1.1\r\nHost: h\r\nCookie: edgefleet={key}",
    "GET /v1/models HTTP/1.1\r\nHost: {key}",
    "{key} / HTTP/9\r\nHost: h",
]


def test_no_key_is_in_the_log_wherever_it_was_sent(site: Site) -> None:
    log = site.running.folder / "dispatcher.log"
    host, _, port = site.url.removeprefix("http://").partition(":")
    before = log.read_text().count('"event":"http.answered"')
    for place in KEY_PLACES:
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as link:
            link.sendall(f"{place.format(key=site.key)}\r\n\r\n".encode())
            assert link.recv(9) == b"HTTP/1.1 "
    answered = len(KEY_PLACES) - 1  # the last is no HTTP
    site.device.wait(
        lambda: log.read_text().count('"event":"http.answered"') >= before + answered, "the lines"
    )
    assert site.key.removeprefix("ef-")[:16] not in log.read_text()


def test_nothing_of_a_job_over_http_is_published_for_devices(
    site: Site, client: openai.OpenAI
) -> None:
    client.chat.completions.create(model="fleet", messages=[{"role": "user", "content": "Hush?"}])
    mine = {topic for topic in site.device.heard if topic.startswith("dev/")}
    assert mine == set()
    assert site.running.jobs("device = 'http-north'") > 0


@pytest.mark.parametrize(("kind", "text"), BLOCKS, ids=range(len(BLOCKS)))
def test_an_example_of_the_page_works(site: Site, tmp_path: Path, kind: str, text: str) -> None:
    words = [sys.executable, "-c", text] if kind == "python" else ["bash", "-euo", "pipefail"]
    done = subprocess.run(
        words,
        input=None if kind == "python" else text,
        cwd=tmp_path,
        env=site.environ,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_page_has_examples() -> None:
    assert {"bash", "python"} == {kind for kind, _ in BLOCKS}
    assert len(BLOCKS) >= 4


def test_a_stop_ends_the_gateway_and_the_dispatcher_in_order(tmp_path: Path) -> None:
    port = free_port()
    with fleet(tmp_path, "w1", engine="echo", environ={"GATEWAY__PORT": str(port)}) as (running, _):
        ready(f"http://127.0.0.1:{port}")
        assert running.stop("dispatcher") == 0
        log = (tmp_path / "dispatcher.log").read_text()
        assert '"event":"gateway.down"' in log
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=PATIENCE_S)


@pytest.mark.model
def test_a_real_model_keeps_to_the_schema_and_streams_its_words(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    schema = {
        "type": "object",
        "properties": {"hall": {"type": "integer"}, "warm": {"type": "boolean"}},
        "required": ["hall", "warm"],
    }
    wanted = {"name": "reading", "strict": True, "schema": schema}
    with (
        fleet(tmp_path, "w1", environ={"GATEWAY__PORT": str(port)}),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        answer = client.chat.completions.create(
            model="fleet",
            messages=[{"role": "user", "content": "Hall 7 is warm. Give it as JSON."}],
            response_format={"type": "json_schema", "json_schema": wanted},
            extra_body={"escalate": "never"},
        )
        reading = json.loads(answer.choices[0].message.content or "")
        stream = client.chat.completions.create(
            model="fleet",
            messages=[{"role": "user", "content": "Name three colours."}],
            max_tokens=40,
            stream=True,
            extra_body={"escalate": "never"},
        )
        pieces = [c.choices[0].delta.content for c in stream if c.choices[0].delta.content]
    assert (type(reading["hall"]), type(reading["warm"])) == (int, bool)
    assert "".join(pieces).strip()
