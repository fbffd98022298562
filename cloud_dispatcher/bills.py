"""What the cloud cost, as operators read it."""

from __future__ import annotations

import datetime as dt

import msgspec

from cloud_dispatcher.core.spending import Spend
from fleet_protocol.messages import CostRow

_EPOCH = dt.date(1970, 1, 1)


def cost_row(spend: Spend) -> CostRow:
    """Return a record with its day as a date."""
    fields = msgspec.structs.asdict(spend)
    day = (_EPOCH + dt.timedelta(days=spend.day)).isoformat()
    return CostRow(**{**fields, "day": day, "model": spend.model[:128]})
