"""What the factory's commands share: where they work, how they show progress and answers."""

from __future__ import annotations

import os
from contextlib import nullcontext

import click
import msgspec

from models.cache import FactoryCache, cache_root
from models.progress import BarProgress, SilentProgress

json_option = click.option("as_json", "--json", is_flag=True, help="Print one JSON object.")


def factory_cache() -> FactoryCache:
    """Return the cache that the environment names."""
    return FactoryCache(cache_root(os.environ))


def show_progress(*, as_json: bool) -> BarProgress | nullcontext[SilentProgress]:
    """Return bars for people; a program that reads JSON gets a quiet standard error."""
    return nullcontext(SilentProgress()) if as_json else BarProgress()


def print_json(value: object) -> None:
    """Print one JSON object."""
    click.echo(msgspec.json.encode(value).decode())
