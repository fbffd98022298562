"""Questions about numbers: comparisons with a limit, small arithmetic, units.

An answer writes down its calculation first, in the notation of `fleet_protocol.calculation`: a
small model reads a question well and calculates badly.

The wordings are data, in `families/wordings.toml`.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Final, TypeAlias

import msgspec

from fleet_protocol.calculation import annotate, calculate
from models.distill.example import Example, place_instruction, roughen

Number: TypeAlias = int | float
Words: TypeAlias = Mapping[str, tuple[str, ...]]

_KINDS: Final = {
    "above": 30,
    "below": 24,
    "inside": 12,
    "outside": 8,
    "at_least": 10,
    "at_most": 12,
    "equal": 4,
}
_OPERATIONS: Final = {"add": 30, "subtract": 30, "multiply": 25, "divide": 15}
_SIGNS: Final = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
_STYLES: Final = {"": 45, "_amounts": 25, "_counts": 25, "_cold": 5, "_plain": 20}
"""Lists of wordings: any reading, none below zero, whole ones, temperatures, two bare numbers."""
_TOPS: Final = (20, 100, 100, 100, 300, 1_000, 5_000)
_COUNT_TOPS: Final = (12, 30, 60, 100, 100, 200, 1_000)
_SIGNED: Final = frozenset({"temperature", "level", "voltage", "current", "reading", "value"})
_IN_WORDS: Final = 0.06
_TIGHT_UNITS: Final = frozenset({"", "%", "°C"})
_SPELT_UNITS: Final = {"%": "percent", "°C": "degrees"}
_SYMBOLS: Final = re.compile(r"[-+*/<>=\u00d7÷:]\s*\{|\}[-+*/:]|\}\s*[+*/<>=\u00d7÷]|\.\.")
"""Wordings between whose numbers nobody writes words."""
_SMALL_NUMBERS: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS: Final = ("twenty", "thirty", "forty", "fifty")
_ZH_UNITS: Final = ("", "度", "%", "巴", "伏")
_POWERS_OF_TEN: Final = frozenset({10, 100, 1000, 10_000})
_UNITS: Final = (
    *(("km", "m", 1000), ("m", "cm", 100), ("cm", "mm", 10), ("m", "mm", 1000)),
    *(("kg", "g", 1000), ("t", "kg", 1000), ("kilograms", "grams", 1000)),
    *(("h", "min", 60), ("min", "s", 60), ("hours", "minutes", 60), ("minutes", "seconds", 60)),
    *(("days", "hours", 24), ("weeks", "days", 7), ("s", "ms", 1000)),
    *(("kW", "W", 1000), ("MW", "kW", 1000), ("kWh", "Wh", 1000)),
    *(("l", "ml", 1000), ("litres", "millilitres", 1000), ("bar", "mbar", 1000)),
    *(("MB", "KB", 1000), ("GB", "MB", 1000), ("kHz", "Hz", 1000), ("MHz", "kHz", 1000)),
    *(("A", "mA", 1000), ("V", "mV", 1000), ("kV", "V", 1000)),
    *(("kilometres", "metres", 1000), ("metres", "centimetres", 100)),
    *(("g", "mg", 1000), ("grams", "milligrams", 1000), ("tonnes", "kilograms", 1000)),
    *(("hl", "l", 100), ("dl", "ml", 100), ("cl", "ml", 10), ("centilitres", "millilitres", 10)),
    *(("m3", "l", 1000), ("cubic metres", "litres", 1000), ("hectares", "square metres", 10_000)),
    *(("kPa", "Pa", 1000), ("hPa", "Pa", 100), ("MPa", "kPa", 1000), ("bar", "kPa", 100)),
    *(("kN", "N", 1000), ("kJ", "J", 1000), ("MJ", "kJ", 1000), ("MWh", "kWh", 1000)),
    *(("Ah", "mAh", 1000), ("GHz", "MHz", 1000), ("TB", "GB", 1000), ("W", "mW", 1000)),
    *(("Mbit/s", "kbit/s", 1000), ("kilowatts", "watts", 1000), ("volts", "millivolts", 1000)),
    *(("centimetres", "millimetres", 10), ("mm", "µm", 1000), ("dm", "cm", 10)),
    *(("h", "s", 3600), ("hours", "seconds", 3600), ("days", "h", 24), ("years", "months", 12)),
    *(("seconds", "milliseconds", 1000), ("ms", "µs", 1000), ("weeks", "hours", 168)),
    *(("feet", "inches", 12), ("yards", "feet", 3), ("pounds", "ounces", 16)),
    *(
        ("m/s", "km/h", 3.6),
        ("inches", "cm", 2.54),
        ("euros", "cents", 100),
        ("dozen", "pieces", 12),
    ),
)
_ZH_UNIT_PAIRS: Final = (
    *(("千米", "米", 1000), ("公里", "米", 1000), ("米", "厘米", 100), ("厘米", "毫米", 10)),
    *(("千克", "克", 1000), ("公斤", "克", 1000), ("吨", "千克", 1000), ("克", "毫克", 1000)),
    *(("小时", "分钟", 60), ("分钟", "秒", 60), ("天", "小时", 24), ("周", "天", 7)),
    *(("升", "毫升", 1000), ("立方米", "升", 1000), ("千瓦", "瓦", 1000), ("安", "毫安", 1000)),
    *(("伏", "毫伏", 1000), ("千伏", "伏", 1000), ("秒", "毫秒", 1000), ("元", "角", 10)),
    *(("公斤", "斤", 2), ("斤", "两", 10), ("兆帕", "千帕", 1000), ("巴", "千帕", 100)),
)
_DEGREES: Final = (("C", "F"), ("°C", "°F"), ("degrees Celsius", "degrees Fahrenheit"))


@cache
def wordings() -> Mapping[str, Words]:
    """Return the ways to word a question, by family and kind."""
    text = (
        resources.files("models.distill").joinpath("families", "wordings.toml").read_text("utf-8")
    )
    return msgspec.convert(tomllib.loads(text), dict[str, dict[str, tuple[str, ...]]])


def make_threshold(chance: random.Random) -> Example:
    """Return a yes-or-no question about a reading."""
    words = wordings()["threshold"]
    quantities = wordings()["quantities"]
    kind = chance.choices(list(_KINDS), list(_KINDS.values()))[0]
    quantity = chance.choice(list(quantities))
    unit = chance.choice(quantities[quantity])
    style, wording = _choose_wording(chance, words, kind)
    spelt = chance.random() < _IN_WORDS and not _SYMBOLS.search(wording)
    a, b, c = _style_readings(chance, kind, style, signed=quantity in _SIGNED, small=spelt)
    if spelt:
        unit = _SPELT_UNITS.get(unit, unit)
    space = "" if unit in _TIGHT_UNITS or (chance.random() < 0.15 and not spelt) else " "
    minus = spelt or (style == "_cold" and chance.random() < 0.6)
    said = {
        name: _say(n, spelt=spelt, minus=minus) for name, n in zip("abc", (a, b, c), strict=True)
    }
    asked = wording.format(**said, q=quantity, u=f"{space}{unit}")
    worked, verdict = _compare(kind, a, b, c)
    asked = asked[:1].upper() + asked[1:] if chance.random() < 0.8 else asked
    demand = chance.choice(words["yes_no"])
    prompt = f"{demand} {asked}" if chance.random() < 0.2 else f"{asked} {demand}"
    return _example("threshold", prompt, f"{worked}{'yes' if verdict else 'no'}")


def make_threshold_zh(chance: random.Random) -> Example:
    """Return a Chinese one."""
    words = wordings()["threshold_zh"]
    kind = chance.choices(list(_KINDS), list(_KINDS.values()))[0]
    style, wording = _choose_wording(chance, words, kind)
    unit = chance.choice(_ZH_UNITS) if style == "" else ""
    a, b, c = _style_readings(chance, kind, style, signed=unit == "度", small=False)
    asked = wording.format(a=f"{a}{unit}", b=f"{b}{unit}", c=f"{c}{unit}")
    worked, verdict = _compare(kind, a, b, c)
    prompt = asked + chance.choice(words["yes_no"])
    return _example("threshold", prompt, f"{worked}{'是' if verdict else '否'}", language="zh")


def _choose_wording(chance: random.Random, words: Words, kind: str) -> tuple[str, str]:
    """Return the list's style and a wording of it."""
    styles = {style: share for style, share in _STYLES.items() if f"{kind}{style}" in words}
    style = chance.choices(list(styles), list(styles.values()))[0]
    return style, chance.choice(words[f"{kind}{style}"])


def _style_readings(
    chance: random.Random, kind: str, style: str, *, signed: bool, small: bool
) -> tuple[Number, Number, Number]:
    """Return the readings that a list of wordings allows."""
    if style == "_cold":
        a, b, c = _readings(chance, kind, whole=True, tops=(20, 30))
        shift = chance.randint(0, 30)
        return a - shift, b - shift, c - shift
    is_count = style == "_counts"
    tops = (20, 30, 40) if small else _COUNT_TOPS if is_count else _TOPS
    a, b, c = _readings(chance, kind, whole=small or is_count, tops=tops)
    if style in {"", "_plain"} and signed and chance.random() < 0.15:
        return (a, 0 - b, c) if kind in {"inside", "outside"} else (0 - a, 0 - b, c)
    return a, b, c


def _say(value: Number, *, spelt: bool = False, minus: bool = False) -> str:
    """Write a number; `spelt` writes whole ones up to fifty in words, `minus` the sign."""
    if minus and value < 0:
        return f"minus {_say(-value, spelt=spelt)}"
    if not spelt or value not in range(51):
        return str(value)
    tens, ones = divmod(int(value), 10)
    if value < len(_SMALL_NUMBERS):
        return _SMALL_NUMBERS[int(value)]
    return f"{_TENS[tens - 2]}-{_SMALL_NUMBERS[ones]}" if ones else _TENS[tens - 2]


def _compare(kind: str, a: Number, b: Number, c: Number) -> tuple[str, bool]:
    """Return the calculation that decides a question, and the verdict on it.

    The calculation says what is asked, so that its result is the verdict: out of range is written
    as the two sides that break it.
    """
    if kind == "outside":
        below = a < b
        expression = f"{a}<{b}" if below else f"{a}>{c}"
        return annotate(expression), below or a > c
    expression = {
        "above": f"{a}>{b}",
        "below": f"{a}<{b}",
        "inside": f"{b}<={a}<={c}",
        "at_least": f"{a}>={b}",
        "at_most": f"{a}<={b}",
        "equal": f"{a}=={b}",
    }[kind]
    return annotate(expression), calculate(expression) == "yes"


def make_arithmetic(chance: random.Random) -> Example:
    """Return a small calculation; the answer is the number alone."""
    words = wordings()["arithmetic"]
    kind = chance.choices(list(_OPERATIONS), list(_OPERATIONS.values()))[0]
    a, b = _operands(chance, kind)
    told = words[f"{kind}_stories"] if chance.random() < 0.4 else words[kind]
    wording = chance.choice(told)
    spelt = chance.random() < _IN_WORDS and not _SYMBOLS.search(wording)
    said = wording.format(
        a=_say(a, spelt=spelt and chance.random() < 0.7),
        b=_say(b, spelt=spelt and chance.random() < 0.7),
    )
    asked = roughen(said[:1].upper() + said[1:] if spelt else said, chance)
    prompt = f"{asked} {chance.choice(words['number_only'])}".strip()
    expression = f"{a}{_SIGNS[kind]}{b}"
    return _example("arithmetic", prompt, f"{annotate(expression)}{calculate(expression)}")


def make_arithmetic_zh(chance: random.Random) -> Example:
    """Return a Chinese one."""
    words = wordings()["arithmetic_zh"]
    kind = chance.choices(list(_OPERATIONS), list(_OPERATIONS.values()))[0]
    a, b = _operands(chance, kind)
    prompt = chance.choice(words[kind]).format(a=a, b=b) + chance.choice(words["number_only"])
    expression = f"{a}{_SIGNS[kind]}{b}"
    answer = f"{annotate(expression)}{calculate(expression)}"
    return _example("arithmetic", prompt, answer, language="zh")


def _operands(chance: random.Random, kind: str) -> tuple[int, int]:
    """Return two numbers whose result is whole and not below zero."""
    if kind == "add":
        return _summands(chance)
    if kind == "subtract":
        b, rest = _summands(chance)
        return b + rest, b
    if kind == "multiply":
        return _factors(chance)
    rest, b = _factors(chance)
    return b * rest, b


def make_units(chance: random.Random) -> Example:
    """Return a conversion; the answer is the number and its unit."""
    if chance.random() < 0.25:
        return _degrees(chance)
    given, unit, expression = _exchange(chance, _UNITS)
    return _conversion(chance, given, unit, expression)


def make_units_zh(chance: random.Random) -> Example:
    """Return a Chinese one."""
    if chance.random() < 0.15:
        celsius = 5 * chance.randint(-4, 20)
        given: tuple[Number, str] = (celsius, "摄氏度")
        unit, expression = "华氏度", f"{celsius}*9/5+32"
    else:
        given, unit, expression = _exchange(chance, _ZH_UNIT_PAIRS)
    asked = chance.choice(wordings()["units_zh"]["convert"]).format(x=given[0], u=given[1], v=unit)
    answer = f"{annotate(expression)}{calculate(expression)}{unit}"
    return _example("units", asked, answer, language="zh")


def _exchange(
    chance: random.Random, pairs: Sequence[tuple[str, str, Number]]
) -> tuple[tuple[Number, str], str, str]:
    """Return an amount with its unit, the unit it is wanted in, and the calculation."""
    large, small, factor = chance.choice(pairs)
    count = _trim(_count(chance, factor))
    if chance.random() < 0.6:
        return (count, large), small, f"{count}*{factor}"
    given = _trim(count * factor)
    return (given, small), large, f"{given}/{factor}"


def _degrees(chance: random.Random) -> Example:
    """Return a Celsius-Fahrenheit one, in whole numbers."""
    celsius = 5 * chance.randint(-4, 20)
    c, f = chance.choice(_DEGREES)
    if chance.random() < 0.6:
        return _conversion(chance, (celsius, c), f, f"{celsius}*9/5+32")
    fahrenheit = celsius * 9 // 5 + 32
    return _conversion(chance, (fahrenheit, f), c, f"({fahrenheit}-32)*5/9")


def _conversion(
    chance: random.Random, given: tuple[Number, str], unit: str, expression: str
) -> Example:
    asked = chance.choice(wordings()["units"]["convert"]).format(
        x=_trim(given[0]), u=given[1], v=unit
    )
    answer = f"{annotate(expression)}{calculate(expression)} {unit}"
    if chance.random() < 0.15:
        told = f"Convert what is said to {unit}."
        system, prompt = place_instruction(
            told, f"{_trim(given[0])} {given[1]}", language="en", draw=chance
        )
        return Example(family="units", language="en", system=system, prompt=prompt, answer=answer)
    return _example("units", roughen(asked, chance), answer)


def _readings(
    chance: random.Random, kind: str, *, whole: bool, tops: Sequence[int]
) -> tuple[Number, Number, Number]:
    """Return a reading, a limit and, for ranges, a second one; half of them close together.

    None is below zero. Now and then a reading is exactly its limit.
    """
    scale = 10 if not whole and chance.random() < 0.3 else 1
    top = chance.choice(tops)
    b = chance.randint(1, top * scale)
    reach = max(2, b // 10) if chance.random() < 0.5 else max(5, top * scale)
    a = abs(b + chance.choice((-1, 1)) * chance.randint(1, reach))
    c = b + chance.randint(2, max(4, reach))
    if kind in {"inside", "outside"}:
        outside = (max(0, b - chance.randint(1, reach)), c + chance.randint(1, reach))
        a = chance.choice((chance.randint(b, c), *outside))
    elif chance.random() < (0.5 if kind == "equal" else 0.12):
        a = b
    return _scaled(a, scale), _scaled(b, scale), _scaled(c, scale)


def _summands(chance: random.Random) -> tuple[int, int]:
    top = chance.choice((12, 30, 60, 100, 100, 200, 500))
    return chance.randint(0, top), chance.randint(0, chance.choice((10, top)))


def _factors(chance: random.Random) -> tuple[int, int]:
    """Return two factors; the second is at most 12, mostly both are."""
    b = chance.randint(2, 12)
    if chance.random() < 0.6:
        return chance.randint(2, 12), b
    return chance.choice((chance.randint(11, 99), 10 * chance.randint(2, 9))), b


def _count(chance: random.Random, factor: Number) -> Number:
    """Return how many of the larger unit: small where the factor is not a power of ten."""
    if chance.random() < 0.15:
        return chance.choice((1, 1, 0.5, 2))
    if factor not in _POWERS_OF_TEN:
        return chance.randint(1, 12)
    return chance.randint(1, 60) if chance.random() < 0.6 else chance.randint(1, 99) / 10


def _scaled(value: int, scale: int) -> Number:
    return value if scale == 1 else value / scale


def _trim(value: Number) -> Number:
    value = round(value, 6)
    return int(value) if value == int(value) else value


def _example(family: str, prompt: str, answer: str, *, language: str = "en") -> Example:
    return Example(family=family, language=language, prompt=prompt, answer=answer)


NUMBER_FAMILIES: Final[Mapping[str, Callable[[random.Random], Example]]] = {
    "threshold": make_threshold,
    "threshold-zh": make_threshold_zh,
    "arithmetic": make_arithmetic,
    "arithmetic-zh": make_arithmetic_zh,
    "units": make_units,
    "units-zh": make_units_zh,
}
