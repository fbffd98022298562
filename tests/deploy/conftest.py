"""Test boards need root and a few programs; where these are missing, tests skip, but fail in CI."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import require
from tests.deploy.ground import obstacle
from tests.deploy.playbooks import ansible_program


@pytest.fixture(scope="session")
def ansible() -> None:
    """Be sure that Ansible is there."""
    found = ansible_program("ansible-playbook") is not None
    require(found, "ansible-playbook (`make ansible` installs it)")


@pytest.fixture(scope="session")
def boards_can_start(ansible: None) -> None:  # noqa: ARG001 - both are needed
    """Be sure that boards can start on this machine."""
    why = obstacle()
    if why is None:
        return
    if os.environ.get("CI"):
        pytest.fail(f"no board can start here, and CI is set: {why}")
    pytest.skip(f"no board can start here: {why}")


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of archives of wheels: one of all the processes of a run."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "wheelhouse"
