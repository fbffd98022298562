"""The dashboard: its files, and what the page asks for once when it opens."""

from __future__ import annotations

import gzip
import hashlib
from importlib import resources
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cloud_dispatcher.adapters.http.errors import ApiError
from cloud_dispatcher.adapters.http.gatekeeper import Gatekeeper
from cloud_dispatcher.adapters.http.inside import Inside
from cloud_dispatcher.adapters.http.page_identities import PageIdentities
from cloud_dispatcher.history import COLUMNS
from fleet_protocol import __version__
from fleet_protocol.roles import LEAST, Action, allowed

_FOLDER: Final = "dashboard/static"
_KINDS: Final = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
_INDEX: Final = "index.html"
_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # asks every time; an unchanged file is 304
    "vary": "accept-encoding",
}


class _File(msgspec.Struct, frozen=True):
    kind: str
    body: bytes
    packed: bytes
    etag: str


class Page:
    """Serves the dashboard from memory: what was shipped, by its exact name, and nothing else."""

    def __init__(self, inside: Inside, gate: Gatekeeper, identities: PageIdentities) -> None:
        self._inside = inside
        self._gate = gate
        self._identities = identities
        self._files = _read_files()

    def routes(self) -> list[Route]:
        """Return the paths of the page, its files, and what it asks for."""
        return [
            Route("/", self._index),
            Route("/assets/{name}", self._asset),
            Route("/page/session", self._session),
            Route("/page/history", self._history),
        ]

    async def _index(self, request: Request) -> Response:
        return self._file(request, _INDEX)

    async def _asset(self, request: Request) -> Response:
        return self._file(request, request.path_params["name"])

    def _file(self, request: Request, name: str) -> Response:
        """The page's own files are no secret: who has no login needs them to log in."""
        self._check_name(request)
        file = self._files.get(name)
        if file is None:
            return Response(status_code=404, headers=_HEADERS)
        headers = {**_HEADERS, "etag": file.etag, "content-type": file.kind}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(file.packed, headers={**headers, "content-encoding": "gzip"})
        return Response(file.body, headers=headers)

    def _check_name(self, request: Request) -> None:
        if self._gate.is_open:
            self._gate.check_host(request)
        elif not self._gate.home.is_addressed(request):
            message = "open this page by this machine's own address, or set gateway.page.url"
            raise ApiError(403, "host_refused", message)

    async def _session(self, request: Request) -> JSONResponse:
        """Who the page is, what it may do, and where its topics are."""
        self._check_name(request)
        role, session = self._gate.role(request), self._gate.session(request)
        body: dict[str, object] = {"login": not self._gate.is_open, "version": __version__}
        user = None if session is None else session.user.name
        identity = None if role is None else self._identities.of(role, user)
        if role is not None:
            if identity is None:
                message = f"the broker knows nobody with the role {role}: gateway.page.{role}"
                raise ApiError(503, "no_page_identity", message)
            body |= {
                "user": user,
                "role": role.value,
                "may": [deed.value for deed in LEAST if allowed(role, deed)],
                "csrf": "" if session is None else session.csrf,
                "root": self._inside.root,
                "topics": self._identities.topics(identity.identity),
                "has_cloud": self._inside.has_cloud(),
                "models": self._inside.models(),
            }
        return JSONResponse(body, headers={"cache-control": "no-store"})

    async def _history(self, request: Request) -> Response:
        self._gate.admit(request, Action.WATCH)
        body = {"columns": COLUMNS, "rows": self._inside.history.samples()}
        packed = gzip.compress(msgspec.json.encode(body), compresslevel=1)
        headers = {
            "content-type": "application/json",
            "content-encoding": "gzip",
            "cache-control": "no-store",
        }
        return Response(packed, headers=headers)


def _read_files() -> dict[str, _File]:
    folder = resources.files("cloud_dispatcher").joinpath(_FOLDER)
    found = {}
    for path in (folder.joinpath(_INDEX), *folder.joinpath("assets").iterdir()):
        body = path.read_bytes()
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        kind = _KINDS[path.name.rpartition(".")[2]]
        found[path.name] = _File(kind, body, gzip.compress(body, mtime=0), etag)
    return found
