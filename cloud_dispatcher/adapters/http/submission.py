"""From a request to a job of a local device, and from its refusal to an error."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from msgspec.structs import replace

from cloud_dispatcher.adapters.http.errors import ApiError
from cloud_dispatcher.adapters.http.gatekeeper import Caller
from cloud_dispatcher.adapters.http.inside import Inside
from cloud_dispatcher.local_devices import RATE_EXCEEDED, LocalJob
from fleet_protocol.codec import encode
from fleet_protocol.errors import RejectedError, RetryableError
from fleet_protocol.messages import JobId, JobSubmit

NOT_STORED: Final = "not_stored"
_TRACEPARENT_MOST_CHARS: Final = 64
_REPEAT_KEY_MOST_CHARS: Final = 255
_REPEAT_ID_CHARS: Final = 32
_ACCEPT_S: Final = 30.0
_FULL_MS: Final = 1_000
_STORE_MS: Final = 5_000


def check_room(inside: Inside, max_open: int) -> None:
    """Raise ApiError 503 where too many requests wait already."""
    if len(inside.local) >= max_open:
        message = f"{max_open} requests wait for answers already"
        raise ApiError(503, "busy", message, retry_after_ms=_FULL_MS)


def in_its_trace(submit: JobSubmit, headers: Mapping[str, str]) -> JobSubmit:
    """Return a job in the trace that its request belongs to, if it names one."""
    traceparent = headers.get("traceparent", "")
    is_usable = 0 < len(traceparent) <= _TRACEPARENT_MOST_CHARS
    return replace(submit, traceparent=traceparent) if is_usable else submit


def check_size(submit: JobSubmit) -> None:
    """Raise ApiError 413 where a job would be larger than any device's may be."""
    size_bytes = len(encode(submit))
    if size_bytes > JobSubmit.MAX_BYTES:
        message = f"the job takes {size_bytes} bytes, at most {JobSubmit.MAX_BYTES} are allowed"
        raise ApiError(413, "too_large", message)


def repeated_id(headers: Mapping[str, str], body: bytes, caller: Caller) -> JobId | None:
    """Return the id that a request has each time it comes; None: it names no `Idempotency-Key`.

    It is another one for whoever else uses the same key, and for another body.

    Raises:
        ApiError: The key is empty or too long.
    """
    key = headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= _REPEAT_KEY_MOST_CHARS:
        message = f"Idempotency-Key: 1 to {_REPEAT_KEY_MOST_CHARS} characters"
        raise ApiError(400, "invalid_idempotency_key", message)
    whose = f"{len(caller.key)}:{caller.key}{len(key)}:{key}"
    return JobId(hashlib.sha256(whose.encode() + body).hexdigest()[:_REPEAT_ID_CHARS])


@contextmanager
def asking(
    inside: Inside, caller: Caller, job_id: JobId, submit: JobSubmit, *, keeps: bool = False
) -> Iterator[LocalJob]:
    """Ask; who leaves before the result does not want it any more, unless the job `keeps`."""
    with inside.local.job(caller.device, job_id) as job:
        inside.local.submit(caller.device, job_id, submit, caller.payer)
        try:
            yield job
        finally:
            if not (job.is_over or keeps):
                job.cancel()


async def until_accepted(job: LocalJob) -> None:
    """Wait until the job is stored.

    Raises:
        ApiError: It is refused, or cannot be stored now.
    """
    try:
        async with asyncio.timeout(_ACCEPT_S):
            await job.accepted()
    except TimeoutError as error:
        message = "the job could not be stored; the dispatcher's log says why"
        raise ApiError(503, NOT_STORED, message, retry_after_ms=_STORE_MS) from error
    except RetryableError as error:
        message, wait_ms = str(error), error.retry_after_ms
        status = 429 if error.code == RATE_EXCEEDED else 503
        raise ApiError(status, error.code, message, retry_after_ms=wait_ms) from error
    except RejectedError as error:
        if error.code == "unknown_model":
            raise no_model(str(error)) from error
        raise ApiError(400, error.code, str(error)) from error


def no_model(message: str) -> ApiError:
    """Return the error that the model is not there, as OpenAI's API calls it."""
    return ApiError(404, "model_not_found", f"{message}; `fleet` takes any", param="model")
