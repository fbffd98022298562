"""A provider's refusals and silences as `ProviderError`s: one row for each thing that can happen.

`retry_after_ms` is None where the same call would fail again, and otherwise the span the provider
named, 0 where it named none. `elsewhere` says whether another provider may answer the request.
"""

from __future__ import annotations

import email.utils
from typing import Final, NamedTuple

from cloud_dispatcher.ports import ProviderError

_WAIT_MOST_MS: Final = 3_600_000
"""Whoever says a longer one may have meant milliseconds: to ask once an hour harms nobody."""


class _Row(NamedTuple):
    code: str
    message: str
    retryable: bool = False
    hint: str = ""
    elsewhere: bool = False


_BAD_REQUEST = _Row(
    "provider_bad_request", "refused the request", hint="check the provider's base_url and model"
)
_UNAVAILABLE = _Row("provider_unavailable", "is out of order", retryable=True)

_BY_STATUS = {
    401: _Row("provider_denied", "refused the API key", hint="renew the key", elsewhere=True),
    402: _Row(
        "provider_no_balance",
        "says the account is empty",
        hint="top up the account; it goes on by itself",
        elsewhere=True,
    ),
    403: _Row(
        "provider_denied",
        "refused the API key",
        hint="renew the key or widen its rights",
        elsewhere=True,
    ),
    404: _BAD_REQUEST._replace(elsewhere=True),
    408: _Row("provider_timeout", "gave up waiting for the request", retryable=True),
    429: _Row("provider_rate_limited", "has too many of our calls", retryable=True),
}


def refused(status: int, *, said: str = "", retry_after_ms: int | None = None) -> ProviderError:
    """Map an HTTP status.

    Args:
        status: 400 and above.
        said: The provider's own words, already free of keys and prompts.
        retry_after_ms: What its Retry-After asks for.
    """
    row = _BY_STATUS.get(status) or (_UNAVAILABLE if status >= 500 else _BAD_REQUEST)
    return _make(row, detail=f" (HTTP {status}{': ' if said else ''}{said})", wait=retry_after_ms)


def unreachable(reason: str) -> ProviderError:
    """No connection could be made, or it broke before the answer began."""
    return _make(
        _Row(
            "provider_unavailable",
            "cannot be reached",
            retryable=True,
            hint="check the network and the provider's base_url",
        ),
        detail=f" ({reason})",
    )


def silent(what: str) -> ProviderError:
    """A timeout of ours: nothing (useful) came for too long."""
    return _make(_Row("provider_timeout", f"sent {what}", retryable=True))


def out_of_time() -> ProviderError:
    """The request's whole span is over: the answer would be worthless."""
    return _make(_Row("provider_timeout", "did not finish before the deadline"))


def closed(name: str, reason: str, *, wait_ms: int) -> ProviderError:
    """Its breaker is open: it failed too often to be asked before the span is over."""
    return _make(
        _Row("provider_open", "is left alone for a while", retryable=True),
        detail=f" ({name}: {reason})",
        wait=wait_ms,
    )


def busy(wait_ms: int) -> ProviderError:
    """The account takes no call until the span is over, by its own word or by our settings."""
    return _make(
        _Row("provider_rate_limited", "takes no more calls now", retryable=True), wait=wait_ms
    )


def cut(reason: str) -> ProviderError:
    """The stream ended before the answer did."""
    return _make(_Row("provider_cut", f"broke off in mid-answer, {reason}", retryable=True))


def blank(*, truncated: bool) -> ProviderError:
    """The whole answer is white space; `truncated`: the token limit was used up without a word."""
    return _make(_Row("provider_blank", "answered with nothing", retryable=not truncated))


def filtered() -> ProviderError:
    """Its safety filter stopped the answer."""
    return _make(_Row("provider_filtered", "withheld the answer (content filter)"))


def overloaded() -> ProviderError:
    """It ran out of resources while it answered."""
    return _make(_Row("provider_overloaded", "ran out of resources", retryable=True))


def read_retry_after(header: str | None, *, now_ms: int) -> int | None:
    """Return the span of a Retry-After header, in ms: it holds seconds, or an HTTP date."""
    if not header:
        return None
    try:
        span_ms = int(float(header) * 1_000)
    except (ValueError, OverflowError):
        try:
            moment = email.utils.parsedate_to_datetime(header)
        except ValueError:
            return None
        span_ms = int(moment.timestamp() * 1_000) - now_ms
    return min(max(span_ms, 0), _WAIT_MOST_MS)


def _make(row: _Row, *, detail: str = "", wait: int | None = None) -> ProviderError:
    return ProviderError(
        f"the provider {row.message}{detail}",
        code=row.code,
        retry_after_ms=(wait or 0) if row.retryable else None,
        elsewhere=row.elsewhere,
        hint=row.hint,
    )
