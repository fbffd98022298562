"""`cloud-dispatcher simulate-cloud`: a DeepSeek of one's own, to try and drill the cloud lane."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import signal
import tomllib
from pathlib import Path

import click
import msgspec

from cloud_dispatcher.adapters.simulated_answers import Step
from cloud_dispatcher.adapters.simulated_deepseek import SimulatedDeepSeek, SimulatorSettings


class _Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A script file: `[[step]]` for each coming request, `[fallback]` for all later ones."""

    step: tuple[Step, ...] = ()
    fallback: Step = Step()


@click.command("simulate-cloud", short_help="Run a simulated DeepSeek API.")
@click.option(
    "--port",
    default=0,
    show_default="a free one",
    type=click.IntRange(0, 65_535),
    help="To listen on.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--latency-ms",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="From request to first content.",
)
@click.option(
    "--script",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML with [[step]] tables: what goes wrong, request by request.",
)
@click.option("--allow-remote", is_flag=True, help="Listen beyond this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def simulate_cloud(
    *, port: int, host: str, latency_ms: int, script: Path | None, allow_remote: bool, as_json: bool
) -> None:
    """Run a simulated DeepSeek API until interrupted; every answer says that it is simulated."""
    if not (_is_loopback(host) or allow_remote):
        raise click.UsageError(
            f"{host} is reachable from other machines, and the simulator checks no key. "
            "Add --allow-remote if you mean it."
        )
    scenario = _read_scenario(script)
    settings = SimulatorSettings(latency_ms=latency_ms, fallback=scenario.fallback)
    try:
        asyncio.run(_serve(settings, scenario.step, address=(host, port), as_json=as_json))
    except OSError as error:
        raise click.ClickException(
            f"cannot listen on {host}:{port} ({os.strerror(error.errno or 0)}); try another --port"
        ) from error


async def _serve(
    settings: SimulatorSettings, steps: tuple[Step, ...], *, address: tuple[str, int], as_json: bool
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop.set)
    async with SimulatedDeepSeek(settings, host=address[0], port=address[1]) as simulator:
        simulator.script(*steps)
        click.echo(_greeting(simulator.base_url, as_json=as_json))
        await stop.wait()


def _greeting(base_url: str, *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"base_url": base_url, "simulated": True})
    return (
        f"Simulated DeepSeek API on {base_url} (any key is accepted; Ctrl-C stops it)\n"
        f"Faults on demand: POST {base_url}/_simulator/script "
        '\'[{"status": 503}, {"cut_after_chars": 20}]\''
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_scenario(path: Path | None) -> _Scenario:
    if path is None:
        return _Scenario()
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _Scenario)
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{path}: {error}", param_hint="--script") from error
