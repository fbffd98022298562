"""Text to tokens and back, with nothing added and nothing lost."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from models.checkpoints.chat import PromptEncoder, bind_first_token, check_text_parts, render_prompt
from models.checkpoints.checkpoint import TextParts
from models.checkpoints.tiny import (
    CHAT_TEMPLATE,
    MERGES,
    SPECIAL_TOKENS,
    STOP_TOKEN,
    tiny_vocabulary,
)
from models.checkpoints.tokenizer import GgufVocabulary, build_tokenizer_json
from models.errors import CheckpointError
from tests.unit import byte_fallback as spm

_VOCABULARY = GgufVocabulary(
    tokens=tiny_vocabulary(),
    kinds=[3] * len(SPECIAL_TOKENS) + [1] * (len(tiny_vocabulary()) - len(SPECIAL_TOKENS)),
    merges=list(MERGES),
    pre_tokenizer="smollm",
)
_JSON = build_tokenizer_json(_VOCABULARY)
_TOKENIZER = Tokenizer.from_str(_JSON)
_TEXT = TextParts(tokenizer_json=_JSON, chat_template=CHAT_TEMPLATE, stop_tokens=(STOP_TOKEN,))


@given(st.text())
def test_any_text_comes_back_unchanged(text: str) -> None:
    ids = _TOKENIZER.encode(text).ids
    assert _TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_digits_are_single_tokens_even_where_a_merge_would_join_them() -> None:
    assert "12" in tiny_vocabulary()
    assert _TOKENIZER.encode("12").tokens == ["1", "2"]


def test_merges_are_applied() -> None:
    assert _TOKENIZER.encode("in the").tokens == ["i", "n", "Ġthe"]


def test_special_tokens_are_one_token_and_can_be_left_out_of_the_text() -> None:
    ids = _TOKENIZER.encode("<|im_start|>a<|im_end|>").ids
    assert (ids[0], ids[-1]) == (1, 2)
    assert _TOKENIZER.decode(ids, skip_special_tokens=True) == "a"


def test_nothing_is_added_before_or_after() -> None:
    assert _TOKENIZER.encode("").ids == []
    assert len(_TOKENIZER.encode("x").ids) == 1


def test_an_unknown_pre_tokenizer_is_refused_by_name() -> None:
    odd = GgufVocabulary(tokens=["a"], kinds=[1], merges=[], pre_tokenizer="qwen99")
    with pytest.raises(CheckpointError, match="qwen99"):
        build_tokenizer_json(odd)


def test_merges_of_unknown_tokens_are_refused() -> None:
    odd = GgufVocabulary(tokens=["a"], kinds=[1], merges=["a b"], pre_tokenizer="smollm")
    with pytest.raises(CheckpointError, match="do not fit"):
        build_tokenizer_json(odd)


def test_a_prompt_is_the_template_in_tokens() -> None:
    ids = PromptEncoder(_TEXT).encode("hi")
    assert _TOKENIZER.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "template", ["{{ messages", "{{ messages.__class__.__mro__ }}", "{{ undefined_function() }}"]
)
def test_a_broken_or_hostile_template_is_refused(template: str) -> None:
    with pytest.raises(CheckpointError, match="does not render"):
        render_prompt(template, (("user", "hi"),))


def test_a_template_that_drops_the_question_is_refused() -> None:
    with pytest.raises(CheckpointError, match="drops"):
        check_text_parts(
            TextParts(tokenizer_json=_JSON, chat_template="hello", stop_tokens=(STOP_TOKEN,))
        )


def test_a_stop_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(CheckpointError, match="stop token"):
        check_text_parts(
            TextParts(tokenizer_json=_JSON, chat_template=CHAT_TEMPLATE, stop_tokens=(99_999,))
        )


@pytest.mark.parametrize(
    ("pre_tokenizer", "digits"),
    [("qwen2", ["1", "2", "3", "4"]), ("llama-bpe", ["123", "4"]), ("gpt-2", ["1234"])],
)
def test_each_family_lets_its_own_number_of_digits_stand_together(
    pre_tokenizer: str, digits: list[str]
) -> None:
    merges = ["1 2", "12 3", "123 4"]
    tokens = [*sorted(ByteLevel.alphabet()), "12", "123", "1234"]
    vocabulary = GgufVocabulary(
        tokens=tokens, kinds=[1] * len(tokens), merges=merges, pre_tokenizer=pre_tokenizer
    )
    assert Tokenizer.from_str(build_tokenizer_json(vocabulary)).encode("1234").tokens == digits


def test_a_word_that_is_a_token_is_taken_whole_by_llama_3_only() -> None:
    tokens = [*sorted(ByteLevel.alphabet()), "word"]
    found = {
        name: Tokenizer.from_str(
            build_tokenizer_json(
                GgufVocabulary(
                    tokens=tokens, kinds=[1] * len(tokens), merges=[], pre_tokenizer=name
                )
            )
        )
        .encode("word")
        .tokens
        for name in ("llama-bpe", "qwen2")
    }
    assert found == {"llama-bpe": ["word"], "qwen2": ["w", "o", "r", "d"]}


def test_a_template_that_writes_the_first_token_is_given_it() -> None:
    bound = bind_first_token("{{ bos_token }}{{ messages[0].content }}", "<bos>")
    assert render_prompt(bound, (("user", "hi"),)) == "<bos>hi"
    assert bind_first_token(CHAT_TEMPLATE, "<bos>") == CHAT_TEMPLATE


def test_a_tokenizer_that_drops_the_space_of_a_first_token_is_refused() -> None:
    """An answer is told token by token: each of them would lose its space."""
    kinds = [1 if kind == 4 else kind for kind in spm.VOCABULARY.kinds]
    plain = msgspec.structs.replace(spm.VOCABULARY, kinds=kinds)
    prefixed = json.loads(build_tokenizer_json(plain))
    prefixed["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": spm.SPACE}, prefixed["normalizer"]],
    }
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    prefixed["decoder"]["decoders"].append(strip)
    text = TextParts(
        tokenizer_json=json.dumps(prefixed), chat_template=CHAT_TEMPLATE, stop_tokens=(2,)
    )
    with pytest.raises(CheckpointError, match="beginning"):
        check_text_parts(text)
