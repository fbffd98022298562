"""What a store keeps, sealed with a key of the fleet's: prompts, answers, and a job's state."""

from __future__ import annotations

from pathlib import Path

from cloud_dispatcher.adapters.job_rows import encode
from fleet_pki.sealing import KeyRing, RecordSealer


class SealedBlobs:
    """Blobs that are bound to their row and column; what was kept plain before is read as it is.

    Raises:
        ConfigError: The key file cannot be used.
    """

    def __init__(self, key_file: Path) -> None:
        self._sealer = RecordSealer(KeyRing.read(key_file))

    def encode(self, value: object, key: str, column: str) -> bytearray:
        """Return the sealed msgpack of a value."""
        return bytearray(self._sealer.seal(bytes(encode(value)), f"{column}:{key}".encode()))

    def opened(self, data: bytes, key: str, column: str) -> bytes:
        """Return the msgpack; raises SealError."""
        return self._sealer.open(data, f"{column}:{key}".encode())
