"""Wheels for test boards, and releases that never were: the next one, and a broken one."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from fleet_protocol import __version__
from tests.deploy.playbooks import ANSIBLE
from tests.deploy.warden import REPOSITORY

_FILL: Final = ANSIBLE / "roles/wheelhouse/files/fill.sh"
_PARTS: Final = (
    *("fleet_protocol", "fleet_client", "fleet_pki", "fleet_cli"),
    *("cloud_dispatcher", "edge_worker", "models"),
)


@dataclass(frozen=True)
class Target:
    """A kind of host: extras of the package, Python, and machine, as `uname -m` calls it."""

    extras: str
    python: str
    machine: str

    @classmethod
    def hub(cls, python: str) -> Self:
        """Return the cloud host's."""
        return cls("cloud,pki,client", python, "x86_64")

    @classmethod
    def board(cls, python: str, *, machine: str = "x86_64") -> Self:
        """Return a board's."""
        return cls("edge", python, machine)

    @property
    def archive(self) -> str:
        """The name of its archive of wheels."""
        extras = self.extras.replace(",", "+")
        return f"edgefleet-{__version__}-{extras}-{self.python}-{self.machine}.tar"


def fill_wheelhouse(folder: Path, *targets: Target) -> None:
    """Fill it as `wheelhouse.yml` does, from this checkout; needs the internet.

    Others may fill the same folder at the same time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for target in targets:
        words = [str(folder), __version__, str(REPOSITORY), sys.executable]
        with (folder / f"{target.archive}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = subprocess.run(
                [str(_FILL), *words, target.extras, target.python, target.machine],
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr
        assert (folder / target.archive).exists()


def add_release(folder: Path, scratch: Path, version: str, *, breaks: str = "") -> None:
    """Add a release that differs in its name, and in `breaks`, with which its worker ends."""
    source = scratch / version
    source.mkdir(parents=True)
    for part in _PARTS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / part, source / part, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    module = source / "fleet_protocol/__init__.py"
    text = module.read_text()
    assert f'"{__version__}"' in text
    module.write_text(text.replace(f'"{__version__}"', f'"{version}"'))
    if breaks:
        with (source / "edge_worker/app.py").open("a") as code:
            code.write(f"\nraise RuntimeError({breaks!r})\n")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*pip, str(scratch), str(source)], check=True, capture_output=True)
    wheel = scratch / f"edgefleet-{version}-py3-none-any.whl"
    for archive in folder.glob(f"edgefleet-{__version__}-*.tar"):
        fresh = folder / archive.name.replace(__version__, version, 1)
        with tarfile.open(archive) as old, tarfile.open(fresh, "w") as new:
            for member in old:
                if not Path(member.name).name.startswith("edgefleet-"):
                    new.addfile(member, old.extractfile(member))
            new.add(wheel, wheel.name)
