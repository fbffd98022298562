"""The authority: who is enrolled, renewed and revoked, and what it costs to get in twice."""

from __future__ import annotations

import base64
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fleet_pki import certificates as c
from fleet_pki.authority import (
    ISSUING_LIFE,
    TOKEN_LIFE,
    Authority,
    Bundle,
    Enrolment,
    PkiFolder,
    found,
)
from fleet_pki.files import write_file
from fleet_pki.registry import Secret
from fleet_protocol.access import Identity
from fleet_protocol.errors import ConfigError, FleetError, RejectedError
from fleet_protocol.topics import Role

NOW_MS = 1_790_000_000_000
SOUND = x509.load_pem_x509_csr(c.make_request("pi-1", c.new_key())).public_bytes(
    serialization.Encoding.DER
)
"""A request that is as it should be."""
HOUR_MS = 3_600_000


@pytest.fixture
def folder(tmp_path: Path) -> PkiFolder:
    """An authority whose root was put away."""
    pki = PkiFolder(tmp_path / "pki")
    found(pki, "lab", now_ms=NOW_MS)
    shutil.move(pki.root_key.parent, tmp_path / "safe")
    return pki


@pytest.fixture
def authority(folder: PkiFolder) -> Iterator[Authority]:
    with Authority(folder) as one:
        yield one


def nowhere(_bundles: Sequence[Bundle]) -> None:
    """Keep bundles nowhere."""


def enrol(
    authority: Authority,
    name: str,
    role: Role = Role.WORKER,
    secret: Secret = Secret.CERTIFICATE,
    *,
    now_ms: int = NOW_MS,
    again: bool = False,
) -> dict[str, bytes]:
    wish = Enrolment(identity=Identity(role=role, id=name), secret=secret)
    return authority.enrol([wish], nowhere, now_ms=now_ms, again=again)[0].files


def leaf(chain: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(chain)[0]


def serials(authority: Authority, *, now_ms: int = NOW_MS) -> set[int]:
    listed = x509.load_pem_x509_crl(authority.revocations(now_ms=now_ms))
    return {one.serial_number for one in listed}


def code_of(error: pytest.ExceptionInfo[FleetError]) -> str:
    return error.value.code


def test_a_certificate_names_id_and_role_and_leads_to_the_root(
    authority: Authority, folder: PkiFolder
) -> None:
    files = enrol(authority, "pi-1")
    mine, issuing = x509.load_pem_x509_certificates(files["cert.pem"])
    root = x509.load_pem_x509_certificate(files["ca.pem"])
    assert mine.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "pi-1"
    assert mine.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)[0].value == (
        "worker"
    )
    mine.verify_directly_issued_by(issuing)
    issuing.verify_directly_issued_by(root)
    key = c.read_key(files["key.pem"])
    assert key.public_key().public_numbers() == mine.public_key().public_numbers()  # type: ignore[union-attr]
    assert folder.ca.read_bytes() == files["ca.pem"]


def test_an_identity_signs_nobody_in_and_is_no_server(authority: Authority) -> None:
    mine = leaf(enrol(authority, "pi-1")["cert.pem"])
    basic = mine.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca) == (True, False)
    usage = mine.extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.crl_sign) == (True, False, False)
    purpose = mine.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert list(purpose.value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    server = leaf(authority.issue_server(["broker.lan"], now_ms=NOW_MS)["cert.pem"])
    purpose = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert list(purpose.value) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_a_used_token_is_no_password_any_more(authority: Authority) -> None:
    token = enrol(authority, "pi-1", secret=Secret.TOKEN)["token"].decode().strip()
    assert authority.members()[0].password_hash is not None
    authority.redeem(token, c.make_request("pi-1", c.new_key()), now_ms=NOW_MS)
    assert authority.members()[0].password_hash is None


def test_a_workers_certificate_holds_three_days_and_from_an_hour_before(
    authority: Authority,
) -> None:
    mine = leaf(enrol(authority, "pi-1")["cert.pem"])
    assert mine.not_valid_after_utc.timestamp() * 1_000 == NOW_MS + 72 * HOUR_MS
    assert mine.not_valid_before_utc.timestamp() * 1_000 == NOW_MS - HOUR_MS


def test_nothing_outlives_the_authority(authority: Authority) -> None:
    late_ms = NOW_MS + int((ISSUING_LIFE - timedelta(hours=1)).total_seconds() * 1_000)
    mine, issuing = x509.load_pem_x509_certificates(
        enrol(authority, "pi-1", now_ms=late_ms)["cert.pem"]
    )
    assert mine.not_valid_after_utc == issuing.not_valid_after_utc


def test_a_second_authority_is_not_made_over_the_first(folder: PkiFolder) -> None:
    before = folder.ca.read_bytes()
    with pytest.raises(ConfigError) as caught:
        found(folder, "other", now_ms=NOW_MS)
    assert code_of(caught) == "pki_exists"
    assert folder.ca.read_bytes() == before


def test_the_roots_key_can_be_locked(tmp_path: Path) -> None:
    pki = PkiFolder(tmp_path / "locked")
    found(pki, "lab", now_ms=NOW_MS, passphrase=b"open sesame")
    with pytest.raises(RejectedError):
        c.read_key(pki.root_key.read_bytes())
    assert c.read_key(pki.root_key.read_bytes(), passphrase=b"open sesame")


def test_what_is_secret_is_its_owners_alone(tmp_path: Path, folder: PkiFolder) -> None:
    public = {folder.ca, folder.issuing, tmp_path / "safe" / "root.pem"}
    with Authority(folder):
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {folder.registry, folder.issuing_key, tmp_path / "safe" / "root.key"} <= set(files)
    for path in set(files) - public:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_a_file_and_then_its_name_are_on_the_disk_before_anything_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flushed = tmp_path / "worker.key", []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        is_named = path.exists() and path.read_bytes() == b"new"
        flushed.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), is_named))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_file(path, b"new")
    assert flushed == [(False, False), (True, True)]


def test_an_id_is_given_once_and_anew_only_on_demand(authority: Authority) -> None:
    first = leaf(enrol(authority, "pi-1")["cert.pem"])
    with pytest.raises(RejectedError) as caught:
        enrol(authority, "pi-1", Role.DEVICE)
    assert code_of(caught) == "already_enrolled"
    enrol(authority, "pi-1", again=True)
    assert serials(authority) == {first.serial_number}


def test_all_of_a_list_is_enrolled_or_none_of_it(authority: Authority) -> None:
    wishes = [
        Enrolment(identity=Identity(role=Role.WORKER, id="w1")),
        Enrolment(identity=Identity(role=Role.VIEWER, id="v1"), secret=Secret.PASSWORD),
    ]
    with pytest.raises(RejectedError) as caught:
        authority.enrol(wishes, nowhere, now_ms=NOW_MS)
    assert code_of(caught) == "secret_unfit"

    def full(_bundles: Sequence[Bundle]) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        authority.enrol(wishes[:1], full, now_ms=NOW_MS)
    assert authority.members() == []


@pytest.mark.parametrize("name", ["", "a b", "a/b", "+", "x" * 37, "a\n"])
def test_an_id_that_could_not_stand_in_a_topic_is_refused(authority: Authority, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        enrol(authority, name)
    assert code_of(caught) == "invalid_id"


def test_a_token_is_good_for_one_key(authority: Authority) -> None:
    token = enrol(authority, "pi-1", secret=Secret.TOKEN)["token"].decode().strip()
    mine, other = c.make_request("pi-1", c.new_key()), c.make_request("pi-1", c.new_key())
    chain = authority.redeem(token, mine, now_ms=NOW_MS + 1)
    assert authority.redeem(token, mine, now_ms=NOW_MS + 2) == chain
    with pytest.raises(RejectedError) as caught:
        authority.redeem(token, other, now_ms=NOW_MS + 3)
    assert code_of(caught) == "token_refused"


def test_a_token_expires_and_a_new_one_voids_it(authority: Authority) -> None:
    end_ms = NOW_MS + int(TOKEN_LIFE.total_seconds() * 1_000)
    request = c.make_request("pi-1", c.new_key())
    old = enrol(authority, "pi-1", secret=Secret.TOKEN)["token"].decode().strip()
    with pytest.raises(RejectedError, match="too old"):
        authority.redeem(old, request, now_ms=end_ms + 1)
    new = enrol(authority, "pi-1", secret=Secret.TOKEN, again=True)["token"].decode().strip()
    with pytest.raises(RejectedError, match="void"):
        authority.redeem(old, request, now_ms=NOW_MS)
    assert authority.redeem(new, request, now_ms=end_ms)


def test_a_token_is_for_its_own_id(authority: Authority) -> None:
    token = enrol(authority, "pi-1", secret=Secret.TOKEN)["token"].decode().strip()
    with pytest.raises(RejectedError) as caught:
        authority.redeem(token, c.make_request("pi-2", c.new_key()), now_ms=NOW_MS)
    assert code_of(caught) == "bad_request"
    with pytest.raises(RejectedError):
        authority.redeem(token.replace("pi-1", "pi-2"), b"", now_ms=NOW_MS)


def test_of_two_who_hold_a_token_at_once_one_gets_in(
    authority: Authority, folder: PkiFolder
) -> None:
    token = enrol(authority, "pi-1", secret=Secret.TOKEN)["token"].decode().strip()

    def redeem(_number: int) -> str:
        with Authority(folder) as mine:
            try:
                mine.redeem(token, c.make_request("pi-1", c.new_key()), now_ms=NOW_MS)
            except RejectedError as error:
                return error.code
        return "ok"

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(redeem, range(4))) == ["ok", *["token_refused"] * 3]


def test_a_worker_renews_with_a_new_key(authority: Authority) -> None:
    first = leaf(enrol(authority, "pi-1")["cert.pem"])
    later_ms = NOW_MS + 48 * HOUR_MS
    request = c.make_request("pi-1", c.new_key())
    chain = authority.renew("pi-1", request, now_ms=later_ms)
    assert leaf(chain).not_valid_after_utc.timestamp() * 1_000 == later_ms + 72 * HOUR_MS
    assert leaf(chain).serial_number != first.serial_number
    assert authority.renew("pi-1", request, now_ms=later_ms + HOUR_MS) == chain
    assert serials(authority) == set()


def test_what_was_made_while_the_clock_was_ahead_is_not_given_again(authority: Authority) -> None:
    enrol(authority, "pi-1")
    request = c.make_request("pi-1", c.new_key())
    ahead = authority.renew("pi-1", request, now_ms=NOW_MS + 720 * HOUR_MS)
    for _ in range(2):
        again = authority.renew("pi-1", request, now_ms=NOW_MS)
        assert again != ahead
        assert leaf(again).not_valid_before_utc < leaf(ahead).not_valid_before_utc


def test_renewals_do_not_fill_the_registry(authority: Authority, folder: PkiFolder) -> None:
    enrol(authority, "pi-1")
    for day in range(0, 40, 2):
        request = c.make_request("pi-1", c.new_key())
        authority.renew("pi-1", request, now_ms=NOW_MS + day * 24 * HOUR_MS)
    import sqlite3  # noqa: PLC0415  # to count what no method tells

    with sqlite3.connect(folder.registry) as db:
        assert db.execute("SELECT count(*) FROM certificates").fetchone()[0] <= 3
    db.close()


def test_who_is_revoked_gets_nothing_more(authority: Authority) -> None:
    first = leaf(enrol(authority, "pi-1")["cert.pem"])
    request = c.make_request("pi-1", c.new_key())
    second = leaf(authority.renew("pi-1", request, now_ms=NOW_MS + HOUR_MS))
    authority.revoke("pi-1", now_ms=NOW_MS + 2 * HOUR_MS)
    authority.revoke("pi-1", now_ms=NOW_MS + 3 * HOUR_MS)
    assert serials(authority) == {first.serial_number, second.serial_number}
    with pytest.raises(RejectedError) as caught:
        authority.renew("pi-1", request, now_ms=NOW_MS + 4 * HOUR_MS)
    assert code_of(caught) == "revoked"
    [member] = authority.members()
    assert member.revoked_at_ms == NOW_MS + 2 * HOUR_MS


def test_revoking_voids_an_unused_token_and_a_password(authority: Authority) -> None:
    token = enrol(authority, "pi-1", secret=Secret.TOKEN)["token"].decode().strip()
    enrol(authority, "door", Role.DEVICE, Secret.PASSWORD)
    for name in ("pi-1", "door"):
        authority.revoke(name, now_ms=NOW_MS)
    with pytest.raises(RejectedError, match="void"):
        authority.redeem(token, c.make_request("pi-1", c.new_key()), now_ms=NOW_MS)
    assert all(member.password_hash is None for member in authority.members())


def test_nobody_who_is_unknown_or_no_worker_renews(authority: Authority) -> None:
    enrol(authority, "ann", Role.ADMIN)
    for name, code in (("ann", "not_authorized"), ("eve", "unknown_identity")):
        with pytest.raises(RejectedError) as caught:
            authority.renew(name, c.make_request(name, c.new_key()), now_ms=NOW_MS)
        assert code_of(caught) == code


def test_each_revocation_list_is_dated_after_the_one_before(authority: Authority) -> None:
    dates = [
        x509.load_pem_x509_crl(authority.revocations(now_ms=NOW_MS - step)).last_update_utc
        for step in (0, 0, 5_000)
    ]
    assert dates == sorted(set(dates))


def test_a_revocation_list_is_never_from_the_future(authority: Authority) -> None:
    for now_ms in (NOW_MS + 24 * HOUR_MS, *[NOW_MS] * 20):
        listed = x509.load_pem_x509_crl(authority.revocations(now_ms=now_ms))
        assert listed.last_update_utc.timestamp() * 1_000 < now_ms


def rsa_request() -> bytes:
    key = rsa.generate_private_key(65537, 2_048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pi-1")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def unreadable_name(was: bytes, becomes: bytes) -> bytes:
    """Return a request whose name stands there in a form that no reader takes."""
    request = x509.load_pem_x509_csr(c.make_request("pi-1", c.new_key()))
    return armoured(request.public_bytes(serialization.Encoding.DER).replace(was, becomes))


def armoured(raw: bytes) -> bytes:
    """Return a request as PEM."""
    label, body = "CERTIFICATE REQUEST", base64.encodebytes(raw).decode()
    return f"-----BEGIN {label}-----\n{body}-----END {label}-----\n".encode()


def unsigned_request() -> bytes:
    """Return a request whose sender has not the key that it wants certified."""
    request = x509.load_pem_x509_csr(c.make_request("pi-1", c.new_key()))
    raw, signature = request.public_bytes(serialization.Encoding.DER), request.signature
    wrong = signature[:-1] + bytes([signature[-1] ^ 1])
    return armoured(raw.replace(signature, wrong))


@pytest.mark.parametrize(
    "request_pem",
    [
        b"",
        b"not PEM",
        b"x" * 10_000,
        rsa_request(),
        c.make_request("pi-2", c.new_key()),
        c.make_request("pi-1", c.new_key()).replace(b"A", b"B", 1),
        unreadable_name(b"pi-1", b"\xff\xfe\xff\xff"),
        unreadable_name(b"\x0c\x04pi-1", b"\x02\x04pi-1"),
        unreadable_name(b"\x0c\x04pi-1", b"\x03\x04\x00i-1"),
        unsigned_request(),
    ],
    ids=[
        *("empty", "text", "long", "rsa", "other id", "damaged"),
        *("no text", "a number", "bits", "unsigned"),
    ],
)
def test_a_bad_request_is_refused_with_a_code(authority: Authority, request_pem: bytes) -> None:
    enrol(authority, "pi-1")
    with pytest.raises(RejectedError) as caught:
        authority.renew("pi-1", request_pem, now_ms=NOW_MS)
    assert code_of(caught) == "bad_request"


@settings(max_examples=300, deadline=None)
@given(
    place=st.integers(0, len(SOUND) - 1),
    instead=st.binary(max_size=3),
    gone=st.integers(0, 3),
)
@example(place=SOUND.index(b"\x02\x01\x00") + 2, instead=b"\x07", gone=1)  # a version
def test_whatever_a_request_is_it_is_read_or_refused(place: int, instead: bytes, gone: int) -> None:
    raw = SOUND[:place] + instead + SOUND[place + gone :]
    with suppress(RejectedError):
        c.read_request(armoured(raw), "pi-1")


def test_a_bundle_does_not_show_what_it_holds(authority: Authority) -> None:
    wish = Enrolment(identity=Identity(role=Role.DEVICE, id="door"), secret=Secret.PASSWORD)
    [bundle] = authority.enrol([wish], nowhere, now_ms=NOW_MS)
    assert bundle.files["password"].decode().strip() not in repr(bundle)
