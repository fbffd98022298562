"""One turn of the shell: what it took in, what it decided, and what that asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cloud_dispatcher.core.commands import (
    AnswerChange,
    AnyCommand,
    ForgetAnswers,
    HandOver,
    KeepAnswer,
    RecordSpend,
    ReleaseWorker,
    Reply,
    SaveJob,
    Send,
    StartCompletion,
    StopCompletion,
    UseAnswer,
)
from cloud_dispatcher.core.events import AnyEvent
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.spending import Spend
from cloud_dispatcher.intake import Request
from fleet_protocol.bus import Delivery
from fleet_protocol.messages import DeviceId, JobId, JobKey, WorkerId

_SPOKEN: Final = (Send, Reply)
_ON_ANSWERS: Final = (KeepAnswer, UseAnswer, ForgetAnswers)


class Turn:
    """What one turn took in and decided, each decision with its time.

    Attributes:
        requests: What the engine has no part in.
        saves: The value to be saved of each job.
        spends: What is to be saved with them of what the cloud cost.
        answers: What becomes of the stored answers with them, in order.
        messages: What is to be published, in order.
        calls: Provider calls to be started or given up, in order.
        handed: Jobs that are another dispatcher's once this is saved.
        released: Workers likewise, for whoever takes them.
        claimed: Names that are held until this is saved, so that nobody else takes them meanwhile.
        were_open: Names of jobs that were in memory when the turn looked for them.
    """

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.requests: list[Request] = []
        self.decided: list[tuple[AnyEvent, Sequence[AnyCommand], int]] = []
        self.saves: dict[JobKey, Job] = {}
        self.spends: list[Spend] = []
        self.answers: list[AnswerChange] = []
        self.messages: list[Send | Reply] = []
        self.calls: list[StartCompletion | StopCompletion] = []
        self.handed: list[HandOver] = []
        self.released: list[WorkerId] = []
        self.claimed: set[tuple[DeviceId, JobId]] = set()
        self.were_open: set[tuple[str, str]] = set()

    @property
    def gives(self) -> bool:
        """Whether anything is another dispatcher's once this is saved."""
        return bool(self.handed or self.released)

    def decide(self, event: AnyEvent, commands: Sequence[AnyCommand], now_ms: int) -> None:
        """Note a decision; of several values of one job the last one is saved."""
        self.decided.append((event, commands, now_ms))
        for command in commands:
            if isinstance(command, SaveJob):
                self.saves[command.job.key] = command.job
            elif isinstance(command, RecordSpend):
                self.spends.append(command.spend)
            elif isinstance(command, _SPOKEN):
                self.messages.append(command)
            elif isinstance(command, _ON_ANSWERS):
                self.answers.append(command)
            elif isinstance(command, HandOver):
                self.handed.append(command)
            elif isinstance(command, ReleaseWorker):
                self.released.append(command.worker)
            else:
                self.calls.append(command)
