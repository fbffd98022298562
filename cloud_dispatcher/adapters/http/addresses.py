"""Names and addresses: this machine's own, and those that browsers know a page by."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import urlsplit

_PORTS: Final = {"http": 80, "https": 443}


def is_loopback(host: str) -> bool:
    """Tell whether an address is this machine's alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def household(address: str) -> str:
    """Return what one client may change its address within: of IPv6 the /64 that a link is given.

    Source: RFC 6177, section 2; what is no address stays as it is.
    """
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if not isinstance(found, IPv6Address):
        return address
    return str(found.ipv4_mapped or IPv6Network((int(found) >> 64 << 64, 64)))


def is_here(url: str) -> bool:
    """Tell whether a URL names this machine by its own address."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def origin_of(url: str) -> str:
    """Return scheme, host and port as browsers write them (RFC 6454).

    Raises:
        ValueError: It is not the address of a page at the root of its host.
    """
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or parts.path not in {"", "/"}:
        raise ValueError(f"{url!r} is not https://HOST or http://HOST, without a path")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = "" if parts.port in {None, _PORTS[parts.scheme]} else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"
