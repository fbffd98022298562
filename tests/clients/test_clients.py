"""Clients of OpenAI's API that nobody here wrote, before a real fleet: `make clients`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_dispatcher.adapters.http.webhook_signature import secret_of, signed_headers
from fleet_cli.local_fleet import free_port
from tests.conftest import require
from tests.integration.fleet import fleet
from tests.integration.test_gateway import Site, make_key, ready

pytestmark = [pytest.mark.clients, pytest.mark.broker, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / ".venv-clients" / "bin"
PAGE = (ROOT / "docs" / "gateway.md").read_text()
QUESTION = "How warm is the hall?"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    require((PROGRAMS / "llm").exists(), "what `make clients` installs")
    folder = tmp_path_factory.mktemp("clients")
    keys, port = folder / "keys.toml", free_port()
    key = make_key(keys, "app")
    url = f"http://127.0.0.1:{port}"
    environ = {"GATEWAY__PORT": str(port), "GATEWAY__KEYS_FILE": str(keys)}
    with fleet(folder, "w1", engine="echo", environ=environ) as (running, device):
        ready(url)
        yield Site(running, device, url, key)


def run(site: Site, *words: str, **environ: str) -> str:
    """Run a program of the clients' own environment; return what it prints."""
    given = {
        "OPENAI_API_BASE": f"{site.url}/v1",
        "OPENAI_API_KEY": site.key,
        # litellm would ask the internet for prices.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        **environ,
    }
    done = subprocess.run(
        [str(PROGRAMS / words[0]), *words[1:]],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def python(site: Site, script: str) -> str:
    return run(site, "python", "-c", script)


def test_litellm_gets_an_answer_and_what_it_took(site: Site) -> None:
    told = python(
        site,
        f"""
import litellm
answer = litellm.completion(
    model="openai/fleet", messages=[{{"role": "user", "content": {QUESTION!r}}}], max_tokens=50
)
print(answer.choices[0].message.content)
print(answer.choices[0].finish_reason, answer.usage.completion_tokens > 0)
""",
    )
    assert told == f"{QUESTION}\nstop True"


def test_litellm_streams_with_usage(site: Site) -> None:
    told = python(
        site,
        """
import litellm
words = " ".join(f"word{i}" for i in range(200))
chunks = list(litellm.completion(
    model="openai/echo", messages=[{"role": "user", "content": words}], max_tokens=600,
    stream=True, stream_options={"include_usage": True},
))
text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
assert text == words, text
print(len(chunks) > 2, chunks[-1].usage.completion_tokens > 0)
""",
    )
    assert told == "True True"


def test_litellm_asks_asynchronously_and_many_at_once(site: Site) -> None:
    told = python(
        site,
        """
import asyncio, litellm
async def main():
    asked = [
        litellm.acompletion(model="openai/fleet", messages=[{"role": "user", "content": f"q{i}"}])
        for i in range(8)
    ]
    print(" ".join(a.choices[0].message.content for a in await asyncio.gather(*asked)))
asyncio.run(main())
""",
    )
    assert told == " ".join(f"q{i}" for i in range(8))


def test_litellm_raises_what_its_users_expect(site: Site) -> None:
    told = python(
        site,
        """
import litellm
def asked(**more):
    fields = {"model": "openai/fleet", "messages": [{"role": "user", "content": "hello"}], **more}
    try:
        litellm.completion(**fields, num_retries=0)
    except Exception as error:
        return type(error).__name__
print(asked(api_key="ef-guessed"), asked(model="openai/nobody-has-it"), asked(n=3))
""",
    )
    # Before it, litellm says where to get help.
    assert told.splitlines()[-1] == "AuthenticationError NotFoundError BadRequestError"


@pytest.fixture
def llm_folder(site: Site, tmp_path: Path) -> Path:
    """What docs/gateway.md tells users of `llm` to write."""
    [models] = re.findall(r"^```yaml\n(- model_id:.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    models = models.replace("http://127.0.0.1:8600", site.url)
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    run(site, "llm", "keys", "set", "fleet", "--value", site.key, LLM_USER_PATH=str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("stream", [(), ("--no-stream",)])
def test_llm_asks_with_a_model_file(site: Site, llm_folder: Path, stream: tuple[str, ...]) -> None:
    words = ("llm", "-m", "fleet", *stream, QUESTION)
    assert run(site, *words, LLM_USER_PATH=str(llm_folder)) == QUESTION


def test_llm_goes_on_with_a_conversation_and_keeps_what_it_took(
    site: Site, llm_folder: Path
) -> None:
    folder = {"LLM_USER_PATH": str(llm_folder)}
    assert run(site, "llm", "-m", "fleet", "first", **folder) == "first"
    # The engine says what it was asked: all of the conversation, the second time.
    assert run(site, "llm", "-c", "second", **folder) == "first\nfirst\nsecond"
    logs = json.loads(run(site, "llm", "logs", "--json", LLM_USER_PATH=str(llm_folder)))
    assert len({log["conversation_id"] for log in logs}) == 1
    assert all(log["input_tokens"] > 0 and log["output_tokens"] > 0 for log in logs)


def test_the_library_of_standard_webhooks_believes_what_we_sign(site: Site) -> None:
    secret, body = secret_of("0123456789abcdef" * 4, "north"), b'{"type":"job.finished"}'
    headers = signed_headers(secret, "job_1", body, at_s=int(time.time()))
    script = f"""
from standardwebhooks import Webhook
print(Webhook({secret!r}).verify({body!r}, {headers!r}))
try:
    Webhook({secret!r}).verify({body + b" "!r}, {headers!r})
except Exception as error:
    print(type(error).__name__)
"""
    told = python(site, script)
    assert told == "{'type': 'job.finished'}\nWebhookVerificationError"


def test_the_document_of_the_paths_is_what_openapi_says_it_must_be(site: Site) -> None:
    told = python(
        site,
        f"""
import json, urllib.request
from openapi_spec_validator import OpenAPIV31SpecValidator
document = json.load(urllib.request.urlopen("{site.url}/openapi.json"))
print([str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()])
del document["info"]
print(len(list(OpenAPIV31SpecValidator(document).iter_errors())) > 0)
""",
    )
    assert told == "[]\nTrue"
