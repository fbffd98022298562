"""What `fleet up` and `fleet demo` tell people to type for a device."""

import pytest

from fleet_cli.context import FleetContext
from fleet_cli.device_commands import device_commands
from fleet_protocol.settings import BrokerSettings


def test_devices_are_sent_to_the_port_for_mqtt_3_1_1() -> None:
    said = device_commands(
        FleetContext(
            broker=BrokerSettings(url="mqtt://127.0.0.1:4001"), url_v3="mqtt://127.0.0.1:4002"
        )
    )
    assert said.count("-h 127.0.0.1 -p 4002 ") == 2
    assert "4001" not in said


def test_a_broker_with_one_port_and_another_root_is_named_as_it_is() -> None:
    said = device_commands(
        FleetContext(broker=BrokerSettings(url="mqtt://broker.lan", root="site/a"))
    )
    assert "-h broker.lan -p 1883 -t site/a/dev/kitchen/ask" in said


@pytest.mark.parametrize("url", ["mqtt://ann:secret@broker.lan", "mqtts://broker.lan"])
def test_a_broker_that_wants_more_than_two_words_gets_none(url: str) -> None:
    assert device_commands(FleetContext(broker=BrokerSettings(url=url))) == ""
