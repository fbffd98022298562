"""The worker's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

import edge_worker
from edge_worker.config import (
    EngineName,
    WorkerSettings,
    broker_password,
    data_folder,
    load_settings,
)
from fleet_protocol.errors import ConfigError
from fleet_protocol.settings import BrokerSettings

EXAMPLE = Path(edge_worker.__file__).with_name("example.toml")


def load(
    *, config: Path | None = None, environ: dict[str, str] | None = None, **flags: str | int | None
) -> WorkerSettings:
    return load_settings(config=config, environ=environ or {}, flags=flags)


def test_the_example_file_holds_the_defaults() -> None:
    assert load(config=EXAMPLE) == load()


def test_every_setting_is_in_the_example_file() -> None:
    text = EXAMPLE.read_text()
    for name in (*WorkerSettings.__struct_fields__, *BrokerSettings.__struct_fields__):
        # `password` is left out on purpose: a file in a repository is no place for it.
        assert name == "password" or f"{name} =" in text or f"[{name}]" in text or "tls" in name


def test_the_command_line_beats_the_environment_and_that_the_file(tmp_path: Path) -> None:
    config = tmp_path / "worker.toml"
    config.write_text('id = "a"\nslots = 1\nthreads = 1\n')
    environ = {"EDGEFLEET_WORKER_SLOTS": "2", "EDGEFLEET_WORKER_ID": "b"}
    settings = load(config=config, environ=environ, id="c")
    assert (settings.id, settings.slots, settings.threads) == ("c", 2, 1)


def test_a_number_for_a_name_on_the_command_line_stays_a_name() -> None:
    assert load(id="7").worker == "7"


def test_the_broker_is_set_by_levels() -> None:
    environ = {"EDGEFLEET_WORKER_BROKER__USERNAME": "pi"}
    settings = load(environ=environ, broker__url="mqtt://broker.example:1884")
    assert (settings.broker.host, settings.broker.port) == ("broker.example", 1884)
    assert settings.broker.user == "pi"


@pytest.mark.parametrize(
    ("toml", "word"),
    [
        ("slots = 0", "slots"),
        ("slots = 'four'", "slots"),
        ("id = 'a/b'", "id"),
        ("engine = 'magic'", "engine"),
        ("color = 'red'", "color"),
        ("drain_timeout_s = -1", "drain_timeout_s"),
        ("slots = [", "TOML"),
        ("[broker]\nurl = 'http://x'", "broker"),
    ],
)
def test_a_bad_setting_names_itself_and_its_file(tmp_path: Path, toml: str, word: str) -> None:
    config = tmp_path / "worker.toml"
    config.write_text(toml)
    with pytest.raises(ConfigError, match=word) as caught:
        load(config=config)
    assert "worker.toml" in str(caught.value)
    assert caught.value.hint


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml cannot be read"):
        load(config=tmp_path / "no.toml")


def test_slots_and_prefetch_suit_the_engine_unless_given() -> None:
    model, echo = WorkerSettings(), WorkerSettings(engine=EngineName.ECHO)
    assert (model.slot_count, model.prefetch_count) == (4, 1)
    assert (echo.slot_count, echo.prefetch_count) == (64, 64)
    given = WorkerSettings(engine=EngineName.ECHO, slots=3, prefetch=0)
    assert (given.slot_count, given.prefetch_count) == (3, 0)


def test_a_worker_without_a_name_takes_the_hosts() -> None:
    assert 1 <= len(WorkerSettings().worker) <= 36


def test_the_data_folder_is_given_or_the_users() -> None:
    assert data_folder(WorkerSettings(data="/d"), {}) == Path("/d")
    home = {"HOME": "/home/x"}
    named = WorkerSettings(id="w1")
    assert data_folder(named, home) == Path("/home/x/.local/share/edgefleet/workers/w1")
    assert data_folder(named, {"XDG_DATA_HOME": "/s"}) == Path("/s/edgefleet/workers/w1")
    relative = {**home, "XDG_DATA_HOME": "s"}
    assert data_folder(named, relative) == data_folder(named, home)


def test_the_password_comes_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("s3cret\nnot this\n")
    assert broker_password(BrokerSettings(password_file=str(path))) == "s3cret"
    assert broker_password(BrokerSettings(password="direct", password_file=str(path))) == "direct"
    assert broker_password(BrokerSettings()) is None


@pytest.mark.parametrize("text", [None, "", "\n"])
def test_a_password_file_without_a_password_is_a_clear_error(
    tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "password"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match="password file"):
        broker_password(BrokerSettings(password_file=str(path)))
