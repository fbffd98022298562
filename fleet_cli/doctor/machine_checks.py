"""What any machine of a fleet needs: Python, packages, a broker, a model, room."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

from fleet_cli.broker import BrokerKind
from fleet_cli.doctor.finding import Finding
from fleet_cli.model import find_model
from fleet_protocol.manifest import DEFAULT_MODEL

_DISK_LOW_MB = 500
_EXTRAS = {
    "client": ("paho", "aiomqtt", "rich"),
    "edge": ("onnxruntime", "tokenizers", "numpy", "psutil"),
    "cloud": ("openai", "sqlite_utils"),
    "pki": ("cryptography", "jinja2"),
    "factory": ("gguf", "onnx"),
}


def check_machine(data: Path) -> list[Finding]:
    """Look at this machine alone."""
    return [_python(), *_packages(("client",)), _broker_program(), _model(), _disk(data)]


def check_installed(needed: Collection[str]) -> list[Finding]:
    """Look whether Python and these extras are there: on a host that has its task already."""
    return [_python(), *(one for one in _packages(needed) if one.needed)]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(
        name="python",
        ok=sys.version_info >= (3, 11),
        detail=f"{version} at {sys.executable}",
        fix="" if sys.version_info >= (3, 11) else "install Python 3.11 or newer",
    )


def _packages(needed: Collection[str]) -> list[Finding]:
    findings = []
    for extra, modules in _EXTRAS.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        findings.append(
            Finding(
                name=f"packages [{extra}]",
                ok=not missing,
                needed=extra in needed,
                detail=f"missing: {', '.join(missing)}" if missing else "installed",
                fix=f"pip install 'edgefleet[{extra}]'" if missing else "",
            )
        )
    return findings


def _broker_program() -> Finding:
    kinds = [str(kind) for kind in BrokerKind if kind.is_installed]
    return Finding(
        name="broker program",
        ok=bool(kinds),
        needed=False,
        detail=", ".join(kinds) or "none",
        fix="" if kinds else "pip install 'edgefleet[cloud]', or install mosquitto",
    )


def _model() -> Finding:
    facts = find_model(DEFAULT_MODEL)
    is_built = facts is not None and facts.is_built
    return Finding(
        name="model",
        ok=is_built,
        needed=False,
        detail=f"{facts.path}" if facts and is_built else f"{DEFAULT_MODEL} is not built",
        fix="" if is_built else f"python -m models build {DEFAULT_MODEL}",
    )


def _disk(data: Path) -> Finding:
    folder = next((p for p in (data, *data.parents) if p.exists()), Path("/"))
    free_mb = shutil.disk_usage(folder).free // 1_000_000
    return Finding(
        name="disk",
        ok=free_mb >= _DISK_LOW_MB,
        detail=f"{free_mb} MB free for {data}",
        fix="" if free_mb >= _DISK_LOW_MB else "free some space, or name another --data DIR",
    )
