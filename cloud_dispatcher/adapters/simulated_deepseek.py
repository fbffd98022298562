"""A DeepSeek of one's own, on loopback: for tests, drills and demos without a key.

It refuses, delays, stalls and breaks off like the real one, on demand; every answer says that it is
simulated, in its text, its `system_fingerprint` and a header.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, Self, TypeAlias

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cloud_dispatcher.adapters.simulated_answers import (
    MODELS,
    Answer,
    ChatRequest,
    RefusedRequestError,
    Step,
    compose,
    read_request,
)

_FINGERPRINT = "simulated"
_HEADERS = {"x-edgefleet-simulated": "true"}
_DISCONNECT_GRACE_S = 1

# Text to send, or None: break the connection here.
_Wire: TypeAlias = AsyncGenerator[str | None, None]
_Count: TypeAlias = Callable[[int], Coroutine[Any, Any, None]]


class SimulatorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the simulator behaves where no step says otherwise.

    Attributes:
        api_key: The only key accepted; None: any.
        latency_ms: From request to first content.
        max_concurrency: Calls at once; one more gets 429.
        balance_usd: At 0 every call gets 402.
        keep_alive_every_s: Pause between keep-alives.
        fallback: For requests beyond the script.
    """

    api_key: str | None = None
    latency_ms: int = 0
    max_concurrency: int = 2_500
    balance_usd: float = 110.0
    keep_alive_every_s: float = 1.0
    fallback: Step = Step()

    def __repr__(self) -> str:
        return f"SimulatorSettings(latency_ms={self.latency_ms}, balance_usd={self.balance_usd})"


class SimulatedDeepSeek:
    """The simulator, serving while its `async with` lasts.

    Attributes:
        requests: Bodies of all accepted chat requests, for tests to look at; the newest 1,000.
        calls: Chat requests that came, refused ones included.
        inflight: Calls being answered now.
        balance_usd: At 0 every call gets 402; may be changed at any time.
    """

    def __init__(
        self,
        settings: SimulatorSettings | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.settings = settings or SimulatorSettings()
        self.requests: deque[ChatRequest] = deque(maxlen=1_000)
        self.calls = 0
        self.inflight = 0
        self.balance_usd = self.settings.balance_usd
        self._address = (host, port)
        self._script: deque[Step] = deque()
        self._fallback = self.settings.fallback
        self._known_prefixes: set[tuple[str | None, str]] = set()
        self._ids = itertools.count(1)
        self._changed = asyncio.Condition()

    @property
    def base_url(self) -> str:
        """Where it listens, for a provider's settings."""
        host, port = self._address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def __aenter__(self) -> Self:
        """Listen; raises OSError when the port is taken."""
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
        # Connections inherit it: small events must not wait for acknowledgements (40 ms each).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._address = (host, int(listener.getsockname()[1]))
        self._server = _quiet_server(self._app())
        # Connections wait in the backlog until the server takes over: ready from here on.
        self._serving = asyncio.create_task(
            self._server.serve(sockets=[listener]), name="simulated-deepseek"
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop; calls that still hang are hung up."""
        self._server.leave()
        await self._serving

    def script(self, *steps: Step, fallback: Step | None = None) -> None:
        """Replace the script: one step for each coming request, then the fallback."""
        self._script = deque(steps)
        self._fallback = fallback or self.settings.fallback

    async def until_inflight(self, calls: int) -> None:
        """Wait until exactly so many calls are being answered."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.inflight == calls)

    def _app(self) -> Starlette:
        chat = [
            Route(f"{root}/chat/completions", self._chat, methods=["POST"]) for root in ("", "/v1")
        ]
        models = [Route(f"{root}/models", self._models) for root in ("", "/v1")]
        balance = Route("/user/balance", self._balance)
        script = Route("/_simulator/script", self._take_script, methods=["POST"])
        purse = Route("/_simulator/balance", self._take_balance, methods=["POST"])
        return Starlette(
            routes=[*chat, *models, balance, script, purse],
            exception_handlers={RefusedRequestError: _refusal},  # type: ignore[dict-item] # narrower argument
        )

    def _check_key(self, request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key or key != (self.settings.api_key or key):
            raise RefusedRequestError(401)

    async def _models(self, request: Request) -> Response:
        self._check_key(request)
        models = [{"id": name, "object": "model", "owned_by": "deepseek"} for name in MODELS]
        return JSONResponse({"object": "list", "data": models}, headers=_HEADERS)

    async def _balance(self, request: Request) -> Response:
        self._check_key(request)
        total = f"{self.balance_usd:.2f}"
        purse = {
            "currency": "USD",
            "total_balance": total,
            "granted_balance": "0.00",
            "topped_up_balance": total,
        }
        body = {"is_available": self.balance_usd > 0, "balance_infos": [purse]}
        return JSONResponse(body, headers=_HEADERS)

    async def _take_script(self, request: Request) -> Response:
        try:
            steps = msgspec.json.decode(await request.body(), type=tuple[Step, ...])
        except msgspec.DecodeError as error:
            raise RefusedRequestError(422, str(error)) from error
        self.script(*steps)
        return JSONResponse({"steps": len(steps)}, headers=_HEADERS)

    async def _take_balance(self, request: Request) -> Response:
        try:
            self.balance_usd = msgspec.json.decode(await request.body(), type=float)
        except msgspec.DecodeError as error:
            raise RefusedRequestError(422, str(error)) from error
        return JSONResponse({"balance_usd": self.balance_usd}, headers=_HEADERS)

    async def _chat(self, request: Request) -> Response:
        self.calls += 1
        self._check_key(request)
        chat = read_request(await request.body())
        step = self._script.popleft() if self._script else self._fallback
        if step.status is not None:
            raise RefusedRequestError(step.status, step.message, retry_after_s=step.retry_after_s)
        if self.balance_usd <= 0:
            raise RefusedRequestError(402)
        if self.inflight >= self.settings.max_concurrency:
            raise RefusedRequestError(429)
        self.requests.append(chat)
        prefix = (chat.user_id, chat.system)
        answer = compose(chat, step, cached_prefix=prefix in self._known_prefixes)
        self._known_prefixes.add(prefix)
        wire = self._stream if chat.stream else self._whole
        return _WireResponse(wire(chat, step, answer), stream=chat.stream, count=self._count)

    async def _count(self, change: int) -> None:
        self.inflight += change  # at once: the next request's limit check must see it
        async with self._changed:
            self._changed.notify_all()

    async def _stream(self, chat: ChatRequest, step: Step, answer: Answer) -> _Wire:
        frame: dict[str, Any] = self._frame(chat, step, kind="chat.completion.chunk")
        yield _event(frame, delta={"role": "assistant", "content": ""})
        async for signal in self._delay(step, ": keep-alive\n\n"):
            yield signal
        if step.garbage:
            yield "data: <html>bad gateway</html>\n\n"
        for delta in answer.deltas(step.said_chars):
            yield _event(frame, delta=delta)
            await asyncio.sleep(step.word_every_s)
        if step.stall_after_chars is not None:
            await _until_hung_up()
        if step.cut_after_chars is not None:
            yield None
        yield _event(frame, delta={}, finish=answer.finish)
        if step.cut_before_usage:
            yield None
        if chat.stream_options is not None and chat.stream_options.include_usage:
            yield _data(frame | {"choices": [], "usage": answer.usage})
        yield "data: [DONE]\n\n"

    async def _whole(self, chat: ChatRequest, step: Step, answer: Answer) -> _Wire:
        async for signal in self._delay(step, "\n"):
            yield signal
        if step.cut_after_chars is not None:
            yield None
        message = {"role": "assistant", "content": answer.text}
        if answer.thought:
            message["reasoning_content"] = answer.thought
        choice = {"index": 0, "message": message, "finish_reason": answer.finish}
        body = self._frame(chat, step, kind="chat.completion") | {
            "choices": [choice],
            "usage": answer.usage,
        }
        yield msgspec.json.encode(body).decode()

    async def _delay(self, step: Step, keep_alive: str) -> AsyncGenerator[str, None]:
        """Pass the time to the first content, with a keep-alive now and then."""
        if step.hang:
            await _until_hung_up()
        every_s = self.settings.keep_alive_every_s
        rest_s = max(step.keep_alive_s, self.settings.latency_ms / 1_000)
        if step.keep_alive_s:
            yield keep_alive
        while rest_s > 0:
            await asyncio.sleep(min(every_s, rest_s))
            rest_s -= every_s
            if rest_s > 0:
                yield keep_alive

    def _frame(self, chat: ChatRequest, step: Step, *, kind: str) -> dict[str, Any]:
        return {
            "id": f"simulated-{next(self._ids)}",
            "object": kind,
            "created": 0,
            "model": step.model or chat.model,
            "system_fingerprint": _FINGERPRINT,
        }


class _WireResponse(Response):
    """Sends text as it comes, breaks off where told to, and notices when the client leaves."""

    def __init__(self, wire: _Wire, *, stream: bool, count: _Count) -> None:
        kind = "text/event-stream" if stream else "application/json"
        super().__init__(media_type=kind, headers=_HEADERS)
        del self.headers["content-length"]  # unknown: the body goes out in chunks
        self._wire = wire
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as an ASGI application."""
        del scope
        await self._count(1)
        talking = asyncio.create_task(self._talk(send), name="simulator-talking")
        leaving = asyncio.create_task(_until_gone(receive), name="simulator-client")
        try:
            await asyncio.wait({talking, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (talking, leaving):
                task.cancel()
            await asyncio.gather(talking, leaving, return_exceptions=True)
            await self._count(-1)

    async def _talk(self, send: Send) -> None:
        headers = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(headers)
        async with contextlib.aclosing(self._wire) as texts:
            async for text in texts:
                if text is None:
                    return  # without the closing chunk: the server drops the connection
                body = {"type": "http.response.body", "body": text.encode(), "more_body": True}
                await send(body)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_hung_up() -> None:
    """Wait to be cancelled: the client leaves, or the simulator stops."""
    await asyncio.Event().wait()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _QuietServer(uvicorn.Server):
    """Leaves signals to the program around it, and sleeps while nobody asks."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._left = asyncio.Event()

    def leave(self) -> None:
        """Stop serving."""
        self.should_exit = True
        self._left.set()

    async def main_loop(self) -> None:
        """Serve until the end; the original looks ten times a second whether it has come."""
        await self.on_tick(0)
        await self._left.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _quiet_server(app: Starlette) -> _QuietServer:
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        timeout_graceful_shutdown=_DISCONNECT_GRACE_S,
    )
    return _QuietServer(config)


async def _refusal(_request: Request, error: RefusedRequestError) -> Response:
    headers = dict(_HEADERS)
    if error.retry_after_s is not None:
        headers["retry-after"] = f"{error.retry_after_s:g}"
    return JSONResponse(error.body, status_code=error.status, headers=headers)


def _event(frame: dict[str, Any], *, delta: dict[str, str], finish: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _data(frame | {"choices": [choice]})


def _data(value: dict[str, Any]) -> str:
    return f"data: {msgspec.json.encode(value).decode()}\n\n"
