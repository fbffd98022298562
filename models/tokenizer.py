"""A `tokenizers` tokenizer from the vocabulary and merges that a GGUF file carries."""

from __future__ import annotations

from typing import Final

import msgspec
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence

from models.errors import CheckpointError

_CONTROL: Final = 3
_USER_DEFINED: Final = 4


class GgufVocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """What `tokenizer.ggml.*` holds.

    Attributes:
        tokens: By id; byte-level characters.
        kinds: By id; 1 normal, 3 control, 4 user-defined.
        merges: "left right", the most frequent first.
        pre_tokenizer: llama.cpp's name of the rule that cuts text before merging.
    """

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    pre_tokenizer: str


def build_tokenizer_json(vocabulary: GgufVocabulary) -> str:
    """Return the JSON of a tokenizer that adds nothing by itself and loses nothing.

    No normaliser, no automatic first token: the chat template writes every special token.

    Raises:
        CheckpointError: The pre-tokenizer is not known, or vocabulary and merges disagree.
    """
    merges = [_pair(merge) for merge in vocabulary.merges]
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    try:
        tokenizer = Tokenizer(BPE(vocab=ids, merges=merges, fuse_unk=False, byte_fallback=False))
    except Exception as error:
        raise CheckpointError(
            f"its vocabulary and merges do not fit together: {error}", hint="fetch the file again"
        ) from error
    tokenizer.pre_tokenizer = _pre_tokenizer(vocabulary.pre_tokenizer)
    tokenizer.decoder = ByteLevelDecoder()
    named = list(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    tokenizer.add_special_tokens([_whole(text) for text, kind in named if kind == _CONTROL])
    tokenizer.add_tokens([_whole(text) for text, kind in named if kind == _USER_DEFINED])
    return str(tokenizer.to_str())


def _pre_tokenizer(name: str) -> PreTokenizer:
    """Return the rule of that name; the names are those of llama.cpp's converter."""
    if name == "smollm":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if name in {"gpt-2", "default"}:
        return ByteLevel(add_prefix_space=False)
    raise CheckpointError(
        f"its pre-tokenizer {name!r} is not known here",
        hint="use the Hugging Face checkpoint of the model (hf:org/name) instead",
    )


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _whole(text: str) -> AddedToken:
    return AddedToken(text, special=False, normalized=False)
