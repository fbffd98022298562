"""What is told in one message, and what is not."""

from __future__ import annotations

import pytest

from cloud_dispatcher.core.commands import AnyCommand, Send
from cloud_dispatcher.publisher import Publisher
from fleet_protocol import codec
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.bus import Publication
from fleet_protocol.joint import JOINT_CHARS, JOINT_MAX
from tests.unit.session_lab import assignment

NAMES = t.Topics()


class Told:
    """A bus that keeps what is published."""

    def __init__(self) -> None:
        self.publications: list[Publication] = []

    def publish(self, publication: Publication) -> None:
        self.publications.append(publication)


def given(job: str, *, worker: str = "w1", joint: bool = True, expiry_ms: int = 30_000) -> Send:
    return Send(
        channel=t.ASSIGN,
        ids=(worker,),
        message=assignment(job),
        expiry_ms=expiry_ms,
        joint=joint,
    )


def publish(*commands: AnyCommand) -> list[Publication]:
    told = Told()
    Publisher(told, NAMES).tell(commands)  # type: ignore[arg-type] - all it needs
    return told.publications


def groups(publications: list[Publication]) -> list[list[str]]:
    """Return the jobs of each message, which a worker can read."""
    messages = [codec.decode(t.ASSIGN, publication.payload) for publication in publications]
    return [[one.job for one in message.each] for message in messages]  # type: ignore[attr-defined]


def test_a_workers_jobs_of_one_moment_travel_together() -> None:
    told = publish(given("J1"), given("J2", worker="w2"), given("J3"), given("J4"))
    assert groups(told) == [["J1", "J3", "J4"], ["J2"]]
    assert [one.topic for one in told] == [NAMES.name(t.ASSIGN, worker) for worker in ("w1", "w2")]
    assert {(one.qos, one.expiry_s) for one in told} == {(1, 30)}


def test_a_worker_of_an_earlier_release_gets_each_job_alone() -> None:
    told = publish(given("J1", joint=False), given("J2", joint=False))
    assert groups(told) == [["J1"], ["J2"]]


def test_what_expires_at_other_times_travels_alone() -> None:
    told = publish(given("J1"), given("J2", expiry_ms=5_000), given("J3"))
    assert groups(told) == [["J1", "J3"], ["J2"]]
    assert [one.expiry_s for one in told] == [30, 5]


@pytest.mark.parametrize(("expiry_ms", "expiry_s"), [(1, 1), (1_000, 1), (1_001, 2), (29_999, 30)])
def test_what_is_worth_something_is_not_dropped_by_the_broker_for_want_of_a_second(
    expiry_ms: int, expiry_s: int
) -> None:
    assert [one.expiry_s for one in publish(given("J1", expiry_ms=expiry_ms))] == [expiry_s]


def test_a_message_holds_so_many_jobs_at_most() -> None:
    jobs = [f"J{number}" for number in range(2 * JOINT_MAX + 1)]
    found = groups(publish(*map(given, jobs)))
    assert found == [jobs[:JOINT_MAX], jobs[JOINT_MAX:-1], jobs[-1:]]


@pytest.mark.parametrize("letter", ["a", "图", "\x00"])
def test_long_prompts_never_make_a_message_too_large_to_be_read(letter: str) -> None:
    prompt = (m.ChatMessage(role=m.ChatRole.USER, content=letter * (JOINT_CHARS // 3)),)
    sends = [
        Send(channel=t.ASSIGN, ids=("w1",), message=assignment(job, messages=prompt), joint=True)
        for job in ("J1", "J2", "J3", "J4")
    ]
    told = publish(*sends)
    assert groups(told) == [["J1", "J2", "J3"], ["J4"]]
    assert all(len(one.payload) <= m.Assignment.MAX_BYTES for one in told)
