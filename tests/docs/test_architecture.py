"""ARCHITECTURE.md says what the code does."""

import re
from pathlib import Path

from docs.render import render_roles, render_situations, render_topics

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
PARTS = ("dispatcher", "broker")


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


def test_every_folder_and_module_of_the_layout_exists() -> None:
    floors = [ROOT, ROOT, ROOT]
    """The folder that names of each indentation are in."""
    for line in filter(str.strip, TEXT.split("```")[3].splitlines()):
        names = re.split(r"\s{2,}", line.strip())[0].split()
        depth = min(len(line) - len(line.lstrip()), 4) // 2
        for name in names:
            path = floors[depth] / name
            found = (path, path.with_suffix(".py"), *floors[depth].glob(f"{name}.py"))
            assert any(one.exists() for one in found), line
            if name.endswith("/") and depth < len(floors) - 1:
                floors[depth + 1 :] = [path] * (len(floors) - depth - 1)


def test_the_kills_that_are_told_of_are_the_drills() -> None:
    page = (ROOT / "docs" / "drill.md").read_text().partition("## Measured")[2]
    rows = [line for line in page.splitlines() if "| 0 |" in line]
    kills = [sum(int(n) for n in re.findall(rf"{part} (\d+)", "".join(rows))) for part in PARTS]
    jobs = sum(int(row.split("|")[4].replace(",", "")) for row in rows)
    told = f"{kills[0]} kill -9 of the dispatcher and {kills[1]} of the broker, {jobs:,} accepted"
    for name in ("README.md", "docs/why.md"):
        assert told in " ".join((ROOT / name).read_text().split()), f"{name}: {told}"
