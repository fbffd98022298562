"""What only a broker with passwords, access lists, TLS and a disk can show: Mosquitto."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest
import trustme

from fleet_cli.broker import BrokerKind, BrokerOptions, BrokerProcess
from fleet_protocol.bus import Confirmed, LinkDown, Publication, Refused, Session
from fleet_protocol.errors import (
    BusClosedError,
    ConfigError,
    FleetError,
    RejectedError,
    RetryableError,
)
from fleet_protocol.mqtt import MqttBus
from fleet_protocol.settings import BrokerSettings, TlsSettings
from tests.conftest import require
from tests.contract.bus_lab import QUICK, Reader, confirmed

Start: TypeAlias = Callable[[BrokerOptions], BrokerProcess]

pytestmark = pytest.mark.broker


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts one Mosquitto with the options asked for."""
    require(BrokerKind.MOSQUITTO.is_installed, "mosquitto")
    started: list[BrokerProcess] = []

    def _start(options: BrokerOptions) -> BrokerProcess:
        process = BrokerProcess(BrokerKind.MOSQUITTO, tmp_path / "broker", options=options)
        started.append(process)
        process.start()
        return process

    yield _start
    for process in started:
        process.stop()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Signs what our brokers and clients show."""
    return trustme.CA()


def tls_options(
    folder: Path,
    authority: trustme.CA,
    *,
    host: str = "127.0.0.1",
    asks_clients: bool = False,
    span: tuple[datetime, datetime] | None = None,
) -> BrokerOptions:
    begin, end = span or (None, None)
    certificate = authority.issue_cert(host, not_before=begin, not_after=end)
    chain, key, ca = folder / "broker.pem", folder / "broker.key", folder / "ca.pem"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)
    return BrokerOptions(cert_file=chain, key_file=key, client_ca_file=ca if asks_clients else None)


def session(client_id: str = "me") -> Session:
    return Session(client_id=client_id, subscriptions=("a/#",), expiry_s=60)


async def enter(settings: BrokerSettings) -> None:
    """Connect, say something to ourselves, hear it."""
    async with MqttBus(settings, session(), limits=QUICK) as me:
        me.publish(Publication(topic="a/b", payload=b"hello"))
        await Reader(me).deliveries(1)


async def test_the_right_password_opens_the_door(start: Start) -> None:
    broker = start(BrokerOptions(passwords={"worker-1": "s3cret: $ä"}))
    await enter(BrokerSettings(url=broker.url, username="worker-1", password="s3cret: $ä"))


@pytest.mark.parametrize(("user", "password"), [("worker-1", "wrong"), ("x", "y"), (None, None)])
async def test_a_wrong_password_is_told_at_once(
    start: Start, user: str | None, password: str | None
) -> None:
    broker = start(BrokerOptions(passwords={"worker-1": "right"}))
    with pytest.raises(RejectedError) as caught:
        await enter(BrokerSettings(url=broker.url, username=user, password=password))
    assert caught.value.code == "not_authorized"
    assert "password" in caught.value.hint
    assert "wrong" not in str(caught.value)


async def test_a_password_that_no_longer_holds_closes_the_bus(start: Start, tmp_path: Path) -> None:
    broker = start(BrokerOptions(passwords={"me": "old"}))
    settings = BrokerSettings(url=broker.url, username="me", password="old")
    async with MqttBus(settings, session(), limits=QUICK) as me:
        reader = Reader(me)
        await reader.up()
        broker.kill()
        changed = BrokerProcess(
            BrokerKind.MOSQUITTO,
            tmp_path / "changed",
            port=broker.port,
            options=BrokerOptions(passwords={"me": "new"}),
        )
        with changed, pytest.raises(BusClosedError) as caught:
            await reader.until(lambda _: False)
    assert caught.value.code == "not_authorized"


async def test_a_publication_the_access_list_denies_is_refused(start: Start) -> None:
    acl = "user me\ntopic readwrite a/mine/#\ntopic read a/#\n"
    broker = start(BrokerOptions(passwords={"me": "x"}, acl=acl))
    settings = BrokerSettings(url=broker.url, username="me", password="x")
    async with MqttBus(settings, session(), limits=QUICK) as me:
        me.publish(Publication(topic="a/theirs", payload=b"", token=1))
        me.publish(Publication(topic="a/mine/1", payload=b"", token=2))
        events = await Reader(me).until(lambda got: confirmed(2, got))
    assert Refused(1, "not_authorized", "a/theirs") in events
    assert not any(isinstance(event, LinkDown) for event in events)


async def test_a_publication_that_nobody_hears_is_confirmed_as_such(start: Start) -> None:
    broker = start(BrokerOptions())
    async with MqttBus(BrokerSettings(url=broker.url), session(), limits=QUICK) as bus:
        bus.publish(Publication(topic="b/unheard", payload=b"", token=1))
        bus.publish(Publication(topic="a/heard", payload=b"", token=2))
        events = await Reader(bus).until(lambda got: confirmed(2, got))
    assert Confirmed(1, heard=False) in events
    assert Confirmed(2, heard=True) in events


async def test_tls_carries_messages(start: Start, tmp_path: Path, authority: trustme.CA) -> None:
    broker = start(tls_options(tmp_path, authority))
    assert broker.url.startswith("mqtts://")
    tls = TlsSettings(ca_file=str(tmp_path / "ca.pem"))
    await enter(BrokerSettings(url=broker.url, tls=tls))


async def test_tls_carries_large_messages(
    start: Start, tmp_path: Path, authority: trustme.CA
) -> None:
    broker = start(tls_options(tmp_path, authority))
    settings = BrokerSettings(url=broker.url, tls=TlsSettings(ca_file=str(tmp_path / "ca.pem")))
    payload = bytes(range(256)) * 8_192
    async with MqttBus(settings, session(), limits=QUICK) as me:
        me.publish(Publication(topic="a/b", payload=payload))
        (delivery,) = await Reader(me).deliveries(1)
    assert delivery.payload == payload


async def test_both_sides_may_show_a_certificate(
    start: Start, tmp_path: Path, authority: trustme.CA
) -> None:
    broker = start(tls_options(tmp_path, authority, asks_clients=True))
    ours = authority.issue_cert("worker-1")
    ours.cert_chain_pems[0].write_to_path(tmp_path / "ours.pem")
    ours.private_key_pem.write_to_path(tmp_path / "ours.key")
    tls = TlsSettings(
        ca_file=str(tmp_path / "ca.pem"),
        cert_file=str(tmp_path / "ours.pem"),
        key_file=str(tmp_path / "ours.key"),
    )
    await enter(BrokerSettings(url=broker.url, tls=tls))


async def test_a_broker_whose_authority_we_do_not_know_is_not_trusted(
    start: Start, tmp_path: Path, authority: trustme.CA
) -> None:
    broker = start(tls_options(tmp_path, authority))
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    tls = TlsSettings(ca_file=str(tmp_path / "other.pem"))
    with pytest.raises(ConfigError, match="not trusted") as caught:
        await enter(BrokerSettings(url=broker.url, tls=tls))
    assert caught.value.code == "certificate_untrusted"
    assert "ca_file" in caught.value.hint


async def test_a_certificate_for_another_name_is_not_trusted(
    start: Start, tmp_path: Path, authority: trustme.CA
) -> None:
    broker = start(tls_options(tmp_path, authority, host="broker.example"))
    tls = TlsSettings(ca_file=str(tmp_path / "ca.pem"))
    with pytest.raises(ConfigError, match="not trusted") as caught:
        await enter(BrokerSettings(url=broker.url, tls=tls))
    assert caught.value.code == "certificate_untrusted"


async def test_before_the_brokers_certificate_holds_it_is_our_clock_that_is_waited_for(
    start: Start, tmp_path: Path, authority: trustme.CA
) -> None:
    # To a board that starts in 1970 every certificate is one of the future.
    begin = datetime.now(UTC) + timedelta(hours=1)
    span = (begin, begin + timedelta(days=1))
    broker = start(tls_options(tmp_path, authority, span=span))
    settings = BrokerSettings(url=broker.url, tls=TlsSettings(ca_file=str(tmp_path / "ca.pem")))
    limits = msgspec.structs.replace(QUICK, connect_timeout_s=0.3)
    with pytest.raises(RetryableError, match="does not hold yet") as caught:
        async with MqttBus(settings, session(), limits=limits):
            pass
    assert caught.value.code == "clock_behind"
    assert "clock" in caught.value.hint


async def test_an_expired_certificate_of_the_broker_may_be_our_clock_too(
    start: Start, tmp_path: Path, authority: trustme.CA
) -> None:
    end = datetime.now(UTC) - timedelta(hours=1)
    broker = start(tls_options(tmp_path, authority, span=(end - timedelta(days=1), end)))
    settings = BrokerSettings(url=broker.url, tls=TlsSettings(ca_file=str(tmp_path / "ca.pem")))
    with pytest.raises(ConfigError, match="expired") as caught:
        await enter(settings)
    assert "clock" in caught.value.hint


async def test_tls_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    tls = TlsSettings(ca_file=str(tmp_path / "missing.pem"))
    with pytest.raises(ConfigError) as caught:
        await enter(BrokerSettings(url="mqtts://127.0.0.1:1", tls=tls))
    assert caught.value.code == "tls_files"


async def test_tls_with_a_broker_that_speaks_none_ends_with_an_error(
    mosquitto: BrokerProcess,
) -> None:
    url = mosquitto.url.replace("mqtt:", "mqtts:")
    limits = msgspec.structs.replace(QUICK, connect_timeout_s=0.3)
    with pytest.raises(FleetError):
        async with MqttBus(BrokerSettings(url=url), session(), limits=limits):
            pass


async def test_a_persistent_broker_remembers_through_kill_9(start: Start) -> None:
    broker = start(BrokerOptions(persistent=True))
    settings = BrokerSettings(url=broker.url)
    async with MqttBus(settings, Session(client_id="tx"), limits=QUICK) as tx:
        async with MqttBus(settings, session(), limits=QUICK) as rx:
            await Reader(rx).up()
        tx.publish(Publication(topic="a/b", payload=b"queued"))
        tx.publish(Publication(topic="a/kept", payload=b"kept", retain=True, token=1))
        await Reader(tx).until(lambda got: confirmed(1, got))
        wait_for_save(broker.folder / "mosquitto.db", b"queued", b"kept")
        broker.kill()
        broker.start()
        async with MqttBus(settings, session(), limits=QUICK) as rx:
            reader = Reader(rx)
            up = await reader.up()
            # The kept one twice: queued as it came, and retained as we subscribe again.
            got = await reader.deliveries(3)
    assert up.session_present
    assert {(item.topic, item.payload) for item in got} == {("a/b", b"queued"), ("a/kept", b"kept")}


def wait_for_save(file: Path, *payloads: bytes) -> None:
    """Wait until the broker's own file has what it confirmed."""
    deadline_s = time.monotonic() + 10
    while not (file.exists() and all(payload in file.read_bytes() for payload in payloads)):
        assert time.monotonic() < deadline_s, "the broker did not save"
        time.sleep(0.01)
