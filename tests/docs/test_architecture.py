"""ARCHITECTURE.md says what the code does."""

import re
from pathlib import Path

from docs.render import render_roles, render_situations, render_topics

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text()


def test_the_table_of_topics_is_the_catalogue() -> None:
    found = re.search(r"<!-- topics:begin -->\n(.*)<!-- topics:end -->", TEXT, re.DOTALL)
    assert found
    assert found[1] == render_topics(), "run `make docs`"


def test_the_table_of_what_happens_is_what_the_tests_play() -> None:
    page = (ROOT / "docs" / "providers.md").read_text()
    found = re.search(r"<!-- situations:begin -->\n(.*)<!-- situations:end -->", page, re.DOTALL)
    assert found
    assert found[1] == render_situations(), "run `make docs`"


def test_the_table_of_roles_is_the_one_that_is_asked() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    found = re.search(r"<!-- roles:begin -->\n(.*)<!-- roles:end -->", page, re.DOTALL)
    assert found
    assert found[1] == render_roles(), "run `make docs`"


def test_every_folder_of_the_layout_exists() -> None:
    layout = TEXT.split("```")[3]
    folders = re.findall(r"^\s*([a-z_]+/)", layout, re.MULTILINE)
    assert len(folders) >= 8
    for folder in folders:
        assert list(ROOT.glob(f"**/{folder}")), folder
