"""The dashboard before ten thousand boards: is it quick, is it small, what does the browser pay?

Broker, dispatcher with its gateway and the boards (`bench/swarm.py`, each with a connection of its
own) are processes; the page is the shipped one in the distribution's headless chromium. A device
submits jobs, so that figures change. In each round somebody looks at the overview, then scrolls,
sorts and filters the table of workers; at the end the nodes of the other pages are counted.
Everything runs on one machine: what the boards take, the browser does not get, so a machine that
is busy shows in every figure.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from playwright.async_api import Browser, CDPSession, Page, async_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.browser import FLAGS
from bench.crowd import allow_files, crowd, under_load
from bench.processes import free_port
from bench.report import Aim, report
from fleet_cli.broker import BrokerKind, BrokerProcess
from fleet_protocol.log import set_up_logging

ROUNDS = 3
JOBS_PER_S = 50
SETTLE_S = 2.0
STEP_S = 0.1
READ_S = 1.0
PATIENCE_MS = 120_000
WATCH = Path(__file__).with_name("page_watch.js")
OTHER_PAGES = {
    "workers/board00007": "main dl",
    "jobs": "main tbody tr",
    "models": "main li",
    "alerts": "main tbody tr",
    "playground": "main textarea",
}
"""And what stands there once all is loaded."""
_READ_BYTES = 65_536

Nodes = tuple[int, int]
"""Elements, and all nodes."""


@dataclass(frozen=True)
class Plan:
    """How large, how long."""

    boards: int
    seconds: float


WHOLE = Plan(boards=10_000, seconds=9.0)
QUICK = Plan(boards=2_000, seconds=4.0)


@dataclass(kw_only=True)
class Look:
    """What one look at the page showed.

    Attributes:
        tasks_ms: Tasks that blocked the page for 50 ms or more.
        lags_ms: From the dispatcher's stamp to the figures on the screen: of a summary, on the
            overview; of a shard of workers, on theirs.
        paints_ms: The page's own part of it, from when it has read the message.
        unseen: What was told of nothing in view, or changed nothing there: nothing is known of it.
        nodes: Most at any moment.
        cpu_pct: Of one core, all processes of the browser.
        kb_per_s: From the gateway, as it was on the wire.
    """

    tasks_ms: list[float]
    lags_ms: list[float]
    paints_ms: list[float]
    unseen: int
    nodes: Nodes
    cpu_pct: float
    kb_per_s: float


@dataclass
class Wire:
    """Passes on what a browser and the gateway say to each other.

    Attributes:
        to_browser: Bytes, so far.
    """

    to_browser: int = 0

    @contextlib.asynccontextmanager
    async def before(self, port: int) -> AsyncIterator[int]:
        """Stand before the gateway at a port; yield the port to use instead."""
        here = free_port()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
            pumps = (self._pump(reader, up_writer), self._pump(up_reader, writer, counts=True))
            with contextlib.suppress(OSError):
                await asyncio.gather(*pumps)

        async with await asyncio.start_server(serve, "127.0.0.1", here):
            yield here

    async def _pump(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, *, counts: bool = False
    ) -> None:
        try:
            while data := await source.read(_READ_BYTES):
                if counts:
                    self.to_browser += len(data)
                to.write(data)
                await to.drain()
        finally:
            to.close()


class Visitor:
    """Somebody who looks at the page."""

    def __init__(self, page: Page, wire: Wire, seconds: float) -> None:
        self.filter_ms: list[float] = []
        self._page = page
        self._wire = wire
        self._seconds = seconds

    async def overview(self) -> Look:
        """Come anew, look, and touch nothing."""
        await self._go("overview")
        await self._page.reload()
        await self._page.get_by_test_id("workers-online").wait_for()
        return await self._look(self._rest)

    async def workers(self) -> Look:
        """Scroll, read for a moment, sort and filter, again and again."""
        await self._go("workers")
        await self._page.get_by_test_id("shown").wait_for()
        return await self._look(self._use)

    async def elsewhere(self) -> Nodes:
        """Open each of the other pages; return the most nodes."""
        counts = []
        for path, part in OTHER_PAGES.items():
            await self._go(path)
            await self._page.locator(part).first.wait_for()
            await asyncio.sleep(SETTLE_S)
            counts.append(await self._nodes())
            _say(f"{path}: {counts[-1]} nodes")
        return most(counts)

    async def _go(self, path: str) -> None:
        await self._page.evaluate(f"location.hash = '#/{path}'")

    async def _look(self, act: Callable[[float], Awaitable[Nodes]]) -> Look:
        await asyncio.sleep(SETTLE_S)
        await self._page.evaluate("window.seen.begin()")
        begun, cpu_s, sent = time.monotonic(), browser_cpu_s(), self._wire.to_browser
        nodes = await act(begun + self._seconds)
        span_s = time.monotonic() - begun
        cpu_pct = (browser_cpu_s() - cpu_s) / span_s * 100
        seen = await self._page.evaluate("({...window.seen})")
        return Look(
            tasks_ms=seen["tasks"],
            lags_ms=seen["lags"],
            paints_ms=seen["paints"],
            unseen=seen["unseen"],
            nodes=nodes,
            cpu_pct=cpu_pct,
            kb_per_s=(self._wire.to_browser - sent) / span_s / 1e3,
        )

    async def _rest(self, until: float) -> Nodes:
        counts = [await self._nodes()]
        while time.monotonic() < until:
            await asyncio.sleep(1)
            counts.append(await self._nodes())
        return most(counts)

    async def _nodes(self) -> Nodes:
        elements, nodes = await self._page.evaluate("window.seen.nodes()")
        return elements, nodes

    async def _use(self, until: float) -> Nodes:
        counts, turn = [await self._nodes()], 0
        await self._page.mouse.move(600, 500)
        columns = self._page.get_by_role("columnheader").get_by_role("button")
        while time.monotonic() < until:
            for _ in range(10):
                await self._page.mouse.wheel(0, 900)
                await asyncio.sleep(STEP_S)
            counts.append(await self._nodes())
            await asyncio.sleep(READ_S)
            await columns.nth(turn % 6).click()
            # Some boards have these digits in their names.
            for words in (str(10 + turn % 90), ""):
                took_ms = await self._page.evaluate("(words) => window.seen.search(words)", words)
                self.filter_ms.append(took_ms)
                counts.append(await self._nodes())
            turn += 1
        return most(counts)


def most(counts: list[Nodes]) -> Nodes:
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
    await context.add_init_script(path=WATCH)
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


async def visit(plan: Plan, wire: Wire, url: str) -> dict[str, float]:
    """Look in turn at both pages, round after round."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        raise SystemExit("chromium is missing: sudo apt install chromium")
    rounds: list[tuple[Look, Look]] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=FLAGS)
        page, figures = await opened(browser, url)
        visitor = Visitor(page, wire, plan.seconds)
        for number in range(ROUNDS):
            rounds.append((await visitor.overview(), await visitor.workers()))
            _say(f"round {number + 1}: {rounds[-1]}")
        elements, nodes = await visitor.elsewhere()
        heap = await page.evaluate("performance.memory ? performance.memory.usedJSHeapSize : 0")
        await browser.close()
    figures |= {"elsewhere_elements": elements, "elsewhere_nodes": nodes, "heap_mb": heap / 1e6}
    return figures | summed(rounds, visitor.filter_ms)


def summed(rounds: list[tuple[Look, Look]], filter_ms: list[float]) -> dict[str, float]:
    """Return the figures of all rounds: the worst of what must never be, else the medians."""
    figures: dict[str, float] = {}
    for name, looks in zip(("overview", "workers"), zip(*rounds, strict=True), strict=True):
        tasks = [task for look in looks for task in look.tasks_ms]
        lags = [lag for look in looks for lag in look.lags_ms]
        paints = [paint for look in looks for paint in look.paints_ms]
        figures |= {
            f"{name}_longest_task_ms": max(tasks, default=0.0),
            f"{name}_tasks_over_50_ms": float(len(tasks)),
            f"{name}_lag_p50_ms": quantile(lags, 0.5),
            f"{name}_lag_p95_ms": quantile(lags, 0.95),
            f"{name}_paint_p50_ms": quantile(paints, 0.5),
            f"{name}_paint_p95_ms": quantile(paints, 0.95),
            f"{name}_lags": float(len(lags)),
            f"{name}_unseen": float(sum(look.unseen for look in looks)),
            f"{name}_elements": float(max(look.nodes[0] for look in looks)),
            f"{name}_nodes": float(max(look.nodes[1] for look in looks)),
            f"{name}_cpu_pct": statistics.median(look.cpu_pct for look in looks),
            f"{name}_kb_per_s": statistics.median(look.kb_per_s for look in looks),
        }
    return figures | {
        "filter_p50_ms": quantile(filter_ms, 0.5),
        "filter_p95_ms": quantile(filter_ms, 0.95),
    }


def quantile(values: list[float], share: float) -> float:
    """Return a quantile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def worst(figures: dict[str, float], name: str) -> float:
    """Return the largest of a figure's values, one for each page."""
    return max(value for key, value in figures.items() if key.endswith(f"_{name}"))


async def run(plan: Plan, broker: BrokerProcess, folder: Path) -> dict[str, float]:
    """Let the boards come, load them, look."""
    port, wire = free_port(), Wire()
    environ = {"EDGEFLEET_DISPATCHER_GATEWAY__PORT": str(port)}
    async with (
        crowd(broker.url, folder, plan.boards, environ=environ),
        under_load(broker.url, JOBS_PER_S) as load,
        wire.before(port) as here,
    ):
        psutil.cpu_percent()  # what it returns next is the share since now
        figures = await visit(plan, wire, f"http://127.0.0.1:{here}")
        busy = psutil.cpu_percent()
    figures["machine_busy_pct"] = busy
    figures["jobs_without_answer"] = float(sum(load.device.failed.values()))
    return figures


def _say(what: str) -> None:
    print(what, file=sys.stderr)


def main() -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2,000 boards, a minute")
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
        figures = {"boards": float(plan.boards)} | asyncio.run(run(plan, broker, Path(at)))
    report(
        "page",
        ours=figures,
        peers={},
        ratios={},
        aims={
            "longest_task_ms": Aim(worst(figures, "longest_task_ms"), at_most=200.0),
            "lag_p95_ms": Aim(worst(figures, "lag_p95_ms"), at_most=500.0),
            "nodes": Aim(worst(figures, "nodes"), at_most=999.0),
            "page_kb": Aim(figures["page_kb"], at_most=160.0),
        },
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
