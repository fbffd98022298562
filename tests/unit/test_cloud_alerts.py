"""What operators are told about endpoints that are left alone."""

from __future__ import annotations

from cloud_dispatcher.adapters.scripted_provider import ScriptedProvider
from fleet_protocol import codec
from fleet_protocol import messages as m
from fleet_protocol import topics as t
from tests.unit.service_house import TOPICS, House, Peer


class ChainOnShow(ScriptedProvider):
    """Shows whatever state it is given."""

    shown: tuple[m.EndpointView, ...] = ()

    @property
    def endpoints(self) -> tuple[m.EndpointView, ...]:
        return self.shown


def view(name: str, code: str = "") -> m.EndpointView:
    return m.EndpointView(name=name, model="m", state="open" if code else "closed", code=code)


async def test_an_alert_fires_while_an_endpoint_is_left_alone(house: House, viewer: Peer) -> None:
    house.provider = chain = ChainOnShow()
    topic, heard = TOPICS.name(t.ALERTS, "cloud-0"), 0

    async def next_alert() -> m.Alert | None:
        nonlocal heard
        house.clock.now_ms += 1_000
        viewer.say(t.PRESENCE, m.Presence(status=m.PresenceStatus.ONLINE, boot="b"), "w9")
        payload = (await viewer.hear_on(topic, after=heard)).payload
        heard += 1
        return codec.decode_as(m.Alert, payload) if payload else None

    chain.shown = (view("first"), view("second"))
    async with house.dispatcher():
        assert await next_alert() is None  # what an earlier run left behind is cleared
        chain.shown = (view("first", "provider_no_balance"), view("second"))
        alert = await next_alert()
        assert alert is not None
        assert (alert.severity, alert.id) == (m.Severity.WARNING, "cloud-0")
        assert "top up" in alert.detail
        chain.shown = (view("first", "provider_no_balance"), view("second", "provider_cut"))
        alert = await next_alert()
        assert alert is not None
        assert alert.severity is m.Severity.CRITICAL
        house.broker.forget_everything()
        assert await next_alert() == alert
        chain.shown = (view("first"), view("second"))
        assert await next_alert() is None
