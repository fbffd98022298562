"""When there is too much to do: signals, steps down, and the way back."""

from __future__ import annotations

import pytest

from cloud_dispatcher.core.overload import Overload, OverloadSettings
from fleet_protocol.messages import (
    AnsweredBy,
    JobResult,
    JobStatus,
    LoadView,
    OfflineMatch,
)

SETTINGS = OverloadSettings()
HOLD_MS, RELIEF_MS = SETTINGS.hold_ms, SETTINGS.relief_ms


def answered(span: str = "edge", **fields: object) -> JobResult:
    return JobResult(id="1", status=JobStatus.OK, answered_by=AnsweredBy(span), **fields)  # type: ignore[arg-type]


def failed(code: str = "provider_open", status: JobStatus = JobStatus.FAILED) -> JobResult:
    return JobResult(id="1", status=status, code=code)


class Watched:
    """An overload watch that is looked at every second."""

    def __init__(self, settings: OverloadSettings = SETTINGS) -> None:
        self.overload = Overload(settings)
        self.now_ms = 1_000_000

    def ended(
        self, result: JobResult, *, times: int = 1, span_ms: int = 100, work_ms: int = 50
    ) -> None:
        for _ in range(times):
            now_ms = self.now_ms
            self.overload.ended(result, span_ms=span_ms, work_ms=work_ms, now_ms=now_ms)

    def second(self, *, waiting: int = 0, memory_pct: float | None = None) -> LoadView:
        self.now_ms += 1_000
        self.overload.look(self.now_ms, waiting=waiting, memory_pct=memory_pct)
        return self.overload.view()

    def seconds(
        self,
        count: int,
        *,
        waiting: int = 0,
        memory_pct: float | None = None,
        span_ms: int | None = None,
        work_ms: int = 50,
    ) -> list[int]:
        """Return the step after each second, in each of which an answer took `span_ms`."""
        steps = []
        for _ in range(count):
            if span_ms is not None:
                self.ended(answered(), span_ms=span_ms, work_ms=work_ms)
            steps.append(self.second(waiting=waiting, memory_pct=memory_pct).step)
        return steps


@pytest.fixture
def watched() -> Watched:
    return Watched()


class TestSteps:
    def test_a_step_is_taken_after_each_thirty_seconds_beyond_a_limit(
        self, watched: Watched
    ) -> None:
        steps = watched.seconds(100, memory_pct=90.0)
        assert [steps.index(step) for step in (1, 2)] == [30, 60]
        assert max(steps) == 2

    def test_a_moment_below_the_limit_begins_the_wait_anew(self, watched: Watched) -> None:
        assert max(watched.seconds(29, memory_pct=90.0)) == 0
        watched.second(memory_pct=84.9)
        assert max(watched.seconds(30, memory_pct=90.0)) == 0
        assert watched.second(memory_pct=90.0).step == 1

    def test_steps_are_taken_back_one_by_one_each_after_a_minute(self, watched: Watched) -> None:
        watched.seconds(70, memory_pct=90.0)
        steps = watched.seconds(130, memory_pct=50.0)
        assert [steps.index(step) for step in (1, 0)] == [60, 120]

    def test_a_signal_is_silent_again_only_a_tenth_below_its_limit(self, watched: Watched) -> None:
        watched.seconds(31, memory_pct=90.0)
        steps = watched.seconds(300, memory_pct=80.0)  # below 85, above 76.5
        assert steps[-1] == 2
        assert watched.second(memory_pct=76.0).causes == ()

    def test_a_relapse_during_the_relief_begins_it_anew(self, watched: Watched) -> None:
        watched.seconds(31, memory_pct=90.0)
        watched.seconds(59, memory_pct=50.0)
        watched.seconds(31, memory_pct=90.0)
        assert watched.overload.step == 2

    def test_switched_off_nothing_is_ever_given_up(self) -> None:
        watched = Watched(OverloadSettings(enabled=False))
        assert max(watched.seconds(200, memory_pct=99.0)) == 0


class TestSignals:
    def test_late_answers_press_where_jobs_wait(self, watched: Watched) -> None:
        assert watched.seconds(31, waiting=1, span_ms=1_001)[-1] == 1
        assert watched.overload.view().causes == ("latency",)

    def test_late_answers_without_a_queue_are_an_alert_and_no_step(self, watched: Watched) -> None:
        assert max(watched.seconds(200, span_ms=5_000)) == 0
        view = watched.overload.view()
        assert (view.causes, view.edge_p50_ms) == (("latency",), 5_000.0)

    def test_boards_that_work_for_seconds_on_each_answer_are_slow_and_nothing_more(
        self, watched: Watched
    ) -> None:
        assert max(watched.seconds(200, waiting=3, span_ms=8_000, work_ms=5_000)) == 0
        view = watched.overload.view()
        assert (view.causes, view.edge_p50_ms, view.edge_work_p50_ms) == ((), 8_000.0, 5_000.0)

    def test_their_answers_are_late_where_jobs_wait_longer_than_they_are_worked_on(
        self, watched: Watched
    ) -> None:
        assert watched.seconds(31, waiting=3, span_ms=10_001, work_ms=5_000)[-1] == 1
        watched.seconds(31, waiting=3, span_ms=9_500, work_ms=5_000)
        assert watched.overload.view().causes == ("latency",)
        watched.seconds(31, waiting=3, span_ms=8_900, work_ms=5_000)
        assert watched.overload.view().causes == ()

    def test_quick_boards_do_not_press_however_many_wait(self, watched: Watched) -> None:
        assert max(watched.seconds(100, waiting=10_000, span_ms=1_000)) == 0

    def test_it_is_half_of_the_answers_that_counts(self, watched: Watched) -> None:
        for _ in range(100):
            watched.ended(answered(), times=3, span_ms=100)
            watched.ended(answered(), times=2, span_ms=60_000)
            assert watched.second(waiting=1).edge_p50_ms == 100.0

    @pytest.mark.parametrize(
        "result",
        [answered("cloud"), answered("cache"), answered(degraded=True), failed()],
        ids=["cloud", "cache", "kept", "failed"],
    )
    def test_only_whole_answers_of_boards_say_how_long_boards_take(
        self, watched: Watched, result: JobResult
    ) -> None:
        watched.ended(result, span_ms=60_000)
        assert watched.second().edge_p50_ms is None

    def test_without_answers_there_is_no_latency(self, watched: Watched) -> None:
        watched.seconds(31, waiting=1, span_ms=5_000)
        watched.seconds(31, waiting=1)
        assert watched.overload.view().edge_p50_ms is None

    def test_too_many_failures_press_where_jobs_wait(self, watched: Watched) -> None:
        watched.ended(answered(), times=94)
        watched.ended(failed(), times=3)
        watched.ended(failed("deadline", JobStatus.EXPIRED), times=3)
        assert watched.seconds(31, waiting=1)[-1] == 1
        view = watched.overload.view()
        assert (view.causes, view.success_share) == (("success",), 0.94)

    def test_an_outage_of_the_cloud_refuses_nobody_what_idle_boards_can_answer(
        self, watched: Watched
    ) -> None:
        watched.ended(failed(), times=100)
        assert max(watched.seconds(200)) == 0
        assert watched.overload.view().causes == ("success",)

    def test_five_in_a_hundred_are_no_trouble_nor_are_all_of_a_few(self, watched: Watched) -> None:
        watched.ended(failed(), times=19)
        assert watched.second().success_share is None
        watched.ended(answered(), times=400)
        assert max(watched.seconds(100, waiting=1)) == 0

    def test_the_librarys_default_is_no_answer_but_its_entries_are(self, watched: Watched) -> None:
        for kind in ("exact", "default"):
            offline = OfflineMatch(kind=kind)
            watched.ended(answered("offline", offline=offline, degraded=True), times=10)
        assert watched.second().success_share == 0.5

    @pytest.mark.parametrize(
        "result",
        [
            failed("bad_output_format"),
            failed("too_long"),
            failed("shed"),
            failed("cancelled", JobStatus.CANCELLED),
        ],
        ids=lambda result: result.code,
    )
    def test_what_is_not_the_fleets_fault_does_not_count(
        self, watched: Watched, result: JobResult
    ) -> None:
        watched.ended(result, times=100)
        assert watched.second().success_share is None

    def test_old_failures_are_forgiven(self, watched: Watched) -> None:
        watched.ended(failed(), times=100)
        assert watched.second().success_share == 0.0
        watched.now_ms += SETTINGS.success_window_ms
        assert watched.second().success_share is None


class TestWhatIsGivenUp:
    def test_low_priorities_first_then_middling_ones_and_never_the_high(self) -> None:
        watched = Watched()
        given_up = []
        for seconds in (0, 31, 30):
            watched.seconds(seconds, memory_pct=90.0)
            overload = watched.overload
            refused = sum(overload.refuses(priority) for priority in range(10))
            spared = sum(overload.spares(priority) for priority in range(10))
            given_up.append((refused, spared))
        assert given_up == [(0, 0), (3, 0), (3, 6)]
        view = watched.overload.view()
        assert (view.refuses_below, view.spares_below) == (3, 6)
