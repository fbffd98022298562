"""Variables of roles: those with a default are declared, and described in the role's page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest
import yaml

_ROLES: Final = Path(__file__).parents[2] / "deploy/ansible/roles"
ROLES: Final = sorted(path.parents[1].name for path in _ROLES.glob("*/defaults/main.yml"))


def described(page: str) -> dict[str, str]:
    """Return the meaning of each variable, as the table of a README has it."""
    return dict(re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", page, re.MULTILINE))


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_declared_and_described(role: str) -> None:
    text = (_ROLES / role / "defaults/main.yml").read_text()
    variables = set(yaml.safe_load(text))
    assert all(name.startswith(f"{role}_") for name in variables)
    specs = yaml.safe_load((_ROLES / role / "meta/argument_specs.yml").read_text())
    declared = specs["argument_specs"]["main"]["options"]
    assert declared.keys() >= variables
    page = described((_ROLES / role / "README.md").read_text())
    assert page.keys() & declared.keys() >= variables
    comments = re.findall(r"((?:^# .*\n)+)(\w+):", text, re.MULTILINE)
    for comment, name in comments:
        assert page[name] == re.sub(r"\s*\n?^# ", " ", comment, flags=re.MULTILINE).strip()
