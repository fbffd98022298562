"""Settings from TOML and the environment: a bad one names itself, a secret never shows."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest

from fleet_protocol.errors import ConfigError
from fleet_protocol.settings import BrokerSettings, TlsSettings, parse_settings


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    slots: Annotated[int, msgspec.Meta(ge=1)] = 2
    ratio: float = 0.5
    labels: tuple[str, ...] = ()
    enabled: bool = False
    broker: BrokerSettings = msgspec.field(default_factory=BrokerSettings)


def parse(toml: str = 'name = "w1"', **environ: str) -> Settings:
    return parse_settings(Settings, toml=toml, environ=environ, prefix="EDGE", origin="edge.toml")


def test_what_is_not_given_has_its_default() -> None:
    assert parse() == Settings(name="w1")


def test_the_environment_beats_the_file() -> None:
    settings = parse(
        'name = "file"\nslots = 3\n[broker]\nurl = "mqtt://a:1"\nkeepalive_s = 60',
        EDGE_NAME="env",
        EDGE_BROKER__URL="mqtt://b:2",
        OTHER_SLOTS="9",
    )
    assert (settings.name, settings.slots) == ("env", 3)
    assert (settings.broker.url, settings.broker.keepalive_s) == ("mqtt://b:2", 60)


def test_the_environment_may_say_numbers_booleans_and_lists() -> None:
    settings = parse(
        EDGE_SLOTS="4", EDGE_RATIO="0.25", EDGE_ENABLED="true", EDGE_LABELS='["a", "b"]'
    )
    assert (settings.slots, settings.ratio, settings.enabled) == (4, 0.25, True)
    assert settings.labels == ("a", "b")


def test_a_table_may_come_from_the_environment_alone() -> None:
    settings = parse(EDGE_BROKER__TLS__CA_FILE="/ca.pem")
    assert settings.broker.tls == TlsSettings(ca_file="/ca.pem")


@pytest.mark.parametrize(
    ("toml", "names"),
    [
        ("", "name"),
        ('name = "x"\nslots = 0', "slots"),
        ('name = "x"\nslots = "many"', "slots"),
        ('name = "x"\nslotz = 1', "slotz"),
        ('name = "x"\n[broker]\nkeepalive_s = 1', "keepalive_s"),
        ('name = "x"\n[broker]\nurl = "http://a"', "broker url"),
        ('name = "x"\n[broker]\nurl = "mqtt://"', "broker url"),
        ('name = "x"\n[broker.tls]\nca = "x"', "ca"),
        ('name = "x', "not TOML"),
    ],
)
def test_a_bad_setting_names_itself_and_where_it_came_from(toml: str, names: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(toml)
    assert names in str(caught.value)
    assert "edge.toml" in str(caught.value)
    assert caught.value.hint


def test_a_value_where_a_table_should_be_is_named() -> None:
    with pytest.raises(ConfigError, match="EDGE_NAME__FIRST"):
        parse(EDGE_NAME__FIRST="x")


@pytest.mark.parametrize(
    ("url", "host", "port", "encrypted"),
    [
        ("mqtt://broker", "broker", 1883, False),
        ("mqtts://broker", "broker", 8883, True),
        ("mqtt://10.0.0.1:1884", "10.0.0.1", 1884, False),
        ("mqtt://[::1]:1885", "::1", 1885, False),
    ],
)
def test_a_url_says_where_and_how(url: str, host: str, port: int, encrypted: bool) -> None:  # noqa: FBT001  # a case
    broker = BrokerSettings(url=url)
    assert (broker.host, broker.port, broker.uses_tls) == (host, port, encrypted)


def test_tls_settings_alone_mean_tls() -> None:
    broker = BrokerSettings(url="mqtt://broker", tls=TlsSettings())
    assert broker.uses_tls
    assert broker.port == 8883


def test_a_user_and_password_in_the_url_are_honoured_and_unquoted() -> None:
    broker = BrokerSettings(url="mqtt://me%40site:p%2Fw@broker")
    assert (broker.user, broker.secret) == ("me@site", "p/w")


def test_a_named_user_and_password_beat_the_urls() -> None:
    broker = BrokerSettings(url="mqtt://a:b@broker", username="c", password="d")
    assert (broker.user, broker.secret) == ("c", "d")


def test_a_password_never_shows() -> None:
    broker = BrokerSettings(url="mqtt://me:hidden1@broker", password="hidden2")
    assert "hidden" not in repr(broker)
    assert "hidden" not in str(broker)
    with pytest.raises(ValueError, match="broker url") as caught:
        BrokerSettings(url="http://me:hidden3@broker")
    assert "hidden" not in str(caught.value)


def test_a_password_of_digits_stays_a_text() -> None:
    class Door(msgspec.Struct):
        password: str
        port: int
        is_open: bool

    environ = {"X_PASSWORD": "0123", "X_PORT": "8", "X_IS_OPEN": "true"}
    door = parse_settings(Door, toml="", environ=environ, prefix="X")
    assert (door.password, door.port, door.is_open) == ("0123", 8, True)


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    base_url: str = ""


class Nested(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    lease_ms: int = 1
    first: Endpoint | None = None
    backup: tuple[Endpoint, ...] = ()


@pytest.mark.parametrize(
    ("toml", "hint"),
    [
        ("lease = 3", "did you mean `lease_ms`?"),
        ('[first]\nbase_ulr = "x"', "did you mean `base_url`?"),
        ('[[backup]]\nbase-url = "x"', "did you mean `base_url`?"),
        ("nothing_like_it = 3", "docs/configuration.md lists every setting"),
        ('lease_ms = "soon"', "docs/configuration.md lists every setting"),
    ],
)
def test_a_setting_that_is_not_one_is_told_what_it_was_meant_to_be(toml: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(Nested, toml=toml, environ={}, prefix="X")
    assert caught.value.hint == hint


@pytest.mark.parametrize("name", ["X_LEASE_MS", "X_BACKUP_URL", "X_FIRST__URL"])
def test_a_wrong_setting_from_the_environment_names_its_variable(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^d.toml, {name}: "):
        parse_settings(Nested, toml="", environ={name: "soon"}, prefix="X", origin="d.toml")
