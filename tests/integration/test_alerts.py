"""`fleet alerts` before a real dispatcher, which is killed in between."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fleet import PATIENCE_S, Fleet

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]


def fleet_alerts(fleet: Fleet, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fleet_cli", "alerts", *words]
    broker = ["--broker", f"mqtt://127.0.0.1:{fleet.port}"]
    return subprocess.run([*command, *broker], capture_output=True, text=True, check=False)


def listed(fleet: Fleet, *words: str) -> list[dict[str, Any]]:
    done = fleet_alerts(fleet, "ls", "--json", *words)
    assert done.returncode == 0, done.stderr
    alerts: list[dict[str, Any]] = json.loads(done.stdout)["alerts"]
    return alerts


def until_listed(fleet: Fleet, *, firing: bool) -> dict[str, Any]:
    """Wait until the one alert of these tests fires, or is over."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        found = [alert for alert in listed(fleet) if alert["id"] == "library"]
        if found and (found[0].get("resolved_at_ms") is None) is firing:
            return found[0]
        assert time.monotonic() < deadline_s, found
        time.sleep(0.1)


def test_an_alert_is_looked_after_across_a_kill_and_over_when_its_cause_is(
    tmp_path: Path,
) -> None:
    library = tmp_path / "library.toml"
    library.write_text("[[answer]\n")
    with Fleet(tmp_path / "fleet") as fleet:
        fleet.start_dispatcher(LIBRARY__FILE=str(library))
        fleet.online(fleet.device())
        fired = until_listed(fleet, firing=True)
        done = fleet_alerts(fleet, "ack", "library")
        assert done.returncode == 0, done.stderr
        assert "looks after it" in done.stderr
        noted = until_listed(fleet, firing=True)
        assert noted["acked_by"].startswith("cli-")
        fleet.kill("dispatcher")
        fleet.start_dispatcher(LIBRARY__FILE=str(library))
        after = until_listed(fleet, firing=True)
        kept = ("since_at_ms", "acked_by", "acked_at_ms", "title")
        assert {name: after[name] for name in kept} == {name: noted[name] for name in kept}
        assert after["since_at_ms"] == fired["since_at_ms"]
        library.write_text("")
        over = until_listed(fleet, firing=False)
        assert over["acked_by"] == noted["acked_by"]
        assert listed(fleet, "--firing") == []
        done = fleet_alerts(fleet, "ack", "library")
        assert done.returncode != 0
        assert "no alert 'library' fires" in done.stderr
        table = fleet_alerts(fleet, "ls").stdout
        assert "library" in table
        assert noted["acked_by"] in table
