"""What the dispatcher decided. The shell saves all `SaveJob`s first, then carries out the rest."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.members import MemberId
from cloud_dispatcher.core.spending import Spend
from fleet_protocol import messages as m
from fleet_protocol.answer_cache import CachedAnswer
from fleet_protocol.errors import RejectedError
from fleet_protocol.topics import Channel


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all commands."""


class SaveJob(Command, frozen=True, kw_only=True):
    """Store this value of the job; of several in one turn the last one counts."""

    job: Job


class RecordSpend(Command, frozen=True, kw_only=True):
    """Add this to what was spent, with the jobs of the same turn."""

    spend: Spend


class KeepAnswer(Command, frozen=True, kw_only=True):
    """Store this answer for later questions, with the jobs of the same turn."""

    answer: CachedAnswer
    tenant: str


class UseAnswer(Command, frozen=True, kw_only=True):
    """Count a stored answer as given at that moment: those not used for longest go first."""

    key: bytes
    at_ms: int


class ForgetAnswers(Command, frozen=True, kw_only=True):
    """Delete all stored answers that were kept before."""


AnswerChange: TypeAlias = KeepAnswer | UseAnswer | ForgetAnswers
"""What becomes of the stored answers."""


class Send(Command, frozen=True, kw_only=True):
    """Publish a message on a channel of the catalogue.

    Attributes:
        ids: The ids of the channel's topic, in the template's order.
        expiry_ms: The message is worthless after this span.
        confirms: The job whose result this is: the broker's word comes back as
            `ResultConfirmed` or `ResultRefused`.
        joint: An assignment that may travel in one message with others to the same worker.
    """

    channel: Channel
    ids: tuple[str, ...]
    message: m.Message
    expiry_ms: int | None = None
    confirms: m.JobKey | None = None
    joint: bool = False


class Reply(Command, frozen=True, kw_only=True):
    """Publish on a device's own MQTT 5 Response Topic."""

    topic: str
    message: m.Message
    correlation_data: bytes | None = None


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What reaches a provider. Made by `of` alone, which no `site` job passes.

    Attributes:
        timeout_ms: Span after which the answer is worthless.
        first_content_ms: Span within which it must begin; None: as the provider's settings say.
        tenant: Who pays; empty: nobody in particular.
        in_words: Ask for the answer's form in words alone: JSON mode answered with blanks.
    """

    job: m.JobKey
    attempt: int
    messages: tuple[m.ChatMessage, ...]
    generation: m.Generation
    timeout_ms: int
    first_content_ms: int | None = None
    tenant: str = ""
    in_words: bool = False

    @classmethod
    def of(cls, job: Job, *, timeout_ms: int, tenant: str = "") -> CompletionRequest:
        """Make the request for a job.

        Raises:
            RejectedError: `privacy_site`: the prompt may not leave the site.
        """
        if job.submit.privacy is not m.Privacy.ANY:
            raise RejectedError("the job may not leave its site", code="privacy_site")
        return cls(
            job=job.key,
            attempt=job.attempt,
            messages=job.submit.conversation,
            generation=job.submit.generation,
            timeout_ms=timeout_ms,
            tenant=tenant,
        )


class StartCompletion(Command, frozen=True, kw_only=True):
    """Ask the provider chain; the outcome comes back as an event with the same attempt."""

    request: CompletionRequest
    stream: bool


class StopCompletion(Command, frozen=True, kw_only=True):
    """Give up the provider call of this job."""

    job: m.JobKey


class HandOver(Command, frozen=True, kw_only=True):
    """Let another dispatcher have this job: here it is no more."""

    job: m.JobKey
    member: MemberId


class ReleaseWorker(Command, frozen=True, kw_only=True):
    """Let another dispatcher have this worker: it holds nothing of ours."""

    worker: m.WorkerId


AnyCommand: TypeAlias = (
    SaveJob
    | RecordSpend
    | AnswerChange
    | Send
    | Reply
    | StartCompletion
    | StopCompletion
    | HandOver
    | ReleaseWorker
)
