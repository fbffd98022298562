"""A filter of names may be wrong when it says yes, never when it says no."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloud_dispatcher.adapters import name_filter
from cloud_dispatcher.adapters.name_filter import NameFilter

NAMES = st.tuples(st.text(max_size=36), st.text(max_size=36))


@given(st.sets(NAMES, max_size=50), st.sets(NAMES, max_size=50))
def test_whatever_was_added_is_held(
    first: set[tuple[str, str]], later: set[tuple[str, str]]
) -> None:
    names = NameFilter(first)
    names.add_all(later)
    assert all(map(names.may_hold, first | later))


def test_few_others_are_held() -> None:
    names = NameFilter(("device", f"job-{number}") for number in range(100_000))
    wrong = sum(names.may_hold(("device", f"other-{number}")) for number in range(10_000))
    assert wrong < 100  # 0.15 % by its size; 1 % are allowed


def test_an_empty_one_holds_nothing_and_a_full_one_says_so() -> None:
    names = NameFilter()
    assert not names.may_hold(("device", "job"))
    assert not names.is_full
    names.add_all([("device", "job")] * (name_filter._FULL - 1))
    assert not names.is_full
    names.add_all([("device", "job")])
    assert names.is_full
