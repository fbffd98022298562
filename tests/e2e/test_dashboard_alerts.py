"""Alerts on the dashboard, in a real browser: what fires, who looks after it, what fired before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from fleet_cli.local_fleet import free_port
from tests.e2e.pictures import keep
from tests.integration.fleet import Fleet

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]

PASSWORD = "correct horse battery"
BROKEN = "[[answer]\n"
TITLE = "The offline library cannot be used"


class Site:
    """A fleet whose offline library has a mistake, or not."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet = fleet
        self.library = folder / "library.toml"
        self._port = free_port()
        self._users = folder / "users.toml"
        self.url = f"http://127.0.0.1:{self._port}"

    def start_dispatcher(self) -> None:
        self.fleet.start_dispatcher(
            GATEWAY__PORT=str(self._port),
            GATEWAY__PAGE__USERS_FILE=str(self._users),
            LIBRARY__FILE=str(self.library),
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("alerts")
    for role in ("viewer", "operator"):
        subprocess.run(
            [sys.executable, "-m", "cloud_dispatcher", "users", "add", f"ann-{role}", "--role",
             role, "--password-file", "-", "--file", str(folder / "users.toml")],
            input=f"{PASSWORD}\n", text=True, check=True,
        )  # fmt: skip
    with Fleet(folder) as fleet:
        site = Site(fleet, folder)
        site.library.write_text(BROKEN)
        site.start_dispatcher()
        fleet.start_worker("w1", engine="echo")
        fleet.online(fleet.device(), "w1")
        yield site


def log_in(page: Page, site: Site, name: str, *, path: str = "alerts") -> None:
    page.goto(f"{site.url}/#/{path}")
    page.get_by_test_id("user").fill(name)
    page.get_by_test_id("password").fill(PASSWORD)
    page.get_by_test_id("login").click()
    expect(page.get_by_test_id("link")).to_have_text("Live")


def test_an_alert_is_looked_after_and_everybody_sees_by_whom(
    site: Site, page: Page, browser: Browser
) -> None:
    log_in(page, site, "ann-operator")
    firing = page.get_by_role("region", name="Firing")
    expect(firing.get_by_text(TITLE)).to_be_visible()
    context = browser.new_context(locale="en-GB")
    other = context.new_page()
    log_in(other, site, "ann-viewer")
    expect(other.get_by_role("region", name="Firing").get_by_text(TITLE)).to_be_visible()
    # Who only looks on is not offered to look after it.
    expect(other.get_by_role("button", name="I look after it")).to_have_count(0)
    keep(page, "alerts-firing")
    firing.get_by_role("button", name="I look after it").click()
    for each in (page, other):
        after = each.get_by_role("region", name="Looked after")
        expect(after.get_by_text(TITLE)).to_be_visible()
        expect(after.get_by_text("page-ann-operator")).to_be_visible()
        expect(each.get_by_text("Nothing is wrong.")).to_be_visible()
    keep(page, "alerts-looked-after")
    context.close()


def test_what_is_over_stays_in_the_history_of_a_dispatcher_that_was_killed(
    site: Site, page: Page
) -> None:
    log_in(page, site, "ann-operator")
    before = page.get_by_role("region", name="What fired before")
    expect(before.get_by_text("Nothing yet.")).to_be_visible()
    site.library.write_text("")
    row = before.get_by_role("row").filter(has_text=TITLE)
    expect(row).to_be_visible()
    expect(row).to_contain_text("page-ann-operator")
    expect(page.get_by_role("region", name="Looked after")).to_have_count(0)
    keep(page, "alerts-history")
    site.fleet.kill("dispatcher")
    expect(page.get_by_test_id("link")).not_to_have_text("Live")
    expect(page.get_by_role("alert")).to_contain_text("gateway does not answer")
    site.start_dispatcher()
    expect(page.get_by_test_id("link")).to_have_text("Live")
    # Neither the login nor what it knew of alerts ended with it.
    page.reload()
    expect(page.get_by_test_id("who")).to_contain_text("ann-operator")
    expect(row).to_contain_text("page-ann-operator")


def test_a_link_to_a_worker_shows_what_it_is(site: Site, page: Page) -> None:
    log_in(page, site, "ann-viewer", path="workers/w1")
    expect(page.get_by_test_id("user")).to_have_count(0)
    page.reload()
    expect(page.get_by_role("main")).to_contain_text("echo")
