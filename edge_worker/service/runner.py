"""The inference engine's own thread: orders go in, events come out, whole batches at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Final, TypeAlias, TypeVar

import structlog

from edge_worker.core.commands import (
    EncodePrompt,
    LimitSlots,
    MeasureSpeed,
    StartGeneration,
    StopGeneration,
)
from edge_worker.core.events import AnyEvent, PromptEncoded, SpeedMeasured
from edge_worker.ports import Broke, Grew, InferenceEngine
from fleet_protocol.errors import FleetError

Order: TypeAlias = EncodePrompt | StartGeneration | StopGeneration | LimitSlots | MeasureSpeed

TURN_S: Final = 0.01
"""How long the thread works before it hands over what came of it: many steps of a fast engine,
one of a slow one."""

_log = structlog.get_logger()
_T = TypeVar("_T")


class EngineRunner:
    """Owns an engine. `run` drives it until it is cancelled; all engine calls are in one thread."""

    def __init__(
        self,
        engine: InferenceEngine,
        *,
        measure: Callable[[InferenceEngine], SpeedMeasured] | None = None,
    ) -> None:
        """`measure` measures the idle engine when it is ordered; None: nobody will."""
        self._engine = engine
        self._measure = measure
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="edge-engine")
        self._orders: deque[Order] = deque()
        self._wanted = asyncio.Event()
        self._inside: set[str] = set()
        self._is_idle = True

    def __repr__(self) -> str:
        return f"EngineRunner({self._engine.model.name}, inside={len(self._inside)})"

    def order(self, order: Order) -> None:
        """Queue an order; bounded by what the session holds."""
        self._orders.append(order)
        self._wanted.set()

    async def run(self, deliver: Callable[[list[AnyEvent]], None]) -> None:
        """Carry out orders and step the engine; `deliver` gets the events in the loop's thread."""
        loop = asyncio.get_running_loop()
        while True:
            if self._is_idle and not self._orders:
                self._wanted.clear()
                await self._wanted.wait()
            events = await loop.run_in_executor(self._executor, self._work)
            if events:
                deliver(events)

    async def call(self, function: Callable[[InferenceEngine], _T]) -> _T:
        """Call with the engine in its thread, while `run` is not running."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function, self._engine)

    def close(self) -> None:
        """Wait for the step at hand, release the engine, end the thread."""
        self._executor.submit(self._engine.close).result()
        self._executor.shutdown()

    def _work(self) -> list[AnyEvent]:
        until_s = perf_counter() + TURN_S
        events: list[AnyEvent] = []
        while True:
            while self._orders:
                self._carry_out(self._orders.popleft(), events)
            if not self._engine.is_idle:
                self._step(events)
            self._is_idle = self._engine.is_idle
            if (self._is_idle and not self._orders) or perf_counter() >= until_s:
                return events

    def _carry_out(self, order: Order, events: list[AnyEvent]) -> None:
        match order:
            case StopGeneration():
                self._engine.cancel(order.id)
                self._inside.discard(order.id)
            case LimitSlots():
                self._engine.limit_slots(order.slots)
                _log.warning("slots.limited", slots=order.slots, temp_c=order.temp_c)
            case MeasureSpeed():
                events.append(self._measured())
            case _:
                self._begin(order, events)

    def _measured(self) -> SpeedMeasured:
        """Measure, unless a job was quicker."""
        if self._measure is None or self._inside:
            return SpeedMeasured(speed=None)
        try:
            return self._measure(self._engine)
        except Exception as error:  # noqa: BLE001 - the worker lives on with the speed it knows
            _log.error("speed.unknown", error=f"{type(error).__name__}: {error}")
            return SpeedMeasured(speed=None)

    def _begin(self, order: EncodePrompt | StartGeneration, events: list[AnyEvent]) -> None:
        name = order.id if isinstance(order, EncodePrompt) else order.request.id
        try:
            if isinstance(order, EncodePrompt):
                tokens = self._engine.encode(order.messages)
                events.append(PromptEncoded(name, tokens, self._engine.kept_tokens(tokens)))
            else:
                self._engine.add(order.request)
                self._inside.add(name)
        except FleetError as error:
            events.append(Broke(name, error.code, error.advice))
        except Exception as error:  # noqa: BLE001 - whatever a tokenizer or template raises costs one job
            events.append(_broke(name, error))

    def _step(self, events: list[AnyEvent]) -> None:
        try:
            found = self._engine.step()
        except Exception as error:  # noqa: BLE001 - a failed step costs the jobs inside, not the worker
            _log.error("engine.broke", error=type(error).__name__, inside=len(self._inside))
            for name in self._inside:
                self._engine.cancel(name)
                events.append(_broke(name, error))
            self._inside.clear()
            return
        for event in found:
            if not isinstance(event, Grew):
                self._inside.discard(event.id)
        events += found


def _broke(name: str, error: Exception) -> Broke:
    return Broke(name, "engine_error", f"{type(error).__name__}: {error}"[:500])
