"""How often a password may be guessed, whatever order attempts come in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloud_dispatcher.adapters.http.login_limits import (
    PER_ADDRESS,
    PER_NAME,
    PER_PAIR,
    WINDOW_MS,
    LoginLimits,
)

NAMES, ADDRESSES = ("ann", "bob"), ("10.0.0.1", "10.0.0.2")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(NAMES), st.sampled_from(ADDRESSES), st.integers(0, WINDOW_MS // 3)
        ),
        max_size=150,
    )
)
def test_in_no_quarter_of_an_hour_more_guesses_are_let_through(
    attempts: list[tuple[str, str, int]],
) -> None:
    limits, now_ms, let = LoginLimits(), 0, list[tuple[str, str, int]]()
    for name, address, pause_ms in attempts:
        now_ms += pause_ms
        wait_ms = limits.begin(name, address, now_ms)
        assert 0 <= wait_ms <= WINDOW_MS
        if wait_ms:
            # Neither earlier nor later than it was said.
            assert limits.begin(name, address, now_ms + wait_ms - 1) == 1
        else:
            let.append((name, address, now_ms))
    for name in NAMES:
        for address in ADDRESSES:
            mine = [at for who, where, at in let if (who, where) == (name, address)]
            assert all(sum(at <= x < at + WINDOW_MS for x in mine) <= PER_PAIR for at in mine)
    for address in ADDRESSES:
        mine = [at for _, where, at in let if where == address]
        assert all(sum(at <= x < at + WINDOW_MS for x in mine) <= PER_ADDRESS for at in mine)


def test_a_name_is_guessed_from_many_addresses_up_to_a_limit() -> None:
    limits = LoginLimits()
    told = [limits.begin("ann", f"10.0.0.{i}", 0) for i in range(PER_NAME + 1)]
    assert told == [0] * PER_NAME + [WINDOW_MS]
    assert limits.begin("bob", "10.0.0.1", 0) == 0


def test_who_knows_the_password_is_never_held_off() -> None:
    limits = LoginLimits()
    for _ in range(3 * PER_NAME):
        assert limits.begin("ann", "10.0.0.1", 0) == 0
        limits.succeeded("ann", "10.0.0.1")


def test_a_right_password_does_not_forgive_the_address_what_it_guessed_of_others() -> None:
    limits = LoginLimits()
    for i in range(PER_ADDRESS - 1):
        assert limits.begin(f"user-{i}", "10.0.0.1", 0) == 0
    assert limits.begin("own", "10.0.0.1", 0) == 0
    limits.succeeded("own", "10.0.0.1")
    assert limits.begin("another", "10.0.0.1", 0) == 0
    assert limits.begin("own", "10.0.0.1", 0) == WINDOW_MS


def test_strangers_cannot_fill_the_memory() -> None:
    limits = LoginLimits()
    for i in range(30_000):
        limits.begin(f"user-{i}", f"10.{i % 256}.{i // 256}.1", 0)
    assert len(limits._at_ms) <= 20_000


def test_all_addresses_that_one_link_has_count_as_one() -> None:
    limits = LoginLimits()
    told = [limits.begin("ann", f"2001:db8:0:1::{i:x}", 0) for i in range(PER_PAIR + 1)]
    assert told == [0] * PER_PAIR + [WINDOW_MS]
    assert limits.begin("ann", "2001:db8:0:2::1", 0) == 0
    # IPv4 as a socket of IPv6 tells it is IPv4: a neighbour has nothing to do with it.
    told = [limits.begin("bob", "::ffff:10.0.0.1", 0) for _ in range(PER_PAIR + 1)]
    assert told[-1] == WINDOW_MS
    assert limits.begin("bob", "10.0.0.1", 0) == WINDOW_MS
    assert limits.begin("bob", "::ffff:10.0.0.2", 0) == 0
