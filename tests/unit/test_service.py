"""The shell on its main paths: what is said to whom, and that it is saved first."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from structlog.testing import capture_logs

from cloud_dispatcher.adapters.providers import NoProvider, ProviderSettings
from cloud_dispatcher.adapters.scripted_provider import ScriptedAnswer, ScriptedProvider
from cloud_dispatcher.core.commands import CompletionRequest
from cloud_dispatcher.ports import CompletionPart, JobQuery
from cloud_dispatcher.presence import session_of
from fleet_protocol import codec
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from tests.contract.job_samples import listed
from tests.unit.service_house import QUESTION, TOPICS, House, Peer, Worker


async def test_a_job_is_accepted_assigned_answered_and_settled(
    house: House, device: Peer, worker: Worker
) -> None:
    async with house.dispatcher():
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        assert (await device.ack("j1")).status is m.AckStatus.ACCEPTED
        got = await worker.assignment()
        assert got.messages[0].content == QUESTION.prompt
        worker.done(got)
        result = await device.result("j1")
        settled = await worker.read(m.Settled, t.SETTLED, "w1")
    assert (result.status, result.text, result.worker) == ("ok", "It is so.", "w1")
    assert settled.jobs == (m.AttemptRef(job=got.job, attempt=1),)
    assert [job.told for job in await listed(house.store)] == [True]
    assert house.unacknowledged == 0


async def test_the_end_of_a_job_is_one_log_line_without_its_texts(
    house: House, device: Peer, worker: Worker
) -> None:
    with capture_logs() as lines:
        async with house.dispatcher():
            device.say(t.SUBMIT, QUESTION, "d1", "j1")
            worker.done(await worker.assignment())
            await device.result("j1")
    finished = [line for line in lines if line["event"] == "job.finished"]
    assert len(finished) == 1
    assert finished[0]["prompt_chars"] == len(QUESTION.prompt or "")
    assert finished[0]["worker"] == "w1"
    assert "hall" not in str(lines)
    assert "It is so" not in str(lines)


async def test_what_arrives_together_shares_a_commit_and_a_settled_message(
    house: House, device: Peer, worker: Worker
) -> None:
    async with house.dispatcher():
        worker.join(slots=30)
        for number in range(30):
            device.say(t.SUBMIT, m.JobSubmit(prompt=f"Is hall {number} warm?"), "d1", f"j{number}")
        held = [await worker.assignment(after=number) for number in range(30)]
        assert house.store.commits == 1
        for got in held:
            worker.done(got)
        settled = await worker.read(m.Settled, t.SETTLED, "w1")
        assert {ref.job for ref in settled.jobs} == {got.job for got in held}


async def test_more_than_one_turn_can_hold_is_dealt_with_all_the_same(
    house: House, device: Peer
) -> None:
    async with house.dispatcher():
        for number in range(1_200):
            device.say(t.SUBMIT, m.JobSubmit(prompt=f"Is hall {number} warm?"), "d1", f"j{number}")
        assert (await device.ack("j1199")).position > 0
        assert len(await house.store.load_open()) == 1_200


async def test_a_plain_question_gets_a_plain_answer(
    house: House, device: Peer, worker: Worker
) -> None:
    async with house.dispatcher():
        device.throw(TOPICS.name(t.ASK, "d1"), b"Is the hall warm?")
        worker.done(await worker.assignment(), "Yes.")
        assert (await device.hear(t.ANSWER, "d1")).payload == b"Yes."


async def test_a_plain_question_that_cannot_be_read_is_answered_in_words(
    house: House, device: Peer
) -> None:
    async with house.dispatcher():
        device.throw(TOPICS.name(t.ASK, "d1"), b"\xff\xfe")
        assert b"malformed" in (await device.hear(t.ANSWER, "d1")).payload


async def test_tokens_are_relayed_to_a_device_that_streams(
    house: House, device: Peer, worker: Worker
) -> None:
    async with house.dispatcher():
        device.say(t.SUBMIT, m.JobSubmit(prompt="Go on", stream=True), "d1", "j1")
        got = await worker.assignment()
        worker.say(t.WORKER_TOKENS, m.WorkerTokenChunk(attempt=1, i=0, t="Yes"), "w1", got.job)
        chunk = await device.read(m.TokenChunk, t.TOKENS, "d1", "j1")
        assert (chunk.i, chunk.t) == (0, "Yes")


async def test_a_hard_job_is_answered_by_the_provider(
    house: House, device: Peer, worker: Worker, viewer: Peer
) -> None:
    house.provider = ScriptedProvider(ScriptedAnswer(pieces=("A ", "cloud."), cost_usd=0.5))
    async with house.dispatcher():
        device.say(t.SUBMIT, m.JobSubmit(prompt="Why?", stream=True), "d1", "j1")
        got = await worker.assignment()
        answer = m.LocalAnswer(text="Hm", model="tiny", confidence=0.1)
        said = m.Escalation(attempt=1, reason=m.Reason.LOW_CONFIDENCE, answer=answer)
        worker.say(t.ESCALATE, said, "w1", got.job)
        result = await device.result("j1")
        chunk = await device.read(m.TokenChunk, t.TOKENS, "d1", "j1")
        house.clock.now_ms += 2_000
        worker.join()
        summary = await viewer.until(m.FleetSummary, t.SUMMARY, lambda s: bool(s.finished))
    assert (result.text, result.answered_by, result.reason) == ("A cloud.", "cloud", said.reason)
    assert result.simulated
    assert chunk.t == "A "
    assert summary.reasons == {"low_confidence": 1}
    assert summary.answered_by == {"cloud": 1}
    assert summary.workers == {"online": 1}
    assert summary.cost_usd == 0.5


async def test_without_a_provider_the_kept_answer_is_given_and_labelled(
    house: House, device: Peer, worker: Worker
) -> None:
    house.provider = NoProvider(ProviderSettings())
    async with house.dispatcher():
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        got = await worker.assignment()
        answer = m.LocalAnswer(text="Hm", model="tiny")
        said = m.Escalation(attempt=1, reason=m.Reason.COMPLEX, answer=answer)
        worker.say(t.ESCALATE, said, "w1", got.job)
        result = await device.result("j1")
    assert (result.text, result.degraded, result.code) == ("Hm", True, "no_provider")


async def test_a_provider_call_ends_at_the_deadline_of_its_job(house: House, device: Peer) -> None:
    house.provider = provider = ScriptedProvider(ScriptedAnswer(pieces=(), hang=True))
    submit = m.JobSubmit(prompt="Why?", escalate=m.Escalate.ALWAYS, deadline_ms=50)
    async with house.dispatcher():
        device.say(t.SUBMIT, submit, "d1", "j1")
        await provider.until_inflight(1)
        await provider.until_inflight(0)
        house.clock.now_ms += 50
        device.say(t.SUBMIT, submit, "d1", "j1")
        result = await device.result("j1")
    assert (result.status, result.code) == ("expired", "deadline")


async def test_a_broken_provider_costs_one_answer_not_the_dispatcher(
    house: House, device: Peer, worker: Worker
) -> None:
    house.provider = DefectiveProvider()
    async with house.dispatcher():
        device.say(t.SUBMIT, m.JobSubmit(prompt="Why?", escalate=m.Escalate.ALWAYS), "d1", "j1")
        worker.done(await worker.assignment())
        result = await device.result("j1")
    assert (result.status, result.code, result.degraded) == ("ok", "provider_error", True)


class DefectiveProvider(ScriptedProvider):
    """An adapter with a defect."""

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[CompletionPart, None]:
        """Break."""
        async for part in super().stream(request):
            yield part
            raise ZeroDivisionError


async def test_a_cancelled_job_stops_the_board_and_tells_the_device(
    house: House, device: Peer, worker: Worker
) -> None:
    async with house.dispatcher():
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        got = await worker.assignment()
        device.say(t.CANCEL, m.JobCancel(), "d1", "j1")
        cancel = await worker.read(m.WorkerCancel, t.WORKER_CANCEL, "w1")
        assert (cancel.job, cancel.attempt) == (got.job, 1)
        assert (await device.result("j1")).status is m.JobStatus.CANCELLED


async def test_a_cancelled_job_hangs_up_on_the_provider(house: House, device: Peer) -> None:
    house.provider = provider = ScriptedProvider(ScriptedAnswer(pieces=(), hang=True))
    async with house.dispatcher():
        device.say(t.SUBMIT, m.JobSubmit(prompt="Why?", escalate=m.Escalate.ALWAYS), "d1", "j1")
        await provider.until_inflight(1)
        device.say(t.CANCEL, m.JobCancel(), "d1", "j1")
        assert (await device.result("j1")).status is m.JobStatus.CANCELLED
        await provider.until_inflight(0)


async def test_an_operator_lists_stored_jobs_and_sees_one(
    house: House, device: Peer, worker: Worker, admin: Peer
) -> None:
    async with house.dispatcher():
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        worker.done(await worker.assignment())
        await device.result("j1")
        admin.say(t.ADMIN_REQUEST, m.AdminRequest(req="r1", op=m.AdminOp.JOBS_LIST), "a1")
        listed = await admin.read(m.AdminReply, t.ADMIN_REPLY, "a1")
        key = listed.jobs[0].job
        show = m.AdminRequest(req="r2", op=m.AdminOp.JOB_SHOW, job=key)
        admin.say(t.ADMIN_REQUEST, show, "a1")
        shown = await admin.read(m.AdminReply, t.ADMIN_REPLY, "a1", after=1)
    assert (listed.req, listed.ok, listed.jobs[0].id) == ("r1", True, "j1")
    assert listed.jobs[0].result is not None
    assert listed.jobs[0].result.text == "", "a list has no texts: it could grow without bound"
    assert shown.jobs[0].result is not None
    assert shown.jobs[0].result.text == "It is so."


async def test_an_operator_purges_a_dead_letter_and_its_id_is_free_again(
    house: House, device: Peer, worker: Worker, admin: Peer
) -> None:
    replies: list[m.AdminReply] = []

    async def purge(key: str) -> str:
        """Ask until its device was told; what was confirmed is saved with a later turn."""
        while not replies or replies[-1].code == "result_untold":
            house.clock.now_ms += 1_000
            request = m.AdminRequest(req="r", op=m.AdminOp.JOB_PURGE, job=key)
            admin.say(t.ADMIN_REQUEST, request, "a1")
            after = len(replies)
            replies.append(await admin.read(m.AdminReply, t.ADMIN_REPLY, "a1", after=after))
        return replies[-1].code

    async with house.dispatcher():
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        got = await worker.assignment()
        failed = m.JobFailed(attempt=got.attempt, code="onnx", retryable=False)
        worker.say(t.FAILED, failed, "w1", got.job)
        assert (await device.result("j1")).status is m.JobStatus.FAILED
        assert await purge(got.job) == ""
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        worker.done(await worker.assignment(after=1))
        assert (await device.result("j1", after=1)).status is m.JobStatus.OK
    assert len(house.store._jobs) == 1


async def test_only_dead_letters_are_purged(
    house: House, device: Peer, worker: Worker, admin: Peer
) -> None:
    async with house.dispatcher():
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        got = await worker.assignment()
        for key in (got.job, "unknown"):
            request = m.AdminRequest(req="r", op=m.AdminOp.JOB_PURGE, job=key)
            admin.say(t.ADMIN_REQUEST, request, "a1")
        replies = [
            await admin.read(m.AdminReply, t.ADMIN_REPLY, "a1", after=after) for after in range(2)
        ]
        worker.done(got)
        assert (await device.result("j1")).status is m.JobStatus.OK
    assert [reply.code for reply in replies] == ["not_dead", "unknown_job"]


async def test_an_operator_sees_what_the_cloud_cost(
    house: House, device: Peer, admin: Peer
) -> None:
    house.provider = ScriptedProvider(ScriptedAnswer(cost_usd=0.5))
    async with house.dispatcher():
        always = m.JobSubmit(prompt="Why?", escalate=m.Escalate.ALWAYS)
        device.say(t.SUBMIT, always, "d1", "j1")
        await device.result("j1")
        admin.say(t.ADMIN_REQUEST, m.AdminRequest(req="r1", op=m.AdminOp.COSTS), "a1")
        reply = await admin.read(m.AdminReply, t.ADMIN_REPLY, "a1")
    (row,) = reply.costs
    assert (row.day, row.tenant, row.reason) == ("2023-11-14", "default", "requested")
    assert (row.provider, row.model, row.calls) == ("scripted", "scripted", 1)
    assert (row.prompt_tokens, row.completion_tokens, row.cost_usd) == (8, 2, 0.5)
    assert [(view.tenant, view.spent_usd) for view in reply.budgets] == [
        ("", 0.5),
        ("default", 0.5),
    ]
    assert [endpoint.name for endpoint in reply.endpoints] == ["scripted"]


async def test_an_operator_whose_request_cannot_be_read_is_told_why(
    house: House, admin: Peer
) -> None:
    async with house.dispatcher():
        admin.throw(TOPICS.name(t.ADMIN_REQUEST, "a1"), b'{"req":"r1","op":"jobs.eat"}')
        reply = await admin.read(m.AdminReply, t.ADMIN_REPLY, "a1")
    assert (reply.req, reply.ok, reply.code) == ("r1", False, "invalid_field")


async def test_a_probe_comes_back_byte_for_byte(house: House, worker: Worker) -> None:
    probe = codec.encode(m.Probe(id="p1", padding="x" * 100_000))
    async with house.dispatcher():
        worker.throw(TOPICS.name(t.PROBE, "w1"), probe)
        assert (await worker.hear(t.ECHO, "w1")).payload == probe


async def test_presence_is_online_in_a_new_epoch_and_offline_at_the_end(
    house: House, viewer: Peer
) -> None:
    for life in (1, 2):
        async with house.dispatcher():
            pass
        said = [await viewer.read(m.DispatcherPresence, t.DISPATCHER, after=n) for n in range(2)]
        assert [(p.status, p.epoch) for p in said] == [
            ("online", f"epoch-{life}"),
            ("offline", f"epoch-{life}"),
        ]
        viewer.heard.clear()


async def test_finished_jobs_are_forgotten_after_the_retention(
    house: House, device: Peer, worker: Worker, admin: Peer
) -> None:
    async with house.dispatcher(retention_s=60):
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        worker.done(await worker.assignment())
        await device.result("j1")
    house.clock.now_ms += 61_000
    async with house.dispatcher(retention_s=60):
        admin.say(t.ADMIN_REQUEST, m.AdminRequest(req="r1", op=m.AdminOp.JOBS_LIST), "a1")
        assert (await admin.read(m.AdminReply, t.ADMIN_REPLY, "a1")).jobs == ()


async def test_dead_letters_are_kept_longer_than_other_jobs(
    house: House, device: Peer, worker: Worker, admin: Peer
) -> None:
    async with house.dispatcher(retention_s=60, dead_retention_s=120):
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        given = await worker.assignment()
        failed = m.JobFailed(attempt=given.attempt, code="bad_prompt", retryable=False)
        worker.say(t.FAILED, failed, "w1", given.job)
        await device.result("j1")
    for number, (later_ms, left) in enumerate([(61_000, 1), (60_000, 0)]):
        house.clock.now_ms += later_ms
        async with house.dispatcher(retention_s=60, dead_retention_s=120):
            asked = m.AdminRequest(req=f"r{number}", op=m.AdminOp.JOBS_LIST, dead=True)
            admin.say(t.ADMIN_REQUEST, asked, "a1")
            reply = await admin.read(m.AdminReply, t.ADMIN_REPLY, "a1", after=number)
            assert len(reply.jobs) == left


@pytest.mark.parametrize("expiry_s", [0, 86_400])
def test_the_session_hears_every_channel_meant_for_the_dispatcher(expiry_s: int) -> None:
    session = session_of(TOPICS, "e1", client_id="x", expiry_s=expiry_s)
    meant = [c for c in t.CATALOGUE if t.Role.DISPATCHER in c.receivers]
    assert [TOPICS.filter(channel) for channel in meant] == list(session.subscriptions)
    assert session.will is not None
    assert session.will.retain
    assert b'"offline"' in session.will.payload


async def test_the_same_question_again_is_answered_from_the_store_after_a_restart(
    house: House, device: Peer, worker: Worker
) -> None:
    async with house.dispatcher():
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        worker.done(await worker.assignment())
        await device.result("j1")
        device.say(t.SUBMIT, QUESTION, "d1", "j2")
        assert (await device.result("j2")).answered_by is m.AnsweredBy.CACHE
    async with house.dispatcher():
        worker.join()
        device.say(t.SUBMIT, QUESTION, "d1", "j3")
        result = await device.result("j3")
    assert (result.answered_by, result.text, result.model) == ("cache", "It is so.", "tiny")
    assert TOPICS.name(t.ASSIGN, "w1") not in worker.unheard()


async def test_answers_whose_time_is_over_are_swept(
    house: House, device: Peer, worker: Worker
) -> None:
    async with house.dispatcher(prune_every_s=1):
        question = m.JobSubmit(prompt="Is the hall warm?", cache_ttl_ms=1_000)
        device.say(t.SUBMIT, question, "d1", "j1")
        worker.done(await worker.assignment())
        await device.result("j1")
        await house.until(lambda: len(house.store._answers) == 1)
        house.clock.now_ms += 2_000
        device.say(t.SUBMIT, m.JobSubmit(prompt="Is it noon?"), "d1", "j2")
        await house.until(lambda: not house.store._answers)


async def test_many_who_ask_the_same_at_once_are_one_generation(
    house: House, device: Peer, worker: Worker
) -> None:
    async with house.dispatcher():
        for number in range(50):
            device.say(t.SUBMIT, QUESTION, "d1", f"j{number}")
        worker.done(await worker.assignment())
        answers = [await device.result(f"j{number}") for number in range(50)]
    assert {answer.text for answer in answers} == {"It is so."}
    assert [answer.answered_by for answer in answers] == ["edge", *["cache"] * 49]
    assert sum(1 for heard in worker.heard if heard.topic == TOPICS.name(t.ASSIGN, "w1")) == 1
    assert TOPICS.name(t.ASSIGN, "w1") not in worker.unheard()
    jobs = await listed(house.store, JobQuery(limit=100))
    assert len(jobs) == 50
    assert all(job.told for job in jobs)


async def test_an_operator_fills_looks_at_and_clears_the_answer_cache(
    house: House, device: Peer, worker: Worker
) -> None:
    async with house.dispatcher(), house.peer(Peer, "ops", "admin/ops") as admin:
        answer = m.PrewarmAnswer(submit=QUESTION, text="Warm.")
        fill = m.AdminRequest(req="r1", op=m.AdminOp.CACHE_PREWARM, answers=(answer,))
        admin.say(t.ADMIN_REQUEST, fill, "ops")
        assert (await admin.read(m.AdminReply, t.ADMIN_REPLY, "ops")).kept == (True,)
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        assert (await device.result("j1")).text == "Warm."
        admin.say(t.ADMIN_REQUEST, m.AdminRequest(req="r2", op=m.AdminOp.CACHE_STATS), "ops")
        view = (await admin.read(m.AdminReply, t.ADMIN_REPLY, "ops", after=1)).cache
        assert view is not None
        assert [(row.tenant, row.answers, row.hits) for row in view.tenants] == [("default", 1, 1)]
        assert (view.given, view.in_memory) == (1, 1)
        admin.say(t.ADMIN_REQUEST, m.AdminRequest(req="r3", op=m.AdminOp.CACHE_CLEAR), "ops")
        assert (await admin.read(m.AdminReply, t.ADMIN_REPLY, "ops", after=2)).ok
        assert await house.store.cache_usage() == []
        command = await worker.read(m.WorkerCommand, t.COMMAND, "w1")
        assert command.op is m.WorkerOp.FORGET_ANSWERS
        device.say(t.SUBMIT, QUESTION, "d1", "j2")
        worker.done(await worker.assignment(), "Cold.")
        assert (await device.result("j2")).text == "Cold."


async def test_the_most_frequent_questions_are_asked_again_before_anybody_does(
    house: House, device: Peer, worker: Worker
) -> None:
    async with house.dispatcher(), house.peer(Peer, "ops", "admin/ops") as admin:
        for number, prompt in enumerate(["often", "often", "once", "often", "off", "off"]):
            caching = m.Caching.OFF if prompt == "off" else m.Caching.AUTO
            question = m.JobSubmit(prompt=prompt, cache=caching, cache_ttl_ms=60_000)
            device.say(t.SUBMIT, question, "d1", f"j{number}")
            if number not in {1, 3}:
                after = len([x for x in worker.heard if x.topic == TOPICS.name(t.ASSIGN, "w1")])
                worker.done(await worker.assignment(after=after))
            await device.result(f"j{number}")
        again = m.AdminRequest(req="r1", op=m.AdminOp.CACHE_ASK_AGAIN)
        admin.say(t.ADMIN_REQUEST, again, "ops")
        reply = await admin.read(m.AdminReply, t.ADMIN_REPLY, "ops")
        assert reply.message == "0 questions are asked again"  # its answer is fresh
        house.clock.now_ms += 60_000
        worker.join()
        admin.say(t.ADMIN_REQUEST, again, "ops")
        reply = await admin.read(m.AdminReply, t.ADMIN_REPLY, "ops", after=1)
        assert reply.message == "1 questions are asked again"
        got = await worker.assignment(after=4)
        assert got.messages[0].content == "often"
        worker.done(got, "Anew.")
        await worker.until_settled(got)
        assert not device.unheard()
        device.say(t.SUBMIT, m.JobSubmit(prompt="often"), "d1", "j9")
        result = await device.result("j9")
        assert (result.text, result.answered_by) == ("Anew.", m.AnsweredBy.CACHE)
