"""DeepSeek, or any OpenAI-compatible provider, as a stream of text. The only importer of `openai`.

Four clocks watch a call: connecting; silence on the wire (keep-alives reset it: the HTTP client's
read timeout counts every byte); the first content (keep-alives do not reset it); the deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import PureWindowsPath
from typing import Any, assert_never

import openai
import structlog
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam
from openai.types.completion_usage import CompletionUsage

from cloud_dispatcher.adapters import provider_errors as errors
from cloud_dispatcher.adapters.answer_form import Fit, fit, instruction
from cloud_dispatcher.adapters.price_table import PriceTable, load_prices
from cloud_dispatcher.adapters.providers import ProviderSettings
from cloud_dispatcher.adapters.sound_text import SoundPieces, sound
from cloud_dispatcher.core.commands import CompletionRequest
from cloud_dispatcher.ports import Completion, CompletionPart, ProviderError
from fleet_protocol.messages import TEXT_MAX_CHARS, WHOLE_MAX, ChatMessage, ChatRole, Usage

log = structlog.get_logger()

_SAID_MAX_CHARS = 160
_QUOTE_CHARS = 12  # as many equal characters in a row are a quotation
_MODEL_MAX_CHARS = 128  # as results have it


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class DeepSeekProvider:
    """Makes one call for each request; `ProviderChain` decides which, when and how often.

    The key appears in no log, repr or error.
    """

    def __init__(
        self,
        settings: ProviderSettings,
        api_key: str,
        *,
        prices: PriceTable | None = None,
        now_ms: Callable[[], int] = _wall_clock_ms,
    ) -> None:
        self.settings = settings
        self._prices = load_prices() if prices is None else prices
        self._now_ms = now_ms
        self._redact = api_key
        self._unpriced: set[str] = set()
        self._client = openai.AsyncOpenAI(
            api_key=api_key,
            base_url=settings.base_url,
            organization="",  # the SDK would otherwise send OPENAI_ORG_ID to this provider
            project="",  # same
            max_retries=0,  # one backoff only, ours
            timeout=openai.Timeout(settings.idle_timeout_s, connect=settings.connect_timeout_s),
        )

    def __repr__(self) -> str:
        return f"DeepSeekProvider({self.settings.name}, {self.settings.base_url})"

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def has_balance(self) -> bool | None:
        """Ask whether the account has money; None: this provider does not say.

        Raises:
            ProviderError: See `provider_errors`.
        """
        if not self.settings.speaks_deepseek:
            return None
        root = self.settings.base_url.rstrip("/").removesuffix("/v1")
        try:
            body = await self._client.get(f"{root}/user/balance", cast_to=object)
        except openai.NotFoundError:
            return None
        except openai.APIStatusError as error:
            raise errors.refused(error.status_code) from None
        except (openai.APIError, ValueError) as error:
            raise errors.unreachable(type(error).__name__) from None
        said = body.get("is_available") if isinstance(body, dict) else None
        return said if isinstance(said, bool) else None

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[CompletionPart, None]:
        """Answer: pieces of text, at the end the whole. Closing the iteration hangs up.

        Raises:
            ProviderError: See `provider_errors`; what it cost is in it.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + request.timeout_ms / 1_000
        async with aclosing(self._exchange(request, deadline_s)) as parts:
            async for part in parts:
                yield part

    async def _exchange(
        self, request: CompletionRequest, deadline_s: float
    ) -> AsyncGenerator[CompletionPart, None]:
        answer = _Answer(model=self.settings.model)
        first_content_s = self.settings.first_content_timeout_s
        if request.first_content_ms is not None:
            first_content_s = min(first_content_s, request.first_content_ms / 1_000)
        watch = _Watch(deadline_s, first_content_s)
        async with self._mapped(request, answer), watch.limit(started=False):
            stream = await self._open(request)
        async with stream:
            while True:
                try:
                    async with self._mapped(request, answer), watch.limit(started=answer.started):
                        chunk = await anext(stream, None)
                except ProviderError:
                    if not answer.finished:
                        raise
                    break  # every word is there, only the bill is missing
                if chunk is None:
                    break
                if piece := answer.take(chunk):
                    yield piece
        try:
            answer.check()
        except ProviderError as error:
            error.cost_usd = self._cost_usd(answer)
            raise
        yield self._completion(answer, request)

    async def _open(self, request: CompletionRequest) -> openai.AsyncStream[ChatCompletionChunk]:
        settings, generation = self.settings, request.generation
        extra: dict[str, object] = {}
        if settings.speaks_deepseek:  # others refuse what they do not know
            extra["thinking"] = {"type": "enabled" if settings.thinking else "disabled"}
            if user_id := settings.user_id or request.tenant:
                extra["user_id"] = user_id
        spare_tokens = settings.thinking_tokens if settings.thinking else 0
        return await self._client.chat.completions.create(
            model=settings.model,
            messages=[_as_param(m) for m in _conversation(settings.system_prompt, request)],
            max_tokens=generation.max_tokens + spare_tokens,
            # Silently ignored while thinking; not sent, so that nobody believes it counts.
            temperature=openai.omit if settings.thinking else generation.temperature,
            top_p=openai.omit if settings.thinking else generation.top_p,
            stop=list(generation.stop) or openai.omit,
            # The form itself is in the instructions: this one knows no schema.
            response_format={"type": "json_object"}
            if generation.output is not None and generation.output.is_json and not request.in_words
            else openai.omit,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=extra or None,
        )

    @asynccontextmanager
    async def _mapped(
        self, request: CompletionRequest, answer: _Answer
    ) -> AsyncGenerator[None, None]:
        """Turn the SDK's errors into ours.

        `from None`: theirs carry the response, which may quote the key or the prompt.
        """
        try:
            yield
        except openai.APIStatusError as error:
            raise errors.refused(
                error.status_code,
                said=self._said(error, request),
                retry_after_ms=errors.read_retry_after(
                    error.response.headers.get("retry-after"), now_ms=self._now_ms()
                ),
            ) from None
        except openai.APITimeoutError:
            raise errors.silent("nothing on the wire for too long") from None
        except openai.APIConnectionError as error:
            reason = type(error.__cause__ or error).__name__
            raise (errors.cut(reason) if answer.opened else errors.unreachable(reason)) from None
        except (openai.APIError, ValueError) as error:
            # An error event inside the stream, or something that is no event at all.
            raise errors.cut(type(error).__name__) from None

    def _said(self, error: openai.APIStatusError, request: CompletionRequest) -> str:
        """Return the provider's words, unless they quote the key or a prompt."""
        body = error.body if isinstance(error.body, dict) else {}
        said = sound(str(body.get("message") or ""))[:_SAID_MAX_CHARS]
        private = (self._redact, *(message.content for message in request.messages))
        quotes = {said[i : i + _QUOTE_CHARS] for i in range(len(said) - _QUOTE_CHARS + 1)}
        return "" if any(quote in text for quote in quotes for text in private) else said

    def _completion(self, answer: _Answer, request: CompletionRequest) -> Completion:
        output = request.generation.output
        fitted = Fit(text=answer.text) if output is None else fit(answer.text, output)
        return Completion(
            text=fitted.text,
            misfit=fitted.misfit,
            model=answer.model,
            usage=answer.usage,
            cost_usd=self._cost_usd(answer),
            simulated=answer.simulated,
            provider=self.settings.name,
            cut=answer.is_cut,
        )

    def _cost_usd(self, answer: _Answer) -> float:
        at_ms, settings = self._now_ms(), self.settings
        cost_usd = self._prices.cost_usd(answer.model, answer.usage, at_ms=at_ms)
        if cost_usd is None:  # a silently renamed checkpoint costs what was asked for
            cost_usd = self._prices.cost_usd(settings.model, answer.usage, at_ms=at_ms)
        if cost_usd is None and answer.model not in self._unpriced:
            self._unpriced.add(answer.model)
            log.warning("price.unknown", provider=settings.name, model=answer.model)
        return cost_usd or 0.0


class _Watch:
    """The two clocks that the HTTP client cannot keep: first content, and the deadline."""

    def __init__(self, deadline_s: float, first_content_timeout_s: float) -> None:
        self._deadline_s = deadline_s
        self._first_content_s = asyncio.get_running_loop().time() + first_content_timeout_s

    @asynccontextmanager
    async def limit(self, *, started: bool) -> AsyncGenerator[None, None]:
        """End the wait inside when its clock runs out."""
        first_is_nearer = not started and self._first_content_s < self._deadline_s
        try:
            until_s = self._first_content_s if first_is_nearer else self._deadline_s
            async with asyncio.timeout_at(until_s):
                yield
        except TimeoutError:
            if first_is_nearer:
                raise errors.silent("no content for too long") from None
            raise errors.out_of_time() from None


class _Answer:
    """Gathers the chunks of one answer.

    Attributes:
        opened: A chunk came.
        started: A token was generated, be it a thought.
    """

    def __init__(self, *, model: str) -> None:
        self.model = model
        self.text = ""
        self.usage = Usage()
        self.simulated = False
        self.opened = False
        self.started = False
        self._held = ""
        self._pieces = SoundPieces()
        self._finish: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the last word was said."""
        return self._finish is not None

    @property
    def is_cut(self) -> bool:
        """Whether `max_tokens` ended it."""
        return self._finish == "length"

    def take(self, chunk: ChatCompletionChunk) -> str:
        """Add a chunk; return the text to show, "" while there is only white space or thought."""
        self.opened = True
        self.model = _model_name(chunk.model) or self.model
        self.simulated |= (chunk.system_fingerprint or "").startswith("simulated")
        if chunk.usage is not None:
            self.usage = _usage(chunk.usage)
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        self._finish = choice.finish_reason or self._finish
        content = self._pieces.take(choice.delta.content or "")
        self.started |= bool(content or getattr(choice.delta, "reasoning_content", None))
        return self._grow(content)

    def _grow(self, content: str) -> str:
        # White space is held back until a word follows: a blank answer must stay retryable.
        if not self.text and not (self._held + content).strip():
            self._held += content
            return ""
        # Whoever talks on and on, whatever `max_tokens` said, makes no result that nobody can read.
        piece = (self._held + content)[: TEXT_MAX_CHARS - len(self.text)]
        self._held = ""
        self.text += piece
        return piece

    def check(self) -> None:
        """Check that the answer is whole and worth something.

        Raises:
            ProviderError: It is not.
        """
        match self._finish:
            case None:
                raise errors.cut("without a finish_reason")
            case "content_filter":
                raise errors.filtered()
            case "insufficient_system_resource":
                raise errors.overloaded()
            case _ if not self.text:
                raise errors.blank(truncated=self.is_cut)
            case _:
                pass


def _conversation(system_prompt: str, request: CompletionRequest) -> list[ChatMessage]:
    output = request.generation.output
    form = "" if output is None else instruction(output)
    # The operator's words come first: they are the prefix that a provider's cache remembers.
    said = [text for text in (system_prompt, form) if text]
    first = [ChatMessage(role=ChatRole.SYSTEM, content=text) for text in said]
    return [*first, *request.messages]


def _as_param(message: ChatMessage) -> ChatCompletionMessageParam:
    match message.role:
        case ChatRole.SYSTEM:
            return {"role": "system", "content": message.content}
        case ChatRole.USER:
            return {"role": "user", "content": message.content}
        case ChatRole.ASSISTANT:
            return {"role": "assistant", "content": message.content}
        case _:
            assert_never(message.role)


def _model_name(said: str) -> str:
    """Return the model's name. llama-server says the file's whole path: its folders are private."""
    path = PureWindowsPath(said)  # of both kinds: it knows "/" as well
    return sound(path.name if path.root else said)[:_MODEL_MAX_CHARS]


def _usage(usage: CompletionUsage) -> Usage:
    """Map the usage; DeepSeek names cached tokens beside OpenAI's fields, others within them."""
    extra: dict[str, Any] = usage.model_extra or {}
    details = usage.prompt_tokens_details
    cached = extra.get("prompt_cache_hit_tokens", details and details.cached_tokens)
    return Usage(
        prompt_tokens=_count(usage.prompt_tokens),
        completion_tokens=_count(usage.completion_tokens),
        cached_tokens=_count(cached),
    )


def _count(said: object) -> int:
    """The SDK checks nothing: where a number should be there may be anything."""
    return min(max(said, 0), WHOLE_MAX) if isinstance(said, int) else 0
