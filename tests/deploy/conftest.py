"""Test boards need root and a few programs; where these are missing, tests skip, but fail in CI."""

from __future__ import annotations

import os

import pytest

from tests.conftest import require
from tests.deploy.base_image import missing_programs
from tests.deploy.playbooks import ansible_program


@pytest.fixture(scope="session")
def ansible() -> None:
    """Be sure that Ansible is there."""
    found = ansible_program("ansible-playbook") is not None
    require(found, "ansible-playbook (`make ansible` installs it)")


@pytest.fixture(scope="session")
def boards_can_start(ansible: None) -> None:  # noqa: ARG001 - both are needed
    """Be sure that boards can start on this machine."""
    require(os.geteuid() == 0, "a test board needs root, which")
    missing = missing_programs()
    require(not missing, ", ".join(missing))
