"""Run a program whose wall clock is wrong: `python -m fleet_cli.drill.shifted_clock S MODULE ...`.

It moves what `time.time` and `time.time_ns` say in its own process by S seconds and becomes the
module. The programs themselves know no such option, so nothing can set it by accident.
"""

from __future__ import annotations

import runpy
import sys
import time


def shifted(shift_s: float, module: str, *words: str) -> tuple[str, ...]:
    """Return the command line that runs a module of ours with its clock moved; 0: as it is."""
    if not shift_s:
        return (sys.executable, "-m", module, *words)
    return (sys.executable, "-m", __spec__.name, str(shift_s), module, *words)


def main() -> None:
    """Move the clock and become the module."""
    shift_s, module = float(sys.argv[1]), sys.argv[2]
    now_s, now_ns, shift_ns = time.time, time.time_ns, int(shift_s * 1e9)
    time.time = lambda: now_s() + shift_s
    time.time_ns = lambda: now_ns() + shift_ns
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
