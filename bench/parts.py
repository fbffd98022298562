"""What each part of a job costs the dispatcher's processor: `python bench/parts.py`.

Turns of 64 jobs, no broker and no sync of the disk; of many rounds the least is told, so that what
others do on the machine is not in it (but for a core that two threads share). The way to the
store's thread and back is in it; what is missing are the socket and the wait for each other's lock.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mqtt5

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.own_fleet import PROMPT, TOPICS
from bench.report import Aim, report
from cloud_dispatcher.adapters.store_sqlite import SqliteJobStore
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.commands import Send
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.settings import EngineSettings
from cloud_dispatcher.intake import Intake
from cloud_dispatcher.keys import KeyMint
from cloud_dispatcher.observers import FleetFigures, JobLog
from cloud_dispatcher.publisher import Publisher
from cloud_dispatcher.turn import Turn
from fleet_protocol import codec, topics
from fleet_protocol import messages as m
from fleet_protocol.bus import Delivery, Publication, Session
from fleet_protocol.log import set_up_logging
from fleet_protocol.mqtt import MqttBus
from fleet_protocol.mqtt_link import Link
from fleet_protocol.settings import BrokerSettings

TURN_JOBS = 64
WORKER = m.WorkerId("echo")
SUBMIT = codec.encode(m.JobSubmit(prompt=PROMPT, cache=m.Caching.OFF))
_MOST_BYTES = 2**22


class Clock:
    """Processor time by part: of each, the least of all rounds."""

    def __init__(self) -> None:
        self._round: defaultdict[str, float] = defaultdict(float)
        self._rounds: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is done in the block."""
        begun = time.process_time()
        yield
        self._round[name] += time.process_time() - begun

    def end_round(self) -> None:
        """A round is over."""
        for name, span_s in self._round.items():
            self._rounds[name].append(span_s)
        self._round.clear()

    def least_us(self) -> dict[str, float]:
        """Return microseconds a job, by part."""
        return {f"{name}_us": min(spans) / TURN_JOBS * 1e6 for name, spans in self._rounds.items()}


class HeldBus:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.held: list[Publication] = []

    def publish(self, publication: Publication) -> None:
        """Keep it."""
        self.held.append(publication)


class Jobs:
    """Lets turns of jobs pass through intake, engine, store, observers and publisher."""

    def __init__(self, clock: Clock, store: SqliteJobStore) -> None:
        self.bus = HeldBus()
        self._clock = clock
        self._store = store
        mint = KeyMint(random.getrandbits)
        self._intake = Intake(TOPICS, mint)
        self._publisher = Publisher(self.bus, TOPICS)  # type: ignore[arg-type] - all it needs
        self._observers = (JobLog(), FleetFigures())
        self._engine = Engine(EngineSettings(), "bench", has_cloud=False)
        self._now_ms = time.time_ns() // 1_000_000
        self._jobs = 0
        model = m.ModelInfo(name="echo", version="1", context_tokens=4_096)
        speed = m.Benchmark(decode_tok_s=50.0, prefill_tok_s=400.0, bandwidth_mbps=50.0)
        info = m.WorkerInfo(boot="b", slots=64, prefetch=192, models=(model,), benchmark=speed)
        online = m.Presence(status=m.PresenceStatus.ONLINE, boot="b")
        for event in (
            e.InfoReceived(worker=WORKER, info=info),
            e.PresenceChanged(worker=WORKER, presence=online),
        ):
            self._engine.handle(event, self._now_ms)

    async def round(self) -> None:
        """Submit, answer and confirm one turn of jobs."""
        self._now_ms += 1
        names = [f"r{self._jobs + number}" for number in range(TURN_JOBS)]
        self._jobs += TURN_JOBS
        with self._clock.part("store_find"):
            await self._store.find([(m.DeviceId("bench"), m.JobId(name)) for name in names])
        told = await self._turn(
            [_delivery(topics.SUBMIT, ("bench", name), SUBMIT) for name in names]
        )
        keys = [
            m.JobKey(said.message.job)
            for said in told
            if isinstance(said, Send) and isinstance(said.message, m.Assignment)
        ]
        usage = m.Usage(prompt_tokens=51, completion_tokens=51)
        answer = m.LocalAnswer(text=PROMPT, model="echo", confidence=1.0, usage=usage)
        done = codec.encode(m.JobDone(attempt=1, answer=answer))
        await self._turn([_delivery(topics.DONE, (WORKER, key), done) for key in keys])
        await self._turn([e.ResultConfirmed(job=key) for key in keys])
        self._clock.end_round()

    async def _turn(self, arrivals: Sequence[Delivery | e.AnyEvent]) -> list[object]:
        clock, now_ms, turn = self._clock, self._now_ms, Turn()
        with clock.part("decode"):
            events = [
                self._intake.read(arrival, now_ms) if isinstance(arrival, Delivery) else arrival
                for arrival in arrivals
            ]
        with clock.part("decide"):
            for event in events:
                turn.decide(event, self._engine.handle(event, now_ms), now_ms)  # type: ignore[arg-type]
        with clock.part("store_write"):
            await self._store.commit(tuple(turn.saves.values()))
        with clock.part("encode"):
            self._publisher.tell(turn.messages)
        with clock.part("log_and_figures"):
            for event, commands, at_ms in turn.decided:
                for observer in self._observers:
                    observer.observe(event, commands, at_ms)
        return list(turn.messages)


class Wire:
    """What the link writes to: nowhere."""

    def write(self, data: bytes) -> None:
        """Let it be."""

    def set_write_buffer_limits(self, *, high: int) -> None:
        """Let it be."""

    def get_extra_info(self, name: str) -> None:
        """Know nothing."""

    def abort(self) -> None:
        """Let it be."""


class Mqtt:
    """Lets the messages of a turn of jobs pass through the bus: two in, three out."""

    def __init__(self, clock: Clock, published: Sequence[Publication]) -> None:
        self._clock = clock
        self._published = published
        self._bus = MqttBus(BrokerSettings(), Session(client_id="bench"))
        self._link = Link(
            self._bus,
            keepalive_s=60,
            max_packet_bytes=_MOST_BYTES,
            write_buffer_bytes=_MOST_BYTES,
        )
        self._link.connection_made(Wire())  # type: ignore[arg-type] - all it needs
        now_s = asyncio.get_running_loop().time()
        self._bus._link = self._link  # noqa: SLF001 - up without a broker
        self._bus._come_up(self._link, mqtt5.ConnAckPacket(), now_s=now_s)  # noqa: SLF001
        ours = [one for one in published if one.topic.endswith("/assign")]
        self._arriving = [
            mqtt5.PublishPacket(
                one.topic, one.payload, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=number + 1
            ).write()
            for number, one in enumerate([*ours, *ours])
        ]

    async def round(self) -> None:
        """Read, acknowledge, publish, and hear that all arrived."""
        data, clock = b"".join(self._arriving), self._clock
        with clock.part("mqtt"):
            self._link.data_received(data)
            self._bus.acknowledge(
                [event for event in await self._bus.receive() if isinstance(event, Delivery)]
            )
            for publication in self._published:
                self._bus.publish(publication)
            await asyncio.sleep(0)
        ids = tuple(self._bus._outbox._inflight)  # noqa: SLF001 - what a broker would confirm
        acks = b"".join(mqtt5.PubAckPacket(packet_id).write() for packet_id in ids)
        with clock.part("mqtt"):
            self._link.data_received(acks)
        self._clock.end_round()

    def close(self) -> None:
        """Stop to watch for silence."""
        self._link.discard()


def _delivery(channel: topics.Channel, ids: tuple[str, ...], payload: bytes) -> Delivery:
    return Delivery(topic=TOPICS.name(channel, *ids), payload=payload, receipt=1)


async def measure(rounds: int) -> dict[str, float]:
    """Return microseconds a job, by part."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as at:
        store = SqliteJobStore(Path(at) / "jobs.db", synchronous="normal")
        async with store:
            jobs = Jobs(clock, store)
            for _ in range(rounds):
                jobs.bus.held.clear()
                await jobs.round()
    mqtt = Mqtt(clock, jobs.bus.held)
    for _ in range(rounds):
        await mqtt.round()
    mqtt.close()
    return clock.least_us()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryFile("w") as log:
        keep, sys.stderr = sys.stderr, log
        try:
            set_up_logging(level="info", json=True)
            gc.freeze()
            parts = asyncio.run(measure(40 if options.quick else 200))
        finally:
            sys.stderr = keep
    whole_us = sum(parts.values())
    report(
        "parts",
        ours=parts | {"all_us": whole_us},
        peers={},
        ratios={},
        aims={"all_us": Aim(whole_us, at_most=120)},
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
