"""What a fleet says of itself, through its broker."""

from __future__ import annotations

import time
from collections.abc import Iterator

from fleet_cli.connection import Connection
from fleet_cli.doctor.finding import Finding
from fleet_client.watch import FleetPicture, FleetWatcher
from fleet_protocol.errors import FleetError

_SKEW_MOST_MS = 5_000


def check_fleet(connection: Connection) -> tuple[list[Finding], FleetError | None]:
    """Look at the fleet; also return why it cannot be reached, if it cannot."""
    try:
        broker = connection.broker
        with FleetWatcher(broker, connection.client_id, connect_timeout_s=5.0) as watcher:
            # What is retained is here within a moment; a heartbeat may take five seconds.
            watcher.wait_until(_is_complete, timeout_s=2.0)
            watcher.wait_until(_has_heartbeat, timeout_s=6.0 if watcher.picture.workers else 0.0)
            picture = watcher.picture
    except FleetError as error:
        return [Finding(name="broker", ok=False, detail=str(error), fix=error.hint)], error
    found = Finding(name="broker", ok=True, detail=f"{broker.host}:{broker.port} {broker.root}")
    return [found, *check_picture(picture)], None


def check_picture(picture: FleetPicture) -> list[Finding]:
    """Judge what a fleet says of itself."""
    return [_dispatcher(picture), _workers(picture), *_unfit(picture), _clocks(picture)]


def _dispatcher(picture: FleetPicture) -> Finding:
    word = picture.dispatcher
    return Finding(
        name="dispatcher",
        ok=picture.has_dispatcher,
        detail="never seen here" if word is None else f"{word.status}, epoch {word.epoch}",
        fix="" if picture.has_dispatcher else "start it: `fleet up`, or `cloud-dispatcher run`",
    )


def _workers(picture: FleetPicture) -> Finding:
    online = picture.online_workers
    return Finding(
        name="workers",
        ok=bool(online),
        detail=f"{len(online)} of {len(picture.workers)} online {' '.join(online[:8])}".strip(),
        fix=""
        if online
        else "start one with `edge-worker run`; who drains goes on with `fleet workers resume`",
    )


def _unfit(picture: FleetPicture) -> Iterator[Finding]:
    """Tell of workers whose own host keeps them from working."""
    reasons = {w.id: w.presence.reason for w in picture.workers.values() if w.presence}
    unfit = [f"{worker}: {reason}" for worker, reason in reasons.items() if reason]
    if unfit:
        yield Finding(
            name="boards",
            ok=False,
            needed=False,
            detail=f"not fit for work: {', '.join(unfit)}",
            fix="see what is wrong there: sudo /opt/edgefleet/current/venv/bin/fleet doctor",
        )


def _clocks(picture: FleetPicture) -> Finding:
    """Compare heartbeats with our clock: only people read them, no decision hangs on them."""
    now_ms = time.time_ns() // 1_000_000
    ages = {w.id: now_ms - w.state.ts for w in picture.workers.values() if w.state}
    # A heartbeat is up to one period old; one from the future is wrong at once.
    wrong = [w for w, ms in ages.items() if not -_SKEW_MOST_MS <= ms <= 3 * _SKEW_MOST_MS]
    heard = f"{len(ages)} of {len(picture.workers)} workers heard, none is off by seconds"
    return Finding(
        name="clocks",
        ok=not wrong,
        needed=False,
        detail=f"off by seconds: {', '.join(wrong)}" if wrong else heard,
        fix="let a time service (chrony, systemd-timesyncd) run there" if wrong else "",
    )


def _is_complete(picture: FleetPicture) -> bool:
    return picture.has_dispatcher and picture.summary is not None and bool(picture.online_workers)


def _has_heartbeat(picture: FleetPicture) -> bool:
    return any(w.state is not None for w in picture.workers.values())
