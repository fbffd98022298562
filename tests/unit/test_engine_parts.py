"""Long texts in parts: cut, answered in parallel, merged; one result."""

from __future__ import annotations

import msgspec
import pytest

from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.job import Job, ReplyTo
from cloud_dispatcher.core.spending import Payer
from fleet_protocol import messages as m
from fleet_protocol import topics
from tests.unit.engine_desk import Desk

SENTENCE = "The pump in hall {} was checked at noon and runs as it should. "
PARAGRAPHS = ["".join(SENTENCE.format(n) for _ in range(30)) for n in range(3)]
REPORT = "What runs?\n\n" + "\n\n".join(PARAGRAPHS)
"""An instruction and three paragraphs, of which one fits the desk's boards of 1,000 tokens."""


USAGE = m.Usage(prompt_tokens=10, completion_tokens=2)


def answer(
    desk: Desk,
    key: str,
    text: str,
    *,
    attempt: int = 1,
    worker: str | None = None,
    usage: m.Usage = USAGE,
) -> None:
    job = desk.job(key)
    local = m.LocalAnswer(text=text, model="small", confidence=0.9, usage=usage)
    desk.handle(
        e.DoneReceived(
            worker=m.WorkerId(worker or str(job.worker)),
            job=job.key,
            done=m.JobDone(attempt=attempt, answer=local),
        )
    )


def escalate_too_long(desk: Desk, key: str) -> None:
    job = desk.job(key)
    said = m.Escalation(attempt=job.attempt, reason=m.Reason.TOO_LONG, detail="figures")
    desk.handle(
        e.EscalationReceived(worker=m.WorkerId(str(job.worker)), job=job.key, escalation=said)
    )


def break_down(desk: Desk, key: str, *, code: str = "onnx", retryable: bool = False) -> None:
    job = desk.job(key)
    failure = m.JobFailed(attempt=job.attempt, code=code, message="no", retryable=retryable)
    desk.handle(e.FailureReceived(worker=m.WorkerId(str(job.worker)), job=job.key, failure=failure))


def parts_of(desk: Desk) -> list[Job]:
    """Return them in the order in which they were made."""
    return [job for job in desk.saved.values() if job.part is not None]


def said_to(job: Job) -> str:
    return job.submit.conversation[-1].content


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.worker("w1", slots=8)
    return desk


def split(desk: Desk, how: m.Split = m.Split.PARAGRAPHS, **fields: object) -> None:
    desk.submit(prompt=fields.pop("prompt", REPORT), split=how, **fields)


def test_who_pays_for_a_long_text_pays_for_its_parts_and_merges(desk: Desk) -> None:
    kitchen = Payer(key="kitchen", daily_usd=1.0)
    split(desk, payer=kitchen)
    for number in (0, 1, 2):
        answer(desk, f"K1-{number}", f"Part {number}.")
    assert len(parts_of(desk)) == 4
    assert {part.payer for part in parts_of(desk)} == {kitchen}


def test_a_long_text_is_answered_in_parts_and_their_answers_are_merged(desk: Desk) -> None:
    split(desk)
    assert desk.receivers(topics.ASSIGN) == ["w1"] * 3
    assert desk.sent(topics.ACK, m.JobAck)[0].status is m.AckStatus.ACCEPTED
    for number, part in enumerate(parts_of(desk)):
        assert said_to(part) == f"What runs?\n\n{PARAGRAPHS[number].strip()}"
    for number in (2, 0, 1):
        assert desk.sent(topics.RESULT, m.JobResult) == []
        answer(desk, f"K1-{number}", f"pump {number}")
    merge = desk.job("K1-3")
    assert said_to(merge).startswith("What runs?\n\n")
    assert said_to(merge).endswith("pump 0\n\npump 1\n\npump 2")
    answer(desk, "K1-3", "all pumps")
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.id, result.text, result.status) == ("1", "all pumps", m.JobStatus.OK)
    assert (result.answered_by, result.degraded) == (m.AnsweredBy.EDGE, False)


def test_a_sum_of_what_boards_make_up_is_still_a_result_that_can_be_read(desk: Desk) -> None:
    split(desk)
    parts = [part.key for part in parts_of(desk)]
    assert len(parts) > 1
    for part in parts:
        answer(desk, part, "same", usage=m.Usage(prompt_tokens=m.WHOLE_MAX))
    result = desk.job().result
    assert result is not None
    assert result.usage.prompt_tokens == m.WHOLE_MAX
    assert msgspec.json.decode(msgspec.json.encode(result), type=m.JobResult) == result


def test_usage_and_attempts_are_sums(desk: Desk) -> None:
    split(desk)
    break_down(desk, "K1-0", retryable=True)
    desk.wake()
    answer(desk, "K1-0", "a", attempt=2)
    answer(desk, "K1-1", "b")
    answer(desk, "K1-2", "c")
    answer(desk, "K1-3", "abc")
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert result.usage == m.Usage(prompt_tokens=40, completion_tokens=8)
    assert result.attempts == 5


def test_nobody_is_told_of_parts_and_all_are_let_go_with_the_result(desk: Desk) -> None:
    split(desk)
    for number in range(4):
        sends = [x for x in desk.commands if isinstance(x, c.Send) and x.ids[0] == "d1"]
        assert all(send.ids == ("d1", "1") for send in sends)
        assert not desk.job(f"K1-{number}").told
        answer(desk, f"K1-{number}", f"a{number}")
    assert all(part.told for part in parts_of(desk))
    desk.confirmed()
    assert desk.engine.summary().queued == 0
    assert not desk.engine._ledger.jobs


def test_parts_that_all_have_the_same_answer_are_not_merged(desk: Desk) -> None:
    split(desk)
    for number in (1, 0, 2):
        assert desk.sent(topics.RESULT, m.JobResult) == []
        answer(desk, f"K1-{number}", "no fault")
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.id, result.text, result.usage.completion_tokens) == ("1", "no fault", 6)
    assert len(parts_of(desk)) == 3


def test_what_fits_a_board_is_not_cut(desk: Desk) -> None:
    split(desk, prompt=f"What runs?\n\n{PARAGRAPHS[0]}")
    assert parts_of(desk) == []
    assert desk.receivers(topics.ASSIGN) == ["w1"]


def test_without_split_a_long_text_goes_to_the_cloud_as_ever(desk: Desk) -> None:
    split(desk, m.Split.NO, prompt=f"What runs?\n\n{'x' * 9_000}")
    assert desk.job().reason is m.Reason.TOO_LONG
    assert parts_of(desk) == []


def test_auto_cuts_only_what_fits_no_board(desk: Desk) -> None:
    split(desk, m.Split.AUTO)
    assert parts_of(desk) == []
    escalate_too_long(desk, "K1")
    assert desk.sent(topics.SETTLED, m.Settled)
    assert len(parts_of(desk)) == 3
    assert desk.job().status is m.JobStatus.QUEUED


def test_auto_cuts_at_once_what_is_too_long_for_certain(desk: Desk) -> None:
    split(desk, m.Split.AUTO, prompt="What runs?\n\n" + "\n\n".join(PARAGRAPHS * 4))
    assert len(parts_of(desk)) == 12
    assert desk.job().attempt == 0


def test_a_text_that_has_no_instruction_is_not_cut(desk: Desk) -> None:
    split(desk, prompt="x" * 9_000)
    assert parts_of(desk) == []
    assert desk.job().reason is m.Reason.TOO_LONG


def test_the_cloud_gets_a_text_whole_where_it_is_asked_for(desk: Desk) -> None:
    split(desk, escalate="always")
    assert parts_of(desk) == []
    assert desk.job().status is m.JobStatus.ESCALATED


def test_parts_fit_the_smallest_board_that_is_there(desk: Desk) -> None:
    info = m.WorkerInfo(
        boot="b1", slots=1, models=(m.ModelInfo(name="small", version="1", context_tokens=500),)
    )
    desk.inform("w2", info)
    desk.presence("w2")
    split(desk)
    assert len(parts_of(desk)) > 3


def test_a_part_that_a_board_finds_too_long_is_cut_again(desk: Desk) -> None:
    split(desk, privacy="site")
    answer(desk, "K1-0", "a")
    break_down(desk, "K1-1", code="too_long")
    assert desk.job("K1-1").status is m.JobStatus.CANCELLED
    smaller = [part.key for part in parts_of(desk)][3:]
    assert len(smaller) == 2
    assert " ".join(said_to(desk.job(k)).split("\n\n")[1] for k in smaller) == PARAGRAPHS[1].strip()
    answer(desk, "K1-2", "d")
    answer(desk, smaller[1], "c")
    answer(desk, smaller[0], "b")
    assert said_to(desk.job("K1-5")).endswith("a\n\nb\n\nc\n\nd")


def test_answers_too_long_for_one_board_are_merged_in_rounds(desk: Desk) -> None:
    split(desk, prompt="What runs?\n\n" + "\n\n".join(PARAGRAPHS * 2), max_tokens=300)
    texts = parts_of(desk)
    for part in texts:
        answer(desk, part.key, f"{part.key} {'word ' * 150}")
    merges = parts_of(desk)[len(texts) :]
    assert len(merges) > 1
    for number, merge in enumerate(merges):
        answer(desk, merge.key, f"short {number}")
    last = parts_of(desk)[-1]
    assert last.part is not None
    assert (last.part.round, last.part.start, last.part.end) == (2, 0, len(merges))
    assert said_to(last).endswith("\n\n".join(f"short {number}" for number in range(len(merges))))
    answer(desk, last.key, "done")
    assert desk.sent(topics.RESULT, m.JobResult)[0].text == "done"


def test_a_part_that_fails_once_is_tried_again_alone(desk: Desk) -> None:
    split(desk)
    break_down(desk, "K1-1", retryable=True)
    desk.wake()
    assert desk.sent(topics.ASSIGN, m.Assignment)[0].job == "K1-1"
    assert desk.job("K1-0").attempt == 1


def test_a_part_that_fails_for_good_fails_the_job_and_is_named(desk: Desk) -> None:
    split(desk)
    answer(desk, "K1-0", "a")
    break_down(desk, "K1-1")
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.status, result.code) == (m.JobStatus.FAILED, "part_failed")
    assert "part 1 (K1-1)" in result.message
    assert "onnx" in result.message
    assert desk.sent(topics.WORKER_CANCEL, m.WorkerCancel)[0].job == "K1-2"
    assert desk.job().dead
    assert not any(part.dead for part in parts_of(desk))
    assert all(part.told for part in parts_of(desk))


def test_a_job_tried_again_by_a_person_makes_new_parts(desk: Desk) -> None:
    split(desk)
    break_down(desk, "K1-1")
    assert desk.admin(m.AdminOp.JOB_RETRY, job="K1-1").code == "part_of_a_job"
    reply = desk.admin(m.AdminOp.JOB_RETRY, job="K1")
    assert reply.jobs[0].parts == 6
    for number in range(3, 7):
        answer(desk, f"K1-{number}", f"a{number}")
    assert desk.sent(topics.RESULT, m.JobResult)[0].text == "a6"


def test_a_degraded_part_makes_the_answer_degraded(desk: Desk) -> None:
    split(desk)
    answer(desk, "K1-0", "a")
    answer(desk, "K1-2", "c")
    job = desk.job("K1-1")
    kept = m.LocalAnswer(text="b", model="small", confidence=0.1)
    said = m.Escalation(attempt=1, reason=m.Reason.LOW_CONFIDENCE, answer=kept)
    desk.handle(e.EscalationReceived(worker=m.WorkerId("w1"), job=job.key, escalation=said))
    failed = e.CompletionFailed(job=job.key, attempt=2, code="no_provider", message="no key")
    desk.handle(failed)
    answer(desk, "K1-3", "abc")
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.text, result.degraded, result.code) == ("abc", True, "no_provider")


def test_what_the_cloud_took_for_a_part_is_on_the_jobs_bill(desk: Desk) -> None:
    split(desk)
    said = m.Escalation(attempt=1, reason=m.Reason.COMPLEX)
    key = m.JobKey("K1-1")
    desk.handle(e.EscalationReceived(worker=m.WorkerId("w1"), job=key, escalation=said))
    desk.handle(
        e.CompletionFinished(
            job=key, attempt=2, text="b", model="deepseek", usage=m.Usage(), cost_usd=0.5
        )
    )
    for number in (0, 2, 3):
        answer(desk, f"K1-{number}", f"a{number}")
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.answered_by, result.cost_usd) == (m.AnsweredBy.EDGE, 0.5)
    assert [spend.cost_usd for spend in desk.spends] == [0.5]


def test_a_long_text_says_nothing_of_how_quick_the_boards_are(desk: Desk) -> None:
    split(desk)
    desk.now_ms += 60_000
    for number in range(4):
        answer(desk, f"K1-{number}", f"a{number}")
    desk.handle(e.LoadLooked())
    load = desk.engine.load()
    assert load.edge_p50_ms is None
    desk.submit(2)
    answer(desk, "K2", "b")
    desk.handle(e.LoadLooked())
    assert desk.engine.load().edge_p50_ms == 0


@pytest.mark.parametrize("who", ["device", "operator"])
def test_a_cancelled_job_takes_its_parts_along(desk: Desk, who: str) -> None:
    split(desk)
    answer(desk, "K1-0", "a")
    if who == "device":
        desk.cancel()
    else:
        assert desk.admin(m.AdminOp.JOB_CANCEL, job="K1").ok
    cancelled = {x.job for x in desk.sent(topics.WORKER_CANCEL, m.WorkerCancel)}
    assert cancelled == {"K1-1", "K1-2"}
    assert desk.sent(topics.RESULT, m.JobResult)[0].status is m.JobStatus.CANCELLED
    assert all(part.told for part in parts_of(desk))


def test_the_deadline_is_that_of_all_parts(desk: Desk) -> None:
    split(desk, deadline_ms=5_000)
    assert {part.deadline_at_ms for part in parts_of(desk)} == {desk.now_ms + 5_000}
    desk.handle(e.TimePassed(), after_ms=5_000)
    (result,) = desk.sent(topics.RESULT, m.JobResult)
    assert (result.status, result.code) == (m.JobStatus.EXPIRED, "deadline")
    assert all(part.told for part in parts_of(desk))


def test_a_restart_repeats_no_answered_part(desk: Desk) -> None:
    split(desk)
    answer(desk, "K1-0", "a")
    answer(desk, "K1-2", "c")
    desk.restart()
    desk.worker("w1", slots=8)
    answer(desk, "K1-1", "b")
    assert said_to(desk.job("K1-3")).endswith("a\n\nb\n\nc")
    desk.restart()
    desk.worker("w1", slots=8)
    answer(desk, "K1-3", "abc")
    assert desk.sent(topics.RESULT, m.JobResult)[0].text == "abc"
    assert len(parts_of(desk)) == 4


def test_a_stream_shows_the_answers_of_the_parts_in_the_order_of_the_text(desk: Desk) -> None:
    split(desk, stream=True)
    answer(desk, "K1-1", "b")
    assert desk.sent(topics.TOKENS, m.TokenChunk) == []
    answer(desk, "K1-0", "a")
    assert desk.sent(topics.TOKENS, m.TokenChunk) == [
        m.TokenChunk(i=0, t="a\n\n"),
        m.TokenChunk(i=1, t="b\n\n"),
    ]
    answer(desk, "K1-2", "c")
    assert desk.sent(topics.TOKENS, m.TokenChunk) == [m.TokenChunk(i=2, t="c\n\n")]


def test_who_asked_in_plain_text_gets_one_plain_answer(desk: Desk) -> None:
    split(desk, reply=ReplyTo(plain=True), stream=True)
    for number in range(4):
        assert desk.sent(topics.ANSWER, m.PlainText) == []
        answer(desk, f"K1-{number}", f"a{number}")
    assert desk.sent(topics.ANSWER, m.PlainText) == [m.PlainText(text="a3")]


def test_an_equal_long_text_is_no_answer_to_one_in_parts(desk: Desk) -> None:
    split(desk)
    assert desk.job().answer_key is None


def test_the_rules_of_the_job_are_those_of_its_parts(desk: Desk) -> None:
    split(desk, privacy="site", priority=8, max_tokens=32, temperature=0.5)
    for part in parts_of(desk):
        submit = part.submit
        assert (submit.privacy, submit.priority) == (m.Privacy.SITE, 8)
        assert (submit.max_tokens, submit.temperature) == (32, 0.5)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(part), type=Job) == part
