"""The production broker: who gets in, what they may do, and what a reload changes."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from fleet_cli.broker import BrokerKind
from fleet_cli.pki import hand_out, now_ms
from fleet_client.access_probe import AccessProbe
from fleet_client.errors import DeniedError
from fleet_pki.authority import Authority, Enrolment, PkiFolder, found
from fleet_pki.certificates import Issuer, Span, issue_identity, key_pem, new_key, pem_of
from fleet_pki.registry import Secret
from fleet_protocol.access import Identity
from fleet_protocol.settings import BrokerSettings
from fleet_protocol.topics import Role
from tests.conftest import require
from tests.integration.secured_site import LOOPBACK, SecuredSite, greeting, listen_for_alert

pytestmark = pytest.mark.broker
CONNACK = b"\x20"
END = "fleet/v1/fleet/dispatcher"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredSite]:
    """A site with one of each role; tests that revoke enrol somebody of their own."""
    require(BrokerKind.MOSQUITTO.is_installed, "mosquitto")
    one = SecuredSite(tmp_path_factory.mktemp("site"))
    one.enrol(Role.DISPATCHER, "dispatcher")
    one.enrol(Role.WORKER, "w1", "w2")
    one.enrol(Role.VIEWER, "v1")
    one.enrol(Role.OPERATOR, "o1")
    one.enrol(Role.ADMIN, "a1")
    one.enrol(Role.DEVICE, "d1")
    one.enrol(Role.DEVICE, "p1", secret=Secret.PASSWORD)
    with one:
        yield one


def context_of(settings: BrokerSettings) -> ssl.SSLContext:
    assert settings.tls
    context = ssl.create_default_context(cafile=settings.tls.ca_file)
    if settings.tls.cert_file:
        context.load_cert_chain(settings.tls.cert_file, settings.tls.key_file)
    return context


def hears(site: SecuredSite, name: str, topic: str, *, speaker: str = "dispatcher") -> bool:
    """Tell whether somebody is given what is said on a topic."""
    with (
        AccessProbe(site.settings(name), ("fleet/v1/#",)) as listener,
        AccessProbe(site.settings(speaker), ("none",)) as one,
        AccessProbe(site.settings("dispatcher"), ("none",)) as dispatcher,
    ):
        one.say(topic, b"word")
        dispatcher.say(END, b"end")
        return (topic, b"word") in listener.heard_until(b"end")


@pytest.mark.parametrize("uses_mqtt5", [False, True])
@pytest.mark.parametrize("name", ["w1", "d1", "v1", "a1", "p1"])
def test_each_role_gets_in_and_hears_its_dispatcher(
    site: SecuredSite, name: str, *, uses_mqtt5: bool
) -> None:
    with (
        AccessProbe(site.settings(name), ("fleet/v1/#",), uses_mqtt5=uses_mqtt5) as listener,
        AccessProbe(site.settings("dispatcher"), ("none",)) as dispatcher,
    ):
        dispatcher.say(END, b"end")
        listener.heard_until(b"end")


@pytest.mark.parametrize(
    ("speaker", "topic", "is_allowed"),
    [
        ("w1", "workers/w1/presence", True),
        ("w1", "workers/w2/presence", False),
        ("w1", "dev/w1/ask", False),
        ("d1", "dev/d1/ask", True),
        ("d1", "workers/d1/presence", False),
        ("d1", "workers/w1/presence", False),
        ("p1", "dev/p1/jobs/1/submit", True),
        ("p1", "dev/d1/jobs/1/submit", False),
        ("v1", "dev/v1/ask", False),
        ("v1", "viewer/v1/req", True),
        ("v1", "operator/v1/req", False),
        ("v1", "admin/v1/req", False),
        ("o1", "operator/o1/req", True),
        ("o1", "admin/o1/req", False),
        ("o1", "operator/a1/req", False),
        ("a1", "admin/a1/req", True),
        ("a1", "workers/w1/cmd", False),
    ],
)
def test_the_name_in_the_certificate_is_what_the_list_binds(
    site: SecuredSite, speaker: str, topic: str, *, is_allowed: bool
) -> None:
    assert hears(site, "dispatcher", f"fleet/v1/{topic}", speaker=speaker) is is_allowed


def test_a_viewer_is_given_no_prompt(site: SecuredSite) -> None:
    assert not hears(site, "v1", "fleet/v1/dev/d1/ask", speaker="d1")
    assert not hears(site, "v1", "fleet/v1/workers/w1/assign")
    assert hears(site, "v1", "fleet/v1/workers/w1/state", speaker="w1")


def test_a_client_that_calls_itself_otherwise_is_still_who_its_certificate_says(
    site: SecuredSite,
) -> None:
    liar = site.settings("d1")
    liar = BrokerSettings(url=liar.url, tls=liar.tls, username="w1", password="x")
    with (
        AccessProbe(site.settings("dispatcher"), ("fleet/v1/#",)) as dispatcher,
        AccessProbe(liar, ("none",)) as one,
    ):
        assert not one.say("fleet/v1/workers/w1/presence", b"word")
        dispatcher.say(END, b"end")
        assert dispatcher.heard_until(b"end") == set()


def test_who_shows_no_certificate_is_turned_away(site: SecuredSite) -> None:
    context = ssl.create_default_context(cafile=str(site.pki.ca))
    with pytest.raises(ssl.SSLError, match="certificate required"):
        listen_for_alert(site, context)


def test_nothing_older_than_tls_1_3_is_spoken(site: SecuredSite) -> None:
    context = context_of(site.settings("w1"))
    assert greeting(site, context) == CONNACK
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        listen_for_alert(site, context)


@pytest.mark.parametrize("asked", ["1.3", "1.2"])
def test_microcontrollers_get_in_with_tls_1_2_where_the_operator_said_so(
    tmp_path: Path, asked: str
) -> None:
    one = SecuredSite(tmp_path)
    one.enrol(Role.DISPATCHER, "dispatcher")
    one.site = msgspec.structs.replace(one.site, password_tls=asked)
    one.write()
    # What was said once holds until something else is said.
    one.site = msgspec.structs.replace(one.site, password_tls=None)
    one.enrol(Role.DEVICE, "p1", secret=Secret.PASSWORD)
    with one:
        context = ssl.create_default_context(cafile=str(one.pki.ca))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        port = one.site.password_port
        assert may_shake_hands(port, context) is (asked == "1.2")
        context.set_ciphers("AES128-GCM-SHA256:ECDHE+AES+SHA1")
        assert not may_shake_hands(port, context)
        # Where certificates are shown it stays as it is.
        assert not may_shake_hands(one.site.port, context_of_tls_1_2(one))


def may_shake_hands(port: int, context: ssl.SSLContext) -> bool:
    with socket.create_connection((LOOPBACK, port), timeout=10) as plain:
        try:
            context.wrap_socket(plain, server_hostname=LOOPBACK).close()
        except ssl.SSLError:
            return False
    return True


def context_of_tls_1_2(site: SecuredSite) -> ssl.SSLContext:
    context = context_of(site.settings("dispatcher"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def test_a_certificate_of_another_fleet_is_turned_away(site: SecuredSite, tmp_path: Path) -> None:
    other = PkiFolder(tmp_path / "other")
    found(other, "lab", now_ms=now_ms())
    wish = Enrolment(identity=Identity(role=Role.WORKER, id="w1"))
    with Authority(other) as authority:
        authority.enrol([wish], hand_out(tmp_path, again=False), now_ms=now_ms())
    with pytest.raises(ssl.SSLError, match=r"unknown ca|decrypt error"):
        listen_for_alert(site, context_of(site.settings("w1", keys=tmp_path)))


def test_a_certificate_that_signed_itself_is_turned_away(site: SecuredSite, tmp_path: Path) -> None:
    key = new_key()
    (tmp_path / "w1").mkdir()
    identity = Identity(role=Role.WORKER, id="w1")
    span = Span.of(now_ms(), timedelta(hours=1))
    with Authority(site.pki) as authority:
        real = authority._issuer.certificate
    # It even says that the real authority signed it.
    mine = issue_identity(Issuer(real, key), identity, key.public_key(), span)
    (tmp_path / "w1/cert.pem").write_bytes(pem_of(mine))
    (tmp_path / "w1/key.pem").write_bytes(key_pem(key))
    with pytest.raises(ssl.SSLError, match=r"unknown ca|decrypt error|bad certificate"):
        listen_for_alert(site, context_of(site.settings("w1", keys=tmp_path)))


def test_an_expired_certificate_is_turned_away(site: SecuredSite) -> None:
    site.enrol(Role.WORKER, "late", ago=timedelta(hours=73))
    site.reload()
    with pytest.raises(ssl.SSLError, match="certificate expired"):
        listen_for_alert(site, context_of(site.settings("late")))


def test_the_brokers_own_certificate_lets_nobody_in(site: SecuredSite) -> None:
    context = ssl.create_default_context(cafile=str(site.pki.ca))
    folder = site.site.folder
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    with pytest.raises(ssl.SSLError, match=r"unsupported certificate|bad certificate"):
        listen_for_alert(site, context)


def test_a_password_opens_its_own_port_alone(site: SecuredSite) -> None:
    settings = site.settings("p1")
    assert f":{site.site.password_port}" in settings.url
    wrong = BrokerSettings(url=settings.url, tls=settings.tls, username="p1", password="guess")
    with pytest.raises(DeniedError), AccessProbe(wrong, ("none",)):
        pass


def test_a_reload_drops_nobody_and_lets_newcomers_in(site: SecuredSite) -> None:
    with (
        AccessProbe(site.settings("w1"), ("fleet/v1/#",)) as worker,
        AccessProbe(site.settings("p1"), ("fleet/v1/#",)) as device,
        AccessProbe(site.settings("dispatcher"), ("fleet/v1/#",)) as dispatcher,
    ):
        site.enrol(Role.WORKER, "new")
        site.reload()
        with AccessProbe(site.settings("new"), ("none",)) as new:
            assert new.say("fleet/v1/workers/new/presence", b"word")
        assert worker.say("fleet/v1/workers/w1/presence", b"word")
        assert device.say("fleet/v1/dev/p1/ask", b"word")
        dispatcher.say(END, b"end")
        heard = {topic for topic, _ in dispatcher.heard_until(b"end")}
        worker.heard_until(b"end")
        device.heard_until(b"end")
        assert [one.reconnects for one in (worker, device, dispatcher)] == [0, 0, 0]
    assert heard == {f"fleet/v1/{t}" for t in (
        "workers/new/presence", "workers/w1/presence", "dev/p1/ask",
    )}  # fmt: skip


def test_who_is_revoked_can_do_nothing_at_once_and_never_gets_in_again(site: SecuredSite) -> None:
    site.enrol(Role.WORKER, "gone")
    site.reload()
    with (
        AccessProbe(site.settings("gone"), ("fleet/v1/#",)) as gone,
        AccessProbe(site.settings("dispatcher"), ("fleet/v1/#",)) as dispatcher,
    ):
        assert gone.say("fleet/v1/workers/gone/presence", b"before")
        site.revoke("gone")
        site.reload()
        # Still connected, it is in no list any more.
        gone.say("fleet/v1/workers/gone/presence", b"after")
        dispatcher.say("fleet/v1/workers/gone/assign", b"a prompt")
        dispatcher.say(END, b"end")
        assert {payload for _, payload in dispatcher.heard_until(b"end")} == {
            *(b"before", b"a prompt")
        }
        # What it says in the topics of its own it hears itself, while it may.
        assert {payload for _, payload in gone.heard} == {b"before"}
    with pytest.raises(ssl.SSLError, match="certificate revoked"):
        listen_for_alert(site, context_of(site.settings("gone")))
    assert greeting(site, context_of(site.settings("w1"))) == CONNACK


def test_a_device_whose_password_is_revoked_stays_outside(site: SecuredSite) -> None:
    site.enrol(Role.DEVICE, "p2", secret=Secret.PASSWORD)
    site.reload()
    with AccessProbe(site.settings("p2"), ("none",)) as device:
        assert device.say("fleet/v1/dev/p2/ask", b"word")
    site.revoke("p2")
    site.reload()
    with pytest.raises(DeniedError), AccessProbe(site.settings("p2"), ("none",)):
        pass


def test_clients_check_the_broker_too(site: SecuredSite, tmp_path: Path) -> None:
    other = PkiFolder(tmp_path / "other")
    found(other, "lab", now_ms=now_ms())
    context = ssl.create_default_context(cafile=str(other.ca))
    with pytest.raises(ssl.SSLCertVerificationError):
        listen_for_alert(site, context)
    assert LOOPBACK in site.url
