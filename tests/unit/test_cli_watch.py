"""What `fleet watch` says above its table."""

from __future__ import annotations

import msgspec
import pytest

from fleet_cli.commands.watch import _headline
from fleet_client.watch import FleetPicture
from fleet_protocol.messages import FleetSummary, LoadView


def last_line(**load: object) -> str:
    view = msgspec.convert(load, LoadView)
    return _headline(FleetPicture(summary=FleetSummary(at_ms=1, load=view)))[-1]


def test_where_all_is_and_was_well_nothing_is_said_of_the_load() -> None:
    assert "second best" in last_line()


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ({"step": 1, "causes": ["memory"], "refuses_below": 3}, ["step 1", "memory", "below 3"]),
        (
            {"step": 2, "refuses_below": 3, "spares_below": 6, "refused": 7},
            ["step 2", "ebbing", "below 6 the library", "busy 7"],
        ),
        ({"causes": ["latency"]}, ["beyond its limit: latency"]),
        ({"shed": 2}, ["shed 2"]),
    ],
)
def test_what_is_given_up_is_said(load: dict[str, object], words: list[str]) -> None:
    line = last_line(**load)
    for word in words:
        assert word in line


def test_what_was_second_best_is_counted() -> None:
    summary = FleetSummary(at_ms=1, degraded={"provider_open": 3})
    assert "second best provider_open 3" in _headline(FleetPicture(summary=summary))[-1]
