"""Prices are dated data: the day, the hour and the cache decide what an answer cost."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import msgspec
import pytest

from cloud_dispatcher.adapters.price_table import PriceTable, load_prices, parse_prices
from fleet_protocol.errors import ConfigError
from fleet_protocol.messages import Usage

MILLION_EACH = Usage(prompt_tokens=2_000_000, completion_tokens=1_000_000, cached_tokens=1_000_000)


def at_ms(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).timestamp() * 1_000)


SATURDAY_MS = at_ms("2026-11-21T07:00:00+00:00")


@pytest.fixture(scope="module")
def shipped() -> PriceTable:
    return load_prices()


@pytest.mark.parametrize(
    ("model", "usd"), [("deepseek-flash", 0.003 + 0.15 + 0.60), ("deepseek-v4-pro", 2.662)]
)
def test_cached_fresh_and_written_tokens_have_their_own_prices(
    shipped: PriceTable, model: str, usd: float
) -> None:
    assert shipped.cost_usd(model, MILLION_EACH, at_ms=SATURDAY_MS) == pytest.approx(usd)


@pytest.mark.parametrize(
    ("moment", "factor"),
    [
        ("2026-11-23T00:59:59+00:00", 1),  # a Monday
        ("2026-11-23T01:00:00+00:00", 2),
        ("2026-11-23T03:59:59+00:00", 2),
        ("2026-11-23T04:00:00+00:00", 1),
        ("2026-11-23T06:00:00+00:00", 2),
        ("2026-11-23T09:59:59+00:00", 2),
        ("2026-11-23T10:00:00+00:00", 1),
        ("2026-11-27T07:00:00+00:00", 2),  # Friday
        ("2026-11-28T07:00:00+00:00", 1),  # Saturday
        ("2026-11-22T07:00:00+00:00", 1),  # Sunday
        ("2026-11-23T09:30:00+08:00", 2),  # 01:30 in UTC: the caller's zone does not matter
        ("2026-11-23T07:00:00+08:00", 1),  # Sunday 23:00 in UTC
    ],
)
def test_peak_is_by_the_utc_hour_on_working_days(
    shipped: PriceTable, moment: str, factor: float
) -> None:
    off_peak_usd = shipped.cost_usd("deepseek-flash", MILLION_EACH, at_ms=SATURDAY_MS)
    usd = shipped.cost_usd("deepseek-flash", MILLION_EACH, at_ms=at_ms(moment))
    assert off_peak_usd is not None
    assert usd == pytest.approx(factor * off_peak_usd)


ROW = 'model = "m"\ncache_hit_usd = 0\ncache_miss_usd = {usd}\noutput_usd = 0\n'
TWO_ROWS = (
    "[[price]]\nvalid_from = 2027-01-01\n" + ROW.format(usd=7) + "[[price]]\n"
    "valid_from = 2026-01-01\n" + ROW.format(usd=3)
)


@pytest.mark.parametrize(
    ("moment", "usd"),
    [
        ("2026-12-31T23:59:59+00:00", 3),
        ("2027-01-01T00:00:00+00:00", 7),
        ("2025-06-01T00:00:00+00:00", 3),
    ],
)
def test_a_price_holds_from_its_day_on_and_the_first_one_before_it(moment: str, usd: float) -> None:
    usage = Usage(prompt_tokens=1_000_000)
    table = parse_prices(TWO_ROWS)
    assert table.cost_usd("m", usage, at_ms=at_ms(moment)) == pytest.approx(usd)


def test_an_unknown_model_has_no_price_instead_of_a_wrong_one(shipped: PriceTable) -> None:
    assert shipped.cost_usd("gpt-7", MILLION_EACH, at_ms=SATURDAY_MS) is None


def test_more_cached_than_asked_never_makes_a_negative_price(shipped: PriceTable) -> None:
    odd = Usage(prompt_tokens=10, cached_tokens=20)
    assert (shipped.cost_usd("deepseek-flash", odd, at_ms=SATURDAY_MS) or -1) > 0


@pytest.mark.parametrize(
    "row",
    [
        ROW.format(usd=1),  # without a date
        "valid_from = 2026-01-01\n" + ROW.format(usd=-1),
        "valid_from = 2026-01-01\ncolour = 1\n" + ROW.format(usd=1),
    ],
)
def test_a_row_that_lacks_its_date_or_makes_no_sense_is_refused(row: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        parse_prices("[[price]]\n" + row)


def test_rows_of_the_operator_go_on_top(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(
        "[[price]]\nmodel = 'deepseek-flash'\nvalid_from = 2026-07-24\n"
        "cache_hit_usd = 1\ncache_miss_usd = 2\noutput_usd = 3\n"
        "[[price]]\nmodel = 'own'\nvalid_from = 2026-01-01\n"
        "cache_hit_usd = 0\ncache_miss_usd = 0\noutput_usd = 5\n"
    )
    table, at_ms = load_prices(path), 1_795_000_000_000
    price = table.find("deepseek-flash", at_ms=at_ms)
    assert price is not None
    assert price.output_usd == 3
    assert table.cost_usd("own", Usage(completion_tokens=1_000_000), at_ms=at_ms) == 5
    assert table.find("deepseek-v4-pro", at_ms=at_ms) is not None


@pytest.mark.parametrize("text", [None, "x = [", "[[price]]\nmodel = 'own'\n"])
def test_a_price_file_that_is_none_is_a_setting_to_correct(
    tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "prices.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match="prices_file"):
        load_prices(path)
