"""How many new jobs a second a device, and a tenant, may bring. Pure."""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

import msgspec

from cloud_dispatcher.core.rates import TokenBucket
from cloud_dispatcher.core.spending import TenantSettings
from fleet_protocol.messages import DeviceId, RateOf

_PerS = Annotated[float, msgspec.Meta(gt=0.0, le=1_000_000.0)]
_Burst = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]

_SPARE: Final = 4_096
"""Devices that are remembered at least before those are forgotten that lately brought nothing."""


class RateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many new jobs are taken in; what is beyond is refused as `busy`, with the time to wait.

    Attributes:
        device_per_s: Jobs a second of each device; None: any number. All that ask over HTTP with
            keys of one tenant are one device.
        device_burst: So many at once, of a device that brought none for a while.
        tenant_per_s: The same for all devices of a tenant together.
        tenant_burst: The same for all devices of a tenant together.
    """

    device_per_s: _PerS | None = None
    device_burst: _Burst = 10
    tenant_per_s: _PerS | None = None
    tenant_burst: _Burst = 100


class Excess(NamedTuple):
    """A rate that is exceeded.

    Attributes:
        per_s: What is allowed.
        wait_ms: One more job is when so much time has passed, if nobody else brings it.
    """

    of: RateOf
    per_s: float
    wait_ms: int


class _Rate(NamedTuple):
    per_s: float | None
    burst: int


class RateLimits:
    """Counts accepted jobs. Nothing of it is stored: after a restart everybody has a full burst.

    Attributes:
        are_set: Whether there is any limit at all.
    """

    def __init__(self, settings: RateSettings, tenants: tuple[TenantSettings, ...] = ()) -> None:
        self._usual = {
            RateOf.DEVICE: _Rate(settings.device_per_s, settings.device_burst),
            RateOf.TENANT: _Rate(settings.tenant_per_s, settings.tenant_burst),
        }
        self._own = {
            tenant.name: {
                RateOf.DEVICE: _Rate(tenant.device_jobs_per_s, tenant.device_jobs_burst or 0),
                RateOf.TENANT: _Rate(tenant.jobs_per_s, tenant.jobs_burst or 0),
            }
            for tenant in tenants
        }
        self._buckets: dict[tuple[RateOf, str], TokenBucket] = {}
        self._most = _SPARE
        self.are_set = any(
            rate.per_s is not None
            for rates in (self._usual, *self._own.values())
            for rate in rates.values()
        )

    def excess(self, device: DeviceId, tenant: str, now_ms: int) -> Excess | None:
        """Return what a new job would exceed longest; None: it may come in."""
        found = list[Excess]()
        for of, name in ((RateOf.DEVICE, str(device)), (RateOf.TENANT, tenant)):
            per_s, _ = self._rate(of, tenant)
            bucket = self._buckets.get((of, name))
            wait_ms = 0 if bucket is None or per_s is None else bucket.wait_ms(now_ms)
            if wait_ms and per_s is not None:
                found.append(Excess(of, per_s, wait_ms))
        return max(found, key=lambda excess: excess.wait_ms, default=None)

    def count(self, device: DeviceId, tenant: str, now_ms: int) -> None:
        """Take note of a job that came in."""
        for of, name in ((RateOf.DEVICE, str(device)), (RateOf.TENANT, tenant)):
            per_s, burst = self._rate(of, tenant)
            if per_s is None:
                continue
            bucket = self._buckets.get((of, name))
            if bucket is None:
                self._forget(now_ms)
                bucket = self._buckets[of, name] = TokenBucket(per_s, burst)
            bucket.reserve(now_ms)

    def _rate(self, of: RateOf, tenant: str) -> _Rate:
        """Return a tenant's own rate, or what is usual; each where it says nothing."""
        usual, own = self._usual[of], self._own.get(tenant)
        if own is None:
            return usual
        return _Rate(own[of].per_s or usual.per_s, own[of].burst or usual.burst)

    def _forget(self, now_ms: int) -> None:
        """A full bucket is as good as none."""
        if len(self._buckets) >= self._most:
            self._buckets = {
                name: bucket for name, bucket in self._buckets.items() if not bucket.is_full(now_ms)
            }
            self._most = 2 * len(self._buckets) + _SPARE
