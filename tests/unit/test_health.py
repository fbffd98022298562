"""When a host is too hot."""

from __future__ import annotations

import pytest

from edge_worker.core.health import HYSTERESIS_C, HostReading, is_hot

LIMIT_C = 80.0


def reading(temp_c: float | None = None, *, throttled: bool | None = None) -> HostReading:
    return HostReading(cpu_pct=1.0, mem_pct=1.0, temp_c=temp_c, throttled=throttled)


@pytest.mark.parametrize(
    ("now", "was_hot", "hot"),
    [
        (reading(79.9), False, False),
        (reading(80.0), False, True),
        (reading(80.0 - HYSTERESIS_C), True, True),
        (reading(79.9 - HYSTERESIS_C), True, False),
        (reading(20.0, throttled=True), False, True),
        (reading(20.0, throttled=False), True, False),
        (reading(None), True, False),
    ],
)
def test_hot_is_throttled_or_at_the_limit_and_stays_so_until_it_cooled(
    *, now: HostReading, was_hot: bool, hot: bool
) -> None:
    assert is_hot(now, limit_c=LIMIT_C, was_hot=was_hot) is hot
