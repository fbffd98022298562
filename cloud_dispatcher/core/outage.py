"""Whether anybody in the cloud can be asked, by what the last calls came to. Pure.

Nobody is asked for this: jobs go up as ever, with what their board has, and the first one to which
anybody there has something to say ends an outage.
"""

from __future__ import annotations

from typing import Final

NO_PROVIDER: Final = "no_provider"
"""None is configured."""
PROVIDER_OPEN: Final = "provider_open"
"""The breaker of every endpoint is open."""

_OUT: Final = frozenset({
    NO_PROVIDER, PROVIDER_OPEN, "provider_denied", "provider_no_balance", "provider_unavailable",
})  # fmt: skip
"""Codes with which a call would have failed for any other job, too."""
_THERE: Final = frozenset({
    "provider_rate_limited", "provider_bad_request", "provider_filtered", "provider_blank",
})  # fmt: skip
"""Codes that somebody there gave."""


class Outage:
    """That of the cloud, if there is one."""

    def __init__(self, *, has_cloud: bool = True) -> None:
        self._since_ms: int | None = None if has_cloud else 0

    def __bool__(self) -> bool:
        """Whether the last call that said anything of the cloud said that it is out."""
        return self._since_ms is not None

    def lasts_ms(self, now_ms: int) -> int:
        """Return how long it has been going on; 0: it is not, or it began just now."""
        return 0 if self._since_ms is None else max(now_ms - self._since_ms, 0)

    def failed(self, code: str, now_ms: int) -> None:
        """A call failed with this code."""
        if code in _THERE:
            self._since_ms = None
        elif code in _OUT and self._since_ms is None:
            self._since_ms = now_ms

    def answered(self) -> None:
        """A call was answered."""
        self._since_ms = None
