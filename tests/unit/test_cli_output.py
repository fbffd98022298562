"""What people read of a fleet's figures."""

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from fleet_cli.asking import connected
from fleet_cli.output import said_if_late, said_while_stuck, shown
from fleet_client import ConnectError
from fleet_client.admin import AdminClient
from fleet_protocol.settings import BrokerSettings


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = os.environ.get("TZ")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    if before is None:
        monkeypatch.delenv("TZ")
    else:
        monkeypatch.setenv("TZ", before)
    time.tzset()


def test_an_instant_is_local_time(in_tokyo: None) -> None:
    del in_tokyo
    assert shown("received_at_ms", 0) == ("received_at_ms", "0")
    assert shown("received_at_ms", 1_000) == ("received_at", "1970-01-01 09:00:01")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.7584060445707492, "0.7584"),
        (0.000018449999999999998, "1.845e-05"),
        (2_483_913.2, "2483913"),
        (2.0, "2"),
        (3, "3"),
        ("ok", "ok"),
    ],
)
def test_a_figure_has_the_digits_that_say_something(value: object, text: str) -> None:
    assert shown("confidence", value) == ("confidence", text)


def test_who_waits_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    with said_if_late("still waiting", after_s=0.0):
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join()
    assert capsys.readouterr().err == "still waiting\n"


def test_who_has_an_answer_is_not_told_to_wait(capsys: pytest.CaptureFixture[str]) -> None:
    with said_if_late("still waiting", after_s=3_600.0) as heard:
        heard()
    assert capsys.readouterr().err == ""


class MuteClient:
    """Is connected once its user was told to wait."""

    def __enter__(self) -> str:
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join()
        return "connected"

    def __exit__(self, *exc: object) -> None:
        """Nothing to end."""


def test_who_waits_for_a_broker_is_told_for_which(capsys: pytest.CaptureFixture[str]) -> None:
    with connected(MuteClient(), BrokerSettings(url="mqtt://h:8600"), after_s=0.0) as client:
        assert client == "connected"
    assert capsys.readouterr().err == "waiting for h:8600 to greet as an MQTT broker ...\n"


def test_a_port_that_speaks_something_else_is_told_from_a_broker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"mqtt://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(ConnectError) as told, AdminClient(url, "ops", connect_timeout_s=0.1):
            pytest.fail("nobody greeted")
    assert "did not greet as an MQTT broker within 0.1 s" in str(told.value)
    assert "HTTP" in told.value.hint


def test_who_is_stuck_is_told_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    asked = threading.Semaphore(0)

    def progress() -> str:
        asked.release()
        return "2 accepted, 0 failed"

    with said_while_stuck(progress, after_s=0.001):
        for _ in range(3):
            assert asked.acquire(timeout=20)
    assert capsys.readouterr().err.startswith("2 accepted, 0 failed so far; ")


def test_who_gets_on_is_not_disturbed(capsys: pytest.CaptureFixture[str]) -> None:
    done = iter(range(1_000_000))
    asked = threading.Semaphore(0)

    def progress() -> str:
        asked.release()
        return f"{next(done)} accepted"

    with said_while_stuck(progress, after_s=0.001):
        for _ in range(3):
            assert asked.acquire(timeout=20)
    assert capsys.readouterr().err == ""
