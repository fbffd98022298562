"""Runs benchmarks in turn and prints one table: `python -m bench [NAME ...] [--quick]`.

Without a name all of them run. `python -m bench prepare` builds the peers that no package brings.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHES = (
    "dispatch",
    "fleet",
    "page",
    "inference",
    "cloud_lane",
    "escalation",
    "pick",
    "policies",
    "scrape",
)


def main() -> None:
    """Run them; what a benchmark says of its progress goes to standard error."""
    if sys.argv[1:2] == ["prepare"]:
        # Only here: it needs the model factory's packages, the other benchmarks do not.
        from bench.prepare import main as prepare  # noqa: PLC0415

        prepare(sys.argv[2:])
        return
    words = sys.argv[1:]
    named = [word for word in words if not word.startswith("-")]
    if unknown := set(named) - set(BENCHES):
        raise SystemExit(f"no benchmark is called {', '.join(unknown)}: {', '.join(BENCHES)}")
    options = [word for word in words if word.startswith("-")]
    results = []
    for name in named or BENCHES:
        print(f"running {name} ...", file=sys.stderr)
        command = [sys.executable, str(HERE / f"{name}.py"), "--json", *options]
        outcome = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(outcome.stdout.splitlines()[-1]))
    for result in results:
        print(f"\n{result['bench']} ({result['date']}, {result['machine']})")
        for figure, value in result["ours"].items():
            peers = (f"{peer} {values[figure]:g}" for peer, values in result["peers"].items()
                     if figure in values)  # fmt: skip
            print(f"  {figure:24} {value:>10g}   {'   '.join(peers)}")
        for name, ratio in result["ratios"].items():
            print(f"  ratio to {name:15} {ratio:>10.2f}")
        for name, aim in result["aims"].items():
            verdict = "met" if aim["met"] else "NOT met"
            print(f"  aim {name:20} {aim['aim']:>10}   {verdict} ({aim['value']:g})")


if __name__ == "__main__":
    main()
