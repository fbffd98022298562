"""No link in the documents is dead: neither its file nor the heading that it names."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [
    path
    for place in ("*.md", "docs/**/*.md", "examples/**/*.md", "models/**/*.md", "deploy/**/*.md")
    for path in sorted(ROOT.glob(place))
]
FENCE: Final = re.compile(r"^(```+|~~~+).*?^\1", re.MULTILINE | re.DOTALL)
CODE: Final = re.compile(r"`[^`\n]*`")
LINK: Final = re.compile(r"\]\(\s*([^()\s]+(?:\([^()]*\)[^()\s]*)?)(?:\s+\"[^\"]*\")?\s*\)")
ELSEWHERE: Final = ("http://", "https://", "mailto:")


def prose_of(text: str) -> str:
    """Return a page without its blocks of code."""
    return FENCE.sub("", text)


def anchors_of(text: str) -> set[str]:
    """Return the names of a page's headings, as GitHub makes them."""
    names: list[str] = []
    for title in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", prose_of(text), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        same = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in names)
        names.append(f"{name}-{same}" if same else name)
    return {*names, *re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text)}


def links_of(text: str) -> Iterator[str]:
    """Yield where a page's links and pictures lead."""
    yield from LINK.findall(CODE.sub("``", prose_of(text)))
    yield from re.findall(r"^\[[^\]]+\]:\s+(\S+)", prose_of(text), re.MULTILINE)


def fault_of(page: Path, target: str) -> str | None:
    """Say what is wrong with a link; None: nothing is."""
    path, _, anchor = target.partition("#")
    at = (page.parent / path).resolve() if path else page
    if not at.exists():
        return f"{target}: there is no such file"
    if anchor and at.suffix == ".md" and anchor not in anchors_of(at.read_text()):
        return f"{target}: there is no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_of_a_page_is_dead(page: Path) -> None:
    found = [link for link in links_of(page.read_text()) if not link.startswith(ELSEWHERE)]
    faults = [fault for link in found if (fault := fault_of(page, link))]
    assert faults == []


def test_a_dead_file_and_a_dead_heading_are_found(tmp_path: Path) -> None:
    other = tmp_path / "other.md"
    other.write_text("# One\n\n## What `it` does, and why\n\n## One\n")
    page = tmp_path / "page.md"
    text = (
        "[a](other.md) [b](other.md#what-it-does-and-why) [c](other.md#one-1) [d](gone.md)\n"
        "![e](gone.png) [f](other.md#gone) [g](#gone) `[h](code.md)`\n"
        "```\n[i](block.md)\n```\n"
    )
    page.write_text(text)
    links = list(links_of(text))
    assert len(links) == 7
    wrong = {link for link in links if fault_of(page, link)}
    assert wrong == {"gone.md", "gone.png", "other.md#gone", "#gone"}


def test_the_pages_are_there() -> None:
    assert len(PAGES) > 20
    assert sum(len(list(links_of(page.read_text()))) for page in PAGES) > 80
