"""What is simulated: the boards, what they are asked, and what goes wrong."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec

from cloud_dispatcher.core.settings import EngineSettings
from cloud_dispatcher.simulation.kinds import KINDS, BoardKind
from fleet_protocol.errors import ConfigError, cause_of
from fleet_protocol.settings import parse_settings

_Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
_Positive = Annotated[float, msgspec.Meta(gt=0.0)]
_Count = Annotated[int, msgspec.Meta(ge=1)]
_NO_COUNT = Annotated[int, msgspec.Meta(ge=0, le=100_000)]


class Spells(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that comes over some of the boards again and again.

    Attributes:
        share: Of the boards that it comes over at all.
        every_s: Mean span from the end of one spell to the next; exponential.
        span_s: Mean span of one; exponential.
    """

    share: _Share = 0.0
    every_s: _Positive = 300.0
    span_s: _Positive = 30.0


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes wrong.

    Attributes:
        throttling: A board is too hot and works at `throttled_to` of its speed.
        board_loss: Its power fails. It comes back with what its spool holds, and begins that anew.
        link_loss: It works on, unheard. What was said meanwhile arrives later, heartbeats never.
        failing: It gives each job that it is given back at once, as failed.
        stale_share: Of the boards whose heartbeats say what was the case `stale_s` ago.
        wrong_share: Of the boards that declare a wrong speed: every other one `wrong_factor` times
            what it has, the rest the same part of it.
    """

    throttling: Spells = Spells(share=0.2, every_s=120.0, span_s=60.0)
    throttled_to: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.4
    board_loss: Spells = Spells(share=0.05, every_s=300.0, span_s=45.0)
    link_loss: Spells = Spells(share=0.05, every_s=300.0, span_s=15.0)
    failing: Spells = Spells()
    stale_share: _Share = 0.1
    stale_s: _Positive = 60.0
    wrong_share: _Share = 0.1
    wrong_factor: Annotated[float, msgspec.Meta(gt=1.0)] = 4.0


class Pattern(StrEnum):
    """How jobs come."""

    POISSON = "poisson"
    BURSTS = "bursts"


class Arrivals(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked, and when.

    Attributes:
        pattern: `bursts`: every `burst_every_s` for `burst_span_s` jobs come `burst_factor` times
            as fast as otherwise; the mean stays.
        jobs: So many.
        load: Mean demand over what the boards could answer if nothing went wrong.
        jobs_per_s: The mean rate itself, instead of `load`.
        devices: That ask, a few of them much more than most (the n-th 1/n as much as the first).
        deadline_s: Span after which an answer is worth nothing.
        prompt_tokens: Median length of a prompt; log-normal.
        answer_tokens: Median length of an answer; log-normal.
        spread: Standard deviation of both logarithms.
        max_tokens: Longest answer, which is what the dispatcher is told.
    """

    pattern: Pattern = Pattern.POISSON
    jobs: _Count = 4_000
    load: _Positive = 0.6
    jobs_per_s: _Positive | None = None
    devices: _Count = 50
    deadline_s: _Positive = 10.0
    prompt_tokens: _Positive = 80.0
    answer_tokens: _Positive = 20.0
    spread: Annotated[float, msgspec.Meta(ge=0.0, le=3.0)] = 0.7
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=4_096)] = 64
    burst_factor: _Positive = 4.0
    burst_every_s: _Positive = 60.0
    burst_span_s: _Positive = 10.0


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing to try out; `fleet sim` reads it from a TOML file.

    Attributes:
        boards: How many of each kind.
        kinds: Boards of one's own, or others' figures corrected.
        warm_up: Share of the jobs, the first ones, that no figure counts.
        engine: The dispatcher's own settings, as in the table `[engine]` of its file.
    """

    boards: dict[str, _NO_COUNT] = msgspec.field(
        default_factory=lambda: {"pi4": 50, "pi5": 30, "jetson": 20}
    )
    kinds: dict[str, BoardKind] = {}
    arrivals: Arrivals = Arrivals()
    faults: Faults = Faults()
    warm_up: Annotated[float, msgspec.Meta(ge=0.0, le=0.9)] = 0.1
    engine: EngineSettings = EngineSettings()

    def __post_init__(self) -> None:
        unknown = sorted(set(self.boards) - set(self.all_kinds))
        if unknown:
            raise ValueError(
                f"boards: no kind {unknown[0]!r}; known are {', '.join(self.all_kinds)}"
            )
        if not sum(self.boards.values()):
            raise ValueError("boards: at least one is needed")

    @property
    def all_kinds(self) -> dict[str, BoardKind]:
        """The kinds of boards by name, the scenario's own first."""
        return {**KINDS, **self.kinds}


def read_scenario(path: Path | None) -> Scenario:
    """Read a scenario file; None: the default one.

    Raises:
        ConfigError: It cannot be read, or a setting in it is wrong.
    """
    if path is None:
        return Scenario()
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {cause_of(error)}", hint="name another file"
        ) from error
    return parse_settings(Scenario, toml=text, environ={}, prefix="-", origin=str(path))
