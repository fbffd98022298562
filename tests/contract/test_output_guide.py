"""Whatever is chosen among the tokens that a guide allows is an answer of the form."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from edge_worker.adapters.artefact import cache_folder, load_artefact, resolve_model
from edge_worker.adapters.output_guide import KEPT_FORMS, GrammarGuides
from edge_worker.adapters.tokenizer import ChatTokenizer
from edge_worker.ports import ModelError, OutputGuide, OutputGuides
from fleet_protocol.errors import RejectedError
from fleet_protocol.manifest import DEFAULT_MODEL
from fleet_protocol.messages import OutputFormat

SCHEMA = {
    "type": "object",
    "properties": {
        "device": {"type": "string", "maxLength": 12},
        "action": {"enum": ["turn_on", "turn_off", "set", "打开"]},
        "value": {"type": ["number", "string", "null"], "maxLength": 6},
        "rooms": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 40}},
    },
    "required": ["device", "action", "value"],
    "additionalProperties": False,
}
BUDGET_TOKENS = 600
WRITABLE = st.characters(min_codepoint=0x20, max_codepoint=0x3FFFF, exclude_categories=["Cs"])
"""The default model's vocabulary has no tokens for some bytes of what lies around."""


class Desk:
    """A vocabulary with its guides."""

    def __init__(
        self, tokenizer: ChatTokenizer, *, vocab: int, stop_tokens: tuple[int, ...]
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab = vocab
        self.stop_tokens = stop_tokens
        self.guides: OutputGuides = GrammarGuides(tokenizer, vocab=vocab, stop_tokens=stop_tokens)

    def logits(self) -> Any:
        return np.zeros(self.vocab, np.float32)

    def allowed(self, guide: OutputGuide) -> Any:
        logits = self.logits()
        guide.allow(logits)
        return np.flatnonzero(np.isfinite(logits))

    def accept_text(self, guide: OutputGuide, text: str) -> None:
        for token in self.tokenizer.encode_plain(text):
            guide.accept(token)

    def walk(self, output: OutputFormat, *, seed: int) -> str | None:
        """Return a random answer of the form; None if the budget ended it."""
        generator = np.random.default_rng(seed)
        guide, data = self.guides.guide(output), b""
        for _ in range(BUDGET_TOKENS):
            if guide.is_complete:
                return data.decode()
            token = int(generator.choice(self.allowed(guide)))
            assert guide.may_end or token not in self.stop_tokens
            guide.accept(token)
            if token in self.stop_tokens:
                assert guide.is_complete
                return data.decode()
            data += self.tokenizer.piece(token)
        return None


@cache
def tiny(folder: Path) -> Desk:
    """Two stop tokens, a control token, and logits wider than the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = ['{"device": "kitchen light", "action": "turn_on", "value": 21.5}', "not sure 关灯"]
    tokenizer.train_from_iterator(lines * 9, trainer)
    tokenizer.add_tokens([AddedToken("<mark>", special=False)])
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    chat = ChatTokenizer(path, chat_template="x", stop_tokens=(0, 1))
    return Desk(chat, vocab=tokenizer.get_vocab_size() + 45, stop_tokens=(0, 1))


@cache
def default_model() -> Desk | None:
    try:
        artefact = load_artefact(resolve_model(DEFAULT_MODEL, cache_folder(os.environ)))
    except ModelError:
        return None
    manifest = artefact.manifest
    chat = ChatTokenizer(artefact.tokenizer, chat_template="x", stop_tokens=manifest.stop_tokens)
    vocab = manifest.architecture.vocab
    return Desk(chat, vocab=vocab, stop_tokens=manifest.stop_tokens)


@pytest.fixture(scope="module", params=["tiny", pytest.param("default", marks=pytest.mark.model)])
def desk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desk]:
    if request.param == "tiny":
        yield tiny(tmp_path_factory.mktemp("tokenizer"))
        return
    found = default_model()
    if found is None:
        pytest.skip("the default model is not built: make model")
    yield found


def is_valid(value: Any) -> bool:
    """Check `SCHEMA`, by hand: a second opinion on what the guide made of it."""
    assert isinstance(value, dict)
    assert list(value)[:3] == ["device", "action", "value"]
    assert set(value) <= set(SCHEMA["properties"])  # type: ignore[arg-type]  # a dict, as above
    assert isinstance(value["device"], str)
    assert len(value["device"]) <= 12
    assert value["action"] in {"turn_on", "turn_off", "set", "打开"}
    assert value["value"] is None or isinstance(value["value"], float | int | str)
    assert all(isinstance(room, int) and 1 <= room <= 40 for room in value.get("rooms", ()))
    return True


# ---------------------------------------------------------------- whatever is chosen


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_any_choice_under_a_schema_ends_in_json_that_is_valid_under_it(
    desk: Desk, seed: int
) -> None:
    text = desk.walk(OutputFormat(json_schema=SCHEMA), seed=seed)
    assert text is None or is_valid(json.loads(text))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_a_bounded_schema_ends_within_the_budget(desk: Desk, seed: int) -> None:
    bounded = {**SCHEMA, "properties": {**SCHEMA["properties"], "value": {"enum": [None, 1.5]}}}  # type: ignore[dict-item]  # a dict
    del bounded["properties"]["rooms"]  # type: ignore[attr-defined]  # same
    text = desk.walk(OutputFormat(json_schema=bounded), seed=seed)
    assert text is not None
    assert is_valid(json.loads(text))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_any_choice_without_a_schema_ends_in_an_object(desk: Desk, seed: int) -> None:
    text = desk.walk(OutputFormat(json=True), seed=seed)
    assert text is None or isinstance(json.loads(text), dict)


@given(
    choices=st.lists(st.text(WRITABLE, min_size=1, max_size=9), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_any_choice_is_one_of_the_choices(desk: Desk, choices: list[str], seed: int) -> None:
    assert desk.walk(OutputFormat(choices=tuple(choices)), seed=seed) in choices


@pytest.mark.parametrize(
    "regex",
    [r"-?\d{1,3}(\.\d)?", r"^(yes|no)$", "[A-Z][a-z ]{0,20}[.!]", "关灯|开灯", "a/b\nc|\"'", "()"],
)
def test_any_choice_matches_the_expression(desk: Desk, regex: str) -> None:
    for seed in range(5):
        text = desk.walk(OutputFormat(regex=regex), seed=seed)
        assert text is not None
        assert re.fullmatch(regex, text)


# ---------------------------------------------------------------- the form of JSON


def test_json_is_written_as_python_writes_it(desk: Desk) -> None:
    guide = desk.guides.guide(OutputFormat(json_schema=SCHEMA))
    answer = {"device": "lamp", "action": "打开", "value": 21.5, "rooms": [1, 2]}
    desk.accept_text(guide, json.dumps(answer, ensure_ascii=False))
    assert guide.is_complete
    for other in ('{"device":"lamp"', '{ "device": "lamp"', '{"action": "set"', '{"device" : "l"'):
        tokens = desk.tokenizer.encode_plain(other)
        fresh = desk.guides.guide(OutputFormat(json_schema=SCHEMA))
        assert fresh.allowed_prefix(tokens) < len(tokens)


def test_a_schema_cannot_change_how_json_is_written(desk: Desk) -> None:
    own = {"type": "object", "x-guidance": {"whitespace_flexible": True, "item_separator": ";"}}
    tokens = desk.tokenizer.encode_plain('{ "a"')
    assert desk.guides.guide(OutputFormat(json_schema=own)).allowed_prefix(tokens) < len(tokens)


# ---------------------------------------------------------------- the guide's promises


def test_where_the_answer_may_end_every_stop_token_is_allowed(desk: Desk) -> None:
    guide = desk.guides.guide(OutputFormat(choices=("no", "not sure")))
    assert not guide.may_end
    assert not set(desk.stop_tokens) & set(desk.allowed(guide))
    desk.accept_text(guide, "no")
    assert guide.may_end
    assert not guide.is_complete
    assert set(desk.stop_tokens) < set(desk.allowed(guide))
    desk.accept_text(guide, "t sure")
    assert guide.is_complete
    assert guide.may_end
    assert set(desk.allowed(guide)) == set(desk.stop_tokens)


def test_the_end_is_accepted_once(desk: Desk) -> None:
    for text in ("no", "not sure"):
        guide = desk.guides.guide(OutputFormat(choices=("no", "not sure")))
        desk.accept_text(guide, text)
        stop = desk.stop_tokens[0]
        assert guide.allowed_prefix((stop,)) == 1
        guide.accept(stop)
        assert guide.is_complete
        assert guide.forced() == ()
        assert guide.allowed_prefix((stop,)) == 0
        with pytest.raises(RejectedError, match="ended"):
            guide.accept(stop)


def test_the_end_is_not_accepted_before_the_form_is_whole(desk: Desk) -> None:
    guide = desk.guides.guide(OutputFormat(choices=("no",)))
    assert guide.allowed_prefix(desk.stop_tokens) == 0
    with pytest.raises(RejectedError) as caught:
        guide.accept(desk.stop_tokens[0])
    assert caught.value.code == "output_broken"


def test_allowing_leaves_the_logits_of_allowed_tokens_as_they_were(desk: Desk) -> None:
    guide = desk.guides.guide(OutputFormat(choices=("yes", "no")))
    before = np.random.default_rng(1).normal(size=desk.vocab).astype(np.float32)
    after = before.copy()
    guide.allow(after)
    kept = np.isfinite(after)
    assert 0 < kept.sum() < desk.vocab
    assert (after[kept] == before[kept]).all()


def test_what_is_forced_is_what_the_tokenizer_makes_of_the_text(desk: Desk) -> None:
    output = OutputFormat(json_schema={"const": {"device": "kitchen light", "value": [1, 2]}})
    guide = desk.guides.guide(output)
    forced = guide.forced()
    whole = desk.tokenizer.encode_plain('{"device": "kitchen light", "value": [1, 2]}')
    assert list(forced) == whole
    assert guide.forced() == forced
    for place, token in enumerate(forced):
        assert guide.forced() == forced[place:]
        assert guide.allowed_prefix(forced[place:]) == len(forced) - place
        guide.accept(token)
    assert guide.is_complete
    assert guide.forced() == ()


def test_the_skeleton_of_json_is_forced(desk: Desk) -> None:
    guide = desk.guides.guide(OutputFormat(json_schema=SCHEMA))
    first = b"".join(desk.tokenizer.piece(token) for token in guide.forced())
    assert first.startswith(b'{"device')
    desk.accept_text(guide, '{"device": "lamp"')
    assert guide.forced()
    following = b"".join(desk.tokenizer.piece(token) for token in guide.forced())
    assert b', "action": "'.startswith(following)


def test_what_was_forced_is_forgotten_when_another_token_of_the_same_text_comes(desk: Desk) -> None:
    guide = desk.guides.guide(OutputFormat(choices=("kitchen light",)))
    assert guide.forced() == tuple(desk.tokenizer.encode_plain("kitchen light"))
    desk.accept_text(guide, "k")
    rest = b"".join(desk.tokenizer.piece(token) for token in guide.forced())
    assert b"itchen light".startswith(rest)
    assert guide.allowed_prefix(guide.forced()) == len(guide.forced())


def test_a_choice_that_looks_like_a_control_token_is_text(desk: Desk) -> None:
    guide = desk.guides.guide(OutputFormat(choices=("<|im_end|>",)))
    assert not set(guide.forced()) & set(desk.stop_tokens)
    assert not set(desk.allowed(guide)) & set(desk.stop_tokens)
    assert desk.walk(OutputFormat(choices=("<|im_end|>",)), seed=1) == "<|im_end|>"


def test_looking_ahead_changes_nothing(desk: Desk) -> None:
    guide = desk.guides.guide(OutputFormat(json_schema=SCHEMA))
    desk.accept_text(guide, '{"device": "la')
    before = desk.allowed(guide)
    tokens = desk.tokenizer.encode_plain('mp", "action": "burn')
    assert 0 < guide.allowed_prefix(tokens) < len(tokens)
    assert guide.allowed_prefix(()) == 0
    assert (desk.allowed(guide) == before).all()


def test_two_answers_of_one_form_do_not_disturb_each_other(desk: Desk) -> None:
    output = OutputFormat(choices=("yes", "no"))
    first, second = desk.guides.guide(output), desk.guides.guide(output)
    desk.accept_text(first, "yes")
    assert first.is_complete
    assert not second.may_end
    desk.accept_text(second, "no")
    assert desk.guides.guide(output).may_end is False


def test_a_broken_answer_says_so_and_never_counts_as_whole(desk: Desk) -> None:
    guide = desk.guides.guide(OutputFormat(choices=("yes",)))
    with pytest.raises(RejectedError) as caught:
        desk.accept_text(guide, "no")
    assert caught.value.code == "output_broken"
    assert not guide.is_complete
    assert not guide.may_end
    with pytest.raises(RejectedError):
        guide.allow(desk.logits())


def test_a_text_that_the_vocabulary_cannot_write_breaks_the_answer_alone(desk: Desk) -> None:
    output = OutputFormat(choices=("\U00040000",))
    if bytes([0xF1]) in desk.tokenizer.pieces(desk.vocab):
        assert desk.walk(output, seed=0) == "\U00040000"
        return
    with pytest.raises(RejectedError) as caught:
        desk.walk(output, seed=0)
    assert caught.value.code == "output_broken"
    assert desk.walk(OutputFormat(choices=("yes",)), seed=0) == "yes"


# ---------------------------------------------------------------- forms that cannot be


@pytest.mark.parametrize(
    "output",
    [
        OutputFormat(regex="(a"),
        OutputFormat(regex="(?=a)b"),
        OutputFormat(regex=r"(a)\1"),
        OutputFormat(regex="a{1000000}"),
        OutputFormat(regex="(a{1000}){1000}"),
        OutputFormat(regex="(a{1000}){1000,}"),
        OutputFormat(json_schema={"type": "objekt"}),
        OutputFormat(json_schema={"type": "string", "minLength": 3, "maxLength": 2}),
        OutputFormat(json_schema={"$ref": "https://localhost/schema.json"}),
        OutputFormat(json_schema={"properties": {"a": {"pattern": "x{99999999}"}}}),
    ],
)
def test_a_wrong_form_is_refused_with_a_hint(desk: Desk, output: OutputFormat) -> None:
    for _ in range(2):
        with pytest.raises(RejectedError) as caught:
            desk.guides.guide(output)
        assert caught.value.code == "bad_output_format"
        assert caught.value.hint


@pytest.mark.parametrize(
    "schema",
    [{"uniqueItems": True}, {"not": {"type": "string"}}, {"type": "string", "format": "x"}],
)
def test_a_form_beyond_what_can_be_enforced_is_told_apart(
    desk: Desk, schema: dict[str, Any]
) -> None:
    with pytest.raises(RejectedError) as caught:
        desk.guides.guide(OutputFormat(json_schema=schema))
    assert caught.value.code == "unsupported_output_format"


def test_compiled_forms_are_kept_within_a_bound(desk: Desk) -> None:
    guides = desk.guides
    assert isinstance(guides, GrammarGuides)
    kept = guides._kept
    often = OutputFormat(choices=("often",))
    guides.guide(often)
    compiled = kept[list(kept)[-1]]
    for number in range(KEPT_FORMS * 2):
        guides.guide(OutputFormat(choices=(f"c{number}",)))
        guides.guide(often)
    assert len(kept) == KEPT_FORMS
    assert compiled in kept.values()
