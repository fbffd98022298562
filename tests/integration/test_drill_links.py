"""The wires of a drill: whole, stalled, cut."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from fleet_cli.drill.links import Links

PATIENCE_S = 10.0


class Echoes:
    """Says again what it hears, on every connection."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(link,), daemon=True).start()

    def _echo(self, link: socket.socket) -> None:
        with link:
            try:
                while data := link.recv(4_096):
                    link.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@pytest.fixture
def links() -> Iterator[Links]:
    echoes = Echoes()
    with Links(echoes.port) as links:
        yield links
    echoes.close()


def connected(links: Links, name: str = "w1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", links.port(name)), timeout=PATIENCE_S)


def says_again(link: socket.socket, word: bytes) -> bool:
    link.sendall(word)
    return link.recv(64) == word


def is_broken(link: socket.socket) -> bool:
    try:
        link.sendall(b"?")
        return link.recv(64) == b""
    except ConnectionError:
        return True


def test_a_whole_link_carries_both_ways(links: Links) -> None:
    with connected(links) as link:
        assert says_again(link, b"one")
        assert says_again(link, b"two")


def test_a_cut_link_resets_what_there_is_and_takes_nobody_until_it_is_restored(
    links: Links,
) -> None:
    with connected(links) as link:
        assert says_again(link, b"one")
        links.cut("w1")
        assert is_broken(link)
    with connected(links) as late:
        assert is_broken(late)
    links.restore("w1")
    with connected(links) as link:
        assert says_again(link, b"two")


def test_a_stalled_link_says_nothing_and_carries_later_what_was_said_meanwhile(
    links: Links,
) -> None:
    with connected(links) as link:
        assert says_again(link, b"one")
        links.stall("w1")
        link.sendall(b"two")
        link.settimeout(0.2)
        with pytest.raises(TimeoutError):
            link.recv(64)
        links.restore("w1")
        link.settimeout(PATIENCE_S)
        assert link.recv(64) == b"two"


def test_links_break_each_on_its_own(links: Links) -> None:
    with connected(links, "w1") as one, connected(links, "w2") as other:
        assert says_again(one, b"1")
        links.cut("w1")
        assert says_again(other, b"2")
