"""When something is due."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloud_dispatcher.core.alarms import Alarms


def test_names_come_due_in_order_and_once() -> None:
    alarms: Alarms[str] = Alarms()
    for name, at_ms in (("b", 20), ("a", 10), ("c", 30)):
        alarms.set(name, at_ms)
    assert alarms.next_at_ms() == 10
    assert alarms.take(20, limit=9) == ["a", "b"]
    assert alarms.take(20, limit=9) == []
    assert alarms.next_at_ms() == 30


def test_no_more_are_taken_than_asked_for() -> None:
    alarms: Alarms[str] = Alarms()
    for name in "abc":
        alarms.set(name, 1)
    assert alarms.take(5, limit=2) == ["a", "b"]
    assert alarms.next_at_ms() == 1


def test_putting_off_and_clearing_leaves_no_pile() -> None:
    alarms: Alarms[str] = Alarms()
    alarms.set("z", 10**9)
    for number in range(20_000):
        alarms.set("z", 10**9 + number)
        alarms.set(f"n{number}", 10**8)
        alarms.clear(f"n{number}")
    assert len(alarms._heap) < 2_000
    assert alarms.next_at_ms() == 10**9 + 19_999


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(0, 50) | st.none() | st.just(-1)),
        max_size=100,
    )
)
def test_the_heap_always_agrees_with_a_plain_dict(steps: list[tuple[str, int | None]]) -> None:
    alarms: Alarms[str] = Alarms()
    plain: dict[str, int] = {}
    for name, at_ms in steps:
        if at_ms is None:
            alarms.clear(name)
            plain.pop(name, None)
        elif at_ms < 0:
            due = sorted(key for key, due_ms in plain.items() if due_ms <= 25)
            assert sorted(alarms.take(25, limit=99)) == due
            plain = {key: due_ms for key, due_ms in plain.items() if key not in due}
        else:
            alarms.set(name, at_ms)
            plain[name] = at_ms
        assert alarms.next_at_ms() == min(plain.values(), default=None)
        assert len(alarms) == len(plain)
