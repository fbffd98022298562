"""What only a sealed store can show: nothing to read in its file, and keys that change."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cloud_dispatcher.adapters.sealed_blobs import SealedBlobs
from cloud_dispatcher.adapters.store_sqlite import SqliteJobStore
from cloud_dispatcher.adapters.stores import StoreSettings, build_store
from cloud_dispatcher.core.job import Job
from fleet_pki.sealing import SealError, new_key
from fleet_protocol import messages as m
from fleet_protocol.errors import ConfigError
from tests.contract.job_samples import cached, finished, listed, make_job

SECRET = "the vault opens at noon"
ANSWER = "then we come at one"
OLD, NEW = new_key(), new_key()


def key_file(folder: Path, *keys: str) -> Path:
    path = folder / "store.key"
    path.write_text("\n".join(keys))
    path.chmod(0o600)
    return path


def sealed(folder: Path, *keys: str) -> SqliteJobStore:
    return SqliteJobStore(folder / "jobs.db", blobs=SealedBlobs(key_file(folder, *keys)))


def asked(**fields: object) -> Job:
    return make_job(
        submit=m.JobSubmit(prompt=SECRET), cloud_message=f"no answer to {SECRET}", **fields
    )


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("jobs.db*"))


async def test_neither_prompt_nor_answer_is_in_the_file(tmp_path: Path) -> None:
    job = asked()
    done = finished(job, text=ANSWER, kept=m.LocalAnswer(text=ANSWER, model="m", confidence=1.0))
    async with sealed(tmp_path, OLD) as store:
        await store.commit([job])
        await store.commit([done], [], [cached("a", chars=40)])
        found = on_disk(tmp_path)
        assert await store.get(job.key) == done
    for words in (SECRET, ANSWER, "x" * 40):
        assert words.encode() not in found
        assert words.encode() not in on_disk(tmp_path)
    async with SqliteJobStore(tmp_path / "other" / "jobs.db") as plain:
        await plain.commit([done])
        assert SECRET.encode() in on_disk(tmp_path / "other"), "the test looks in the right place"


async def test_a_new_key_on_top_seals_and_the_old_one_still_opens(tmp_path: Path) -> None:
    first, second = asked(), asked()
    async with sealed(tmp_path, OLD) as store:
        await store.commit([first])
    async with sealed(tmp_path, NEW, OLD) as store:
        await store.commit([second])
        assert await store.load_open() == [first, second]
        assert [submit for _, submit in await store.recent_questions(limit=9)] == [
            *(second.submit, first.submit)
        ]
    async with sealed(tmp_path, NEW) as store:
        assert await store.get(second.key) == second
        with pytest.raises(SealError) as caught:
            await store.get(first.key)
        assert caught.value.code == "unknown_key"


async def test_a_store_that_was_plain_goes_on_sealed(tmp_path: Path) -> None:
    before, after = asked(), asked()
    async with SqliteJobStore(tmp_path / "jobs.db") as store:
        await store.commit([before])
    async with sealed(tmp_path, OLD) as store:
        await store.commit([after])
        assert await store.load_open() == [before, after]
        assert await listed(store) == [after, before]


async def test_without_its_key_a_sealed_store_says_what_it_needs(tmp_path: Path) -> None:
    async with sealed(tmp_path, OLD) as store:
        await store.commit([asked()])
    async with SqliteJobStore(tmp_path / "jobs.db") as store:
        with pytest.raises(ConfigError) as caught:
            await store.load_open()
    assert caught.value.code == "no_key"
    assert "store.key_file" in caught.value.hint


async def test_a_prompt_that_was_put_into_another_row_does_not_open(tmp_path: Path) -> None:
    mine, yours = asked(), asked()
    async with sealed(tmp_path, OLD) as store:
        await store.commit([mine, yours])
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as conn, conn:
        conn.execute(
            "UPDATE prompts SET submit = (SELECT submit FROM prompts WHERE key = ?) WHERE key = ?",
            (mine.key, yours.key),
        )
    async with sealed(tmp_path, OLD) as store:
        assert await store.get(mine.key) == mine
        with pytest.raises(SealError):
            await store.get(yours.key)


def test_the_settings_name_the_key_file(tmp_path: Path) -> None:
    path = str(key_file(tmp_path, OLD))
    settings = StoreSettings(path=str(tmp_path / "jobs.db"), key_file=path)
    assert isinstance(build_store(settings), SqliteJobStore)
    with pytest.raises(ConfigError) as caught:
        build_store(StoreSettings(path=str(tmp_path / "jobs.db"), key_file=f"{path}.none"))
    assert caught.value.code == "no_key"
