"""What sealing costs: a model, loaded from its sealed form beside the plain one, and a store.

`python -m bench.at_rest [--quick] [--model NAME|PATH]`: each load is the worker's own, in a process
of its own, the two forms in turn; files come from the page cache. What is measured: the time to a
loaded engine, the processor time for it, the memory it holds afterwards, how much of that the
system cannot drop (anonymous memory; the plain form's weights are pages of a file), and the peak.
Then the processor time in which the store makes the rows of a job's whole life.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from bench.report import report
from bench.store import life
from cloud_dispatcher.adapters.job_rows import PLAIN, Blobs
from cloud_dispatcher.adapters.sealed_blobs import SealedBlobs
from cloud_dispatcher.adapters.store_sqlite import _writes
from cloud_dispatcher.core.job import Job
from edge_worker.adapters.artefact import cache_folder, resolve_model
from edge_worker.config import WorkerSettings
from edge_worker.loading import load_engine
from fleet_pki.sealing import KeyRing, new_key, open_file
from fleet_protocol.manifest import DEFAULT_MODEL
from fleet_protocol.messages import JobKey
from models.artefacts.seal import seal_artefact

_LIVES: Final = 5_000
_FORMS: Final = ("plain", "sealed")
_HERE: Final = Path(__file__)


def load(folder: Path, key_file: str | None) -> dict[str, float]:
    """Load a model as a worker does, and return what it took and holds."""
    settings = WorkerSettings(model=str(folder), model_key_file=key_file)
    began_s, cpu_s = time.perf_counter(), time.process_time()
    loaded = load_engine(settings, {})
    took = {
        "load_ms": (time.perf_counter() - began_s) * 1_000,
        "cpu_ms": (time.process_time() - cpu_s) * 1_000,
    }
    held = _held_mb()
    loaded.engine.close()
    return took | held


def _held_mb() -> dict[str, float]:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)}
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return {
        "held_mb": kilobytes["Rss"] / 1_024,
        "anonymous_mb": kilobytes["Anonymous"] / 1_024,
        "peak_mb": peak / 1_024,
    }


def in_a_process(folder: Path, key_file: Path | None) -> dict[str, float]:
    """Do it in a process of its own."""
    key = [str(key_file)] if key_file is not None else []
    done = subprocess.run(
        [sys.executable, "-m", "bench.at_rest", "--child", str(folder), *key],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=_HERE.parents[1],
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def opening_mb_s(folder: Path, ring: KeyRing, rounds: int) -> float:
    """Return how fast one core opens the largest file, alone: by its processor time."""
    path = max(folder.glob("*.sealed"), key=lambda file: file.stat().st_size)
    spans_s = []
    for _ in range(rounds):
        began_s = time.process_time()
        opened = open_file(path, ring)
        spans_s.append(time.process_time() - began_s)
    return len(opened) / 1e6 / statistics.median(spans_s)


def rows_us(blobs: Blobs) -> float:
    """Return the processor time for the rows of one job's whole life, in microseconds."""
    lives, saved = life(_LIVES), dict[JobKey, Job]()
    began_s = time.process_time()
    for jobs in lives:
        for job in jobs:
            list(_writes(saved.get(job.key), job, blobs))
            saved[job.key] = job
    return (time.process_time() - began_s) / _LIVES * 1e6


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--child", nargs="+", metavar="PATH", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(load(Path(options.child[0]), (options.child[1:] or [None])[0])))
        return
    plain, rounds = (
        resolve_model(options.model, cache_folder(os.environ)),
        3 if options.quick else 9,
    )
    with tempfile.TemporaryDirectory() as name:
        key, sealed = Path(name) / "key", Path(name) / "sealed"
        key.touch(0o600)
        key.write_text(f"{new_key()}\n")
        ring = KeyRing.read(key)
        seal_artefact(plain, sealed, ring)
        found: dict[str, list[dict[str, float]]] = {form: [] for form in _FORMS}
        for _ in range(rounds):
            found["plain"].append(in_a_process(plain, None))
            found["sealed"].append(in_a_process(sealed, key))
        rate = opening_mb_s(sealed, ring, rounds)
        for number in range(rounds):
            found["plain"][number]["rows_us"] = rows_us(PLAIN)
            found["sealed"][number]["rows_us"] = rows_us(SealedBlobs(key))
    figures = {
        form: {figure: statistics.median(run[figure] for run in runs) for figure in runs[0]}
        for form, runs in found.items()
    }
    pairs = zip(found["sealed"], found["plain"], strict=True)
    report(
        "at_rest",
        ours=figures["sealed"] | {"opening_mb_s": rate},
        peers={"plain": figures["plain"]},
        ratios={"plain": [one["load_ms"] / other["load_ms"] for one, other in pairs]},
        aims={},
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
