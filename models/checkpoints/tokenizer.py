"""A `tokenizers` tokenizer from the vocabulary that a GGUF file carries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from models.errors import CheckpointError

_NORMAL: Final = 1
_UNKNOWN: Final = 2
_CONTROL: Final = 3
_USER_DEFINED: Final = 4
_SPACE: Final = "\u2581"
"""What SentencePiece writes for a space."""
# How text is cut before merging, by how many digits may stand together. Source: `pretokenize_regex`
# in the tokenizer.json of Qwen2 (one) and Llama 3 (up to three).
_CUT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3: Final = frozenset({"llama-bpe", "llama3", "llama-v3"})


class GgufVocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """What `tokenizer.ggml.*` holds.

    Attributes:
        model: `gpt2` (byte-level BPE) or `llama` (SentencePiece's BPE, bytes as a fallback).
        tokens: By id; byte-level characters, or text with `\u2581` for spaces.
        kinds: By id; 1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte.
        merges: "left right", the most frequent first; `gpt2` only.
        scores: By id; what is merged first has the highest; `llama` only.
        pre_tokenizer: llama.cpp's name of the rule that cuts text before merging; `gpt2` only.
        adds_space: Text is tokenized with a space before it; `llama` only.
    """

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    pre_tokenizer: str
    model: str = "gpt2"
    scores: list[float] = []
    adds_space: bool = False


def build_tokenizer_json(vocabulary: GgufVocabulary) -> str:
    """Return the JSON of a tokenizer that adds nothing by itself and loses nothing.

    No automatic first token: the chat template writes every special token.

    Raises:
        CheckpointError: The kind of tokenizer is not known, or its parts disagree.
    """
    if vocabulary.model == "gpt2":
        tokenizer = _byte_level(vocabulary)
    elif vocabulary.model == "llama" and not vocabulary.adds_space:
        tokenizer = _byte_fallback(vocabulary)
    else:
        raise CheckpointError(
            f"its tokenizer {vocabulary.model!r} is not known here, or adds a space to every text",
            hint="take a model with a byte-level BPE tokenizer, or a Gemma 3",
        )
    named = list(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    silent = {_CONTROL, _UNKNOWN}
    tokenizer.add_special_tokens([_whole(text) for text, kind in named if kind in silent])
    # SentencePiece looks for them in text whose spaces are replaced already.
    is_replaced = vocabulary.model == "llama"
    tokenizer.add_tokens(
        [_whole(text, normalized=is_replaced) for text, kind in named if kind == _USER_DEFINED]
    )
    return str(tokenizer.to_str())


def _byte_level(vocabulary: GgufVocabulary) -> Tokenizer:
    model = _bpe(
        vocabulary,
        [_pair(merge) for merge in vocabulary.merges],
        # Llama 3 takes a word that is a token as it is, even where merges would not lead to it.
        ignore_merges=vocabulary.pre_tokenizer in _LLAMA3,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _pre_tokenizer(vocabulary.pre_tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_fallback(vocabulary: GgufVocabulary) -> Tokenizer:
    unknown = next(
        (
            text
            for text, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
            if kind == _UNKNOWN
        ),
        None,
    )
    tokenizer = Tokenizer(_bpe(vocabulary, list(_merges(vocabulary)), unk_token=unknown))
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _bpe(
    vocabulary: GgufVocabulary,
    merges: list[tuple[str, str]],
    *,
    ignore_merges: bool = False,
    unk_token: str | None = None,
) -> BPE:
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    falls_back = vocabulary.model == "llama"
    try:
        return BPE(
            vocab=ids,
            merges=merges,
            unk_token=unk_token,
            fuse_unk=falls_back,
            byte_fallback=falls_back,
            ignore_merges=ignore_merges,
        )
    except Exception as error:
        raise CheckpointError(
            f"its vocabulary and merges do not fit together: {error}", hint="fetch the file again"
        ) from error


def _merges(vocabulary: GgufVocabulary) -> Iterator[tuple[str, str]]:
    """Every way to join two tokens into a third, the best third first, as SentencePiece joins."""
    joined = [
        (score, index)
        for index, (kind, score) in enumerate(zip(vocabulary.kinds, vocabulary.scores, strict=True))
        if kind in {_NORMAL, _USER_DEFINED}
    ]
    known = {vocabulary.tokens[index] for _, index in joined}
    for _, index in sorted(joined, key=lambda item: (-item[0], item[1])):
        token = vocabulary.tokens[index]
        for cut in range(1, len(token)):
            if token[:cut] in known and token[cut:] in known:
                yield token[:cut], token[cut:]


def _pre_tokenizer(name: str) -> PreTokenizer:
    """Return the rule of that name; the names are those of llama.cpp's converter."""
    if name == "smollm":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if name in {"gpt-2", "default"}:
        return ByteLevel(add_prefix_space=False)
    digits = {"qwen2": "", **dict.fromkeys(_LLAMA3, "{1,3}")}.get(name)
    if digits is not None:
        cut = Split(Regex(_CUT.format(digits=digits)), behavior="isolated")
        return Sequence([cut, ByteLevel(add_prefix_space=False, use_regex=False)])
    raise CheckpointError(
        f"its pre-tokenizer {name!r} is not known here",
        hint="use the Hugging Face checkpoint of the model (hf:org/name) instead",
    )


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _whole(text: str, *, normalized: bool = False) -> AddedToken:
    return AddedToken(text, special=False, normalized=normalized)
