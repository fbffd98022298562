"""What Prometheus scrapes of single workers, where that is wanted: a series for each and figure.

Of ten thousand boards that is eighty thousand lines. So they are written for some boards at a time,
each time for all figures, and by formatting that runs in C: whoever writes them can let others have
their turn in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec

from cloud_dispatcher.metrics import Family
from fleet_protocol import messages as m


class WorkerGauge(msgspec.Struct, frozen=True):
    """One figure of a worker.

    Attributes:
        reading: Of a `WorkerView`, or of its `WorkerState`; None: nobody can tell.
    """

    name: str
    help: str
    reading: Callable[[Any], float | None]

    @property
    def family(self) -> Family:
        """Its metric, without samples."""
        return Family(name=self.name, kind="gauge", help=self.help, samples=())


def _is_online(worker: m.WorkerView) -> bool:
    return worker.status is m.PresenceStatus.ONLINE


def _cpu_ratio(state: m.WorkerState) -> float:
    return state.cpu_pct / 100


def _memory_ratio(state: m.WorkerState) -> float:
    return state.mem_pct / 100


_OF_A_WORKER: Final = (
    WorkerGauge("edgefleet_worker_online", "1 while it takes jobs.", _is_online),
    WorkerGauge("edgefleet_worker_inflight", "Leases that it holds.", attrgetter("inflight")),
    WorkerGauge(
        "edgefleet_worker_weight", "What the scheduler takes it for, 0 to 1.", attrgetter("weight")
    ),
)
_OF_ITS_STATE: Final = (
    WorkerGauge("edgefleet_worker_temperature_celsius", "Of its processor.", attrgetter("temp_c")),
    WorkerGauge(
        "edgefleet_worker_throttled",
        "1 while its firmware holds its clock down.",
        attrgetter("throttled"),
    ),
    WorkerGauge("edgefleet_worker_cpu_used_ratio", "Of its processors.", _cpu_ratio),
    WorkerGauge("edgefleet_worker_memory_used_ratio", "Of its memory.", _memory_ratio),
    WorkerGauge(
        "edgefleet_worker_tokens_per_second", "All its requests together.", attrgetter("tok_s")
    ),
)
WORKER_GAUGES: Final = (*_OF_A_WORKER, *_OF_ITS_STATE)


def lines_of(workers: Sequence[m.WorkerView]) -> list[str]:
    """Return the lines of some workers for each of `WORKER_GAUGES`, in that order.

    Ids of workers need no escaping; five digits are more than any board measures.
    """
    names = [worker.worker for worker in workers]
    with_state = [worker for worker in workers if worker.state is not None]
    names_with_state = [worker.worker for worker in with_state]
    states = [worker.state for worker in with_state]
    return [
        *(_lines(gauge, names, workers) for gauge in _OF_A_WORKER),
        *(_lines(gauge, names_with_state, states) for gauge in _OF_ITS_STATE),
    ]


def _lines(gauge: WorkerGauge, workers: Sequence[str], whose: Iterable[object]) -> str:
    values: Sequence[float | None] = list(map(gauge.reading, whose))
    if None in values:
        known = [each for each in zip(workers, values, strict=True) if each[1] is not None]
        workers, values = [worker for worker, _ in known], [value for _, value in known]
    both = list[str | float | None]([None] * (2 * len(values)))
    both[::2], both[1::2] = workers, values
    return f'{gauge.name}{{worker="%s"}} %.5g\n' * len(values) % tuple(both)
