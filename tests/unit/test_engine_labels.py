"""Jobs that need a board with a label, and boards that have it."""

from __future__ import annotations

import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.labels import LabelledPools, names_of
from cloud_dispatcher.core.policies import LeastConnections, TwoChoices
from cloud_dispatcher.core.queue import Need
from cloud_dispatcher.core.scheduler import FreeWorkers, Policy, WorkerLoad
from fleet_protocol import messages as m
from fleet_protocol import topics
from tests.unit.engine_desk import Desk


def join(desk: Desk, name: str, *models: str, slots: int = 1, **labels: str) -> None:
    known = models or ("small",)
    offered = [m.ModelInfo(name=model, version="1", context_tokens=1_000) for model in known]
    info = m.WorkerInfo(boot="b1", slots=slots, models=tuple(offered), labels=labels)
    desk.inform(name, info)
    desk.presence(name)


def given_to(desk: Desk) -> list[tuple[str, str]]:
    """Return which job went to whom by the last event."""
    sends = [x for x in desk.commands if isinstance(x, c.Send) and x.channel is topics.ASSIGN]
    return [(x.message.job, x.ids[0]) for x in sends if isinstance(x.message, m.Assignment)]


def look(desk: Desk, number: int = 1, **fields: object) -> None:
    """Ask what only a board with a camera can say."""
    desk.submit(number, reply=None, needs={"label": "camera"}, **fields)


def ack(desk: Desk) -> m.JobAck:
    return desk.sent(topics.ACK, m.JobAck)[0]


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    join(desk, "bare", slots=9)
    join(desk, "seeing", camera="", site="north")
    return desk


@pytest.mark.parametrize("label", ["camera", "site", "site=north"])
def test_a_job_goes_to_a_board_with_its_label_alone(desk: Desk, label: str) -> None:
    for number in (1, 2):
        desk.submit(number, needs={"label": label})
        assert given_to(desk) == ([("K1", "seeing")] if number == 1 else [])
    desk.submit(3)
    assert given_to(desk) == [("K3", "bare")], "it must not wait behind one that waits for a label"
    desk.done(worker="seeing")
    assert given_to(desk) == [("K2", "seeing")]


def test_a_label_that_no_board_ever_had_is_refused_with_the_known_ones(desk: Desk) -> None:
    desk.submit(needs={"label": "site=south"})
    assert (ack(desk).status, ack(desk).code) == (m.AckStatus.REJECTED, "unknown_label")
    assert "camera, site, site=north" in ack(desk).message
    assert desk.all_of(c.SaveJob) == []


def test_labels_that_devices_make_up_leave_nothing_behind(desk: Desk) -> None:
    desk.submit(needs={"label": "made-up"})
    tracemalloc.start()
    for number in range(2_000):
        desk.submit(needs={"label": f"made-up-{number}"})
        assert ack(desk).code == "unknown_label"
    left_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert left_bytes < 20_000


def test_where_boards_with_it_are_away_the_job_waits_for_them(desk: Desk) -> None:
    desk.presence("seeing", status=m.PresenceStatus.OFFLINE)
    look(desk)
    assert ack(desk).status is m.AckStatus.ACCEPTED
    assert given_to(desk) == []
    desk.presence("seeing")
    assert given_to(desk) == [("K1", "seeing")]


def test_before_any_board_is_known_any_may_come() -> None:
    desk = Desk()
    look(desk)
    assert ack(desk).status is m.AckStatus.ACCEPTED
    join(desk, "bare")
    assert given_to(desk) == []
    join(desk, "seeing", camera="")
    assert given_to(desk) == [("K1", "seeing")]


def test_label_and_model_must_be_the_same_boards(desk: Desk) -> None:
    join(desk, "both", "small", "large", camera="", slots=2)
    join(desk, "south", "large", site="south")
    desk.submit(1, needs={"label": "camera", "model": "large"})
    assert given_to(desk) == [("K1", "both")]
    assert desk.sent(topics.ASSIGN, m.Assignment)[0].model == "large"
    desk.submit(2, needs={"label": "site=north", "model": "large"})
    assert ack(desk).code == "unknown_model"
    assert "with the label 'site=north'" in ack(desk).message


def test_what_is_too_long_for_the_boards_with_a_label_is_too_long(desk: Desk) -> None:
    desk.inform("roomy", m.WorkerInfo(boot="b", models=(MODEL_OF_8K,)))
    desk.presence("roomy")
    long = "x" * 20_000
    desk.submit(1, prompt=long)
    assert given_to(desk) == [("K1", "roomy")]
    look(desk, 2, prompt=long, escalate="never")
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.status, result.code) == (m.JobStatus.FAILED, "too_long")


MODEL_OF_8K = m.ModelInfo(name="small", version="1", context_tokens=8_000)


def test_whoever_asks_for_the_cloud_needs_no_board(desk: Desk) -> None:
    desk.submit(needs={"label": "nowhere"}, escalate="always")
    assert len(desk.all_of(c.StartCompletion)) == 1


def test_an_answer_from_elsewhere_is_neither_given_nor_waited_for(desk: Desk) -> None:
    desk.submit(1, prompt="Who is there?")
    look(desk, 2, prompt="Who is there?")
    assert given_to(desk) == [("K2", "seeing")]
    desk.done(worker="bare")
    assert [said.id for said in desk.sent(topics.RESULT, m.JobResult)] == ["1"]
    desk.done(worker="seeing", key="K2")
    look(desk, 3, prompt="Who is there?")
    assert desk.sent(topics.RESULT, m.JobResult)[0].answered_by is m.AnsweredBy.CACHE


def test_a_follow_up_does_not_go_to_its_board_without_the_label(desk: Desk) -> None:
    desk.submit(1, prompt="Who is there?")
    desk.done(worker="bare")
    turns = [("user", "Who is there?"), ("assistant", "blue"), ("user", "And now?")]
    words = [{"role": role, "content": said} for role, said in turns]
    look(desk, 2, prompt=None, messages=words)
    assert given_to(desk) == [("K2", "seeing")]


def test_a_board_that_lost_its_label_gets_no_more_such_jobs(desk: Desk) -> None:
    look(desk, 1)
    look(desk, 2)
    join(desk, "seeing")
    desk.done(worker="seeing")
    assert given_to(desk) == []
    join(desk, "bare", camera="")
    assert desk.job("K2").worker == "bare"


def test_it_is_the_same_after_a_restart(desk: Desk) -> None:
    desk.presence("seeing", status=m.PresenceStatus.OFFLINE)
    look(desk)
    desk.restart()
    join(desk, "bare")
    assert given_to(desk) == []
    join(desk, "seeing", camera="")
    assert given_to(desk) == [("K1", "seeing")]


def test_the_parts_of_a_long_text_need_what_it_needs(desk: Desk) -> None:
    text = "What runs?\n\n" + "\n\n".join("A pump runs as it should. " * 60 for _ in range(3))
    look(desk, 1, prompt=text, split="paragraphs")
    assert {worker for _, worker in given_to(desk)} == {"seeing"}


def test_needs_may_name_the_model_that_the_job_names_but_no_other() -> None:
    for fields in ({"needs": {"model": "a"}}, {"needs": {"model": "a"}, "model": "a"}):
        submit = msgspec.convert({"prompt": "x"} | fields, m.JobSubmit)
        assert submit.model == "a"
        assert msgspec.json.decode(msgspec.json.encode(submit), type=m.JobSubmit) == submit
    with pytest.raises(msgspec.ValidationError, match="different models"):
        msgspec.convert({"prompt": "x", "model": "b", "needs": {"model": "a"}}, m.JobSubmit)


def test_a_label_with_a_value_has_two_names() -> None:
    assert names_of({"camera": "", "site": "north"}) == {"camera", "site", "site=north"}


# -------------------------------------------------------------------- the pools

CHANGES = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.none() | st.tuples(st.integers(0, 3), st.sets(st.sampled_from("xyz"))),
        st.sampled_from([None, "x", "y", "z"]),
    ),
    max_size=40,
)


@given(changes=CHANGES)
@pytest.mark.parametrize("policy", [LeastConnections(), TwoChoices()])
def test_a_pick_is_that_of_a_pool_of_those_with_the_label(
    policy: Policy, changes: list[tuple[str, tuple[int, set[str]] | None, str | None]]
) -> None:
    pools, free = LabelledPools(policy.pool), dict[str, tuple[int, set[str]]]()
    for name, state, asked in changes:
        if state is None:
            pools.strike(m.WorkerId(name))
            free.pop(name, None)
        else:
            free[name] = state
            load = WorkerLoad(1.0, state[0], 0)
            pools.file(m.WorkerId(name), load, lambda _: True, frozenset(state[1]))
        able = {name for name, (_, has) in free.items() if asked is None or asked in has}
        picked = pools.pick_worker(Need(None, 0, label=asked))
        assert (picked in able) if able else picked is None
        if isinstance(policy, LeastConnections) and picked is not None:
            assert free[picked][0] == min(free[name][0] for name in able)
        assert len(pools) == len(free)
        assert pools.labels == set[str]().union(*(has for _, has in free.values()))


def test_a_change_files_a_worker_only_where_it_belongs() -> None:
    filings = list[str]()

    class Counting(FreeWorkers):
        def file(self, worker: m.WorkerId, *how: object) -> None:
            filings.append(worker)
            super().file(worker, *how)  # type: ignore[arg-type]

    pools = LabelledPools(lambda: Counting(lambda load, _: (load.inflight,)))
    for number in range(100):
        load, label = WorkerLoad(1.0, 0, 0), frozenset({f"site={number}"})
        pools.file(m.WorkerId(f"w{number}"), load, lambda _: True, label)
    for number in range(100):
        assert pools.pick_worker(Need(None, 0, label=f"site={number}")) == f"w{number}"
    filings.clear()
    pools.file(m.WorkerId("w7"), WorkerLoad(1.0, 1, 0), lambda _: True, frozenset({"site=7"}))
    assert filings == ["w7", "w7"], "among all, and among those of its site"


def test_a_worker_that_was_removed_takes_its_labels_with_it(desk: Desk) -> None:
    desk.handle(e.PresenceChanged(worker=m.WorkerId("seeing"), presence=None))
    desk.handle(e.InfoReceived(worker=m.WorkerId("seeing"), info=None))
    look(desk)
    assert ack(desk).code == "unknown_label"
