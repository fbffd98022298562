"""The worker's key and certificate on its disk."""

from __future__ import annotations

from pathlib import Path

from edge_worker.core.renewal import Validity
from edge_worker.ports import IdentityError
from fleet_pki import certificates as c
from fleet_pki.files import make_folder, read_file, write_file
from fleet_protocol.errors import FleetError
from fleet_protocol.messages import WorkerId

_HINT = "check broker.tls in the settings; enrol the board again if the files are gone"


class IdentityFiles:
    """Key and certificate as the settings name them.

    The key stays the same as long as the board does: a certificate can then be replaced in one
    step, and no power cut leaves a key beside another one's certificate.
    """

    def __init__(self, worker: WorkerId, *, certificate: Path, key: Path) -> None:
        self._worker = worker
        self._certificate = certificate
        self._key = key

    @property
    def has_certificate(self) -> bool:
        """Whether there is one, good or not."""
        return self._certificate.exists()

    def make_key(self) -> None:
        """Make a key, if there is none yet; it never leaves the board.

        Raises:
            ConfigError: It cannot be written.
        """
        if not self._key.exists():
            make_folder(self._key.parent)
            write_file(self._key, c.key_pem(c.new_key()))

    def validity(self) -> Validity:
        """Return from when to when the certificate holds."""
        try:
            return _validity(read_file(self._certificate, hint=_HINT))
        except FleetError as error:
            raise IdentityError(str(error), code=error.code, hint=_HINT) from error

    def request(self) -> str:
        """Return a request for the next certificate, as PEM."""
        try:
            key = c.read_key(read_file(self._key, hint=_HINT))
        except FleetError as error:
            raise IdentityError(str(error), code=error.code, hint=_HINT) from error
        return c.make_request(self._worker, key).decode()

    def check(self, chain: str) -> Validity:
        """Return from when to when a new certificate would hold; it must be for our key."""
        try:
            certificate = c.read_certificate(chain.encode())
            key = c.read_key(read_file(self._key, hint=_HINT))
        except FleetError as error:
            raise IdentityError(str(error), code=error.code, hint=_HINT) from error
        if c.public_digest(certificate) != c.key_digest(key.public_key()):
            raise IdentityError("the new certificate is for another key", code="bad_certificate")
        return _validity(chain.encode())

    def replace(self, chain: str) -> Validity:
        """Put a new certificate in the place of the one there is."""
        validity = self.check(chain)
        try:
            write_file(self._certificate, chain.encode())
        except FleetError as error:
            raise IdentityError(str(error), code=error.code, hint=_HINT) from error
        return validity


def _validity(pem: bytes) -> Validity:
    certificate = c.read_certificate(pem)
    return Validity(
        int(certificate.not_valid_before_utc.timestamp() * 1_000),
        int(certificate.not_valid_after_utc.timestamp() * 1_000),
    )
