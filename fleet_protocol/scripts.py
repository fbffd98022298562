"""In which script a text is, and whether a model was made for a language that is written in it.

Letters say for certain what a glance at them can say: Cyrillic is not Chinese. They do not tell
languages of one script apart, and nothing here tries to: a list of small words that does so mostly
would, now and then, send a prompt away that the model can answer. Latin letters decide nothing at
all, as names, units, keys and labels are written in them in every language.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Final

SCANNED_CHARS: Final = 4_096
"""Of a longer text only so many from its start are looked at."""

_LEAST_LETTERS: Final = 3
"""Fewer different ones are signs as often as words: 5 kΩ, Δt, の."""
_LEAST_KANA_SHARE: Final = 0.2
"""Less is a Chinese text with a Japanese name in it: half of a Japanese one is kana."""

# Where the letters of each script are, and the languages (ISO 639-1) that are written in it.
_SCRIPTS: Final[dict[str, tuple[str, str]]] = {
    "Arabic": ("0600-06ff 0750-077f 08a0-08ff", "ar fa ku ps sd ug ur"),
    "Armenian": ("0531-058a", "hy"),
    "Bengali": ("0980-09ff", "as bn"),
    "Cyrillic": ("0400-052f", "ab ba be bg ce cv kk kv ky mk mn os ru sr tg tk tt uk uz"),
    "Devanagari": ("0900-097f", "hi mr ne sa"),
    "Ethiopic": ("1200-139f", "am ti"),
    "Georgian": ("10a0-10ff 1c90-1cbf", "ka"),
    "Greek": ("0370-03ff 1f00-1fff", "el"),
    "Gujarati": ("0a80-0aff", "gu"),
    "Gurmukhi": ("0a00-0a7f", "pa"),
    "Han": ("3400-4dbf 4e00-9fff", "ja zh"),
    "Hangul": ("1100-11ff 3130-318f ac00-d7af", "ko"),
    "Hebrew": ("0590-05ff", "he yi"),
    "Kana": ("3041-3096 30a1-30fa 30fc-30fc", "ja"),
    "Kannada": ("0c80-0cff", "kn"),
    "Khmer": ("1780-17ff", "km"),
    "Lao": ("0e80-0eff", "lo"),
    "Malayalam": ("0d00-0d7f", "ml"),
    "Myanmar": ("1000-109f", "my"),
    "Odia": ("0b00-0b7f", "or"),
    "Sinhala": ("0d80-0dff", "si"),
    "Tamil": ("0b80-0bff", "ta"),
    "Telugu": ("0c00-0c7f", "te"),
    "Thai": ("0e00-0e7f", "th"),
    "Tibetan": ("0f00-0fff", "bo dz"),
}
_LATIN: Final = "Latin"
_LANGUAGES: Final = {name: frozenset(codes.split()) for name, (_, codes) in _SCRIPTS.items()}
_RANGES: Final = sorted(
    (int(span[:4], 16), int(span[5:], 16), name)
    for name, spans in (
        *((name, spans) for name, (spans, _) in _SCRIPTS.items()),
        (_LATIN, "0041-005a 0061-007a 00c0-024f 1e00-1eff"),
    )
    for span in spans.split()
)
_STARTS: Final = [first for first, _, _ in _RANGES]


def script_of(text: str) -> str | None:
    """Return the script of more than half of a text's letters; None: Latin, none, or none so much.

    Japanese counts as `Kana`, its Han characters included.
    """
    if text.isascii():
        return None
    counts, different = Counter[str](), Counter[str]()
    for letter, count in Counter(text[:SCANNED_CHARS]).items():
        script = _script_of_letter(letter)
        if script is not None:
            counts[script] += count
            different[script] += 1
    japanese = counts["Kana"] + counts["Han"]
    if counts["Kana"] >= max(_LEAST_LETTERS, _LEAST_KANA_SHARE * japanese):
        counts["Kana"], counts["Han"] = japanese, 0
    script, most = max(counts.items(), key=lambda item: item[1], default=(_LATIN, 0))
    if script == _LATIN or different[script] < _LEAST_LETTERS or 2 * most <= counts.total():
        return None
    return script


def foreign_script(text: str, languages: Sequence[str]) -> str | None:
    """Return the script of a text if none of the languages is written in it.

    Args:
        text: Of a prompt.
        languages: That a model was made for, as ISO 639-1 (`zh`, `pt-BR`); none: all.
    """
    script = script_of(text) if languages else None
    if script is None:
        return None
    known = {language.partition("-")[0].lower() for language in languages}
    return None if known & _LANGUAGES[script] else script


def _script_of_letter(letter: str) -> str | None:
    at = bisect_right(_STARTS, ord(letter)) - 1
    if at < 0 or ord(letter) > _RANGES[at][1]:
        return None
    return _RANGES[at][2]
