"""Logging in to the page: whose password, which cookie, what a role may, and how it all ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner

from cloud_dispatcher.adapters.http import login, users
from cloud_dispatcher.adapters.http.addresses import origin_of
from cloud_dispatcher.adapters.http.page_settings import PageSettings
from cloud_dispatcher.adapters.http.settings import GatewaySettings
from cloud_dispatcher.cli.main import main
from fleet_protocol.errors import ConfigError
from fleet_protocol.settings import BrokerSettings
from tests.unit.gateway_house import gateway
from tests.unit.service_house import House, Worker
from tests.unit.visitor import PASSWORD, Visitor

CHAT: dict[str, Any] = {"model": "fleet", "messages": [{"role": "user", "content": "Warm?"}]}
HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("users") / "users.toml"
    for role in ("viewer", "operator", "admin"):
        users_command("add", f"{role}-1", "--role", role, file=file)
    return file


@pytest.fixture
def file(made: Path, tmp_path: Path) -> Path:
    own = tmp_path / "users.toml"
    own.write_bytes(made.read_bytes())
    return own


def users_command(*words: str, file: Path, password: str = PASSWORD) -> dict[str, Any]:
    """Run `cloud-dispatcher users ...` and return what it prints as JSON."""
    asks = () if words[0] in {"ls", "rm"} else ("--password-file", "-")
    line = ["users", *words, *asks, "--file", str(file), "--json"]
    done = CliRunner().invoke(main, line, input=f"{password}\n")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@asynccontextmanager
async def site(house: House, file: Path, **page: object) -> AsyncIterator[Visitor]:
    """A gateway with logins before a broker that asks nobody."""
    settings = {"users_file": str(file), **page}
    async with gateway(house, broker=BrokerSettings(), page=settings) as url:
        yield Visitor(url)


def test_a_password_is_kept_as_argon2id_alone(file: Path) -> None:
    assert PASSWORD not in file.read_text()
    assert file.read_text().count('"$argon2id$v=19$m=65536,t=3,p=4$') == 3
    users_command("add", "ann", file=file)
    assert file.stat().st_mode & 0o077 == 0
    listed = users_command("ls", file=file)["users"]
    assert {"name": "ann", "role": "viewer", "tenant": "default"} in listed
    users_command("rm", "ann", file=file)
    assert [user.name for user in users.read_users(file)] == ["viewer-1", "operator-1", "admin-1"]


@pytest.mark.parametrize(
    ("words", "password", "says"),
    [
        (["add", "viewer-1"], PASSWORD, "is there already"),
        (["add", "a/b"], PASSWORD, "cannot be made"),
        (["add", "bob"], "too short", "12 to 256 characters"),
        (["password", "nobody"], PASSWORD, "no user called"),
    ],
)
def test_what_cannot_be_done_to_the_file_is_said(
    file: Path, words: list[str], password: str, says: str
) -> None:
    before = file.read_bytes()
    line = ["users", *words, "--password-file", "-", "--file", str(file)]
    done = CliRunner().invoke(main, line, input=f"{password}\n")
    assert (done.exit_code, says in done.stderr) == (2, True), done.stderr
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "text",
    [
        '[[user]]\nname = "a"\npassword = "plain"',
        '[[user]]\nname = "a"\npassword = "$argon2id$v=19$x"\nrole = "device"',
        '[[user]]\nname = "a"\npassword = "$argon2id$v=19$x"\n' * 2,
        "[[user",
    ],
)
def test_a_wrong_file_is_refused_as_a_whole(text: str) -> None:
    with pytest.raises(ConfigError):
        users.parse_users(text, "users.toml")


async def test_without_a_login_nothing_but_the_door_is_shown(house: House, file: Path) -> None:
    async with site(house, file) as visitor:
        page = await visitor.get("/")
        assert (page.status, b"<script>" in page.body) == (200, False)
        assert set(await visitor.session()) == {"login", "version"}
        for path in ("/page/history", "/v1/models", "/metrics", "/jobs", "/jobs/x"):
            assert (await visitor.get(path)).status == 401, path
        assert (await visitor.post("/v1/chat/completions", CHAT)).status == 401
    assert house.store._jobs == {}


async def test_the_right_password_opens_the_page_for_its_role(house: House, file: Path) -> None:
    async with site(house, file) as visitor:
        assert (await visitor.log_in("operator-1")).status == 204
        session = await visitor.session()
        assert (session["login"], session["user"], session["role"]) == (
            True,
            "operator-1",
            "operator",
        )
        assert session["topics"] == {
            "asks": "operator/page-operator-1/req",
            "hears": "operator/page-operator-1/res",
        }
        assert {"jobs.cancel", "texts.read", "ask"} <= set(session["may"])
        assert "cache.clear" not in session["may"]
        assert (await visitor.get("/page/history")).status == 200
        assert (await visitor.get("/metrics")).status == 200


async def test_the_cookie_is_kept_from_scripts_and_other_sites(house: House, file: Path) -> None:
    async with site(house, file) as visitor:
        told = (await visitor.log_in("viewer-1")).headers["set-cookie"].lower()
        assert told.startswith("edgefleet=")
        assert {"httponly", "samesite=strict", "path=/", "max-age=604800"} <= set(told.split("; "))
        assert "secure" not in told
        assert "domain" not in told
    async with site(house, file, url="https://fleet.example") as visitor:
        visitor.origin = "https://fleet.example"
        told = (await visitor.log_in("viewer-1")).headers["set-cookie"]
        assert told.startswith("__Host-edgefleet=")
        assert "secure" in told.lower().split("; ")


async def test_a_name_that_was_there_before_the_login_is_worth_nothing_after_it(
    house: House, file: Path
) -> None:
    async with site(house, file) as visitor:
        visitor.cookies["edgefleet"] = "fixed-by-somebody-else"
        await visitor.log_in("viewer-1")
        first = visitor.cookies["edgefleet"]
        assert first != "fixed-by-somebody-else"
        await visitor.log_in("viewer-1")
        assert visitor.cookies["edgefleet"] != first
        for old in ("fixed-by-somebody-else", first):
            thief = Visitor(visitor.url)
            thief.cookies["edgefleet"] = old
            assert "user" not in await thief.session()


@pytest.mark.parametrize(("name", "password"), [("viewer-1", "x" * 20), ("nobody", PASSWORD)])
async def test_a_wrong_password_and_a_wrong_name_are_told_alike(
    house: House, file: Path, name: str, password: str
) -> None:
    async with site(house, file) as visitor:
        answer = await visitor.log_in(name, password)
        told = json.loads(answer.body)["error"]
        assert (answer.status, told["code"]) == (401, "wrong_password")
        assert told["message"] == "no such name, or not its password"
        assert visitor.cookies == {}


async def test_a_name_that_is_not_known_costs_as_much_work_as_one_that_is(
    house: House, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []

    def is_password_of(user: users.User, password: str) -> bool:
        checked.append(user.password.rpartition("$")[0].rpartition("$")[0])
        return users.is_password_of(user, password)

    monkeypatch.setattr(login, "is_password_of", is_password_of)
    async with site(house, file) as visitor:
        await visitor.log_in("nobody", "guess" * 4)
        await visitor.log_in("viewer-1", "guess" * 4)
    assert checked == ["$argon2id$v=19$m=65536,t=3,p=4"] * 2


async def test_whoever_guesses_has_to_wait_and_others_have_not(house: House, file: Path) -> None:
    async with site(house, file) as visitor:
        for _ in range(5):
            assert (await visitor.log_in("viewer-1", "guess" * 4)).status == 401
        held = await visitor.log_in("viewer-1")
        assert (held.status, held.code, held.headers["retry-after"]) == (
            429,
            "too_many_attempts",
            "900",
        )
        assert (await visitor.log_in("admin-1")).status == 204
        house.clock.now_ms += 15 * 60_000
        assert (await visitor.log_in("viewer-1")).status == 204


async def test_an_address_counts_as_a_proxy_of_ours_tells_it(house: House, file: Path) -> None:
    def guess(visitor: Visitor, claimed: str) -> Any:
        body = {"name": "viewer-1", "password": "guess" * 4}
        return visitor.post("/page/login", body, **{"X-Forwarded-For": claimed})

    async with site(house, file) as visitor:
        told = [(await guess(visitor, f"10.0.0.{i}")).status for i in range(6)]
        assert told == [401] * 5 + [429]  # nobody is believed
    async with site(house, file, proxies=["127.0.0.1"]) as visitor:
        told = [(await guess(visitor, f"1.2.3.4, 10.0.0.{i}")).status for i in range(6)]
        assert told == [401] * 6
        told = [(await guess(visitor, f"10.9.9.{i}, 10.0.0.77")).status for i in range(6)]
        assert told == [401] * 5 + [429]  # what a client put before it is not believed


async def test_more_attempts_at_once_than_can_be_checked_are_put_off(
    house: House, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "_WAITING_MOST", 1)
    async with site(house, file) as visitor:
        told = await asyncio.gather(*(visitor.log_in("viewer-1") for _ in range(4)))
    assert {answer.status for answer in told} == {204, 503}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "viewer-1"}, 400),
        ({"name": 1, "password": PASSWORD}, 400),
        ({"name": "viewer-1", "password": "x" * 300}, 400),
        ({"name": "viewer-1", "password": "x" * 5_000}, 413),
        ({"name": "viewer-1", "password": "\ud800" * 12}, 400),
        (b'{"name": "viewer-1", "password": "\xff\xfe"}', 400),
        (b'{"name": 1, "a": ' + b"[" * 3_000, 400),
        (b'{"a": ' + b"[" * 3_000, 400),
    ],
)
async def test_what_is_no_login_is_refused(
    house: House, file: Path, body: dict[str, Any] | bytes, status: int
) -> None:
    async with site(house, file) as visitor:
        assert (await visitor.post("/page/login", body)).status == status


@pytest.mark.parametrize("origin", ["https://evil.example", "null", ""])
async def test_no_other_site_logs_anybody_in_or_out(house: House, file: Path, origin: str) -> None:
    async with site(house, file) as visitor:
        body = {"name": "viewer-1", "password": PASSWORD}
        answer = await visitor.post("/page/login", body, Origin=origin)
        assert (answer.status, answer.code) == (403, "not_our_page")
        await visitor.log_in("viewer-1")
        assert (await visitor.post("/page/logout", None, Origin=origin)).status == 403
        assert (await visitor.session())["user"] == "viewer-1"


@pytest.mark.parametrize(
    "headers",
    [
        {"x-csrf-token": ""},
        {"x-csrf-token": "guessed"},
        {"x-csrf-token": "é"},
        {"Origin": "https://evil.example"},
        {"Origin": ""},
    ],
)
async def test_a_cookie_alone_changes_nothing(
    house: House, file: Path, headers: dict[str, str]
) -> None:
    async with site(house, file) as visitor:
        await visitor.log_in("admin-1")
        for path, body in (("/v1/chat/completions", CHAT), ("/jobs", {"prompt": "Warm?"})):
            answer = await visitor.post(path, body, **headers)
            assert (answer.status, answer.code) == (403, "not_our_page")
        own = {"Origin": visitor.origin, "x-csrf-token": visitor.csrf, **headers}
        told = await asyncio.to_thread(visitor.send, "DELETE", "/jobs/x", None, own)
        assert told.status == 403
    assert house.store._jobs == {}


async def test_an_operator_asks_and_a_viewer_does_not(
    house: House, worker: Worker, file: Path
) -> None:
    async with site(house, file) as visitor:
        await visitor.log_in("viewer-1")
        for path, body in (("/v1/chat/completions", CHAT), ("/jobs", {"prompt": "Warm?"})):
            answer = await visitor.post(path, body)
            assert (answer.status, answer.code) == (403, "not_authorized")
        assert (await visitor.get("/jobs")).status == 403  # it tells of answers
        assert (await visitor.get("/v1/models")).status == 200
        await visitor.log_in("operator-1")
        asking = asyncio.create_task(visitor.post("/v1/chat/completions", CHAT))
        worker.done(await worker.assignment(), "It is.")
        told = json.loads((await asking).body)
        assert told["choices"][0]["message"]["content"] == "It is."


async def test_whoever_logs_out_is_out(house: House, file: Path) -> None:
    async with site(house, file) as visitor:
        await visitor.log_in("viewer-1")
        stolen = dict(visitor.cookies)
        assert (await visitor.post("/page/logout", None)).status == 204
        assert visitor.cookies == {}
        visitor.cookies = stolen
        assert "user" not in await visitor.session()


async def test_a_login_that_nobody_uses_ends_after_half_a_day(house: House, file: Path) -> None:
    async with site(house, file) as visitor:
        await visitor.log_in("viewer-1")
        house.clock.now_ms += 12 * HOUR_MS
        assert "user" not in await visitor.session()


async def test_a_login_that_is_used_ends_after_a_week(house: House, file: Path) -> None:
    async with site(house, file) as visitor:
        await visitor.log_in("viewer-1")
        for _ in range(15):
            house.clock.now_ms += 11 * HOUR_MS
            assert (await visitor.session())["user"] == "viewer-1"
        house.clock.now_ms += 3 * HOUR_MS
        assert "user" not in await visitor.session()


@pytest.mark.parametrize("change", ["password", "rm", "role"])
async def test_a_change_of_the_file_ends_the_logins_that_it_is_about(
    house: House, file: Path, change: str
) -> None:
    async with site(house, file) as visitor:
        other = Visitor(visitor.url)
        await visitor.log_in("admin-1")
        await other.log_in("operator-1")
        if change == "role":
            file.write_text(file.read_text().replace('"admin"', '"viewer"'))  # noqa: ASYNC240
        else:
            users_command(change, "admin-1", file=file, password="another long one")
        assert "user" not in await visitor.session()
        assert (await other.session())["user"] == "operator-1"


async def test_no_more_than_twenty_logins_of_one_user_are_kept(house: House, file: Path) -> None:
    async with site(house, file) as visitor:
        first = Visitor(visitor.url)
        await first.log_in("viewer-1")
        for _ in range(20):
            assert "user" in await first.session()
            await Visitor(visitor.url).log_in("viewer-1")
        assert "user" not in await first.session()


async def test_no_password_no_cookie_and_no_stranger_reach_the_log(
    house: House, file: Path
) -> None:
    with structlog.testing.capture_logs() as lines:
        async with site(house, file) as visitor:
            await visitor.log_in("my-password-typed-as-a-name")
            await visitor.log_in("viewer-1", "almost the password")
            await visitor.log_in("viewer-1")
            cookie, csrf = visitor.cookies["edgefleet"], visitor.csrf
            await visitor.get(f"/jobs/ef-{'0' * 64}")
            await visitor.post("/page/logout", None)
    written = repr((lines, house.audited))
    here = {"address": "127.0.0.1"}
    assert house.audited == [
        ("login.failed", here),
        ("login.failed", {"user": "viewer-1", **here}),
        ("login", {"user": "viewer-1", "role": "viewer", **here}),
        ("logout", {"user": "viewer-1"}),
    ]
    assert [line["event"] for line in lines if line["event"].startswith("login.")] == [
        "login.failed",
        "login.failed",
        "login.done",
        "login.ended",
    ]
    for hidden in (PASSWORD, "almost the", "my-password", cookie, csrf, "0" * 64):
        assert hidden not in written


async def test_a_page_led_to_this_machine_by_another_name_gets_nothing(
    house: House, file: Path
) -> None:
    async with site(house, file) as visitor:
        for path in ("/", "/page/session", "/assets/app.js"):
            assert (await visitor.get(path, Host="evil.example")).status == 403


async def test_a_key_still_asks_where_people_log_in(
    house: House, worker: Worker, file: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.toml"
    line = ["keys", "add", "app", "--file", str(keys), "--json"]
    secret = json.loads(CliRunner().invoke(main, line).stdout)["key"]
    page = {"users_file": str(file)}
    async with gateway(house, broker=BrokerSettings(), keys_file=str(keys), page=page) as url:
        app = Visitor(url)
        authorised = {"Authorization": f"Bearer {secret}"}
        assert (await app.get("/v1/models", **authorised)).status == 200
        assert (await app.get("/page/history", **authorised)).status == 200
        assert (await app.get("/v1/models")).status == 401
        asking = asyncio.create_task(app.post("/v1/chat/completions", CHAT, **authorised))
        worker.done(await worker.assignment())
        assert (await asking).status == 200


def test_beyond_this_machine_the_page_must_know_its_name() -> None:
    with pytest.raises(ValueError, match=r"page\.url"):
        _settings(host="0.0.0.0", url=None)
    with pytest.raises(ValueError, match="without a path"):
        _settings(host="0.0.0.0", url="https://fleet.example/page")
    assert _settings(host="0.0.0.0", url="https://fleet.example").keys_file is None
    assert _settings(host="127.0.0.1", url=None).page.url is None


def _settings(*, host: str, url: str | None) -> GatewaySettings:
    return GatewaySettings(port=1, host=host, page=PageSettings(users_file="users.toml", url=url))


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Fleet.Example:443/", "https://fleet.example"),
        ("http://10.0.0.4:8600", "http://10.0.0.4:8600"),
        ("http://[fd00::1]:80", "http://[fd00::1]"),
    ],
)
def test_an_origin_is_written_as_browsers_write_it(url: str, origin: str) -> None:
    assert origin_of(url) == origin


async def test_who_could_see_nothing_keeps_the_gateway_from_starting(
    house: House, file: Path
) -> None:
    named = BrokerSettings(username="dispatcher")
    with pytest.raises(ConfigError, match=r"gateway\.page\.viewer") as refused:
        async with gateway(house, broker=named, page={"users_file": str(file)}):
            pass
    assert "fleet enroll viewer page-viewer" in refused.value.hint
