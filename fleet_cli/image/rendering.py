"""Writes a card's folder: whole or not at all, and its secrets for their owner alone."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Final

import msgspec

from fleet_cli.image.board_files import board_files
from fleet_cli.image.card import BoardKind, Card
from fleet_cli.image.cloud_init import meta_data, network_config, user_data
from fleet_cli.image.first_run import first_run
from fleet_cli.image.payloads import copy_wheels, is_url, pack_model
from fleet_pki.files import make_folder, write_file
from fleet_protocol.errors import ConfigError

PAYLOADS: Final = "edgefleet"
"""The folder of archives, to be copied as a whole."""


class CardFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the folder.

    Attributes:
        secret: Whoever reads it can join as this board, or use its wireless network.
    """

    path: str
    size_bytes: int
    secret: bool


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """What lets a board in, once.

    Attributes:
        ca_pem: Whom the board trusts.
        note: A line for whoever opens a file: until when the token is good.
    """

    ca_pem: bytes
    token: str
    note: str

    def __repr__(self) -> str:
        return f"Ticket({self.note!r})"


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """Where the archives on the card come from; None: there is no such archive on it."""

    wheels: str | None = None
    model: str | None = None


def write_card(
    card: Card, sources: Sources, ticket: Ticket, out: Path, *, again: bool
) -> list[CardFile]:
    """Write the folder of a card and return what is in it.

    Args:
        card: What the operator decided.
        sources: Files and folders to be put on it.
        ticket: What lets the board in.
        out: The folder.
        again: A folder that is there is replaced.

    Raises:
        ConfigError: `out_exists`; or it cannot be written.
    """
    if out.exists() and not again:
        raise ConfigError(
            f"{out} exists already",
            code="out_exists",
            hint="name another folder with --out DIR, or replace it with --again",
        )
    half = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        make_folder(half)
        card = _put_payloads(card, sources, half)
        laid = board_files(card, ca_pem=ticket.ca_pem.decode(), token=ticket.token)
        texts = {
            "user-data": user_data(card, laid, note=ticket.note),
            "network-config": network_config(card),
            "meta-data": meta_data(card, instance=secrets.token_hex(4)),
        }
        if card.board is BoardKind.RPI:
            texts["firstrun.sh"] = first_run(card, laid, note=ticket.note)
        for name, text in texts.items():
            write_file(half / name, text.encode())
        shutil.rmtree(out, ignore_errors=True)
        half.rename(out)
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written: {error.strerror}", hint="check the path and the space left"
        ) from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return _contents(card, out)


def _put_payloads(card: Card, sources: Sources, folder: Path) -> Card:
    """Put archives on the card; return the card that knows the model's hash."""
    if sources.wheels is not None and not is_url(sources.wheels):
        make_folder(folder / PAYLOADS)
        copy_wheels(Path(sources.wheels), folder / PAYLOADS / "wheels.tar")
    if card.model is not None and sources.model is not None and not is_url(sources.model):
        make_folder(folder / PAYLOADS)
        sha256 = pack_model(Path(sources.model), folder / PAYLOADS / "model.tar")
        card = msgspec.structs.replace(
            card, model=msgspec.structs.replace(card.model, sha256=sha256)
        )
    return card


def _contents(card: Card, out: Path) -> list[CardFile]:
    secret = {"user-data", "firstrun.sh"} | ({"network-config"} if card.wifi else set())
    return [
        CardFile(
            path=str(path.relative_to(out)),
            size_bytes=path.stat().st_size,
            secret=path.name in secret,
        )
        for path in sorted(out.rglob("*"))
        if path.is_file()
    ]
