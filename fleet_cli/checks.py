"""What `fleet doctor` looks at: each check returns what it found, and the fix of a fault."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import time
from pathlib import Path

import msgspec

from fleet_cli.broker import BrokerKind
from fleet_cli.connection import Connection
from fleet_cli.model import find_model
from fleet_client.watch import FleetPicture, FleetWatcher
from fleet_protocol.errors import FleetError
from fleet_protocol.manifest import DEFAULT_MODEL

_DISK_LOW_MB = 500
_SKEW_MOST_MS = 5_000
_EXTRAS = {
    "client": ("paho", "aiomqtt", "rich"),
    "edge": ("onnxruntime", "tokenizers", "numpy", "psutil"),
    "cloud": ("openai", "sqlite_utils"),
    "factory": ("gguf", "onnx"),
}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one check.

    Attributes:
        name: What was checked.
        ok: Whether it is as it should be.
        needed: Whether a fleet can work without.
        detail: What was found.
        fix: What to do; empty when `ok`.
    """

    name: str
    ok: bool
    detail: str
    needed: bool = True
    fix: str = ""


def check_machine(data: Path) -> list[Finding]:
    """Look at this machine alone."""
    return [_python(), *_packages(), _broker_program(), _model(), _disk(data)]


def check_fleet(connection: Connection) -> tuple[list[Finding], FleetError | None]:
    """Look at the fleet; also return why it cannot be reached, if it cannot."""
    try:
        broker = connection.broker
        with FleetWatcher(broker, connection.client_id, connect_timeout_s=5.0) as watcher:
            # What is retained is here within a moment; a heartbeat may take five seconds.
            watcher.wait_until(_is_complete, timeout_s=2.0)
            watcher.wait_until(_has_heartbeat, timeout_s=6.0 if watcher.picture.workers else 0.0)
            picture = watcher.picture
    except FleetError as error:
        return [Finding(name="broker", ok=False, detail=str(error), fix=error.hint)], error
    found = Finding(name="broker", ok=True, detail=f"{broker.host}:{broker.port} {broker.root}")
    return [found, _dispatcher(picture), _workers(picture), _clocks(picture)], None


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(
        name="python",
        ok=sys.version_info >= (3, 11),
        detail=f"{version} at {sys.executable}",
        fix="" if sys.version_info >= (3, 11) else "install Python 3.11 or newer",
    )


def _packages() -> list[Finding]:
    findings = []
    for extra, modules in _EXTRAS.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        findings.append(
            Finding(
                name=f"packages [{extra}]",
                ok=not missing,
                needed=extra == "client",
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


def _dispatcher(picture: FleetPicture) -> Finding:
    word = picture.dispatcher
    return Finding(
        name="dispatcher",
        ok=picture.has_dispatcher,
        detail="never seen here" if word is None else f"{word.status}, epoch {word.epoch}",
        fix="" if picture.has_dispatcher else "start it: `fleet up`, or `cloud-dispatcher run`",
    )


def _workers(picture: FleetPicture) -> Finding:
    online = picture.online_workers
    return Finding(
        name="workers",
        ok=bool(online),
        detail=f"{len(online)} of {len(picture.workers)} online {' '.join(online[:8])}".strip(),
        fix="" if online else "start one: `fleet up`, or `edge-worker run`",
    )


def _clocks(picture: FleetPicture) -> Finding:
    """Compare heartbeats with our clock: only people read them, no decision hangs on them."""
    now_ms = time.time_ns() // 1_000_000
    ages = {w.id: now_ms - w.state.ts for w in picture.workers.values() if w.state}
    # A heartbeat is up to one period old; one from the future is wrong at once.
    wrong = [w for w, ms in ages.items() if not -_SKEW_MOST_MS <= ms <= 3 * _SKEW_MOST_MS]
    return Finding(
        name="clocks",
        ok=not wrong,
        needed=False,
        detail=f"off by seconds: {', '.join(wrong)}" if wrong else f"{len(ages)} workers compared",
        fix="let a time service (chrony, systemd-timesyncd) run there" if wrong else "",
    )


def _is_complete(picture: FleetPicture) -> bool:
    return picture.has_dispatcher and picture.summary is not None and bool(picture.online_workers)


def _has_heartbeat(picture: FleetPicture) -> bool:
    return any(w.state is not None for w in picture.workers.values())
