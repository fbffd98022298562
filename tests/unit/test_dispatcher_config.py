"""The dispatcher's settings: file, then environment, then the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import cloud_dispatcher
from cloud_dispatcher.adapters.secret_file import broker_password
from cloud_dispatcher.app import attentive
from cloud_dispatcher.config import DispatcherSettings, load_settings
from fleet_protocol.errors import ConfigError
from fleet_protocol.settings import BrokerSettings

EXAMPLE = Path(cloud_dispatcher.__file__).with_name("example.toml")


def test_the_example_file_holds_the_defaults() -> None:
    assert load_settings(EXAMPLE, {}) == DispatcherSettings()


def test_every_setting_is_in_the_example_file() -> None:
    text = EXAMPLE.read_text()
    for name in names_of(DispatcherSettings):
        # `password` is left out on purpose: a file that is copied about is no place for it.
        assert name == "password" or f"\n{name} = " in text or f"\n# {name} = " in text, name


def names_of(kind: type[msgspec.Struct]) -> Iterator[str]:
    for field in msgspec.structs.fields(kind):
        default = field.default_factory
        if isinstance(default, type) and issubclass(default, msgspec.Struct):
            yield from names_of(default)
        elif isinstance(field.default, msgspec.Struct):
            yield from names_of(type(field.default))
        elif field.name not in {"tls", "backup", "viewer", "operator", "admin"}:
            yield field.name


def test_the_environment_goes_on_top_of_the_file_and_the_command_line_on_both(
    tmp_path: Path,
) -> None:
    config = tmp_path / "d.toml"
    config.write_text('[broker]\nurl = "mqtt://file"\n[engine]\nlease_ms = 5\nqueue_limit = 7\n')
    environ = {
        "EDGEFLEET_DISPATCHER_BROKER__URL": "mqtt://environ",
        "EDGEFLEET_DISPATCHER_ENGINE__LEASE_MS": "6",
        "EDGEFLEET_DATA": "/elsewhere",
    }
    settings = load_settings(config, environ)
    assert (settings.broker.url, settings.engine.lease_ms) == ("mqtt://environ", 6)
    assert settings.engine.queue_limit == 7
    assert load_settings(config, environ, broker_url="mqtt://cli").broker.url == "mqtt://cli"


def test_the_data_folder_replaces_the_folder_of_the_store(tmp_path: Path) -> None:
    config = tmp_path / "d.toml"
    config.write_text('store.path = "/var/lib/x/jobs.db"\n')
    settings = load_settings(config, {}, data=tmp_path)
    assert settings.store.path == str(tmp_path / "jobs.db")


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("engine = 3", "engine"),
        ("[engine]\nlease_ms = -1", "lease_ms"),
        ("[engine]\nleese_ms = 1", "leese_ms"),
        ("[store]\nsynchronous = 'off'", "synchronous"),
        ("client_id = 'with space'", "client_id"),
        ("[broker]\nurl = 'http://x'", "http"),
        ("[broker", "not TOML"),
        ("[log]\nlevel = 'loud'", "level"),
        ("[housekeeping]\nretention_s = 0", "retention_s"),
    ],
)
def test_a_bad_setting_is_named_with_its_file(tmp_path: Path, toml: str, words: str) -> None:
    config = tmp_path / "d.toml"
    config.write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load_settings(config, {})
    assert words in str(caught.value)
    assert "d.toml" in str(caught.value)


def test_backups_are_tables_of_the_same_kind(tmp_path: Path) -> None:
    config = tmp_path / "d.toml"
    config.write_text('[[backup]]\nname = "local"\nbase_url = "http://127.0.0.1:8080/v1"\n')
    (backup,) = load_settings(config, {}).backup
    assert (backup.name, backup.breaker.failures) == ("local", 5)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load_settings(tmp_path / "none.toml", {})


def test_the_password_file_goes_before_the_password(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("first line\nsecond\n")
    both = BrokerSettings(password="inline", password_file=str(secret))
    assert broker_password(both) == "first line"
    assert broker_password(BrokerSettings(url="mqtt://u:in-url@h")) == "in-url"
    secret.write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        broker_password(both)
    with pytest.raises(ConfigError, match="cannot be read"):
        broker_password(BrokerSettings(password_file=str(tmp_path / "none")))


def test_no_secret_is_in_what_settings_say_of_themselves() -> None:
    environ = {
        "EDGEFLEET_DISPATCHER_BROKER__PASSWORD": "hunter2",
        "DEEPSEEK_API_KEY": "sk-secret",
    }
    settings = load_settings(None, environ)
    assert settings.broker.secret == "hunter2"
    assert "hunter2" not in repr(settings)
    assert "sk-secret" not in repr(settings)


@pytest.mark.parametrize("silence_ms", [10_000, 20_000, 60_000])
@pytest.mark.parametrize("keepalive_s", [5, 30, 600])
def test_the_dispatcher_finds_its_own_link_dead_before_its_workers(
    silence_ms: int, keepalive_s: int
) -> None:
    environ = {
        "EDGEFLEET_DISPATCHER_BROKER__KEEPALIVE_S": str(keepalive_s),
        "EDGEFLEET_DISPATCHER_ENGINE__WORKER_SILENCE_MS": str(silence_ms),
    }
    connects = attentive(load_settings(None, environ))
    assert connects.keepalive_s <= keepalive_s
    assert 1_500 * connects.keepalive_s < silence_ms
