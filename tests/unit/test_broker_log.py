"""The broker's log, read: who was refused, whatever the refused call themselves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fleet_cli import broker_log
from fleet_cli.broker_log import BrokerWatch, LogFile, Place, log_of, read_list, watching
from fleet_cli.refusals import Kind, Refusal, RefusalReader, condense, covers
from fleet_protocol import audit
from fleet_protocol.audit_folder import AuditFolder
from fleet_protocol.errors import ConfigError

VERIFY = "error:0A000086:SSL routines::certificate verify failed"
NOW_MS = 1_700_000_000_000
BEGIN = "1700000000: "
LISTS = {"v1": ["fleet/v1/fleet/summary", "fleet/v1/viewer/v1/#"], "w1": ["fleet/v1/workers/w1/#"]}


def joined(client: str, user: str, address: str = "10.0.0.7") -> list[str]:
    return [
        f"New connection from {address}:5000 on port 8883.",
        f"New client connected from {address}:5000 as {client} (p5, c1, k60, u'{user}').",
    ]


def denied(client: str, topic: str) -> str:
    return f"Denied PUBLISH from {client} (d0, q1, r0, m3, '{topic}', ... (5 bytes))"


def said(*lines: str, reader: RefusalReader | None = None) -> list[Refusal | str]:
    reader = reader or RefusalReader(LISTS)
    return list(reader.read("".join(f"{BEGIN}{line}\n" for line in lines).encode()))


def refusals(*lines: str) -> list[Refusal]:
    return [one for one in said(*lines) if isinstance(one, Refusal)]


def test_a_denied_word_names_the_user_behind_the_client() -> None:
    (one,) = refusals(*joined("w1-ab", "w1"), denied("w1-ab", "fleet/v1/workers/w2/held"))
    assert one == Refusal(
        at_ms=NOW_MS,
        kind=Kind.PUBLISH,
        why="not in its list",
        user="w1",
        client="w1-ab",
        address="10.0.0.7",
        topic="fleet/v1/workers/w2/held",
    )


@pytest.mark.parametrize(
    "name",
    [
        "v1-x (d0, q0, r0, m0, 'a",
        "v1-x closed its connection",
        "v1-x 1 a",
        "x (p5, c1, k60, u'v1').",
    ],
)
@pytest.mark.parametrize("topic", ["t", "t (d0, q1, r0, m3, 'u", "t', ... (5 bytes))"])
def test_nobody_is_blamed_for_what_another_calls_itself(name: str, topic: str) -> None:
    """A client id and a topic may look like any part of a line."""
    lines = [*joined("v1-x", "v1"), *joined(name, "w1"), denied(name, topic)]
    (one,) = refusals(*lines)
    assert (one.user, one.client) == ("w1", name)
    (one,) = refusals(*lines[:-1], denied("v1-x", topic))
    assert one.user == "v1"


def test_who_left_is_forgotten_and_nobody_else() -> None:
    reader = RefusalReader(LISTS)
    said(*joined("a", "w1"), *joined("a left", "v1"), *joined("b", "v1"), reader=reader)
    said("Client a left closed its connection.", "Client b disconnected.", reader=reader)
    assert list(reader.clients) == ["a"]
    said("Client a [10.0.0.7:5000] disconnected due to protocol error.", reader=reader)
    assert reader.clients == {}


@pytest.mark.parametrize(
    ("user", "wanted", "is_refused"),
    [
        ("v1", "fleet/v1/fleet/summary", False),
        ("v1", "fleet/v1/viewer/v1/res", False),
        ("v1", "fleet/v1/#", True),
        ("v1", "fleet/v1/dev/+/ask", True),
        ("v1", "$share/g/fleet/v1/dev/+/ask", True),
        ("v1", "$share/g/fleet/v1/fleet/summary", False),
        ("w1", "fleet/v1/workers/+/assign", True),
        ("w1", "fleet/v1/workers/w1/#", False),
        ("nobody", "fleet/v1/fleet/summary", True),
    ],
)
def test_listening_to_what_is_not_in_the_list_is_refused(
    user: str, wanted: str, *, is_refused: bool
) -> None:
    found = refusals(*joined("c 1", user), f"c 1 1 {wanted}")
    assert [one.topic for one in found] == ([wanted] if is_refused else [])


@pytest.mark.parametrize(
    ("pattern", "wanted", "does"),
    [
        ("a/#", "a/b/c", True),
        ("a/#", "a/#", True),
        ("a/#", "a", True),
        ("a/+", "a/b", True),
        ("a/+", "a/+", True),
        ("a/+", "a/#", False),
        ("a/b", "a/+", False),
        ("a/b", "a/b/c", False),
        ("a/b/c", "a/b", False),
        ("#", "a/b", True),
    ],
)
def test_a_filter_covers_another(pattern: str, wanted: str, *, does: bool) -> None:
    assert covers(pattern, wanted) is does


def test_a_refused_connection_has_its_address_and_one_line() -> None:
    lines = [
        "New connection from 10.0.0.9:4000 on port 8883.",
        "OpenSSL Error[0]: error:0A000086:SSL routines::certificate verify failed",
        "OpenSSL Error[1]: error:0A000139:SSL routines::record layer failure",
        "New connection from 10.0.0.8:4001 on port 8883.",
        "OpenSSL Error[0]: error:0A0000C7:SSL routines::peer did not return a certificate",
        f"Client connection from ::1 failed: {VERIFY}.",
    ]
    assert [(one.address, one.why) for one in refusals(*lines)] == [
        ("10.0.0.9", "certificate verify failed"),
        ("10.0.0.8", "peer did not return a certificate"),
        ("::1", "certificate verify failed"),
    ]


def test_who_only_looks_whether_the_port_is_open_is_not_refused() -> None:
    eof = "error:0A000126:SSL routines::unexpected eof while reading"
    lines = [f"OpenSSL Error[0]: {eof}", f"Client connection from 127.0.0.1 failed: {eof}."]
    assert refusals(*lines) == []


def test_where_several_were_connecting_all_of_them_are_named() -> None:
    (one,) = refusals(
        *(f"New connection from 10.0.0.{n}:4000 on port 8883." for n in range(6)),
        "OpenSSL Error[0]: error:0A000086:SSL routines::certificate verify failed",
    )
    assert one.address == "10.0.0.0, 10.0.0.1, 10.0.0.2, 10.0.0.3, ..."


def test_a_wrong_password_is_a_refused_login_and_says_who_it_claimed_to_be() -> None:
    (one,) = refusals(
        *joined("p1-a", "p1"),
        "New connection from 10.0.0.9:4000 on port 8884.",
        "Client p1-a disconnected, not authorised.",
    )
    assert (one.kind, one.client, one.user, one.address) == (Kind.LOGIN, "p1-a", "", "10.0.0.9")


def test_lines_of_packets_are_passed_over_and_the_rest_is_handed_on() -> None:
    told = said(
        "mosquitto version 2.0.11 starting",
        *joined("w1-ab", "w1"),
        "Received PUBLISH from w1-ab (d0, q1, r0, m3, 'fleet/v1/workers/w1/held', ... (5 bytes))",
        "Sending PUBACK to w1-ab (m3, rc0)",
        "Received SUBSCRIBE from w1-ab",
        "No will message specified.",
        "\tfleet/v1/workers/w1/# (QoS 1)",
        "w1-ab 1 fleet/v1/workers/w1/#",
        "Error: something",
    )
    assert told == ["mosquitto version 2.0.11 starting", *joined("w1-ab", "w1"), "Error: something"]


def test_equal_refusals_are_one_and_a_flood_is_counted() -> None:
    again = refusals(*joined("w1-a", "w1"), *[denied("w1-a", "t")] * 5)
    assert [(one.times, one.at_ms) for one in condense(again)] == [(5, NOW_MS)]
    flood = refusals(*joined("w1-a", "w1"), *(denied("w1-a", f"t{n}") for n in range(1_000)))
    found = condense(flood)
    assert len(found) == 201
    assert sum(one.times for one in found) == 1_000
    assert (found[-1].why, found[-1].times) == ("and others", 800)


def test_the_access_list_says_who_may_listen_to_what() -> None:
    text = "# viewer\nuser v1\ntopic read a/+/b\ntopic write c\n\nuser w 2\ntopic readwrite d/#\n"
    assert read_list(text) == {"v1": ["a/+/b"], "w 2": ["d/#"]}


class Broker:
    """A log that grows, and what follows it."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "broker.log"
        self.audit = folder / "audit"
        self.acl = folder / "acl"
        self.acl.write_text("user v1\ntopic read a\n")

    def write(self, *lines: str) -> None:
        with self.log.open("a") as file:
            file.writelines(f"{BEGIN}{line}\n" for line in lines)

    def run(self, before: Callable[[], None] = lambda: None) -> list[str]:
        """Read all there is, in a run of its own."""
        with watching(self.log, acl=self.acl, audit=AuditFolder(self.audit)) as watch:
            before()
            return drained(watch)

    @property
    def topics(self) -> list[object]:
        return [e.about.get("topic") for e in self.entries if e.what == "broker.refused"]

    @property
    def entries(self) -> list[audit.AuditEntry]:
        files = sorted(self.audit.glob("*.log"))
        key = audit.parse_key((self.audit / "audit.key").read_text())
        assert audit.verify([(p.name, p.read_bytes()) for p in files], key).ok
        lines = [line for path in files for line in path.read_bytes().splitlines()]
        return [audit.read_line(line)[1] for line in lines]


def drained(watch: BrokerWatch) -> list[str]:
    told: list[str] = []
    is_more = True
    while is_more:
        is_more, lines = watch.step()
        told += lines
    return told


@pytest.fixture
def broker(tmp_path: Path) -> Broker:
    return Broker(tmp_path)


def test_a_restart_goes_on_where_it_stopped_and_knows_who_is_connected(broker: Broker) -> None:
    broker.write(*joined("v1-a", "v1"), denied("v1-a", "one"))
    broker.run()
    broker.write(denied("v1-a", "two"), "v1-a 1 b")
    broker.run()
    broker.run()
    assert broker.topics == ["one", "two", "b"]
    assert [e.about["user"] for e in broker.entries if "user" in e.about] == ["v1"] * 3


def test_half_a_line_waits_for_its_end(broker: Broker) -> None:
    broker.write(*joined("v1-a", "v1"))
    line = f"{BEGIN}{denied('v1-a', 'one')}\n"
    broker.log.write_text(broker.log.read_text() + line[:40])
    broker.run()
    assert broker.topics == []
    with broker.log.open("a") as file:
        file.write(line[40:])
    broker.run()
    assert broker.topics == ["one"]


def test_a_file_that_took_its_place_is_read_after_it(broker: Broker) -> None:
    broker.write(*joined("v1-a", "v1"), denied("v1-a", "one"))
    with watching(broker.log, acl=None, audit=AuditFolder(broker.audit)) as watch:
        drained(watch)
        broker.write(denied("v1-a", "two"))
        broker.log.rename(broker.log.with_suffix(".1"))
        broker.write(denied("v1-a", "three"))
        drained(watch)
        drained(watch)
        broker.log.write_text("")
        broker.write(denied("v1-a", "4"))
        drained(watch)
    assert broker.topics == ["one", "two", "three", "4"]


def test_what_was_read_takes_no_space_and_is_not_read_again(broker: Broker) -> None:
    broker.write(*(f"Received PINGREQ from {n}" for n in range(100_000)), *joined("v1-a", "v1"))
    blocks = broker.log.stat().st_blocks
    broker.write(denied("v1-a", "one"))
    broker.run()
    found = broker.log.stat()
    assert found.st_size > 2_000_000
    assert found.st_blocks < blocks / 10, "the file system of the tests gives nothing back"
    (broker.audit / "broker-log.json").unlink()
    broker.write(denied("v1-a", "two"), denied("v1-a", "three"))
    broker.run()
    assert broker.topics[0] == "one"
    assert broker.topics[-1] == "three"


def test_a_full_disk_delays_the_audit_and_loses_nothing(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.write(*joined("v1-a", "v1"), denied("v1-a", "one"))
    with watching(broker.log, acl=None, audit=AuditFolder(broker.audit)) as watch:
        real = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:9]))
        drained(watch)
        broker.write(denied("v1-a", "1"), denied("v1-a", "1"))
        drained(watch)
        assert watch.waiting == 2
        monkeypatch.setattr(os, "write", real)
        broker.write(denied("v1-a", "two"))
        drained(watch)
    assert broker.topics == ["one", "1", "two"]


def test_what_is_lost_for_good_is_counted(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_log, "_WAITING_MOST", 2)
    broker.write(*joined("v1-a", "v1"), *(denied("v1-a", str(n)) for n in range(5)))
    broker.run()
    assert broker.topics == ["0", "1"]
    assert [e.about for e in broker.entries if e.what == "lost"] == [{"entries": 3}]


def test_a_disk_that_stays_full_is_said_at_the_end(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def fill() -> None:
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:9]))

    broker.write(*joined("v1-a", "v1"), denied("v1-a", "one"))
    with pytest.raises(ConfigError) as caught:
        broker.run(before=fill)
    assert caught.value.code == "audit_unwritable"


def test_a_log_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "none", Place())
    assert file.read() == b""
    (tmp_path / "none").write_text("a\n")
    assert file.read() == b"a\n"
    file.close()


def test_a_damaged_memory_is_said(broker: Broker) -> None:
    broker.audit.mkdir()
    (broker.audit / "broker-log.json").write_text("{")
    with pytest.raises(ConfigError) as caught:
        broker.run()
    assert caught.value.code == "audit_damaged"


def test_the_configuration_says_where_the_log_is(tmp_path: Path) -> None:
    assert log_of(tmp_path) is None
    (tmp_path / "mosquitto.conf").write_text("log_type all\nlog_dest file /run/x.log\n")
    assert log_of(tmp_path) == Path("/run/x.log")
