"""Expressions come to what they come to; what stands between marks is followed and hidden."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from operator import add, eq, ge, gt, le, lt, mul, sub, truediv
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fleet_protocol.calculation import (
    CLOSING,
    LONGEST_CHARS,
    Calculator,
    VisibleText,
    annotate,
    calculate,
    open_expression,
    visible,
    write_number,
)

OPERATIONS = {"+": add, "-": sub, "*": mul, "/": truediv}
COMPARISONS = {"<": lt, ">": gt, "<=": le, ">=": ge, "==": eq}
MARKED = st.text("<>|0123456789+-*/(). a\u00e9=", max_size=60)


def number(text: str) -> tuple[str, Fraction]:
    return text, Fraction(text)


def joined(parts: tuple[Any, str, Any]) -> tuple[str, Fraction | None]:
    (left, one), sign, (right, other) = parts
    if one is None or other is None or (sign == "/" and other == 0):
        return f"({left}{sign}{right})", None
    return f"({left}{sign}{right})", OPERATIONS[sign](one, other)


numbers = st.from_regex(r"\A[0-9]{1,4}(\.[0-9]{1,2})?\Z").map(number)
negated = st.deferred(lambda: terms).map(
    lambda term: (f"-{term[0]}", None if term[1] is None else -term[1])
)
terms: st.SearchStrategy[Any] = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(list(OPERATIONS)), inner).map(joined), negated
    ),
    max_leaves=6,
)


@given(term=terms)
def test_an_expression_comes_to_what_fractions_say(
    term: tuple[str, Fraction | None],
) -> None:
    text, value = term
    assume(len(text) <= LONGEST_CHARS)
    found = calculate(text)
    if value is None or abs(value) > 10**15:
        assert found is None
        return
    assert found is not None
    assert abs(Fraction(found) - value) <= Fraction(1, 2 * 10**6)
    assert found == write_number(Fraction(found))


@given(
    values=st.lists(numbers, min_size=4, max_size=4),
    signs=st.lists(st.sampled_from("+-*/"), min_size=3, max_size=3),
)
def test_multiplication_binds_more_tightly_and_the_left_one_first(
    values: list[tuple[str, Fraction]], signs: list[str]
) -> None:
    parts = list(zip((text for text, _ in values), [*signs, ""], strict=True))
    text = "".join(f"{value}{sign}" for value, sign in parts)
    exact = "".join(f"Fraction('{value}'){sign}" for value, sign in parts)
    try:
        wanted = eval(exact, {"Fraction": Fraction})  # noqa: S307 - digits and signs made here
    except ZeroDivisionError:
        wanted = None
    is_in_range = wanted is not None and abs(wanted) <= 10**15
    assert calculate(text) == (write_number(wanted) if is_in_range else None)


@given(
    values=st.lists(numbers, min_size=2, max_size=4),
    signs=st.lists(st.sampled_from(list(COMPARISONS)), min_size=3, max_size=3),
)
def test_a_chain_of_comparisons_holds_where_every_link_does(
    values: list[tuple[str, Fraction]], signs: list[str]
) -> None:
    links = list(zip(values, signs, values[1:], strict=False))
    text = "".join(f"{value}{sign}" for (value, _), sign, _ in links) + values[-1][0]
    holds = all(COMPARISONS[sign](one, other) for (_, one), sign, (_, other) in links)
    assert calculate(text) == ("yes" if holds else "no")


@given(st.one_of(st.text(max_size=100), st.text("()-+*/.<>=0 1\u0663", max_size=100)))
@example("(" * LONGEST_CHARS)
@example("-" * 79 + "1")
@example("1/0")
def test_what_is_no_expression_comes_to_nothing_and_raises_nothing(text: str) -> None:
    found = calculate(text)
    assert found in {None, "yes", "no"} or Fraction(found or 0) is not None


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("91-37", "54"),
        ("1.5*1000", "1500"),
        ("999999999999999.123456", "999999999999999.123456"),
        ("1/3", "0.333333"),
        ("0-1/10000000", "0"),
        ("-5/2", "-2.5"),
        ("10**2", None),
        ("5--5", "10"),
        ("10*10*10*10*10*10*10*10*10*10*10*10*10*10*10*10", None),
        (" 2 <= 9.1 <= 8 ", "no"),
        ("1<2+3", "yes"),
        ("(1<2)+3", None),
        ("", None),
    ],
)
def test_examples_of_the_notation(text: str, result: str | None) -> None:
    assert calculate(text) == result


def test_only_an_expression_can_be_annotated() -> None:
    assert annotate("91-37") == "<<91-37|54>>"
    with pytest.raises(ValueError, match="not a calculation"):
        annotate("now")


@given(text=MARKED, cuts=st.lists(st.integers(0, 60), max_size=20))
@example(text="a<<<1|>>>b<", cuts=list(range(12)))
def test_what_is_shown_does_not_depend_on_how_the_text_arrives(text: str, cuts: list[int]) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(places)]
    arriving = VisibleText()
    shown = "".join(map(arriving.push, pieces)) + arriving.finish()
    assert shown == visible(text)


def test_only_a_mark_that_may_have_begun_is_held() -> None:
    text = VisibleText()
    assert [text.push(piece) for piece in ("1 <", " 2", "<", "<", "3|3>", ">4")] == [
        *("1 ", "< 2", "", "", "", "4")
    ]
    assert text.hidden_pieces == 3
    assert not text.is_open


def tokens_of(text: str) -> list[int]:
    return list(text.encode())


def calculator() -> Calculator:
    """One whose tokens are bytes."""
    return Calculator(piece_of=lambda token: bytes([token]), encode=tokens_of)


@given(text=MARKED)
@example("<<" + "1+" * 39 + "1|")
@example("<<" + "1+" * 40 + "1|")
@example("<<<1|")
@example("<<1|2>><<3+4|")
def test_a_result_is_due_exactly_where_an_open_expression_has_one(text: str) -> None:
    following, said = calculator(), ""
    for token in tokens_of(text):
        prefix = following.free_prefix((token, *tokens_of("zz")))
        following.accept(token)
        said = bytes([*said.encode(errors="surrogateescape"), token]).decode(
            errors="surrogateescape"
        )
        expression = open_expression(said)
        result = None if expression is None else calculate(expression)
        assert (prefix == 1) == (result is not None)
        if result is None:
            assert following.due == ()
            continue
        assert following.due == tuple(tokens_of(result + CLOSING))
        assert following.free_prefix((*following.due, 0)) == len(following.due)
        assert following.free_prefix((0, *following.due)) == 0
        while following.due:
            said += chr(following.due[0])
            following.accept(following.due[0])
    assert following.due == ()


def test_a_token_without_text_makes_no_result_due_again() -> None:
    following = Calculator(piece_of=lambda token: bytes([token] if token else []), encode=tokens_of)
    for token in tokens_of("<<1+2|3>>"):
        following.accept(token)
    following.accept(0)
    assert following.due == ()


def test_a_draft_is_free_up_to_where_a_result_becomes_due() -> None:
    following = calculator()
    draft = tokens_of("so <<1+2|4>> it")
    assert following.free_prefix(draft) == len("so <<1+2|")
    assert following.free_prefix(tokens_of("so <<1+|4>> it")) == len("so <<1+|4>> it")
    assert following.due == ()
    for token in tokens_of("so <<1+2|"):
        following.accept(token)
    assert bytes(following.due) == b"3>>"
    assert following.free_prefix(draft) == 0
