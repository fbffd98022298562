"""A session with a disk, an engine and a wire made of plain collections, in virtual time."""

from __future__ import annotations

from typing import Any

import msgspec

from edge_worker.core import commands as c
from edge_worker.core import events as e
from edge_worker.core.attempt import SpooledJob
from edge_worker.core.difficulty import DifficultyModel
from edge_worker.core.generation import EngineEvent, Finished, GenerationRequest, Grew
from edge_worker.core.health import HeatLimits, HostReading
from edge_worker.core.rules import SessionRules
from edge_worker.core.session import Session
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.codec import decode, encode
from fleet_protocol.routing import RoutePolicy

WORKER = m.WorkerId("w1")
COOL = HostReading(cpu_pct=10.0, mem_pct=20.0, temp_c=40.0, throttled=False)
INFO = m.WorkerInfo(
    boot="b1",
    slots=2,
    models=(m.ModelInfo(name="tiny", version="1", context_tokens=100),),
    benchmark=m.Benchmark(decode_tok_s=50.0, prefill_tok_s=200.0),
)
POLICY = RoutePolicy(context_tokens=100, min_confidence=0.5)
HEAT = HeatLimits(soft_c=80.0, critical_c=90.0)
SURE, UNSURE = (0.0,), (-5.0,)


def assignment(job: str = "J1", attempt: int = 1, **changes: Any) -> m.Assignment:
    """An assignment with a lease of 9 s; `changes` are fields of it."""
    plain = m.Assignment(
        job=job,
        attempt=attempt,
        lease_ms=9_000,
        messages=(m.ChatMessage(role=m.ChatRole.USER, content="how warm is it?"),),
    )
    return msgspec.structs.replace(plain, **changes)


def finished(name: str, *, logprobs: tuple[float, ...] = SURE, text: str = "21 C") -> Finished:
    """What the engine says at the end of a generation."""
    return Finished(
        id=name,
        text=text,
        finish=m.FinishReason.STOP,
        prompt_tokens=5,
        cached_tokens=0,
        tokens=max(1, len(logprobs)),
        logprobs=logprobs,
    )


class SessionLab:
    """Carries commands out one by one, in order, and remembers everything.

    Attributes:
        disk: What is kept.
        answers: What is kept of earlier answers.
        encoding: Messages by generation id, asked for and not answered yet.
        engine: Requests by generation id that the engine has.
        limits: What the engine was told of its slots.
        measured, timed: How often bandwidth and speed were to be measured.
        sent: All messages, as (channel name, job or "", message).
    """

    def __init__(
        self,
        *,
        linked: bool = True,
        disk: dict[Any, SpooledJob] | None = None,
        policy: RoutePolicy = POLICY,
        difficulty: DifficultyModel | None = None,
    ) -> None:
        self._policy, self._difficulty = policy, difficulty
        self.now_ms = 1_000_000
        self.disk: dict[tuple[str, int], SpooledJob] = {} if disk is None else disk
        self.answers: dict[bytes, CachedAnswer] = {}
        self.sent: list[tuple[str, str, m.Message]] = []
        self.measured = self.timed = 0
        self.stopped = False
        self.limits: list[int] = []
        self.boot()
        if linked:
            self.link()

    def boot(self) -> None:
        """Start anew on what the disk holds, as after kill -9."""
        self.encoding: dict[str, tuple[m.ChatMessage, ...]] = {}
        self.engine: dict[str, GenerationRequest] = {}
        rules = SessionRules(
            policy=self._policy,
            difficulty=self._difficulty,
            heat=HEAT,
            disk_low_mb=100,
            drain_timeout_ms=30_000,
            cache_bytes=100_000,
        )
        self.session = Session(worker=WORKER, info=INFO, rules=rules, started_at_ms=self.now_ms)
        known = list(self.answers.values())
        spooled = list(self.disk.values())
        self._carry_out(self.session.recover(spooled, self.now_ms, answers=known))

    def link(self) -> None:
        """Bring the link up, with a dispatcher behind it."""
        self.do(e.LinkRestored())
        self.see_dispatcher("e1")

    def see_dispatcher(self, epoch: str, *, online: bool = True) -> None:
        """Let the dispatcher's presence arrive."""
        status = m.DispatcherStatus.ONLINE if online else m.DispatcherStatus.OFFLINE
        self.do(e.DispatcherSeen(m.DispatcherPresence(status=status, epoch=epoch)))

    def do(self, event: e.AnyEvent, *, after_ms: int = 0) -> list[c.AnyCommand]:
        """Let something happen and carry out what the session decides."""
        self.now_ms += after_ms
        commands = self.session.handle(event, self.now_ms)
        self._carry_out(commands)
        return commands

    def assign(self, job: str = "J1", attempt: int = 1, **changes: Any) -> None:
        """Let an assignment arrive."""
        self.do(e.AssignmentReceived(assignment(job, attempt, **changes)))

    def encode_all(self, tokens: int = 5) -> None:
        """Let the tokenizer answer all it was asked."""
        for name in list(self.encoding):
            self.encoding.pop(name, None)
            self.do(e.PromptEncoded(name, tuple(range(tokens))))

    def from_engine(self, event: EngineEvent) -> None:
        """Let the engine say something; what it is through with, it no longer has."""
        if not isinstance(event, Grew):
            self.engine.pop(event.id, None)
        self.do(event)

    def start(self, job: str = "J1", attempt: int = 1, **changes: Any) -> str:
        """Assign, encode, and return the id of the generation that runs."""
        self.assign(job, attempt, **changes)
        self.encode_all()
        return next(name for name in self.engine if name.startswith(f"{job}.{attempt}."))

    def run(self, job: str = "J1", attempt: int = 1, **changes: Any) -> None:
        """Assign and answer."""
        self.from_engine(finished(self.start(job, attempt, **changes)))

    def pass_time(self, span_ms: int, *, step_ms: int = 250) -> None:
        """Let the clock tick."""
        for _ in range(span_ms // step_ms):
            self.do(e.TimePassed(), after_ms=step_ms)

    def told(self, channel: t.Channel, job: str = "") -> list[Any]:
        """Return the messages sent on a channel (about a job)."""
        return [
            message for name, about, message in self.sent if (name, about) == (channel.name, job)
        ]

    def names(self) -> list[str]:
        """Return the channels of all that was sent, in order."""
        return [name for name, _, _ in self.sent]

    def _carry_out(self, commands: list[c.AnyCommand]) -> None:
        for command in commands:
            self.carry_out(command)

    def _cache(self, command: c.KeepAnswer | c.ForgetAnswers) -> None:
        if isinstance(command, c.KeepAnswer):
            self.answers[command.answer.key] = command.answer
        else:
            self.answers.clear()

    def carry_out(self, command: c.AnyCommand) -> None:
        """Carry one command out; a subclass may look first."""
        match command:
            case c.KeepJob(job=job):
                self.disk[job.assignment.job, job.assignment.attempt] = job
            case c.KeepAnswer() | c.ForgetAnswers():
                self._cache(command)
            case c.ForgetJob(job=key, attempt=attempt):
                self.disk.pop((key, attempt), None)
            case c.EncodePrompt(id=name, messages=messages):
                self.encoding[name] = messages
            case c.StartGeneration(request=request):
                self.engine[request.id] = request
            case c.StopGeneration(id=name):
                self.engine.pop(name, None)
                self.encoding.pop(name, None)
            case c.Send(channel=channel, ids=ids, message=message):
                assert decode(channel, encode(message)) == message
                assert ids[0] == WORKER
                self.sent.append((channel.name, ids[1] if len(ids) > 1 else "", message))
            case c.LimitSlots(slots=slots):
                self.limits.append(slots)
            case c.MeasureSpeed():
                self.timed += 1
            case c.MeasureBandwidth():
                self.measured += 1
            case c.StopWorker():
                self.stopped = True
