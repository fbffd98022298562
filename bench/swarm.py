"""Simulated boards, many in a process, each with an MQTT connection of its own.

A board says what real ones say (presence with a will, info, what it holds, its state every five
seconds) and answers an assignment with the prompt itself, at once or after a short drawn time. It
keeps nothing on a disk. Orders are JSON lines on standard input, each is answered with one line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from edge_worker.service.intake import subscriptions
from fleet_protocol import codec, topics
from fleet_protocol import messages as m
from fleet_protocol.bus import BusEvent, Delivery, LinkUp, Publication, Session
from fleet_protocol.errors import BusClosedError
from fleet_protocol.log import set_up_logging
from fleet_protocol.mqtt import BusLimits, MqttBus
from fleet_protocol.settings import BrokerSettings

TOPICS = topics.Topics()
MODEL = m.ModelInfo(name="echo", version="1", context_tokens=4_096)
STATE_EVERY_S = 5.0
SLOTS, PREFETCH = 2, 1
AT_ONCE_SHARE = 0.5
WORK_MOST_S = 0.5
DIALLING_MOST = 32
_TICK_S = 0.02


class Seen:
    """What the boards of this process saw, since it was last asked for.

    Attributes:
        delays_s: Of first attempts, from the device's submission to the board.
        again: Later attempts: job and moment.
        first_at: Moment of the first assignment since then; moments are the machine's own clock.
    """

    def __init__(self) -> None:
        self.delays_s: list[float] = []
        self.again: list[tuple[str, float]] = []
        self.first_at: float | None = None

    def note(self, assignment: m.Assignment) -> None:
        """Take note of an assignment; its prompt begins with the moment of its submission."""
        now = time.monotonic()
        self.first_at = self.first_at or now
        if assignment.attempt == 1:
            self.delays_s.append(now - float(assignment.messages[-1].content.partition(" ")[0]))
        else:
            self.again.append((assignment.job, now))


class Board:
    """One of them.

    Attributes:
        held: What it works on, by job.
    """

    def __init__(self, url: str, name: str, chance: random.Random, seen: Seen) -> None:
        self.name = m.WorkerId(name)
        self.held: dict[str, m.Assignment] = {}
        self._chance = chance
        self._seen = seen
        self._boot = f"b{chance.getrandbits(40):x}"
        self._epoch = ""
        self._seq = 0
        self._finished: dict[str, int] = {}
        self._bus = MqttBus(
            BrokerSettings(url=url, keepalive_s=60),
            self._session(),
            limits=BusLimits(connect_timeout_s=120.0, handshake_timeout_s=60.0),
        )
        self._task: asyncio.Task[None] | None = None

    async def come(self) -> None:
        """Connect, and live until the bus is closed."""
        await self._bus.__aenter__()
        self._task = asyncio.create_task(self._live(), name=self.name)

    async def leave(self) -> None:
        """Say goodbye."""
        if self._task is not None:
            self._say(topics.PRESENCE, self._presence(m.PresenceStatus.OFFLINE))
            await self._bus.__aexit__()
            await asyncio.gather(self._task, return_exceptions=True)

    def die(self) -> None:
        """Lose power: the connection goes without a word, and nobody comes back."""
        link = self._bus._link  # noqa: SLF001 - a fault, made from inside
        if link is not None:
            link.discard()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def tell_state(self) -> None:
        """Send a heartbeat."""
        busy = m.Activity.BUSY if self.held else m.Activity.IDLE
        state = m.WorkerState(
            ts=int(time.time() * 1_000),
            seq=self._seq,
            status=busy,
            cpu_pct=self._chance.uniform(5, 90),
            mem_pct=40.0,
            inflight=len(self.held),
            tok_s=self._chance.uniform(5, 90) if self.held else 0.0,
            temp_c=self._chance.uniform(45, 75),
            throttled=False,
        )
        self._say(topics.STATE, state)
        self._seq += 1

    def _session(self) -> Session:
        will = Publication(
            topic=TOPICS.name(topics.PRESENCE, self.name),
            payload=codec.encode(self._presence(m.PresenceStatus.OFFLINE)),
            retain=True,
        )
        return Session(
            client_id=self.name, subscriptions=subscriptions(TOPICS, self.name), will=will
        )

    def _presence(self, status: m.PresenceStatus) -> m.Presence:
        return m.Presence(status=status, boot=self._boot)

    async def _live(self) -> None:
        while True:
            try:
                events = await self._bus.receive()
            except BusClosedError:
                return
            for event in events:
                self._take(event)
            self._bus.acknowledge([event for event in events if isinstance(event, Delivery)])

    def _take(self, event: BusEvent) -> None:
        if isinstance(event, LinkUp):
            self._introduce()
        elif isinstance(event, Delivery):
            verb = event.topic.rpartition("/")[2]
            if verb == "assign":
                self._begin(codec.decode_as(m.Assignment, event.payload))
            elif verb == "settled":
                for ref in codec.decode_as(m.Settled, event.payload).jobs:
                    self._finished.pop(ref.job, None)
            elif verb == "dispatcher":
                self._hear(codec.decode_as(m.DispatcherPresence, event.payload))

    def _introduce(self) -> None:
        speed = m.Benchmark(
            decode_tok_s=self._chance.uniform(10, 90), prefill_tok_s=400.0, bandwidth_mbps=50.0
        )
        info = m.WorkerInfo(
            boot=self._boot, slots=SLOTS, prefetch=PREFETCH, models=(MODEL,), benchmark=speed
        )
        self._say(topics.INFO, info)
        self._say(topics.PRESENCE, self._presence(m.PresenceStatus.ONLINE))

    def _hear(self, presence: m.DispatcherPresence) -> None:
        is_online = presence.status is m.DispatcherStatus.ONLINE
        if is_online and presence.epoch != self._epoch:
            self._epoch = presence.epoch
            running = [m.AttemptRef(job=x.job, attempt=x.attempt) for x in self.held.values()]
            finished = [m.AttemptRef(job=job, attempt=n) for job, n in self._finished.items()]
            held = m.HeldJobs(boot=self._boot, running=tuple(running), finished=tuple(finished))
            self._say(topics.HELD, held)

    def _begin(self, assignment: m.Assignment) -> None:
        if assignment.job in self.held or assignment.job in self._finished:
            return
        self._seen.note(assignment)
        self.held[assignment.job] = assignment
        if self._chance.random() < AT_ONCE_SHARE:
            self._answer(assignment)
        else:
            work_s = self._chance.uniform(0, WORK_MOST_S)
            asyncio.get_running_loop().call_later(work_s, self._answer, assignment)

    def _answer(self, assignment: m.Assignment) -> None:
        if self._task is None:
            return
        self.held.pop(assignment.job, None)
        self._finished[assignment.job] = assignment.attempt
        answer = m.LocalAnswer(
            text=assignment.messages[-1].content,
            model=MODEL.name,
            confidence=1.0,
            usage=m.Usage(prompt_tokens=12, completion_tokens=12),
        )
        done = m.JobDone(attempt=assignment.attempt, answer=answer)
        self._say(topics.DONE, done, assignment.job)

    def _say(self, channel: topics.Channel, message: m.Message, *ids: str) -> None:
        topic = TOPICS.name(channel, self.name, *ids)
        payload = codec.encode(message)
        self._bus.publish(
            Publication(topic=topic, payload=payload, qos=channel.qos, retain=channel.retain)
        )


class Swarm:
    """All boards of this process."""

    def __init__(self, url: str, *, first: int, count: int) -> None:
        chance = random.Random(first)  # noqa: S311 - no secret
        self._seen = Seen()
        self._dead: list[Board] = []
        self._boards = [
            Board(url, f"board{number:05}", random.Random(chance.random()), self._seen)  # noqa: S311
            for number in range(first, first + count)
        ]

    async def come(self) -> None:
        """Connect all, some at once."""
        room = asyncio.Semaphore(DIALLING_MOST)

        async def one(board: Board) -> None:
            async with room:
                await board.come()

        await asyncio.gather(*(one(board) for board in self._boards))

    async def beat(self) -> None:
        """Let all tell their state in turn, evenly over the span."""
        due = place = 0.0
        begun = time.monotonic()
        while True:
            due = (time.monotonic() - begun) / STATE_EVERY_S * len(self._boards)
            while place < due:
                self._boards[int(place) % len(self._boards)].tell_state()
                place += 1
            await asyncio.sleep(_TICK_S)

    def report(self) -> dict[str, object]:
        """Return what was seen, and begin anew."""
        seen = self._seen
        told = {"delays_s": seen.delays_s, "again": seen.again, "first_at": seen.first_at}
        seen.delays_s, seen.again, seen.first_at = [], [], None
        return told

    def kill(self) -> dict[str, object]:
        """Let a board that works on a job lose power; say which jobs, and when."""
        for board in self._boards:
            if board.held:
                held = list(board.held)
                board.die()
                self._boards.remove(board)
                self._dead.append(board)
                return {"board": board.name, "jobs": held, "at": time.monotonic()}
        return {"board": None}

    async def leave(self) -> None:
        """Say goodbye, all of them."""
        await asyncio.gather(*(board.leave() for board in self._boards))


async def serve(swarm: Swarm) -> None:
    """Come, carry out orders until there are no more, leave."""
    await swarm.come()
    beating = asyncio.create_task(swarm.beat(), name="beat")
    _say_line({"ready": True})
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        _say_line(_carry_out(swarm, order))
    beating.cancel()
    await swarm.leave()


def _carry_out(swarm: Swarm, order: dict[str, object]) -> dict[str, object]:
    return swarm.kill() if order["op"] == "kill" else swarm.report()


def _say_line(answer: dict[str, object]) -> None:
    print(json.dumps(answer), flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Be a swarm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    options = parser.parse_args(words)
    set_up_logging(level="warning")
    asyncio.run(serve(Swarm(options.url, first=options.first, count=options.count)))


if __name__ == "__main__":
    main()
