"""Programs that take turns at the same measurements, round after round."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.workload import Job, Peer, Run

# A runtime's threads spin a little after their last work, and would slow the next program down.
SETTLE_S = 0.15


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Something that several programs are asked for in turn.

    Attributes:
        figure: Its name, with the unit.
        of: What a run says.
        who: Names of the programs that take part.
        warm: Run right before, by each of them; its outcome is forgotten.
    """

    figure: str
    jobs: Sequence[Job]
    of: Callable[[Run], float]
    who: Sequence[str]
    at_once: int = 1
    warm: Sequence[Job] = ()


class Rounds:
    """The figures of every program: one value a round, where it took part."""

    def __init__(self, peers: Mapping[str, Peer]) -> None:
        self._peers = peers
        self._values: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)

    def run(self, number: int, measurements: Sequence[Measurement]) -> None:
        """Let all of them take their turns; another one begins in every round."""
        for one in measurements:
            begins = number % len(one.who)
            for name in (*one.who[begins:], *one.who[:begins]):
                if name in self._peers:
                    self.note(number, name, one.figure, self._measure(self._peers[name], one))

    def note(self, number: int, name: str, figure: str, value: float) -> None:
        """Keep one value."""
        self._values[name, figure][number] = value

    def value(self, number: int, name: str, figure: str) -> float:
        """Return the value of one round."""
        return self._values[name, figure][number]

    def median(self, name: str, figure: str) -> float:
        """Return the median over the rounds."""
        return statistics.median(self._values[name, figure].values())

    def medians(self, name: str) -> dict[str, float]:
        """Return all medians of a program."""
        return {figure: self.median(name, figure) for who, figure in self._values if who == name}

    def ratios(self, above: tuple[str, str], below: tuple[str, str]) -> list[float]:
        """Return (name, figure) over (name, figure), in each round that has both."""
        over, under = self._values.get(above, {}), self._values.get(below, {})
        return [over[number] / under[number] for number in sorted(over.keys() & under.keys())]

    @staticmethod
    def _measure(peer: Peer, measurement: Measurement) -> float:
        time.sleep(SETTLE_S)
        if measurement.warm:
            peer.run(measurement.warm)
        return measurement.of(peer.run(measurement.jobs, at_once=measurement.at_once))
