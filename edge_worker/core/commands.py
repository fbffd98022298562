"""What the worker decided.

The shell saves all `KeepJob`s first; only then does it acknowledge what it was told and `Send`.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from edge_worker.core.attempt import SpooledJob
from edge_worker.core.generation import GenerationRequest
from fleet_protocol import messages as m
from fleet_protocol import topics
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.topics import Channel


class Command(msgspec.Struct, frozen=True):
    """Base of all commands."""


class KeepJob(Command, frozen=True):
    """Put this value of the attempt on the disk; of several in one turn the last one counts."""

    job: SpooledJob


class ForgetJob(Command, frozen=True):
    """Delete the attempt from the disk. May be late: an attempt kept too long is told again."""

    job: m.JobKey
    attempt: int


class KeepAnswer(Command, frozen=True):
    """Put this answer on the disk for the next boot; it is no promise, and may be lost."""

    answer: CachedAnswer


class ForgetAnswers(Command, frozen=True):
    """Delete all earlier answers from the disk."""


class EncodePrompt(Command, frozen=True):
    """Have the engine's tokenizer count; comes back as `PromptEncoded` or `Broke`."""

    id: str
    messages: tuple[m.ChatMessage, ...]


class StartGeneration(Command, frozen=True):
    """Hand the request to the engine; comes back as `Grew`s and one `Finished` or `Broke`."""

    request: GenerationRequest


class StopGeneration(Command, frozen=True):
    """Take the request back from the engine; nothing more is wanted of it."""

    id: str


class Send(Command, frozen=True):
    """Publish a message on a channel of the catalogue.

    Attributes:
        ids: The ids of the channel's topic, in the template's order.
        expiry_ms: The message is worthless after this span.
        joint: An answer that may travel in one message with others.
    """

    channel: Channel
    ids: tuple[str, ...]
    message: m.Message
    expiry_ms: int | None = None
    joint: bool = False


class LimitSlots(Command, frozen=True):
    """Let the engine begin no further request while so many are worked on; 0: none at all.

    Attributes:
        slots: As `InferenceEngine.limit_slots` takes it.
        temp_c: Degrees Celsius, for the log; None: the host cannot say.
    """

    slots: int
    temp_c: float | None = None


class MeasureSpeed(Command, frozen=True):
    """Measure the idle engine; comes back as `SpeedMeasured`."""


class MeasureBandwidth(Command, frozen=True):
    """Send probes to the dispatcher; comes back as `BandwidthMeasured`."""


class StopWorker(Command, frozen=True):
    """The drain is over: end the process.

    Attributes:
        again: It is to be started again, with the model that lies there then.
    """

    again: bool = False


AnyCommand: TypeAlias = (
    KeepJob
    | ForgetJob
    | KeepAnswer
    | ForgetAnswers
    | EncodePrompt
    | StartGeneration
    | StopGeneration
    | Send
    | LimitSlots
    | MeasureSpeed
    | MeasureBandwidth
    | StopWorker
)

UNPROMISING: Final = frozenset(
    channel.name for channel in (topics.STATE, topics.PRESENCE, topics.INFO, topics.PROBE)
)
"""Channels on which nothing is said that must be on the disk first."""
