"""One fleet for all examples of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fleet_cli.broker import BrokerKind
from tests.conftest import require
from tests.examples.device_site import DeviceSite

DEVICES = ("esp32", "hall-3", "home", "nodered", "upy")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceSite]:
    require(BrokerKind.MOSQUITTO.is_installed, "mosquitto")
    with DeviceSite(tmp_path_factory.mktemp("site"), *DEVICES) as one:
        yield one
