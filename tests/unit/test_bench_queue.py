"""The queue benchmarks count what they say: jobs, growth, and refuse where something is missing."""

from __future__ import annotations

import io
import json
from pathlib import Path

import psutil
import pytest

from bench import crowd, parts, queue_peers, soak
from bench.dispatch import Comparison, medians
from bench.peers import producer
from bench.sides import Run
from bench.soak import Holding, Watch


def test_a_run_counts_jobs_per_second_and_the_quantiles_of_each_job() -> None:
    run = Run(wall_s=2.0, latencies_s=[n / 1_000 for n in range(1, 101)], cpu_s=0.005)
    assert run.jobs_per_s == 50
    assert run.quantile_ms(0.5) == pytest.approx(51)
    assert run.quantile_ms(0.99) == pytest.approx(100)
    assert run.cpu_us_per_job == pytest.approx(50)


def test_growth_is_from_the_warm_state_on() -> None:
    watch = Watch({})
    for minute in range(60):
        rss_mb = 50.0 + minute if minute < 10 else 100.0 + (minute >= 55) * 4
        watch.seen.append(Holding(minute * 60.0, "dispatcher", rss_mb, 20, 5 + (minute > 50)))
    grown = watch.growth("dispatcher", whole_s=3_600.0)
    assert grown["rss_growth_share"] == pytest.approx(0.04)
    assert grown["files_growth"] == 0
    assert grown["threads_growth"] == 1


def test_what_was_seen_is_written_as_a_table(tmp_path: Path) -> None:
    watch = Watch({"me": psutil.Process()}, file=tmp_path / "seen.csv")
    watch.look(at_s=10.0)
    head, row = (tmp_path / "seen.csv").read_text().split()
    assert head == "at_s,process,rss_mb,files,threads"
    assert row.startswith("10.0,me,")
    assert all(float(value) > 0 for value in row.split(",")[2:])


def test_a_tenth_of_the_questions_was_there_before() -> None:
    asked = soak.questions(1)
    seen = [next(asked) for _ in range(2_000)]
    assert 0.05 < 1 - len(set(seen)) / len(seen) < 0.15


def test_a_missing_server_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.queue_peers.shutil.which", lambda *_args, **_more: None)
    with pytest.raises(SystemExit, match=r"redis-server is missing.*apt install redis-server"):
        queue_peers.require_servers()


def test_too_few_open_files_are_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.crowd.resource.getrlimit", lambda _: (1_024, 1_024))
    with pytest.raises(SystemExit, match="10500 open files are needed and 1024 allowed"):
        crowd.allow_files(10_000)


def test_a_peer_is_compared_with_our_figures_of_the_same_round() -> None:
    comparison = Comparison({"ours": None, "peer": None}, "mqtt://127.0.0.1")  # type: ignore[dict-item]
    comparison.rounds["ours"] = [{"jobs_per_s": 300.0}, {"jobs_per_s": 100.0}]
    comparison.rounds["peer"] = [{"jobs_per_s": 100.0}, {"jobs_per_s": 50.0}]
    comparison.carried = [1_000.0, 500.0]
    assert comparison.ratios("peer") == [3.0, 2.0]
    assert comparison.carried_shares() == pytest.approx([0.9, 0.6])
    assert medians(comparison.rounds["ours"]) == {"jobs_per_s": 200.0}


def test_a_producer_keeps_the_window_full_and_waits_for_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    open_jobs: list[int] = []
    most = 0

    def send(text: str) -> int:
        nonlocal most
        open_jobs.append(len(text))
        most = max(most, len(open_jobs))
        return len(open_jobs)

    def wait(_handle: int) -> None:
        open_jobs.pop(0)

    request = json.dumps({"seconds": 0.02, "window": 8, "text": "hello"})
    monkeypatch.setattr("sys.stdin", io.StringIO(request + "\n"))
    producer.serve(send, wait)
    wall_s, latencies_s = json.loads(capsys.readouterr().out)
    assert most == 8
    assert open_jobs == []
    assert len(latencies_s) > 8
    assert wall_s >= 0.02


async def test_every_part_of_a_job_has_its_cost() -> None:
    costs = await parts.measure(2)
    names = "store_find decode decide store_write encode log_and_figures mqtt"
    assert set(costs) == {f"{name}_us" for name in names.split()}
    assert all(0 < cost < 100_000 for cost in costs.values())
