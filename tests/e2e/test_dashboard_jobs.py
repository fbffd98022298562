"""The dashboard's jobs in a real browser: pages, filters, what is new, what changes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, WebSocket, expect

from fleet_cli.local_fleet import free_port
from tests.e2e.pictures import keep
from tests.e2e.site import Site
from tests.integration.fleet import Fleet

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]

PAGE = 30
JOBS = 2 * PAGE + 20
SECRET = "the password of the cellar is swordfish"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A fleet with two devices, a board that echoes, and more jobs than two pages show."""
    port = free_port()
    with Fleet(tmp_path_factory.mktemp("jobs")) as fleet:
        fleet.start_dispatcher(GATEWAY__PORT=str(port), ENGINE__CACHE__ENABLED="false")
        fleet.start_worker("w1", engine="echo")
        device, other = fleet.device("d1"), fleet.device("d2")
        fleet.online(device, "w1")
        for number in range(JOBS):
            device.submit(f"job-{number:03}", prompt=SECRET)
        for number in range(JOBS):
            device.result(f"job-{number:03}", 60)
        other.submit("unwanted", prompt="x", not_before_ms=600_000)
        other.publish("dev/d2/jobs/unwanted/cancel", "{}")
        assert other.result("unwanted")["status"] == "cancelled"
        yield Site(fleet, f"http://127.0.0.1:{port}")


def ids(page: Page) -> list[str]:
    """Return the devices' ids of the jobs that are shown, in order."""
    return page.locator("tbody tr td:first-child").all_inner_texts()


def shows(page: Page, count: int, first: str) -> None:
    expect(page.locator("tbody tr")).to_have_count(count)
    expect(page.locator("tbody tr td:first-child").first).to_have_text(first)


def test_pages_lead_to_the_oldest_job_and_back_and_are_links(site: Site, page: Page) -> None:
    page.goto(site.at("jobs"))
    shows(page, PAGE, "unwanted")
    newest = ids(page)
    keep(page, "jobs")
    page.get_by_test_id("older-top").click()
    shows(page, PAGE, f"job-{JOBS - PAGE:03}")
    middle, address = ids(page), page.url
    assert "before=" in address
    page.get_by_test_id("older-bottom").click()
    shows(page, JOBS + 1 - 2 * PAGE, f"job-{JOBS - 2 * PAGE:03}")
    assert len({*newest, *middle, *ids(page)}) == JOBS + 1
    expect(page.get_by_test_id("older-top")).to_have_count(0)
    page.go_back()
    shows(page, PAGE, middle[0])
    page.reload()
    assert page.url == address
    shows(page, PAGE, middle[0])
    page.get_by_test_id("newer-top").press("Enter")
    shows(page, PAGE, "unwanted")
    assert ids(page) == newest
    page.goto(site.at("overview"))
    page.goto(address)
    shows(page, PAGE, middle[0])
    page.get_by_test_id("newest-top").click()
    shows(page, PAGE, "unwanted")
    assert page.url.endswith("#/jobs")


def test_filters_are_carried_out_over_all_jobs_and_stand_in_the_address(
    site: Site, page: Page
) -> None:
    page.goto(site.at("jobs"))
    shows(page, PAGE, "unwanted")
    page.get_by_test_id("job-text").fill("JOB-00")
    shows(page, 10, "job-009")
    assert page.url.endswith("#/jobs?text=JOB-00")
    page.get_by_test_id("job-status").select_option("cancelled")
    expect(page.get_by_test_id("no-jobs")).to_have_text("No job fits.")
    page.go_back()
    shows(page, 10, "job-009")
    expect(page.get_by_test_id("job-status")).to_have_value("")
    page.get_by_test_id("clear-filters").click()
    shows(page, PAGE, "unwanted")
    page.get_by_test_id("more-filters").click()
    page.get_by_test_id("job-device").fill("d2")
    shows(page, 1, "unwanted")
    page.get_by_test_id("job-device").fill("")
    page.get_by_test_id("job-worker").fill("w1")
    shows(page, PAGE, f"job-{JOBS - 1:03}")
    page.get_by_test_id("older-top").click()
    shows(page, PAGE, f"job-{JOBS - 1 - PAGE:03}")
    assert "worker=w1" in page.url
    page.reload()
    shows(page, PAGE, f"job-{JOBS - 1 - PAGE:03}")
    expect(page.get_by_test_id("job-worker")).to_have_value("w1")


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("route=edge", PAGE),
        ("route=cloud", 0),
        ("code=cancelled", 1),
        ("status=cancelled", 1),
        ("tenant=default&device=d2", 1),
        ("tenant=north", 0),
        ("worker=w9", 0),
        ("since=2026-01-01T00:00Z&device=d2", 1),
        ("until=2026-01-01T00:00Z", 0),
        ("since=2099-01-01T00:00Z", 0),
    ],
)
def test_every_filter_is_a_deep_link(site: Site, page: Page, query: str, count: int) -> None:
    page.goto(site.at(f"jobs?{query}"))
    if count:
        expect(page.locator("tbody tr")).to_have_count(count)
    else:
        expect(page.get_by_test_id("no-jobs")).to_be_visible()


def test_what_can_be_no_filter_is_told_instead_of_left_out(site: Site, page: Page) -> None:
    page.goto(site.at("jobs?worker=w%201"))
    expect(page.get_by_test_id("job-wrong")).to_contain_text("w 1")
    expect(page.locator("tbody tr")).to_have_count(0)
    page.get_by_test_id("job-worker").fill("w1")
    expect(page.locator("tbody tr")).to_have_count(PAGE)


def test_new_jobs_are_counted_and_nothing_moves_until_somebody_wants_them(
    site: Site, page: Page
) -> None:
    page.goto(site.at("jobs"))
    row = page.locator("tbody tr").first
    expect(row).to_be_visible()
    before, place = ids(page), row.bounding_box()
    site.device.submit("fresh-1", prompt=SECRET)
    site.device.result("fresh-1")
    new = page.get_by_test_id("new-jobs")
    expect(new).to_have_text("↑ 1 new")
    keep(page, "jobs-new")
    assert (ids(page), row.bounding_box()) == (before, place)
    new.click()
    expect(row).to_contain_text("fresh-1")
    expect(new).to_have_count(0)


def test_an_open_job_changes_in_its_place_though_it_no_longer_fits(site: Site, page: Page) -> None:
    site.device.submit("waiting", prompt="x", not_before_ms=600_000)
    site.device.wait(lambda: site.device.said("waiting", "ack"), "the job to be taken in")
    page.goto(site.at("jobs?status=queued"))
    shows(page, 1, "waiting")
    expect(page.locator("tbody tr").first).to_contain_text("Queued")
    site.device.publish("dev/d1/jobs/waiting/cancel", "{}")
    expect(page.locator("tbody tr").first).to_contain_text("Cancelled")
    shows(page, 1, "waiting")
    page.reload()
    expect(page.get_by_test_id("no-jobs")).to_be_visible()
    # An empty page has nothing that could jump: what comes is shown by itself.
    site.device.submit("waiting-2", prompt="x", not_before_ms=600_000)
    shows(page, 1, "waiting-2")
    site.device.publish("dev/d1/jobs/waiting-2/cancel", "{}")
    site.device.result("waiting-2")


def test_the_list_says_what_it_is_to_who_cannot_see_it_and_holds_no_prompt(
    site: Site, page: Page
) -> None:
    frames: list[str] = []

    def listen(socket: WebSocket) -> None:
        socket.on("framereceived", lambda frame: frames.append(str(frame)))

    page.on("websocket", listen)
    page.goto(site.at("jobs"))
    expect(page.get_by_role("table", name="Jobs")).to_be_visible()
    expect(page.get_by_role("search")).to_be_visible()
    expect(page.get_by_role("navigation", name="Pages of jobs", exact=True)).to_be_visible()
    expect(page.get_by_label("Part of the id")).to_be_visible()
    expect(page.get_by_test_id("job-range")).to_have_text(re.compile(rf"^{PAGE} on this page"))
    expect(page.get_by_role("columnheader", name="Received")).to_be_visible()
    assert len(frames) > 1
    assert any("job-0" in frame for frame in frames), "the jobs came over this link"
    assert "swordfish" not in page.content()
    assert not any("swordfish" in frame for frame in frames)


def test_a_workers_page_shows_its_jobs_and_leads_to_all_of_them(site: Site, page: Page) -> None:
    page.goto(site.at("workers/w1"))
    expect(page.locator("tbody tr")).to_have_count(20)
    page.get_by_role("link", name="All its jobs").click()
    expect(page.locator("tbody tr")).to_have_count(PAGE)
    assert page.url.endswith("#/jobs?worker=w1")


def test_a_job_is_cancelled_and_a_dead_letter_retried_from_its_page(site: Site, page: Page) -> None:
    site.device.submit("regretted", prompt="x", not_before_ms=600_000)
    site.device.wait(lambda: site.device.said("regretted", "ack"), "the job to be taken in")
    page.goto(site.at("jobs?text=regretted"))
    page.get_by_role("link", name="regretted").click()
    page.get_by_test_id("cancel-job").click()
    page.get_by_role("button", name="No", exact=True).click()
    assert not site.device.said("regretted", "res")
    page.get_by_test_id("cancel-job").click()
    page.get_by_test_id("yes").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Cancelled")
    expect(page.get_by_test_id("cancel-job")).to_have_count(0)
    assert site.device.result("regretted")["status"] == "cancelled"
    # Nobody can answer it: there is no cloud, and it is too long for any board.
    site.device.submit("hopeless", prompt="long " * 20_000, escalate="always")
    assert site.device.result("hopeless")["status"] == "failed"
    page.goto(site.at("jobs?status=dead"))
    page.get_by_role("link", name="hopeless").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Dead letter")
    expect(page.get_by_text("no cloud is set up")).to_be_visible()
    page.get_by_test_id("retry-job").click()
    expect(page.get_by_role("main").get_by_role("status")).to_have_text("Queued anew")
    site.device.wait(lambda: len(site.device.said("hopeless", "res")) > 1, "another result")
