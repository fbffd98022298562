"""The floors of the house hold, and break loudly where somebody digs through one."""

import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "fleet_protocol",
    "fleet_client",
    "fleet_pki",
    "fleet_cli",
    "cloud_dispatcher",
    "edge_worker",
    "models",
)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the source tree to dig in."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )


def test_the_house_keeps_its_floors(house: Path) -> None:
    outcome = lint(house)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("cloud_dispatcher/core/job.py", "import cloud_dispatcher.service", "dispatcher's floors"),
        ("edge_worker/core/session.py", "import edge_worker.adapters", "worker's floors"),
        ("cloud_dispatcher/core/engine.py", "import time", "Cores are pure"),
        ("edge_worker/core/session.py", "import asyncio", "Cores are pure"),
        ("cloud_dispatcher/service.py", "import edge_worker", "never import each other"),
        ("fleet_cli/__init__.py", "import cloud_dispatcher", "never import each other"),
        ("edge_worker/app.py", "import fleet_client", "do not import the client"),
        ("cloud_dispatcher/service.py", "import paho.mqtt.client", "import an MQTT library"),
        ("cloud_dispatcher/app.py", "import numpy", "import onnxruntime"),
        ("edge_worker/app.py", "import torch", "Only the model factory"),
        ("edge_worker/app.py", "import openai", "no web server"),
        ("models/graphs/builder.py", "import models.proof", "factory's floors"),
        ("models/distill/ask.py", "import openai", "import an LLM client"),
        ("fleet_pki/registry.py", "import fleet_client", "CLI stands on"),
        ("fleet_cli/pki.py", "import cryptography", "Only the authority"),
        ("fleet_protocol/codec.py", "import mqtt5", "only the mqtt modules"),
        ("cloud_dispatcher/app.py", "import psycopg", "Only the PostgreSQL store"),
    ],
)
def test_a_planted_violation_breaks_the_build(
    house: Path, file: str, line: str, contract: str
) -> None:
    target = house / file
    target.write_text(f"{target.read_text()}\n{line}\n")
    outcome = lint(house)
    assert outcome.returncode != 0
    broken = [row for row in outcome.stdout.splitlines() if " BROKEN" in row]
    assert any(contract in row for row in broken), outcome.stdout


def closure(name: str, extras: frozenset[str]) -> set[str]:
    """Names of everything that installing `name[extras]` here brings along."""
    seen: set[str] = set()
    waiting = [(name, extras)]
    while waiting:
        package, wanted = waiting.pop()
        try:
            lines = requires(package) or []
        except PackageNotFoundError:
            seen.add(package)
            continue
        seen.add(package)
        for line in lines:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in (*wanted, "")):
                continue
            found = requirement.name.lower().replace("_", "-")
            if found not in seen:
                waiting.append((found, frozenset(requirement.extras)))
    return seen


def test_a_board_gets_no_torch_no_transformers_and_no_web_server() -> None:
    on_a_board = closure("edgefleet", frozenset({"edge"}))
    assert "onnxruntime" in on_a_board
    unwanted = {"torch", "transformers", "optimum", "openai", "starlette", "uvicorn", "flask"}
    assert not on_a_board & (unwanted | {"fastapi", "aiohttp", "tornado", "onnx", "gguf"})


def test_the_model_factory_for_checkpoints_brings_optimum() -> None:
    assert "optimum" in closure("edgefleet", frozenset({"models"}))
