"""`cloud-dispatcher check`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click
import msgspec

from cloud_dispatcher import app
from cloud_dispatcher.cli.exits import Exit, exit_of
from cloud_dispatcher.cli.options import settings_options
from cloud_dispatcher.config import load_settings
from fleet_protocol.log import set_up_logging


@click.command("check", short_help="Say whether the dispatcher would run.")
@settings_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(config: Path | None, broker: str | None, data: Path | None, *, as_json: bool) -> None:
    """Say whether the dispatcher would run: settings, store, broker, provider, library, gateway.

    Changes nothing, and does not disturb a dispatcher that runs. Ends with 0 if all is well, else
    with the code of the first trouble: 1 failed, 2 settings, 3 cannot connect, 4 timeout, 5 denied.
    """
    set_up_logging(level="error")
    settings = load_settings(config, os.environ, broker_url=broker, data=data)
    findings = asyncio.run(app.check(settings, os.environ))
    troubles = [finding.error for finding in findings if finding.error is not None]
    if as_json:
        rows = [
            {
                "name": finding.name,
                "ok": finding.error is None,
                "detail": finding.detail,
                "code": finding.error.code if finding.error else "",
                "hint": finding.error.hint if finding.error else "",
            }
            for finding in findings
        ]
        click.echo(msgspec.json.encode({"ok": not troubles, "checks": rows}).decode())
    else:
        for finding in findings:
            _print(finding)
    raise SystemExit(exit_of(troubles[0]) if troubles else Exit.OK)


def _print(finding: app.Finding) -> None:
    word = "ok    " if finding.error is None else "FAILED"
    click.echo(f"{word}  {finding.name:<9} {finding.detail}")
    if finding.error is not None:
        click.echo(f"next: {finding.error.hint or 'see the log'} [{finding.error.code}]", err=True)
