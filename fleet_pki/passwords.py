"""Passwords for devices that cannot show a certificate, as Mosquitto keeps them."""

from __future__ import annotations

import base64
import hashlib
import os
from typing import Final

# What mosquitto_passwd takes. More would cost the broker at each connection and save nothing: our
# passwords are 256 random bits, not words that could be guessed.
_PBKDF2_ROUNDS: Final = 101


def hash_password(password: str) -> str:
    """Return a password as Mosquitto >= 2.0 stores it: `$7$rounds$salt$hash`, PBKDF2-SHA512."""
    salt = os.urandom(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _PBKDF2_ROUNDS)
    return "$".join(
        (
            "",
            "7",
            str(_PBKDF2_ROUNDS),
            *(base64.b64encode(part).decode() for part in (salt, digest)),
        )
    )
