"""`--defer`, and how long a command that has it waits: the same for `ask` and `submit`."""

from __future__ import annotations

from typing import Final

import click

from fleet_protocol.messages import Defer

_DAY_S: Final = 86_400.0

defer_option = click.option(
    "--defer",
    type=click.Choice([str(defer) for defer in Defer]),
    default=str(Defer.NO),
    show_default=True,
    help="Whether a question for the cloud may wait for the hours in which it costs less.",
)


def timeout_help(usual_s: float) -> str:
    """Say what `patience_s` does where no --timeout is given."""
    return f"{usual_s:g}; a day with --defer {Defer.OFFPEAK}"


def patience_s(
    given_s: float | None, *, defer: str, usual_s: float, not_before_ms: int = 0
) -> float:
    """Return how long to wait for an answer: as told, else long enough for what may be deferred.

    What is not to be begun before a span is over is waited for from then on.
    """
    if given_s is not None:
        return given_s
    return not_before_ms / 1_000 + (_DAY_S if defer == Defer.OFFPEAK else usual_s)
