"""Servers for every suite that wants one: brokers (memory, embedded, Mosquitto), PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from fleet_cli.broker import BrokerKind, BrokerProcess
from fleet_protocol.memory import MemoryBroker
from tests.postgres_server import PostgresServer, find_postgres

# A busy machine is no failure: what is slow is seen by its duration, not by a deadline.
settings.register_profile("fleet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fleet")


def require(is_there: bool, what: str) -> None:  # noqa: FBT001  # reads as a sentence
    """Skip where something is not installed - but fail in CI, where nothing may be missing."""
    if is_there:
        return
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not installed, and CI is set")
    pytest.skip(f"{what} is not installed")


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """One embedded broker for the whole run: use ids and topics of your own."""
    yield from _running(BrokerKind.EMBEDDED, tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """One Mosquitto for the whole run: use ids and topics of your own."""
    yield from _running(BrokerKind.MOSQUITTO, tmp_path_factory.mktemp("mosquitto"))


@pytest.fixture
def memory() -> MemoryBroker:
    """A broker without a network."""
    return MemoryBroker(seed=1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole run: use a database of your own."""
    require(find_postgres() is not None, "PostgreSQL")
    with PostgresServer() as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    """An empty database of the test's own: its URL."""
    name = postgres.create()
    yield postgres.url(name)
    postgres.drop(name)


def _running(kind: BrokerKind, folder: Path) -> Iterator[BrokerProcess]:
    require(kind.is_installed, f"the {kind} broker")
    with BrokerProcess(kind, folder) as broker:
        yield broker
