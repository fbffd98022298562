"""The gateway at an address of IPv6: people log in there as anywhere."""

from __future__ import annotations

import socket
from pathlib import Path

from cloud_dispatcher.adapters.http import users
from fleet_protocol.settings import BrokerSettings
from tests.conftest import require
from tests.unit.gateway_house import gateway
from tests.unit.service_house import House
from tests.unit.visitor import PASSWORD, Visitor


async def test_the_page_is_there_at_an_address_of_ipv6(house: House, tmp_path: Path) -> None:
    require(socket.has_ipv6, "IPv6")
    file = tmp_path / "users.toml"
    users.write_users(file, (users.new_user("ann", PASSWORD, role="operator"),))
    page = {"users_file": str(file)}
    async with gateway(house, host="::1", broker=BrokerSettings(), page=page) as url:
        assert url.startswith("http://[::1]:")
        visitor = Visitor(url)
        assert (await visitor.get("/")).status == 200
        assert (await visitor.log_in("ann")).status == 204
        assert (await visitor.session())["user"] == "ann"
        assert house.audited[-1][1]["address"] == "::1"
