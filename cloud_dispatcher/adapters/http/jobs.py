"""`/jobs`: submit now, and fetch, follow or cancel later. A job here is what devices submit."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from cloud_dispatcher.adapters.http.errors import ApiError
from cloud_dispatcher.adapters.http.event_stream import (
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
    NOT_STORED,
    check_room,
    in_its_trace,
    until_accepted,
)
from cloud_dispatcher.adapters.http.webhook_courier import WebhookCourier
from cloud_dispatcher.adapters.http.webhook_store import Webhook
from cloud_dispatcher.core.admin import view_of
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.local_devices import Piece
from cloud_dispatcher.ports import JobQuery
from fleet_protocol import codec, topics
from fleet_protocol.errors import ProtocolError, RejectedError, RetryableError
from fleet_protocol.messages import (
    ID_PATTERN,
    DeviceId,
    Id,
    JobId,
    JobKey,
    JobResult,
    JobStatus,
    JobSubmit,
)

_CANCEL_S: Final = 30.0
_OPEN: Final = b": open\n\n"


class _Named(msgspec.Struct):
    """What a posted job may say besides a submission.

    Attributes:
        webhook: Where to tell that it is over.
    """

    id: Id | None = None
    webhook: str | None = None


class _Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which jobs are listed.

    Attributes:
        before: The `next` of the page before.
    """

    status: JobStatus | None = None
    dead: bool = False
    limit: int = 50
    before: Id | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= 500:
            raise ValueError("`limit` is 1 to 500")


class JobDesk:
    """Takes jobs in and tells what became of them; each tenant sees its own."""

    def __init__(self, inside: Inside, gate: Gatekeeper, settings: GatewaySettings) -> None:
        self._inside = inside
        self._gate = gate
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        """Return the paths below `/jobs`."""
        return [
            Route("/jobs", self._submit, methods=["POST"]),
            Route("/jobs", self._list, methods=["GET"]),
            Route("/jobs/{id}", self._show, methods=["GET"]),
            Route("/jobs/{id}", self._cancel, methods=["DELETE"]),
            Route("/jobs/{id}/events", self._follow, methods=["GET"]),
            WebSocketRoute("/jobs/{id}/events", self._follow_socket),
            Route("/webhooks/secret", self._secret, methods=["GET"]),
        ]

    async def _submit(self, request: Request) -> Response:
        caller = self._gate.admit(request)
        job_id, submit, webhook = _read(await read_json(request))
        submit = in_its_trace(submit, request.headers)
        check_room(self._inside, self._settings.max_open)
        async with self._promised(caller, job_id, webhook):
            with self._inside.local.job(caller.device, job_id) as job:
                self._inside.local.submit(caller.device, job_id, submit, caller.payer)
                await until_accepted(job)
        known = await self._find(caller.device, job_id)
        if webhook is not None and known.result is not None:
            self._courier().over((caller.device, job_id))
        return JSONResponse(_whole(known), 202, headers={"location": f"/jobs/{job_id}"})

    @asynccontextmanager
    async def _promised(
        self, caller: Caller, job_id: JobId, url: str | None
    ) -> AsyncIterator[None]:
        """Owe a call from before the job is taken in, unless it is not.

        Raises:
            ApiError: There are no webhooks, or not to that address.
        """
        if url is None:
            yield
            return
        courier = self._courier()
        hook = Webhook(device=caller.device, id=job_id, tenant=caller.tenant, url=url)
        try:
            await courier.promise(hook)
        except RejectedError as error:
            raise ApiError(400, error.code, error.advice, param="webhook") from error
        except RetryableError as error:
            wait_ms = error.retry_after_ms
            raise ApiError(503, error.code, str(error), retry_after_ms=wait_ms) from error
        try:
            yield
        except ApiError as error:
            if error.code != NOT_STORED:  # it may be stored all the same
                await courier.withdraw(hook)
            raise

    def _courier(self) -> WebhookCourier:
        courier = self._inside.webhooks
        if courier is None:
            message = "this fleet calls nobody: gateway.webhooks.secret_file is not set"
            raise ApiError(400, "webhooks_off", message, param="webhook", final=True)
        return courier

    async def _secret(self, request: Request) -> JSONResponse:
        """What a tenant's own calls are signed with."""
        tenant = self._gate.admit(request).tenant
        body = {"tenant": tenant, "secret": self._courier().secret(tenant)}
        return JSONResponse(body, headers={"cache-control": "no-store"})

    async def _list(self, request: Request) -> Response:
        device = self._gate.admit(request).device
        try:
            page = msgspec.convert(dict(request.query_params), _Page, strict=False)
        except msgspec.ValidationError as error:
            raise ApiError(400, "invalid_query", str(error)) from error
        before = None if page.before is None else JobKey(page.before)
        query = JobQuery(
            status=page.status, device=device, dead=page.dead, limit=page.limit, before=before
        )
        found = await self._inside.store.select(query)
        return JSONResponse({"jobs": [_row(job) for job in found.jobs], "next": found.go_on})

    async def _show(self, request: Request) -> Response:
        device = self._gate.admit(request).device
        return JSONResponse(_whole(await self._find(device, request.path_params["id"])))

    async def _cancel(self, request: Request) -> Response:
        device = self._gate.admit(request).device
        job_id = request.path_params["id"]
        with self._inside.local.job(device, job_id) as job:
            known = await self._find(device, job_id)
            if not known.is_open:
                message = f"the job is {known.status.value} already"
                raise ApiError(409, "job_finished", message, final=True)
            job.cancel()
            try:
                await job.result(wait_s=_CANCEL_S)
            except TimeoutError as error:
                raise ApiError(504, "no_answer", "nothing was heard of the job") from error
        return JSONResponse(_whole(await self._find(device, job_id)))

    async def _follow(self, request: Request) -> Response:
        device = self._gate.admit(request).device
        check_room(self._inside, self._settings.max_open)
        events = self._events(device, request.path_params["id"])
        try:
            first = await unless_gone(request.receive, anext(events))
        except ClientGoneError:
            return Response(status_code=499)
        return EventStream(events, first=first, headers={})

    async def _events(self, device: DeviceId, job_id: str) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._told(device, job_id)) as told:
            async for name, data in told:
                yield server_event(data, name=name) if name else data

    async def _follow_socket(self, socket: WebSocket) -> None:
        """The same over a WebSocket: `{"event": NAME, "data": ...}`; it ends after the result."""
        told = None
        try:
            device = self._gate.admit_socket(socket).device
            check_room(self._inside, self._settings.max_open)
            told = self._told(device, socket.path_params["id"])
            await anext(told)
        except ApiError as error:
            await socket.send_denial_response(
                JSONResponse(error.body, error.status, headers=error.headers)
            )
            return
        await socket.accept()
        async with aclosing(told):
            with contextlib.suppress(ClientGoneError, WebSocketDisconnect):
                await unless_gone(socket.receive, _send_all(socket, told), "websocket.disconnect")
                await socket.close()

    async def _told(self, device: DeviceId, job_id: str) -> AsyncGenerator[tuple[str, Any], None]:
        """Yield events by name, without a name what keeps a stream open.

        Who listens before looking misses nothing. Leaving leaves the job alone.
        """
        with self._inside.local.job(device, JobId(job_id)) as job:
            known = await self._find(device, job_id)
            yield "", _OPEN
            if known.result is not None:
                yield _event(known.result)
                return
            try:
                async for told in job.told(wait_s=self._settings.timeout_s, quiet_s=QUIET_S):
                    yield ("", KEEP_ALIVE) if told is None else _event(told)
            except TimeoutError:
                return  # Browsers and other followers come again by themselves.

    async def _find(self, device: DeviceId, job_id: str) -> Job:
        is_id = re.fullmatch(ID_PATTERN, job_id) is not None  # else no store need look for it
        found = await self._inside.store.find([(device, JobId(job_id))]) if is_id else {}
        if (device, job_id) not in found:
            raise ApiError(404, "unknown_job", f"there is no job {job_id[:64]!r}")
        return found[device, job_id]


async def _send_all(socket: WebSocket, told: AsyncGenerator[tuple[str, Any], None]) -> None:
    async for name, data in told:
        if name:  # the WebSocket's own pings keep it open
            await socket.send_json({"event": name, "data": data})


def _read(body: bytes) -> tuple[JobId, JobSubmit, str | None]:
    try:
        submit = codec.decode(topics.SUBMIT, body)
        named = msgspec.json.decode(body, type=_Named)
    except ProtocolError as error:
        status = 413 if error.code == "too_large" else 400
        raise ApiError(status, error.code, error.advice) from error
    except msgspec.ValidationError as error:
        raise ApiError(400, "invalid_id", str(error), param="id") from error
    assert isinstance(submit, JobSubmit)  # noqa: S101 - the catalogue says so
    job_id = JobId(named.id or secrets.token_hex(12))
    return job_id, replace(submit, compact=False), named.webhook


def _whole(job: Job) -> dict[str, Any]:
    """A job with its answer, as its own people may see it."""
    found: dict[str, Any] = msgspec.to_builtins(view_of(job))
    return found


def _row(job: Job) -> dict[str, Any]:
    """The same without its answer and the attempts before it."""
    found = _whole(job)
    found.pop("past")
    if found["result"] is not None:
        found["result"]["text"] = ""
    return found


def _event(told: Piece | JobResult) -> tuple[str, Any]:
    if isinstance(told, Piece):
        return "token", msgspec.to_builtins(told.chunk)
    return "result", msgspec.to_builtins(told)
