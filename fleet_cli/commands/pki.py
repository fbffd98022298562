"""`fleet pki`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from fleet_cli.authority_service import AuthorityService, session_of
from fleet_cli.broker_site import PASSWORD_PORT, PORT, Site, reload_broker, write_site
from fleet_cli.connection import Connection, connection_options
from fleet_cli.output import NOTHING, json_option, print_json, print_table, say, tell
from fleet_cli.pki import Authority, PkiFolder, Secret, now_ms, pki_option, write_file
from fleet_client.credentials import password_of
from fleet_pki.authority import found
from fleet_pki.files import PUBLIC_MODE, read_file, read_secret
from fleet_pki.registry import Member
from fleet_pki.sealing import new_key
from fleet_protocol.errors import ConfigError
from fleet_protocol.log import set_up_logging
from fleet_protocol.mqtt import MqttBus
from fleet_protocol.settings import BrokerSettings
from fleet_protocol.systemd import ServiceNotifier
from fleet_protocol.topics import DEFAULT_ROOT, Role, Topics


class MemberView(msgspec.Struct, frozen=True, kw_only=True):
    """An identity as an operator sees it: none of its secrets."""

    id: str
    role: Role
    secret: Secret
    active: bool
    enrolled_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None


@click.group(
    help="""Run the fleet's authority: who belongs to it, and by which certificates.

    docs/security.md tells the whole way.

    \b
    Examples:
      fleet pki init --name hall-7
      fleet pki ls
      fleet pki revoke pi-3
    """
)
def command() -> None:
    """Group the verbs."""


@command.command(
    short_help="Make the authority of a new fleet.",
    help="""Make the authority of a new fleet: a root, and an issuing authority that it signs.

    Only this needs the root's key: put the folder `root` away on a medium of its own. Everybody
    trusts the root, so a lost issuing key can be replaced with it, a lost root cannot.

    \b
    Examples:
      fleet pki init
      fleet pki init --pki /etc/edgefleet/pki --name hall-7 --root-passphrase-file pass
    """,
)
@pki_option
@click.option("--name", default="edgefleet", show_default=True, help="Stands in certificates.")
@click.option(
    "--root-passphrase-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Its first line encrypts the root's key.",
)
@json_option
def init(*, pki: PkiFolder, name: str, root_passphrase_file: Path | None, as_json: bool) -> None:
    """Make an authority."""
    passphrase = None
    if root_passphrase_file is not None:
        passphrase = read_secret(root_passphrase_file).encode()
    found(pki, name, now_ms=now_ms(), passphrase=passphrase)
    facts = {"folder": str(pki), "root": str(pki.root_key.parent)}
    tell(f"made {pki}", facts, as_json=as_json)
    say(f"next: put {pki.root_key.parent} away, then `fleet enroll dispatcher dispatcher`")


@command.command(
    help="""List who is enrolled, by what they are known, and until when.

    \b
    Examples:
      fleet pki ls
      fleet pki ls --json | jq '.members[] | select(.active | not)'
    """
)
@pki_option
@json_option
def ls(*, pki: PkiFolder, as_json: bool) -> None:
    """List members."""
    with Authority(pki) as authority:
        views = [_view(member) for member in authority.members()]
    if as_json:
        print_json({"members": views})
        return
    rows = [
        (
            view.id,
            view.role,
            "active" if view.active else "revoked",
            view.secret,
            _day(view.expires_at_ms),
        )
        for view in views
    ]
    print_table(("id", "role", "state", "secret", "expires (UTC)"), rows, empty="nobody")


@command.command(
    short_help="Take everything from an identity.",
    help="""Take everything from an identity: certificates, password and token.

    It gets no new certificate from now on. The broker turns it away after `fleet pki broker`.

    \b
    Examples:
      fleet pki revoke pi-3
    """,
)
@click.argument("name", metavar="ID")
@pki_option
@json_option
def revoke(name: str, *, pki: PkiFolder, as_json: bool) -> None:
    """Revoke an identity."""
    with Authority(pki) as authority:
        authority.revoke(name, now_ms=now_ms())
    done = f"revoked {name}; next: let the broker know with `fleet pki broker`"
    tell(done, {"id": name, "active": False}, as_json=as_json)


@command.command(
    help="""Sign a board's certificate request (CSR) for its one-time token.

    The key stays on the board: carry the request here and the certificate back. The common name
    must be the id for which the token was made. Once only; the same request again gets the same
    certificate.

    \b
    Examples:
      openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc \\
        -keyout key.pem -subj /CN=pi-1 -out pi-1.csr      on the board
      fleet pki sign pi-1.csr --token-file pi-1/token --out pi-1/cert.pem
    """
)
@click.argument("request", type=click.Path(path_type=Path))
@click.option(
    "--token-file", type=click.Path(path_type=Path), required=True, help="As enrolment wrote it."
)
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), required=True)
@pki_option
@json_option
def sign(request: Path, *, token_file: Path, out: Path, pki: PkiFolder, as_json: bool) -> None:
    """Redeem a token."""
    wanted = read_file(request, hint="name the board's certificate request")
    token = read_secret(token_file)
    with Authority(pki) as authority:
        chain = authority.redeem(token, wanted, now_ms=now_ms())
    write_file(out, chain, mode=PUBLIC_MODE)
    tell(f"wrote {out}", {"file": str(out)}, as_json=as_json)


@command.command(
    help="""Make a key for what lies on disks: model files, prompts in stores.

    FILE then has one line, for its owner alone. To change keys, put a new line before the old
    ones: the first seals, all of them open. Who loses the last copy loses what it sealed.

    \b
    Examples:
      fleet pki key models.key
      python -m models encrypt NAME --key-file models.key --out sealed
    """
)
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def key(file: Path, *, as_json: bool) -> None:
    """Make a key."""
    if file.exists():
        raise ConfigError(
            f"{file} is there already",
            code="out_exists",
            hint="name another file: what was sealed with a lost key is lost",
        )
    write_file(file, f"{new_key()}\n".encode())
    tell(f"wrote {file}", {"file": str(file)}, as_json=as_json)


@command.command(
    short_help="Write what a Mosquitto in production reads.",
    help="""Write what a Mosquitto in production reads: configuration, access list, certificates.

    TLS 1.3, a certificate asked of everybody (port 8883; its common name is the user), passwords
    on a port of their own (8884) once somebody has one, the same access list for both. Run it
    again with --reload after each enrolment and revocation, and once a month for the broker's own
    certificate (365 d): Mosquitto reads it all anew and drops no client.

    \b
    Examples:
      fleet pki broker /etc/mosquitto/fleet --host broker.example --user mosquitto
      mosquitto -c /etc/mosquitto/fleet/mosquitto.conf
      fleet pki broker /etc/mosquitto/fleet --user mosquitto --reload
    """,
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--host", "hosts", multiple=True, help="Name or address of the broker; repeatable.")
@click.option("--port", default=PORT, show_default=True, help="For certificates.")
@click.option("--password-port", default=PASSWORD_PORT, show_default=True, help="For passwords.")
@click.option(
    "--password-tls",
    type=click.Choice(["1.2", "1.3"]),
    help="Oldest TLS there: 1.2 for microcontrollers.  [so far; at first 1.3]",
)
@click.option("--address", help="Listen there alone.  [all interfaces]")
@click.option("--user", help="Whom Mosquitto runs as; gets the folder.")
@click.option(
    "--log",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Log there for `fleet audit broker`, from the next restart on.",
)
@click.option("--root", metavar="TOPIC", default=DEFAULT_ROOT, help="Topic root.")
@click.option("--reload", is_flag=True, help="Let the running Mosquitto read it.")
@pki_option
@json_option
def broker(
    *, hosts: tuple[str, ...], reload: bool, pki: PkiFolder, as_json: bool, **where: Any
) -> None:
    """Write the broker's folder."""
    site = Site(topics=Topics(where.pop("root")), **where)
    with Authority(pki) as authority:
        written = write_site(authority, site, hosts=hosts, now_ms=now_ms())
        has_dispatcher = any(
            member.is_active and member.identity.role is Role.DISPATCHER
            for member in authority.members()
        )
    if reload:
        reload_broker(site.folder)
    if as_json:
        print_json(written)
    else:
        say(f"wrote {written.folder}: {written.identities} identities, {written.revoked} revoked")
    if not has_dispatcher:
        say("note: nobody is enrolled as dispatcher: fleet enroll dispatcher dispatcher")


@command.command(
    help="""Renew the certificates of workers, until it is stopped.

    Workers ask over the connection that their present certificate opened, with a third of its
    life left. This is a program of its own, beside the dispatcher, so that the key that can make
    anybody lies in no process that reads prompts. Enrol it once as authority.

    \b
    Examples:
      fleet enroll authority authority --out keys
      fleet pki serve --broker mqtts://broker.example:8883 --identity keys/authority
    """
)
@connection_options
@pki_option
def serve(connection: Connection, /, *, pki: PkiFolder) -> None:
    """Renew."""
    set_up_logging()
    asyncio.run(_serve(connection.broker, pki))


async def _serve(broker: BrokerSettings, pki: PkiFolder) -> None:
    topics = Topics(broker.root)
    session = session_of(topics, broker.user or "authority")
    bus = MqttBus(broker, session, password=password_of(broker))
    async with bus:
        service = AuthorityService(Authority(pki), bus, topics, wall_ms=now_ms)
        work = asyncio.create_task(service.run(), name="authority")
        beat = asyncio.create_task(_stay_alive(), name="alive")
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, work.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await work
        beat.cancel()


async def _stay_alive() -> None:
    """Tell a service manager that the loop turns; it waits for requests most of its life."""
    notifier = ServiceNotifier.of(os.environ)
    while True:
        notifier.alive()
        await asyncio.sleep(notifier.beat_s)


def _view(member: Member) -> MemberView:
    secret = Secret.CERTIFICATE
    if member.password_hash is not None:
        secret = Secret.TOKEN if member.identity.role is Role.WORKER else Secret.PASSWORD
    return MemberView(
        id=member.identity.id,
        role=member.identity.role,
        secret=secret,
        active=member.is_active,
        enrolled_at_ms=member.enrolled_at_ms,
        expires_at_ms=member.expires_at_ms,
        revoked_at_ms=member.revoked_at_ms,
    )


def _day(at_ms: int | None) -> str:
    if at_ms is None:
        return NOTHING
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at_ms / 1_000))
