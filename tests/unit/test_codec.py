"""Bytes to message and back: bad payloads become a ProtocolError with a code."""

from __future__ import annotations

import pytest

from fleet_protocol import topics
from fleet_protocol.codec import content_type, decode, decode_as, encode
from fleet_protocol.errors import ProtocolError
from fleet_protocol.messages import (
    JobAck,
    JobDone,
    JobSubmit,
    LocalAnswer,
    PlainText,
    Presence,
    WorkerState,
)
from fleet_protocol.topics import CATALOGUE, Channel

JSON_CHANNELS = [channel for channel in CATALOGUE if not channel.text]


def refused(channel: Channel, payload: bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        decode(channel, payload)
    return caught.value


@pytest.mark.parametrize("channel", JSON_CHANNELS, ids=lambda channel: channel.name)
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b" ",
        b"hello",
        b"{",
        b'{"v":1',
        b"\x00\x01\x02",
        b"\xff\xfe{}",
        b"{'v':1}",
        b"NaN",
        b'{"a":' * 3_000,
    ],
)
def test_what_is_not_json_is_malformed(channel: Channel, payload: bytes) -> None:
    assert refused(channel, payload).code == "malformed"


@pytest.mark.parametrize(
    "payload",
    [
        b'{"prompt":"x"}}',
        b'{"prompt":"\xff\xfe"}',
        b'{"prompt":"\xed\xa0\x80"}',
        b'{"prompt":"a\x01"}',
    ],
)
def test_a_submission_that_goes_wrong_half_way_is_malformed(payload: bytes) -> None:
    assert refused(topics.SUBMIT, payload).code == "malformed"


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"messages":[', b'[{"a":'])
def test_no_depth_of_nesting_is_deep_enough_to_hurt(opening: bytes) -> None:
    payload = opening * (topics.SUBMIT.max_bytes // len(opening))
    assert refused(topics.SUBMIT, payload).code in {"malformed", "invalid_field"}


@pytest.mark.parametrize("channel", JSON_CHANNELS, ids=lambda channel: channel.name)
@pytest.mark.parametrize("first", ["", '"v":7,', '"v":"x",', '"prompt":5,', '"attempt":"x",'])
@pytest.mark.parametrize("nest", ['{"a":', "["])
def test_nesting_behind_a_field_that_is_wrong_hurts_no_more(
    channel: Channel, first: str, nest: str
) -> None:
    payload = f'{{{first}"strange":{nest * 2_000}'.encode()
    assert refused(channel, payload).code


@pytest.mark.parametrize("channel", JSON_CHANNELS, ids=lambda channel: channel.name)
@pytest.mark.parametrize("payload", [b"[]", b"null", b"1", b'"text"', b"true"])
def test_json_that_is_no_object_is_invalid(channel: Channel, payload: bytes) -> None:
    assert refused(channel, payload).code == "invalid_field"


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b'{"prompt":""}',
        b'{"prompt":7}',
        b'{"prompt":null}',
        b'{"prompt":"x","messages":[{"role":"user","content":"x"}]}',
        b'{"messages":[]}',
        b'{"messages":[{"role":"robot","content":"x"}]}',
        b'{"prompt":"x","max_tokens":0}',
        b'{"prompt":"x","max_tokens":"64"}',
        b'{"prompt":"x","max_tokens":1.5}',
        b'{"prompt":"x","deadline_ms":-1}',
        b'{"prompt":"x","deadline_ms":0}',
        b'{"prompt":"x","deadline_ms":1e99}',
        b'{"prompt":"x","priority":10}',
        b'{"prompt":"x","temperature":-0.1}',
        b'{"prompt":"x","top_p":0}',
        b'{"prompt":"x","escalate":"maybe"}',
        b'{"prompt":"x","privacy":""}',
        b'{"prompt":"x","stop":[""]}',
        b'{"prompt":"x","stop":"end"}',
        b'{"prompt":"x","seed":-1}',
        b'{"prompt":"x","v":"1"}',
    ],
)
def test_a_submission_with_a_field_that_cannot_be_is_invalid(payload: bytes) -> None:
    error = refused(topics.SUBMIT, payload)
    assert error.code == "invalid_field"
    assert str(error)


@pytest.mark.parametrize("channel", CATALOGUE, ids=lambda channel: channel.name)
def test_a_payload_beyond_the_channels_bound_is_too_large(channel: Channel) -> None:
    error = refused(channel, b" " * (channel.max_bytes + 1))
    assert error.code == "too_large"
    assert error.hint


@pytest.mark.parametrize("payload", [b'{"v":2}', b'{"v":2,"prompt":{"new":"shape"}}', b'{"v":0}'])
def test_a_version_we_do_not_speak_is_named_before_anything_else(payload: bytes) -> None:
    assert refused(topics.SUBMIT, payload).code == "unsupported_version"


def test_a_newer_version_of_a_valid_shape_is_not_guessed_at() -> None:
    assert refused(topics.SUBMIT, b'{"v":2,"prompt":"x"}').code == "unsupported_version"


def test_unknown_fields_are_ignored() -> None:
    message = decode(topics.SUBMIT, b'{"prompt":"x","colour":"red","nested":{"a":[1]}}')
    assert message == JobSubmit(prompt="x")


def test_a_nul_inside_a_text_is_a_character_like_others() -> None:
    assert decode(topics.SUBMIT, b'{"prompt":"a\\u0000b"}') == JobSubmit(prompt="a\x00b")


def test_a_lone_surrogate_does_not_get_through() -> None:
    try:
        message = decode(topics.SUBMIT, b'{"prompt":"\\ud800"}')
    except ProtocolError:
        return
    assert encode(message)


def test_numbers_too_big_for_a_field_are_invalid() -> None:
    payload = b'{"prompt":"x","max_tokens":' + b"9" * 400 + b"}"
    assert refused(topics.SUBMIT, payload).code in {"invalid_field", "malformed"}


@pytest.mark.parametrize(
    ("payload", "prompt"),
    [
        (b"hello", "hello"),
        (b"  hello \n", "hello"),
        ("grüß dich".encode(), "grüß dich"),
        (b'{"prompt":"json"}', "json"),
        (b' {"prompt":"json"}', "json"),
        (b"[1,2]", "[1,2]"),
    ],
)
def test_a_question_may_be_plain_text_or_json(payload: bytes, prompt: str) -> None:
    message = decode(topics.ASK, payload)
    assert isinstance(message, JobSubmit)
    assert message.prompt == prompt


@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"", "invalid_field"), (b" \n", "invalid_field"), (b"\xff\xfe", "malformed")],
)
def test_a_question_that_says_nothing_is_refused(payload: bytes, code: str) -> None:
    assert refused(topics.ASK, payload).code == code


def test_an_answer_in_plain_text_keeps_its_white_space() -> None:
    assert decode(topics.ANSWER, b" as it is\n") == PlainText(text=" as it is\n")


def test_a_missing_required_field_is_invalid() -> None:
    assert refused(topics.PRESENCE, b'{"status":"online"}').code == "invalid_field"
    assert refused(topics.DONE, b'{"attempt":1}').code == "invalid_field"


def test_the_content_type_tells_text_from_json() -> None:
    assert content_type(PlainText(text="x")).startswith("text/plain")
    assert content_type(JobAck(status="accepted")) == "application/json"  # type: ignore[arg-type]  # any message will do


@pytest.mark.parametrize("bad", [b'"nan"', b"1e999", b"-1"])
def test_a_measure_is_a_finite_positive_number(bad: bytes) -> None:
    payload = b'{"ts":1,"seq":0,"status":"idle","cpu_pct":' + bad + b',"mem_pct":1,"inflight":0}'
    with pytest.raises(ProtocolError):
        decode_as(WorkerState, payload)


def test_a_submission_is_small_and_says_only_what_differs() -> None:
    assert encode(JobSubmit(prompt="hi")) == b'{"prompt":"hi"}'


def test_presence_and_results_always_say_their_version() -> None:
    assert b'"v":1' in encode(Presence(status="online", boot="b1"))  # type: ignore[arg-type]  # any message will do
    answer = LocalAnswer(text="x", model="m")
    assert b'"v":1' in encode(JobDone(attempt=1, answer=answer))
