"""A dispatcher and its peers for the service suites."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import structlog

from tests.unit.service_house import House, Peer, Worker


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """A program under test sets up the log; the next test must not inherit that."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
async def device(house: House) -> AsyncIterator[Peer]:
    async with house.peer(Peer, "d1", "dev/d1") as peer:
        yield peer


@pytest.fixture
async def worker(house: House) -> AsyncIterator[Worker]:
    async with house.peer(Worker, "w1", "workers/w1") as peer:
        peer.join()
        yield peer


@pytest.fixture
async def admin(house: House) -> AsyncIterator[Peer]:
    async with house.peer(Peer, "a1", "admin/a1") as peer:
        yield peer


@pytest.fixture
async def viewer(house: House) -> AsyncIterator[Peer]:
    async with house.peer(Peer, "v1", "fleet") as peer:
        yield peer
