"""The dashboard for everybody, in a real browser: contrast, names, keys; and nothing jumps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from fleet_cli.local_fleet import free_port
from tests.e2e.pictures import keep
from tests.e2e.rules import broken_by
from tests.e2e.site import Site
from tests.integration.fleet import Fleet

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]

PLACES = ("overview", "workers", "workers/w1", "jobs", "job", "playground", "models", "alerts")
MOST_SHIFTED = 0.01
"""Of the score that browsers call good up to 0.1: digits may change their place, no line may."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A fleet of two boards that echo, with some jobs and an alert."""
    port, folder = free_port(), tmp_path_factory.mktemp("access")
    library = folder / "library.toml"
    library.write_text("[[answer]\n")
    with Fleet(folder) as fleet:
        fleet.start_dispatcher(
            GATEWAY__PORT=str(port), LIBRARY__FILE=str(library), ENGINE__CACHE__ENABLED="false"
        )
        fleet.start_worker("w1", engine="echo")
        fleet.start_worker("w2", engine="echo")
        device = fleet.device()
        fleet.online(device, "w1", "w2")
        for number in range(20):
            device.submit(f"job-{number:02}", prompt="Warm?")
        for number in range(20):
            device.result(f"job-{number:02}", 60)
        yield Site(fleet, f"http://127.0.0.1:{port}")


def go(page: Page, site: Site, place: str) -> None:
    """Go to a place, until it shows what it has."""
    if place == "job":
        page.goto(site.at("jobs?status=ok"))
        page.locator("tbody a").first.click()
        expect(page.get_by_role("heading", name="Timeline")).to_be_visible()
        return
    page.goto(site.at(place))
    expect(page.get_by_test_id("link")).to_have_text("Live")
    shown = {"workers": "[role=row] .badge", "workers/w1": "tbody tr", "jobs": "tbody tr"}
    expect(page.locator(shown.get(place, "main h1")).first).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_breaks_a_rule_of_wcag(site: Site, browser: Browser, theme: str) -> None:
    context = browser.new_context(
        viewport={"width": 1360, "height": 860}, locale="en-GB",
        color_scheme=theme, reduced_motion="reduce",
    )  # fmt: skip
    page = context.new_page()
    for place in PLACES:
        go(page, site, place)
        assert broken_by(page) == [], place
        keep(page, f"access-{theme}-{place.replace('/', '-')}")
    context.close()


@pytest.mark.parametrize("place", ["overview", "workers", "workers/w1", "jobs"])
def test_nothing_jumps_while_numbers_change(site: Site, page: Page, place: str) -> None:
    go(page, site, place)
    page.evaluate(
        """() => {
            window.shifted = 0;
            new PerformanceObserver((list) => {
                for (const entry of list.getEntries())
                    if (!entry.hadRecentInput) window.shifted += entry.value;
            }).observe({type: 'layout-shift'});
            window.changed = 0;
            new MutationObserver((records) => (window.changed += records.length))
                .observe(document.querySelector('main'), {subtree: true, characterData: true});
        }"""
    )
    name = f"while-{place.replace('/', '-')}"
    device = site.device
    for number in range(60):
        device.submit(f"{name}-{number}", prompt="Warm?")
    for number in range(60):
        device.result(f"{name}-{number}", 60)
    if place in {"jobs", "workers/w1"}:
        expect(page.get_by_test_id("new-jobs")).to_be_visible()
    else:
        page.wait_for_function("() => window.changed >= 5")
    assert page.evaluate("window.shifted") < MOST_SHIFTED


def test_everything_can_be_reached_and_done_with_keys(site: Site, page: Page) -> None:
    page.goto(site.url)
    expect(page.get_by_test_id("link")).to_have_text("Live")
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.goto(site.at("workers"))
    page.get_by_role("link", name="w2").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("w2")
    # Another place begins at its top for the tab key, too.
    expect(page.locator("main")).to_be_focused()
    drain = page.get_by_test_id("drain")
    drain.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="No more jobs for this worker")
    expect(dialog).to_be_visible()
    keep(page, "worker-sure")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(drain).to_be_focused()
    expect(page.get_by_text("Online", exact=True)).to_be_visible()
    page.keyboard.press("Enter")
    page.get_by_test_id("yes").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Draining", exact=True)).to_be_visible()
    page.get_by_test_id("resume").press("Enter")
    page.get_by_test_id("yes").press("Enter")
    expect(page.get_by_text("Online", exact=True)).to_be_visible()


@pytest.mark.parametrize("width", [1440, 1024, 760, 390])
def test_no_page_is_wider_than_its_window_and_no_figure_is_cut_off(
    site: Site, browser: Browser, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 860}, locale="en-GB")
    page = context.new_page()
    for place in PLACES:
        go(page, site, place)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, place
        cut = page.evaluate(
            """() => [...document.querySelectorAll('main .right, main .value, main th, nav a')]
                .filter((one) => one.offsetWidth && one.scrollWidth > one.clientWidth + 1)
                .map((one) => one.textContent)"""
        )
        assert cut == [], place
    context.close()
