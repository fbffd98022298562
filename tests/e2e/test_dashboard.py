"""The dashboard in a real browser, before a real fleet with the real model.

`EDGEFLEET_SCREENSHOTS=FOLDER` keeps a picture of each page.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from edge_worker.adapters.artefact import cache_folder, resolve_model
from edge_worker.ports import ModelError
from fleet_cli.local_fleet import free_port
from fleet_protocol.manifest import DEFAULT_MODEL
from tests.conftest import require
from tests.e2e.pictures import keep
from tests.e2e.site import Site
from tests.integration.fleet import Fleet

pytestmark = [pytest.mark.broker, pytest.mark.model, pytest.mark.timeout(300)]

QUESTION = "Name three colours."


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A fleet of two boards and a simulated cloud, and where its page is."""
    try:
        resolve_model(DEFAULT_MODEL, cache_folder(os.environ))
    except ModelError as error:
        require(False, f"{error}: {error.hint}; the default model")  # noqa: FBT003
    port = free_port()
    with Fleet(tmp_path_factory.mktemp("dashboard")) as fleet:
        fleet.start_dispatcher(GATEWAY__PORT=str(port))
        fleet.start_worker("w1", data="w1")
        fleet.start_worker("w2", data="w2")
        fleet.online(fleet.device(), "w1", "w2")
        yield Site(fleet, f"http://127.0.0.1:{port}")


def row_of(page: Page, worker: str) -> Locator:
    return page.get_by_role("row", name=re.compile(rf"^{worker}\b"))


def test_tokens_stream_into_the_playground_and_the_job_can_be_looked_at(
    site: Site, page: Page
) -> None:
    page.goto(site.at("playground"))
    page.get_by_test_id("question").fill(QUESTION)
    answer = page.get_by_test_id("answer-auto_side")
    page.evaluate(
        """() => {
            window.grown = new Set();
            new MutationObserver(() => {
                const text = document.querySelector('[data-testid=text]');
                if (text && text.textContent) window.grown.add(text.textContent);
            }).observe(document.body, {subtree: true, childList: true, characterData: true});
        }"""
    )
    page.get_by_test_id("ask").click()
    expect(answer).to_have_attribute("aria-busy", "false")
    expect(answer.get_by_test_id("text")).not_to_be_empty()
    expect(answer.get_by_role("link", name=re.compile("w[12]"))).to_be_visible()
    text = answer.get_by_test_id("text").inner_text()
    assert all(text.startswith(begun) for begun in page.evaluate("[...window.grown]"))
    keep(page, "playground")
    page.goto(site.at("jobs?status=ok"))
    page.get_by_role("row").nth(1).get_by_role("link").first.click()
    expect(page.get_by_role("heading", name="Timeline")).to_be_visible()
    expect(page.get_by_text(text)).to_be_visible()
    keep(page, "job")
    page.reload()
    expect(page.get_by_text(text)).to_be_visible()


def test_the_overview_counts_what_happened(site: Site, page: Page) -> None:
    page.goto(site.url)
    expect(page.get_by_test_id("workers-online")).to_have_text("2 / 2")
    expect(page.get_by_test_id("link")).to_have_text("Live")
    before = page.evaluate("fetch('/page/history').then((r) => r.json())")
    site.device.submit("counted", prompt=QUESTION)
    site.device.result("counted", 60)
    expect(page.get_by_test_id("latency")).not_to_have_text("0 ms")
    expect(page.get_by_test_id("on-edge")).to_have_text("100 %")
    assert page.locator("canvas").count() == 4
    assert before["columns"][0] == "at_ms"
    keep(page, "overview")


def test_a_worker_that_is_killed_goes_offline_and_its_job_moves(site: Site, page: Page) -> None:
    page.goto(site.at("workers"))
    expect(row_of(page, "w1")).to_contain_text("Online")
    keep(page, "workers")
    expect(row_of(page, "w2")).to_contain_text("Online")
    site.device.submit("moving", prompt="Write a long story about the sea.", max_tokens=256)
    site.device.wait(
        lambda: any("/jobs/" in topic for topic in site.device.heard if topic.startswith("work")),
        "the job to begin",
    )
    victim = next(
        name
        for name in ("w1", "w2")
        if any(topic.startswith(f"workers/{name}/jobs/") for topic in site.device.heard)
    )
    site.fleet.kill(victim)
    expect(row_of(page, victim)).to_contain_text("Offline")
    keep(page, "workers-offline")
    result = site.device.result("moving", 90)
    assert result["status"] == "ok"
    site.fleet.start_worker(victim, data=victim)
    expect(row_of(page, victim)).to_contain_text("Online")


def test_a_worker_is_drained_and_resumed_from_its_page(site: Site, page: Page) -> None:
    page.goto(site.at("workers/w2"))
    expect(page.get_by_text("Online")).to_be_visible()
    page.get_by_test_id("drain").click()
    page.get_by_test_id("yes").click()
    expect(page.get_by_text("Draining", exact=True)).to_be_visible()
    keep(page, "worker")
    site.device.submit("elsewhere", prompt=QUESTION)
    assert site.device.result("elsewhere", 60)["worker"] == "w1"
    page.get_by_test_id("resume").click()
    page.get_by_test_id("yes").click()
    expect(page.get_by_text("Online", exact=True)).to_be_visible()


def test_after_a_restart_of_the_broker_the_page_goes_on_by_itself(site: Site, page: Page) -> None:
    page.goto(site.url)
    expect(page.get_by_test_id("link")).to_have_text("Live")
    site.fleet.broker.kill()
    expect(page.get_by_test_id("link")).not_to_have_text("Live")
    expect(page.get_by_role("alert")).to_contain_text("The broker cannot be reached")
    keep(page, "broker-away")
    site.fleet.broker.start()
    expect(page.get_by_test_id("link")).to_have_text("Live")
    expect(page.get_by_test_id("workers-online")).to_have_text("2 / 2")


def test_filters_are_links_and_survive_a_reload(site: Site, page: Page) -> None:
    page.goto(site.at("workers"))
    page.get_by_test_id("search").fill("w2")
    expect(page.get_by_test_id("shown")).to_have_text("1 of 2 shown")
    assert page.url.endswith("#/workers?q=w2")
    page.reload()
    expect(page.get_by_test_id("search")).to_have_value("w2")
    expect(row_of(page, "w2")).to_be_visible()
    expect(row_of(page, "w1")).to_have_count(0)


def test_the_overview_hears_of_no_single_worker_until_somebody_wants_to_see_them(
    site: Site, page: Page
) -> None:
    said: list[bytes] = []
    page.on(
        "websocket",
        lambda socket: socket.on("framesent", lambda data: said.append(bytes(data))),
    )
    page.goto(site.url)
    expect(page.get_by_test_id("workers-online")).to_have_text("2 / 2")
    assert b"fleet/summary" in b"".join(said)
    assert b"fleet/roster" not in b"".join(said)
    page.get_by_test_id("workers-online").click()
    expect(row_of(page, "w1")).to_be_visible()
    expect(page.get_by_test_id("shown")).to_have_text("2 of 2 shown")
    assert b"fleet/roster/+" in b"".join(said)


@pytest.mark.parametrize("path", ["overview", "workers", "jobs", "playground", "models", "alerts"])
def test_every_page_in_chinese_and_dark_on_a_phone(site: Site, browser: Browser, path: str) -> None:
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, locale="zh-CN", color_scheme="dark"
    )
    page = context.new_page()
    page.goto(site.at(path))
    expect(page.get_by_test_id("link")).to_have_text("实时")
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("[一-鿿]"))
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, "the page is wider than the phone"
    left = page.locator("main").inner_text()
    english = {"Loading", "Workers", "Jobs", "Waiting", "Nothing yet", "Firing", "Search"}
    assert not [word for word in english if re.search(rf"\b{word}\b", left)]
    keep(page, f"phone-{path}")
    context.close()


def test_the_page_is_small_and_loads_nothing_from_elsewhere(site: Site, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(site.url)
    expect(page.get_by_test_id("link")).to_have_text("Live")
    assert all(url.startswith((site.url, site.url.replace("http", "ws"), "data:")) for url in asked)
    assert page.evaluate("document.querySelectorAll('*').length") < 1_000
