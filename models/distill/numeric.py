"""Questions about numbers: comparisons with a limit, small arithmetic, units.

An answer writes down its calculation first, in the notation of `fleet_protocol.calculation`: a
small model reads a question well and calculates badly.

The wordings are data, in `families/wordings.toml`.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable, Mapping
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
_TIGHT_UNITS: Final = frozenset({"", "%", "°C"})
_ZH_UNITS: Final = ("", "度", "%", "巴", "伏")
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
    space = "" if unit in _TIGHT_UNITS or chance.random() < 0.15 else " "
    a, b, c = _readings(chance, kind)
    asked = chance.choice(words[kind]).format(a=a, b=b, c=c, q=quantity, u=f"{space}{unit}")
    worked, verdict = _compare(kind, a, b, c)
    asked = asked[:1].upper() + asked[1:] if chance.random() < 0.8 else asked
    demand = chance.choice(words["yes_no"])
    prompt = f"{demand} {asked}" if chance.random() < 0.2 else f"{asked} {demand}"
    return _example("threshold", prompt, f"{worked}{'yes' if verdict else 'no'}")


def make_threshold_zh(chance: random.Random) -> Example:
    """Return a Chinese one."""
    words = wordings()["threshold_zh"]
    kind = chance.choice(("above", "below"))
    a, b, _ = _readings(chance, kind)
    unit = chance.choice(_ZH_UNITS)
    asked = chance.choice(words[kind]).format(a=f"{a}{unit}", b=f"{b}{unit}")
    worked, verdict = _compare(kind, a, b, b)
    prompt = asked + chance.choice(words["yes_no"])
    return _example("threshold", prompt, f"{worked}{'是' if verdict else '否'}", language="zh")


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
    if kind == "add":
        a, b = _summands(chance)
    elif kind == "subtract":
        b, rest = _summands(chance)
        a = b + rest
    elif kind == "multiply":
        a, b = _factors(chance)
    else:
        rest, b = _factors(chance)
        a = b * rest
    told = words[f"{kind}_stories"] if chance.random() < 0.3 else words[kind]
    asked = roughen(chance.choice(told).format(a=a, b=b), chance)
    prompt = f"{asked} {chance.choice(words['number_only'])}".strip()
    expression = f"{a}{_SIGNS[kind]}{b}"
    return _example("arithmetic", prompt, f"{annotate(expression)}{calculate(expression)}")


def make_units(chance: random.Random) -> Example:
    """Return a conversion; the answer is the number and its unit."""
    if chance.random() < 0.3:
        return _degrees(chance)
    large, small, factor = chance.choice(_UNITS)
    count = _count(chance, factor)
    if chance.random() < 0.6:
        return _conversion(chance, (count, large), small, f"{_trim(count)}*{factor}")
    given = _trim(count * factor)
    return _conversion(chance, (given, small), large, f"{given}/{factor}")


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


def _readings(chance: random.Random, kind: str) -> tuple[Number, Number, Number]:
    """Return a reading, a limit and, for ranges, a second one; half of them close together."""
    scale = 10 if chance.random() < 0.3 else 1
    top = chance.choice((20, 100, 100, 100, 300, 1_000, 5_000))
    b = chance.randint(0, top * scale)
    if chance.random() < 0.1:
        b = -b // 4
    reach = max(2, abs(b) // 10) if chance.random() < 0.5 else max(5, top * scale)
    least = 0 if kind in {"at_least", "at_most", "equal", "outside"} else 1
    a = b + chance.choice((-1, 1)) * chance.randint(least, reach)
    c = b + chance.randint(2, max(4, reach))
    if kind in {"inside", "outside"}:
        outside = (b - chance.randint(1, reach), c + chance.randint(1, reach))
        a = chance.choice((chance.randint(b, c), *outside))
    elif kind == "equal" and chance.random() < 0.5:
        a = b
    if b >= 0:
        a = abs(a)
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


def _count(chance: random.Random, factor: int) -> Number:
    """Return how many of the larger unit: small where the factor is not a power of ten."""
    if chance.random() < 0.15:
        return chance.choice((1, 1, 0.5, 2))
    if factor % 10 or factor == 60:
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
    "units": make_units,
}
