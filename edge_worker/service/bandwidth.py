"""How fast payload travels from this worker to the dispatcher and back, measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Final

from fleet_protocol.codec import encode
from fleet_protocol.messages import Probe

PADDING_BYTES: Final = 65_536
ROUNDS: Final = 5


class BandwidthMeter:
    """Sends probes, one after the other, and times their echoes.

    Mbit/s = 2 x payload bits / round trip in microseconds, the best of `ROUNDS`: waiting behind
    other traffic only ever makes a round slower. The latency of the way counts in on purpose: a
    job pays for it too. Over loopback the figure is huge and the dispatcher clips it.
    """

    def __init__(self, send: Callable[[Probe], None], *, timeout_s: float) -> None:
        """`send` publishes a probe; `heard` must be called with what comes back."""
        self._send = send
        self._timeout_s = timeout_s
        self._wanted = ""
        self._echo: asyncio.Future[float] | None = None
        self._probes = 0

    def heard(self, probe: Probe) -> None:
        """Take an echo; one that nobody waits for any more is ignored."""
        if self._echo is not None and not self._echo.done() and probe.id == self._wanted:
            self._echo.set_result(perf_counter())

    async def measure(self) -> float | None:
        """Return payload Mbit/s there and back, or None if an echo does not come in time."""
        best: float | None = None
        for _ in range(ROUNDS):
            mbps = await self._round()
            if mbps is None:
                return best
            best = mbps if best is None else max(best, mbps)
        return best

    async def _round(self) -> float | None:
        self._probes += 1
        self._wanted = f"p{self._probes}"
        probe = Probe(id=self._wanted, padding="x" * PADDING_BYTES)
        bits = 2 * 8 * len(encode(probe))
        self._echo = asyncio.get_running_loop().create_future()
        sent_s = perf_counter()
        self._send(probe)
        try:
            async with asyncio.timeout(self._timeout_s):
                heard_s = await self._echo
        except TimeoutError:
            return None
        return bits / max(1e-6, heard_s - sent_s) / 1e6
