"""`edge-worker check`: would a worker with these settings work here?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress

import click
import msgspec

from edge_worker.adapters.host_linux import LinuxHost
from edge_worker.adapters.spool_sqlite import SqliteSpool, open_sealer
from edge_worker.app import SPOOL_FILE, measurement_file, open_data_folder
from edge_worker.cli.exits import ExitCode, exit_code_of
from edge_worker.config import WorkerSettings, broker_password
from edge_worker.core.tuning import cpu_class_of
from edge_worker.loading import Measuring, load_engine
from edge_worker.ports import SpoolUnavailableError, StrangerError
from fleet_protocol.bus import Confirmed, Publication, Refused, Session
from fleet_protocol.codec import encode
from fleet_protocol.errors import FleetError
from fleet_protocol.messages import Probe
from fleet_protocol.mqtt import BusLimits, MqttBus
from fleet_protocol.topics import PROBE, Topics

_CONNECT_S = 3.0


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found.

    Attributes:
        next: What to do about it; empty when `ok`.
    """

    name: str
    ok: bool
    detail: str
    code: str = ""
    next: str = ""


def check(settings: WorkerSettings, environ: Mapping[str, str], *, as_json: bool) -> ExitCode:
    """Run all checks, print what they found, return the worst of it."""
    worst = ExitCode.OK
    findings = [Finding(name="settings", ok=True, detail=f"worker {settings.worker}")]
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("model", lambda: _model(settings, environ)),
        ("spool", lambda: _spool(settings, environ)),
        ("broker", lambda: asyncio.run(_broker(settings))),
        ("board", _board),
    )
    for name, look in checks:
        try:
            findings.append(Finding(name=name, ok=True, detail=look()))
        except FleetError as error:
            findings.append(
                Finding(name=name, ok=False, detail=str(error), code=error.code, next=error.hint)
            )
            worst = worst or exit_code_of(error)
    _show(findings, as_json=as_json)
    return worst


def _show(findings: list[Finding], *, as_json: bool) -> None:
    if as_json:
        result = {"ok": all(finding.ok for finding in findings), "checks": findings}
        click.echo(msgspec.json.encode(result).decode())
        return
    for finding in findings:
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.name:<9} {finding.detail}")
        if not finding.ok:
            click.echo(f"edge-worker: {finding.name}: {finding.detail} [{finding.code}]", err=True)
            click.echo(f"next: {finding.next}", err=True)


def _model(settings: WorkerSettings, environ: Mapping[str, str]) -> str:
    """Load it: that checks every file's hash, and that this machine can run the graph.

    What was measured here is used, and nothing measured: a check takes no time.
    """
    measuring = Measuring(file=measurement_file(settings, environ), only_known=True)
    loaded = load_engine(settings, environ, measuring=measuring)
    model = loaded.engine.model
    loaded.engine.close()
    proof = f", sha256 {model.sha256[:12]}" if model.sha256 else ""
    how = f"{loaded.setup} ({loaded.why})"
    return f"{model.name} {model.version}, {model.context_tokens} tokens of context; {how}{proof}"


def _spool(settings: WorkerSettings, environ: Mapping[str, str]) -> str:
    path = open_data_folder(settings, environ) / SPOOL_FILE
    sealer = open_sealer(settings.spool_key_file)
    spool = SqliteSpool(path, max_mb=settings.spool_max_mb, sealer=sealer)
    try:
        spool.open()
    except SpoolUnavailableError as error:
        if error.code == "spool_locked":
            return f"{path}, in use by a running worker"
        raise
    try:
        spool.commit(keep=(), forget=())
        return f"{path}, {len(spool.load())} attempts held"
    finally:
        spool.close()


async def _broker(settings: WorkerSettings) -> str:
    """Connect under another client id: with its own it would push a running worker out."""
    broker = settings.broker
    session = Session(client_id=f"{settings.worker}-check")
    limits = BusLimits(connect_timeout_s=_CONNECT_S, handshake_timeout_s=_CONNECT_S)
    async with MqttBus(broker, session, password=broker_password(broker), limits=limits) as bus:
        await _say_something(bus, settings)
        return f"{broker.host}:{broker.port}{' with TLS' if broker.uses_tls else ''}"


async def _say_something(bus: MqttBus, settings: WorkerSettings) -> None:
    """Publish what changes nothing: the broker may let us in and not let us speak."""
    topic = Topics(settings.broker.root).name(PROBE, settings.worker)
    bus.publish(Publication(topic=topic, payload=encode(Probe(id="check")), token=PROBE.name))
    with suppress(TimeoutError):  # A broker that is slow to confirm is no reason to complain.
        async with asyncio.timeout(_CONNECT_S):
            while True:
                for event in await bus.receive():
                    if isinstance(event, Refused):
                        raise StrangerError(settings.worker)
                    if isinstance(event, Confirmed):
                        return


def _board() -> str:
    host = LinuxHost()
    facts, reading = host.facts(), host.read()
    known = {"asimd", "asimddp", "i8mm", "avx2", "avx512_vnni", "avx_vnni", "neon"}
    features = " ".join(name for name in facts.cpu_features if name in known) or "none of note"
    temp = "no sensor" if reading.temp_c is None else f"{reading.temp_c:.0f} C"
    kind = cpu_class_of(facts.cpu_features).value
    return f"{facts.board}; {facts.cpu}, {facts.cores} cores; {features}: class {kind}; {temp}"
