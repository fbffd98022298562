"""The offline answer library: what an operator wrote down for when nobody else can answer.

Four kinds of match, the surest first: `exact` (the same question but for capitals, spaces and the
mark at its end), `pattern` (words with `*` for any words), `nearest` (alike enough to an example)
and the `default`. Pure; reading the file is `library_file`'s.

How alike two questions are is the cosine of their features, hashed: words other than mere grammar,
pairs of neighbouring words, and pieces of three letters. Weights are fixed and do not come from the
library, so that one entry more changes no other entry's score. Words that turn a meaning round (on,
off, not ...) and numbers must be the same in both, or a library that knows `turn on` would answer
`turn off`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from heapq import nlargest
from itertools import pairwise
from math import sqrt
from typing import Final, TypeAlias
from zlib import crc32

import msgspec

from fleet_protocol.messages import ChatMessage, ChatRole

LOOKED_AT_CHARS: Final = 2_000
"""A longer question is never matched, only given the default: it asks more than an entry says."""
AMBIGUOUS_WITHIN: Final = 0.05
"""Two entries whose scores differ by less than this answer nothing: either could be meant."""
NEAREST_LEAST: Final = 0.6

_HAN: Final = "\u3400-\u9fff"
_KANA: Final = "\u3040-\u30ff"
_WORD: Final = re.compile(
    rf"[-+]?\d+(?:[.,]\d+)*|[{_HAN}{_KANA}]|(?:(?![{_HAN}{_KANA}])[^\W\d_])+|[^\w\s]"
)
_PUNCTUATION: Final = frozenset(
    ".,;:!?\"'`()[]{}<>-/\\|~_\u3001\u3002\u300c\u300d\u2018\u2019\u201c\u201d"
    "\u2026\u2013\u2014\u00bf\u00a1"
)
_FINAL_MARKS: Final = " .?!\u3002"

_FUNCTION_TEXT: Final = """
a an the this that these those is are was were be been am do does did can could will would shall
should may might must to of in at for from by with and or as it its i me my we us our you your he
she they them there here please have has had what which who how when where why s
的 了 吗 呢 是 在 我 你 请 什 么 怎 样 个 这 那
"""
_FUNCTION_WORDS: Final = frozenset(_FUNCTION_TEXT.split())
_TELLING_TEXT: Final = """
on off open opened close closed shut start started stop stopped up down enable enabled disable
disabled lock locked unlock unlocked arm armed disarm disarmed no not never none without except t
cannot before after more less most least min max minimum maximum highest lowest high low higher
lower hot cold warm cool increase decrease raise add remove left right first last inside outside
empty full safe unsafe dangerous 不 没 无 未 别 开 关 停 高 低
"""
_TELLING_WORDS: Final = frozenset(_TELLING_TEXT.split())
_PLAIN_WEIGHT: Final = 1.0
_PAIR_WEIGHT: Final = 0.3
_PIECE_WEIGHT: Final = 0.3
_PIECE_LETTERS: Final = 3
_STEM_LETTERS: Final = 4
_SCORED_MOST: Final = 64

_SCRIPTS: Final = (
    ("ja", re.compile(rf"[{_KANA}]")),
    ("zh", re.compile(rf"[{_HAN}]")),
    ("ko", re.compile("[\uac00-\ud7af]")),
    ("ru", re.compile("[\u0400-\u04ff]")),
    ("ar", re.compile("[\u0600-\u06ff]")),
)
"""Languages that their script tells; those written in Latin letters cannot be told apart."""

Answer: TypeAlias = str | Mapping[str, str]
"""One text, or a text a language."""


class MatchKind(StrEnum):
    """How a question was found, the surest first."""

    EXACT = "exact"
    PATTERN = "pattern"
    NEAREST = "nearest"
    DEFAULT = "default"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, and the questions it is for.

    Attributes:
        least: Least score of its `nearest` examples, 0..1.
    """

    name: str
    answer: Answer
    exact: tuple[str, ...] = ()
    pattern: tuple[str, ...] = ()
    nearest: tuple[str, ...] = ()
    least: float = NEAREST_LEAST


class LibraryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the library says to a question.

    Attributes:
        entry: Its name; empty for the default.
        score: Of a `nearest` match, 0..1; 1 for `exact` and `pattern`, 0 for the default.
        matched: The question, pattern or example of the entry that matched.
    """

    text: str
    kind: MatchKind
    entry: str = ""
    score: float = 0.0
    matched: str = ""


class Near(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that a question is more or less alike to.

    Attributes:
        example: Its example that is most alike.
        least: The score it must reach.
        differs: Numbers and words that turn a meaning round, and are in one of both alone; all of
            them where only their order differs.
    """

    entry: str
    example: str
    score: float
    least: float
    differs: tuple[str, ...] = ()

    @property
    def is_close(self) -> bool:
        """Whether it would be the answer if no other entry were as close."""
        return self.score >= self.least and not self.differs


class Library:
    """A library, made ready to be asked. Never changes; an edited file makes a new one."""

    def __init__(self, entries: Sequence[Entry], *, default: Answer | None = None) -> None:
        self.entries = tuple(entries)
        self._by_name = {entry.name: entry for entry in entries}
        self._default = default
        self._exact: dict[str, tuple[Entry, str]] = {}
        patterns: list[tuple[_Pattern, Entry, str]] = []
        self._examples: list[tuple[_Features, Entry, str]] = []
        self._by_stem: defaultdict[str, list[int]] = defaultdict(list)
        for entry in self.entries:
            for question in entry.exact:
                self._exact.setdefault(spelling(question), (entry, question))
            patterns += [(_Pattern(text), entry, text) for text in entry.pattern]
            for question in entry.nearest:
                self._learn(entry, question)
        # What says more about the question goes first; of equals the one that was written first.
        self._patterns = sorted(patterns, key=lambda each: -each[0].words)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def has_default(self) -> bool:
        """Whether it answers anything at all."""
        return self._default is not None

    def answers(self, question: str | None) -> Iterator[LibraryAnswer]:
        """Yield what the library could say, the surest first.

        Args:
            question: None: it cannot be told what is asked, so only the default may do.
        """
        if question is not None and len(question) <= LOOKED_AT_CHARS:
            yield from self._found(question)
        if self._default is not None:
            yield LibraryAnswer(text=_in_language(self._default, question), kind=MatchKind.DEFAULT)

    def near(self, question: str, *, most: int = 3) -> list[Near]:
        """Return the entries whose examples are most alike, the most alike first, one row each."""
        if len(question) > LOOKED_AT_CHARS:
            return []
        mine = _Features(question)
        best: dict[str, Near] = {}
        for number, score in self._ranked(mine):
            features, entry, example = self._examples[number]
            differs = _differences(mine.telling, features.telling)
            row = Near(
                entry=entry.name, example=example, score=score, least=entry.least, differs=differs
            )
            known = best.get(entry.name)
            if known is None or (row.is_close and not known.is_close):
                best[entry.name] = row
        rows = sorted(best.values(), key=lambda row: (-row.is_close, -row.score, row.entry))
        return rows[:most]

    def _ranked(self, mine: _Features) -> list[tuple[int, float]]:
        """Return the numbers of examples with their scores, the most alike first.

        Only those are scored that share the most beginnings of words: a large library costs little
        more than a small one.
        """
        shared: Counter[int] = Counter()
        for stem in mine.stems:
            shared.update(self._by_stem.get(stem, ()))
        chosen = nlargest(_SCORED_MOST, shared, key=lambda number: (shared[number], -number))
        scores = [(number, mine.likeness(self._examples[number][0])) for number in chosen]
        return sorted(scores, key=lambda pair: (-pair[1], pair[0]))

    def _found(self, question: str) -> Iterator[LibraryAnswer]:
        hit = self._exact.get(spelling(question))
        if hit is not None:
            yield _answer(hit[0], question, MatchKind.EXACT, score=1.0, matched=hit[1])
        if self._patterns:
            text = _spaced(words_of(question))
            for pattern, entry, matched in self._patterns:
                if pattern.fits(text):
                    yield _answer(entry, question, MatchKind.PATTERN, score=1.0, matched=matched)
                    break
        rows = [row for row in self.near(question) if row.is_close]
        if rows and not is_ambiguous(rows):
            entry, score = self._by_name[rows[0].entry], rows[0].score
            matched = rows[0].example
            yield _answer(entry, question, MatchKind.NEAREST, score=score, matched=matched)

    def _learn(self, entry: Entry, question: str) -> None:
        features = _Features(question)
        for stem in features.stems:
            self._by_stem[stem].append(len(self._examples))
        self._examples.append((features, entry, question))


class _Pattern:
    """Words with `*` for any words, none included; it must fit the whole question.

    Without back-tracking: each run of words is looked for once, from where the last one ended.
    """

    def __init__(self, pattern: str) -> None:
        runs = [words_of(part) for part in pattern.split("*")]
        self.words = sum(map(len, runs))
        self._first, *middle = [_spaced(run) for run in runs]
        self._middle, self._last = middle[:-1], middle[-1] if middle else None

    def fits(self, text: str) -> bool:
        """Tell whether it fits `_spaced` words. Neighbours share the space between them."""
        if self._last is None:
            return text == self._first
        if not text.startswith(self._first):
            return False
        at = len(self._first) - 1
        for run in self._middle:
            found = text.find(run, at)
            if found < 0:
                return False
            at = found + len(run) - 1
        return text.endswith(self._last) and len(text) - len(self._last) >= at


class _Features:
    """What of a question is compared.

    Attributes:
        weights: By hash, squared.
        length: Of the vector that they are.
        stems: Beginnings of its words.
        telling: Numbers, and words that turn a meaning round, as they come.
    """

    def __init__(self, question: str) -> None:
        words = words_of(question)
        self.weights = _weights(words)
        self.length = sqrt(sum(self.weights.values())) or 1.0
        self.stems = {word[:_STEM_LETTERS] for word in words if word not in _FUNCTION_WORDS}
        self.telling = tuple(
            word for word in words if word in _TELLING_WORDS or word.lstrip("+-")[:1].isdigit()
        )

    def likeness(self, other: _Features) -> float:
        """Return the cosine, 0..1, to four digits."""
        common = self.weights.keys() & other.weights.keys()
        total = sum(self.weights[feature] for feature in common)
        return round(min(total / (self.length * other.length), 1.0), 4)


def question_of(conversation: Sequence[ChatMessage]) -> str | None:
    """Return what is asked; None where it hangs on earlier turns. Instructions are not a turn."""
    turns = [turn for turn in conversation if turn.role is not ChatRole.SYSTEM]
    if len(turns) == 1 and turns[0].role is ChatRole.USER:
        return turns[0].content
    return None


def is_ambiguous(rows: Sequence[Near]) -> bool:
    """Tell whether two entries are about equally close, the closest first."""
    return len(rows) > 1 and rows[0].score - rows[1].score < AMBIGUOUS_WITHIN


def spelling(question: str) -> str:
    """Return a question without what may differ in an exact match."""
    return " ".join(_plain(question).split()).rstrip(_FINAL_MARKS)


def words_of(text: str) -> list[str]:
    """Return words, numbers with their signs, single Han and kana characters, and symbols."""
    return [word for word in _WORD.findall(_plain(text)) if word not in _PUNCTUATION]


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _spaced(words: Sequence[str]) -> str:
    return f" {' '.join(words)} " if words else " "


def _weights(words: Sequence[str]) -> dict[int, float]:
    weights: dict[int, float] = {}
    for word in words:
        if word in _FUNCTION_WORDS:
            continue
        weights[_hash(word)] = _PLAIN_WEIGHT
        if len(word) > _PIECE_LETTERS:
            padded = f" {word} "
            for start in range(len(padded) - _PIECE_LETTERS + 1):
                weights[_hash(f"_{padded[start : start + _PIECE_LETTERS]}")] = _PIECE_WEIGHT
    for left, right in pairwise(words):
        if left not in _FUNCTION_WORDS or right not in _FUNCTION_WORDS:
            weights[_hash(f"{left} {right}")] = _PAIR_WEIGHT
    return {feature: weight * weight for feature, weight in weights.items()}


def _differences(mine: Sequence[str], other: Sequence[str]) -> tuple[str, ...]:
    if mine == other:
        return ()
    return tuple(sorted(set(mine) ^ set(other) or set(mine)))


def _hash(feature: str) -> int:
    return crc32(feature.encode())


def _answer(
    entry: Entry, question: str, kind: MatchKind, *, score: float, matched: str
) -> LibraryAnswer:
    text = _in_language(entry.answer, question)
    return LibraryAnswer(text=text, kind=kind, entry=entry.name, score=score, matched=matched)


def _in_language(answer: Answer, question: str | None) -> str:
    """Return the text in the question's language as far as its script tells, else the first."""
    if isinstance(answer, str):
        return answer
    told = [name for name, script in _SCRIPTS if script.search(question or "")]
    if told and told[0] in answer:
        return answer[told[0]]
    latin = (text for name, text in answer.items() if name not in dict(_SCRIPTS))
    return next(latin, next(iter(answer.values())))
