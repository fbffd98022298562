"""The site has every page, laid out so that links are what they are in the checkout."""

import re
from pathlib import Path
from typing import Final

from docs.site_folder import ROOT, lay_out

NAV: Final = (ROOT / "docs" / "mkdocs.yml").read_text().partition("\nnav:\n")[2]


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r": (\S+\.md)$", NAV, re.MULTILINE))
    pages = {"README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"}
    pages |= {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages - listed == set(), "name it in docs/mkdocs.yml"


def test_what_a_page_links_to_is_laid_out_beside_it(tmp_path: Path) -> None:
    pages = lay_out(tmp_path / "site")
    assert {path.name for path in pages} >= {"README.md", "gateway.md"}
    for name in ("README.md", "docs/images/overview.png", "cloud_dispatcher/example.toml"):
        assert (tmp_path / "site" / name).read_bytes() == (ROOT / name).read_bytes()
    assert not (tmp_path / "site" / "pyproject.toml").exists()
