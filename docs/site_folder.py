"""Lays the documents out for the site: `python -m docs.site_folder FOLDER`.

The folder gets README.md, ARCHITECTURE.md, docs/ and examples/ as they lie in the checkout, and
every other file that they link to. So a link is the same one here, on GitHub and on the site.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md")
_LINK = re.compile(r"\]\(([^()#\s]+)")


def lay_out(folder: Path) -> list[Path]:
    """Copy pages and what they link to; return the pages, as they lie in the checkout."""
    shutil.rmtree(folder, ignore_errors=True)
    folders = (sorted((ROOT / name).glob("**/*.md")) for name in ("docs", "examples"))
    pages = [*(ROOT / name for name in PAGES), *(page for pages in folders for page in pages)]
    files = set(pages)
    for page in pages:
        for target in _LINK.findall(page.read_text()):
            at = (page.parent / target).resolve()
            if "://" not in target and at.is_file():
                files.add(at)
    for file in files:
        to = folder / file.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, to)
    return pages


def main() -> None:
    """Lay them out where the command line says."""
    if len(sys.argv) != 2:
        raise SystemExit(
            "name the folder to lay the documents out in: python -m docs.site_folder FOLDER"
        )
    print(f"{len(lay_out(Path(sys.argv[1])))} pages")


if __name__ == "__main__":
    main()
