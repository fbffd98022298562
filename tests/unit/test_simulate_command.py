"""`fleet sim` and `cloud-dispatcher simulate`: what they print, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cloud_dispatcher.cli.exits import Exit
from cloud_dispatcher.cli.main import main
from fleet_cli.__main__ import run

SMALL = ("--boards", "pi5=2,jetson=1", "--jobs", "80", "--seeds", "2", "--processes", "1")


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["simulate", *map(str, words)])


def test_a_comparison_is_one_object_and_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "p.svg"
    said = call(*SMALL, "--policy", "wlc", "--policy", "round_robin", "--plot", path, "--json")
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert found["simulated"] is True
    assert found["boards"]["pi5"]["count"] == 2
    assert found["boards"]["pi5"]["source"].startswith("modelled")
    first, second = found["policies"]
    assert (first["policy"], second["policy"]) == ("wlc", "round_robin")
    assert first["p95_ratio"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert second["p95_ms"]["low"] <= second["p95_ms"]["mean"] <= second["p95_ms"]["high"]
    assert "round_robin" in path.read_text()


def test_a_table_is_for_people_and_says_that_boards_are_modelled() -> None:
    said = call(*SMALL, "--policy", "wlc", "--load", "0.2")
    assert said.exit_code == 0, said.output
    assert "load 0.2" in said.stdout
    assert "p99 ms" in said.stdout
    assert "Modelled boards" in said.stdout


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--boards", "pi9=1"), "pi9"),
        (("--boards", "many"), "pi4=50"),
        (("--trace", "/nowhere/jobs"), "fleet jobs ls"),
        (("/nowhere/scenario.toml",), "cannot be read"),
        ((*SMALL, "--policy", "wlc", "--plot", "/nowhere/p.svg"), "--plot"),
    ],
)
def test_what_is_wrong_is_named_with_the_next_step(words: tuple[str, ...], named: str) -> None:
    said = call(*words)
    assert said.exit_code == Exit.USAGE
    assert named in said.output


def test_fleet_sim_passes_on_what_it_is_given(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["sim", "--boards", "pi9=1"]) == Exit.USAGE
    assert "pi9" in capfd.readouterr().err
    assert run(["sim", *SMALL, "--policy", "wlc", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["seeds"] == 2
