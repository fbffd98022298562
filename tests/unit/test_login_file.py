"""Logins outlive the dispatcher, and what is kept of them opens nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import structlog

from cloud_dispatcher.adapters.http import users
from cloud_dispatcher.adapters.http.login_file import Login, LoginFile
from cloud_dispatcher.adapters.http.sessions import Sessions
from fleet_protocol.settings import BrokerSettings
from tests.unit.gateway_house import gateway
from tests.unit.service_house import House
from tests.unit.visitor import PASSWORD, Visitor

HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def made() -> tuple[users.User, ...]:
    """Users; a hash takes a tenth of a second."""
    return tuple(users.new_user(name, PASSWORD, role="operator") for name in ("ann", "bob"))


@pytest.fixture
def file(tmp_path: Path, made: tuple[users.User, ...]) -> Path:
    path = tmp_path / "users.toml"
    users.write_users(path, made)
    return path


@asynccontextmanager
async def site(house: House, file: Path) -> AsyncIterator[Visitor]:
    """One run of a dispatcher with logins, and somebody before it."""
    async with (
        LoginFile(file.with_name("jobs.logins")) as logins,
        gateway(
            house, broker=BrokerSettings(), logins=logins, page={"users_file": str(file)}
        ) as url,
    ):
        yield Visitor(url)


async def after_restart(house: House, file: Path, before: Visitor) -> dict[str, object]:
    """Return what the same browser is told by the next run of the dispatcher."""
    async with site(house, file) as visitor:
        visitor.cookies = dict(before.cookies)
        return await visitor.session()


async def test_a_login_outlives_the_dispatcher(house: House, file: Path) -> None:
    async with site(house, file) as visitor:
        await visitor.log_in("ann")
    async with site(house, file) as again:
        again.cookies, again.csrf = visitor.cookies, visitor.csrf
        told = await again.session()
        assert (told["user"], told["role"]) == ("ann", "operator")
        # An open page goes on with the word that it was told before.
        assert (await again.post("/jobs", {"prompt": "Warm?"})).status == 202
        assert (await again.post("/page/logout", None)).status == 204
    assert "user" not in await after_restart(house, file, visitor)


async def test_a_login_is_on_the_disk_before_anybody_is_told(house: House, file: Path) -> None:
    async with site(house, file) as visitor:
        await visitor.log_in("ann")
        assert [row[1] for row in rows(file)] == ["ann"]
        await visitor.post("/page/logout", None)
        assert rows(file) == []


@pytest.mark.parametrize("change", ["password", "role", "tenant", "removed"])
async def test_who_was_changed_while_the_dispatcher_was_down_must_log_in_again(
    house: House, file: Path, made: tuple[users.User, ...], change: str
) -> None:
    async with site(house, file) as visitor:
        await visitor.log_in("ann")
        other = Visitor(visitor.url)
        await other.log_in("bob")
    text = file.read_text()  # noqa: ASYNC240 - of some bytes, in a test
    ann, bob = made
    anew = users.new_user("ann", PASSWORD, role="operator")
    changed = {
        "password": text.replace(ann.password, anew.password),
        "role": text.replace('"operator"', '"admin"', 1),
        "tenant": text.replace('"default"', '"north"', 1),
        "removed": text.replace('"ann"', '"anna"'),
    }
    file.write_text(changed[change])  # noqa: ASYNC240
    assert "user" not in await after_restart(house, file, visitor)
    assert (await after_restart(house, file, other))["user"] == bob.name
    assert [row[1] for row in rows(file)] == ["bob"]


async def test_time_goes_on_while_the_dispatcher_is_down(house: House, file: Path) -> None:
    async with site(house, file) as visitor:
        await visitor.log_in("ann")
    house.clock.now_ms += 11 * HOUR_MS
    assert (await after_restart(house, file, visitor))["user"] == "ann"
    house.clock.now_ms += 11 * HOUR_MS  # since its last use, which the file knows of
    assert (await after_restart(house, file, visitor))["user"] == "ann"
    house.clock.now_ms += 12 * HOUR_MS
    assert "user" not in await after_restart(house, file, visitor)
    async with site(house, file):
        pass
    assert rows(file) == []


async def test_a_stolen_row_is_no_login(house: House, file: Path) -> None:
    async with site(house, file) as visitor:
        await visitor.log_in("ann")
        (row,) = rows(file)
        assert visitor.cookies["edgefleet"] not in repr(row)
        assert visitor.csrf not in repr(row)
        for word in map(str, row):
            thief = Visitor(visitor.url)
            thief.cookies["edgefleet"] = word
            assert "user" not in await thief.session()


async def test_a_row_that_a_stranger_wrote_is_no_login(house: House, file: Path) -> None:
    """They know the secret that they made up, and not what the file of users says of `ann`."""
    async with site(house, file) as visitor:
        await visitor.log_in("bob")
    stranger = users.new_user("ann", "a password of theirs", role="operator")
    forged = Sessions(users.watch_users(file), house.clock, idle_h=12, most_h=168)
    secret, _ = forged.begin(stranger)
    (login,) = forged._logins.values()
    async with LoginFile(file.with_name("jobs.logins")) as logins:
        logins.put(login)
    visitor.cookies["edgefleet"] = secret
    assert "user" not in await after_restart(house, file, visitor)


async def test_only_its_owner_may_read_the_file(file: Path) -> None:
    path = file.with_name("jobs.logins")
    async with LoginFile(path) as logins:
        logins.put(Login(name="n", user="u", proof="p", since_at_ms=1, used_at_ms=1))
        await logins.save()
        found = sorted(file.parent.glob("jobs.logins*"))
        assert len(found) > 1
        assert {each.stat().st_mode & 0o077 for each in found} == {0}


async def test_a_file_that_cannot_be_used_keeps_nobody_from_logging_in(
    house: House, file: Path
) -> None:
    file.with_name("jobs.logins").write_text("this is no database" * 100)
    with structlog.testing.capture_logs() as lines:
        async with site(house, file) as visitor:
            assert (await visitor.log_in("ann")).status == 204
            assert (await visitor.session())["user"] == "ann"
            assert (await visitor.post("/page/logout", None)).status == 204
    assert "logins.not_read" in [line["event"] for line in lines]


async def test_what_could_not_be_saved_is_saved_with_the_next_change(file: Path) -> None:
    path = file.with_name("jobs.logins")
    one, two = (Login(name=name, user="u", proof="p", since_at_ms=1, used_at_ms=1) for name in "ab")
    async with LoginFile(path) as logins:
        logins.put(one)
        await logins.save()
        await logins._connection.run(lambda conn: conn.execute("PRAGMA query_only = 1"))
        logins.drop("a")
        with structlog.testing.capture_logs() as lines:
            await logins.save()
        assert [line["event"] for line in lines] == ["logins.not_saved"]
        await logins._connection.run(lambda conn: conn.execute("PRAGMA query_only = 0"))
        logins.put(two)
        await logins.save()
    assert [row[0] for row in rows(file)] == ["b"]


def rows(file: Path) -> list[tuple[object, ...]]:
    """Return what the file says, as whoever took it away reads it."""
    with closing(sqlite3.connect(file.with_name("jobs.logins"))) as conn:
        return conn.execute("SELECT * FROM logins ORDER BY since_at_ms").fetchall()
