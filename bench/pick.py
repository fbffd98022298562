"""What picking a worker costs, by the size of the fleet: `python bench/pick.py`.

One step is what the engine does for a job: rank the free workers, take the best, count the lease,
and release an earlier one. 10,000 workers may cost at most twice the time of 100, whether jobs are
all alike or `mixed`: any of five models or none, a label, short and long ones. The larger fleet
does not fit into the processor's caches; `p2c`, which draws two workers blindly, shows what that
alone costs.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Sequence
from itertools import product

from bench.report import Aim, report
from cloud_dispatcher.core.fleet import Fleet
from cloud_dispatcher.core.policies import PolicyName, SchedulingSettings, policy_of
from cloud_dispatcher.core.queue import Need
from cloud_dispatcher.core.settings import WeightSettings
from fleet_protocol import messages as m

SIZES = (100, 10_000)
MODELS = tuple(f"model{number}" for number in range(4))
LOADS = {
    "": (Need(None, 0),),
    "_mixed": (
        *(Need(None, 0, work) for work in (4, 5, 6)),
        Need("small", 1_024),
        *(Need(model, 0) for model in MODELS),
        Need(None, 0, label="site=north"),
    ),
}
ROUNDS = 5


class Picker:
    """A fleet half of whose slots are taken."""

    def __init__(self, policy: PolicyName, needs: Sequence[Need], workers: int) -> None:
        scheduling = SchedulingSettings(policy=policy)
        self._fleet = Fleet(WeightSettings(), policy_of(scheduling))
        self._needs = needs
        for number in range(workers):
            speed = m.Benchmark(decode_tok_s=10.0 + number % 90, prefill_tok_s=100.0)
            models = tuple(
                m.ModelInfo(name=name, version="1", context_tokens=2_048)
                for name in ("small", MODELS[number % len(MODELS)])
            )
            info = m.WorkerInfo(
                boot="b",
                slots=4,
                prefetch=1,
                models=models,
                benchmark=speed,
                labels={"site": "north" if number % 3 else "south"},
            )
            worker = self._fleet.see(m.WorkerId(f"w{number:05}"), 0)
            self._fleet.set_info(worker, info)
            self._fleet.set_presence(worker, m.Presence(status=m.PresenceStatus.ONLINE, boot="b"))
        self._held: list[tuple[m.WorkerId, m.JobKey]] = []
        self._jobs = 0
        for _ in range(workers * 5 // 2):
            self._give()

    def us_per_pick(self, picks: int) -> float:
        """Return microseconds of processor time a step."""
        begun = time.process_time()
        for step in range(picks):
            self._give()
            place = step * 7_919 % len(self._held)
            self._held[place], self._held[-1] = self._held[-1], self._held[place]
            self._fleet.release(*self._held.pop())
        return (time.process_time() - begun) / picks * 1e6

    def _give(self) -> None:
        need = self._needs[self._jobs % len(self._needs)]
        worker = self._fleet.pick_worker(need, avoid=None)
        if worker is None:
            raise RuntimeError("no worker is free")
        self._jobs += 1
        key = m.JobKey(f"K{self._jobs}")
        self._fleet.lease(worker, key, 0)
        self._held.append((worker.id, key))


def main() -> None:
    """Measure every policy at both sizes, in turn, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer picks")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    options = parser.parse_args()
    picks = 4_000 if options.quick else 20_000
    gc.disable()
    ours: dict[str, float] = {}
    ratios: dict[str, list[float]] = {}
    for (load, needs), policy in product(LOADS.items(), PolicyName):
        name = f"{policy}{load}"
        pickers = [Picker(policy, needs, workers) for workers in SIZES]
        rounds = [[picker.us_per_pick(picks) for picker in pickers] for _ in range(ROUNDS)]
        for place, workers in enumerate(SIZES):
            ours[f"{name}_{workers}_us"] = statistics.median(one[place] for one in rounds)
        ratios[name] = [large / small for small, large in rounds]
    worst = max(statistics.median(values) for values in ratios.values())
    report(
        "pick",
        ours=ours,
        peers={},
        ratios=ratios,
        aims={"10,000_over_100": Aim(worst, at_most=2.0)},
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
