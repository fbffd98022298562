"""Which store the settings ask for, and that secrets stay where they belong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from cloud_dispatcher.adapters.store_postgres import PostgresJobStore
from cloud_dispatcher.adapters.store_sqlite import SqliteJobStore
from cloud_dispatcher.adapters.stores import (
    StoreSettings,
    build_cluster_store,
    build_store,
    probe_store,
)
from cloud_dispatcher.cli.main import main
from cloud_dispatcher.config import load_settings
from cloud_dispatcher.core.members import Member, MemberId
from cloud_dispatcher.ports import StoreUnavailableError
from fleet_protocol.errors import ConfigError
from tests.postgres_server import PostgresServer

URL = "postgresql://edgefleet@db.example/edgefleet"
NORTH = Member(id=MemberId("north-1"), name="north")


def test_without_a_url_the_store_is_a_file(tmp_path: Path) -> None:
    assert isinstance(build_store(StoreSettings(path=str(tmp_path / "x.db"))), SqliteJobStore)


def test_with_a_url_it_is_that_database() -> None:
    store = build_store(StoreSettings(url=URL))
    assert isinstance(store, PostgresJobStore)
    assert "db.example" in repr(store)


def test_several_dispatchers_need_a_database() -> None:
    with pytest.raises(ConfigError, match=r"store\.url"):
        build_cluster_store(StoreSettings(), NORTH, lease_s=5)
    store = build_cluster_store(StoreSettings(url=URL), NORTH, lease_s=5)
    assert (store.me, store.name) == ("north-1", "north")


@pytest.mark.parametrize(
    "words",
    [
        'url = "mysql://db.example/x"',
        'url = "db.example"',
        'url = "postgresql://me:s3cret@db.example/x"',
        'url = "postgresql://db.example/x?user=me&password=s3cret"',
        'url = "postgresql://db.example/x?sslpassword=s3cret"',
        'password_file = "/etc/secret"',
    ],
)
def test_what_cannot_be_meant_is_refused_without_a_secret_in_the_message(
    tmp_path: Path, words: str
) -> None:
    config = tmp_path / "d.toml"
    config.write_text(f"[store]\n{words}\n")
    with pytest.raises(ConfigError, match="store") as caught:
        load_settings(config, {})
    assert "s3cret" not in f"{caught.value} {caught.value.hint}"


def test_several_hosts_are_a_url(tmp_path: Path) -> None:
    config = tmp_path / "d.toml"
    url = "postgresql://me@one:5432,two:5433/x?target_session_attrs=any&sslmode=verify-full"
    config.write_text(f'[store]\nurl = "{url}"\n')
    settings = load_settings(config, {})
    assert "one,two" in repr(build_store(settings.store))


_NAKED = """
import sys
sys.modules["psycopg"] = None  # as if it were not installed
from cloud_dispatcher import app
from cloud_dispatcher.adapters.stores import StoreSettings, build_store
from fleet_protocol.errors import ConfigError
build_store(StoreSettings())
try:
    build_store(StoreSettings(url="postgresql://db.example/x"))
except ConfigError as error:
    print(error.hint)
"""


def test_who_keeps_jobs_in_a_file_needs_no_psycopg() -> None:
    said = subprocess.run(
        [sys.executable, "-c", _NAKED], capture_output=True, text=True, check=True, timeout=60
    )
    assert "edgefleet[cloud,postgres]" in said.stdout


def test_psycopg_is_loaded_only_where_it_is_used() -> None:
    words = "import sys, cloud_dispatcher.app; sys.exit('psycopg' in sys.modules)"
    subprocess.run([sys.executable, "-c", words], check=True, timeout=60)


# -------------------------------------------------------------------- on a real server


def name_of(url: str) -> str:
    return url.partition("@/")[2].partition("?")[0]


async def test_the_password_comes_from_its_file_each_time(
    postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    secret = tmp_path / "password"
    settings = StoreSettings(url=postgres.tcp_url(name_of(database)), password_file=str(secret))
    with pytest.raises(ConfigError, match="password_file"):
        await probe_store(settings)
    secret.write_text("not it\n")
    with pytest.raises(StoreUnavailableError):
        await probe_store(settings)
    secret.write_text(f"{postgres.password}\n")
    assert "will be made" in await probe_store(settings)


async def test_the_password_may_be_where_libpq_looks_for_it(
    postgres: PostgresServer, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = StoreSettings(url=postgres.tcp_url(name_of(database)))
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    assert "will be made" in await probe_store(settings)
    monkeypatch.delenv("PGPASSWORD")
    secrets = tmp_path / "pgpass"
    secrets.write_text(f"127.0.0.1:{postgres.port}:*:fleet:{postgres.password}\n")
    secrets.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(secrets))
    assert "will be made" in await probe_store(settings)


def test_check_says_which_database_it_is_and_makes_nothing(database: str, tmp_path: Path) -> None:
    environ = {"EDGEFLEET_DISPATCHER_STORE__URL": database}
    words = ["check", "--json", "--broker", "mqtt://127.0.0.1:1", "--data", str(tmp_path)]
    said = CliRunner().invoke(main, words, env=environ)
    rows = {row["name"]: row for row in json.loads(said.stdout)["checks"]}
    assert rows["store"]["ok"]
    assert name_of(database) in rows["store"]["detail"]
    with psycopg.connect(database) as conn:
        assert conn.execute("SELECT to_regclass('jobs')").fetchone() == (None,)


def test_check_says_what_to_do_about_a_database_that_is_not_there(tmp_path: Path) -> None:
    environ = {"EDGEFLEET_DISPATCHER_STORE__URL": "postgresql://nobody@127.0.0.1:1/none"}
    words = ["check", "--json", "--broker", "mqtt://127.0.0.1:1", "--data", str(tmp_path)]
    said = CliRunner().invoke(main, words, env=environ)
    rows = {row["name"]: row for row in json.loads(said.stdout)["checks"]}
    assert (rows["store"]["ok"], rows["store"]["code"]) == (False, "store_unavailable")
    assert "store.url" in rows["store"]["hint"]
