"""What goes over the wire comes out the same, and nothing else can hurt a receiver."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_protocol.codec import decode, decode_as, encode
from fleet_protocol.errors import ProtocolError
from fleet_protocol.messages import JobSubmit, Message, PlainText
from fleet_protocol.topics import ASK, CATALOGUE, Channel
from tests.property.message_strategies import MESSAGES, messages_of

CODES = {"too_large", "malformed", "invalid_field", "unsupported_version"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@pytest.mark.parametrize("kind", [kind for kind in MESSAGES if kind is not PlainText])
def test_every_message_comes_out_as_it_went_in(kind: type[Message]) -> None:
    @settings(max_examples=25)
    @given(messages_of(kind))
    def check(message: Message) -> None:
        assert decode_as(kind, encode(message)) == message

    check()


@given(messages_of(PlainText))
def test_plain_text_is_the_text_itself(message: Message) -> None:
    assert isinstance(message, PlainText)
    assert encode(message) == message.text.encode()


@pytest.mark.parametrize("channel", CATALOGUE, ids=lambda channel: channel.name)
def test_no_bytes_do_more_than_raise_a_protocol_error(channel: Channel) -> None:
    @settings(max_examples=40)
    @given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
    def check(payload: bytes) -> None:
        try:
            message = decode(channel, payload)
        except ProtocolError as error:
            assert error.code in CODES  # noqa: PT017  # any other exception fails the test
        else:
            assert isinstance(message, Message)

    check()


@given(st.sampled_from(MESSAGES).flatmap(messages_of), st.data())
def test_a_damaged_message_does_no_more_than_raise_a_protocol_error(
    message: Message, data: st.DataObject
) -> None:
    payload = bytearray(encode(message) or b"x")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        decode_as(type(message), bytes(payload))


@given(st.text(min_size=1).filter(lambda text: text.strip() and text.lstrip()[0] != "{"))
def test_any_question_in_plain_text_becomes_a_job(text: str) -> None:
    message = decode(ASK, text.encode("utf-8", "ignore") or b"x")
    assert isinstance(message, JobSubmit)
    assert message.prompt
