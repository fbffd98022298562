"""The table in docs/providers.md, row by row."""

from __future__ import annotations

import pytest

from tests.contract.provider_situations import SITUATIONS, Situation
from tests.virtual_time import run_virtually


@pytest.mark.parametrize("row", SITUATIONS, ids=lambda row: row.play.__name__)
def test_the_lane_reacts_as_the_table_says(row: Situation) -> None:
    async def play() -> None:
        await row.play()

    run_virtually(play())
