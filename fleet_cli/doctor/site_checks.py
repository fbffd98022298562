"""What a broker's configuration means for a fleet; nothing is read here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from fleet_cli.acl_file import render_acl
from fleet_cli.doctor.board_checks import check_clock, judged_certificate
from fleet_cli.doctor.finding import Finding, fault, good, note
from fleet_cli.doctor.site_facts import Listener, SiteFacts
from fleet_protocol.access import Identity
from fleet_protocol.messages import ID_PATTERN
from fleet_protocol.topics import DEFAULT_ROOT, Role, Topics

_QUEUED_LEAST: Final = 10_000
_QUEUED_USUAL: Final = 1_000
_INFLIGHT_LEAST: Final = 100
_INFLIGHT_USUAL: Final = 20
_ZERO_IS_NONE_BEFORE: Final = (2, 0, 16)
_LISTED_MOST: Final = 3


def check_site(facts: SiteFacts, *, root: str = DEFAULT_ROOT) -> list[Finding]:
    """Judge a broker's folder."""
    anew = f"write it anew: fleet pki broker {facts.folder}, and restart the broker"
    return [
        *_limits(facts, anew),
        *(finding for one in facts.config.listeners for finding in _port(facts, one, anew)),
        *_access(facts, Topics(root), anew),
        *_certificates(facts),
        *_reached(facts),
        check_clock(is_synced=facts.is_clock_synced),
    ]


def _limits(facts: SiteFacts, anew: str) -> Iterator[Finding]:
    settings = facts.config.settings
    queued = int(settings.get("max_queued_messages", _QUEUED_USUAL))
    name = "broker max_queued_messages"
    if queued == 0 and facts.version is not None and facts.version < _ZERO_IS_NONE_BEFORE:
        yield fault(name, "0, which is `nothing` before Mosquitto 2.0.16, not `no limit`", anew)
    elif 0 < queued < _QUEUED_LEAST:
        yield fault(name, f"{queued}: what is beyond is dropped, and nobody is told", anew)
    else:
        yield good(name, str(queued))
    inflight = int(settings.get("max_inflight_messages", _INFLIGHT_USUAL))
    name = "broker max_inflight_messages"
    if 0 < inflight < _INFLIGHT_LEAST:
        yield note(name, f"{inflight}: the dispatcher waits for the broker", anew)
    else:
        yield good(name, str(inflight))
    if settings.get("set_tcp_nodelay") == "true":
        yield good("broker set_tcp_nodelay", "true")
    else:
        why = "not set: a request and its response take 44 ms more"
        yield note("broker set_tcp_nodelay", why, anew)
    if settings.get("persistence") == "true":
        yield good("broker persistence", "true")
    else:
        why = "not set: a restart forgets sessions and what waits in them; nothing is lost for good"
        yield note("broker persistence", why, anew)


def _is_good_tls_1_2(own: Mapping[str, str]) -> bool:
    """Microcontrollers know nothing newer; without old ciphers it is as good."""
    ciphers = own.get("ciphers", "").split(":")
    is_new_key_each = all(one.startswith("ECDHE+") for one in ciphers)
    return own.get("tls_version") == "tlsv1.2" and is_new_key_each


def _port(facts: SiteFacts, one: Listener, anew: str) -> Iterator[Finding]:
    everywhere, own = facts.config.settings, one.settings
    name = f"broker port {one.port}"
    holes = []
    if {**everywhere, **own}.get("allow_anonymous", "false") != "false":
        holes.append("anybody may come in (allow_anonymous)")
    by_certificate = own.get("require_certificate") == "true"
    if "certfile" not in own:
        holes.append("no TLS: passwords and prompts are in plain text")
    elif own.get("tls_version") != "tlsv1.3" and (by_certificate or not _is_good_tls_1_2(own)):
        holes.append("older TLS than 1.3 is taken")
    if by_certificate and own.get("use_identity_as_username") != "true":
        holes.append("a certificate does not say who somebody is (use_identity_as_username)")
    if by_certificate and "crlfile" not in own:
        holes.append("revoked certificates are let in (crlfile)")
    if not by_certificate and "password_file" not in {**everywhere, **own}:
        holes.append("neither certificate nor password is asked for")
    if "acl_file" not in {**everywhere, **own}:
        holes.append("everybody may do everything (acl_file)")
    if holes:
        yield fault(name, "; ".join(holes), anew)
    else:
        yield good(name, "by certificate" if by_certificate else "by password or token")


def _access(facts: SiteFacts, topics: Topics, anew: str) -> Iterator[Finding]:
    """Compare each user's lines with what the catalogue grants one of its roles."""
    name = "access list"
    if facts.acl is None:
        return
    holes = acl_holes(facts.acl, topics)
    strangers = sorted(set(facts.passwords) - set(_users(facts.acl)))
    if strangers:
        holes.append(f"{_some(strangers)} have a password and no lines")
    if holes:
        yield fault(name, _some(holes), f"{anew} with --reload; try it out: fleet acl test")
    else:
        yield good(name, f"{len(_users(facts.acl))} identities, each with its role's lines alone")


def acl_holes(text: str, topics: Topics) -> list[str]:
    """Return what an access list allows that no role is granted.

    Each user's lines must be those of one role for that very name, or those of one who joins.
    """
    holes, users = [], _users(text)
    nobody = users.pop("", [])
    holes += [f"`{line}` holds for everybody" for line in nobody]
    for user, lines in users.items():
        if not any(lines == known for known in _known(user, topics)):
            holes.append(f"{user} has lines that no role has")
    return holes


def _users(text: str) -> dict[str, list[str]]:
    """Return the lines of each user; under an empty name those that hold for all."""
    users: dict[str, list[str]] = {}
    user = ""
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word == "user":
            user = rest.strip()
            users.setdefault(user, [])
        else:
            users.setdefault("" if word == "pattern" else user, []).append(line)
    return users


def _known(user: str, topics: Topics) -> Iterator[list[str]]:
    """Yield the lines that each role would have under this name."""
    worker = user.removesuffix(".join")
    if worker != user:
        if re.match(ID_PATTERN, worker):
            yield _users(render_acl(topics, (), joining=(worker,))).get(user, [])
        return
    if re.match(ID_PATTERN, user):
        for role in Role:
            yield _users(render_acl(topics, (Identity(role=role, id=user),))).get(user, [])


def _certificates(facts: SiteFacts) -> Iterator[Finding]:
    anew = f"fleet pki broker {facts.folder} --user mosquitto --reload"
    name = "broker certificate"
    if facts.certificate_error:
        yield fault(name, facts.certificate_error, anew)
    elif facts.certificate is not None:
        late = f"{anew}, once a month: edgefleet-broker-renewal.timer does that"
        yield judged_certificate(name, facts.certificate, facts.now_ms, expired=anew, late=late)
    if facts.revocations is not None:
        if facts.revocations.end_ms <= facts.now_ms:
            why = "it lapsed, and the broker turns everybody away"
            yield fault("revocation list", why, anew)
        else:
            yield good("revocation list", "in force")


def _reached(facts: SiteFacts) -> Iterator[Finding]:
    for link in facts.links:
        name = f"broker port {link.port} open"
        if link.error:
            fix = "systemctl start edgefleet-broker; why it ended: journalctl -u edgefleet-broker"
            yield fault(name, link.error, fix)
        else:
            yield good(name, f"{link.host} answers")
    unknown = [link.host for link in facts.names if not link.addresses]
    if unknown:
        yield note(
            "broker names",
            f"{_some(unknown)} in its certificate are known to no name server here",
            "put them into your name server; boards look them up",
        )
    elif facts.hosts:
        yield good("broker names", ", ".join(facts.hosts))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED_MOST} more" if len(names) > _LISTED_MOST else ""
    return "; ".join(names[:_LISTED_MOST]) + more
