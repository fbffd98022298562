"""A fleet with a page."""

from __future__ import annotations

from tests.integration.fleet import Fleet


class Site:
    """A fleet, and where its page is."""

    def __init__(self, fleet: Fleet, url: str) -> None:
        self.fleet = fleet
        self.url = url
        self.device = fleet.devices[0]

    def at(self, path: str) -> str:
        """Return the link to a place in the page."""
        return f"{self.url}/#/{path}"
