"""One call: a POST to an address that was looked at before anything was sent there.

A tenant names the URL, and the dispatcher stands inside: without a guard a webhook would reach
whatever listens on this machine and in its networks. So the name is resolved here, private
addresses are refused, and the connection goes to the very address that was looked at: a name that
leads elsewhere a moment later leads nowhere. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, TypeAlias
from urllib.parse import SplitResult, urlsplit

import h11

from cloud_dispatcher.adapters.http.webhook_settings import WebhookSettings
from fleet_protocol.errors import ConfigError, RejectedError

URL_MOST_CHARS: Final = 2_048
_CONNECT_S: Final = 5.0
_ANSWER_S: Final = 15.0
_HEAD_MOST_BYTES: Final = 16_384
_PORTS: Final = {"https": 443, "http": 80}
# Addresses of the internet that lead into other networks: to somebody's IPv4 through a translator.
_TRANSLATED: Final = tuple(ip_network(each) for each in ("64:ff9b::/96", "64:ff9b:1::/48"))

_Ip: TypeAlias = IPv4Address | IPv6Address


class WebhookCaller:
    """Calls, where it may.

    Args:
        settings: Which networks besides the internet, and whom to trust.
    """

    def __init__(self, settings: WebhookSettings) -> None:
        self._allowed = tuple(ip_network(each) for each in settings.allow)
        try:
            self._tls = ssl.create_default_context(cafile=settings.ca_file)
        except OSError as error:
            raise ConfigError(
                f"webhooks.ca_file {settings.ca_file} cannot be used: {error}",
                hint="name a PEM file",
            ) from error

    def check(self, url: str) -> None:
        """Do nothing where a URL may be called as far as one can tell without asking for its name.

        Raises:
            RejectedError: `webhook_refused`.
        """
        parts = _split(url)
        try:
            address = ip_address(parts.hostname or "")
        except ValueError:
            return
        self._check_address(parts, address)

    async def call(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Send a body and return the status of the answer.

        Raises:
            RejectedError: `webhook_refused`: the address is none that may be called.
            OSError: It cannot be reached, or does not answer in time (TimeoutError).
        """
        parts = _split(url)
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await self._connect(parts, parts.port or _PORTS[parts.scheme])
        except UnicodeError as error:  # a name that cannot be asked for
            raise _refused(f"{parts.hostname} is no name of a server") from error
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await _exchange(reader, writer, parts, body, headers)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _connect(
        self, parts: SplitResult, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first address that answers, if none of them is forbidden."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        addresses = [ip_address(place[0]) for *_, place in found]
        for address in addresses:
            self._check_address(parts, address)
        is_secure = parts.scheme == "https"
        problem: OSError | None = None
        for address in addresses:
            try:
                return await asyncio.open_connection(
                    str(address),
                    port,
                    ssl=self._tls if is_secure else None,
                    server_hostname=parts.hostname if is_secure else None,
                )
            except OSError as error:
                problem = error
        raise problem or ConnectionRefusedError(f"{parts.hostname} has no address")

    def _check_address(self, parts: SplitResult, address: _Ip) -> None:
        inner = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        address = inner or address
        if any(address in network for network in self._allowed):
            return
        if not _is_on_the_internet(address):
            raise _refused(f"{parts.hostname} is an address of a private network")
        if parts.scheme != "https":
            raise _refused("calls to the internet go over https")


def _is_on_the_internet(address: _Ip) -> bool:
    leads_elsewhere = isinstance(address, IPv6Address) and (
        address.sixtofour is not None
        or address.teredo is not None
        or any(address in network for network in _TRANSLATED)
    )
    return address.is_global and not address.is_multicast and not leads_elsewhere


def _split(url: str) -> SplitResult:
    """Return the parts of a URL; raises RejectedError."""
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole or len(url) > URL_MOST_CHARS or not url.isascii() or not url.isprintable():
        raise _refused("a webhook is an address such as https://HOST/PATH")
    if parts.username is not None or parts.password is not None or " " in url:
        raise _refused("a webhook has no user, no password and no spaces in its address")
    return parts


def _refused(why: str) -> RejectedError:
    return RejectedError(
        why, code="webhook_refused", hint="see gateway.webhooks.allow in docs/webhooks.md"
    )


async def _exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    parts: SplitResult,
    body: bytes,
    headers: Mapping[str, str],
) -> int:
    """Send the request and read as much of the answer as says how it went."""
    wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_MOST_BYTES)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    given = {
        "host": parts.netloc,
        "content-type": "application/json",
        "content-length": str(len(body)),
        "user-agent": "edgefleet-webhook",
        "connection": "close",
        **headers,
    }
    request = h11.Request(method="POST", target=target, headers=list(given.items()))
    for event in (request, h11.Data(data=body), h11.EndOfMessage()):
        writer.write(wire.send(event) or b"")
    await writer.drain()
    try:
        while not isinstance(answer := wire.next_event(), h11.Response):
            if answer is h11.NEED_DATA:
                wire.receive_data(await reader.read(_HEAD_MOST_BYTES))
            elif not isinstance(answer, h11.InformationalResponse):
                raise ConnectionResetError("it ended before it answered")
    except h11.RemoteProtocolError as error:
        raise ConnectionResetError(f"this is no HTTP: {error}") from error
    return answer.status_code
