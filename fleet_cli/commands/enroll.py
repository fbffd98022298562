"""`fleet enroll`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from fleet_cli.output import json_option, print_json, print_table
from fleet_cli.pki import (
    Authority,
    Enrolment,
    PkiFolder,
    Secret,
    hand_out,
    now_ms,
    parse_span,
    pki_option,
    read_enrolments,
)
from fleet_protocol.access import Identity
from fleet_protocol.errors import ConfigError
from fleet_protocol.topics import Role


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """Who was enrolled, and where what it needs lies."""

    id: str
    role: Role
    secret: Secret
    folder: str


@click.command(
    help="""Enrol a device, worker, viewer, operator, admin, dispatcher or authority, once there is
    a `fleet pki init`.

    Writes a folder ID with ca.pem and, for their owner alone: key.pem and cert.pem; or with
    --token a one-time token, with which a board gets a certificate for a key that never leaves
    it; or with --password a password, for devices that cannot show a certificate. No secret is
    printed. The broker knows newcomers after `fleet pki broker`.

    A list is CSV with a header `role,id,secret` or one JSON object a line; all or none of it is
    enrolled. Certificates of workers hold 72 h and renew themselves, those of viewers, operators
    and admins 90 d, of devices and dispatchers 365 d; tokens 24 h.

    \b
    Examples:
      fleet enroll worker pi-1 --token
      fleet enroll device door --password
      fleet enroll admin ann --out ~/keys
      fleet enroll --list fleet.csv --out ./keys --json
    """
)
@click.argument(
    "role", metavar="ROLE", type=click.Choice([str(role) for role in Role]), required=False
)
@click.argument("name", metavar="ID", required=False)
@click.option("--list", "file", type=click.Path(path_type=Path), help="Enrol many at once.")
@click.option("--token", is_flag=True, help="A one-time token instead of key and certificate.")
@click.option("--password", is_flag=True, help="A password instead, for a device.")
@click.option("--valid", metavar="SPAN", help="Life of certificate or token: 90min, 72h, 30d.")
@click.option("--again", is_flag=True, help="Anew: what it had before ends at once.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), default=Path())
@pki_option
@json_option
def command(*, again: bool, out: Path, pki: PkiFolder, as_json: bool, **whom: Any) -> None:
    """Enrol."""
    wishes = _wishes(**whom)
    with Authority(pki) as authority:
        authority.enrol(wishes, hand_out(out, again=again), now_ms=now_ms(), again=again)
    _report(wishes, out, as_json=as_json)


def _wishes(
    *,
    role: str | None,
    name: str | None,
    file: Path | None,
    token: bool,
    password: bool,
    valid: str | None,
) -> list[Enrolment]:
    life = parse_span(valid)
    if file is not None:
        if role is not None or token or password:
            raise ConfigError("a list names roles, ids and secrets itself", hint="give only --list")
        return read_enrolments(file, life=life)
    if role is None or name is None:
        raise ConfigError("nobody to enrol", hint="fleet enroll worker ID, or --list FILE")
    secret = _secret(token=token, password=password)
    identity = Identity(role=Role(role), id=name)
    return [Enrolment(identity=identity, secret=secret, life=life)]


def _secret(*, token: bool, password: bool) -> Secret:
    if token and password:
        raise ConfigError("a token or a password, not both", hint="give one of them")
    if token:
        return Secret.TOKEN
    return Secret.PASSWORD if password else Secret.CERTIFICATE


def _report(wishes: list[Enrolment], out: Path, *, as_json: bool) -> None:
    enrolled = [
        Enrolled(
            id=wish.identity.id,
            role=wish.identity.role,
            secret=wish.secret,
            folder=str((out / wish.identity.id).absolute()),
        )
        for wish in wishes
    ]
    if as_json:
        print_json({"enrolled": enrolled})
        return
    rows = [(one.id, one.role, one.secret, one.folder) for one in enrolled]
    print_table(("id", "role", "secret", "folder"), rows, empty="the list is empty")
