"""What the messages promise beyond their fields."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fleet_protocol import messages as m
from fleet_protocol.codec import decode, encode
from fleet_protocol.errors import ProtocolError
from fleet_protocol.topics import CATALOGUE, DONE, STATE, SUMMARY, Role


def test_a_submission_asks_one_thing() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        m.JobSubmit()
    with pytest.raises(ValueError, match="exactly one"):
        m.JobSubmit(prompt="x", messages=(m.ChatMessage(role=m.ChatRole.USER, content="x"),))


def test_a_prompt_is_a_conversation_of_one_turn() -> None:
    assert m.JobSubmit(prompt="hello").conversation == (
        m.ChatMessage(role=m.ChatRole.USER, content="hello"),
    )


def test_the_length_of_a_submission_counts_every_turn() -> None:
    turns = (
        m.ChatMessage(role=m.ChatRole.SYSTEM, content="abc"),
        m.ChatMessage(role=m.ChatRole.USER, content="de"),
    )
    assert m.JobSubmit(messages=turns).prompt_chars == 5
    assert m.Assignment(job="1", attempt=1, lease_ms=1, messages=turns).prompt_chars == 5


def test_how_to_generate_travels_with_the_submission() -> None:
    submit = m.JobSubmit(
        prompt="x", max_tokens=7, temperature=0.5, top_p=0.9, seed=3, stop=("END",)
    )
    assert submit.generation == m.Generation(
        max_tokens=7, temperature=0.5, top_p=0.9, seed=3, stop=("END",)
    )


def test_the_form_of_the_answer_travels_with_the_submission() -> None:
    output = m.OutputFormat(choices=("yes", "no"))
    assert m.JobSubmit(prompt="x", output=output).generation.output == output
    assert m.JobSubmit(prompt="x").generation.output is None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"json": False},
        {"json": True, "regex": "a"},
        {"choices": ("a",), "json_schema": {}},
        {"choices": ("a",), "regex": "a", "json": True, "json_schema": {}},
    ],
)
def test_an_answer_has_exactly_one_form(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        m.OutputFormat(**fields)


def test_an_empty_schema_is_a_form() -> None:
    assert m.OutputFormat(json_schema={}).is_json
    assert m.OutputFormat(json=True).is_json
    assert not m.OutputFormat(regex="a").is_json


@pytest.mark.parametrize("field", ["choices", "regex"])
def test_a_form_that_no_answer_could_have_is_refused(field: str) -> None:
    payload = msgspec.json.encode({field: [] if field == "choices" else ""})
    with pytest.raises(msgspec.ValidationError, match="length >= 1"):
        msgspec.json.decode(payload, type=m.OutputFormat)


def test_a_form_and_stop_texts_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="not both"):
        m.JobSubmit(prompt="x", output=m.OutputFormat(json=True), stop=("}",))


def test_a_schema_is_bounded_in_size() -> None:
    m.OutputFormat(json_schema={"description": "x" * (m.SCHEMA_MAX_BYTES - 30)})
    with pytest.raises(ValueError, match="at most 16384"):
        m.OutputFormat(json_schema={"description": "x" * m.SCHEMA_MAX_BYTES})


def test_a_schema_is_bounded_in_depth() -> None:
    def nested(levels: int) -> dict[str, Any]:
        return {} if levels == 1 else {"items": nested(levels - 1)}

    deepest = m.OutputFormat(json_schema=nested(64))
    generation = m.Generation(output=deepest)
    assignment = m.Assignment(job="1", attempt=1, lease_ms=1, messages=(), generation=generation)
    assert msgspec.json.decode(msgspec.json.encode(assignment), type=m.Assignment) == assignment
    with pytest.raises(ValueError, match="deeper than 64"):
        m.OutputFormat(json_schema=nested(65))


def test_a_schema_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        m.OutputFormat(json_schema={"enum": [object()]})


def test_a_schema_that_a_store_cannot_hold_is_refused() -> None:
    payload = b'{"json_schema": {"maximum": 123456789012345678901234567890}}'
    with pytest.raises(msgspec.ValidationError, match="cannot be written"):
        msgspec.json.decode(payload, type=m.OutputFormat)


def test_a_generation_of_an_earlier_release_has_no_form() -> None:
    assert msgspec.json.decode(b'{"max_tokens":3}', type=m.Generation) == m.Generation(max_tokens=3)
    assert b"output" not in msgspec.json.encode(m.JobSubmit(prompt="x"))


def test_a_reason_of_a_later_release_does_not_cost_the_result() -> None:
    said = b'{"v":1,"id":"j1","status":"ok","text":"21 C","reason":"too_purple"}'
    result = msgspec.json.decode(said, type=m.JobResult)
    assert (result.text, result.reason) == ("21 C", m.Reason.LOCAL_ERROR)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"v":1,"attempt":1,"reason":7}', type=m.Escalation)


def test_exactly_four_states_are_final() -> None:
    final = {status for status in m.JobStatus if status.is_final}
    assert final == {"ok", "failed", "cancelled", "expired"}


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        m.JobSubmit(prompt="x").prompt = "y"  # type: ignore[misc]  # what must not work


def test_every_message_type_has_a_channel() -> None:
    carried = {kind for channel in CATALOGUE for kind in (channel.message, *channel.also)}
    assert set(m.Message.__subclasses__()) == carried


def test_every_message_says_a_version_and_bounds_its_texts() -> None:
    for kind in m.Message.__subclasses__():
        fields = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
        assert fields["v"]["default"] == m.PROTOCOL_VERSION
    for name in ("text",):
        schema = msgspec.json.schema(m.JobResult)["$defs"]["JobResult"]["properties"][name]
        assert schema["maxLength"] == m.TEXT_MAX_CHARS


def _unbounded(kind: msgspec.inspect.Type, place: str, seen: set[type]) -> list[str]:
    """Name the numbers in a type that may be as large as somebody likes."""
    match kind:
        case msgspec.inspect.StructType(cls=cls, fields=fields) if cls not in seen:
            seen.add(cls)
            named = [(f.type, f"{cls.__name__}.{f.encode_name}") for f in fields if f.name != "v"]
        case (
            msgspec.inspect.IntType(le=None, lt=None) | msgspec.inspect.FloatType(le=None, lt=None)
        ):
            return [place]
        case msgspec.inspect.UnionType(types=types):
            named = [(one, place) for one in types]
        case msgspec.inspect.VarTupleType(item_type=item):
            named = [(item, place)]
        case msgspec.inspect.DictType(value_type=value):
            named = [(value, place)]
        case _:
            named = []
    return [found for one, where in named for found in _unbounded(one, where, seen)]


def test_no_number_that_somebody_says_to_the_dispatcher_is_without_bound() -> None:
    seen = set[type]()
    heard = [channel for channel in CATALOGUE if Role.DISPATCHER in channel.receivers]
    found = [
        place
        for channel in heard
        for place in _unbounded(msgspec.inspect.type_info(channel.message), "", seen)
    ]
    assert m.Usage in seen
    # The dispatcher adds it to nothing and keeps it nowhere; a board may have a broken sensor.
    assert [place for place in found if place != "WorkerState.temp_c"] == []


def test_a_number_that_no_store_could_keep_is_refused_at_the_door() -> None:
    said = b'{"attempt":1,"answer":{"text":"x","model":"m","usage":{"prompt_tokens":%d}}}'
    decode(DONE, said % (2**53 - 1))
    for tokens in (2**53, 2**64, 10**400):
        with pytest.raises(ProtocolError, match="prompt_tokens"):
            decode(DONE, said % tokens)


def test_what_boards_measure_has_a_sum_that_can_be_told() -> None:
    said = b'{"ts":1,"seq":1,"status":"idle","cpu_pct":1,"mem_pct":1,"inflight":1,"tok_s":%s}'
    state = decode(STATE, said % b"1e9")
    assert isinstance(state, m.WorkerState)
    summary = m.FleetSummary(at_ms=1, tok_s=1_000_000 * state.tok_s)
    assert decode(SUMMARY, encode(summary)) == summary
    for tok_s in (b"1.1e9", b"1.7e308"):
        with pytest.raises(ProtocolError, match="tok_s"):
            decode(STATE, said % tok_s)


@pytest.mark.parametrize("good", ["a", "A-Z_09", "x" * 36, "01J0000000000000000000000Z"])
def test_an_id_is_letters_digits_dash_and_underscore(good: str) -> None:
    assert msgspec.convert(good, m.Id) == good


@pytest.mark.parametrize("bad", ["", "a/b", "a+b", "#", "a b", "ä", "x" * 37, "a\n", "a\x00"])
def test_an_id_is_nothing_else(bad: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(bad, m.Id)
