"""A teacher behind an OpenAI-compatible endpoint. The factory's only importer of `openai`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import openai
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from models.distill.answers import Said
from models.distill.questions import Question
from models.distill.teacher import Told, conversation
from models.errors import TeacherError, TeacherUnavailableError

_RETRIES: Final = 6
_TIMEOUT_S: Final = 120.0
_CONNECT_S: Final = 10.0
_NO_KEY: Final = "none"
_DENIED: Final = frozenset({401, 403})
_NO_BALANCE: Final = 402
_AGAIN: Final = frozenset({408, 409, 429})


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a teacher answers, and how it is asked.

    Attributes:
        url: Where `/chat/completions` is.
        api_key: Empty: the server wants none. It is in no log, repr or error.
        key_variable: Where it came from, for people.
        at_once: Questions on their way at the same time.
        instruction: Said to the teacher before every question.
        extra: Fields of the request that only this provider knows.
    """

    url: str
    model: str
    api_key: str
    key_variable: str | None
    at_once: int
    max_tokens: int
    instruction: str
    extra: dict[str, object] = {}

    def __repr__(self) -> str:
        return f"Endpoint({self.url}, {self.model})"


class EndpointTeacher:
    """Asks a server; the SDK repeats what fails for now, as long as Retry-After says."""

    def __init__(self, endpoint: Endpoint, *, retries: int = _RETRIES) -> None:
        self._endpoint = endpoint
        self._retries = retries

    @property
    def name(self) -> str:
        """The model and its server."""
        return f"{self._endpoint.model} at {self._endpoint.url}"

    @property
    def refusals(self) -> tuple[str, ...]:
        """It has no sentences of its own."""
        return ()

    def ask(self, questions: Sequence[Question], told: Told) -> None:
        """Put the questions, `at_once` of them on their way."""
        asyncio.run(self._ask(iter(questions), told))

    async def _ask(self, waiting: Iterator[Question], told: Told) -> None:
        client = openai.AsyncOpenAI(
            api_key=self._endpoint.api_key or _NO_KEY,
            base_url=self._endpoint.url,
            organization="",  # the SDK would otherwise send OPENAI_ORG_ID to this provider
            project="",  # same
            max_retries=self._retries,
            timeout=openai.Timeout(_TIMEOUT_S, connect=_CONNECT_S),
        )
        try:
            async with client, asyncio.TaskGroup() as group:
                for number in range(self._endpoint.at_once):
                    group.create_task(self._work(client, waiting, told), name=f"ask-{number}")
        except ExceptionGroup as failures:
            # One failure ends them all; they are mostly the same one.
            raise failures.exceptions[0] from None

    async def _work(
        self, client: openai.AsyncOpenAI, waiting: Iterator[Question], told: Told
    ) -> None:
        for question in waiting:
            told(question, _said(await self._complete(client, question)))

    async def _complete(self, client: openai.AsyncOpenAI, question: Question) -> ChatCompletion:
        """Return one answer.

        `from None`: the SDK's errors carry the response, which may quote the key.
        """
        endpoint = self._endpoint
        try:
            completion = await client.chat.completions.create(
                model=endpoint.model,
                messages=[_param(*turn) for turn in conversation(question, endpoint.instruction)],
                max_tokens=endpoint.max_tokens,
                temperature=0.0,
                extra_body=endpoint.extra,
            )
        except openai.APIStatusError as error:
            raise self._refused(error.status_code) from None
        except openai.APIConnectionError as error:
            reason = type(error.__cause__ or error).__name__
            raise TeacherUnavailableError(
                f"the teacher {self.name} cannot be reached: {reason}",
                hint="check the network and --url; the same command goes on where it stopped",
            ) from None
        except (openai.APIError, ValueError) as error:
            raise self._unusable(type(error).__name__) from None
        if not isinstance(completion, ChatCompletion) or not completion.choices:
            raise self._unusable("no chat completion")
        return completion

    def _refused(self, status: int) -> TeacherError | TeacherUnavailableError:
        told = f"the teacher {self.name}"
        if status in _AGAIN or status >= 500:
            return TeacherUnavailableError(
                f"{told} does not answer now (HTTP {status})",
                hint="wait a little; the same command goes on where it stopped",
            )
        if status in _DENIED:
            where = self._endpoint.key_variable
            hint = f"renew the key in ${where}" if where else "name a key with --key-variable"
            return TeacherError(f"{told} refuses the API key (HTTP {status})", hint=hint)
        if status == _NO_BALANCE:
            return TeacherError(
                f"{told} says that the account is empty (HTTP 402)",
                hint="top it up; the same command goes on where it stopped",
            )
        return TeacherError(
            f"{told} refuses the question (HTTP {status})", hint="check --url and --model"
        )

    def _unusable(self, what: str) -> TeacherError:
        return TeacherError(
            f"the teacher {self.name} does not speak chat completions: {what}",
            hint="check --url: it often ends with /v1",
        )


def _said(completion: ChatCompletion) -> Said:
    choice = completion.choices[0]
    return Said(
        text=choice.message.content or "",
        is_cut=choice.finish_reason == "length",
        is_withheld=choice.finish_reason == "content_filter",
    )


def _param(role: str, content: str) -> ChatCompletionMessageParam:
    if role == "system":
        return {"role": "system", "content": content}
    return {"role": "user", "content": content}
