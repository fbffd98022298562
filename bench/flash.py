"""Time to flash: blank boards become proved workers, one and many: `python bench/flash.py`.

Boards are systemd machines of this one (root, Debian, Ansible: `make ansible`), flashed by the
playbook `flash` over SSH. First a single one, then all others at once. Not in the figures: the
card, the cloud host, the wheels, and starting the machines.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.report import Aim, report
from tests.deploy.board_lab import BoardLab
from tests.deploy.field_site import PYTHONS, Site, settings_for
from tests.deploy.ground import obstacle
from tests.deploy.releases import Target, fill_wheelhouse

SUITE = "bookworm"
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_PER_MACHINE = 7
"""What systemd and its services take of it; Linux allows 128 a user, and the 20th machine fails."""


def flash_s(site: Site, limit: str) -> float:
    """Return the seconds in which the boards named by `limit` become proved workers."""
    begun_s = time.monotonic()
    recap = site.operator.play("flash", "--limit", limit)
    if recap.returncode:
        raise SystemExit(recap.text[-4_000:])
    return time.monotonic() - begun_s


def measure(folder: Path, boards: int, *, with_model: bool) -> dict[str, float]:
    """Flash one board, then `boards` others at once."""
    wheelhouse = folder / "wheelhouse"
    fill_wheelhouse(wheelhouse, Target.hub(PYTHONS[SUITE]), Target.board(PYTHONS[SUITE]))
    settings = settings_for(wheelhouse, with_model=with_model) | {"verify_patience_s": 1_800}
    with BoardLab(folder) as lab:
        for name in ("hub", "first", *(f"pi-{number}" for number in range(1, boards + 1))):
            lab.add(name, suite=SUITE).switch_on()
        site = Site(lab, settings)
        site.operator.must_play("site", "--tags", "cloud")
        one_s = flash_s(site, "first")
        many_s = flash_s(site, "all:!first:!hub")
        again_s = flash_s(site, "all:!hub")
    return {
        "boards": float(boards),
        "one_s": one_s,
        "many_s": many_s,
        "per_board_s": many_s / boards,
        "again_all_s": again_s,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boards", type=int, default=20, help="how many at once")
    parser.add_argument("--echo", action="store_true", help="no model: the echo engine")
    parser.add_argument("--quick", action="store_true", help="three boards")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    options = parser.parse_args()
    if why := obstacle():
        raise SystemExit(f"no board can start here: {why}")
    boards = 3 if options.quick else options.boards
    if int(INOTIFY.read_text()) < (needed := (boards + 2) * INOTIFY_PER_MACHINE):
        raise SystemExit(f"too few for {boards + 2} machines: echo {needed} > {INOTIFY}")
    with tempfile.TemporaryDirectory() as at:
        figures = measure(Path(at), boards, with_model=not options.echo)
    # Twenty at once must cost less than twenty times one.
    aims = {"per_board_s": Aim(figures["per_board_s"], at_most=figures["one_s"])}
    report("flash", ours=figures, peers={}, ratios={}, aims=aims, as_json=options.json)


if __name__ == "__main__":
    main()
