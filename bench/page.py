"""The dashboard before ten thousand boards: is it quick, is it small, what does the browser pay?

Broker, dispatcher with its gateway and the boards (`bench/swarm.py`, each with a connection of its
own) are processes; the page is the shipped one in the distribution's headless chromium. A device
submits jobs, so that figures change. In each round somebody looks at the overview, then scrolls,
sorts and filters the table of workers. Everything runs on one machine: what the boards take, the
browser does not get, so a machine that is busy shows in every figure.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from playwright.async_api import Browser, CDPSession, Page, async_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.browser import FLAGS
from bench.fleet import Load, Watcher, allow_files, swarms
from bench.own_fleet import Device, device_session, dispatcher_process
from bench.processes import free_port
from bench.report import Aim, report
from fleet_cli.broker import BrokerKind, BrokerProcess
from fleet_protocol.log import set_up_logging
from fleet_protocol.mqtt import MqttBus
from fleet_protocol.settings import BrokerSettings

ROUNDS = 3
JOBS_PER_S = 50
SETTLE_S = 5.0
STEP_S = 0.1
PATIENCE_MS = 120_000

WATCH = """
(() => {
  const seen = { tasks: [], lags: [], paints: [], bytes: 0, waiting: null, unseen: 0 };
  window.seen = seen;
  new PerformanceObserver((list) => {
    for (const task of list.getEntries()) seen.tasks.push(task.duration);
  }).observe({ type: 'longtask' });
  const decoder = new TextDecoder('latin1');
  const Native = window.WebSocket;
  window.WebSocket = class extends Native {
    constructor(...words) {
      super(...words);
      this.addEventListener('message', ({ data }) => {
        seen.bytes += data.byteLength;
        const told = /fleet\\/summary[^]*?"at_ms":(\\d+)/.exec(decoder.decode(data));
        if (!told) return;
        if (seen.waiting) seen.unseen += 1;
        seen.waiting = { told: Number(told[1]), heard: Date.now() };
      });
    }
  };
  new MutationObserver((changes) => {
    if (!seen.waiting) return;
    const isTile = ({ target }) =>
      (target.nodeType === 1 ? target : target.parentElement)?.closest('.tile, [data-testid]');
    if (!changes.some(isTile)) return;
    const { told, heard } = seen.waiting;
    seen.waiting = null;
    requestAnimationFrame(() => setTimeout(() => {
      seen.lags.push(Date.now() - told);
      seen.paints.push(Date.now() - heard);
    }));
  }).observe(document, { subtree: true, childList: true, characterData: true });
})();
"""
"""Notes tasks that block the page, and what passes from a summary's stamp to its being painted."""

NODES = """() => {
  const all = document.createNodeIterator(document);
  let nodes = 0;
  while (all.nextNode()) nodes += 1;
  return [document.querySelectorAll('*').length, nodes];
}"""
"""Elements, as every audit of pages counts; then all nodes, texts and comments among them."""


@dataclass(frozen=True)
class Plan:
    """How large, how long."""

    boards: int
    seconds: float


WHOLE = Plan(boards=10_000, seconds=30.0)
QUICK = Plan(boards=2_000, seconds=8.0)


@dataclass(kw_only=True)
class Look:
    """What one look at the page showed.

    Attributes:
        tasks_ms: Tasks that blocked the page for 50 ms or more.
        lags_ms: From a summary's stamp to its figures on the screen.
        paints_ms: The page's own part of it, from when the browser has the message.
        unseen: Summaries after which no figure differed: nothing can be said of these.
        nodes: Most elements at any moment, and most nodes of any kind.
        cpu_pct: Of one core, all processes of the browser.
    """

    tasks_ms: list[float]
    lags_ms: list[float]
    paints_ms: list[float]
    unseen: int
    nodes: tuple[int, int]
    cpu_pct: float
    kb_per_s: float


class Visitor:
    """Somebody who looks at the page."""

    def __init__(self, page: Page, seconds: float) -> None:
        self.filter_ms: list[float] = []
        self._page = page
        self._seconds = seconds

    async def overview(self) -> Look:
        """Look, and touch nothing."""
        await self._page.evaluate("location.hash = '#/overview'")
        await self._page.get_by_test_id("workers-online").wait_for()
        return await self._look(self._rest)

    async def workers(self) -> Look:
        """Scroll, sort and filter without a pause."""
        await self._page.evaluate("location.hash = '#/workers'")
        await self._page.get_by_test_id("shown").wait_for()
        return await self._look(self._use)

    async def _look(self, act: Any) -> Look:
        await asyncio.sleep(SETTLE_S)
        await self._page.evaluate(
            "Object.assign(window.seen,"
            "{tasks: [], lags: [], paints: [], bytes: 0, waiting: null, unseen: 0})"
        )
        begun, before = time.monotonic(), browser_cpu_s()
        nodes = await act(begun + self._seconds)
        span_s = time.monotonic() - begun
        cpu_pct = (browser_cpu_s() - before) / span_s * 100
        seen = await self._page.evaluate("window.seen")
        return Look(
            tasks_ms=seen["tasks"],
            lags_ms=seen["lags"],
            paints_ms=seen["paints"],
            unseen=seen["unseen"],
            nodes=nodes,
            cpu_pct=cpu_pct,
            kb_per_s=seen["bytes"] / span_s / 1e3,
        )

    async def _rest(self, until: float) -> tuple[int, int]:
        counts = [await self._nodes()]
        while time.monotonic() < until:
            await asyncio.sleep(2)
            counts.append(await self._nodes())
        return most(counts)

    async def _nodes(self) -> tuple[int, int]:
        elements, nodes = await self._page.evaluate(NODES)
        return elements, nodes

    async def _use(self, until: float) -> tuple[int, int]:
        """Scroll through the table; now and then sort it anew and search it."""
        counts, turn = [await self._nodes()], 0
        await self._page.mouse.move(600, 500)
        columns = self._page.get_by_role("columnheader").get_by_role("button")
        while time.monotonic() < until:
            for _ in range(20):
                await self._page.mouse.wheel(0, 900)
                await asyncio.sleep(STEP_S)
            counts.append(await self._nodes())
            await columns.nth(turn % 6).click()
            await self._filter(str(10 + turn % 90))  # some boards have these digits in their names
            counts.append(await self._nodes())
            await self._filter("")
            turn += 1
        return most(counts)

    async def _filter(self, words: str) -> None:
        """Type into the search and note what passes until the count on the page differs."""
        shown = self._page.get_by_test_id("shown")
        before = await shown.inner_text()
        took_ms = await self._page.evaluate(
            """async ([words, before]) => {
                const field = document.querySelector('[data-testid=search]');
                const shown = document.querySelector('[data-testid=shown]');
                const begun = performance.now();
                field.value = words;
                field.dispatchEvent(new Event('input', { bubbles: true }));
                while (shown.innerText === before && performance.now() - begun < 5000)
                    await new Promise(requestAnimationFrame);
                return performance.now() - begun;
            }""",
            [words, before],
        )
        self.filter_ms.append(took_ms)


def most(counts: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the most elements and the most nodes that were counted."""
    elements, nodes = zip(*counts, strict=True)
    return max(elements), max(nodes)


def browser_cpu_s() -> float:
    """Return what all processes of the browser have used, in seconds."""
    total = 0.0
    for one in psutil.Process().children(recursive=True):
        try:
            if "chrom" in one.name():
                times = one.cpu_times()
                total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total


async def opened(browser: Browser, url: str) -> tuple[Page, dict[str, float]]:
    """Open the page as somebody who was never there; say what was loaded and how soon it stood."""
    context = await browser.new_context(viewport={"width": 1360, "height": 860}, locale="en-GB")
    await context.add_init_script(WATCH)
    page = await context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    session = await context.new_cdp_session(page)
    loaded = await _loaded(session)
    begun = time.monotonic()
    await page.goto(url)
    await page.get_by_test_id("workers-online").wait_for()
    stands_s = time.monotonic() - begun
    files = {at: size for at, size in loaded.items() if "/page/" not in at and "data:" not in at}
    return page, {"page_kb": sum(files.values()) / 1e3, "opens_s": stands_s}


async def _loaded(session: CDPSession) -> dict[str, float]:
    """Note the bytes on the wire of all that is loaded, heads of answers included."""
    urls: dict[str, str] = {}
    sizes: dict[str, float] = {}
    session.on(
        "Network.responseReceived", lambda e: urls.update({e["requestId"]: e["response"]["url"]})
    )
    session.on(
        "Network.loadingFinished",
        lambda e: sizes.update({urls.get(e["requestId"], ""): e["encodedDataLength"]}),
    )
    await session.send("Network.enable")
    return sizes


async def visit(plan: Plan, url: str) -> dict[str, float]:
    """Look in turn at both pages, round after round."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        raise SystemExit("chromium is missing: sudo apt install chromium")
    rounds: list[tuple[Look, Look]] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=FLAGS)
        page, figures = await opened(browser, url)
        visitor = Visitor(page, plan.seconds)
        for number in range(ROUNDS):
            rounds.append((await visitor.overview(), await visitor.workers()))
            _say(f"round {number + 1}: {rounds[-1]}")
        heap = await page.evaluate("performance.memory ? performance.memory.usedJSHeapSize : 0")
        await browser.close()
    return figures | summed(rounds, visitor.filter_ms) | {"heap_mb": heap / 1e6}


def summed(rounds: list[tuple[Look, Look]], filter_ms: list[float]) -> dict[str, float]:
    """Return the figures of all rounds: the worst of what must never be, else the medians."""
    figures: dict[str, float] = {}
    for name, looks in zip(("overview", "workers"), zip(*rounds, strict=True), strict=True):
        tasks = [task for look in looks for task in look.tasks_ms]
        figures |= {
            f"{name}_longest_task_ms": max(tasks, default=0.0),
            f"{name}_tasks_over_50_ms": float(len(tasks)),
            f"{name}_elements": float(max(look.nodes[0] for look in looks)),
            f"{name}_nodes": float(max(look.nodes[1] for look in looks)),
            f"{name}_cpu_pct": statistics.median(look.cpu_pct for look in looks),
            f"{name}_kb_per_s": statistics.median(look.kb_per_s for look in looks),
        }
    lags = [lag for look, _ in rounds for lag in look.lags_ms]
    paints = [paint for look, _ in rounds for paint in look.paints_ms]
    return figures | {
        "paint_p50_ms": quantile(paints, 0.5),
        "paint_p95_ms": quantile(paints, 0.95),
        "lag_p50_ms": quantile(lags, 0.5),
        "lag_p95_ms": quantile(lags, 0.95),
        "lags": float(len(lags)),
        "lags_unseen": float(sum(look.unseen for look, _ in rounds)),
        "filter_p50_ms": quantile(filter_ms, 0.5),
        "filter_p95_ms": quantile(filter_ms, 0.95),
    }


def quantile(values: list[float], share: float) -> float:
    """Return a quantile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def run(plan: Plan, broker: BrokerProcess, folder: Path) -> dict[str, float]:
    """Let the boards come, load them, look."""
    port = free_port()
    environ = {"EDGEFLEET_DISPATCHER_GATEWAY__PORT": str(port)}
    watcher = Watcher()
    watching = asyncio.create_task(watcher.run(broker.url), name="watch")
    with dispatcher_process(broker.url, folder, environ=environ):
        _say(f"{plan.boards} boards come")
        async with swarms(broker.url, plan.boards):
            await watcher.until(online=plan.boards)
            async with MqttBus(BrokerSettings(url=broker.url), device_session()) as bus:
                device = Device(bus)
                load = Load(device, JOBS_PER_S)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(load.submit(), name="submit")
                    tasks.create_task(load.collect(), name="collect")
                    psutil.cpu_percent()  # what it returns next is the share since now
                    figures = await visit(plan, f"http://127.0.0.1:{port}")
                    busy = psutil.cpu_percent()
                    load.stop()
    watching.cancel()
    figures["machine_busy_pct"] = busy
    figures["jobs_without_answer"] = float(sum(device.failed.values()))
    return figures


def _say(what: str) -> None:
    print(what, file=sys.stderr)


def main() -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2,000 boards, two minutes")
    parser.add_argument("--boards", type=int, help="another number of boards")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    options = parser.parse_args()
    set_up_logging(level="warning")
    plan = QUICK if options.quick else WHOLE
    if options.boards:
        plan = Plan(boards=options.boards, seconds=plan.seconds)
    allow_files(plan.boards)
    with (
        tempfile.TemporaryDirectory() as at,
        BrokerProcess(BrokerKind.MOSQUITTO, Path(at) / "broker") as broker,
    ):
        figures = asyncio.run(run(plan, broker, Path(at)))
    longest = max(figures["overview_longest_task_ms"], figures["workers_longest_task_ms"])
    elements = max(figures["overview_elements"], figures["workers_elements"])
    report(
        "page",
        ours=figures,
        peers={},
        ratios={},
        aims={
            "longest_task_ms": Aim(longest, at_most=200.0),
            "lag_p95_ms": Aim(figures["lag_p95_ms"], at_most=500.0),
            "elements": Aim(elements, at_most=999.0),
            "page_kb": Aim(figures["page_kb"], at_most=160.0),
        },
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
