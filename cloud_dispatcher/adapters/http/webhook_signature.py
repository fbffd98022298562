"""How a call is signed, so that its receiver knows whom it is from. Pure.

The form is Standard Webhooks' (standardwebhooks.com): there are libraries for it in most languages.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Final

PREFIX: Final = "whsec_"
_LABEL: Final = b"edgefleet webhook "


def secret_of(master: str, tenant: str) -> str:
    """Return the secret of a tenant's calls: one file makes all of them, and none tells another."""
    key = hmac.digest(master.encode(), _LABEL + tenant.encode(), hashlib.sha256)
    return PREFIX + base64.b64encode(key).decode()


def signed_headers(secret: str, call: str, body: bytes, *, at_s: int) -> dict[str, str]:
    """Return the headers of a call.

    Args:
        secret: Of `secret_of`.
        call: Names the call; the same in every try.
        body: What is sent.
        at_s: The instant of this try, in seconds: receivers take no old ones.
    """
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signature = hmac.digest(key, f"{call}.{at_s}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": call,
        "webhook-timestamp": str(at_s),
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }
