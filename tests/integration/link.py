"""A wire that can be cut: a TCP relay to a port on loopback."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from typing import Self


class Link:
    """Relays `port` to `target`. While cut, connections are reset and new ones refused at once."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._whole = True
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._order = ""
        self._obeyed = threading.Event()

    @property
    def port(self) -> int:
        """Where to connect."""
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._command("stop")
        self._thread.join(10)
        for one in (*self._pairs, self._listener, self._wake, self._waker):
            one.close()
        self._selector.close()

    def cut(self) -> None:
        """Break every connection and let no new one through."""
        self._command("cut")

    def restore(self) -> None:
        """Let connections through again."""
        self._command("restore")

    def _command(self, order: str) -> None:
        self._obeyed.clear()
        self._order = order
        self._waker.send(b"!")
        assert self._obeyed.wait(10)

    def _run(self) -> None:
        while self._order != "stop":
            for key, _ in self._selector.select():
                if key.fileobj is self._wake:
                    self._obey()
                elif key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._pairs:
                    self._relay(key.fileobj)

    def _obey(self) -> None:
        self._wake.recv(1)
        self._whole = self._order != "cut"
        if not self._whole:
            for one in list(self._pairs):
                self._drop(one)
        self._obeyed.set()

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        if not self._whole:
            near.close()
            return
        try:
            far = socket.create_connection(("127.0.0.1", self._target), 5)
        except OSError:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _relay(self, one: socket.socket) -> None:
        try:
            data = one.recv(65_536)
            if data:
                self._pairs[one].sendall(data)
                return
        except OSError:
            pass
        self._drop(one)

    def _drop(self, one: socket.socket) -> None:
        other = self._pairs.pop(one, None)
        for end in (one, other):
            if end is not None:
                self._pairs.pop(end, None)
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(end)
                end.close()
