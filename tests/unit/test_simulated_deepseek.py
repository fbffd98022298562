"""The simulated DeepSeek refuses and bills what the real one would."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from cloud_dispatcher.adapters.simulated_answers import (
    ChatRequest,
    RefusedRequestError,
    Step,
    compose,
    count_tokens,
    read_request,
)
from cloud_dispatcher.cli.simulate_cloud import simulate_cloud

NO_THINKING = {"thinking": {"type": "disabled"}}


def body(**fields: Any) -> bytes:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Warm?"}]
    return msgspec.json.encode({"model": "deepseek-flash", "messages": turns} | fields)


def chat(**fields: Any) -> ChatRequest:
    return read_request(body(**fields))


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"{", 400),
        (b"\xff", 400),
        (body(model=1), 422),
        (body(messages=[]), 422),
        (body(messages=[{"role": "king", "content": "x"}]), 422),
        (body(max_tokens=0), 422),
        (body(thinking={"type": "sometimes"}), 422),
        (body(model="gpt-7"), 400),
        (body(model="deepseek-chat"), 400),
        (body(model="deepseek-reasoner"), 400),
        (body(temperature=2.5), 400),
        (body(top_p=0), 400),
        (body(response_format={"type": "json_object"}), 400),
    ],
)
def test_a_bad_body_is_refused_in_the_error_format_of_openai(raw: bytes, status: int) -> None:
    with pytest.raises(RefusedRequestError) as caught:
        read_request(raw)
    assert caught.value.status == status
    assert set(caught.value.body["error"]) == {"message", "type", "param", "code"}


def test_unknown_fields_are_ignored() -> None:
    assert chat(seed=3, logit_bias={}).model == "deepseek-flash"


def test_thinking_is_on_unless_it_is_switched_off() -> None:
    assert compose(chat(), Step(), cached_prefix=False).thought
    assert not compose(chat(**NO_THINKING), Step(), cached_prefix=False).thought


def test_every_answer_says_that_it_is_simulated_even_a_scripted_one() -> None:
    for step in (Step(), Step(text="It is warm.")):
        answer = compose(chat(**NO_THINKING), step, cached_prefix=False)
        assert answer.text.startswith("[simulated cloud answer] ")


def test_an_answer_never_repeats_the_prompt() -> None:
    turns = [{"role": "user", "content": "xyzzy"}]
    assert "xyzzy" not in compose(chat(messages=turns), Step(), cached_prefix=False).text


def test_the_token_limit_cuts_the_answer_and_says_so() -> None:
    answer = compose(chat(max_tokens=5, **NO_THINKING), Step(), cached_prefix=False)
    assert count_tokens(answer.text) == 5
    assert answer.finish == "length"
    assert answer.usage["completion_tokens"] == 5


def test_thoughts_use_the_token_limit_up_first() -> None:
    answer = compose(chat(max_tokens=5), Step(), cached_prefix=False)
    assert (answer.text, answer.finish) == ("", "length")


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it() -> None:
    step = Step(text="one two three")
    answer = compose(chat(stop=["two", "three"], **NO_THINKING), step, cached_prefix=False)
    assert answer.text == "[simulated cloud answer] one "
    assert answer.finish == "stop"


@pytest.mark.parametrize("cached", [False, True])
def test_a_known_system_prompt_is_billed_as_a_cache_hit(*, cached: bool) -> None:
    usage = compose(chat(), Step(), cached_prefix=cached).usage
    assert usage["prompt_cache_hit_tokens"] == (count_tokens("Be brief.") if cached else 0)
    assert (
        usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"]
        == usage["prompt_tokens"]
    )


def test_json_mode_answers_json() -> None:
    turns = [{"role": "user", "content": "as json"}]
    asked = chat(messages=turns, response_format={"type": "json_object"}, **NO_THINKING)
    said = msgspec.json.decode(compose(asked, Step(), cached_prefix=False).text)
    assert said == {"simulated": True, "received_chars": 7}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_the_command_refuses_to_listen_beyond_this_machine(host: str) -> None:
    result = CliRunner().invoke(simulate_cloud, ["--host", host])
    assert result.exit_code == 2
    assert "--allow-remote" in result.output


def test_the_command_names_what_is_wrong_with_a_script_file(tmp_path: Any) -> None:
    path = tmp_path / "script.toml"
    path.write_text("[[step]]\nstatus = 200\n")
    result = CliRunner().invoke(simulate_cloud, ["--script", str(path)])
    assert result.exit_code == 2
    assert "step[0].status" in result.output
