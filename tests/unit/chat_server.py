"""A server on loopback that speaks chat completions, as a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Reply:
    """How a request is answered."""

    def __init__(
        self, text: str = "", *, status: int = 200, finish: str = "stop", html: bool = False
    ) -> None:
        self.text = text
        self.status = status
        self.finish = finish
        self.html = html


class ChatServer(ThreadingHTTPServer):
    """Answers a prompt with the next of its replies, or with the prompt in capitals.

    Attributes:
        replies: By the user's turn, in order; the last one stays.
        requests: Bodies, in the order of their arrival.
        keys: What each one came with.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies: dict[str, list[Reply]] = {}
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def reply_to(self, body: dict[str, Any], key: str) -> Reply:
        with self._lock:
            self.requests.append(body)
            self.keys.append(key)
            prompt = body["messages"][-1]["content"]
            waiting = self.replies.get(prompt)
            if not waiting:
                return Reply(prompt.upper())
            return waiting.pop(0) if len(waiting) > 1 else waiting[0]


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply = self.server.reply_to(body, self.headers.get("Authorization", ""))
        content = b"<html>" if reply.html else json.dumps(_completion(reply)).encode()
        self.send_response(reply.status if self.path == "/v1/chat/completions" else 404)
        self.send_header("Content-Type", "text/html" if reply.html else "application/json")
        self.send_header("Content-Length", str(len(content)))
        # In milliseconds: what the SDK obeys before its own backoff, and no test waits for.
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Be quiet."""


def _completion(reply: Reply) -> dict[str, Any]:
    if reply.status >= 400:
        return {"error": {"message": "no, and your key is sk-secret", "type": "x", "code": "x"}}
    message = {"role": "assistant", "content": reply.text}
    choice = {"index": 0, "message": message, "finish_reason": reply.finish}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "teacher",
        "choices": [choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """Serve until the block ends."""
    with ChatServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="chat-server")
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
