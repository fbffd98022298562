"""What may be asked here, for programs: OpenAPI for HTTP, AsyncAPI for MQTT.

Both are made from the code, need no key, and name nothing of this fleet but its topics' root.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cloud_dispatcher.adapters.http.chat_format import ChatRequest
from fleet_protocol import __version__, asyncapi
from fleet_protocol.messages import JobResult, JobSubmit, JobView, TokenChunk

_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream"
_TEXT: Final = "text/plain"


class ErrorFacts(msgspec.Struct):
    """What went wrong, as OpenAI's API says it.

    Attributes:
        code: Stable name: docs/gateway.md has them all.
        param: The field of the request that is to blame.
    """

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorBody(msgspec.Struct):
    """The body of every answer that refuses."""

    error: ErrorFacts


class PostedJob(JobSubmit, frozen=True, kw_only=True):
    """What `POST /jobs` takes: a submission, with a name and an address to call if one likes.

    Attributes:
        id: The same again is the same job; without it one is made.
        webhook: Called when the job is over: docs/webhooks.md.
    """

    id: str | None = None
    webhook: str | None = None


class JobPage(msgspec.Struct):
    """Jobs without their texts, newest first.

    Attributes:
        next: Leads to the next page, as `before`; None: there is none.
    """

    jobs: list[JobView]
    next: str | None = None


class ChatAnswer(msgspec.Struct):
    """OpenAI's chat completion; `fleet` says who answered, why and what it cost."""

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, Any]
    fleet: dict[str, Any]


class ModelPage(msgspec.Struct):
    """The models that boards have now, and `fleet`, which is any of them."""

    object: str
    data: list[dict[str, Any]]


class WebhookSecret(msgspec.Struct):
    """What a tenant's calls are signed with."""

    tenant: str
    secret: str


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """What one path does with one method.

    Attributes:
        takes: The body.
        gives: The answer's body; None: what `media` says, without a schema.
        query: Names of parameters.
        headers: Names of headers that it knows.
        is_open: Needs neither a key nor a login.
    """

    summary: str
    status: int = 200
    takes: type | None = None
    gives: type | None = None
    media: tuple[str, ...] = (_JSON,)
    query: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    is_open: bool = False


OPERATIONS: Final[dict[tuple[str, str], Operation]] = {
    ("GET", "/healthz"): Operation(summary="Whether the program lives", is_open=True),
    ("GET", "/readyz"): Operation(summary="Whether it serves", is_open=True),
    ("GET", "/metrics"): Operation(summary="Figures for Prometheus", media=(_TEXT,)),
    ("GET", "/openapi.json"): Operation(summary="This document", is_open=True),
    ("GET", "/asyncapi.json"): Operation(summary="The same for MQTT", is_open=True),
    ("POST", "/v1/chat/completions"): Operation(
        summary="Ask, as OpenAI's API is asked",
        takes=ChatRequest, gives=ChatAnswer, media=(_JSON, _EVENTS),
        headers=("Idempotency-Key",),
    ),
    ("GET", "/v1/models"): Operation(summary="Models that boards have now", gives=ModelPage),
    ("GET", "/v1/models/{name}"): Operation(summary="One of them"),
    ("POST", "/jobs"): Operation(
        summary="Submit a job, to be fetched, followed or called for later",
        status=202, takes=PostedJob, gives=JobView,
    ),
    ("GET", "/jobs"): Operation(
        summary="A tenant's jobs", gives=JobPage, query=("status", "dead", "limit", "before")
    ),
    ("GET", "/jobs/{id}"): Operation(summary="A job, with its result", gives=JobView),
    ("DELETE", "/jobs/{id}"): Operation(summary="Cancel it", gives=JobView),
    ("GET", "/jobs/{id}/events"): Operation(
        summary="Its events `token` (TokenChunk) and `result` (JobResult); over a WebSocket, too",
        media=(_EVENTS,),
    ),
    ("GET", "/webhooks/secret"): Operation(
        summary="What a tenant's webhooks are signed with", gives=WebhookSecret
    ),
}  # fmt: skip


def openapi() -> dict[str, Any]:
    """Return what may be asked over HTTP, as OpenAPI 3.1."""
    kinds = {kind for each in OPERATIONS.values() for kind in (each.takes, each.gives) if kind}
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), each in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _operation(path, each)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgefleet over HTTP",
            "version": __version__,
            "summary": "OpenAI's chat completions, and jobs.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": asyncapi.schemas([*_sorted(kinds), ErrorBody, JobResult, TokenChunk]),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def document_routes(root: str) -> list[BaseRoute]:
    """Return the paths of both documents."""
    bodies = {
        "/openapi.json": msgspec.json.encode(openapi()),
        "/asyncapi.json": msgspec.json.encode(asyncapi.document(root)),
    }

    async def document(request: Request) -> Response:
        return Response(bodies[request.url.path], media_type=_JSON)

    return [Route(path, document) for path in bodies]


def _operation(path: str, each: Operation) -> dict[str, Any]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    text: dict[str, Any] = {"type": "string"}
    given = [{"name": n, "in": "path", "required": True, "schema": text} for n in names]
    given += [{"name": n, "in": "query", "schema": text} for n in each.query]
    given += [{"name": n, "in": "header", "schema": text} for n in each.headers]
    schema = {} if each.gives is None else {"schema": _ref(each.gives)}
    found: dict[str, Any] = {
        "summary": each.summary,
        "responses": {
            str(each.status): {
                "description": "As it was asked for",
                "content": {media: schema if media == _JSON else {} for media in each.media},
            },
            "default": {
                "description": "Refused, or not possible now",
                "content": {_JSON: {"schema": _ref(ErrorBody)}},
            },
        },
    }
    if given:
        found["parameters"] = given
    if each.takes is not None:
        body = {_JSON: {"schema": _ref(each.takes)}}
        found["requestBody"] = {"required": True, "content": body}
    if each.is_open:
        found["security"] = []
    return found


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _sorted(kinds: set[type]) -> list[type]:
    return sorted(kinds, key=lambda kind: kind.__name__)
