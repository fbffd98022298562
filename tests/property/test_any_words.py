"""Whatever devices, boards and operators say that can be read, what the engine says can be, too."""

from __future__ import annotations

import random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_dispatcher.adapters.job_rows import state_of
from cloud_dispatcher.core import commands as c
from cloud_dispatcher.core import events as e
from cloud_dispatcher.core.admin import view_of
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.intake import Intake
from cloud_dispatcher.keys import KeyMint
from cloud_dispatcher.observers import FleetFigures
from fleet_protocol import codec
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.bus import Delivery
from tests.property.message_strategies import messages_of
from tests.unit.engine_desk import Desk

TOPICS = t.Topics()
HEARD = [channel for channel in t.CATALOGUE if t.Role.DISPATCHER in channel.receivers]
OFTEN = [t.SUBMIT, t.DONE, t.FAILED, t.ESCALATE, t.STATE, t.HELD]
"""What moves jobs, and the figures of boards."""
KEYS = st.sampled_from([f"K{number}" for number in range(1, 6)])
USUAL: dict[str, st.SearchStrategy[object]] = {
    "attempt": st.sampled_from([1, 1, 1, 2, m.WHOLE_MAX]),
    "boot": st.just("b1"),
    "worker": st.sampled_from(["w1", "w2"]),
    "job": KEYS,
}
"""What must fit what was said before, or nothing would come of it."""
PROMPTS = st.sampled_from(["hi", "task\n\n" + "word " * 3_000, "x" * 9_000])


@st.composite
def deliveries(draw: st.DrawFn) -> Delivery:
    channel = draw(st.sampled_from([*HEARD, *(10 * OFTEN)]))
    said = draw(messages_of(channel.message))
    usual = {name: draw(values) for name, values in USUAL.items() if hasattr(said, name)}
    if isinstance(said, m.JobSubmit) and draw(st.booleans()):
        usual = {"prompt": draw(PROMPTS), "messages": None, "model": None, "needs": None}
    payload = codec.encode(msgspec.structs.replace(said, **usual))
    ids = [draw(USUAL["worker"]), draw(KEYS)][: channel.template.count("{")]
    return Delivery(topic=TOPICS.name(channel, *map(str, ids)), payload=payload)


def read_again(command: c.AnyCommand) -> None:
    """Read what a command has stored or said as its readers do."""
    if isinstance(command, c.SaveJob):
        job = command.job
        for part in (job.submit, job.kept, job.result):
            if part is not None:
                data = msgspec.msgpack.encode(part)
                assert msgspec.msgpack.decode(data, type=type(part)) == part
        msgspec.msgpack.encode(state_of(job))
        msgspec.json.decode(msgspec.json.encode(view_of(job)), type=m.JobView)
    elif isinstance(command, c.Send) and not isinstance(command.message, m.PlainText):
        codec.decode_as(type(command.message), codec.encode(command.message))


@settings(max_examples=60)
@given(st.lists(st.tuples(deliveries(), st.sampled_from([0, 1, 1_000, 31_000])), max_size=40))
def test_whatever_is_said_the_engine_goes_on_and_can_be_read(
    said: list[tuple[Delivery, int]],
) -> None:
    desk, figures = Desk(), FleetFigures()
    for worker in ("w1", "w2"):
        desk.worker(worker, slots=4)
    engine = desk.engine
    intake = Intake(TOPICS, KeyMint(random.Random(1).getrandbits))
    now_ms, known, number = 1_000_000, dict[tuple[str, str], Job](), 0
    for delivery, after_ms in said:
        now_ms += after_ms
        event = intake.read(delivery, now_ms)
        if not isinstance(event, e.Event):
            continue
        if isinstance(event, e.JobSubmitted):
            number += 1
            name = (event.device, event.id)
            key = m.JobKey(f"K{number}")
            event = msgspec.structs.replace(event, key=key, known=known.get(name))
        for decided in (event, e.TimePassed()):
            commands = engine.handle(decided, now_ms)
            figures.observe(decided, commands, now_ms)
            for command in commands:
                read_again(command)
                if isinstance(command, c.SaveJob):
                    known[command.job.device, command.job.id] = command.job
    summary = figures.summary(now_ms, engine.summary())
    assert codec.decode_as(m.FleetSummary, codec.encode(summary)) == summary
    for view in engine.workers():
        assert msgspec.json.decode(msgspec.json.encode(view), type=m.WorkerView) == view
