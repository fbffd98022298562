"""A dead name server holds the loop's own threads for minutes; what turns wait for has others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloud_dispatcher.adapters.alert_file import AlertFile
from cloud_dispatcher.adapters.offline_library import FileLibrary

PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
async def names_that_nobody_resolves() -> AsyncIterator[None]:
    """Have every thread of the loop wait, as `getaddrinfo` does there."""
    loop, answered = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    waiting = loop.run_in_executor(None, answered.wait)
    yield
    answered.set()
    await waiting


async def test_alerts_are_kept_meanwhile(tmp_path: Path) -> None:
    file = AlertFile(tmp_path / "dispatcher.alerts")
    async with asyncio.timeout(PATIENCE_S):
        await file.save(())
    assert file.load() == ()


async def test_the_offline_library_is_read_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "library.toml"
    path.write_text('default = "Nobody is there."\n')
    library = FileLibrary(path)
    async with asyncio.timeout(PATIENCE_S):
        assert await library.refresh()
    assert library.has_default
