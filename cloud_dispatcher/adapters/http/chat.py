"""`/v1`: chat completions and models, for every client of OpenAI's API."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cloud_dispatcher.adapters.http import chat_format as form
from cloud_dispatcher.adapters.http.errors import ApiError
from cloud_dispatcher.adapters.http.event_stream import (
    DONE,
    KEEP_ALIVE,
    QUIET_S,
    ClientGoneError,
    EventStream,
    server_event,
    unless_gone,
)
from cloud_dispatcher.adapters.http.gatekeeper import Caller, Gatekeeper, read_json
from cloud_dispatcher.adapters.http.inside import Inside
from cloud_dispatcher.adapters.http.settings import GatewaySettings
from cloud_dispatcher.adapters.http.submission import (
    asking,
    check_room,
    check_size,
    in_its_trace,
    no_model,
    repeated_id,
    until_accepted,
)
from cloud_dispatcher.adapters.http.told_text import BrokenStreamError, Told, ToldText
from cloud_dispatcher.local_devices import LocalJob, Piece
from fleet_protocol.messages import Escalate, JobId, JobResult, JobSubmit, Privacy
from fleet_protocol.roles import Action

_GRACE_S: Final = 30.0
"""Beyond a job's deadline, for the dispatcher to say that it is over."""
_GONE: Final = 499
"""What the log says of who went away; nobody reads it."""


class _Chat(msgspec.Struct, frozen=True, kw_only=True):
    """One request.

    Attributes:
        may_come_again: It has a key by which the same request is known again.
        stays: What a board says stays: the cloud will not be asked for something better.
    """

    asked: form.ChatRequest
    submit: JobSubmit
    caller: Caller
    job_id: JobId
    may_come_again: bool
    at_s: int
    stays: bool

    @property
    def wait_s(self) -> float:
        """How long its answer is waited for."""
        return (self.submit.deadline_ms or 0) / 1_000 + _GRACE_S


class ChatDesk:
    """Answers chats and names models."""

    def __init__(self, inside: Inside, gate: Gatekeeper, settings: GatewaySettings) -> None:
        self._inside = inside
        self._gate = gate
        self._settings = settings
        self._since_s = inside.clock() // 1_000

    def routes(self) -> list[Route]:
        """Return the paths below `/v1`."""
        return [
            Route("/v1/chat/completions", self._completions, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
        ]

    async def _completions(self, request: Request) -> Response:
        caller = self._gate.admit(request)
        body = await read_json(request)
        asked = form.read_request(body)
        submit = form.submit_of(asked, timeout_ms=self._settings.timeout_s * 1_000)
        submit = in_its_trace(submit, request.headers)
        check_size(submit)
        repeated = repeated_id(request.headers, body, caller)
        check_room(self._inside, self._settings.max_open)
        chat = _Chat(
            asked=asked,
            submit=submit,
            caller=caller,
            job_id=repeated or JobId(secrets.token_hex(12)),
            may_come_again=repeated is not None,
            at_s=self._inside.clock() // 1_000,
            stays=not (_may_leave(submit) and self._inside.has_cloud()),
        )
        try:
            if not submit.stream:
                return await unless_gone(request.receive, self._whole(chat))
            events = self._events(chat)
            first = await unless_gone(request.receive, anext(events))
            return EventStream(events, first=first, headers={"x-fleet-job": chat.job_id})
        except ClientGoneError:
            return Response(status_code=_GONE)

    async def _whole(self, chat: _Chat) -> Response:
        with self._asking(chat) as job:
            await until_accepted(job)
            try:
                result = await job.result(wait_s=chat.wait_s)
            except TimeoutError as error:
                raise _no_answer() from error
        failure = form.failure_of(result)
        if failure is not None:
            raise failure
        answer = form.whole_answer(result, asked_model=chat.asked.model, at_s=chat.at_s)
        return JSONResponse(answer, headers=_headers(result))

    async def _events(self, chat: _Chat) -> AsyncGenerator[bytes, None]:
        """Yield a first event once the job is stored, then the answer as it grows, and its end."""
        text = ToldText(drafts=chat.asked.drafts)
        with self._asking(chat) as job:
            await until_accepted(job)
            yield _chunk(chat, {"role": "assistant", "content": ""})
            try:
                async for told in job.told(wait_s=chat.wait_s, quiet_s=QUIET_S):
                    if told is None:
                        yield KEEP_ALIVE
                    elif isinstance(told, Piece):
                        grown = text.grow(told.chunk, stays=chat.stays or told.from_cloud)
                        if grown is not None:
                            yield _piece(chat, grown)
                    else:
                        for event in _end(chat, text, told):
                            yield event
            except TimeoutError:
                yield server_event(_no_answer().body)
        yield DONE

    def _asking(self, chat: _Chat) -> AbstractContextManager[LocalJob]:
        keeps = chat.may_come_again
        return asking(self._inside, chat.caller, chat.job_id, chat.submit, keeps=keeps)

    async def _models(self, request: Request) -> Response:
        self._gate.admit(request, Action.WATCH)
        names = (form.ANY_MODEL, *self._inside.models())
        data = [_model_view(name, self._since_s) for name in names]
        return JSONResponse({"object": "list", "data": data})

    async def _model(self, request: Request) -> Response:
        self._gate.admit(request, Action.WATCH)
        name = str(request.path_params["name"])
        if name != form.ANY_MODEL and name not in self._inside.models():
            raise no_model(f"no worker has {name[:128]!r}")
        return JSONResponse(_model_view(name, self._since_s))


def _may_leave(submit: JobSubmit) -> bool:
    return submit.escalate is not Escalate.NEVER and submit.privacy is Privacy.ANY


def _end(chat: _Chat, text: ToldText, result: JobResult) -> list[bytes]:
    """Return what is still to be told, why it ended and what it took; or what went wrong."""
    failure = form.failure_of(result)
    if failure is not None:
        return [server_event(failure.body)]
    try:
        rest = text.finish(result.text)
    except BrokenStreamError:
        message = "the answer was given up for another one; ask again, without `stream`"
        return [server_event(ApiError(502, "stream_broken", message).body)]
    events = [] if rest is None else [_piece(chat, rest)]
    finish = form.finish_of(result)
    events.append(_chunk(chat, {}, finish=finish, fleet=form.facts_of(result), result=result))
    if chat.asked.wants_usage:
        usage = form.usage_of(result.usage)
        events.append(_event(chat, choices=[], usage=usage, model=result.model))
    return events


def _piece(chat: _Chat, told: Told) -> bytes:
    return _chunk(
        chat, {"content": told.text}, fleet={"starts_over": True} if told.starts_over else None
    )


def _chunk(
    chat: _Chat,
    delta: dict[str, Any],
    *,
    finish: str | None = None,
    fleet: dict[str, Any] | None = None,
    result: JobResult | None = None,
) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    more = {} if fleet is None else {"fleet": fleet}
    return _event(chat, choices=[choice], model=None if result is None else result.model, **more)


def _event(chat: _Chat, *, model: str | None = None, **fields: Any) -> bytes:
    return server_event(
        {
            "id": f"chatcmpl-{chat.job_id}",
            "object": "chat.completion.chunk",
            "created": chat.at_s,
            "model": model or chat.asked.model,
            **fields,
        }
    )


def _headers(result: JobResult) -> dict[str, str]:
    told = {
        "x-fleet-job": result.id,
        "x-fleet-answered-by": result.answered_by,
        "x-fleet-worker": result.worker,
        "x-fleet-degraded": "true" if result.degraded else None,
    }
    return {name: str(value) for name, value in told.items() if value is not None}


def _model_view(name: str, since_s: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": since_s, "owned_by": "edgefleet"}


def _no_answer() -> ApiError:
    return ApiError(504, "no_answer", "nobody answered in time", final=True)
