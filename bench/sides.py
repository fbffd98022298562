"""What every side of the dispatch benchmark can do, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass
class Run:
    """What came of a load.

    Attributes:
        wall_s: From the first submission to the last result.
        latencies_s: Of each job, from its submission to its result.
        cpu_s: Processor time of the side's own process: ours is the dispatcher, a peer's is its
            worker. Brokers, Redis and NATS are not in it.
    """

    wall_s: float
    latencies_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0

    @property
    def jobs(self) -> int:
        """Jobs that were answered."""
        return len(self.latencies_s)

    @property
    def jobs_per_s(self) -> float:
        """Jobs a second."""
        return self.jobs / self.wall_s

    @property
    def cpu_us_per_job(self) -> float:
        """Microseconds of processor time a job."""
        return self.cpu_s / max(self.jobs, 1) * 1e6

    def quantile_ms(self, share: float) -> float:
        """Return a quantile of the latencies in milliseconds."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3


class Side(Protocol):
    """Something that takes jobs, keeps them, has them done and returns the results."""

    def run(self, *, seconds: float, window: int) -> Run:
        """Keep `window` jobs in flight for so long, then wait for the last ones."""
        ...
