"""Answers held to a JSON schema, choices or an expression, by llguidance.

llguidance walks the vocabulary's trie with a parser of the form: what a token may do is exact to
the byte, and costs a fraction of a millisecond. It is loaded with the first answer that needs it
(13 MB, about 0.3 s): most workers never do.

JSON has one form only, that of Python's `json.dumps`: one line, ", " between values, ": " after a
key, properties in the schema's order. A small model then has no white space to lose itself in, and
equal answers are equal texts.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Final, assert_never

import msgspec
import numpy as np
import numpy.typing as npt

from edge_worker.core.sampling import Float32Array
from edge_worker.ports import OutputGuide
from fleet_protocol.errors import RejectedError
from fleet_protocol.messages import OutputFormat

if TYPE_CHECKING:
    import llguidance
    from llguidance._lib import JsonCompileOptions

    from edge_worker.adapters.tokenizer import ChatTokenizer

KEPT_FORMS: Final = 32
"""Compiled forms that are kept, the least recently used goes first: at most 1 MB each."""
FORCED_MOST: Final = 256
"""Longest run of forced tokens that is told at once."""
REPEATS_MOST: Final = 65_536
"""Most repetitions an expression may count: `a{1000000}` would be unrolled, second after second."""

_JSON_STYLE: Final[JsonCompileOptions] = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "lenient": False,
}
_ANY_OBJECT: Final = {"type": "object"}
_BEYOND: Final = re.compile(
    r"Unimplemented|Unknown format|too (?:many|large|complex)|[Ll]imit|fuel"
)
"""Messages of llguidance about forms that are right, but more than it can hold an answer to."""
_COUNT: Final = re.compile(r"\{(\d{1,18})(?:,(\d{0,18}))?\}")
_ERROR_CHARS: Final = 300


class GrammarGuides:
    """`OutputGuides` for the vocabulary of one model."""

    def __init__(self, tokenizer: ChatTokenizer, *, vocab: int, stop_tokens: Sequence[int]) -> None:
        """`vocab` is the width of the model's logits, which may exceed the tokenizer's."""
        self._tokenizer = tokenizer
        self._vocab = vocab
        self._stop_tokens = tuple(stop_tokens)
        self._loaded: llguidance.LLTokenizer | None = None
        self._kept: OrderedDict[bytes, llguidance.LLMatcher] = OrderedDict()

    def __repr__(self) -> str:
        return f"GrammarGuides(loaded={self._loaded is not None}, kept={len(self._kept)})"

    def guide(self, output: OutputFormat) -> OutputGuide:
        """Return a guide at the beginning of an answer.

        Raises:
            RejectedError: `bad_output_format` or `unsupported_output_format`.
        """
        key = msgspec.json.encode(output)
        matcher = self._kept.get(key)
        if matcher is None:
            matcher = self._kept[key] = self._compile(output)
            if len(self._kept) > KEPT_FORMS:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        return _GrammarGuide(matcher.deep_copy(), vocab=self._vocab, stop_tokens=self._stop_tokens)

    def _compile(self, output: OutputFormat) -> llguidance.LLMatcher:
        try:
            from llguidance import LLMatcher, LLParserLimits  # noqa: PLC0415 - see the module
        except ImportError as error:
            raise RejectedError(
                f"what holds answers to a form is not installed: {error}",
                code="unsupported_output_format",
                hint="pip install 'edgefleet[edge]' on the worker",
            ) from error
        _check_repeats(output)
        if self._loaded is None:
            self._loaded = self._load()
        # Not verbose: its errors would quote the answer.
        limits = LLParserLimits(max_grammar_size=50_000, verbose_errors=False)
        matcher = LLMatcher(self._loaded, _grammar(output), log_level=0, limits=limits)
        if matcher.is_error():
            raise _refusal(matcher.get_error())
        return matcher

    def _load(self) -> llguidance.LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper  # noqa: PLC0415 - see the module

        words = _Words(self._tokenizer, vocab=self._vocab, stop_tokens=self._stop_tokens)
        wrapper = TokenizerWrapper(words)
        # Without slices of the vocabulary: they would halve the time of a mask, for 10 MB.
        loaded = LLTokenizer(wrapper, eos_token=list(self._stop_tokens), slices=[])
        wrapper.tokens = words.tokens = ()  # Read by now: megabytes that nobody looks at again.
        return loaded


class _Words:
    """A vocabulary as llguidance reads it, and the way from text to tokens."""

    bos_token_id = None

    def __init__(self, tokenizer: ChatTokenizer, *, vocab: int, stop_tokens: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        pieces = tokenizer.pieces(vocab)
        self.eos_token_id = stop_tokens[0]
        self.special_token_ids = [token for token, piece in enumerate(pieces) if not piece]
        self.tokens: Sequence[bytes] = [
            piece or f"<|{token}|>".encode() for token, piece in enumerate(pieces)
        ]

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode_plain(text.decode() if isinstance(text, bytes) else text)


class _GrammarGuide:
    """An `OutputGuide`. What is forced is kept until it is accepted: finding it costs most."""

    def __init__(
        self, matcher: llguidance.LLMatcher, *, vocab: int, stop_tokens: Sequence[int]
    ) -> None:
        self._matcher = matcher
        self._stop_tokens = stop_tokens
        self._vocab = vocab
        self._mask: npt.NDArray[np.int32] = np.zeros((vocab + 31) // 32, np.int32)
        # None: nobody looked since the last token.
        self._forced: deque[int] | None = None
        self._has_ended = False

    @property
    def is_complete(self) -> bool:
        return self._has_ended or (self._matcher.is_stopped() and not self._matcher.is_error())

    @property
    def may_end(self) -> bool:
        return self._has_ended or self._matcher.is_accepting()

    @property
    def is_free(self) -> bool:
        return False

    def allow(self, logits: Float32Array) -> None:
        if self.is_complete:
            ends = logits[list(self._stop_tokens)]
            logits.fill(-np.inf)
            logits[list(self._stop_tokens)] = ends
            return
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error() or not self._mask.any():
            raise _broken(self._matcher.get_error() or "no token of the vocabulary may follow")
        allowed = np.unpackbits(self._mask.view(np.uint8), count=self._vocab, bitorder="little")
        np.copyto(logits, -np.inf, where=allowed == 0)

    def accept(self, token: int) -> None:
        if token in self._stop_tokens and self.may_end and not self._has_ended:
            self._has_ended = True
        elif self._has_ended or not self._matcher.consume_token(token):
            raise _broken(self._matcher.get_error() or "the answer has ended")
        if self._forced and self._forced[0] == token:
            self._forced.popleft()
            if self._forced:
                return
        self._forced = None

    def forced(self) -> tuple[int, ...]:
        if self._forced is None:
            is_open = not self.is_complete
            found = self._matcher.compute_ff_tokens()[:FORCED_MOST] if is_open else ()
            self._forced = deque(found)
        return tuple(self._forced)

    def allowed_prefix(self, tokens: Sequence[int]) -> int:
        if self.is_complete:
            return int(not self._has_ended and tokens[:1] != () and tokens[0] in self._stop_tokens)
        return self._matcher.validate_tokens(list(tokens))


def _grammar(output: OutputFormat) -> str:
    from llguidance import LLMatcher  # noqa: PLC0415 - see the module

    match output:
        case OutputFormat(choices=tuple() as choices):
            # JSON's escapes are Lark's, except that Lark wants this one escaped as well.
            texts = (json.dumps(choice).replace("\x7f", "\\u007f") for choice in choices)
            return LLMatcher.grammar_from_lark("start: " + " | ".join(texts))
        case OutputFormat(regex=str() as regex):
            return LLMatcher.grammar_from_regex(regex)
        case OutputFormat(json_schema=schema):
            # Overrides, not defaults: a schema could set the latter itself.
            chosen = _ANY_OBJECT if schema is None else schema
            return LLMatcher.grammar_from_json_schema(chosen, overrides=_JSON_STYLE)
        case _:
            assert_never(output)


def _check_repeats(output: OutputFormat) -> None:
    for text in _texts(msgspec.to_builtins(output)):
        counts = (max(1, int(least), int(most or 0)) for least, most in _COUNT.findall(text))
        if prod(counts) > REPEATS_MOST:
            raise RejectedError(
                f"an expression of the output format repeats more than {REPEATS_MOST} times",
                code="bad_output_format",
                hint="no answer is that long: count less, or use `*`",
            )


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            yield from value
            for part in value.values():
                yield from _texts(part)
        case list() | tuple():
            for part in value:
                yield from _texts(part)


def _refusal(message: str) -> RejectedError:
    if _BEYOND.search(message):
        return RejectedError(
            f"the output format cannot be enforced here: {message[:_ERROR_CHARS]}",
            code="unsupported_output_format",
            hint="leave these parts of the schema out",
        )
    return RejectedError(
        f"the output format is wrong: {message[:_ERROR_CHARS]}",
        code="bad_output_format",
        hint="a schema is JSON Schema, an expression has Rust's syntax without look-around",
    )


def _broken(message: str) -> RejectedError:
    return RejectedError(
        f"the answer cannot be held to its form: {message[:_ERROR_CHARS]}", code="output_broken"
    )
