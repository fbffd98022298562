"""The offline library in a dispatcher: its file, its forms, what operators and devices see."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from cloud_dispatcher.adapters.offline_library import FileLibrary
from fleet_protocol import codec
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.library import MatchKind
from tests.unit.service_house import TOPICS, House, Peer

GOOD = """
default = "Nobody is there."
[[entry]]
name = "leak"
answer = "LEAK"
pattern = ["* water *"]
[[entry]]
name = "command"
answer = '{ "device": "pump",  "action": "stop" }'
exact = ["stop the pump"]
"""


def write(path: Path, text: str) -> Path:
    """Write a file that anybody can tell from its last version, however quick the test is."""
    path.write_text(text)
    write.stamp_ns += 1_000_000_000  # type: ignore[attr-defined]
    os.utime(path, ns=(write.stamp_ns, write.stamp_ns))  # type: ignore[attr-defined]
    return path


write.stamp_ns = 1_700_000_000_000_000_000  # type: ignore[attr-defined]


def asked(prompt: str, **output: object) -> m.JobSubmit:
    form = msgspec.convert(output, m.OutputFormat) if output else None
    return m.JobSubmit(prompt=prompt, output=form)


async def library_of(path: Path, text: str = GOOD) -> FileLibrary:
    library = FileLibrary(write(path / "library.toml", text))
    assert await library.refresh()
    assert library.trouble is None
    return library


class TestForms:
    async def test_an_answer_is_brought_into_the_form(self, tmp_path: Path) -> None:
        library = await library_of(tmp_path)
        found = library.answer(asked("there is water", choices=("leak", "smoke")))
        assert found is not None
        assert (found.text, found.entry) == ("leak", "leak")
        found = library.answer(asked("Stop the pump!", json=True))
        assert found is not None
        assert found.text == '{"device": "pump", "action": "stop"}'

    async def test_an_answer_that_does_not_fit_the_form_is_none(self, tmp_path: Path) -> None:
        library = await library_of(tmp_path)
        assert library.answer(asked("there is water", choices=("smoke", "motion"))) is None
        assert library.answer(asked("stop the pump", regex="[0-9]+")) is None

    async def test_a_surer_answer_that_does_not_fit_makes_way_for_the_default(
        self, tmp_path: Path
    ) -> None:
        library = await library_of(tmp_path)
        found = library.answer(asked("there is water", regex=".*there[.]"))
        assert found is not None
        assert found.kind is MatchKind.DEFAULT


class TestFile:
    async def test_without_a_file_nothing_is_said(self) -> None:
        library = FileLibrary(None)
        assert not await library.refresh()
        assert library.answer(asked("there is water")) is None

    async def test_an_edited_file_counts_and_an_untouched_one_is_not_read_again(
        self, tmp_path: Path
    ) -> None:
        library = await library_of(tmp_path)
        assert not await library.refresh()
        write(tmp_path / "library.toml", 'default = "Soon."')
        assert await library.refresh()
        found = library.answer(asked("there is water"))
        assert found is not None
        assert found.text == "Soon."

    @pytest.mark.parametrize("text", ["[[entry", "version = 9", None])
    async def test_while_it_is_bad_the_last_good_one_answers(
        self, tmp_path: Path, text: str | None
    ) -> None:
        library, path = await library_of(tmp_path), tmp_path / "library.toml"
        if text is None:
            path.unlink()
        else:
            write(path, text)
        assert await library.refresh()
        assert library.trouble is not None
        assert "library.toml" in str(library.trouble)
        assert library.answer(asked("there is water")) is not None
        write(path, GOOD)
        assert await library.refresh()
        assert library.trouble is None


async def test_a_device_gets_the_librarys_answer_when_nobody_else_has_one(
    house: House, device: Peer, viewer: Peer, tmp_path: Path
) -> None:
    house.library = await library_of(tmp_path)
    async with house.dispatcher():
        for job, prompt in (("1", "there is water"), ("2", "Who was it?")):
            device.say(t.SUBMIT, m.JobSubmit(prompt=prompt, deadline_ms=5_000), "d1", job)
            assert (await device.ack(job)).status is m.AckStatus.ACCEPTED
        house.clock.now_ms += 5_000  # no board came
        viewer.say(t.PRESENCE, m.Presence(status=m.PresenceStatus.ONLINE, boot="b"), "w9")
        result = await device.result("1")
        assert (result.text, result.answered_by) == ("LEAK", m.AnsweredBy.OFFLINE)
        assert result.offline == m.OfflineMatch(kind="pattern", entry="leak", score=1.0)
        result = await device.result("2")
        assert (result.text, result.code, result.degraded) == ("Nobody is there.", "deadline", True)
        house.clock.now_ms += 1_000
        viewer.say(t.PRESENCE, m.Presence(status=m.PresenceStatus.ONLINE, boot="b"), "w9")
        summary = await viewer.until(
            m.FleetSummary, t.SUMMARY, lambda said: said.answered_by.get("offline") == 2
        )
        assert summary.offline == {"pattern": 1, "default": 1}
        assert summary.degraded == {"deadline": 2}


async def test_an_alert_fires_while_the_file_is_bad(
    house: House, viewer: Peer, tmp_path: Path
) -> None:
    path = write(tmp_path / "library.toml", "[[entry")
    house.library = FileLibrary(path)
    topic, heard = TOPICS.name(t.ALERTS, "library"), 0

    async def next_alert() -> m.Alert | None:
        nonlocal heard
        house.clock.now_ms += 5_000
        viewer.say(t.PRESENCE, m.Presence(status=m.PresenceStatus.ONLINE, boot="b"), "w9")
        payload = (await viewer.hear_on(topic, after=heard)).payload
        heard += 1
        return codec.decode_as(m.Alert, payload) if payload else None

    async with house.dispatcher():  # a fallback that is broken keeps nobody from working
        alert = await next_alert()
        assert alert is not None
        assert alert.severity is m.Severity.WARNING
        assert "not TOML" in alert.detail
        assert "fleet library check" in alert.detail
        house.broker.forget_everything()
        again = await next_alert()
        assert again is not None
        assert again.detail == alert.detail
        write(path, GOOD)
        assert await next_alert() is None
