"""The shell when things go wrong: nothing is told before it is saved, and nothing is lost."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from cloud_dispatcher.local_devices import local_device
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.bus import Session
from fleet_protocol.errors import BusClosedError
from fleet_protocol.memory import MemoryBus
from tests.contract.job_samples import listed
from tests.unit.service_house import PATIENCE_S, QUESTION, TOPICS, House, Peer, Worker

ALERT = TOPICS.name(t.ALERTS, "store")
ANNOUNCED = 1
"""Messages on the alert's topic at the start: it is cleared, an earlier run may have left it."""
SUBMIT_J1 = TOPICS.name(t.SUBMIT, "d1", "j1")

# ------------------------------------------------------------------------------ the store fails


async def test_nothing_is_told_until_the_store_has_it(
    house: House, device: Peer, worker: Worker, viewer: Peer
) -> None:
    house.store.failures = 2
    async with house.dispatcher():
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        alert = await viewer.read(m.Alert, t.ALERTS, "store", after=ANNOUNCED)
        # The alert is out and the store still fails: this is when nothing else may be.
        assert house.store.failures > 0
        assert device.unheard() == [SUBMIT_J1], "only its own words"
        assert house.unacknowledged == 1
        assert (await device.ack("j1")).status is m.AckStatus.ACCEPTED
        assert len(await house.store.load_open()) == 1
        assert (await viewer.hear_on(ALERT, after=ANNOUNCED + 1)).payload == b""
        await worker.assignment()
    assert alert.severity is m.Severity.CRITICAL
    assert "free some space" in alert.detail
    assert house.unacknowledged == 0
    assert house.broker.retained(ALERT) is None


async def test_what_was_not_saved_is_not_acknowledged_and_comes_again(
    house: House, device: Peer, viewer: Peer
) -> None:
    house.store.failures = 1_000
    async with house.dispatcher():
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        await viewer.hear(t.ALERTS, "store", after=ANNOUNCED)
    assert house.unacknowledged == 1
    house.store.failures = 0
    async with house.dispatcher():
        await device.ack("j1")
    assert house.unacknowledged == 0


async def test_the_next_turn_is_decided_while_this_one_is_saved_and_told_after_it(
    house: House, device: Peer, worker: Worker
) -> None:
    house.store.failures = 1
    async with house.dispatcher():
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        await house.until(lambda: house.store.failures == 0)
        device.say(t.SUBMIT, QUESTION, "d1", "j2")
        await device.ack("j2")
        told = [d.topic.split("/")[-2] for d in device.heard if d.topic.endswith("/ack")]
        assert told == ["j1", "j2"]
        assert house.store.commits == 2
        assert (await worker.assignment()).attempt == 1


async def test_an_alert_of_an_earlier_run_does_not_stay(house: House) -> None:
    house.store.failures = 1_000
    first = house.build()
    task = await house.start(first)
    async with house.peer(Peer, "d1", "dev/d1") as device:
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        await house.until(lambda: bool(house.broker.retained(ALERT)))
        await house.kill(task)
    assert house.broker.retained(ALERT)
    house.store.failures = 0
    async with house.dispatcher():
        assert house.broker.retained(ALERT) is None


async def test_a_stop_does_not_wait_for_a_store_that_fails(house: House, device: Peer) -> None:
    house.store.failures = 1_000
    async with house.dispatcher():
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
    assert await house.store.load_open() == []


# ----------------------------------------------------------------------------- the input is bad

BAD = {
    "bytes": (b"\xff\xfe\x00", "malformed"),
    "half": (b'{"prompt": "x', "malformed"),
    "deep": (b'{"x":' + b"[" * 100_000, "malformed"),
    "empty": (b"", "malformed"),
    "a wrong type": (b'{"prompt": 5}', "invalid_field"),
    "no prompt": (b"{}", "invalid_field"),
    "two prompts": (b'{"prompt":"x","messages":[{"role":"user","content":"y"}]}', "invalid_field"),
    "a deadline in the past": (b'{"prompt":"x","deadline_ms":-5}', "invalid_field"),
    "a new version": (b'{"v":9,"prompt":"x"}', "unsupported_version"),
    "10 MB": (b'{"prompt":"' + b"x" * 5_000_000 + b'"}', "too_large"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_submission_that_cannot_be_read_is_refused_with_a_code(
    house: House, device: Peer, name: str
) -> None:
    payload, code = BAD[name]
    with capture_logs() as lines:
        async with house.dispatcher():
            device.throw(SUBMIT_J1, payload)
            ack = await device.ack("j1")
            device.say(t.SUBMIT, QUESTION, "d1", "j1")
            assert (await device.ack("j1", after=1)).status is m.AckStatus.ACCEPTED
    assert (ack.status, ack.code) == ("rejected", code)
    assert ack.message
    refused = next(line for line in lines if line["event"] == "delivery.refused")
    assert refused["payload_bytes"] == len(payload)
    assert "xxxx" not in str(lines)
    assert house.unacknowledged == 0


async def test_a_job_id_that_cannot_be_used_is_refused_where_the_device_listens(
    house: House, device: Peer
) -> None:
    async with house.dispatcher():
        device.throw(f"{TOPICS.root}/dev/d1/jobs/no spaces/submit", b'{"prompt":"x"}')
        said = await device.hear_on(f"{TOPICS.root}/dev/d1/jobs/no spaces/ack")
    assert b'"invalid_id"' in said.payload


async def test_nobody_on_the_broker_asks_or_cancels_as_one_who_asks_over_http(
    house: House, device: Peer, worker: Worker
) -> None:
    http = local_device("default")
    async with house.dispatcher() as service:
        with service.local.job(http, m.JobId("own")) as own:
            service.local.submit(http, m.JobId("own"), QUESTION)
            await own.accepted()
            device.say(t.SUBMIT, QUESTION, http, "j1")
            device.throw(TOPICS.name(t.ASK, http), b"Is it safe?")
            device.say(t.CANCEL, m.JobCancel(), http, "own")
            await house.until(lambda: service.dropped["local_device"] == 3)
            worker.done(await worker.assignment(), "It is.")
            assert (await own.result(wait_s=PATIENCE_S)).text == "It is."
    assert [job.id for job in house.store._jobs.values()] == ["own"]


@pytest.mark.parametrize(
    "topic",
    [
        TOPICS.name(t.PRESENCE, "w1"),
        TOPICS.name(t.INFO, "w1"),
        TOPICS.name(t.HELD, "w1"),
        TOPICS.name(t.DONE, "w1", "01J"),
        TOPICS.name(t.ESCALATE, "w1", "01J"),
        TOPICS.name(t.CANCEL, "d1", "j9"),
        TOPICS.name(t.ADMIN_REQUEST, "a1"),
        f"{TOPICS.root}/workers/w.1/presence",
        f"{TOPICS.root}/workers/w1/jobs/{'x' * 60}/done",
    ],
)
async def test_garbage_from_anybody_else_is_counted_and_dropped(
    house: House, device: Peer, worker: Worker, topic: str
) -> None:
    async with house.dispatcher() as service:
        worker.throw(topic, b"\xff{")
        worker.throw(TOPICS.name(t.PROBE, "w1"), b"x" * 2_000_000)
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        worker.done(await worker.assignment())
        await device.result("j1")
    assert sum(service.dropped.values()) == 2
    assert house.unacknowledged == 0


async def test_a_response_topic_of_somebody_else_is_refused(house: House, device: Peer) -> None:
    async with (
        house.dispatcher(),
        house.peer(Peer, "d2", "dev/d2") as victim,
        house.peer(Peer, "any", "workers") as workers,
    ):
        for number, topic in enumerate(("dev/d2/answer", "workers/w1/assign", "dev/d1/ask")):
            with capture_logs() as lines:
                where = f"{TOPICS.root}/{topic}"
                device.throw(SUBMIT_J1, b'{"prompt":"x"}', response_topic=where)
                ack = await device.ack("j1", after=number)
            assert (ack.status, ack.code) == ("rejected", "response_topic_refused"), topic
            assert "security.response_topic_refused" in [line["event"] for line in lines]
        assert victim.unheard() == workers.unheard() == []


async def test_an_own_response_topic_gets_the_result_with_its_correlation_data(
    house: House, device: Peer, worker: Worker
) -> None:
    async with house.dispatcher():
        device.throw(
            SUBMIT_J1,
            b'{"prompt":"x"}',
            response_topic=f"{TOPICS.root}/dev/d1/mine",
            correlation_data=b"\x00\x01",
        )
        worker.done(await worker.assignment())
        said = await device.hear_on(f"{TOPICS.root}/dev/d1/mine")
    assert said.correlation_data == b"\x00\x01"
    assert b"It is so." in said.payload


async def test_a_retained_question_is_not_asked_again_by_each_restart(
    house: House, device: Peer, worker: Worker
) -> None:
    device.throw(TOPICS.name(t.ASK, "d1"), b"Old?", retain=True)
    device.throw(SUBMIT_J1, b'{"prompt":"Old?"}', retain=True)
    async with house.dispatcher() as service:
        device.say(t.SUBMIT, QUESTION, "d1", "j2")
        got = await worker.assignment()
        assert got.messages[0].content == QUESTION.prompt
        assert service.dropped["retained"] == 2


# ------------------------------------------------------------------- sent twice, killed, cut off


async def test_a_submission_sent_again_is_the_same_job(
    house: House, device: Peer, worker: Worker
) -> None:
    async with house.dispatcher():
        for _ in range(3):
            device.say(t.SUBMIT, QUESTION, "d1", "j1")
        await device.ack("j1", after=2)
        worker.done(await worker.assignment())
        await device.result("j1")
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        again = await device.result("j1", after=1)
    assert again.text == "It is so."
    assert len([d for d in worker.heard if d.topic.endswith("/assign")]) == 1


async def test_a_finished_job_is_replayed_by_a_later_run_whether_asked_or_cancelled(
    house: House, device: Peer, worker: Worker
) -> None:
    async with house.dispatcher():
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        worker.done(await worker.assignment())
        await device.result("j1")
    async with house.dispatcher():
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        assert (await device.result("j1", after=1)).text == "It is so."
        device.say(t.CANCEL, m.JobCancel(), "d1", "j1")
        assert (await device.result("j1", after=2)).status is m.JobStatus.OK


async def test_a_job_let_go_in_the_very_turn_it_is_submitted_again_is_still_the_same_job(
    house: House, device: Peer, worker: Worker
) -> None:
    async with house.dispatcher():
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        worker.done(await worker.assignment())
        await device.result("j1")
        # The broker's confirmation and this repetition are taken in one turn.
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        await device.result("j1", after=1)
    assert len(await listed(house.store)) == 1
    assert len([d for d in worker.heard if d.topic.endswith("/assign")]) == 1


async def test_accepted_jobs_outlive_a_killed_dispatcher(
    house: House, device: Peer, worker: Worker
) -> None:
    first = house.build()
    task = await house.start(first)
    device.say(t.SUBMIT, QUESTION, "d1", "j1")
    device.say(t.SUBMIT, m.JobSubmit(prompt="And now?"), "d1", "j2")
    got = await worker.assignment()
    await device.ack("j2")
    await house.kill(task)
    worker.done(got)
    async with house.dispatcher():
        assert (await device.result("j1")).text == "It is so."
        second = await worker.assignment(after=1)
        assert second.attempt == 1
        worker.done(second)
        assert (await device.result("j2")).status is m.JobStatus.OK
    assert len([d for d in device.heard if d.topic.endswith("/res")]) == 2


async def test_a_result_that_was_not_confirmed_is_told_by_the_next_run(
    house: House, device: Peer, worker: Worker
) -> None:
    async with house.dispatcher():
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        worker.done(await worker.assignment())
        await device.result("j1")
    (job,) = await listed(house.store)
    await house.store.commit([replace(job, told=False)])
    async with house.dispatcher():
        await device.result("j1", after=1)


async def test_the_will_says_offline_when_the_dispatcher_is_killed(
    house: House, viewer: Peer
) -> None:
    task = await house.start(house.build())
    await viewer.read(m.DispatcherPresence, t.DISPATCHER)
    await house.kill(task)
    presence = await viewer.read(m.DispatcherPresence, t.DISPATCHER, after=1)
    assert (presence.status, presence.epoch) == ("offline", "epoch-1")


async def test_after_broker_amnesia_everybody_knows_again(
    house: House, device: Peer, worker: Worker, viewer: Peer
) -> None:
    async with house.dispatcher():
        device.say(t.SUBMIT, QUESTION, "d1", "j1")
        await worker.assignment()
        house.broker.forget_everything()
        await viewer.read(m.DispatcherPresence, t.DISPATCHER, after=1)
        again = await worker.assignment(after=1)
        assert again.attempt == 1
        worker.done(again)
        await device.result("j1")


async def test_a_result_that_a_full_bus_did_not_take_is_told_when_there_is_room(
    house: House, device: Peer
) -> None:
    house.max_unconfirmed = 0
    async with house.dispatcher():
        device.say(t.SUBMIT, m.JobSubmit(prompt="?", escalate=m.Escalate.ALWAYS), "d1", "j1")
        await device.ack("j1")
        house.broker.cut("dispatcher")
        await house.until(lambda: house.store.commits == 2)
        house.clock.now_ms += 6_000
        house.broker.heal("dispatcher")
        assert (await device.result("j1")).status is m.JobStatus.OK


async def test_a_second_dispatcher_of_the_same_identity_ends_the_first(house: House) -> None:
    service = house.build()
    task = await house.start(service)
    async with MemoryBus(house.broker, Session(client_id="dispatcher")):
        with pytest.raises(BusClosedError) as caught:
            await task
    assert caught.value.code == "session_taken_over"
