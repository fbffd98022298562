"""The rules of WCAG that a page must keep, as axe reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from playwright.sync_api import Page

from tests.conftest import require

AXE: Final = Path("dashboard/node_modules/axe-core/axe.min.js")
RULES: Final = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def broken_by(page: Page) -> list[str]:
    """Return which rules a page breaks as it is shown, with the first three places of each."""
    require(AXE.exists(), "axe-core (make dashboard)")
    page.evaluate(AXE.read_text())
    found = page.evaluate("rules => axe.run({runOnly: rules})", RULES)
    return [
        f"{one['help']}: {node['html'][:200]}"
        for one in found["violations"]
        for node in one["nodes"][:3]
    ]
