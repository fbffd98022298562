"""The ladder under an outage: dispatcher and worker as they are, over a broker in memory.

The mix of jobs is chosen so that each rung is needed; what a fleet of one's own keeps answering
hangs on what it is asked.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from cloud_dispatcher.adapters.offline_library import FileLibrary
from cloud_dispatcher.adapters.scripted_provider import ScriptedAnswer, ScriptedProvider
from cloud_dispatcher.ports import ProviderError
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from tests.unit.service_house import House, Peer
from tests.unit.test_worker_service import WORKER, Lab

LIBRARY = """
[[entry]]
name = "manual"
answer = "Page 12 of the manual shows it."
pattern = ["* summary of the manual*", "* manual *"]
[[entry]]
name = "leak"
answer = "leak"
pattern = ["* water *"]
"""
LEAST_SHARE = 0.87
DOWN = ScriptedAnswer(
    pieces=(), error=ProviderError("the provider is down", code="provider_unavailable")
)


def mixed_jobs() -> dict[str, m.JobSubmit]:
    """Return a hundred jobs: ordinary ones, some that ask for the cloud, some beyond any board."""
    jobs: dict[str, m.JobSubmit] = {}
    for number in range(100):
        prompt = f"number {number}: is it warm?"
        fields: dict[str, object] = {"max_tokens": 16}
        if number % 10 == 0:
            fields["escalate"] = m.Escalate.ALWAYS
        elif number % 10 == 1:  # the board's context holds no such answer
            fields["max_tokens"] = 4_096
            if number < 70:
                prompt = f"number {number}: a summary of the manual, please"
        elif number % 10 == 2:
            fields["privacy"] = m.Privacy.SITE
        jobs[str(number)] = m.JobSubmit(prompt=prompt, **fields)  # type: ignore[arg-type]
    return jobs


async def test_under_an_outage_of_the_cloud_nine_in_ten_jobs_get_a_useful_answer(
    house: House, device: Peer, tmp_path: Path
) -> None:
    path = tmp_path / "library.toml"
    path.write_text(LIBRARY)
    house.library = FileLibrary(path)
    house.provider = provider = ScriptedProvider(*[DOWN] * 100)
    lab = Lab(tmp_path)
    lab.broker = house.broker
    jobs = mixed_jobs()
    async with house.dispatcher(), lab.worker():
        async with house.peer(Peer, "watcher", f"workers/{WORKER}") as watcher:
            await watcher.hear(t.INFO, WORKER)
        for job, submit in jobs.items():
            device.say(t.SUBMIT, submit, "d1", job)
        results = {job: await device.result(job) for job in jobs}
    useful = [result for result in results.values() if result.status is m.JobStatus.OK]
    assert len(useful) / len(jobs) >= LEAST_SHARE
    by = Counter(str(result.answered_by) for result in useful)
    assert by == {"edge": 90, "offline": 7}
    assert len(provider.requests) == 20
    for job, result in results.items():
        number = int(job)
        if number % 10 == 0:  # a board in the cloud's place says so
            assert (result.degraded, result.code) == (True, "provider_unavailable")
        elif number % 10 != 1:
            assert not result.degraded
        elif number < 70:
            assert result.offline == m.OfflineMatch(kind="pattern", entry="manual", score=1.0)
            assert (result.degraded, result.code) == (True, "provider_unavailable")
            assert result.reason is m.Reason.TOO_LONG
        else:
            assert (result.status, result.code) == (m.JobStatus.FAILED, "provider_unavailable")


async def test_without_any_board_the_library_answers_when_the_time_is_over(
    house: House, device: Peer, tmp_path: Path
) -> None:
    path = tmp_path / "library.toml"
    path.write_text(LIBRARY)
    house.library = FileLibrary(path)
    async with house.dispatcher():
        output = m.OutputFormat(choices=("leak", "smoke"))
        submit = m.JobSubmit(prompt="there is water here", output=output, deadline_ms=8_000)
        device.say(t.SUBMIT, submit, "d1", "1")
        await device.ack("1")
        house.clock.now_ms += 8_000
        device.say(t.SUBMIT, m.JobSubmit(prompt="who?"), "d1", "2")
        result = await device.result("1")
        assert (result.text, result.answered_by) == ("leak", m.AnsweredBy.OFFLINE)
        assert (result.code, result.degraded) == ("deadline", True)
