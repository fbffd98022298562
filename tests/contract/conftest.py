"""The bench the bus contract runs on, one for each broker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.contract.bus_lab import Lab, MemoryLab, MqttLab


@pytest.fixture(params=["memory", "embedded", "mosquitto"])
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """Every bus there is."""
    async for found in _lab(request):
        yield found


@pytest.fixture(params=["memory", "mosquitto"])
async def strict_lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """Every bus but the embedded broker's.

    iotcore raises QoS 0 to the subscription's QoS, and we send it no expiry, because it puts out
    3.1.1 subscribers whom a publication with properties would reach.
    """
    async for found in _lab(request):
        yield found


async def _lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    found: Lab
    if request.param == "memory":
        found = MemoryLab()
    else:
        found = MqttLab(request.getfixturevalue(request.param))
    yield found
    await found.aclose()


@pytest.fixture(params=["embedded", "mosquitto"])
async def mqtt_lab(request: pytest.FixtureRequest) -> AsyncIterator[MqttLab]:
    """Every bus on a real broker."""
    found = MqttLab(request.getfixturevalue(request.param))
    yield found
    await found.aclose()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A prefix for client ids and topics that no other test uses."""
    return f"t{abs(hash(request.node.nodeid)):x}"
