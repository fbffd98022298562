"""Which store there is, by the settings. PostgreSQL's is imported only where it is used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import parse_qs, urlsplit

import msgspec

from cloud_dispatcher.adapters.job_rows import PLAIN, Blobs
from cloud_dispatcher.adapters.secret_file import read_secret
from cloud_dispatcher.adapters.store_sqlite import SqliteJobStore, Synchronous, probe
from cloud_dispatcher.core.members import Member
from cloud_dispatcher.membership import ClusterStore
from cloud_dispatcher.ports import JobStore
from fleet_protocol.errors import ConfigError

_SCHEMES: Final = frozenset({"postgresql", "postgres"})
_SECRETS: Final = frozenset({"password", "sslpassword"})


class StoreSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where jobs are kept.

    Attributes:
        path: The SQLite file; its folder is made if it is missing. With `url` only its name counts:
            the note of the dispatcher's clock lies beside it.
        url: A PostgreSQL database instead, `postgresql://ROLE@HOST/DATABASE`, as libpq reads it.
        password_file: File whose first line is the role's password; None: libpq looks for it, in
            PGPASSWORD and in the password file.
        synchronous: `full`: what was acknowledged survives a power cut. `normal`: it survives a
            crash of the dispatcher; a power cut may take the last moments.
        cache_mb: Most megabytes of cached answers in it; 0: none.
        key_file: Keys that seal what was asked and answered, one a line: the first seals, all
            open. None: it is kept as it is.
    """

    path: Annotated[str, msgspec.Meta(min_length=1)] = "dispatcher.db"
    url: str | None = None
    password_file: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    synchronous: Synchronous = "full"
    cache_mb: Annotated[int, msgspec.Meta(ge=0, le=1_048_576)] = 64
    key_file: Annotated[str, msgspec.Meta(min_length=1)] | None = None

    def __post_init__(self) -> None:
        if self.url is None:
            if self.password_file is not None:
                raise ValueError("store.password_file is for store.url, which is not set")
            return
        parts = urlsplit(self.url)
        if parts.scheme not in _SCHEMES:
            raise ValueError(f"store url {parts.scheme}://… is not postgresql://…")
        if parts.password is not None or not _SECRETS.isdisjoint(parse_qs(parts.query)):
            raise ValueError(
                "store url has a password in it, where others see it: use password_file, PGPASSWORD"
                " or a password file of libpq's"
            )


def build_store(settings: StoreSettings) -> JobStore:
    """Return the store, not open yet.

    Raises:
        ConfigError: What it needs is not installed, or the URL is none.
    """
    blobs = _blobs(settings)
    if settings.url is None:
        return SqliteJobStore(
            Path(settings.path),
            synchronous=settings.synchronous,
            cache_mb=settings.cache_mb,
            blobs=blobs,
        )
    with _psycopg_needed():
        from cloud_dispatcher.adapters.store_postgres import PostgresJobStore  # noqa: PLC0415
    return PostgresJobStore(
        settings.url,
        password=_password(settings),
        synchronous=settings.synchronous,
        cache_mb=settings.cache_mb,
        blobs=blobs,
    )


def build_cluster_store(settings: StoreSettings, member: Member, *, lease_s: float) -> ClusterStore:
    """Return the store that several dispatchers share, as that member sees it; not open yet.

    Raises:
        ConfigError: Nothing is set that they could share, or see `build_store`.
    """
    if settings.url is None:
        raise ConfigError(
            "several dispatchers need a database that they share, and store.url is not set",
            hint="set it to postgresql://ROLE@HOST/DATABASE, the same for all of them",
        )
    with _psycopg_needed():
        from cloud_dispatcher.adapters.cluster_postgres import PostgresClusterStore  # noqa: PLC0415
    return PostgresClusterStore(
        settings.url,
        member=member,
        lease_s=lease_s,
        password=_password(settings),
        synchronous=settings.synchronous,
        cache_mb=settings.cache_mb,
        blobs=_blobs(settings),
    )


async def probe_store(settings: StoreSettings) -> str:
    """Look whether the store can be used, without changing anything; say what is there.

    Raises:
        StoreUnavailableError: It cannot be used now.
        ConfigError: It cannot be used as things are set.
    """
    if settings.url is None:
        return await asyncio.to_thread(probe, Path(settings.path))
    with _psycopg_needed():
        from cloud_dispatcher.adapters import store_postgres  # noqa: PLC0415
    return await store_postgres.probe(settings.url, password=_password(settings))


def _password(settings: StoreSettings) -> Callable[[], str | None]:
    """Read anew at each connection: it may have been changed meanwhile."""
    file = settings.password_file
    return lambda: None if file is None else read_secret(file, "store.password_file")


def _blobs(settings: StoreSettings) -> Blobs:
    if settings.key_file is None:
        return PLAIN
    try:
        # Only here: a store that is not sealed needs no cryptography.
        from cloud_dispatcher.adapters.sealed_blobs import SealedBlobs  # noqa: PLC0415 - see above
    except ImportError as error:
        raise ConfigError(
            f"store.key_file needs cryptography, which cannot be loaded: {error}",
            hint="pip install 'edgefleet[cloud,pki]'",
        ) from error
    return SealedBlobs(Path(settings.key_file))


@contextmanager
def _psycopg_needed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"store.url needs psycopg, which cannot be loaded: {error}",
            hint="pip install 'edgefleet[cloud,postgres]'",
        ) from error
