"""The examples' pages: every example is in the table, every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PAGES = sorted(EXAMPLES.rglob("README.md"))
FOLDERS = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())


def test_every_example_has_a_page_and_a_line_in_the_table() -> None:
    rows = re.findall(
        r"^\| \[(\w+)\]\(\1/README\.md\) \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE
    )
    assert sorted(rows) == FOLDERS
    assert {page.parent.name for page in PAGES} == {*FOLDERS, "examples"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_file_that_a_page_names_is_in_its_folder(page: Path) -> None:
    for name in re.findall(r"`([\w.]+\.(?:sh|ino|json|yaml|example\.\w+))`", page.read_text()):
        assert (page.parent / name).exists(), name
