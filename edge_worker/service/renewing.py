"""The worker's certificate: looked after while it works, and waited for before it begins."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from edge_worker.core.renewal import CertificateState, Renewal, Validity
from edge_worker.ports import Identity, IdentityError
from fleet_protocol.messages import CertificateReply, CertificateRequest

LOOK_S: Final = 5.0
CLOCK_LOOK_S: Final = 2.0
_log = structlog.get_logger()


class CertificateKeeper:
    """Asks for the next certificate in time and puts it where the next connection finds it.

    Args:
        identity: What lies on the disk.
        wall_ms: The board's own clock, as certificates are judged by: UTC epoch milliseconds.
        spread: 0..1, see `Renewal`.
    """

    def __init__(self, identity: Identity, *, wall_ms: Callable[[], int], spread: float) -> None:
        """Raise IdentityError if the certificate cannot be read."""
        self._identity = identity
        self._wall_ms = wall_ms
        self._renewal = Renewal(identity.validity(), spread=spread)
        self._wanted = ""
        self._told: CertificateState | None = None

    async def wait_for_clock(
        self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """Return once the certificate holds: until then the clock is what is wrong."""
        while self._look() is CertificateState.CLOCK_BEHIND:
            await sleep(CLOCK_LOOK_S)

    async def run(
        self,
        send: Callable[[CertificateRequest], None],
        *,
        is_connected: Callable[[], bool],
    ) -> None:
        """Look after the certificate until cancelled; nothing that fails here ends the worker."""
        while True:
            self.look_after(send, is_connected=is_connected())
            await asyncio.sleep(LOOK_S)

    def look_after(self, send: Callable[[CertificateRequest], None], *, is_connected: bool) -> None:
        """Ask if it is time to."""
        self._look()
        now_ms = self._wall_ms()
        if not is_connected or not self._renewal.should_ask(now_ms):
            return
        self._renewal.asked(now_ms)
        try:
            request = CertificateRequest(req=secrets.token_hex(8), csr=self._identity.request())
        except IdentityError as error:
            _log.error("certificate.request_failed", code=error.code, error=str(error))
            return
        self._wanted = request.req
        send(request)
        _log.info("certificate.asked", left_s=self._left_s(now_ms))

    def heard(self, reply: CertificateReply) -> None:
        """Take the authority's answer; one that nobody waits for any more is ignored."""
        if reply.req != self._wanted:
            return
        self._wanted = ""
        if not reply.ok:
            _log.error("certificate.refused", code=reply.code, why=reply.message)
            return
        try:
            if not self._renewal.may_take(self._identity.check(reply.chain), self._wall_ms()):
                _log.error("certificate.not_now", hint="check the authority's clock, and ours")
                return
            validity = self._identity.replace(reply.chain)
        except IdentityError as error:
            _log.error("certificate.unusable", code=error.code, error=str(error))
            return
        self._take(validity)

    def _take(self, validity: Validity) -> None:
        self._renewal.renewed(validity)
        self._told = None
        _log.info("certificate.renewed", left_s=self._left_s(self._wall_ms()))

    def _look(self) -> CertificateState:
        """Say what changed, once."""
        now_ms = self._wall_ms()
        state = self._renewal.state(now_ms)
        if state is not self._told:
            self._told = state
            if state is CertificateState.CLOCK_BEHIND:
                behind_s = (self._renewal.validity.begin_at_ms - now_ms) // 1_000
                _log.warning("clock.waiting", behind_s=behind_s)
            elif state is CertificateState.EXPIRED:
                _log.error("certificate.expired", hint="enrol the board again")
        return state

    def _left_s(self, now_ms: int) -> int:
        return (self._renewal.validity.end_at_ms - now_ms) // 1_000
