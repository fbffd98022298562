"""`cloud-dispatcher run`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from cloud_dispatcher import app
from cloud_dispatcher.cli.options import settings_options
from cloud_dispatcher.config import load_settings
from fleet_protocol.log import set_up_logging


@click.command("run", short_help="Run the dispatcher until it is told to stop.")
@settings_options
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Overrides log.level.",
)
def run(config: Path | None, broker: str | None, data: Path | None, log_level: str | None) -> None:
    """Run the dispatcher until it is told to stop (SIGTERM or Ctrl-C)."""
    settings = load_settings(config, os.environ, broker_url=broker, data=data)
    set_up_logging(level=log_level or settings.log.level, json=settings.log.json)
    asyncio.run(app.run(settings, os.environ))
