"""What an answer cost: dated prices, peak hours and cached tokens."""

from __future__ import annotations

import datetime as dt
import importlib.resources
import tomllib
from pathlib import Path
from typing import Annotated, TypeAlias, TypeVar

import msgspec

from fleet_protocol.errors import ConfigError, cause_of
from fleet_protocol.messages import Usage

_TOKENS_PER_PRICE = 1_000_000
_HOUR_MS = 3_600_000
_HOURS_OF_A_WEEK = 168

Usd: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]
Hour: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=24)]
Weekday: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=7)]


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model costs from a day on, in USD per million tokens, off-peak."""

    model: str
    valid_from: dt.date
    cache_hit_usd: Usd
    cache_miss_usd: Usd
    output_usd: Usd


class Peak(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When models cost more.

    Attributes:
        weekdays: 1 is Monday, in UTC.
        hours_utc: Spans of whole hours, the end excluded.
        factor: On every price.
    """

    models: tuple[str, ...]
    valid_from: dt.date
    weekdays: tuple[Weekday, ...]
    hours_utc: tuple[tuple[Hour, Hour], ...]
    factor: Annotated[float, msgspec.Meta(gt=0)]

    def covers(self, at: dt.datetime) -> bool:
        """Whether the UTC instant lies in the peak."""
        return at.isoweekday() in self.weekdays and any(
            start <= at.hour < end for start, end in self.hours_utc
        )


class PriceTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All prices known, of all days."""

    price: tuple[Price, ...] = ()
    peak: tuple[Peak, ...] = ()

    def find(self, model: str, *, at_ms: int) -> Price | None:
        """Return the price of that day; None: the model is in no row."""
        return _current([row for row in self.price if row.model == model], _instant(at_ms).date())

    def factor(self, model: str, *, at_ms: int) -> float:
        """Return what the price is multiplied with at that instant."""
        at = _instant(at_ms)
        peak = _current([row for row in self.peak if model in row.models], at.date())
        return peak.factor if peak is not None and peak.covers(at) else 1.0

    def offpeak_at_ms(self, model: str, *, at_ms: int) -> int:
        """Return the first instant from `at_ms` on without a raised price; at most a week ahead."""
        for hour in range(_HOURS_OF_A_WEEK):
            begins_ms = at_ms if hour == 0 else (at_ms // _HOUR_MS + hour) * _HOUR_MS
            if self.factor(model, at_ms=begins_ms) <= 1:
                return begins_ms
        return at_ms  # it never costs less: to wait makes no sense

    def cost_usd(self, model: str, usage: Usage, *, at_ms: int) -> float | None:
        """Return what the usage cost at that instant; None: nobody knows this model's price."""
        price = self.find(model, at_ms=at_ms)
        if price is None:
            return None
        fresh_tokens = max(0, usage.prompt_tokens - usage.cached_tokens)
        off_peak_usd = (
            usage.cached_tokens * price.cache_hit_usd
            + fresh_tokens * price.cache_miss_usd
            + usage.completion_tokens * price.output_usd
        ) / _TOKENS_PER_PRICE
        return off_peak_usd * self.factor(model, at_ms=at_ms)


def load_prices(more: Path | None = None) -> PriceTable:
    """Read the table that comes with the package, and the operator's own on top.

    Args:
        more: TOML with the same tables; of two rows for one model and day, its counts.

    Raises:
        ConfigError: It cannot be read, or is not such a table.
    """
    folder = importlib.resources.files("cloud_dispatcher.adapters")
    table = parse_prices(folder.joinpath("prices.toml").read_text(encoding="utf-8"))
    if more is None:
        return table
    try:
        own = parse_prices(more.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cloud.prices_file {more} cannot be read: {cause_of(error)}",
            hint="compare with prices.toml beside the dispatcher's adapters",
        ) from error
    return PriceTable(price=table.price + own.price, peak=table.peak + own.peak)


def parse_prices(toml: str) -> PriceTable:
    """Read a table.

    Raises:
        tomllib.TOMLDecodeError: It is not TOML.
        msgspec.ValidationError: A row lacks something or holds what it may not.
    """
    return msgspec.convert(tomllib.loads(toml), PriceTable)


def _instant(at_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at_ms / 1_000, tz=dt.UTC)


_RowT = TypeVar("_RowT", Price, Peak)


def _current(rows: list[_RowT], day: dt.date) -> _RowT | None:
    """Return the youngest row that is valid on the day, else the oldest of all."""
    by_date = sorted(rows, key=lambda row: row.valid_from)
    valid = [row for row in by_date if row.valid_from <= day]
    return valid[-1] if valid else next(iter(by_date), None)
