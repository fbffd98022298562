"""The page's benchmark: the worst counts where something must never be, bytes as they are sent."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from bench.page import Look, Wire, most, quantile, summed, worst

QUIET = Look(
    tasks_ms=[],
    lags_ms=[10.0, 20.0],
    paints_ms=[5.0, 6.0],
    unseen=0,
    nodes=(100, 300),
    cpu_pct=4.0,
    kb_per_s=1.0,
)


def test_one_long_task_in_one_round_is_not_lost_among_the_others() -> None:
    busy = replace(QUIET, tasks_ms=[60.0, 250.0], nodes=(120, 290), cpu_pct=9.0, unseen=2)
    figures = summed([(QUIET, QUIET), (QUIET, busy), (QUIET, QUIET)], [30.0, 40.0])
    assert figures["workers_longest_task_ms"] == worst(figures, "longest_task_ms") == 250.0
    assert figures["overview_longest_task_ms"] == 0.0
    assert (figures["workers_elements"], figures["workers_nodes"]) == (120, 300)
    assert (figures["workers_cpu_pct"], figures["workers_unseen"]) == (4.0, 2)
    assert (figures["workers_lags"], figures["workers_lag_p50_ms"]) == (6, 20.0)


def test_quantiles_and_the_most_of_pairs() -> None:
    assert quantile([float(value) for value in range(100)], 0.95) == 95.0
    assert quantile([7.0], 0.95) == 7.0
    assert most([(3, 10), (5, 8)]) == (5, 10)


@pytest.mark.timeout(30)
async def test_only_what_the_gateway_sends_is_counted() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readexactly(1_000)
        writer.write(asked[:7])
        await writer.drain()
        writer.close()

    wire = Wire()
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as gateway:
        port = gateway.sockets[0].getsockname()[1]
        async with wire.before(port) as here:
            reader, writer = await asyncio.open_connection("127.0.0.1", here)
            writer.write(bytes(1_000))
            assert await reader.read() == bytes(7)
            writer.close()
    assert wire.to_browser == 7
