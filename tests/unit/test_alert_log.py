"""Which alerts fire, who looks after them, and what is remembered of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cloud_dispatcher.core.alert_log import KEPT_MOST, AlertLog
from fleet_protocol.messages import Alert, Severity

STORE = Alert(id="store", severity=Severity.CRITICAL, title="No store", since_at_ms=1_000)


def names(views: tuple[Alert, ...]) -> list[tuple[str, int | None]]:
    return [(view.id, view.resolved_at_ms) for view in views]


def test_what_fires_comes_before_what_is_over_and_each_newest_first() -> None:
    log = AlertLog()
    for name, since_at_ms in (("a", 1), ("b", 2), ("c", 3), ("d", 4)):
        log.fire(replace(STORE, id=name, since_at_ms=since_at_ms))
    assert log.resolve("b", 10)
    assert log.resolve("a", 11)
    assert names(log.views()) == [("d", None), ("c", None), ("a", 11), ("b", 10)]
    assert log.firing == {Severity.CRITICAL: 2}


def test_an_alert_said_again_keeps_its_moment_and_who_looks_after_it() -> None:
    log = AlertLog()
    log.fire(STORE)
    log.acknowledge("store", by="ann", now_ms=1_500)
    again = log.fire(replace(STORE, since_at_ms=9_000, detail="another file"))
    assert (again.since_at_ms, again.acked_by, again.acked_at_ms) == (1_000, "ann", 1_500)
    assert again.detail == "another file"
    assert len(log.views()) == 1


@pytest.mark.parametrize("change", [{"title": "Worse"}, {"severity": Severity.WARNING}])
def test_another_title_or_severity_is_another_alert_that_nobody_looks_after(
    change: dict[str, object],
) -> None:
    log = AlertLog()
    log.fire(STORE)
    log.acknowledge("store", by="ann", now_ms=1_500)
    worse = log.fire(replace(STORE, since_at_ms=2_000, **change))
    assert worse.acked_by is None
    first, second = log.views()
    assert (first.since_at_ms, first.resolved_at_ms) == (2_000, None)
    assert (second.acked_by, second.resolved_at_ms) == ("ann", 2_000)


def test_the_first_who_looks_after_it_stays_so() -> None:
    log = AlertLog()
    log.fire(STORE)
    assert log.acknowledge("store", by="ann", now_ms=1_500)
    later = log.acknowledge("store", by="bob", now_ms=1_600)
    assert later is not None
    assert (later.acked_by, later.acked_at_ms) == ("ann", 1_500)


def test_nobody_looks_after_what_does_not_fire() -> None:
    log = AlertLog()
    assert log.acknowledge("store", by="ann", now_ms=1) is None
    log.fire(STORE)
    log.resolve("store", 2_000)
    assert log.acknowledge("store", by="ann", now_ms=2_001) is None
    log.resolve("store", 3_000)
    assert names(log.views()) == [("store", 2_000)]


def test_the_next_run_goes_on_with_what_fires() -> None:
    log = AlertLog()
    log.fire(STORE)
    log.fire(replace(STORE, id="over"))
    log.resolve("over", 1_200)
    log.acknowledge("store", by="ann", now_ms=1_500)
    after = AlertLog(log.views())
    assert after.views() == log.views()
    assert after.fire(replace(STORE, since_at_ms=9_000)).acked_by == "ann"


def test_what_an_earlier_run_left_and_nobody_speaks_of_is_over_after_a_minute() -> None:
    left = AlertLog()
    for name in ("store", "cloud-3", "library"):
        left.fire(replace(STORE, id=name))
    log = AlertLog(left.views())
    assert log.forgotten(10_000) == []
    log.fire(STORE)
    # That it does not fire yet says nothing: it may be about to.
    assert not log.resolve("library", 11_000)
    assert log.firing == {Severity.CRITICAL: 3}
    assert log.forgotten(69_999) == []
    assert log.forgotten(70_000) == ["cloud-3", "library"]
    for name in ("cloud-3", "library"):
        assert log.resolve(name, 70_000)
    assert log.forgotten(999_999) == []
    assert log.firing == {Severity.CRITICAL: 1}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40))
def test_each_alert_is_told_once_as_firing_and_once_as_over(
    steps: list[tuple[str, bool]],
) -> None:
    log, fired, over, firing = AlertLog(), 0, 0, set[str]()
    for at_ms, (name, fires) in enumerate(steps):
        if fires:
            fired += name not in firing
            firing.add(name)
            log.fire(replace(STORE, id=name, since_at_ms=at_ms))
        else:
            over += name in firing
            firing.discard(name)
            log.resolve(name, at_ms)
    views = log.views()
    assert len(views) == fired
    assert sum(view.resolved_at_ms is not None for view in views) == over
    assert {view.id for view in views if view.resolved_at_ms is None} == firing
    assert AlertLog(views).views() == views


def test_the_history_is_bounded_and_the_oldest_goes_first() -> None:
    log = AlertLog()
    for number in range(KEPT_MOST + 5):
        log.fire(replace(STORE, since_at_ms=number))
        log.resolve("store", number)
    views = log.views()
    assert len(views) == KEPT_MOST
    assert (views[0].since_at_ms, views[-1].since_at_ms) == (KEPT_MOST + 4, 5)


def test_only_what_changes_something_is_worth_saving() -> None:
    log = AlertLog()
    log.resolve("store", 1)
    assert log.version == 0
    log.fire(STORE)
    version = log.version
    log.fire(STORE)
    log.acknowledge("nobody", by="ann", now_ms=1)
    assert log.version == version > 0
