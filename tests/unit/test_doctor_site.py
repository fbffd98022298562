"""`fleet doctor` on the cloud host: the broker's settings, access list and certificates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import msgspec
import pytest

from fleet_cli.__main__ import run
from fleet_cli.acl_file import render_acl
from fleet_cli.doctor.board_facts import LinkFacts, Validity
from fleet_cli.doctor.finding import Finding
from fleet_cli.doctor.site_checks import acl_holes, check_site
from fleet_cli.doctor.site_facts import SiteFacts, parse_config, read_site
from fleet_cli.exits import ExitCode
from fleet_cli.local_fleet import free_port
from fleet_protocol.access import Identity
from fleet_protocol.topics import Role, Topics

DAY_MS: Final = 86_400_000
ALL: Final = [Identity(role=role, id=f"one-{role}") for role in Role]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `fleet pki broker` writes for a site of three."""
    monkeypatch.setenv("EDGEFLEET_PKI", str(tmp_path / "pki"))
    monkeypatch.chdir(tmp_path)
    ports = ["--port", str(free_port()), "--password-port", str(free_port())]
    for words in (
        ["pki", "init"],
        ["enroll", "dispatcher", "dispatcher"],
        ["enroll", "worker", "pi-1", "--token"],
        ["enroll", "device", "door", "--password"],
        ["pki", "broker", "site", "--host", "localhost", *ports],
    ):
        assert run(words) == ExitCode.OK
    return tmp_path / "site"


@pytest.fixture
def well(folder: Path) -> SiteFacts:
    """The facts of that folder, as if its broker ran."""
    facts = read_site(folder, is_clock_synced=True, now_ms=0)
    assert facts.certificate
    open_ports = tuple(msgspec.structs.replace(link, error="") for link in facts.links)
    return msgspec.structs.replace(
        facts, links=open_ports, now_ms=facts.certificate.begin_ms + DAY_MS, version=(2, 0, 11)
    )


def found(name: str, facts: SiteFacts) -> Finding:
    (finding,) = [one for one in check_site(facts) if one.name == name and not one.ok]
    assert finding.fix
    return finding


def configured(well: SiteFacts, old: str, new: str) -> SiteFacts:
    """Return the facts as if the configuration said something else."""
    text = (Path(well.folder) / "mosquitto.conf").read_text()
    assert old in text
    return msgspec.structs.replace(well, config=parse_config(text.replace(old, new)))


def test_what_we_write_ourselves_is_well(well: SiteFacts) -> None:
    findings = check_site(well)
    assert [one for one in findings if not one.ok] == []
    assert {one.name for one in findings} >= {
        *("broker max_queued_messages", "broker set_tcp_nodelay", "access list"),
        *("broker certificate", "revocation list", "broker names", "clock"),
    }
    assert len(well.config.listeners) == 2
    assert set(well.passwords) == {"door", "pi-1.join"}


@pytest.mark.parametrize(
    ("old", "new", "name", "needed"),
    [
        ("max_queued_messages 100000\n", "", "broker max_queued_messages", True),
        ("max_queued_messages 100000", "max_queued_messages 0", "broker max_queued_messages", True),
        ("max_inflight_messages 1000\n", "", "broker max_inflight_messages", False),
        ("set_tcp_nodelay true\n", "", "broker set_tcp_nodelay", False),
        ("persistence true\n", "", "broker persistence", False),
    ],
)
def test_limits_that_lose_or_delay_messages_are_seen(
    well: SiteFacts, *, old: str, new: str, name: str, needed: bool
) -> None:
    assert found(name, configured(well, old, new)).needed is needed


def test_no_limit_is_fine_where_it_means_that(well: SiteFacts) -> None:
    changed = configured(well, "max_queued_messages 100000", "max_queued_messages 0")
    newer = msgspec.structs.replace(changed, version=(2, 0, 18))
    assert [one for one in check_site(newer) if not one.ok] == []


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("allow_anonymous false", "allow_anonymous true", "anybody"),
        ("use_identity_as_username true\n", "", "who somebody is"),
        ("crlfile", "#crlfile", "revoked"),
        ("acl_file", "#acl_file", "everything"),
        ("tls_version tlsv1.3", "tls_version tlsv1.2", "older TLS"),
        ("certfile", "#certfile", "plain text"),
    ],
)
def test_a_port_with_a_hole_is_a_fault(well: SiteFacts, old: str, new: str, why: str) -> None:
    facts = configured(well, old, new)
    told = [one for one in check_site(facts) if one.name.startswith("broker port") and not one.ok]
    assert told
    assert all(one.needed and one.fix for one in told)
    assert why in told[0].detail


def test_tls_1_2_is_fine_for_passwords_alone_and_without_old_ciphers(well: SiteFacts) -> None:
    before, sign, after = (Path(well.folder) / "mosquitto.conf").read_text().rpartition("tlsv1.3")
    assert sign
    for ciphers, is_well in (("\nciphers ECDHE+AESGCM:ECDHE+CHACHA20", True), ("", False)):
        config = parse_config(f"{before}tlsv1.2{ciphers}{after}")
        findings = check_site(msgspec.structs.replace(well, config=config))
        assert all(one.ok for one in findings) is is_well


def test_everybody_has_the_lines_of_one_role_under_his_own_name() -> None:
    topics = Topics()
    text = render_acl(topics, ALL, joining=("pi-9",))
    assert acl_holes(text, topics) == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("user one-viewer\ntopic write fleet/v1/dev/door/ask", "one-viewer"),
        ("user stranger\ntopic readwrite #", "stranger"),
        ("user pi-9.join\ntopic read fleet/v1/#", "pi-9.join"),
        ("pattern write fleet/v1/dev/%u/ask", "everybody"),
    ],
)
def test_any_further_line_is_a_hole(line: str, told: str) -> None:
    topics = Topics()
    holes = acl_holes(f"{render_acl(topics, ALL, joining=('pi-9',))}\n{line}\n", topics)
    assert len(holes) == 1
    assert told in holes[0]


def test_a_line_before_the_first_user_holds_for_everybody() -> None:
    holes = acl_holes("topic read fleet/v1/#\n" + render_acl(Topics(), ALL), Topics())
    assert holes == ["`topic read fleet/v1/#` holds for everybody"]


def test_the_lines_of_one_name_are_no_other_names() -> None:
    text = render_acl(Topics(), [Identity(role=Role.WORKER, id="pi-1")])
    assert acl_holes(text.replace("user pi-1", "user pi-2"), Topics())


def test_a_hole_in_the_list_is_told_with_the_way_to_close_it(well: SiteFacts) -> None:
    assert well.acl
    open_to_all = msgspec.structs.replace(well, acl=f"{well.acl}\nuser spy\ntopic read #\n")
    assert "fleet pki broker" in found("access list", open_to_all).fix
    nobody = msgspec.structs.replace(well, passwords=(*well.passwords, "ghost"))
    assert "ghost" in found("access list", nobody).detail


def test_a_broker_whose_certificate_was_not_renewed(well: SiteFacts) -> None:
    assert well.certificate
    late = msgspec.structs.replace(well, now_ms=well.certificate.end_ms - 40 * DAY_MS)
    assert not found("broker certificate", late).needed
    over = msgspec.structs.replace(well, now_ms=well.certificate.end_ms + DAY_MS)
    assert found("broker certificate", over).needed


def test_a_lapsed_revocation_list_turns_everybody_away(well: SiteFacts) -> None:
    lapsed = msgspec.structs.replace(well, revocations=Validity(0, 1))
    assert "--reload" in found("revocation list", lapsed).fix


def test_a_port_that_is_shut_and_a_name_that_is_unknown(well: SiteFacts) -> None:
    shut = LinkFacts(host="127.0.0.1", port=8_883, addresses=("127.0.0.1",), error="refused")
    facts = msgspec.structs.replace(well, links=(shut,))
    assert "journalctl" in found("broker port 8883 open", facts).fix
    unknown = LinkFacts(host="broker.example", port=0)
    assert (
        "name server" in found("broker names", msgspec.structs.replace(well, names=(unknown,))).fix
    )


def test_the_command_judges_the_host_it_is_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    # Nobody runs a broker on the folder.
    assert run(["doctor", "--site", str(folder), "--json"]) == ExitCode.JOB_FAILED
    told = json.loads(capsys.readouterr().out)
    faults = {check["name"] for check in told["checks"] if not check["ok"] and check["needed"]}
    assert all(name.startswith("broker port") and name.endswith("open") for name in faults)


def test_a_folder_that_is_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--site", str(tmp_path)]) == ExitCode.USAGE
    assert "--site" in capsys.readouterr().err
