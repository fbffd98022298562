"""A PostgreSQL database that several dispatchers share, as one of them sees it.

All SQL is in `queries/postgres_cluster.sql`, with how members are kept from each other's business.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Unpack

import msgspec
import psycopg

from cloud_dispatcher.adapters.connection_postgres import FENCED_HINT, Conn
from cloud_dispatcher.adapters.schema_postgres import statements
from cloud_dispatcher.adapters.store_postgres import (
    PostgresJobStore,
    SavedTurn,
    StoreOptions,
    run_named,
)
from cloud_dispatcher.adapters.turn_postgres import Statement, add_spends, one_statement, write_jobs
from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.members import Figures, Member, MemberId
from cloud_dispatcher.membership import MemberFencedError
from fleet_protocol.messages import DeviceId, JobId, JobKey, WorkerId

_ELSEWHERE_S: Final = 2.0
"""So long a job stays with its worker, for whoever gets that; then anybody may have it."""
_HANDED_OVER: Final = 1
_ADOPTED: Final = 2
_encode: Final = msgspec.msgpack.Encoder().encode
_decode_figures: Final = msgspec.msgpack.Decoder(Figures).decode


class PostgresClusterStore(PostgresJobStore):
    """A `ClusterStore`; its tables are made if they are missing.

    Args:
        url: See `PostgresJobStore`; so are the others that are not named here.
        member: Who we will be.
        lease_s: How long we are a member without being heard of.
    """

    def __init__(
        self,
        url: str,
        *,
        member: Member,
        lease_s: float = 5.0,
        **options: Unpack[StoreOptions],
    ) -> None:
        super().__init__(url, **options)
        self.me: Final = member.id
        self.name: Final = member.name
        self._lease_s = lease_s
        self._writer = member.id
        self._received: dict[int, list[JobKey]] = {_HANDED_OVER: [], _ADOPTED: []}
        """What was given to us and came through; the database hears of it with the next call."""

    async def join(self) -> None:
        """Become a member. An earlier run of the same name is over."""
        await self._change("join", self.me, self.name, self._lease_s)

    async def leave(self) -> None:
        """Be a member no more: what is ours is for the others."""
        await self._change("leave", self.me)

    async def beat(self, figures: Figures) -> Sequence[Member]:
        """Renew our lease, end those that ran out, and return who is there, oldest first."""
        rows = await self._read("beat", (self.me, _encode(figures)))
        return [_member(*row) for row in rows]

    async def load_open(self) -> list[Job]:
        """Return nothing: nothing is ours yet."""
        return []

    async def claim(
        self,
        names: Collection[tuple[DeviceId, JobId]],
        *,
        release: Collection[tuple[DeviceId, JobId]] = (),
    ) -> frozenset[tuple[DeviceId, JobId]]:
        """Return those names that nobody else is about to save a job under; they are ours now."""
        columns = (*_two_columns(sorted(set(names))), *_two_columns(sorted(set(release))))
        rows = await self._read("claim_names", (self.me, *columns))
        return frozenset((DeviceId(device), JobId(job)) for device, job in rows)

    async def owners(self, keys: Iterable[JobKey]) -> Mapping[JobKey, MemberId]:
        """Return whose these jobs are; those of nobody who is there are left out."""
        rows = await self._read("owners", (list(keys),))
        return {JobKey(key): MemberId(member) for key, member in rows}

    async def take(self, key: JobKey) -> bool:
        """Make a finished job ours whose owner is gone; return whether it is ours now."""
        (taken,) = await self._as_member(("take", (self.me, key, self.me)))
        return taken.rowcount > 0

    async def hand_over(self, keys: Collection[JobKey], to: MemberId) -> bool:
        """Let another member have jobs of ours; False: it is gone, and they are ours still."""

        async def work(conn: Conn) -> bool:
            async with conn.transaction():
                await run_named(conn, "require_member", (self.me,))
                if (await run_named(conn, "lock_taker", (to,))).rowcount == 0:
                    return False
                await run_named(conn, "hand_over", (to, list(keys), self.me))
                return True

        given = await self._others.run(work)
        if given:
            for key in keys:
                self._saved.pop(key, None)
        return given

    async def receive(self) -> list[Job]:
        """Return the jobs that were handed over to us since the last call, oldest first."""
        return await self._given(_HANDED_OVER)

    async def adopt(self, workers: Collection[WorkerId], *, limit: int) -> list[Job]:
        """Make jobs ours whose owner is gone, and return them, oldest first."""
        mine = list(workers)
        chosen = (mine, _ELSEWHERE_S, mine, limit, self.me)
        return await self._given(_ADOPTED, ("adopt", chosen), ("clear_graves", ()))

    async def claim_workers(
        self, workers: Collection[WorkerId], *, most: int
    ) -> frozenset[WorkerId]:
        """Return those that are ours now, because they were nobody's; at most so many."""
        chosen = (list(workers), self.me, most, self.me)
        (granted,) = await self._as_member(("claim_boards", chosen))
        return frozenset(WorkerId(worker) for (worker,) in await granted.fetchall())

    async def release_workers(self, workers: Collection[WorkerId]) -> None:
        """Let others have workers of ours."""
        await self._as_member(("release_boards", (list(workers), self.me)))

    async def owner_of(self, worker: WorkerId) -> MemberId | None:
        """Return whose a worker is."""
        rows = await self._read("owner_of_board", (worker,))
        return MemberId(rows[0][0]) if rows else None

    # ------------------------------------------------------------ as a member

    async def _given(self, how: int, *changes: Statement) -> list[Job]:
        """Confirm what came through before, and return what we were given since.

        Told again until it is confirmed: an answer of the database may be lost, a job may not.
        """
        received = self._received[how]
        steps = (("received", (received, self.me)), *changes, ("given", (self.me, how)))
        *_, given = await self._as_member(*steps)
        jobs = self._jobs(await given.fetchall())
        self._received[how] = [job.key for job in jobs]
        self._saved.update((job.key, job) for job in jobs)
        return jobs

    async def _as_member(self, *changes: Statement) -> list[psycopg.AsyncCursor[tuple[Any, ...]]]:
        """Make changes in one transaction, while we are a member."""

        async def work(conn: Conn) -> list[psycopg.AsyncCursor[tuple[Any, ...]]]:
            async with conn.pipeline():
                await run_named(conn, "begin")
                await run_named(conn, "require_member", (self.me,))
                done = [await run_named(conn, name, values) for name, values in changes]
                await run_named(conn, "commit")
            return done

        return await self._others.run(work)

    async def _enter(self, conn: Conn) -> None:
        await self._lock(conn, "keep_out_loners")

    async def _commit(self, conn: Conn, turn: SavedTurn) -> None:
        try:
            await super()._commit(conn, turn)
        except psycopg.errors.UniqueViolation as error:
            raise MemberFencedError(
                f"a job of this name is another member's: {error.diag.message_detail}",
                hint=FENCED_HINT,
            ) from error

    def _statement(self, turn: SavedTurn) -> tuple[str, list[object]]:
        """Save jobs as ours, if each of them is ours or nobody's."""
        jobs = [_of(self.me, change) for change in write_jobs(turn.jobs, self._saved, self._blobs)]
        counts = [f"(SELECT count(*) FROM {name})" for name, _ in jobs]  # noqa: S608 - our own
        touched = " + ".join(counts) or "0"
        last = statements()["note_turn_as_member"].replace("{touched}", touched)
        note = (self.me, self._link, self._sent, len(turn.jobs))
        texts = {**statements(), "note_turn_as_member": last}
        changes = [*jobs, *add_spends(turn.spends)]
        return one_statement(changes, ("note_turn_as_member", note), texts)


def _of(member: MemberId, change: Statement) -> Statement:
    name, columns = change
    if name == "upsert_job":
        return f"{name}_of_ours", (member, *columns)
    return f"{name}_of_ours", (*columns, member)


def _two_columns(names: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
    pairs = list(names)
    return [device for device, _ in pairs], [job for _, job in pairs]


def _member(member: str, name: str, figures: bytes | None) -> Member:
    known = Figures() if figures is None else _decode_figures(figures)
    return Member(id=MemberId(member), name=name, figures=known)
