"""What can happen to a worker. Facts, in the past tense; time travels beside them.

The inference engine's own `Grew`, `Finished` and `Broke` are events too, as they come.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from edge_worker.core.generation import Broke, Finished, Grew
from edge_worker.core.health import HostReading
from fleet_protocol import messages as m


class Event(msgspec.Struct, frozen=True):
    """Base of all events."""


class AssignmentReceived(Event, frozen=True):
    """The dispatcher gave this worker one job or several, perhaps not for the first time."""

    assignment: m.Assignment


class CancelReceived(Event, frozen=True):
    """The result of this attempt is no longer wanted."""

    job: m.JobKey
    attempt: int


class SettledReceived(Event, frozen=True):
    """The dispatcher has stored what became of these attempts."""

    jobs: tuple[m.AttemptRef, ...]


class CommandReceived(Event, frozen=True):
    """An operator wants something of this worker."""

    command: m.WorkerCommand


class DispatcherSeen(Event, frozen=True):
    """The dispatcher said that it is there, or its will that it is not."""

    presence: m.DispatcherPresence


class LinkRestored(Event, frozen=True):
    """Connected and subscribed, for the first time or again; the broker may know nothing."""


class LinkLost(Event, frozen=True):
    """The broker cannot be reached; whatever is told now would only pile up."""


class PromptEncoded(Event, frozen=True):
    """The engine's tokenizer counted a prompt.

    Attributes:
        id: Of the generation, as in `EncodePrompt`.
        kept_tokens: Of them, from the start, those that the engine has read before and kept.
    """

    id: str
    tokens: tuple[int, ...]
    kept_tokens: int = 0


class HostRead(Event, frozen=True):
    """The host was asked how it is; once a heartbeat."""

    reading: HostReading


class BandwidthMeasured(Event, frozen=True):
    """Probes to the dispatcher came back, or (None) did not."""

    mbps: float | None


class SpeedMeasured(Event, frozen=True, kw_only=True):
    """The engine was measured in an idle moment.

    Attributes:
        speed: None: it did not come to an end.
        is_steady: The machine had nothing else to do; otherwise it is worth another try.
    """

    speed: m.Benchmark | None
    is_steady: bool = False


class SpoolFailed(Event, frozen=True):
    """The spool cannot be written; nothing new is promised until it can."""


class SpoolRecovered(Event, frozen=True):
    """The spool can be written again."""


class StopRequested(Event, frozen=True):
    """This process is to end: drain, then stop."""


class TimePassed(Event, frozen=True):
    """A routine wake-up."""


AnyEvent: TypeAlias = (
    AssignmentReceived
    | CancelReceived
    | SettledReceived
    | CommandReceived
    | DispatcherSeen
    | LinkRestored
    | LinkLost
    | PromptEncoded
    | Grew
    | Finished
    | Broke
    | HostRead
    | BandwidthMeasured
    | SpeedMeasured
    | SpoolFailed
    | SpoolRecovered
    | StopRequested
    | TimePassed
)
