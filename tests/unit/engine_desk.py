"""A short hand for engine tests: make events, keep what was decided."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.cloud_lane import Tariff, always_cheap
from cloud_dispatcher.core.engine import Engine
from cloud_dispatcher.core.job import Job, ReplyTo
from cloud_dispatcher.core.settings import EngineSettings
from cloud_dispatcher.core.spending import Payer, Spend
from fleet_protocol import messages as m
from fleet_protocol.topics import Channel

_M = TypeVar("_M", bound=m.Message)

ANSWER = m.LocalAnswer(text="blue", model="small", confidence=0.9)


class Desk:
    """One engine, one clock, and the last value saved of each job."""

    def __init__(
        self,
        settings: EngineSettings | None = None,
        *,
        tariff: Tariff = always_cheap,
        has_cloud: bool = True,
    ) -> None:
        self.settings = settings or EngineSettings()
        self.tariff = tariff
        self.engine = Engine(self.settings, "epoch", tariff=tariff, has_cloud=has_cloud)
        self.now_ms = 1_000_000
        self.saved: dict[m.JobKey, Job] = {}
        self.commands: list[c.AnyCommand] = []
        self.spends: list[Spend] = []

    def handle(self, event: e.AnyEvent, *, after_ms: int = 0) -> list[c.AnyCommand]:
        self.now_ms += after_ms
        return self.keep(self.engine.handle(event, self.now_ms))

    def keep(self, commands: list[c.AnyCommand]) -> list[c.AnyCommand]:
        self.commands = commands
        for command in commands:
            if isinstance(command, c.SaveJob):
                self.saved[command.job.key] = command.job
            elif isinstance(command, c.RecordSpend):
                self.spends.append(command.spend)
        return commands

    def restart(self) -> None:
        self.engine = Engine(self.settings, "epoch2", tariff=self.tariff)
        jobs = [job for job in self.saved.values() if job.is_open or not job.told]
        self.keep(self.engine.recover(jobs, self.now_ms, spends=self.spends))

    def wake(self) -> None:
        """Jump to the moment the engine asked for."""
        wake_ms = self.engine.next_wake_at_ms()
        assert wake_ms is not None
        self.now_ms = max(self.now_ms, wake_ms)
        self.handle(e.TimePassed())

    def sent(self, channel: Channel, kind: type[_M]) -> list[_M]:
        """Return what the last event made the engine send on a channel."""
        sends = [x for x in self.commands if isinstance(x, c.Send) and x.channel is channel]
        assert all(isinstance(send.message, kind) for send in sends)
        return [send.message for send in sends if isinstance(send.message, kind)]

    def receivers(self, channel: Channel) -> list[str]:
        """Return who the last event's messages on a channel went to."""
        sends = [x for x in self.commands if isinstance(x, c.Send) and x.channel is channel]
        return [send.ids[0] for send in sends]

    def all_of(self, kind: type[c.Command]) -> list[c.Command]:
        return [command for command in self.commands if isinstance(command, kind)]

    def job(self, key: str = "K1") -> Job:
        return self.engine.get(m.JobKey(key)) or self.saved[m.JobKey(key)]

    # ------------------------------------------------------------ events

    def worker(
        self, name: str = "w1", *, slots: int = 1, boot: str = "b1", tok_s: float = 87.0
    ) -> None:
        model = m.ModelInfo(name="small", version="1", context_tokens=1_000)
        info = m.WorkerInfo(
            boot=boot,
            slots=slots,
            models=(model,),
            benchmark=m.Benchmark(decode_tok_s=tok_s, prefill_tok_s=tok_s),
        )
        self.handle(e.InfoReceived(worker=m.WorkerId(name), info=info))
        self.presence(name, boot=boot)

    def inform(self, name: str, info: m.WorkerInfo) -> None:
        self.handle(e.InfoReceived(worker=m.WorkerId(name), info=info))

    def presence(
        self,
        name: str = "w1",
        *,
        status: m.PresenceStatus = m.PresenceStatus.ONLINE,
        boot: str = "b1",
    ) -> None:
        presence = m.Presence(status=status, boot=boot)
        self.handle(e.PresenceChanged(worker=m.WorkerId(name), presence=presence))

    def submit(
        self,
        number: int = 1,
        *,
        reply: ReplyTo | None = None,
        payer: Payer | None = None,
        **fields: object,
    ) -> None:
        # Another question each time, or one answer would serve them all.
        prompt = (
            "what colour is the sky?" if number == 1 else f"what colour is it in hall {number}?"
        )
        submit = msgspec.convert({"prompt": prompt, **fields}, m.JobSubmit)
        self.handle(
            e.JobSubmitted(
                key=m.JobKey(f"K{number}"),
                device=m.DeviceId("d1"),
                id=m.JobId(str(number)),
                submit=submit,
                reply=reply or ReplyTo(),
                known=self.saved.get(m.JobKey(f"K{number}")),
                payer=payer,
            )
        )

    def cancel(self, number: int = 1) -> None:
        known = self.saved.get(m.JobKey(f"K{number}"))
        self.handle(e.JobCancelled(device=m.DeviceId("d1"), id=m.JobId(str(number)), known=known))

    def started(self, attempt: int = 1, worker: str = "w1", key: str = "K1") -> None:
        self.handle(e.StartReceived(worker=m.WorkerId(worker), job=m.JobKey(key), attempt=attempt))

    def done(self, attempt: int = 1, worker: str = "w1", key: str = "K1") -> None:
        done = m.JobDone(attempt=attempt, answer=ANSWER)
        self.handle(e.DoneReceived(worker=m.WorkerId(worker), job=m.JobKey(key), done=done))

    def failed(self, attempt: int = 1, worker: str = "w1", *, retryable: bool = True) -> None:
        failure = m.JobFailed(attempt=attempt, code="onnx", message="no", retryable=retryable)
        self.handle(
            e.FailureReceived(worker=m.WorkerId(worker), job=m.JobKey("K1"), failure=failure)
        )

    def escalated(
        self,
        reason: m.Reason = m.Reason.LOW_CONFIDENCE,
        *,
        attempt: int = 1,
        answer: m.LocalAnswer | None = ANSWER,
        key: str = "K1",
    ) -> None:
        said = m.Escalation(attempt=attempt, reason=reason, detail="figures", answer=answer)
        self.handle(
            e.EscalationReceived(worker=m.WorkerId("w1"), job=m.JobKey(key), escalation=said)
        )

    def held(
        self,
        *running: tuple[str, int],
        finished: tuple[tuple[str, int], ...] = (),
        boot: str = "b1",
    ) -> None:
        held = m.HeldJobs(
            boot=boot,
            running=tuple(m.AttemptRef(job=key, attempt=attempt) for key, attempt in running),
            finished=tuple(m.AttemptRef(job=key, attempt=attempt) for key, attempt in finished),
        )
        self.handle(e.HeldReceived(worker=m.WorkerId("w1"), held=held))

    def confirmed(self, key: str = "K1") -> None:
        self.handle(e.ResultConfirmed(job=m.JobKey(key)))

    def cloud_failed(
        self,
        attempt: int,
        *,
        code: str = "no_provider",
        retry_after_ms: int | None = None,
        key: str = "K1",
    ) -> None:
        self.handle(
            e.CompletionFailed(
                job=m.JobKey(key),
                attempt=attempt,
                code=code,
                message="set DEEPSEEK_API_KEY",
                retry_after_ms=retry_after_ms,
            )
        )

    def cloud_finished(
        self,
        attempt: int,
        *,
        misfit: str = "",
        shared: bool = False,
        cost_usd: float = 0.001,
        key: str = "K1",
    ) -> None:
        self.handle(
            e.CompletionFinished(
                job=m.JobKey(key),
                attempt=attempt,
                text="azure",
                model="deepseek",
                usage=m.Usage(prompt_tokens=3, completion_tokens=1),
                cost_usd=cost_usd,
                simulated=True,
                misfit=misfit,
                provider="deepseek",
                shared=shared,
            )
        )

    def admin(
        self, op: m.AdminOp, *, job: str | None = None, worker: str | None = None
    ) -> m.AdminReply:
        found = self.saved.get(m.JobKey(job)) if job else None
        request = m.AdminRequest(req="r1", op=op, job=job, worker=worker)
        self.handle(e.AdminAsked(admin="ops", request=request, found=found))
        replies = [x.message for x in self.commands if isinstance(x, c.Send)]
        return next(reply for reply in replies if isinstance(reply, m.AdminReply))
