"""The worker's shell on a bus, a spool and an engine without network, disk and model."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from edge_worker.adapters.echo_engine import EchoEngine
from edge_worker.adapters.host_linux import LinuxHost
from edge_worker.adapters.spool_memory import MemorySpool
from edge_worker.core import commands as c
from edge_worker.core import events as e
from edge_worker.core.rules import SessionRules
from edge_worker.core.session import STARTED_AFTER_MS, Session
from edge_worker.ports import (
    EngineEvent,
    GenerationRequest,
    Grew,
    InferenceEngine,
    ReloadError,
    SpooledJob,
    SpoolUnavailableError,
    StrangerError,
)
from edge_worker.service import (
    EngineRunner,
    Pace,
    ServiceParts,
    WorkerService,
    benchmark,
    golden_report,
    measure_speed,
)
from edge_worker.service.intake import subscriptions
from edge_worker.service.loop import UNSENT_MOST
from fleet_protocol import bus as b
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.codec import decode, encode
from fleet_protocol.errors import BusClosedError
from fleet_protocol.manifest import GoldenPrompt
from fleet_protocol.memory import MemoryBroker, MemoryBus
from fleet_protocol.memory_broker import Faults
from fleet_protocol.routing import RoutePolicy

WORKER = m.WorkerId("w1")
NAMES = t.Topics()
FAST = Pace(tick_s=0.01, heartbeat_s=0.02, probe_timeout_s=0.05)
PATIENCE_S = 10.0


class Dispatcher:
    """The other side, by hand.

    Attributes:
        heard: All messages, as (channel name, job or "", message), oldest first.
    """

    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus
        self.heard: list[tuple[str, str, Any]] = []
        self._more = asyncio.Event()

    async def listen(self) -> None:
        while True:
            events = await self.bus.receive()
            deliveries = [event for event in events if isinstance(event, b.Delivery)]
            for delivery in deliveries:
                address = NAMES.parse(delivery.topic)
                message = decode(address.channel, delivery.payload)
                self.heard.append((address.channel.name, address.job, message))
            self.bus.acknowledge(deliveries)
            self._more.set()

    def tell(self, channel: t.Channel, message: m.Message | bytes) -> None:
        payload = message if isinstance(message, bytes) else encode(message)
        ids = () if channel is t.DISPATCHER else (WORKER,)
        topic = NAMES.name(channel, *ids)
        self.bus.publish(
            b.Publication(topic=topic, payload=payload, qos=channel.qos, retain=channel.retain)
        )

    def assign(self, job: str, text: str = "hello", **changes: Any) -> None:
        turns = (m.ChatMessage(role=m.ChatRole.USER, content=text),)
        plain = m.Assignment(job=job, attempt=1, lease_ms=9_000, messages=turns)
        self.tell(t.ASSIGN, msgspec.structs.replace(plain, **changes))

    def settle(self, *jobs: str) -> None:
        refs = tuple(m.AttemptRef(job=job, attempt=1) for job in jobs)
        self.tell(t.SETTLED, m.Settled(jobs=refs))

    def all(self, channel: t.Channel, job: str = "") -> list[Any]:
        return [what for name, about, what in self.heard if (name, about) == (channel.name, job)]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until what was heard, or the world behind it, satisfies a condition."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._more.clear()
                await self._more.wait()

    async def hear(self, channel: t.Channel, job: str = "") -> Any:
        await self.until(lambda: self.all(channel, job))
        return self.all(channel, job)[-1]


class Lab:
    """A worker's world.

    Attributes:
        now_ms: The worker's clock, moved by hand.
    """

    def __init__(self, folder: Path) -> None:
        self.broker = MemoryBroker()
        self.spool = MemorySpool()
        self.host = LinuxHost(root=folder)
        self.now_ms = 1_000_000
        self.boots = 0
        self.service: WorkerService

    @asynccontextmanager
    async def dispatcher(self) -> AsyncIterator[Dispatcher]:
        said = [channel for channel in t.CATALOGUE if channel.sender is t.Role.WORKER]
        filters = tuple(NAMES.filter(channel, WORKER) for channel in said)
        session = b.Session(client_id="dispatcher", subscriptions=filters)
        async with MemoryBus(self.broker, session) as bus:
            dispatcher = Dispatcher(bus)
            listening = asyncio.create_task(dispatcher.listen(), name="test-dispatcher")
            try:
                yield dispatcher
            finally:
                listening.cancel()

    @asynccontextmanager
    async def worker(
        self, engine: InferenceEngine | None = None, *, max_unconfirmed: int = 100_000
    ) -> AsyncIterator[asyncio.Task[None]]:
        """Run a worker; it is ended at once if it still runs at the end."""
        self.boots += 1
        runner = EngineRunner(engine or EchoEngine(slots=2))
        gone = m.Presence(status=m.PresenceStatus.OFFLINE, boot=f"b{self.boots}")
        topic = NAMES.name(t.PRESENCE, WORKER)
        session = b.Session(
            client_id=WORKER,
            subscriptions=subscriptions(NAMES, WORKER),
            will=b.Publication(topic=topic, payload=encode(gone), retain=True),
            expiry_s=60,
        )
        async with MemoryBus(self.broker, session, max_unconfirmed=max_unconfirmed) as bus:
            self.service = WorkerService(self._parts(bus, runner))
            running = asyncio.create_task(self.service.run(), name="test-worker")
            try:
                yield running
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                runner.close()

    async def begin(self, job: str, dispatcher: Dispatcher) -> None:
        """Assign a job to a worker that takes its time with it, until it says `started`."""
        await dispatcher.hear(t.HELD)
        dispatcher.assign(job)
        await dispatcher.until(self.spool.load)
        self.now_ms += STARTED_AFTER_MS
        await dispatcher.hear(t.STARTED, job)

    def _parts(self, bus: MemoryBus, runner: EngineRunner) -> ServiceParts:
        model = m.ModelInfo(name="echo", version="1", context_tokens=4_096)
        info = m.WorkerInfo(
            boot=f"b{self.boots}",
            models=(model,),
            benchmark=m.Benchmark(decode_tok_s=1.0, prefill_tok_s=1.0),
        )
        rules = SessionRules(policy=RoutePolicy(context_tokens=4_096), cache_bytes=100_000)
        return ServiceParts(
            worker=WORKER,
            session=Session(worker=WORKER, info=info, rules=rules, started_at_ms=self.now_ms),
            bus=bus,
            spool=self.spool,
            runner=runner,
            host=self.host,
            topics=NAMES,
            now_ms=lambda: self.now_ms,
            rng=random.Random(1),
            pace=FAST,
        )


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


async def test_a_worker_introduces_itself_then_says_online_then_what_it_holds(lab: Lab) -> None:
    async with lab.dispatcher() as dispatcher, lab.worker():
        await dispatcher.hear(t.HELD)
        names = [name for name, _, _ in dispatcher.heard if name != "state"]
        assert names == ["info", "presence", "held"]
        assert dispatcher.all(t.PRESENCE)[0].status is m.PresenceStatus.ONLINE


async def test_a_job_is_answered_and_forgotten_once_settled(lab: Lab) -> None:
    async with lab.dispatcher() as dispatcher, lab.worker():
        dispatcher.assign("J1", "hello world", stream=True)
        done = await dispatcher.hear(t.DONE, "J1")
        assert done.answer.text == "hello world"
        names = [name for name, about, _ in dispatcher.heard if about == "J1"]
        assert names == ["worker-tok", "done"]
        assert [job.outcome for job in lab.spool.load()] == [done]
        dispatcher.settle("J1")
        await dispatcher.until(lambda: not lab.spool.load())


async def test_many_jobs_share_transactions_and_each_is_answered_once(lab: Lab) -> None:
    jobs = [f"J{number}" for number in range(300)]
    async with lab.dispatcher() as dispatcher, lab.worker():
        for job in jobs:
            dispatcher.assign(job)
        for job in jobs:
            await dispatcher.hear(t.DONE, job)
        assert all(len(dispatcher.all(t.DONE, job)) == 1 for job in jobs)
        assert lab.spool.commits < len(jobs)


async def test_while_the_disk_is_full_nothing_is_promised_and_then_nothing_is_lost(
    lab: Lab,
) -> None:
    async with lab.dispatcher() as dispatcher, lab.worker():
        await dispatcher.hear(t.HELD)
        lab.spool.fails = True
        dispatcher.assign("J1")
        await dispatcher.until(lambda: len(dispatcher.all(t.PRESENCE)) == 2)
        assert dispatcher.all(t.PRESENCE)[-1].status is m.PresenceStatus.DRAINING
        beats = len(dispatcher.all(t.STATE))
        await dispatcher.until(lambda: len(dispatcher.all(t.STATE)) > beats + 3)
        assert [name for name, about, _ in dispatcher.heard if about] == []
        lab.spool.fails = False
        lab.now_ms += 1_000
        await dispatcher.hear(t.DONE, "J1")
        assert dispatcher.all(t.PRESENCE)[-1].status is m.PresenceStatus.ONLINE
        assert len(dispatcher.all(t.DONE, "J1")) == 1


async def test_an_assignment_that_could_not_be_saved_is_not_acknowledged(lab: Lab) -> None:
    async with lab.dispatcher() as dispatcher:
        async with lab.worker():
            await dispatcher.hear(t.HELD)
            lab.spool.fails = True
            dispatcher.assign("J1")
            await dispatcher.until(lambda: len(dispatcher.all(t.PRESENCE)) == 2)
        lab.spool.fails = False
        async with lab.worker():
            await dispatcher.hear(t.DONE, "J1")


async def test_what_cannot_be_read_is_counted_acknowledged_and_not_logged(lab: Lab) -> None:
    async with lab.dispatcher() as dispatcher, lab.worker():
        await dispatcher.hear(t.HELD)
        with capture_logs() as logs:
            dispatcher.tell(t.ASSIGN, b"secret garbage")
            dispatcher.tell(t.ASSIGN, b'{"job":"a/b","attempt":1}')
            dispatcher.tell(t.ASSIGN, b'{"v":99}')
            dispatcher.assign("J1")
            await dispatcher.hear(t.DONE, "J1")
        assert lab.service.intake.malformed == {
            "malformed": 1,
            "invalid_field": 1,
            "unsupported_version": 1,
        }
        assert "secret" not in repr(logs)
        lab.broker.cut(WORKER)
        lab.broker.heal(WORKER)
        dispatcher.assign("J2")
        await dispatcher.hear(t.DONE, "J2")
        assert lab.service.intake.malformed.total() == 3


async def test_what_a_later_release_will_understand_is_left_alone(lab: Lab) -> None:
    async with lab.dispatcher() as dispatcher, lab.worker():
        desired = m.DesiredModel(name="tiny", version="2", manifest_sha256="0" * 64)
        dispatcher.tell(t.DESIRED, desired)
        dispatcher.tell(t.DESIRED, b"")
        dispatcher.assign("J1")
        await dispatcher.hear(t.DONE, "J1")
        assert not lab.service.intake.malformed


async def test_a_restarted_worker_tells_what_its_spool_still_holds(lab: Lab) -> None:
    async with lab.dispatcher() as dispatcher:
        async with lab.worker():
            dispatcher.assign("J1")
            first = await dispatcher.hear(t.DONE, "J1")
        dispatcher.heard.clear()
        async with lab.worker():
            held = await dispatcher.hear(t.HELD)
            assert held.finished == (m.AttemptRef(job="J1", attempt=1),)
            assert await dispatcher.hear(t.DONE, "J1") == first


async def test_a_second_try_is_on_the_disk_before_the_engine_begins(lab: Lab) -> None:
    class Deadly(EchoEngine):
        kept: tuple[object, ...] = ()

        def encode(self, messages: Sequence[m.ChatMessage]) -> tuple[int, ...]:
            self.kept = tuple(job.outcome for job in lab.spool.load())
            return super().encode(messages)

    turns = (m.ChatMessage(role=m.ChatRole.USER, content="hello"),)
    job = m.Assignment(job="J1", attempt=1, lease_ms=9_000, messages=turns)
    lab.spool.open()
    lab.spool.commit(keep=[SpooledJob(assignment=job, received_at_ms=1)], forget=[])
    engine = Deadly(slots=2)
    async with lab.dispatcher() as dispatcher, lab.worker(engine):
        await dispatcher.hear(t.DONE, "J1")
    assert [outcome.code for outcome in engine.kept] == ["worker_died"]


async def test_an_answer_made_while_the_link_was_down_arrives_when_it_is_back(lab: Lab) -> None:
    engine = SlowEngine()
    async with lab.dispatcher() as dispatcher, lab.worker(engine):
        await lab.begin("J1", dispatcher)
        lab.broker.cut(WORKER)
        engine.held_back = False
        async with asyncio.timeout(PATIENCE_S):
            while lab.spool.load()[0].outcome is None:  # noqa: ASYNC110 - a spool rings no bell
                await asyncio.sleep(0)
        assert dispatcher.all(t.DONE, "J1") == []
        lab.broker.heal(WORKER)
        await dispatcher.hear(t.DONE, "J1")


async def test_a_cancelled_job_leaves_the_engine(lab: Lab) -> None:
    engine = SlowEngine()
    async with lab.dispatcher() as dispatcher, lab.worker(engine):
        await lab.begin("J1", dispatcher)
        dispatcher.tell(t.WORKER_CANCEL, m.WorkerCancel(job="J1", attempt=1))
        await dispatcher.until(lambda: not lab.spool.load())
        engine.held_back = False
        dispatcher.assign("J2")
        await dispatcher.hear(t.DONE, "J2")
        assert dispatcher.all(t.DONE, "J1") == []


async def test_a_step_that_fails_costs_the_jobs_inside_and_not_the_worker(lab: Lab) -> None:
    engine = SlowEngine()
    async with lab.dispatcher() as dispatcher, lab.worker(engine):
        dispatcher.assign("J1")
        dispatcher.assign("J2", escalate=m.Escalate.NEVER)
        await dispatcher.until(lambda: len(engine.inside) == 2)
        engine.fault = RuntimeError("out of memory")
        escalation = await dispatcher.hear(t.ESCALATE, "J1")
        assert escalation.reason is m.Reason.LOCAL_ERROR
        assert (await dispatcher.hear(t.FAILED, "J2")).code == "engine_error"
        engine.fault, engine.held_back = None, False
        dispatcher.assign("J3")
        await dispatcher.hear(t.DONE, "J3")


async def test_a_stopped_worker_drains_says_offline_and_returns(lab: Lab) -> None:
    async with lab.dispatcher() as dispatcher, lab.worker() as running:
        dispatcher.assign("J1")
        await dispatcher.hear(t.DONE, "J1")
        dispatcher.settle("J1")
        lab.service.request_stop()
        async with asyncio.timeout(PATIENCE_S):
            await running
        await dispatcher.until(lambda: len(dispatcher.all(t.PRESENCE)) == 3)
        said = [presence.status for presence in dispatcher.all(t.PRESENCE)]
        assert said == ["online", "draining", "offline"]
        assert {presence.boot for presence in dispatcher.all(t.PRESENCE)} == {"b1"}
        lab.spool.open()
        assert lab.spool.load() == []


async def test_a_worker_that_is_to_load_its_model_anew_says_goodbye_and_why_it_ends(
    lab: Lab,
) -> None:
    async with lab.dispatcher() as dispatcher, lab.worker() as running:
        await dispatcher.hear(t.HELD)
        dispatcher.tell(t.COMMAND, m.WorkerCommand(id="c1", op=m.WorkerOp.RELOAD))
        with pytest.raises(ReloadError) as ended:
            await running
        assert ended.value.code == "reload"
        offline = m.PresenceStatus.OFFLINE
        await dispatcher.until(lambda: dispatcher.all(t.PRESENCE)[-1].status is offline)


async def test_a_worker_whose_id_is_taken_stops_with_a_code(lab: Lab) -> None:
    async with lab.dispatcher() as dispatcher, lab.worker() as running:
        await dispatcher.hear(t.HELD)
        async with MemoryBus(lab.broker, b.Session(client_id=WORKER)):
            with pytest.raises(BusClosedError) as caught:
                await asyncio.wait_for(running, PATIENCE_S)
            assert caught.value.code == "session_taken_over"


async def test_a_worker_that_may_not_speak_under_its_id_stops_and_says_why(lab: Lab) -> None:
    lab.broker.deny(WORKER, NAMES.filter(t.PRESENCE, WORKER))
    lab.broker.deny(WORKER, NAMES.filter(t.INFO, WORKER))
    async with lab.worker() as running:
        with pytest.raises(StrangerError, match=WORKER) as caught:
            await asyncio.wait_for(running, PATIENCE_S)
        assert caught.value.code == "not_authorized"


async def test_a_worker_that_was_let_in_outlives_a_refusal(lab: Lab) -> None:
    async with lab.dispatcher() as dispatcher, lab.worker() as running:
        await dispatcher.hear(t.HELD)
        lab.broker.deny(WORKER, NAMES.filter(t.PRESENCE, WORKER))
        with capture_logs() as logs:
            dispatcher.tell(t.COMMAND, m.WorkerCommand(id="1", op=m.WorkerOp.DRAIN))
            async with asyncio.timeout(PATIENCE_S):
                while "publication.refused" not in {line["event"] for line in logs}:  # noqa: ASYNC110 - a log has no event
                    await asyncio.sleep(0)
        assert not running.done()


class CountingEngine(EchoEngine):
    """Counts what it is asked to generate."""

    def __init__(self) -> None:
        super().__init__(slots=2)
        self.asked: list[str] = []

    def add(self, request: GenerationRequest) -> None:
        self.asked.append(request.id.partition(".")[0])
        super().add(request)


async def test_what_arrives_twice_is_done_once_before_and_after_it_is_settled(lab: Lab) -> None:
    lab.broker.faults = Faults(duplication=1.0)
    engine, jobs = CountingEngine(), [f"J{number}" for number in range(30)]
    async with lab.dispatcher() as dispatcher, lab.worker(engine):
        await dispatcher.hear(t.HELD)
        for _ in range(2):
            for job in jobs:
                dispatcher.assign(job)
        for job in jobs:
            await dispatcher.hear(t.DONE, job)
        dispatcher.settle(*jobs)
        await dispatcher.until(lambda: not lab.spool.load())
        for job in (*jobs, "last"):
            dispatcher.assign(job)
        await dispatcher.hear(t.DONE, "last")
    assert sorted(engine.asked) == sorted([*jobs, "last"])


async def test_a_link_that_comes_back_brings_the_same_assignments_and_runs_none_again(
    lab: Lab,
) -> None:
    """A broker that had no acknowledgement delivers again, marked as such or not."""
    engine = CountingEngine()
    async with lab.dispatcher() as dispatcher, lab.worker(engine):
        await dispatcher.hear(t.HELD)
        dispatcher.assign("J1")
        await dispatcher.hear(t.DONE, "J1")
        lab.broker.cut(WORKER)
        for job in ("J1", "J2"):
            dispatcher.assign(job)
        lab.broker.heal(WORKER)
        await dispatcher.hear(t.DONE, "J2")
        await dispatcher.until(lambda: len(dispatcher.all(t.DONE, "J1")) >= 2)
    assert engine.asked == ["J1", "J2"]


async def test_what_a_full_bus_does_not_take_waits_within_bounds_and_what_is_retained_is_told(
    lab: Lab,
) -> None:
    async with lab.dispatcher() as dispatcher, lab.worker(max_unconfirmed=100):
        await dispatcher.hear(t.HELD)
        lab.broker.cut(WORKER)
        progress = c.Send(t.PROGRESS, (WORKER, "J1"), m.JobProgress(attempt=1))
        for _ in range(UNSENT_MOST + 2_000):
            lab.service._publish(progress)
        gone = m.Presence(status=m.PresenceStatus.DRAINING, boot="b1")
        lab.service._publish(c.Send(t.PRESENCE, (WORKER,), gone))
        assert len(lab.service._unsent) == UNSENT_MOST + 1, "others gave way, presence did not"
        lab.broker.heal(WORKER)
        await dispatcher.until(lambda: gone in dispatcher.all(t.PRESENCE))
        assert not lab.service._unsent


async def test_a_full_disk_is_tried_again_with_pauses(lab: Lab) -> None:
    tries = []

    class Full(MemorySpool):
        def commit(self, **_what: Any) -> None:
            tries.append(lab.now_ms)
            raise SpoolUnavailableError("full")

    lab.spool = Full()
    async with lab.dispatcher() as dispatcher, lab.worker():
        await dispatcher.hear(t.HELD)
        dispatcher.assign("J1")
        await dispatcher.until(lambda: tries)
        for _ in range(40):
            beats = len(dispatcher.all(t.STATE))
            await dispatcher.until(lambda beats=beats: len(dispatcher.all(t.STATE)) > beats)
            lab.now_ms += 1_000
    pauses = [after - before for before, after in pairwise(tries)]
    assert pauses == sorted(pauses)
    assert pauses[-1] >= 8_000


async def test_bandwidth_is_measured_by_echoes_and_said(lab: Lab) -> None:
    async with lab.dispatcher() as dispatcher, lab.worker():
        online = m.DispatcherPresence(status=m.DispatcherStatus.ONLINE, epoch="e1")
        dispatcher.tell(t.DISPATCHER, online)
        answered = 0
        while answered < 5:
            await dispatcher.until(lambda: len(dispatcher.all(t.PROBE)) > answered)  # noqa: B023 - awaited here
            dispatcher.tell(t.ECHO, dispatcher.all(t.PROBE)[-1])
            answered += 1
        await dispatcher.until(lambda: len(dispatcher.all(t.INFO)) == 2)
        assert dispatcher.all(t.INFO)[-1].benchmark.bandwidth_mbps > 0


async def test_speed_is_not_measured_while_a_job_is_answered() -> None:
    waited: list[str] = []

    def measure(_engine: InferenceEngine) -> e.SpeedMeasured:
        waited.append("g1")
        return e.SpeedMeasured(speed=None)

    runner = EngineRunner(EchoEngine(slots=2), measure=measure)
    request = GenerationRequest(
        id="g1", prompt_tokens=tuple(range(50)), generation=m.Generation(max_tokens=40)
    )
    heard: list[e.AnyEvent] = []
    measured = asyncio.Event()

    def deliver(events: list[e.AnyEvent]) -> None:
        heard.extend(events)
        if any(isinstance(event, e.SpeedMeasured) for event in heard):
            measured.set()

    runner.order(c.StartGeneration(request))
    runner.order(c.MeasureSpeed())
    running = asyncio.create_task(runner.run(deliver), name="test-runner")
    try:
        async with asyncio.timeout(PATIENCE_S):
            await measured.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        runner.close()
    assert waited == []


def test_speed_is_measured_through_the_engine_port() -> None:
    engine = EchoEngine(slots=1, context_tokens=512)
    speed = measure_speed(engine)
    assert speed.decode_tok_s > 0
    assert speed.prefill_tok_s > 0
    assert engine.is_idle


def test_an_answer_that_comes_in_one_step_is_no_miracle_of_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0

    def tick() -> float:
        nonlocal now_s
        now_s += 1e-6
        return now_s

    class Hasty(EchoEngine):
        def step(self) -> list[EngineEvent]:
            nonlocal now_s
            now_s += 0.5
            events = list[EngineEvent]([Grew(id="selftest", text="a", tokens=1)])
            while not self.is_idle:
                events += super().step()
            return events

    monkeypatch.setattr(benchmark, "perf_counter", tick)
    speed = measure_speed(Hasty(slots=1, context_tokens=512))
    # At most an answer's tokens in the half second that it took.
    assert 1 < speed.decode_tok_s <= 2 * benchmark.DECODE_TOKENS


def test_speed_can_be_measured_in_the_smallest_context() -> None:
    assert measure_speed(EchoEngine(slots=1, context_tokens=16)).decode_tok_s > 0


def test_golden_prompts_tell_right_from_wrong() -> None:
    right = GoldenPrompt(
        messages=(("user", "hello"),), prompt_tokens=2, expect_tokens=(1, 2), expect_text="hello"
    )
    wrong_text = msgspec.structs.replace(right, expect_text="hallo")
    wrong_count = msgspec.structs.replace(right, prompt_tokens=3)
    report = golden_report(EchoEngine(), [right, wrong_text, wrong_count])
    assert (report.checked, report.wrong) == (3, (1, 2))


class SlowEngine(EchoEngine):
    """An echo that waits for a word, and that can be told to fail.

    Attributes:
        held_back: While true, steps do nothing.
        fault: Raised by every step.
        inside: The requests it has.
    """

    def __init__(self) -> None:
        super().__init__(slots=2)
        self.held_back = True
        self.fault: Exception | None = None

    @property
    def inside(self) -> list[str]:
        return list(self._requests)

    def step(self) -> list[EngineEvent]:
        if self.fault is not None:
            raise self.fault
        return [] if self.held_back else super().step()
