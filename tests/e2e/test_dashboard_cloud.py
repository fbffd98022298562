"""The dashboard in a real browser, where there is a cloud: real boards, a simulated provider.

With `EDGEFLEET_SCREENSHOTS` it works for some minutes first: the documents' pictures are its.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from edge_worker.adapters.artefact import cache_folder, resolve_model
from edge_worker.ports import ModelError
from fleet_cli.local_fleet import free_port
from fleet_protocol.manifest import DEFAULT_MODEL
from tests.conftest import require
from tests.e2e.pictures import keep
from tests.e2e.site import Site
from tests.integration.fleet import Device, Fleet

pytestmark = [pytest.mark.broker, pytest.mark.model, pytest.mark.timeout(600)]

JOBS = 150 if "EDGEFLEET_SCREENSHOTS" in os.environ else 6
ASKED = (
    "Turn off the lamp in room {n}.",
    "Is {n} C too hot for a CPU? Answer yes or no.",
    "The limit is 80 bar, the reading is {n} bar. Is it too high? Answer yes or no.",
    "Classify as leak, smoke or fine: there is water below pump {n}",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A fleet of two boards, three devices and a simulated cloud, which has had some work."""
    try:
        resolve_model(DEFAULT_MODEL, cache_folder(os.environ))
    except ModelError as error:
        require(False, f"{error}: {error.hint}; the default model")  # noqa: FBT003
    port, cloud = free_port(), free_port()
    with Fleet(tmp_path_factory.mktemp("cloud")) as fleet:
        fleet.start("cloud", "cloud_dispatcher", "simulate-cloud", "--port", str(cloud))
        fleet.start(
            "dispatcher",
            *("cloud_dispatcher", "run", "--broker", fleet.broker.url),
            *("--data", str(fleet.folder / "dispatcher")),
            environ={
                "EDGEFLEET_DISPATCHER_GATEWAY__PORT": str(port),
                "EDGEFLEET_DISPATCHER_PROVIDER__BASE_URL": f"http://127.0.0.1:{cloud}",
                "DEEPSEEK_API_KEY": "simulated",
            },
        )
        fleet.start_worker("pi-hall-1")
        fleet.start_worker("pi-yard-2")
        devices = [fleet.device(name) for name in ("cam-7", "door-2", "pump-11")]
        fleet.online(devices[0], "pi-hall-1", "pi-yard-2")
        work(devices, "reading", JOBS)
        yield Site(fleet, f"http://127.0.0.1:{port}")


def work(devices: list[Device], name: str, count: int) -> None:
    """Have questions answered, two at a time; every sixth by the cloud."""
    turns = itertools.islice(zip(itertools.count(1), itertools.cycle(devices)), count)
    waiting: list[tuple[Device, str]] = []
    for number, device in turns:
        job, asked = f"{name}-{number}", ASKED[number % len(ASKED)].format(n=number)
        escalate = "always" if number % 6 == 0 else "never"
        device.submit(job, prompt=asked, max_tokens=24, escalate=escalate, cache="off")
        waiting.append((device, job))
        if len(waiting) > 1:
            before, its_job = waiting.pop(0)
            assert before.result(its_job, 90)["status"] == "ok"
    for device, job in waiting:
        assert device.result(job, 90)["status"] == "ok"


def test_a_board_and_the_cloud_answer_side_by_side(site: Site, page: Page) -> None:
    page.goto(site.at("playground"))
    page.get_by_label("Boards and cloud side by side").check()
    page.get_by_test_id("question").fill("At what temperature does water boil?")
    page.get_by_test_id("ask").click()
    for side in ("edge_side", "cloud_side"):
        answer = page.get_by_test_id(f"answer-{side}")
        expect(answer).to_have_attribute("aria-busy", "false", timeout=90_000)
        expect(answer.get_by_test_id("text")).not_to_be_empty()
    edge = page.get_by_test_id("answer-edge_side")
    expect(edge.get_by_role("link", name=re.compile("^pi-"))).to_be_visible()
    expect(edge).to_contain_text("a board could answer it")
    expect(page.get_by_test_id("answer-cloud_side")).to_contain_text("Cloud")
    keep(page, "playground-both")


def test_the_jobs_that_the_cloud_answered_are_a_link_away(site: Site, page: Page) -> None:
    page.goto(site.at("jobs"))
    expect(page.locator("tbody tr").first).to_be_visible()
    keep(page, "jobs-mixed")
    page.get_by_test_id("job-route").select_option("cloud")
    expect(page.locator("tbody tr").filter(has_not_text="Cloud")).to_have_count(0)
    expect(page.locator("tbody tr").first).to_contain_text("Cloud")
    page.goto(site.at("jobs?code=requested"))
    expect(page.locator("tbody tr").first).to_contain_text("asked for by the device")
    expect(page.locator("tbody tr").filter(has_not_text="asked for")).to_have_count(0)


def test_each_workers_line_shows_what_it_wrote(site: Site, page: Page) -> None:
    page.goto(site.at("workers"))
    lines = page.get_by_role("row", name=re.compile("^pi-")).get_by_role("img")
    expect(lines).to_have_count(2)
    work(site.fleet.devices, "written", max(6, JOBS // 3))
    wrote = re.compile(r"Tokens a second .*(?:[1-9]\d*\.\d|0\.[1-9]) at most")
    line = lines.and_(page.get_by_label(wrote)).first
    expect(line).to_be_visible()
    # It stands on the floor, 1, and its most is at the top, 0.
    expect(line.locator("path")).to_have_attribute(
        "d", re.compile(r"^M\d+ 1V.*\b0(?:[HL]|V1$).*V1$")
    )
    keep(page, "workers-lines")


def test_the_overview_tells_boards_and_cloud_apart(site: Site, page: Page) -> None:
    page.goto(site.at("overview"))
    expect(page.get_by_test_id("workers-online")).to_have_text("2 / 2")
    expect(page.get_by_test_id("on-edge")).to_have_text(re.compile(r"^[5-9]\d %$"))
    expect(page.get_by_test_id("cost")).to_have_text(re.compile(r"^\$0\.\d+$"))
    keep(page, "overview-both")
