"""What a worker and the fleet's authority say to each other."""

from __future__ import annotations

from typing import Annotated

import msgspec

from fleet_protocol.messages.words import Code, Id, Message, Note


class CertificateRequest(Message, frozen=True, kw_only=True):
    """A worker asks for a certificate.

    On `csr` for its next one, over the connection that its present one opened; on `join` for its
    first one, over a connection that its token opened.

    Attributes:
        req: Names the request; the reply carries it.
        csr: PKCS #10 as PEM; its common name is the worker's id.
    """

    req: Id
    csr: Annotated[str, msgspec.Meta(max_length=8_192)]


class CertificateReply(Message, frozen=True, kw_only=True):
    """What the authority answers.

    Attributes:
        code: Empty when `ok`.
        message: For people: why not, and what to do next.
        chain: The certificate and those that lead to the root, as PEM.
    """

    req: Id
    ok: bool
    code: Code = ""
    message: Note = ""
    chain: Annotated[str, msgspec.Meta(max_length=12_288)] = ""
