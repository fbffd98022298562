"""What the simulated DeepSeek accepts, refuses and says: pure, the HTTP side is next door."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from cloud_dispatcher.adapters.simulated_forms import made_up

_CHARS_PER_TOKEN = 4
_RETIRED_MODELS = frozenset({"deepseek-chat", "deepseek-reasoner"})
_THOUGHTS = "[simulated thought] Let me see what was asked before I answer. "

MODELS = ("deepseek-flash", "deepseek-v4-pro")

Finish: TypeAlias = Literal["stop", "length", "content_filter", "insufficient_system_resource"]


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one request is answered; without any field: well.

    Attributes:
        status: Refuse with this HTTP status.
        retry_after_s: Sent along as Retry-After.
        message: The refusal's words instead of the usual ones.
        keep_alive_s: Send keep-alives for this long before the first content.
        cut_after_chars: Break the connection after as many characters of the answer.
        stall_after_chars: Fall silent after as many, until the client leaves.
        cut_before_usage: Break the connection after the finish_reason.
        blank: Answer with white space.
        finish: The answer's finish_reason.
        hang: Send nothing at all after the headers until the client leaves.
        garbage: Send an event that is no JSON.
        text: The answer instead of the usual one, marked as simulated all the same.
        word_every_s: Pause after each word.
        model: Say that this model answered: a checkpoint that was swapped behind its name.
    """

    status: Annotated[int, msgspec.Meta(ge=400, le=599)] | None = None
    retry_after_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    message: str | None = None
    keep_alive_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    cut_after_chars: Annotated[int, msgspec.Meta(ge=0)] | None = None
    stall_after_chars: Annotated[int, msgspec.Meta(ge=0)] | None = None
    cut_before_usage: bool = False
    blank: bool = False
    finish: Finish | None = None
    hang: bool = False
    garbage: bool = False
    text: str | None = None
    word_every_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    model: Annotated[str, msgspec.Meta(min_length=1)] | None = None

    @property
    def said_chars(self) -> int | None:
        """How much of the answer is sent before it breaks off or stalls; None: all."""
        return self.stall_after_chars if self.cut_after_chars is None else self.cut_after_chars


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class _Thinking(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["enabled", "disabled"] = "enabled"


class _StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    include_usage: bool = False


class _ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["text", "json_object"] = "text"


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/chat/completions`; unknown fields are ignored, as the real one does."""

    model: str
    messages: Annotated[tuple[Turn, ...], msgspec.Meta(min_length=1)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=393_216)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | tuple[str, ...] | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    thinking: _Thinking = _Thinking()
    response_format: _ResponseFormat = _ResponseFormat()
    user_id: str | None = None

    @property
    def thinks(self) -> bool:
        """Thinking is on unless it is switched off."""
        return self.thinking.type == "enabled"

    @property
    def system(self) -> str:
        """The leading system messages: the prefix that the cache remembers."""
        first_other = next((i for i, t in enumerate(self.messages) if t.role != "system"), None)
        return "\n".join(turn.content for turn in self.messages[:first_other])


class RefusedRequestError(Exception):
    """The simulator says no.

    Attributes:
        status: HTTP status.
        retry_after_s: None: no Retry-After header.
    """

    def __init__(
        self, status: int, message: str | None = None, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message or _USUAL_WORDS.get(status, "Simulated failure"))
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """In OpenAI's error format."""
        kind = _ERROR_TYPES.get(self.status, "api_error")
        return {
            "error": {"message": str(self), "type": kind, "param": None, "code": _code(self.status)}
        }


_USUAL_WORDS = {
    401: "Authentication Fails (no such user)",
    402: "Insufficient Balance",
    429: "Too many concurrent requests",
    500: "Internal Server Error",
    503: "Service is too busy",
}
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


def _code(status: int) -> str:
    return "invalid_request_error" if status < 429 else "server_error"


def read_request(body: bytes) -> ChatRequest:
    """Check a body.

    Raises:
        RefusedRequestError: 400 for what is not JSON or makes no sense, 422 for wrong types.
    """
    try:
        request = msgspec.json.decode(body, type=ChatRequest)
    except msgspec.ValidationError as error:
        raise RefusedRequestError(422, f"Failed to deserialize the JSON body: {error}") from error
    except msgspec.DecodeError as error:
        raise RefusedRequestError(400, f"The body is not JSON: {error}") from error
    if request.model in _RETIRED_MODELS:
        raise RefusedRequestError(400, f"Model {request.model} was retired on 2026-07-24")
    if request.model not in MODELS:
        raise RefusedRequestError(400, "Model Not Exist")
    if not 0 <= (request.temperature or 0) <= 2:
        raise RefusedRequestError(400, "Invalid temperature value, the valid range is [0, 2]")
    if not 0 < (1 if request.top_p is None else request.top_p) <= 1:
        raise RefusedRequestError(400, "Invalid top_p value, the valid range is (0, 1]")
    asked = " ".join(turn.content for turn in request.messages).lower()
    if request.response_format.type == "json_object" and "json" not in asked:
        raise RefusedRequestError(400, "Prompt must contain the word 'json' for json_object")
    return request


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What is said, and what it is billed as.

    Attributes:
        thought: Comes before the text as reasoning_content; "" without thinking.
    """

    thought: str
    text: str
    finish: Finish
    usage: dict[str, Any]

    def deltas(self, said_chars: int | None) -> list[dict[str, str]]:
        """Return the stream's deltas: all thoughts, then as much of the text."""
        return [{"reasoning_content": word} for word in _words(self.thought)] + [
            {"content": word} for word in _words(self.text[:said_chars])
        ]


def compose(request: ChatRequest, step: Step, *, cached_prefix: bool) -> Answer:
    """Answer within the token limit, which thoughts use up as well."""
    full_thought = _THOUGHTS if request.thinks else ""
    limit_chars = (request.max_tokens or 4_096) * _CHARS_PER_TOKEN
    thought = full_thought[:limit_chars]
    full_text = _until_stop(_full_text(request, step), request.stop)
    text = full_text[: limit_chars - len(thought)]
    truncated = len(thought) + len(text) < len(full_thought) + len(full_text)
    return Answer(
        thought=thought,
        text=text,
        finish=step.finish or ("length" if truncated else "stop"),
        usage=_usage(request, thought=thought, text=text, cached_prefix=cached_prefix),
    )


def _full_text(request: ChatRequest, step: Step) -> str:
    if step.blank:
        return "  \n\n "
    asked_form = made_up(turn.content for turn in request.messages if turn.role == "system")
    if asked_form is not None and step.text is None:
        return asked_form
    if request.response_format.type == "json_object" and step.text is not None:
        return step.text
    received = sum(len(turn.content) for turn in request.messages if turn.role != "system")
    if request.response_format.type == "json_object":
        return json.dumps({"simulated": True, "received_chars": received})
    own = f"I received {received} characters; set a real API key for a real answer."
    return f"[simulated cloud answer] {own if step.text is None else step.text}"


def _until_stop(text: str, stop: str | Sequence[str] | None) -> str:
    marks: Iterable[str] = (stop,) if isinstance(stop, str) else stop or ()
    return text[: min((text.find(mark) for mark in marks if mark in text), default=None)]


def _usage(request: ChatRequest, *, thought: str, text: str, cached_prefix: bool) -> dict[str, Any]:
    prompt_tokens = sum(count_tokens(turn.content) for turn in request.messages)
    hit_tokens = min(prompt_tokens, count_tokens(request.system)) if cached_prefix else 0
    completion_tokens = count_tokens(thought) + count_tokens(text)
    usage: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": hit_tokens},
        "prompt_cache_hit_tokens": hit_tokens,
        "prompt_cache_miss_tokens": prompt_tokens - hit_tokens,
    }
    if thought:
        usage["completion_tokens_details"] = {"reasoning_tokens": count_tokens(thought)}
    return usage


def count_tokens(text: str) -> int:
    """Four characters are a token, roughly."""
    return -(-len(text) // _CHARS_PER_TOKEN)


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s?|\s+", text)
