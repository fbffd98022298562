"""What lies on a disk sealed: it opens as it was, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_pki import sealing
from fleet_pki.sealing import (
    KEY_BYTES,
    KeyRing,
    RecordSealer,
    SealError,
    is_sealed,
    new_key,
    open_file,
    seal_file,
)
from fleet_protocol.errors import ConfigError

OLD, NEW = bytes(range(KEY_BYTES)), bytes(range(100, 100 + KEY_BYTES))
RING = KeyRing([OLD])
HEADER_BYTES = 60
TAG_BYTES = 16


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "SEGMENT_BYTES", 100)


def sealed(folder: Path, data: bytes, ring: KeyRing = RING) -> Path:
    plain, target = folder / "plain", folder / "plain.sealed"
    plain.write_bytes(data)
    target.unlink(missing_ok=True)
    seal_file(plain, target, ring)
    return target


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200, 1_000])
def test_a_file_opens_as_it_was(tmp_path: Path, size: int) -> None:
    data = bytes(n % 251 for n in range(size))
    path = sealed(tmp_path, data)
    assert open_file(path, RING) == data
    segments = max(1, -(-size // 100))
    assert path.stat().st_size == HEADER_BYTES + size + segments * TAG_BYTES


def test_nothing_of_it_can_be_read(tmp_path: Path) -> None:
    data = b"the weights " * 50
    first = sealed(tmp_path, data).read_bytes()
    assert b"weights" not in first
    assert sealed(tmp_path, data).read_bytes()[HEADER_BYTES:] != first[HEADER_BYTES:]


@settings(max_examples=60, deadline=None)
@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_flipped_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int
) -> None:
    path = sealed(tmp_path_factory.mktemp("flip"), bytes(250))
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= flip
    path.write_bytes(data)
    with pytest.raises(SealError):
        open_file(path, RING)


def _segments(data: bytes) -> list[bytes]:
    body = data[HEADER_BYTES:]
    return [body[at : at + 116] for at in range(0, len(body), 116)]


@pytest.mark.parametrize(
    "order", [(1, 0, 2), (0, 0, 2), (0, 1), (0,), (0, 1, 2, 2), (2,), ()], ids=str
)
def test_segments_cannot_be_moved_doubled_or_left_out(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    path = sealed(tmp_path, bytes(range(250)))
    data = path.read_bytes()
    parts = _segments(data)
    assert len(parts) == 3
    path.write_bytes(data[:HEADER_BYTES] + b"".join(parts[n] for n in order))
    with pytest.raises(SealError):
        open_file(path, RING)


def test_a_shorter_file_cannot_be_made_of_a_longer_one(tmp_path: Path) -> None:
    """The header names the size: whoever changes it, and cuts the file, is found."""
    path = sealed(tmp_path, bytes(200))
    data = bytearray(path.read_bytes())
    data[52:60] = (100).to_bytes(8, "big")
    path.write_bytes(data[: HEADER_BYTES + 116])
    with pytest.raises(SealError, match="not as it was sealed"):
        open_file(path, RING)


def test_each_segment_has_a_nonce_of_its_own_and_the_last_one_says_that_it_is(
    tmp_path: Path,
) -> None:
    raw = sealed(tmp_path, bytes(250)).read_bytes()[:HEADER_BYTES]
    nonces = [nonce for nonce, _ in sealing._read_seal(raw, "x").segments()]
    assert len(set(nonces)) == 3
    assert [nonce[-1] for nonce in nonces] == [0, 0, 1]


def test_two_files_do_not_fit_together(tmp_path: Path) -> None:
    one, other = (sealed(tmp_path, bytes(200)).read_bytes() for _ in range(2))
    path = tmp_path / "mixed"
    path.write_bytes(one[:HEADER_BYTES] + other[HEADER_BYTES:])
    with pytest.raises(SealError):
        open_file(path, RING)


def test_what_is_no_sealed_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data in (b"", b"short", bytes(200), b"EFSEAL\x00\x02" + bytes(100)):
        path.write_bytes(data)
        with pytest.raises(SealError, match="no sealed file"):
            open_file(path, RING)


def test_the_first_key_seals_and_all_open(tmp_path: Path) -> None:
    path = sealed(tmp_path, b"old")
    both = KeyRing([NEW, OLD])
    assert open_file(path, both) == b"old"
    path = sealed(tmp_path, b"new", both)
    assert open_file(path, KeyRing([NEW])) == b"new"
    with pytest.raises(SealError) as caught:
        open_file(path, RING)
    assert caught.value.code == "unknown_key"


def test_a_key_file_is_for_its_owner_and_has_keys_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# of 2026\n{NEW.hex()}\n\n{OLD.hex()}  # of 2025\n")
    path.chmod(0o600)
    ring = KeyRing.read(path)
    assert ring.newest == KeyRing([NEW]).newest
    assert NEW.hex() not in repr(ring)
    path.chmod(0o604)
    with pytest.raises(ConfigError) as caught:
        KeyRing.read(path)
    assert caught.value.code == "secret_exposed"


@pytest.mark.parametrize("text", ["", "# nothing\n", "zz\n", "00" * 31, f"{'00' * 32} {'00' * 32}"])
def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        KeyRing.read(path)
    assert caught.value.code == "bad_key"
    with pytest.raises(ConfigError, match="cannot be read"):
        KeyRing.read(tmp_path / "none")


def test_a_new_key_is_one(tmp_path: Path) -> None:
    (tmp_path / "k").write_text(f"{new_key()}\n")
    (tmp_path / "k").chmod(0o600)
    assert KeyRing.read(tmp_path / "k").newest != KeyRing([bytes.fromhex(new_key())]).newest


# -------------------------------------------------------------------- records


@given(st.binary(max_size=300), st.binary(max_size=20))
def test_a_record_opens_in_its_place_alone(data: bytes, about: bytes) -> None:
    sealer = RecordSealer(RING)
    record = sealer.seal(data, about)
    assert len(record) == len(data) + 66
    assert is_sealed(record)
    assert RecordSealer(RING).open(record, about) == data
    with pytest.raises(SealError):
        sealer.open(record, about + b"x")


def test_no_nonce_is_used_twice() -> None:
    sealers = [RecordSealer(RING) for _ in range(3)]
    heads = {one.seal(b"same", b"")[:50] for one in sealers for _ in range(50)}
    assert len(heads) == 150


def test_a_record_that_was_never_sealed_is_returned_as_it_is() -> None:
    sealer = RecordSealer(RING)
    for plain in (b"", b'{"a":1}', "ä\U0001f600".encode()):
        assert sealer.open(plain, b"") == plain
        assert not is_sealed(plain)


def test_a_changed_record_and_one_of_another_key_do_not_open() -> None:
    sealer = RecordSealer(RING)
    record = bytearray(sealer.seal(b"text", b"k"))
    for at in range(2, len(record)):
        changed = bytes(record[:at]) + bytes([record[at] ^ 1]) + bytes(record[at + 1 :])
        with pytest.raises(SealError):
            sealer.open(changed, b"k")
    with pytest.raises(SealError) as caught:
        RecordSealer(KeyRing([NEW])).open(bytes(record), b"k")
    assert caught.value.code == "unknown_key"
    assert RecordSealer(KeyRing([NEW, OLD])).open(bytes(record), b"k") == b"text"


def test_many_runs_are_opened_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "_RUNS_MOST", 3)
    records = [RecordSealer(RING).seal(bytes([n]), b"") for n in range(10)]
    sealer = RecordSealer(RING)
    assert [sealer.open(record, b"") for record in records * 2] == [
        bytes([n]) for n in range(10)
    ] * 2
    assert len(sealer._runs) <= 3
