"""Archives for a card: wheels as `wheelhouse.yml` packs them, and a built model."""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
from pathlib import Path
from typing import Final

import msgspec

from fleet_cli.image.card import Payload, fetched
from fleet_pki.files import PUBLIC_MODE
from fleet_protocol.errors import ConfigError
from fleet_protocol.manifest import MANIFEST_NAME, SEALED_SUFFIX

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_WHEELS: Final = re.compile(r"edgefleet-(?P<version>.+)-edge-3\.[0-9]+-[a-z0-9_]+\.tar")
_FOR_PEOPLE: Final = frozenset({"evaluation.json", "MODEL_CARD.md"})
"""Files of an artefact that no board reads."""
_CHUNK_BYTES: Final = 1 << 20


class _ModelName(msgspec.Struct):
    name: str
    version: str


def is_url(text: str) -> bool:
    """Tell whether something is fetched by the board."""
    return text.startswith(("http://", "https://"))


def wheels_of(source: str, sha256: str | None, *, version: str) -> Payload:
    """Return an archive of wheels, in a file or behind a URL.

    Raises:
        ConfigError: `wrong_version`: it is of another one; it is not there; nobody says its hash.
    """
    if is_url(source):
        payload = fetched(source, sha256, option="--wheels")
    else:
        path = _existing(Path(source).expanduser(), hint="make it: playbooks/wheelhouse.yml")
        payload = Payload(name=path.name, sha256=digest_of(path))
    named = _WHEELS.fullmatch(payload.name)
    if named is not None and named["version"] != version:
        raise ConfigError(
            f"{payload.name} holds wheels of {named['version']}, not of {version}",
            code="wrong_version",
            hint=f"add --version {named['version']}, or name another archive",
        )
    return payload


def model_of(source: str, sha256: str | None) -> Payload:
    """Return a model: the name of its folder on the board, and the archive's hash if it is known.

    Raises:
        ConfigError: `no_model`: the folder holds none; `sealed_model`: none that a card can carry.
    """
    if is_url(source):
        payload = fetched(source, sha256, option="--model")
        return msgspec.structs.replace(payload, name=_checked(payload.name.removesuffix(".tar")))
    folder = Path(source).expanduser()
    try:
        manifest = msgspec.json.decode((folder / MANIFEST_NAME).read_bytes(), type=_ModelName)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{folder} holds no model: {error}",
            code="no_model",
            hint="name the folder of a built one: python -m models show NAME",
        ) from error
    if any(path.name.endswith(SEALED_SUFFIX) for path in folder.iterdir()):
        raise ConfigError(
            f"{folder} is sealed with the fleet's key, which belongs on no card",
            code="sealed_model",
            hint="let Ansible put model and key there (worker_model_key), or name the unsealed one",
        )
    return Payload(name=_checked(f"{manifest.name}-{manifest.version}"), sha256="")


def copy_wheels(source: Path, target: Path) -> None:
    """Put an archive of wheels beside what cloud-init reads."""
    shutil.copyfile(source.expanduser(), target)
    target.chmod(PUBLIC_MODE)


def pack_model(source: Path, target: Path) -> str:
    """Pack a model for the card and return the archive's SHA-256."""
    folder = source.expanduser()
    with tarfile.open(target, "w") as archive:
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name not in _FOR_PEOPLE:
                archive.add(path, path.name, filter=_ownerless)
    target.chmod(PUBLIC_MODE)
    return digest_of(target)


def digest_of(path: Path) -> str:
    """Return a file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _ownerless(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = PUBLIC_MODE
    return member


def _existing(path: Path, *, hint: str) -> Path:
    if not path.is_file():
        raise ConfigError(f"{path} is not there", code="no_archive", hint=hint)
    return path


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name[:64]!r} cannot be a model's folder", hint="use letters, digits, . _ + and -"
        )
    return name
