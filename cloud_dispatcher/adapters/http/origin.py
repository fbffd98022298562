"""Where the page is at home, and which requests come from there."""

from __future__ import annotations

from typing import Final

from starlette.requests import HTTPConnection

from cloud_dispatcher.adapters.http.addresses import is_here, origin_of

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""What changes nothing, and so needs no proof of where it comes from."""


class HomeOrigin:
    """The address that browsers know the page by.

    Args:
        url: As people type it, where a proxy stands before the gateway; None: the page is for this
            machine alone, by its own address.
    """

    def __init__(self, url: str | None) -> None:
        self._origin = None if url is None else origin_of(url)

    @property
    def is_secure(self) -> bool:
        """Whether browsers come over TLS: then cookies may go no other way."""
        return self._origin is not None and self._origin.startswith("https://")

    def is_addressed(self, connection: HTTPConnection) -> bool:
        """Tell whether a browser may know us by the name it used.

        A page of the web may have its own name lead to this machine's address. Where the page has
        a name of its own nothing hangs on it: a cookie goes to the name alone that it came from.
        """
        return self._origin is not None or is_here(f"//{connection.headers.get('host', '')}")

    def is_home(self, connection: HTTPConnection) -> bool:
        """Tell whether a page of ours sent this.

        A browser names the page's origin with every WebSocket and with all that may change
        something, and asks nobody's leave to send either.
        """
        host = connection.headers.get("host", "")
        home = self._origin or (f"http://{host}" if is_here(f"//{host}") else None)
        return home is not None and connection.headers.getlist("origin") == [home]
