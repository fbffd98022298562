"""`edge-worker join`: a board with a one-time token gets its first certificate."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlunsplit

import click
import msgspec

from edge_worker.adapters.identity import IdentityFiles
from edge_worker.config import WorkerSettings
from fleet_pki.files import read_secret
from fleet_protocol import topics as t
from fleet_protocol.access import join_user
from fleet_protocol.bus import Delivery, MessageBus, Publication, Session
from fleet_protocol.codec import CONTENT_TYPE_JSON, decode, encode
from fleet_protocol.errors import ConfigError, FleetError, RejectedError, RetryableError
from fleet_protocol.messages import CertificateReply, CertificateRequest, WorkerId
from fleet_protocol.mqtt import BusLimits, MqttBus
from fleet_protocol.mqtt_handshake import CLOCK_BEHIND
from fleet_protocol.settings import BrokerSettings, TlsSettings
from fleet_protocol.topics import Topics

JOIN_PORT: Final = 8_884
"""Where the broker asks for a user and a password instead of a certificate."""
_AGAIN_S: Final = 10.0
_CLOCK_LOOK_S: Final = 2.0


def join(
    settings: WorkerSettings, *, token_file: Path, at: str | None, timeout_s: float, as_json: bool
) -> None:
    """Buy a certificate with the token, put it where the settings name it, and delete the token.

    The key is made on the board and stays there. A power cut at any moment costs nothing: the same
    key gets the same certificate again. Without a token there is nothing to do if a certificate
    is there.

    Raises:
        ConfigError: The settings name no files; the token is for another id, or not there.
        RejectedError: `token_refused`.
        RetryableError: Nobody answered in time.
    """
    worker, broker = settings.worker, settings.broker
    files = _files(worker, broker.tls)
    if not token_file.exists() and files.has_certificate:
        _say(worker, "has a certificate already", as_json=as_json, joined=False)
        return
    token = _read_token(token_file, worker)
    files.make_key()
    there = _entrance(broker, worker, at)
    chain = asyncio.run(_ask(there, worker, token, files.request(), timeout_s=timeout_s))
    files.replace(chain)
    token_file.unlink()
    _say(worker, "has its first certificate", as_json=as_json, joined=True)


def _files(worker: WorkerId, tls: TlsSettings | None) -> IdentityFiles:
    if tls is None or tls.ca_file is None or tls.cert_file is None or tls.key_file is None:
        raise ConfigError(
            "the settings do not say where key and certificate belong",
            hint="set broker.tls.ca_file, cert_file and key_file, as the worker will read them",
        )
    certificate, key = (Path(name).expanduser() for name in (tls.cert_file, tls.key_file))
    return IdentityFiles(worker, certificate=certificate, key=key)


def _read_token(file: Path, worker: WorkerId) -> str:
    token = read_secret(file)
    _, _, rest = token.partition(".")
    if rest.partition(".")[0] != worker:
        raise ConfigError(
            f"{file} is no token for {worker}",
            code="wrong_token",
            hint=f"set the worker's id, or have one made: fleet enroll worker {worker} --token",
        )
    return token


def _entrance(broker: BrokerSettings, worker: WorkerId, at: str | None) -> BrokerSettings:
    """Return where, and as whom, the board comes with its token."""
    url = at or urlunsplit(("mqtts", f"{_bracketed(broker.host)}:{JOIN_PORT}", "", "", ""))
    trust = TlsSettings(ca_file=None if broker.tls is None else broker.tls.ca_file)
    there = BrokerSettings(url=url, username=join_user(worker), root=broker.root, tls=trust)
    if not url.startswith("mqtts://"):
        raise ConfigError(f"{there.host} is not asked over TLS", hint="name it with mqtts://")
    return there


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _ask(
    there: BrokerSettings, worker: WorkerId, token: str, csr: str, *, timeout_s: float
) -> str:
    """Return the certificates; an unset clock, and an authority that is away, are waited for."""
    topics, until_s = Topics(there.root), time.monotonic() + timeout_s
    session = Session(
        client_id=topics.client_id(join_user(worker)),
        subscriptions=(topics.filter(t.CERTIFICATE, worker),),
    )
    while True:
        limits = BusLimits(connect_timeout_s=max(1.0, until_s - time.monotonic()))
        try:
            async with MqttBus(there, session, password=token, limits=limits) as bus:
                return await _exchange(bus, topics, worker, csr, until_s=until_s)
        except FleetError as error:
            if error.code != CLOCK_BEHIND or time.monotonic() >= until_s:
                raise
            await asyncio.sleep(_CLOCK_LOOK_S)


async def _exchange(
    bus: MessageBus, topics: Topics, worker: WorkerId, csr: str, *, until_s: float
) -> str:
    request = CertificateRequest(req=secrets.token_hex(8), csr=csr)
    publication = Publication(
        topic=topics.name(t.JOIN, worker),
        payload=encode(request),
        content_type=CONTENT_TYPE_JSON,
    )
    while (left_s := until_s - time.monotonic()) > 0:
        bus.publish(publication)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(_AGAIN_S, left_s)):
                return await _heard(bus, request.req)
    raise RetryableError(
        "the fleet's authority does not answer",
        code="timeout",
        hint="start it: fleet pki serve; and tell the broker of the token: fleet pki broker",
    )


async def _heard(bus: MessageBus, req: str) -> str:
    while True:
        for event in await bus.receive():
            if not isinstance(event, Delivery):
                continue
            bus.acknowledge([event])
            reply = decode(t.CERTIFICATE, event.payload)
            if isinstance(reply, CertificateReply) and reply.req == req:
                if not reply.ok:
                    raise RejectedError(reply.message or "refused", code=reply.code or "refused")
                return reply.chain


def _say(worker: WorkerId, what: str, *, as_json: bool, joined: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode({"ok": True, "worker": worker, "joined": joined}).decode())
    else:
        click.echo(f"{worker} {what}")
