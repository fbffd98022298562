"""Without a key there is no provider, and nothing breaks: every call is told how to get one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai.types.chat import ChatCompletionChunk
from openai.types.completion_usage import CompletionUsage

from cloud_dispatcher.adapters import provider_errors
from cloud_dispatcher.adapters.deepseek import _Answer, _usage
from cloud_dispatcher.adapters.providers import (
    BackoffSettings,
    NoProvider,
    ProviderSettings,
    build_provider,
)
from cloud_dispatcher.adapters.shared_calls import SharedCalls
from cloud_dispatcher.core.commands import CompletionRequest
from cloud_dispatcher.ports import ProviderError
from fleet_protocol.errors import ConfigError
from fleet_protocol.messages import TEXT_MAX_CHARS, WHOLE_MAX, Generation, JobKey, Usage

REQUEST = CompletionRequest(
    job=JobKey("01J"), attempt=1, messages=(), generation=Generation(), timeout_ms=1_000
)


@pytest.mark.parametrize("environ", [{}, {"DEEPSEEK_API_KEY": ""}, {"DEEPSEEK_API_KEY": "  "}])
async def test_without_a_key_every_call_is_told_how_to_set_one(environ: dict[str, str]) -> None:
    provider = build_provider(None, environ)
    assert isinstance(provider, NoProvider)
    with pytest.raises(ProviderError) as caught:
        await anext(aiter(provider.stream(REQUEST)))
    assert caught.value.code == "no_provider"
    assert caught.value.retry_after_ms is None
    assert "DEEPSEEK_API_KEY" in caught.value.hint
    await provider.close()


async def test_a_key_in_the_named_variable_makes_a_provider() -> None:
    settings = ProviderSettings(name="backup", api_key_env="BACKUP_KEY")
    provider = build_provider(settings, {"BACKUP_KEY": "sk-1\n"})
    assert isinstance(provider, SharedCalls)
    assert provider.name == "backup"
    await provider.close()


async def test_a_key_file_goes_before_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-file\nsecond line\n")
    provider = build_provider(ProviderSettings(api_key_file=str(path)), {})
    assert provider.name == "deepseek"
    await provider.close()


async def test_the_chain_holds_what_has_its_key_or_needs_none_in_order() -> None:
    backups = (
        ProviderSettings(name="keyless", base_url="http://127.0.0.1:1/v1", api_key_env=""),
        ProviderSettings(name="unset", api_key_env="NOT_SET"),
        ProviderSettings(name="other", api_key_env="OTHER_KEY"),
    )
    provider = build_provider(None, {"OTHER_KEY": "sk-2"}, backups=backups)
    assert provider.name == "keyless, other"
    assert [each.state for each in provider.endpoints] == ["closed", "closed"]
    await provider.close()


def test_two_endpoints_of_one_name_are_a_setting_to_correct() -> None:
    with pytest.raises(ConfigError, match="one name"):
        build_provider(None, {}, backups=(ProviderSettings(),))


@pytest.mark.parametrize(
    ("fields", "speaks"),
    [
        ({}, True),
        ({"model": "deepseek-v4-pro"}, True),
        ({"model": "deepseek-ai/DeepSeek-V4"}, False),
        ({"model": "qwen3-8b"}, False),
        ({"model": "qwen3-8b", "dialect": "deepseek"}, True),
        ({"dialect": "openai"}, False),
    ],
)
def test_only_deepseeks_own_api_hears_its_own_words(
    fields: dict[str, str], *, speaks: bool
) -> None:
    assert msgspec.convert(fields, ProviderSettings).speaks_deepseek is speaks


@pytest.mark.parametrize("content", [None, "", "\nsk-late\n"])
def test_a_key_file_that_holds_no_key_is_a_setting_to_correct(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="api_key_file"):
        build_provider(ProviderSettings(api_key_file=str(path)), {"DEEPSEEK_API_KEY": "sk-1"})


@pytest.mark.parametrize("key", ["two words", "sk-ключ", "sk-\x07"])
def test_something_that_is_no_key_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_provider(None, {"DEEPSEEK_API_KEY": key})
    assert "DEEPSEEK_API_KEY" in str(caught.value)
    assert key not in str(caught.value)


@pytest.mark.parametrize("url", ["api.deepseek.com", "ftp://x", "https://", "https://u:p@x"])
def test_a_base_url_must_be_http_and_hold_no_password(url: str) -> None:
    with pytest.raises(ValueError, match="base_url") as caught:
        ProviderSettings(base_url=url)
    assert "u:p" not in str(caught.value)


def test_the_backoff_doubles_up_to_its_cap_with_full_jitter() -> None:
    backoff = BackoffSettings()
    assert [backoff.pause_ms(n, luck=1.0) for n in (1, 2, 3, 6, 9)] == [
        1_000,
        2_000,
        4_000,
        30_000,
        30_000,
    ]
    assert backoff.pause_ms(3, luck=0.0) == 0
    assert backoff.pause_ms(3, luck=0.5) == 2_000


@pytest.mark.parametrize(
    ("header", "span_ms"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("2", 2_000),
        ("0.25", 250),
        ("-3", 0),
        ("nan", None),
        ("inf", None),
        ("60000", 3_600_000),
        ("1e300", 3_600_000),
        ("Fri, 31 Dec 9999 00:00:00 GMT", 3_600_000),
        ("Thu, 01 Jan 1970 00:00:09 GMT", 8_000),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(
    header: str | None, span_ms: int | None
) -> None:
    assert provider_errors.read_retry_after(header, now_ms=1_000) == span_ms


@pytest.mark.parametrize(
    ("said", "counted"), [(7, 7), (-1, 0), (None, 0), ("7", 0), (10**30, WHOLE_MAX)]
)
def test_a_bill_that_makes_no_sense_costs_no_answer(said: Any, counted: int) -> None:
    bill = CompletionUsage.construct(prompt_tokens=said, completion_tokens=said, total_tokens=0)
    assert _usage(bill) == Usage(prompt_tokens=counted, completion_tokens=counted)


def piece_of(content: str) -> ChatCompletionChunk:
    return ChatCompletionChunk.model_validate(
        {
            "id": "1",
            "created": 1,
            "model": "m",
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": {"content": content}}],
        }
    )


def test_whoever_talks_on_and_on_makes_no_result_that_nobody_can_read() -> None:
    answer = _Answer(model="m")
    shown = "".join(answer.take(piece_of("word " * 60_000)) for _ in range(5))
    assert answer.text == shown
    assert len(shown) == TEXT_MAX_CHARS


def test_a_character_that_comes_in_two_halves_is_one() -> None:
    answer = _Answer(model="m")
    shown = [
        answer.take(piece_of(piece)) for piece in ("so \ud83d", "\ude00!", " \ude00", "\ud83d")
    ]
    assert shown == ["so ", "\U0001f600!", " \ufffd", ""]
    assert answer.text == "".join(shown)
