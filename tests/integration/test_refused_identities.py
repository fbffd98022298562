"""Whoever is wrong or stolen is refused by a real broker, and each refusal is an audit line."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from fleet_cli.broker import BrokerKind
from fleet_cli.broker_log import BrokerWatch, watching
from fleet_cli.pki import hand_out, now_ms
from fleet_client.access_probe import AccessProbe
from fleet_client.errors import DeniedError
from fleet_pki.authority import Authority, Enrolment, PkiFolder, found
from fleet_pki.certificates import Issuer, Span, issue_identity, key_pem, new_key, pem_of
from fleet_pki.registry import Secret
from fleet_protocol import audit
from fleet_protocol.access import Identity
from fleet_protocol.audit_folder import AuditFolder
from fleet_protocol.settings import BrokerSettings
from fleet_protocol.topics import Role
from tests.conftest import require
from tests.integration.secured_site import SecuredSite, listen_for_alert
from tests.integration.test_secured_broker import context_of

pytestmark = pytest.mark.broker
PATIENCE_S = 60.0


class Watched(SecuredSite):
    """A site whose broker says whom it turned away, and what follows that."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self._log = folder / "refusals.log"
        self.site = msgspec.structs.replace(self.site, log=self._log)
        self.audit = AuditFolder(folder / "audit")
        self.watch: BrokerWatch | None = None

    def refused(self, kind: str, met: Callable[[dict[str, object]], bool]) -> dict[str, object]:
        """Wait until a refusal of this kind is an audit line, and return it."""
        assert self.watch
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            self.watch.step()
            for entry in self.entries:
                about = entry.about
                if entry.what == "broker.refused" and about["kind"] == kind and met(about):
                    return about
            assert time.monotonic() < deadline_s, f"{self.log}\n{self.entries}"
            time.sleep(0.02)

    @property
    def entries(self) -> list[audit.AuditEntry]:
        lines = [line for path in self.files for line in path.read_bytes().splitlines()]
        return [audit.read_line(line)[1] for line in lines]

    @property
    def files(self) -> list[Path]:
        return sorted(self.audit.folder.glob("*.log"))

    @property
    def seen(self) -> int:
        """How many refusals there are by now."""
        return sum(int(e.about.get("times", 1)) for e in self.entries if "refused" in e.what)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    require(BrokerKind.MOSQUITTO.is_installed, "mosquitto")
    one = Watched(tmp_path_factory.mktemp("watched"))
    one.enrol(Role.DISPATCHER, "dispatcher")
    one.enrol(Role.WORKER, "w1", "w2")
    one.enrol(Role.VIEWER, "v1")
    one.enrol(Role.OPERATOR, "o1")
    one.enrol(Role.DEVICE, "d1")
    one.enrol(Role.DEVICE, "p1", secret=Secret.PASSWORD)
    one.enrol(Role.WORKER, "late", ago=timedelta(hours=73))
    one.enrol(Role.WORKER, "gone")
    one.revoke("gone")
    with one, watching(one._log, acl=one.site.folder / "acl", audit=one.audit) as watch:
        one.watch = watch
        yield one
        verdict = audit.verify([(p.name, p.read_bytes()) for p in one.files], one.audit.key)
        assert verdict.ok, verdict


def turned_away(site: Watched, context: ssl.SSLContext, why: str) -> dict[str, object]:
    """Try to get in, and return the audit line of that."""
    assert site.watch
    site.watch.step()
    before = site.seen
    with pytest.raises(ssl.SSLError):
        listen_for_alert(site, context)
    return site.refused("connection", lambda about: site.seen > before and why in str(about["why"]))


def another(site: Watched, tmp_path: Path) -> ssl.SSLContext:
    """Return what somebody shows whose certificate another fleet signed."""
    other = PkiFolder(tmp_path / "other")
    found(other, "lab", now_ms=now_ms())
    wish = Enrolment(identity=Identity(role=Role.WORKER, id="w1"))
    with Authority(other) as authority:
        authority.enrol([wish], hand_out(tmp_path, again=False), now_ms=now_ms())
    return context_of(site.settings("w1", keys=tmp_path))


def self_signed(site: Watched, tmp_path: Path) -> ssl.SSLContext:
    """Return what somebody shows who signed for the authority himself."""
    key, folder = new_key(), tmp_path / "w1"
    folder.mkdir()
    with Authority(site.pki) as authority:
        real = authority._issuer.certificate
    span = Span.of(now_ms(), timedelta(hours=1))
    identity = Identity(role=Role.WORKER, id="w1")
    mine = issue_identity(Issuer(real, key), identity, key.public_key(), span)
    (folder / "cert.pem").write_bytes(pem_of(mine))
    (folder / "key.pem").write_bytes(key_pem(key))
    return context_of(site.settings("w1", keys=tmp_path))


@pytest.mark.parametrize(
    "who",
    [
        lambda site, _: context_of(site.settings("late")),
        lambda site, _: context_of(site.settings("gone")),
        another,
        self_signed,
    ],
    ids=["expired", "revoked", "another fleet's", "self-signed"],
)
def test_a_certificate_that_is_not_good_leaves_a_line(
    site: Watched, tmp_path: Path, who: Callable[[Watched, Path], ssl.SSLContext]
) -> None:
    line = turned_away(site, who(site, tmp_path), "certificate")
    assert line["address"] == "127.0.0.1"


def test_who_shows_no_certificate_leaves_a_line(site: Watched) -> None:
    context = ssl.create_default_context(cafile=str(site.pki.ca))
    line = turned_away(site, context, "did not return a certificate")
    assert line["address"] == "127.0.0.1"


def test_a_wrong_password_leaves_a_line(site: Watched) -> None:
    settings = site.settings("p1")
    wrong = BrokerSettings(url=settings.url, tls=settings.tls, username="p1", password="guess")
    with pytest.raises(DeniedError), AccessProbe(wrong, ("none",)):
        pass
    line = site.refused("login", lambda about: "p1" not in about)
    assert (line["why"], line["address"]) == ("not authorised", "127.0.0.1")


@pytest.mark.parametrize(
    ("who", "topic"),
    [
        ("d1", "workers/w1/presence"),
        ("d1", "workers/d1/held"),
        ("w1", "workers/w2/jobs/1/done"),
        ("w1", "dev/d1/jobs/1/res"),
        ("v1", "operator/v1/req"),
        ("o1", "admin/o1/req"),
    ],
)
@pytest.mark.parametrize("uses_mqtt5", [False, True])
def test_a_word_on_anothers_topic_leaves_a_line(
    site: Watched, who: str, topic: str, *, uses_mqtt5: bool
) -> None:
    whole = f"fleet/v1/{topic}"
    with AccessProbe(site.settings(who), ("none",), uses_mqtt5=uses_mqtt5) as probe:
        probe.say(whole, b"word")
        line = site.refused("publish", lambda a: (a["topic"], a["user"]) == (whole, who))
    assert str(line["client"]).startswith(f"{who}-")
    assert line["address"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("who", "wanted"),
    [
        ("v1", "fleet/v1/dev/+/ask"),
        ("v1", "fleet/v1/dev/d1/jobs/+/submit"),
        ("v1", "fleet/v1/workers/+/assign"),
        ("v1", "$share/x/fleet/v1/#"),
        ("d1", "fleet/v1/dev/#"),
        ("w1", "fleet/v1/workers/w2/assign"),
    ],
)
def test_who_listens_to_prompts_of_others_leaves_a_line(
    site: Watched, who: str, wanted: str
) -> None:
    with AccessProbe(site.settings(who), (wanted,)):
        line = site.refused("subscribe", lambda a: (a["topic"], a["user"]) == (wanted, who))
    assert line["why"] == "not in its list"


def test_who_does_what_it_may_leaves_none(site: Watched) -> None:
    with (
        AccessProbe(
            site.settings("w2"), ("fleet/v1/workers/w2/#", "fleet/v1/fleet/dispatcher")
        ) as w,
        AccessProbe(site.settings("v1"), ("fleet/v1/fleet/summary", "fleet/v1/viewer/v1/res")) as v,
    ):
        assert w.say("fleet/v1/workers/w2/held", b"word")
        assert v.say("fleet/v1/viewer/v1/req", b"word")
        # Behind them in the log: all before it was read.
        v.say("fleet/v1/operator/v1/req", b"the end")
        site.refused("publish", lambda about: about["user"] == "v1")
    users = {entry.about.get("user") for entry in site.entries}
    assert "w2" not in users


def test_who_is_revoked_while_connected_leaves_a_line(site: Watched) -> None:
    site.enrol(Role.WORKER, "thief")
    site.reload()
    with AccessProbe(site.settings("thief"), ("none",)) as thief:
        assert thief.say("fleet/v1/workers/thief/presence", b"before")
        site.revoke("thief")
        site.reload()
        thief.say("fleet/v1/workers/thief/presence", b"after")
        line = site.refused("publish", lambda about: about["user"] == "thief")
    assert line["topic"] == "fleet/v1/workers/thief/presence"


def test_the_command_writes_a_log_that_verifies(site: Watched, tmp_path: Path) -> None:
    with AccessProbe(site.settings("d1"), ("none",)) as probe:
        probe.say("fleet/v1/workers/w1/state", b"word")
    words = [sys.executable, "-m", "fleet_cli", "audit"]
    watch = ["broker", str(site.site.folder), "--audit", str(tmp_path / "audit"), "--once"]
    subprocess.run([*words, *watch], check=True, timeout=60, stderr=subprocess.DEVNULL)
    # The fixture's own has the log, too: it is read, not taken.
    subprocess.run([*words, "verify", str(tmp_path / "audit")], check=True, timeout=60)
    found = subprocess.run(
        [*words, "export", str(tmp_path / "audit"), "--what", "broker.refused"],
        check=True, timeout=60, capture_output=True, text=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert any(one.get("topic") == "fleet/v1/workers/w1/state" for one in lines)


def test_no_payload_is_written_down(site: Watched) -> None:
    with AccessProbe(site.settings("d1"), ("none",)) as probe:
        probe.say("fleet/v1/workers/w1/held", b"the secret plan")
        site.refused("publish", lambda about: about["topic"] == "fleet/v1/workers/w1/held")
    assert all(b"secret plan" not in path.read_bytes() for path in site.files)
