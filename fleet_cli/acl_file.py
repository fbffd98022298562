"""An access list as Mosquitto reads it, and the lists of identities that people write."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import click
import msgspec

from fleet_protocol.access import (
    Access,
    Grant,
    Identity,
    check_identities,
    grants_of,
    join_user,
    joining_grants,
)
from fleet_protocol.errors import ConfigError, cause_of
from fleet_protocol.topics import Topics

_WORDS: Final = {Access.PUBLISH: "write", Access.SUBSCRIBE: "read"}
_HEADER: Final = """\
# Written by `fleet acl render` from the topic catalogue: changes here are lost.
# Who is not named may do nothing, and who is named nothing that is not listed.
"""


def render_acl(
    topics: Topics, identities: Iterable[Identity], *, joining: Iterable[str] = ()
) -> str:
    """Return the text of a Mosquitto `acl_file`.

    Every identity has lines of its own, and there is no `pattern`: a pattern holds for all users,
    so a viewer could ask as if it were a device, and one who is taken off the list still might.

    Args:
        topics: Where they are.
        identities: Who is enrolled.
        joining: The workers among them that have a token, and no certificate yet.
    """
    enrolled = (
        _lines(identity.role, identity.id, grants_of(topics, identity))
        for identity in check_identities(identities)
    )
    newcomers = (
        _lines("joins", join_user(worker), joining_grants(topics, worker)) for worker in joining
    )
    return "\n".join((_HEADER, *enrolled, *newcomers))


def _lines(comment: str, user: str, grants: Iterable[Grant]) -> str:
    lines = [f"topic {_WORDS[grant.access]} {grant.filter}" for grant in grants]
    return "\n".join((f"# {comment}", f"user {user}", *lines, ""))


def read_identities(file: Path) -> tuple[Identity, ...]:
    """Return the identities of a list: CSV with a header `role,id`, or a JSON object a line.

    Further columns and fields are ignored.

    Raises:
        ConfigError: It cannot be read; the message names the line.
    """
    try:
        with click.open_file(str(file), encoding="utf-8") as stream:
            text = stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file} cannot be read: {cause_of(error)}", hint="name another file"
        ) from error
    return check_identities(_rows(file, text))


def _rows(file: Path, text: str) -> Iterator[Identity]:
    for number, row in list_rows(file, text):
        try:
            yield msgspec.convert(row, Identity)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"{file}, line {number}: {error}",
                code="invalid_row",
                hint="each line names a role (worker, device, viewer, ...) and an id",
            ) from error


def list_rows(file: Path, text: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield each row of a CSV or JSON-lines text with the number of its line.

    Raises:
        ConfigError: A line is neither.
    """
    if text.lstrip().startswith("{"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield number, _json_row(file, number, line)
        return
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    for row in reader:
        filled = {name: value for name, value in row.items() if name and value}
        yield reader.line_num, {**filled}


def _json_row(file: Path, number: int, line: str) -> dict[str, object]:
    try:
        return msgspec.json.decode(line, type=dict[str, object])
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"{file}, line {number}: {error}", code="invalid_row", hint="write one object a line"
        ) from error
