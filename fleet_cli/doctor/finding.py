"""The outcome of a check."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one check.

    Attributes:
        name: What was checked.
        ok: Whether it is as it should be.
        needed: Whether a fleet can work without.
        detail: What was found.
        fix: What to do; empty when `ok`.
    """

    name: str
    ok: bool
    detail: str
    needed: bool = True
    fix: str = ""


def good(name: str, detail: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(name=name, ok=True, detail=detail)


def fault(name: str, detail: str, fix: str) -> Finding:
    """Return that something keeps this host from its work."""
    return Finding(name=name, ok=False, detail=detail, fix=fix)


def note(name: str, detail: str, fix: str) -> Finding:
    """Return that something should be better."""
    return Finding(name=name, ok=False, needed=False, detail=detail, fix=fix)
