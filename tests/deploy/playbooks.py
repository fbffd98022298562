"""Playbooks against test boards, as an operator runs them: from their network, over SSH."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.deploy.base_image import OPERATOR
from tests.deploy.board_lab import Board, BoardLab
from tests.deploy.warden import REPOSITORY

ANSIBLE: Final = REPOSITORY / "deploy/ansible"
_RECAP: Final = re.compile(
    r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE
)


def ansible_program(name: str) -> str | None:
    """Return the path of one of Ansible's programs; `make ansible` installs them."""
    mine = REPOSITORY / ".venv-ansible/bin" / name
    return str(mine) if mine.exists() else shutil.which(name)


class Recap:
    """What a playbook came to, by host."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.returncode = done.returncode
        self.text = done.stdout + done.stderr
        found = _RECAP.findall(done.stdout)
        self.changed = {host: int(changed) for host, _, changed, _, _ in found}
        self.failed = {host for host, _, _, _, failed in found if int(failed)}
        self.unreachable = {host for host, _, _, unreachable, _ in found if int(unreachable)}

    def __repr__(self) -> str:
        return f"Recap({self.returncode}, changed={self.changed}, failed={self.failed})"


class Operator:
    """An operator's machine on the boards' network: inventory, keys, the fleet's root.

    Args:
        lab: The boards.
        cloud: Which of them is the cloud host; the others are workers.
        settings: Variables for all hosts.
        own: Further ones, by board.
    """

    def __init__(
        self,
        lab: BoardLab,
        cloud: Board,
        settings: Mapping[str, Any],
        own: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._lab = lab
        self._folder = lab.folder
        self.authority = lab.folder / "pki"
        self.own = own
        self.settings: dict[str, Any] = {
            "ansible_user": OPERATOR,
            "ansible_ssh_private_key_file": str(lab.key),
            "ansible_ssh_common_args": " ".join(cloud.ssh_options()[2:]),
            "fleet_broker_host": cloud.address,
            "fleet_authority": str(self.authority),
            "authority_fleet": str(Path(sys.executable).with_name("fleet")),
            **settings,
        }
        boards = [board for board in lab.boards.values() if board is not cloud]
        inventory = {
            "all": {"vars": self.settings},
            "cloud": {"hosts": {cloud.name: {"ansible_host": cloud.address}}},
            "workers": {
                "hosts": {
                    b.name: {"ansible_host": b.address, **own.get(b.name, {})} for b in boards
                }
            },
        }
        self._inventory = lab.folder / "hosts.json"
        self._inventory.write_text(json.dumps(inventory))

    def play(self, name: str, *options: str, **variables: Any) -> Recap:
        """Run a playbook; the full text goes to a file beside the boards."""
        program = ansible_program("ansible-playbook")
        assert program
        words = [program, "-i", str(self._inventory), f"playbooks/{name}.yml", *options]
        if variables:
            words += ["-e", json.dumps(variables)]
        done = run_ansible(self._lab.on_lan(*words), home=self._folder)
        (self._folder / f"{name}.log").write_text(done.stdout + done.stderr)
        return Recap(done)

    def must_play(self, name: str, *options: str, **variables: Any) -> Recap:
        """Run a playbook that must succeed everywhere."""
        recap = self.play(name, *options, **variables)
        assert recap.returncode == 0, recap.text[-6_000:]
        return recap


def run_ansible(words: Sequence[str], *, home: Path) -> subprocess.CompletedProcess[str]:
    """Run one of Ansible's programs in its folder."""
    environ = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
        "ANSIBLE_HOME": str(home / "ansible"),
        # Two labs have boards with the same addresses: no connection of one may serve the other.
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(home / "cp"),
        "ANSIBLE_NOCOLOR": "1",
        "LC_ALL": "C.UTF-8",
    }
    return subprocess.run(
        list(words), cwd=ANSIBLE, env=environ, capture_output=True, text=True, check=False
    )
