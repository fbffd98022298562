"""`fleet doctor` of a fleet: what its retained messages and heartbeats mean."""

from __future__ import annotations

from fleet_cli.doctor.fleet_checks import check_picture
from fleet_client.watch import FleetPicture, WorkerSight
from fleet_protocol import messages as m


def picture(**presences: m.Presence) -> FleetPicture:
    online = m.DispatcherPresence(status=m.DispatcherStatus.ONLINE, epoch="e1")
    workers = {name: WorkerSight(id=name, presence=one) for name, one in presences.items()}
    return FleetPicture(dispatcher=online, workers=workers)


def presence(status: m.PresenceStatus, reason: str | None = None) -> m.Presence:
    return m.Presence(status=status, boot="b1", reason=reason)


def test_a_board_that_is_not_fit_for_work_is_named_with_its_reason() -> None:
    found = check_picture(
        picture(
            w1=presence(m.PresenceStatus.ONLINE),
            w2=presence(m.PresenceStatus.DRAINING, m.Unfit.DISK_LOW),
        )
    )
    (boards,) = [one for one in found if one.name == "boards"]
    assert (boards.ok, boards.needed) == (False, False)
    assert "w2: disk_low" in boards.detail
    assert "fleet doctor" in boards.fix


def test_a_board_that_a_person_drains_is_no_fault() -> None:
    found = check_picture(picture(w1=presence(m.PresenceStatus.DRAINING)))
    assert [one.name for one in found] == ["dispatcher", "workers", "clocks"]
    assert found[1].fix


def test_an_empty_fleet_is_told_how_to_get_one() -> None:
    found = {one.name: one for one in check_picture(FleetPicture())}
    assert not found["dispatcher"].ok
    assert not found["workers"].ok
