"""The pages of reference say what the code says, and leave nothing out."""

import re
from pathlib import Path
from typing import Final

import msgspec
import pytest

from cloud_dispatcher.config import DispatcherSettings
from docs.messages_page import render_messages
from docs.metrics_page import counted_labels, render_metrics, told_families
from docs.settings_page import render_settings
from docs.struct_words import fields, meaning, meanings, structs_of, summary
from edge_worker.config import WorkerSettings
from fleet_protocol.topics import CATALOGUE

DOCS: Final = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("page", "rendered"),
    [
        ("configuration.md", render_settings()),
        ("messages.md", render_messages()),
        ("metrics.md", render_metrics()),
    ],
    ids=["configuration", "messages", "metrics"],
)
def test_a_page_of_reference_is_what_the_code_says(page: str, rendered: str) -> None:
    assert (DOCS / page).read_text() == rendered, "run `make docs`"


def tables(kind: type[msgspec.Struct]) -> set[type[msgspec.Struct]]:
    inner = {one for field in fields(kind) for one in structs_of(field.type)}
    return {kind}.union(*(tables(one) for one in inner))


@pytest.mark.parametrize("program", [DispatcherSettings, WorkerSettings])
def test_every_setting_says_what_it_means(program: type[msgspec.Struct]) -> None:
    silent = [
        f"{kind.__name__}.{field.name}"
        for kind in tables(program)
        for field in fields(kind)
        if not structs_of(field.type)
        # A formula above the table says what its own terms are.
        and not meaning(field, meanings(kind))
        and field.name not in summary(kind)
    ]
    assert silent == []


def test_every_message_of_the_catalogue_has_a_section() -> None:
    headings = set(re.findall(r"^## (\w+)$", render_messages(), re.MULTILINE))
    assert headings >= {channel.message.__name__ for channel in CATALOGUE}


def test_every_family_of_a_scrape_has_a_row_with_its_labels() -> None:
    page = render_metrics()
    for family in told_families():
        assert f"| `{family.name}` | {family.kind} |" in page
    assert "| `edgefleet_jobs_escalated_total` | counter | `reason` |" in page
    assert counted_labels()["edgefleet_cloud_outcomes_total"] == {"provider", "code"}
