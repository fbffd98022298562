"""What the commands about identities share: the authority's folder, spans, and handing out."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from fleet_cli.acl_file import list_rows
from fleet_protocol.access import Identity
from fleet_protocol.errors import ConfigError, cause_of
from fleet_protocol.folders import user_data_folder

try:
    from fleet_pki.authority import Authority, Bundle, Enrolment, PkiFolder
    from fleet_pki.certificates import read_certificate
    from fleet_pki.files import PRIVATE_MODE, PUBLIC_MODE, make_folder, write_file
    from fleet_pki.registry import Secret
except ModuleNotFoundError as missing:
    raise ConfigError(
        f"the package {missing.name} is not installed here",
        code="no_pki",
        hint="pip install 'edgefleet[pki]'",
    ) from missing

_F = TypeVar("_F", bound=Callable[..., Any])
_UNITS_S: Final = {"min": 60, "h": 3_600, "d": 86_400}

__all__ = [
    "Authority",
    "Bundle",
    "Enrolment",
    "PkiFolder",
    "Secret",
    "hand_out",
    "now_ms",
    "parse_span",
    "pki_option",
    "read_certificate",
    "read_enrolments",
    "write_file",
]


def pki_option(command: _F) -> _F:
    """Add `--pki`; the command gets a `PkiFolder` named `pki`."""
    return click.option(
        "--pki",
        metavar="DIR",
        default=lambda: str(user_data_folder(os.environ) / "pki"),
        envvar="EDGEFLEET_PKI",
        callback=lambda _ctx, _param, value: PkiFolder(Path(value)),
        help="Folder of the fleet's authority. [EDGEFLEET_PKI, pki in the user's data folder]",
    )(command)


def now_ms() -> int:
    """Return this machine's time: the authority's clock."""
    return time.time_ns() // 1_000_000


def parse_span(text: str | None) -> timedelta | None:
    """Return the span that `90min`, `72h` or `30d` stands for.

    Raises:
        ConfigError: It is none of these.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,4})(min|h|d)", text)
    if found is None:
        raise ConfigError(f"{text!r} is no span", hint="write 90min, 72h or 30d")
    return timedelta(seconds=int(found[1]) * _UNITS_S[found[2]])


class _Row(msgspec.Struct):
    """A line of a list of identities to enrol."""

    role: str
    id: str
    secret: Secret = Secret.CERTIFICATE


def read_enrolments(file: Path, *, life: timedelta | None) -> list[Enrolment]:
    """Return what a list wants: CSV or JSON lines with `role`, `id` and, if wanted, `secret`.

    Raises:
        ConfigError: It cannot be read; the message names the line.
    """
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file} cannot be read: {cause_of(error)}", hint="name another file"
        ) from error
    return [_enrolment(file, number, row, life) for number, row in list_rows(file, text)]


def _enrolment(
    file: Path, number: int, row: dict[str, object], life: timedelta | None
) -> Enrolment:
    try:
        wanted = msgspec.convert(row, _Row)
        identity = msgspec.convert({"role": wanted.role, "id": wanted.id}, Identity)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{file}, line {number}: {error}",
            code="invalid_row",
            hint="each line names a role, an id and perhaps a secret: certificate, password, token",
        ) from error
    return Enrolment(identity=identity, secret=wanted.secret, life=life)


def hand_out(folder: Path, *, again: bool) -> Callable[[Sequence[Bundle]], None]:
    """Return what writes bundles to folders named by their ids; what fails leaves nothing behind.

    Raises:
        ConfigError: `out_exists`: a folder is there already and may hold another's key.
    """

    def keep(bundles: Sequence[Bundle]) -> None:
        made: list[Path] = []
        try:
            for bundle in bundles:
                _write_bundle(folder / bundle.identity.id, bundle, made, again=again)
        except BaseException:
            for path in made:
                shutil.rmtree(path, ignore_errors=True)
            raise

    return keep


def _write_bundle(path: Path, bundle: Bundle, made: list[Path], *, again: bool) -> None:
    if not path.exists():
        made.append(path)
    elif not again:
        raise ConfigError(
            f"{path} exists already",
            code="out_exists",
            hint="name another folder with --out DIR, or take it away",
        )
    make_folder(path)
    for name, data in bundle.files.items():
        mode = PUBLIC_MODE if name == "ca.pem" else PRIVATE_MODE
        write_file(path / name, data, mode=mode)
