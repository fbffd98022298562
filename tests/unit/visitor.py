"""A browser without a window: it keeps cookies, and names the origin of its page."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from http.client import HTTPConnection
from http.cookies import SimpleCookie
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.unit.service_house import PATIENCE_S

PASSWORD = "correct horse battery"


class Answer(NamedTuple):
    """What came back; `headers` by lower-case names, the last of each."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """Of an error."""
        found: str = json.loads(self.body)["error"]["code"]
        return found


class Visitor:
    """Somebody with the page open."""

    def __init__(self, url: str, *, origin: str | None = None) -> None:
        self.url = url
        self.origin = origin or url
        self.cookies: dict[str, str] = {}
        self.csrf = ""

    async def get(self, path: str, **headers: str) -> Answer:
        """Ask for something, as a link does: without an origin."""
        return await asyncio.to_thread(self.send, "GET", path, None, headers)

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        """Send JSON, as the page's scripts do, or bytes that are none."""
        own = {"Origin": self.origin, "x-csrf-token": self.csrf}
        return await asyncio.to_thread(self.send, "POST", path, body, own | headers)

    async def log_in(self, name: str, password: str = PASSWORD) -> Answer:
        """Log in and, where that works, read what scripts of the page must repeat."""
        answer = await self.post("/page/login", {"name": name, "password": password})
        if answer.status == 204:
            self.csrf = (await self.session())["csrf"]
        return answer

    async def session(self) -> dict[str, Any]:
        """Who the page is."""
        found: dict[str, Any] = json.loads((await self.get("/page/session")).body)
        return found

    def connection(self) -> HTTPConnection:
        """Return a new connection to the page's address."""
        return HTTPConnection(urlsplit(self.url).netloc, timeout=PATIENCE_S)

    def send(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Answer:
        """Send a request and keep the cookies of the answer; an empty header is left out."""
        given = {"Content-Type": "application/json", **headers}
        if self.cookies:
            given["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        with closing(self.connection()) as connection:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body)
            connection.request(
                method, path, body=data, headers={k: v for k, v in given.items() if v}
            )
            reply = connection.getresponse()
            jar: SimpleCookie = SimpleCookie()
            for line in reply.headers.get_all("set-cookie") or ():
                jar.load(line)
            for name, morsel in jar.items():
                if morsel["max-age"] == "0":
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = morsel.value
            told = {name.lower(): value for name, value in reply.getheaders()}
            return Answer(reply.status, told, reply.read())
