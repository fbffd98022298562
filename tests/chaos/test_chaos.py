"""Two minutes of random faults on a fleet of real processes: nothing is lost, nothing doubled."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fleet_cli.broker import BrokerKind
from fleet_cli.exits import ExitCode
from tests.conftest import require

pytestmark = pytest.mark.broker

SECONDS = 105
"""Of faults; starting, settling and the audit take the rest of two minutes."""


@pytest.mark.timeout(600)
def test_two_minutes_of_random_faults_lose_no_job_and_double_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require(BrokerKind.MOSQUITTO.is_installed, "mosquitto")
    seed = os.environ.get("CHAOS_SEED") or str(random.SystemRandom().randrange(1_000_000))
    words = ["--duration", str(SECONDS), "--every", "3", "--json", "--seed", seed]
    folder = tmp_path / "drill"
    done = subprocess.run(
        [sys.executable, "-m", "fleet_cli", "drill", *words, "--data", str(folder)],
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    found = report["audit"]
    with capsys.disabled():
        print(  # noqa: T201 - how much was proved, and the seed to repeat it
            f"\nCHAOS_SEED={seed}: {len(report['faults'])} faults, kill -9 of {report['kills']}, "
            f"{found['accepted']} jobs accepted, results {found['statuses']}, "
            f"lost {len(found['lost'])}, doubled {len(found['doubled'])}"
        )
    assert done.returncode == ExitCode.OK, (seed, found, done.stderr)
    assert report["ended"] == [], "a process ended that nobody had asked to"
    assert (found["lost"], found["doubled"], found["wrong"]) == ([], [], [])
    assert found["unanswered"] == 0
    # On an idle machine some thirty faults and two thousand jobs; a busy one has fewer.
    assert found["accepted"] >= 200
    assert len(report["faults"]) >= 4
