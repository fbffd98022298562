"""Logging in to the dashboard, in a real browser: what each role sees, and what it does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from fleet_cli.local_fleet import free_port
from tests.e2e.pictures import keep
from tests.e2e.rules import broken_by
from tests.e2e.site import Site
from tests.integration.fleet import Fleet

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]

PASSWORD = "correct horse battery"
SECRET = "the code of the door is 4711"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A fleet of one board whose page asks who comes."""
    folder, port = tmp_path_factory.mktemp("login"), free_port()
    users = folder / "users.toml"
    for role in ("viewer", "operator"):
        subprocess.run(
            [sys.executable, "-m", "cloud_dispatcher", "users", "add", f"ann-{role}", "--role",
             role, "--password-file", "-", "--file", str(users)],
            input=f"{PASSWORD}\n", text=True, check=True,
        )  # fmt: skip
    with Fleet(folder) as fleet:
        fleet.start_dispatcher(GATEWAY__PORT=str(port), GATEWAY__PAGE__USERS_FILE=str(users))
        fleet.start_worker("w1", engine="echo")
        fleet.online(fleet.device(), "w1")
        fleet.devices[0].submit("told", prompt=SECRET)
        assert fleet.devices[0].result("told")["text"] == SECRET
        yield Site(fleet, f"http://127.0.0.1:{port}")


def log_in(page: Page, name: str, password: str = PASSWORD) -> None:
    page.get_by_test_id("user").fill(name)
    page.get_by_test_id("password").fill(password)
    page.get_by_test_id("login").click()


def test_a_wrong_password_is_told_and_the_right_one_leads_to_where_the_link_went(
    site: Site, page: Page
) -> None:
    page.goto(site.at("workers/w1"))
    expect(page.get_by_test_id("user")).to_be_visible()
    keep(page, "login")
    log_in(page, "ann-viewer", "not the password")
    expect(page.get_by_role("alert")).to_have_text("No such name, or not its password.")
    expect(page.get_by_test_id("link")).to_have_count(0)
    log_in(page, "ann-viewer")
    expect(page.get_by_role("heading", level=1)).to_contain_text("w1")
    expect(page.get_by_test_id("link")).to_have_text("Live")
    expect(page.get_by_test_id("who")).to_have_text("ann-viewer\u00a0· viewer")


def test_a_viewer_sees_figures_no_answer_and_nothing_to_press(site: Site, page: Page) -> None:
    page.goto(site.url)
    log_in(page, "ann-viewer")
    expect(page.get_by_test_id("workers-online")).to_have_text("1 / 1")
    keep(page, "overview-viewer")
    page.goto(site.at("jobs?status=ok"))
    page.get_by_role("row").nth(1).get_by_role("link").first.click()
    expect(page.get_by_role("heading", name="Timeline")).to_be_visible()
    expect(page.get_by_text("Your role may not see or do this")).to_be_visible()
    assert SECRET not in page.content()
    keep(page, "job-viewer")
    page.goto(site.at("workers/w1"))
    expect(page.get_by_text("Online", exact=True)).to_be_visible()
    expect(page.get_by_test_id("drain")).to_have_count(0)
    page.goto(site.at("playground"))
    expect(page.get_by_test_id("not-allowed")).to_be_visible()
    expect(page.get_by_test_id("question")).to_have_count(0)
    keep(page, "playground-viewer")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_neither_the_door_nor_what_is_refused_breaks_a_rule_of_wcag(
    site: Site, browser: Browser, theme: str
) -> None:
    context = browser.new_context(locale="en-GB", color_scheme=theme, reduced_motion="reduce")
    page = context.new_page()
    page.goto(site.at("playground"))
    log_in(page, "ann-viewer", "not the password")
    expect(page.get_by_role("alert")).to_be_visible()
    assert broken_by(page) == []
    keep(page, f"login-{theme}")
    log_in(page, "ann-viewer")
    expect(page.get_by_test_id("not-allowed")).to_be_visible()
    assert broken_by(page) == []
    context.close()


def test_a_viewers_script_cannot_do_what_its_page_does_not_offer(site: Site, page: Page) -> None:
    page.goto(site.url)
    log_in(page, "ann-viewer")
    expect(page.get_by_test_id("link")).to_have_text("Live")
    status = page.evaluate(
        """async () => {
            const session = await (await fetch('/page/session')).json();
            const headers = {'content-type': 'application/json', 'x-csrf-token': session.csrf};
            const body = JSON.stringify({prompt: 'Warm?'});
            return (await fetch('/jobs', {method: 'POST', headers, body})).status;
        }"""
    )
    assert status == 403
    assert page.evaluate("document.cookie") == ""


def test_an_operator_sees_the_answer_asks_and_drains(site: Site, page: Page) -> None:
    page.goto(site.at("jobs?status=ok"))
    log_in(page, "ann-operator")
    page.get_by_role("row").nth(1).get_by_role("link").first.click()
    expect(page.get_by_text(SECRET)).to_be_visible()
    page.goto(site.at("playground"))
    page.get_by_test_id("question").fill("Is it warm?")
    page.get_by_test_id("ask").click()
    answer = page.get_by_test_id("answer-auto_side")
    expect(answer.get_by_test_id("text")).to_have_text("Is it warm?")
    page.goto(site.at("workers/w1"))
    page.get_by_test_id("drain").click()
    page.get_by_test_id("yes").click()
    expect(page.get_by_text("Draining", exact=True)).to_be_visible()
    page.get_by_test_id("resume").click()
    page.get_by_test_id("yes").click()
    expect(page.get_by_text("Online", exact=True)).to_be_visible()


def test_whoever_logs_out_sees_the_door_in_every_window(site: Site, browser: Browser) -> None:
    context = browser.new_context(locale="zh-CN", viewport={"width": 390, "height": 844})
    first, second = context.new_page(), context.new_page()
    first.goto(site.url)
    keep(first, "phone-login")
    assert first.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    log_in(first, "ann-operator")
    expect(first.get_by_test_id("link")).to_have_text("实时")
    second.goto(site.url)
    expect(second.get_by_test_id("link")).to_have_text("实时")
    first.get_by_test_id("logout").click()
    for page in (first, second):
        expect(page.get_by_test_id("login")).to_have_text("登录")
    context.close()


def test_an_open_page_goes_on_after_a_restart_unless_its_user_is_gone(
    site: Site, browser: Browser
) -> None:
    stays, leaves = browser.new_page(), browser.new_page()
    for page, name in ((stays, "ann-operator"), (leaves, "ann-viewer")):
        page.goto(site.at("playground"))
        log_in(page, name)
        expect(page.get_by_test_id("link")).to_have_text("Live")
    users = str(site.fleet.folder / "users.toml")
    assert site.fleet.stop("dispatcher") == 0
    for page in (stays, leaves):
        expect(page.get_by_test_id("link")).not_to_have_text("Live")
    subprocess.run(
        [sys.executable, "-m", "cloud_dispatcher", "users", "rm", "ann-viewer", "--file", users],
        check=True,
    )
    port = site.url.rpartition(":")[2]
    site.fleet.start_dispatcher(GATEWAY__PORT=port, GATEWAY__PAGE__USERS_FILE=users)
    expect(leaves.get_by_test_id("login")).to_be_visible()
    expect(stays.get_by_test_id("link")).to_have_text("Live")
    stays.get_by_test_id("question").fill("Is it warm again?")
    stays.get_by_test_id("ask").click()
    answer = stays.get_by_test_id("answer-auto_side").get_by_test_id("text")
    expect(answer).to_have_text("Is it warm again?")
    for page in (stays, leaves):
        page.close()
