"""OpenAI's chat completions, read as a submission and written from a result. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from cloud_dispatcher.adapters.http.errors import QUOTA_SPENT, ApiError
from cloud_dispatcher.core.cloud_lane import BUDGET_SPENT
from fleet_protocol.codec import UNREADABLE
from fleet_protocol.messages import FinishReason, JobResult, JobStatus, JobSubmit, Usage

ANY_MODEL: Final = "fleet"
"""The model name that leaves the choice to the fleet."""
_MAX_TOKENS: Final = 256
_MAX_TOKENS_MOST: Final = 4_096
_SEEDS: Final = 2**32
_ROLES: Final = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant",
}  # fmt: skip
_EXTRAS: Final = (
    "escalate", "privacy", "priority", "deadline_ms", "defer", "cache", "cache_ttl_ms", "split",
    "start_within_ms", "attempt_ms", "lease_ms", "needs",
)  # fmt: skip
"""Options of a job that OpenAI's API has no word for; they are fields of the request here."""


class _Part(msgspec.Struct):
    type: str
    text: str = ""


class _Turn(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


class _Schema(msgspec.Struct):
    schema: dict[str, Any] | None = None


class _ResponseFormat(msgspec.Struct):
    type: str
    json_schema: _Schema | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class ChatRequest(msgspec.Struct):
    """What a client sends; fields that are not here are ignored, as OpenAI's own peers do.

    Attributes:
        drafts: Stream at once what a board says, too, though the cloud may still be asked: a chunk
            whose `fleet.starts_over` is true takes back what came before it.
    """

    messages: list[_Turn]
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    response_format: _ResponseFormat | None = None
    tools: list[Any] | None = None
    drafts: bool = False
    escalate: Literal["auto", "never", "always"] | None = None
    privacy: Literal["any", "site"] | None = None
    priority: int | None = None
    deadline_ms: Annotated[int, msgspec.Meta(ge=1)] | None = None
    defer: str | None = None
    cache: str | None = None
    cache_ttl_ms: int | None = None
    split: str | None = None
    start_within_ms: int | None = None
    attempt_ms: int | None = None
    lease_ms: int | None = None
    needs: dict[str, str] | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options is not None and self.stream_options.include_usage)


_decode: Final = msgspec.json.Decoder(ChatRequest).decode


def read_request(body: bytes) -> ChatRequest:
    """Read a request.

    Raises:
        ApiError: 400, naming the field.
    """
    try:
        return _decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(error) from error
    except UNREADABLE as error:
        raise ApiError(400, "invalid_json", "the body is not JSON") from error


def submit_of(asked: ChatRequest, *, timeout_ms: int) -> JobSubmit:
    """Return the submission that a request stands for.

    Raises:
        ApiError: 400: the fleet cannot do what is asked for.
    """
    if asked.n not in {None, 1}:
        raise _unsupported("n", "one answer a request: leave `n` out")
    if asked.tools:
        raise _unsupported("tools", "no model of the fleet calls tools: leave `tools` out")
    fields: dict[str, Any] = {
        "messages": [_turn(turn, i) for i, turn in enumerate(asked.messages)],
        "model": None if asked.model == ANY_MODEL else asked.model,
        "max_tokens": _tokens(asked),
        "stream": bool(asked.stream),
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "seed": None if asked.seed is None else asked.seed % _SEEDS,
        "stop": (asked.stop,) if isinstance(asked.stop, str) else asked.stop,
        "output": _output(asked.response_format),
        **{name: getattr(asked, name) for name in _EXTRAS},
    }
    fields["deadline_ms"] = min(asked.deadline_ms or timeout_ms, timeout_ms)
    try:
        return msgspec.convert({k: v for k, v in fields.items() if v is not None}, JobSubmit)
    except msgspec.ValidationError as error:
        raise _invalid(error) from error


def whole_answer(result: JobResult, *, asked_model: str, at_s: int) -> dict[str, Any]:
    """Return a `chat.completion`."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": result.text, "refusal": None},
        "logprobs": None,
        "finish_reason": finish_of(result),
    }
    return {
        "id": f"chatcmpl-{result.id}",
        "object": "chat.completion",
        "created": at_s,
        "model": result.model or asked_model,
        "choices": [choice],
        "usage": usage_of(result.usage),
        "fleet": facts_of(result),
    }


def facts_of(result: JobResult) -> dict[str, Any]:
    """Return what OpenAI's format has no word for: who answered, and how sure that is."""
    return {
        "job": result.id,
        "answered_by": result.answered_by,
        "worker": result.worker,
        "reason": result.reason,
        "confidence": result.confidence,
        "degraded": result.degraded,
        "code": result.code or None,
        "simulated": result.simulated,
        "cost_usd": result.cost_usd,
        "timing_ms": msgspec.to_builtins(result.timing_ms),
    }


def finish_of(result: JobResult) -> str:
    """Return why the answer ended."""
    return "length" if result.finish is FinishReason.LENGTH else "stop"


def usage_of(usage: Usage) -> dict[str, Any]:
    """Return the tokens it took."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


_BY_CODE: Final = {
    BUDGET_SPENT: (429, QUOTA_SPENT),
    "too_long": (400, "context_length_exceeded"),
    "output_incomplete": (422, "output_incomplete"),
    "bad_output_format": (422, "bad_output_format"),
    "shed": (503, "busy"),
    "deadline": (504, "deadline"),
    "not_started_in_time": (504, "not_started_in_time"),
}


def failure_of(result: JobResult) -> ApiError | None:
    """Return what a job without an answer is in HTTP; None: it has one.

    It is final: the dispatcher has tried again whatever could help.
    """
    if result.status is JobStatus.OK:
        return None
    if result.status is JobStatus.CANCELLED:
        return ApiError(409, "cancelled", result.message or "the job was cancelled", final=True)
    status, code = _BY_CODE.get(result.code, (502, result.code or "failed"))
    return ApiError(status, code, result.message or "nobody could answer", final=True)


def _turn(turn: _Turn, index: int) -> dict[str, str]:
    role = _ROLES.get(turn.role)
    if role is None:
        message = f"the role {turn.role[:32]!r} is not known: system, developer, user, assistant"
        raise _unsupported(f"messages[{index}].role", message)
    parts = turn.content if isinstance(turn.content, list) else []
    if any(part.type not in {"text", "refusal"} for part in parts):
        message = "the fleet's models read text alone"
        raise _unsupported(f"messages[{index}].content", message)
    text = turn.content if isinstance(turn.content, str) else "".join(p.text for p in parts)
    return {"role": role, "content": text}


def _tokens(asked: ChatRequest) -> int:
    """A larger wish than a job may have is cut: the answer says `length` if that was too little."""
    wish = asked.max_completion_tokens or asked.max_tokens or _MAX_TOKENS
    return min(wish, _MAX_TOKENS_MOST)


def _output(wanted: _ResponseFormat | None) -> dict[str, Any] | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"json": True}
    if wanted.type == "json_schema" and wanted.json_schema and wanted.json_schema.schema:
        return {"json_schema": wanted.json_schema.schema}
    raise _unsupported("response_format", "give text, json_object, or json_schema with a `schema`")


def _unsupported(param: str, message: str) -> ApiError:
    return ApiError(400, "unsupported", message, param=param)


def _invalid(error: msgspec.ValidationError) -> ApiError:
    """The library names the field as a path: `Expected ... - at `$.messages[0].role``."""
    text = str(error)
    what, _, path = text.partition(" - at `$")
    return ApiError(400, "invalid_field", what, param=path.rstrip("`").lstrip(".") or None)
