"""What one turn of the loop has to save and then to tell."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from edge_worker.core.attempt import SpooledJob
from edge_worker.core.commands import (
    UNPROMISING,
    ForgetAnswers,
    ForgetJob,
    KeepAnswer,
    KeepJob,
    Send,
)
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.bus import Delivery
from fleet_protocol.joint import joint_groups
from fleet_protocol.messages import FurtherAnswer, JobDone, JobKey
from fleet_protocol.topics import PROGRESS


class Turn:
    """Gathers the commands and deliveries of many events until they are saved together.

    Attributes:
        keep: The last value of each attempt that must be on the disk before anything is told.
        forget: Attempts that may leave the disk.
        answers: What is put on the disk with them, if it can be.
        clears: Earlier answers leave the disk before.
        sends: What is told after that, in order.
        deliveries: What is acknowledged after that.
    """

    def __init__(self) -> None:
        self.keep: dict[tuple[JobKey, int], SpooledJob] = {}
        self.forget: dict[tuple[JobKey, int], None] = {}
        self.answers: list[CachedAnswer] = []
        self.clears = False
        self.sends: list[Send] = []
        self.deliveries: list[Delivery] = []

    def add_keep(self, command: KeepJob) -> None:
        """Save this value of an attempt, and none before it."""
        spooled, assignment = command.job, command.job.assignment
        ref = (JobKey(assignment.job), assignment.attempt)
        self.keep[ref] = spooled
        self.forget.pop(ref, None)

    def add_forget(self, command: ForgetJob) -> None:
        """Save nothing of an attempt, and let what is saved go."""
        ref = (command.job, command.attempt)
        self.keep.pop(ref, None)
        self.forget[ref] = None

    def add_answer(self, command: KeepAnswer) -> None:
        """Put an answer on the disk with what must be there."""
        self.answers.append(command.answer)

    def add_clearing(self, _command: ForgetAnswers) -> None:
        """Let all earlier answers go, those of this turn, too."""
        self.answers.clear()
        self.clears = True

    def add_send(self, command: Send) -> None:
        """Tell this after what was to be told before."""
        self.sends.append(command)

    def saved(self) -> None:
        """Take note that all that was to be saved is."""
        self.keep.clear()
        self.answers.clear()
        self.clears = False
        self.forget.clear()

    def messages(self) -> Iterator[Send]:
        """Yield what is to be told: first what travels alone, then answers, many in a message."""
        joint: list[tuple[Send, JobDone]] = []
        for send in self.sends:
            done = send.message
            if send.joint and isinstance(done, JobDone):
                joint.append((send, done))
            else:
                yield send
        for group in joint_groups(joint, lambda one: len(one[1].answer.text)):
            yield _joined(group)

    def told(self) -> None:
        """Take note that all was told."""
        self.sends.clear()
        self.deliveries.clear()

    def take_unpromising(self) -> list[Send]:
        """Take out what may be said although nothing can be saved; what ages badly is dropped.

        Of what waits and was said again meanwhile the last word counts: a disk may be full for
        weeks.
        """
        now = [send for send in self.sends if send.channel.name in UNPROMISING]
        waiting: dict[tuple[str, ...], Send] = {}
        for send in self.sends:
            channel, name = send.channel, (send.channel.name, *send.ids)
            if channel.name not in UNPROMISING and channel.qos and channel is not PROGRESS:
                waiting.pop(name, None)
                waiting[name] = send
        self.sends = list(waiting.values())
        return now


def _joined(answers: list[tuple[Send, JobDone]]) -> Send:
    """Return one message of them all, on the topic of the first job."""
    (first, done), *others = answers
    if not others:
        return first
    more = tuple(
        FurtherAnswer(job=send.ids[1], attempt=other.attempt, answer=other.answer)
        for send, other in others
    )
    return replace(first, message=replace(done, more=more))
