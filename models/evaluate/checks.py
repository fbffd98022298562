"""Is an answer right? The rules of the suite, strict as the program that reads the answer."""

from __future__ import annotations

import re
from typing import Any, Final, assert_never

import msgspec

from models.suite import (
    AnyCheck,
    Check,
    ChoiceCheck,
    ContainsCheck,
    FirstWordCheck,
    JsonCheck,
    NumberCheck,
    RefusalCheck,
    Script,
)

# Written as escapes: the full-width marks look like their narrow twins.
_NUMBER: Final = re.compile(r"[-\u2212]?\d+(?:,\d{3})*(?:\.\d+)?")
_SENTENCE_END: Final = re.compile(r"[.!?]+(?=\s|$)|[\u3002\uff01\uff1f]+")
_HAN: Final = re.compile(r"[\u3400-\u9fff]")
_LATIN: Final = re.compile(r"[A-Za-z]")
_CLOSING: Final = " \t\r\n.\u3002!\uff01\"'`"
# Shorter words must end where they end (or in a plural s): "Au" is not in "Australia".
_STEM_LETTERS: Final = 4
_NEARLY: Final = 1e-9


def is_right(check: Check, answer: str) -> bool:
    """Tell whether the answer passes."""
    match check:
        case JsonCheck():
            return _is_same(parse_object(answer), check.want)
        case ChoiceCheck() | RefusalCheck():
            return _plain(answer) == _plain(check.want)
        case FirstWordCheck():
            return _begins_with(answer, check.want)
        case NumberCheck():
            number = first_number(answer)
            return number is not None and abs(number - check.want) <= _NEARLY
        case AnyCheck():
            return any(holds(answer, phrase) for phrase in check.want)
        case ContainsCheck():
            return _contains(check, answer)
        case _:
            assert_never(check)


def parse_object(answer: str) -> dict[str, Any] | None:
    """Return the JSON object that the answer is, whole; None where it is something else.

    Fences and prose around it count as something else: the device that asked parses it as it is.
    """
    try:
        return msgspec.json.decode(answer.strip(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None


def first_number(answer: str) -> float | None:
    """Return the first number; a comma before three digits groups thousands."""
    found = _NUMBER.search(answer)
    if found is None:
        return None
    return float(found.group().replace(",", "").replace("\u2212", "-"))


def holds(answer: str, phrase: str, *, has_case: bool = False) -> bool:
    """Tell whether a phrase appears: numbers whole, words from their beginning, Han anywhere."""
    if _HAN.search(phrase):
        return phrase in answer
    start = r"(?<![\d.,-])" if phrase[0].isdigit() else r"(?<![A-Za-z])"
    if phrase[-1].isdigit():
        end = r"(?![\d]|[.,]\d)"
    elif len(phrase) < _STEM_LETTERS:
        end = r"s?(?![A-Za-z])"
    else:
        end = ""
    flags = re.NOFLAG if has_case else re.IGNORECASE
    return re.search(start + re.escape(phrase) + end, answer, flags) is not None


def _contains(check: ContainsCheck, answer: str) -> bool:
    if check.max_words is not None and len(answer.split()) > check.max_words:
        return False
    if check.max_sentences is not None and _sentences(answer) > check.max_sentences:
        return False
    if check.script is not None and not _is_written_in(answer, check.script):
        return False
    choices = ((want,) if isinstance(want, str) else want for want in check.want)
    return all(
        any(holds(answer, phrase, has_case=check.has_case) for phrase in choice)
        for choice in choices
    )


def _sentences(answer: str) -> int:
    """Count sentences; a last one without its full stop counts as well."""
    return sum(bool(part.strip()) for part in _SENTENCE_END.split(answer))


def _is_written_in(answer: str, script: Script) -> bool:
    """Han allows foreign names among it, Latin allows no Han at all."""
    han, latin = len(_HAN.findall(answer)), len(_LATIN.findall(answer))
    # A Chinese character says about as much as two letters.
    return 2 * han > latin if script is Script.HAN else latin > 0 and han == 0


def _begins_with(answer: str, word: str) -> bool:
    text, word = answer.strip().strip("\"'*").casefold(), word.casefold()
    after = text[len(word) : len(word) + 1]
    return text.startswith(word) and not (word.isascii() and after.isalnum())


def _plain(text: str) -> str:
    return text.strip(_CLOSING).casefold()


def _is_same(left: object, right: object) -> bool:
    """Compare as JSON: 21 is 21.0, true is not 1, strings in any case, keys in any order."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return abs(left - right) <= _NEARLY
    if isinstance(left, str) and isinstance(right, str):
        return left.strip().casefold() == right.strip().casefold()
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_is_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_is_same, left, right))
    return left is None and right is None
