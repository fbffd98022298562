"""What the cloud costs: who spent how much on which day, and who may spend more.

Pure. A day is a UTC day, counted from 1 January 1970.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Final

import msgspec

from fleet_protocol.messages import BudgetView, DeviceId

_DAY_MS: Final = 86_400_000
NO_TENANT: Final = "default"
"""Stands for devices that belong to no tenant."""
LOCAL_PREFIX: Final = "http-"
"""Before a tenant's name it is the device in whose name its requests over HTTP are jobs."""

_Usd = Annotated[float, msgspec.Meta(ge=0.0)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class TenantSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who a group of devices belongs to.

    Attributes:
        name: For people and bills.
        devices: Patterns of device ids; `*` stands for any characters.
        daily_usd: What they may spend in a UTC day; None: as `budget.tenant_daily_usd` says.
        jobs_per_s: New jobs a second of all of them together; this and the next three: None: as
            `RateSettings` says.
        jobs_burst: So many at once.
        device_jobs_per_s: New jobs a second of each of them.
        device_jobs_burst: So many at once.
    """

    name: _Name
    devices: tuple[str, ...]
    daily_usd: _Usd | None = None
    jobs_per_s: Annotated[float, msgspec.Meta(gt=0.0)] | None = None
    jobs_burst: Annotated[int, msgspec.Meta(ge=1)] | None = None
    device_jobs_per_s: Annotated[float, msgspec.Meta(gt=0.0)] | None = None
    device_jobs_burst: Annotated[int, msgspec.Meta(ge=1)] | None = None


class BudgetSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be spent. Calls under way when a budget runs out are finished and paid.

    Attributes:
        daily_usd: By all together in a UTC day; None: no limit.
        tenant_daily_usd: By each tenant; None: no limit.
        tenants: The first one with a pattern that fits has the device.
    """

    daily_usd: _Usd | None = None
    tenant_daily_usd: _Usd | None = None
    tenants: tuple[TenantSettings, ...] = ()


class Payer(msgspec.Struct, frozen=True, kw_only=True):
    """Who pays besides the tenant.

    Attributes:
        key: Name of the API key with which a job came.
        daily_usd: What it may spend in a UTC day, as it was when the job came: keys change while
            the dispatcher runs. None: as much as its tenant.
    """

    key: str
    daily_usd: _Usd | None = None


class Spend(msgspec.Struct, frozen=True, kw_only=True):
    """What was spent on a day for one purpose.

    Attributes:
        day: UTC day since 1 January 1970.
        reason: Why the jobs were in the cloud.
        provider: Empty for a call that failed and cost something all the same.
        key: Name of the API key with which the jobs came; empty: they came without one.
        calls: A call that was shared is the first one's alone.
    """

    day: int
    tenant: str
    reason: str
    provider: str = ""
    model: str = ""
    key: str = ""
    calls: int = 1
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0


def day_of(at_ms: int) -> int:
    """Return the UTC day of an instant."""
    return at_ms // _DAY_MS


class Budget:
    """Keeps today's spending by tenant and by API key; forgets it at midnight UTC."""

    def __init__(self, settings: BudgetSettings) -> None:
        self._settings = settings
        self._day = 0
        self._spent_usd: dict[str, float] = {}
        self._key_spent_usd: dict[str, float] = {}
        own = (tenant.daily_usd for tenant in settings.tenants)
        limits = (settings.daily_usd, settings.tenant_daily_usd, *own)
        self._is_limited = any(limit is not None for limit in limits)

    def tenant_of(self, device: DeviceId) -> str:
        """Return who a device belongs to."""
        for tenant in self._settings.tenants:
            if any(fnmatchcase(device, pattern) for pattern in tenant.devices):
                return tenant.name
        return device.removeprefix(LOCAL_PREFIX) if device.startswith(LOCAL_PREFIX) else NO_TENANT

    def refusal(self, tenant: str, payer: Payer | None, now_ms: int) -> str:
        """Return why nothing more may be spent today, for people; empty: it may."""
        own = payer if payer is not None and payer.daily_usd is not None else None
        if not self._is_limited and own is None:
            return ""
        self._turn_to(now_ms)
        views = self._views((tenant,))
        for view in views if own is None else (*views, self._key_view(tenant, own)):
            if view.daily_usd is not None and view.spent_usd >= view.daily_usd:
                whose = f"the key {view.key}" if view.key else view.tenant or "all tenants"
                return (
                    f"the budget of {whose} for today is spent "
                    f"({view.spent_usd:.4f} of {view.daily_usd:.4f} USD); it is new at 0:00 UTC"
                )
        return ""

    def record(self, spends: Iterable[Spend], now_ms: int) -> None:
        """Take note of what was spent; what is not of today is not counted."""
        self._turn_to(now_ms)
        for spend in spends:
            if spend.day == self._day:
                before_usd = self._spent_usd.get(spend.tenant, 0.0)
                self._spent_usd[spend.tenant] = before_usd + spend.cost_usd
                if spend.key:
                    before_usd = self._key_spent_usd.get(spend.key, 0.0)
                    self._key_spent_usd[spend.key] = before_usd + spend.cost_usd

    def correct(self, spends: Iterable[Spend], now_ms: int) -> None:
        """Take over what all who spend together spent, as it is written down."""
        self._spent_usd.clear()
        self._key_spent_usd.clear()
        self.record(spends, now_ms)

    def views(
        self, now_ms: int, payers: Iterable[tuple[DeviceId, Payer]] = ()
    ) -> tuple[BudgetView, ...]:
        """Return today's budgets: of all together, of each tenant, then of keys with their own.

        `payers`: The keys as they are now, each with the device in whose name it asks.
        """
        self._turn_to(now_ms)
        keys = [(self.tenant_of(device), payer) for device, payer in payers]
        named = [tenant.name for tenant in self._settings.tenants]
        others = sorted({*self._spent_usd, *(tenant for tenant, _ in keys)})
        return (
            *self._views(dict.fromkeys([*named, *others])),
            *(self._key_view(whose, key) for whose, key in keys if key.daily_usd is not None),
        )

    def _key_view(self, tenant: str, payer: Payer) -> BudgetView:
        return BudgetView(
            tenant=tenant,
            key=payer.key,
            spent_usd=self._key_spent_usd.get(payer.key, 0.0),
            daily_usd=payer.daily_usd,
        )

    def _views(self, tenants: Iterable[str]) -> tuple[BudgetView, ...]:
        settings = self._settings
        limits = {t.name: t.daily_usd for t in settings.tenants if t.daily_usd is not None}
        total_usd = sum(self._spent_usd.values())
        together = BudgetView(tenant="", spent_usd=total_usd, daily_usd=settings.daily_usd)
        return (
            together,
            *(
                BudgetView(
                    tenant=tenant,
                    spent_usd=self._spent_usd.get(tenant, 0.0),
                    daily_usd=limits.get(tenant, settings.tenant_daily_usd),
                )
                for tenant in tenants
            ),
        )

    def _turn_to(self, now_ms: int) -> None:
        day = day_of(now_ms)
        if day > self._day:
            self._day = day
            self._spent_usd.clear()
            self._key_spent_usd.clear()
