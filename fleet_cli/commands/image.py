"""`fleet image`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from fleet_cli.image.card import (
    BoardKind,
    Card,
    Wifi,
    check_broker,
    check_host,
    check_user,
    check_version,
    read_public_keys,
    wifi_of,
)
from fleet_cli.image.payloads import model_of, wheels_of
from fleet_cli.image.rendering import CardFile, Sources, Ticket, write_card
from fleet_cli.output import json_option, print_json, say
from fleet_cli.pki import Authority, Enrolment, Secret, now_ms, parse_span, pki_option
from fleet_pki.authority import TOKEN_LIFE, Bundle
from fleet_pki.files import read_file, read_secret
from fleet_protocol import __version__
from fleet_protocol.access import Identity
from fleet_protocol.errors import ConfigError
from fleet_protocol.topics import Role

INDEX: Final = "index"
LABEL_MOST: Final = 128
_ORIGIN: Final = "Written by `fleet image render`"


class Rendered(msgspec.Struct, frozen=True, kw_only=True):
    """What was made.

    Attributes:
        expires_at_ms: Until when the board must have joined; None: its enrolment knows.
    """

    host: str
    board: BoardKind
    folder: str
    files: list[CardFile]
    expires_at_ms: int | None


@click.group(
    help="""Make what a freshly written card needs for its board to join the fleet by itself.

    docs/first-boot.md tells the whole way, from a blank card to the first answer.

    \b
    Examples:
      fleet image render --board rpi --host pi-7 --broker mqtts://broker.example:8883
    """
)
def command() -> None:
    """Group the verbs."""


@command.command(
    short_help="Write the files of a board's first boot.",
    help="""Write the files of a board's first boot: cloud-init's, and Raspberry Pi OS Bookworm's.

    They name the board, let you in by your SSH key, install edgefleet and its service, and have the
    board join with a one-time token that is made here. Copy all of them onto the card's first
    partition, which computers show as `bootfs`. Whoever reads them can join as that board: they
    are their owner's alone (0600), and the card is as good as a key until the board has joined.

    --wheels is an archive that the playbook `wheelhouse` made, for boards without the internet,
    or the URL of one; else the board asks the package index. --model is the folder of a built
    model, or the URL of an archive of one; a board without a model repeats prompts (--engine echo).

    \b
    Examples:
      fleet image render --board rpi --host pi-7 --broker mqtts://broker.example:8883 \\
        --ssh-key ~/.ssh/id_ed25519.pub --model ~/.cache/edgefleet/models/NAME/VERSION
      fleet image render --board rpi --host pi-8 --broker mqtts://broker.example:8883 \\
        --wheels wheelhouse/edgefleet-0.1.0-edge-3.13-aarch64.tar --engine echo --valid 7d --json
    """,
)
@click.option("--board", type=click.Choice([str(kind) for kind in BoardKind]), required=True)
@click.option("--host", required=True, help="The board's name, and its id in the fleet.")
@click.option("--broker", metavar="URL", required=True, help="mqtts://HOST:PORT, as boards see it.")
@click.option("--join-at", metavar="URL", help="Where tokens are taken.  [the broker, port 8884]")
@click.option("--user", default="pi", show_default=True, help="Who may log in on the board.")
@click.option(
    "--ssh-key",
    type=click.Path(path_type=Path),
    default=Path("~/.ssh/id_ed25519.pub"),
    show_default=True,
    help="Your public key, or several, one a line.",
)
@click.option("--engine", type=click.Choice(["onnx", "echo"]), default="onnx", show_default=True)
@click.option("--model", metavar="DIR|URL", help="What the board answers with.")
@click.option("--model-sha256", metavar="HEX", help="Of the archive at the URL.")
@click.option("--wheels", metavar="FILE|URL", default=INDEX, show_default=True)
@click.option("--wheels-sha256", metavar="HEX", help="Of the archive at the URL.")
@click.option("--version", default=__version__, show_default=True, help="Of edgefleet.")
@click.option("--python", default="/usr/bin/python3", show_default=True, help="On the board.")
@click.option("--label", "labels", metavar="NAME[=VALUE]", multiple=True, help="Repeatable.")
@click.option("--wifi", metavar="NAME", help="Of the wireless network, where there is no cable.")
@click.option("--wifi-country", metavar="XX", default="", help="Where its radio rules are.")
@click.option("--wifi-password-file", type=click.Path(path_type=Path), help="Its first line.")
@click.option(
    "--enrolled",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="What `fleet enroll worker HOST --token` wrote, where the authority is elsewhere.",
)
@click.option("--valid", metavar="SPAN", help="Life of the token: 90min, 72h, 7d.  [24h]")
@click.option("--again", is_flag=True, help="Anew: folder and identity; what it had before ends.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="[the board's name]")
@pki_option
@json_option
def render(*, as_json: bool, **given: Any) -> None:
    """Render a card."""
    enrolled, again, pki = (given.pop(name) for name in ("enrolled", "again", "pki"))
    life = parse_span(given.pop("valid")) or TOKEN_LIFE
    out = given.pop("out")
    card = _card(**given)
    wheels = None if given["wheels"] == INDEX else given["wheels"]
    sources = Sources(wheels=wheels, model=given["model"])
    out = (out or Path(card.host)).absolute()
    if enrolled is not None:
        rendered = _by_folder(card, sources, out, enrolled, again=again)
    else:
        with Authority(pki) as authority:
            rendered = _by_authority(card, sources, out, authority, life=life, again=again)
    if as_json:
        print_json(rendered)
    else:
        _tell(rendered)


def _card(*, board: str, host: str, user: str, ssh_key: Path, broker: str, **rest: Any) -> Card:
    keys = ssh_key.expanduser()
    text = read_file(keys, hint="name your public key with --ssh-key FILE").decode(
        "utf-8", "replace"
    )
    join_at = rest["join_at"]
    if rest["engine"] == "onnx" and rest["model"] is None:
        raise ConfigError(
            "the board would have no model to answer with",
            code="no_model",
            hint="add --model DIR, the folder of a built one, or --engine echo",
        )
    if not rest["python"].startswith("/"):
        raise ConfigError(f"{rest['python']!r} is no path", hint="name it as /usr/bin/python3.11")
    model = rest["model"]
    return Card(
        board=BoardKind(board),
        host=check_host(host),
        user=check_user(user),
        ssh_keys=read_public_keys(text, origin=keys),
        broker=check_broker(broker),
        join_at=None if join_at is None else check_broker(join_at),
        engine=rest["engine"],
        version=check_version(rest["version"]),
        python=rest["python"],
        labels=dict(_label(label) for label in rest["labels"]),
        wifi=_wifi(rest["wifi"], rest["wifi_country"], rest["wifi_password_file"]),
        wheels=_wheels(rest["wheels"], rest["wheels_sha256"], version=rest["version"]),
        model=None if model is None else model_of(model, rest["model_sha256"]),
    )


def _wheels(source: str, sha256: str | None, *, version: str) -> Any:
    return None if source == INDEX else wheels_of(source, sha256, version=version)


def _wifi(ssid: str | None, country: str, password_file: Path | None) -> Wifi | None:
    if ssid is None:
        return None
    if password_file is None:
        raise ConfigError(
            "nobody says the wireless network's passphrase",
            hint="put it on the first line of a file: --wifi-password-file FILE",
        )
    return wifi_of(ssid, read_secret(password_file.expanduser()), country.upper())


def _label(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not 0 < len(name) <= LABEL_MOST or not text.isprintable():
        raise ConfigError(f"{text[:64]!r} is no label", hint="write NAME or NAME=VALUE")
    return name, value


def _by_folder(card: Card, sources: Sources, out: Path, enrolled: Path, *, again: bool) -> Rendered:
    """Make a card for a worker that was enrolled elsewhere."""
    token = read_secret(enrolled / "token")
    _check_token(token, card.host, enrolled)
    ca_pem = read_file(enrolled / "ca.pem", hint="name the folder that enrolment wrote")
    ticket = Ticket(ca_pem=ca_pem, token=token, note=f"{_ORIGIN} for {card.host}: secret.")
    files = write_card(card, sources, ticket, out, again=again)
    return _result(card, out, files, expires_at_ms=None)


def _by_authority(
    card: Card, sources: Sources, out: Path, authority: Authority, *, life: timedelta, again: bool
) -> Rendered:
    """Enrol a worker and make its card; it is enrolled only once the card is written."""
    at_ms = now_ms()
    expires_at_ms = at_ms + life // timedelta(milliseconds=1)
    note = f"{_ORIGIN} for {card.host}: secret, good until {_utc(expires_at_ms)}."
    files: list[CardFile] = []

    def keep(bundles: Sequence[Bundle]) -> None:
        made = bundles[0].files
        ticket = Ticket(ca_pem=made["ca.pem"], token=made["token"].decode().strip(), note=note)
        files.extend(write_card(card, sources, ticket, out, again=again))

    identity = Identity(role=Role.WORKER, id=card.host)
    wish = Enrolment(identity=identity, secret=Secret.TOKEN, life=life)
    authority.enrol([wish], keep, now_ms=at_ms, again=again)
    return _result(card, out, files, expires_at_ms=expires_at_ms)


def _check_token(token: str, host: str, folder: Path) -> None:
    if token.partition(".")[2].partition(".")[0] != host:
        raise ConfigError(
            f"{folder} is not what was made for {host}",
            code="wrong_token",
            hint=f"fleet enroll worker {host} --token",
        )


def _result(card: Card, out: Path, files: list[CardFile], *, expires_at_ms: int | None) -> Rendered:
    return Rendered(
        host=card.host, board=card.board, folder=str(out), files=files, expires_at_ms=expires_at_ms
    )


def _tell(rendered: Rendered) -> None:
    say(f"wrote {rendered.folder}: whoever reads it can join as {rendered.host}, so keep it so")
    if rendered.expires_at_ms is not None:
        say(f"{rendered.host} must have joined by {_utc(rendered.expires_at_ms)}")
    say("next: let the broker know, on its host: fleet pki broker FOLDER --reload")
    if rendered.board is BoardKind.RPI:
        say(f"then:  copy all of it onto the card's partition `bootfs`: {rendered.folder}/.")
    else:
        say(f"then:  see docs/first-boot.md for where a Jetson reads {rendered.folder} from")


def _utc(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at_ms / 1_000))
