"""Pictures of the page, for whoever wants to look at it."""

from __future__ import annotations

import os
from pathlib import Path

from playwright.sync_api import Page


def keep(page: Page, name: str) -> None:
    """Keep a picture, where somebody wants one."""
    folder = os.environ.get("EDGEFLEET_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")
