"""What a worker does about what happens: pure, one event at a time.

An attempt is `encoding` (its prompt is being counted), then `generating` (in the engine, or in the
engine's own queue), then `finished` until the dispatcher says that its outcome is settled. What is
promised is kept on the disk first: `KeepJob` precedes the `Send` that tells of it.

While the link is down nothing is sent at all: when it is back, `held` and every outcome are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from edge_worker.core import commands as c
from edge_worker.core import events as e
from edge_worker.core import outcomes
from edge_worker.core.answers import AnswerCache
from edge_worker.core.attempt import HeldJob, Outcome, Phase, SpooledJob
from edge_worker.core.fitness import Fitness
from edge_worker.core.generation import Broke, Finished, Grew
from edge_worker.core.health import HostReading
from edge_worker.core.measuring import Measuring
from edge_worker.core.pace import Line, Pace
from edge_worker.core.rules import SessionRules
from edge_worker.core.telling import REPEAT_MS, Standing, Teller
from fleet_protocol import messages as m
from fleet_protocol.answer_cache import CachedAnswer

CHUNK_MS: Final = 100
"""Tokens of one job are gathered for this long before they travel."""
STARTED_AFTER_MS: Final = 250
"""An attempt that is through sooner tells its outcome alone: that says `started`, too. Far below
any lease; it spares a fast engine a sixth of the messages of a job."""
SETTLE_GRACE_MS: Final = 3_000
"""How long a drained worker waits for `settled` once nothing runs; its spool waits longer."""
CLOSED_REMEMBERED: Final = 4_096
HELD_MOST: Final = 4_096
"""A bound on memory and disk: no sane dispatcher gives a worker more than slots + prefetch."""


class Session:
    """The worker's whole state; it has one owner, which feeds it one event after the other."""

    def __init__(
        self, *, worker: m.WorkerId, info: m.WorkerInfo, rules: SessionRules, started_at_ms: int
    ) -> None:
        """`info` names the boot and, first in `models`, the model that answers."""
        self._teller = Teller(worker=worker, info=info, started_at_ms=started_at_ms)
        self._rules = rules
        self._model = info.models[0].name
        self._answers = AnswerCache(info.models[0], max_bytes=rules.cache_bytes)
        self._jobs: dict[str, HeldJob] = {}
        self._by_id: dict[str, HeldJob] = {}
        # Not a dict: looking for its first key walks over all that were deleted before it.
        self._closed: OrderedDict[str, int] = OrderedDict()
        self._generations = 0
        self._epoch: str | None = None
        self._dispatcher_online = False
        self._draining = False
        self._stop_at_ms: int | None = None
        self._quiet_since_ms: int | None = None
        self._stopped = self._starts_again = False
        self._fitness = Fitness(info.slots, heat=rules.heat, disk_low_mb=rules.disk_low_mb)
        self._tokens = 0
        self._tokens_since_ms: int | None = None
        self._measuring = Measuring(speed_due_at_ms=rules.speed_due_at_ms)
        self._pace, self._line = Pace(), Line()
        self._handlers: dict[type, Callable[[Any, int], None]] = {
            e.AssignmentReceived: self._on_assignment,
            e.CancelReceived: self._on_cancel,
            e.SettledReceived: self._on_settled,
            e.CommandReceived: self._on_command,
            e.DispatcherSeen: self._on_dispatcher,
            e.LinkRestored: self._on_link_restored,
            e.LinkLost: self._on_link_lost,
            e.PromptEncoded: self._on_encoded,
            Grew: self._on_grew,
            Finished: self._on_finished,
            Broke: self._on_broke,
            e.HostRead: self._on_host_read,
            e.BandwidthMeasured: self._on_bandwidth,
            e.SpeedMeasured: self._on_speed,
            e.SpoolFailed: self._on_spool_failed,
            e.SpoolRecovered: self._on_spool_recovered,
            e.StopRequested: self._on_stop_requested,
            e.TimePassed: self._on_time,
        }

    def __repr__(self) -> str:
        return (
            f"Session(held={len(self._jobs)}, running={self.running}, "
            f"linked={self._teller.is_linked}, draining={self._draining})"
        )

    @property
    def running(self) -> int:
        """Attempts that have no outcome yet."""
        return sum(held.phase is not Phase.FINISHED for held in self._jobs.values())

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held at all."""
        return not self._jobs

    @property
    def info(self) -> m.WorkerInfo:
        """What the worker says it is."""
        return self._teller.info

    def handle(self, event: e.AnyEvent, now_ms: int) -> list[c.AnyCommand]:
        """Decide what to do about an event. `now_ms` must never go back."""
        self._teller.out = []
        self._handlers[type(event)](event, now_ms)
        if self._stop_at_ms is not None:
            self._end_if_drained(now_ms)
        return self._teller.out

    def recover(
        self, spooled: Iterable[SpooledJob], now_ms: int, *, answers: Iterable[CachedAnswer] = ()
    ) -> list[c.AnyCommand]:
        """Take over what an earlier run of this worker had on its disk; before any event.

        Attempts without an outcome are generated again, once: what takes this run down, too, would
        for ever. Whether they still matter the dispatcher says: it reads of them in `held`. Spans
        until a deadline begin anew: a board's clock may say anything after a start.
        """
        self._teller.out = []
        self._answers.recover(answers)
        for job in sorted(spooled, key=lambda job: job.assignment.attempt):
            older = self._jobs.get(job.assignment.job)
            if older is not None:
                self._drop(older)
            held = self._take(msgspec.structs.replace(job, received_at_ms=now_ms), now_ms)
            if job.outcome is not None:
                held.phase = Phase.FINISHED
                held.repeat_at_ms = now_ms + REPEAT_MS
            else:
                self._teller.out.append(c.KeepJob(outcomes.if_it_dies(held)))
                self._encode(held)
        return self._teller.out

    # ------------------------------------------------------------ from the dispatcher

    def _on_assignment(self, event: e.AssignmentReceived, now_ms: int) -> None:
        self._dispatcher_online = True  # not every broker tells a kept session what is retained
        for assignment in event.assignment.each:
            self._hear_of(assignment, now_ms)

    def _hear_of(self, assignment: m.Assignment, now_ms: int) -> None:
        if self._closed.get(assignment.job, 0) >= assignment.attempt:
            return
        held = self._jobs.get(assignment.job)
        if held is not None and assignment.attempt <= held.attempt:
            if assignment.attempt == held.attempt:
                self._teller.tell(held, now_ms)
            return
        if held is not None:
            self._drop(held)
        if self._draining:
            text = "this worker takes no more jobs"
            self._teller.refuse(assignment, code="draining", message=text)
            return
        if len(self._jobs) >= HELD_MOST:
            text = f"{HELD_MOST} attempts are held here"
            self._teller.refuse(assignment, code="busy", message=text)
            return
        held = self._take(SpooledJob(assignment=assignment, received_at_ms=now_ms), now_ms)
        self._teller.out.append(c.KeepJob(held.spooled))
        answer = self._answers.find(assignment, now_ms)
        if answer is None:
            self._encode(held)
            return
        policy = self._rules.policy
        known = outcomes.from_cache(held, answer, model=self._model, policy=policy)
        self._finish(held, known, now_ms)

    def _on_cancel(self, event: e.CancelReceived, _now_ms: int) -> None:
        held = self._jobs.get(event.job)
        if held is not None and held.attempt <= event.attempt:
            self._drop(held)
        self._close(event.job, event.attempt)

    def _on_settled(self, event: e.SettledReceived, _now_ms: int) -> None:
        for ref in event.jobs:
            held = self._jobs.get(ref.job)
            if held is not None and held.attempt <= ref.attempt:
                self._drop(held)
            self._close(ref.job, ref.attempt)

    def _on_command(self, event: e.CommandReceived, now_ms: int) -> None:
        match event.command.op:
            case m.WorkerOp.DRAIN:
                self._draining = True
                self._tell_presence()
            case m.WorkerOp.RESUME:
                self._draining = self._stop_at_ms is not None
                self._tell_presence()
            case m.WorkerOp.FORGET_ANSWERS:
                self._answers.clear()
                self._teller.out.append(c.ForgetAnswers())
            case m.WorkerOp.REPORT:
                self._introduce(now_ms)
            case m.WorkerOp.RELOAD:
                self._starts_again = self._starts_again or self._stop_at_ms is None
                self._stop(now_ms)

    def _on_dispatcher(self, event: e.DispatcherSeen, now_ms: int) -> None:
        self._dispatcher_online = event.presence.status is m.DispatcherStatus.ONLINE
        self._teller.joins_answers = m.JOINT_ANSWERS in event.presence.capabilities
        if not self._dispatcher_online or event.presence.epoch == self._epoch:
            return
        self._epoch = event.presence.epoch
        self._teller.tell_held(self._jobs.values(), now_ms)
        if self._measuring.bandwidth_is_due(now_ms):
            self._measure(now_ms)

    # ------------------------------------------------------------ from the link, the host, the disk

    def _on_link_restored(self, _event: e.LinkRestored, now_ms: int) -> None:
        self._teller.is_linked = True
        self._introduce(now_ms)

    def _on_link_lost(self, _event: e.LinkLost, _now_ms: int) -> None:
        self._teller.is_linked = False

    def _on_host_read(self, event: e.HostRead, now_ms: int) -> None:
        reading = event.reading
        self._mind_host(reading, now_ms)
        since_ms = self._tokens_since_ms
        tok_s = 0.0 if not since_ms else self._tokens * 1_000 / max(1, now_ms - since_ms)
        self._tokens, self._tokens_since_ms = 0, now_ms
        standing = Standing(running=self.running, is_hot=self._fitness.heat.is_hot, tok_s=tok_s)
        self._teller.tell_state(reading, standing, now_ms)

    def _mind_host(self, reading: HostReading, now_ms: int) -> None:
        """Have fewer slots, or more again; the fleet is told, or it would keep them all filled."""
        before, was_unfit = self._fitness.heat, self._fitness.unfit
        self._fitness.read(reading, now_ms)
        self._teller.tell_heat(before, self._fitness.heat, temp_c=reading.temp_c)
        if self._fitness.unfit is not was_unfit:
            self._tell_presence()

    def _on_bandwidth(self, event: e.BandwidthMeasured, now_ms: int) -> None:
        self._measuring.end_bandwidth(now_ms, is_known=event.mbps is not None)
        if event.mbps is not None:
            self._teller.tell_bandwidth(event.mbps)

    def _on_speed(self, event: e.SpeedMeasured, now_ms: int) -> None:
        self._measuring.end_speed(now_ms, is_steady=event.is_steady)
        if event.speed is not None:
            self._teller.tell_speed(event.speed)

    def _on_spool_failed(self, _event: e.SpoolFailed, _now_ms: int) -> None:
        self._fitness.is_spool_ok = False
        self._tell_presence()

    def _on_spool_recovered(self, _event: e.SpoolRecovered, _now_ms: int) -> None:
        self._fitness.is_spool_ok = True
        self._tell_presence()

    def _on_stop_requested(self, _event: e.StopRequested, now_ms: int) -> None:
        self._starts_again = False
        self._stop(now_ms)

    def _stop(self, now_ms: int) -> None:
        """Drain, then end."""
        if self._stop_at_ms is not None:
            return
        self._draining = True
        self._stop_at_ms = now_ms + self._rules.drain_timeout_ms
        self._tell_presence()

    # ------------------------------------------------------------ from the engine

    def _on_encoded(self, event: e.PromptEncoded, now_ms: int) -> None:
        held = self._by_id.get(event.id)
        if held is None or held.phase is not Phase.ENCODING:
            return
        held.prompt_tokens, held.kept_tokens = len(event.tokens), event.kept_tokens
        rules, ahead = self._rules, self._line.ahead_of(held)
        speed, slots = self._teller.info.benchmark, self._fitness.heat.slots
        outcome = outcomes.before_generation(
            held,
            model=self._model,
            policy=rules.policy,
            difficulty=rules.difficulty,
            timing=self._pace.timing(held, ahead=ahead, slots=slots, speed=speed, now_ms=now_ms),
        )
        if outcome is None and self._fitness.heat.is_critical:
            outcome = outcomes.when_overheated(held, model=self._model)
        if outcome is not None:
            self._finish(held, outcome, now_ms)
            return
        held.phase = Phase.GENERATING
        self._line.enter(held)
        trust = outcomes.trust_in(held, model=self._model, policy=rules.policy)
        self._teller.out.append(c.StartGeneration(held.request(event.tokens, trust=trust)))

    def _on_grew(self, event: Grew, now_ms: int) -> None:
        held = self._by_id.get(event.id)
        if held is None or held.phase is not Phase.GENERATING:
            return
        self._count(held, event.tokens)
        held.parts.append(event.text)
        if held.chunk == 0 or now_ms - held.heard_at_ms >= CHUNK_MS:
            self._teller.tell_tokens(held, now_ms)

    def _on_finished(self, event: Finished, now_ms: int) -> None:
        held = self._by_id.get(event.id)
        if held is None or held.phase is not Phase.GENERATING:
            return
        self._count(held, event.tokens)
        self._pace.note(event)
        outcome = outcomes.after_generation(
            held, event, model=self._model, policy=self._rules.policy
        )
        if isinstance(outcome, m.JobDone):
            self._teller.tell_tokens(held, now_ms)
            kept = self._answers.keep(held.spooled.assignment, outcome.answer, now_ms)
            if kept is not None:
                self._teller.out.append(c.KeepAnswer(kept))
        self._finish(held, outcome, now_ms)

    def _on_broke(self, event: Broke, now_ms: int) -> None:
        held = self._by_id.get(event.id)
        if held is None or held.phase is Phase.FINISHED:
            return
        self._finish(held, outcomes.after_breakage(held, event, model=self._model), now_ms)

    # ------------------------------------------------------------ from the clock

    def _on_time(self, _event: e.TimePassed, now_ms: int) -> None:
        for held in list(self._jobs.values()):
            if held.phase is Phase.FINISHED:
                self._repeat_if_due(held, now_ms)
            elif held.is_late(now_ms):
                text = "the deadline passed before the answer was there"
                late = outcomes.failure(held, code="deadline", message=text, retryable=False)
                self._give_up(held, late, now_ms)
            else:
                self._show_life(held, now_ms)
        reachable = self._teller.is_linked and self._dispatcher_online
        if reachable and self._measuring.bandwidth_is_due(now_ms):
            self._measure(now_ms)
        is_idle = not self._jobs and not self._fitness.heat.is_hot and self._stop_at_ms is None
        if self._measuring.speed_is_due(now_ms, is_idle=is_idle):
            self._teller.out.append(c.MeasureSpeed())

    def _repeat_if_due(self, held: HeldJob, now_ms: int) -> None:
        if now_ms >= held.repeat_at_ms and self._dispatcher_online:
            held.repeats += 1
            self._teller.tell(held, now_ms)

    def _show_life(self, held: HeldJob, now_ms: int) -> None:
        """Say `started` once, and renew the lease when a third of it has passed in silence."""
        if len(held.parts) > held.told_parts and now_ms - held.heard_at_ms >= CHUNK_MS:
            self._teller.tell_tokens(held, now_ms)
        if not held.is_told and now_ms - held.spooled.received_at_ms >= STARTED_AFTER_MS:
            self._teller.tell(held, now_ms)
        if now_ms - held.heard_at_ms >= max(1_000, held.spooled.assignment.lease_ms // 3):
            self._teller.tell_progress(held, now_ms)

    def _end_if_drained(self, now_ms: int) -> None:
        """Stop once nothing runs and all is settled, or time is up."""
        if self._stopped or self._stop_at_ms is None:
            return
        late = now_ms >= self._stop_at_ms
        if late:
            text = "this worker had to stop before it was through"
            for held in [held for held in self._jobs.values() if held.phase is not Phase.FINISHED]:
                lost = outcomes.failure(held, code="draining", message=text, retryable=True)
                self._give_up(held, lost, now_ms)
        elif self.running:
            return
        if self._quiet_since_ms is None:
            self._quiet_since_ms = now_ms
        waited_ms = now_ms - self._quiet_since_ms
        if late or not self._jobs or not self._teller.is_linked or waited_ms >= SETTLE_GRACE_MS:
            self._stopped = True
            self._teller.out.append(c.StopWorker(again=self._starts_again))

    # ------------------------------------------------------------ what is held

    def _take(self, spooled: SpooledJob, now_ms: int) -> HeldJob:
        assignment = spooled.assignment
        self._generations += 1
        name = f"{assignment.job}.{assignment.attempt}.{self._generations}"
        held = HeldJob(spooled=spooled, id=name, heard_at_ms=now_ms)
        self._jobs[assignment.job] = self._by_id[name] = held
        return held

    def _encode(self, held: HeldJob) -> None:
        self._teller.out.append(c.EncodePrompt(held.id, held.spooled.assignment.messages))

    def _drop(self, held: HeldJob) -> None:
        """Forget an attempt, wherever it stands."""
        if held.phase is not Phase.FINISHED:
            self._teller.out.append(c.StopGeneration(held.id))
        self._line.leave(held)
        job = held.job
        self._teller.out.append(c.ForgetJob(job, held.attempt))
        del self._jobs[job]
        del self._by_id[held.id]

    def _close(self, job: str, attempt: int) -> None:
        """Remember that nothing is to be done about this attempt, should it come (again)."""
        attempt = max(attempt, self._closed.pop(job, 0))
        self._closed[job] = attempt
        if len(self._closed) > CLOSED_REMEMBERED:
            self._closed.popitem(last=False)

    def _finish(self, held: HeldJob, outcome: Outcome, now_ms: int) -> None:
        held.phase = Phase.FINISHED
        self._line.leave(held)
        held.spooled = msgspec.structs.replace(held.spooled, outcome=outcome)
        held.parts.clear()
        self._teller.out.append(c.KeepJob(held.spooled))
        self._teller.tell(held, now_ms)

    def _give_up(self, held: HeldJob, outcome: Outcome, now_ms: int) -> None:
        self._teller.out.append(c.StopGeneration(held.id))
        self._finish(held, outcome, now_ms)

    def _count(self, held: HeldJob, tokens: int) -> None:
        if held.tokens == 0 < tokens:
            self._line.begin(held)
        self._tokens += tokens - held.tokens
        held.tokens = tokens

    def _introduce(self, now_ms: int) -> None:
        """Say all that may not be known; what is held before new work, which would be the same."""
        self._teller.tell_info()
        self._tell_presence(is_free=not self._jobs)
        self._teller.tell_held(self._jobs.values(), now_ms)
        if self._jobs:
            self._tell_presence()

    def _tell_presence(self, *, is_free: bool = True) -> None:
        unfit = self._fitness.unfit
        is_ready = is_free and unfit is None and not self._draining
        self._teller.tell_presence(is_ready=is_ready, unfit=unfit)

    def _measure(self, now_ms: int) -> None:
        self._measuring.begin_bandwidth(now_ms)
        self._teller.out.append(c.MeasureBandwidth())
