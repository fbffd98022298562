"""The choice among endpoints, and what a device sees of several calls."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloud_dispatcher.core import chain
from cloud_dispatcher.core.chain import Sight
from cloud_dispatcher.core.continuity import Continuity

WELL, OPEN, FULL = Sight(), Sight(open_ms=9_000), Sight(is_full=True)
OUT, SHORT, LONG = Sight(is_out=True), Sight(wait_ms=1_000), Sight(wait_ms=5_000)


def test_the_first_endpoint_that_answers_at_once_is_asked() -> None:
    assert chain.choose([WELL, WELL], patient=True) == 0
    assert chain.choose([OPEN, OUT, WELL], patient=True) == 2
    assert chain.choose([FULL, WELL], patient=True) == 1


def test_a_short_wait_is_better_than_a_backup_and_a_long_one_worse() -> None:
    assert chain.choose([SHORT, WELL], patient=True) == 0
    assert chain.choose([LONG, WELL], patient=True) == 1


def test_only_a_patient_call_queues_and_where_the_wait_is_shortest() -> None:
    assert chain.choose([LONG, FULL], patient=True) == 1
    assert chain.choose([LONG, FULL], patient=False) is None


def test_nobody_waits_for_a_breaker() -> None:
    assert chain.choose([OPEN, OUT], patient=True) is None
    assert chain.is_closed([OPEN, OUT])
    assert not chain.is_closed([OPEN, LONG])


def test_the_pause_ends_when_any_endpoint_takes_a_call() -> None:
    assert chain.pause_ms([OPEN, LONG, OUT]) == 5_000
    assert chain.pause_ms([OPEN, WELL]) == 0
    assert chain.pause_ms([OUT]) is None


def test_a_call_leaves_the_other_half_of_the_time_to_a_backup() -> None:
    assert chain.patience_ms(60_000, has_other=True) == 30_000
    assert chain.patience_ms(60_000, has_other=False) == 60_000
    assert chain.patience_ms(1, has_other=True) == 1


def test_a_call_that_says_the_same_goes_on_where_the_device_is() -> None:
    text = Continuity()
    assert [text.grow("The "), text.grow("pump ")] == ["The ", "pump "]
    text.restart()
    assert [text.grow("The pu"), text.grow("mp is"), text.grow(" dry")] == ["", "is", " dry"]
    assert text.shown == "The pump is dry"


def test_a_call_that_says_something_else_is_not_shown() -> None:
    text = Continuity()
    text.grow("The pump")
    text.restart()
    assert [text.grow("A pump"), text.grow(" is dry")] == ["", ""]
    assert text.shown == "The pump"


@given(st.lists(st.lists(st.text("ab", max_size=3), max_size=6), max_size=4))
def test_what_is_shown_only_ever_grows_and_begins_some_call(calls: list[list[str]]) -> None:
    text, seen = Continuity(), ""
    for call in calls:
        text.restart()
        for piece in call:
            seen += text.grow(piece)
            assert text.shown == seen
    assert not seen or any("".join(call).startswith(seen) for call in calls)
