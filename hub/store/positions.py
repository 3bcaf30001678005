"""Where each partition stands, in the database. Implements `hub.sources.positions.Positions`."""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, func, select, tuple_, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.domain.ids import OdsCode
from hub.domain.incident import IncidentKind
from hub.store.bulk import insert_ignoring
from hub.store.incidents import close_incident, open_incident, open_incidents
from hub.store.intake import PartitionKey, StoreUnavailableError
from hub.store.tables import brake, position
from hub.telemetry.log import fault_of

UNTIL_SET = (IncidentKind.POSITION_ABOVE_END, IncidentKind.TOPIC_MADE_ANEW)
"""Incidents that end when a person says from where to read (`hub positions set`)."""

_p = position.c


class StoredPositions:
    """One transaction per call. Every method raises StoreUnavailableError when it could not be written."""

    def __init__(self, engine: AsyncEngine, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._clock = clock

    async def load(self, keys: Iterable[PartitionKey]) -> dict[PartitionKey, int]:
        """See Positions."""
        async with self._transaction() as connection:
            return {(row.topic, row.partition): row.next_offset for row in await _rows(connection, keys)}

    async def take_up(self, starts: Mapping[PartitionKey, int]) -> dict[PartitionKey, int]:
        """See Positions."""
        times: dict[PartitionKey, int] = {}
        if not starts:
            return times
        async with self._transaction() as connection:
            now = self._clock()
            await _meet(connection, starts, now)
            for row in await _rows(connection, starts, lock=True):
                key = (row.topic, row.partition)
                again = row.taken_up_at == row.next_offset
                taken_up = row.taken_up + 1 if again else 1
                unfinished = (
                    row.suspect_begun > 0
                    and row.suspect_offset is not None
                    and row.suspect_offset >= row.next_offset
                )
                times[key] = max(taken_up, 2) if unfinished else taken_up
                await connection.execute(
                    update(position).where(_is(key)).values(taken_up_at=row.next_offset, taken_up=taken_up)
                )
        return times

    async def lay_down(self, keys: Iterable[PartitionKey]) -> None:
        """See Positions."""
        wanted = sorted(keys)
        if not wanted:
            return
        async with self._transaction() as connection:
            await connection.execute(
                update(position)
                .where(
                    tuple_(_p.topic, _p.partition).in_(wanted),
                    _p.taken_up_at == _p.next_offset,
                    _p.taken_up > 0,
                )
                # Deaths before this taking up still count; only this one was none.
                .values(taken_up=_p.taken_up - 1)
            )

    async def begin_suspect(self, topic: str, partition: int, offset: int) -> int:
        """See Positions. The partition must have been taken up."""
        key = (topic, partition)
        async with self._transaction() as connection:
            row = (await _rows(connection, [key], lock=True))[0]
            begun: int = row.suspect_begun + 1 if row.suspect_offset == offset else 1
            await connection.execute(
                update(position).where(_is(key)).values(suspect_offset=offset, suspect_begun=begun)
            )
        return begun

    async def acquit(self, topic: str, partition: int, offset: int) -> None:
        """See Positions."""
        async with self._transaction() as connection:
            await connection.execute(
                update(position)
                .where(_is((topic, partition)), _p.suspect_offset == offset, _p.suspect_begun > 0)
                .values(suspect_begun=_p.suspect_begun - 1)
            )

    async def braked(self) -> frozenset[OdsCode]:
        """See Positions."""
        async with self._transaction() as connection:
            trusts = (await connection.execute(select(brake.c.trust).where(brake.c.pulled))).scalars()
            return frozenset(OdsCode(trust) for trust in trusts)

    async def lost(self, key: PartitionKey, position: int, first: int) -> None:
        """See Positions. Where the position has moved on meanwhile, nothing is done."""
        async with self._transaction() as connection:
            await _meet(connection, {key: position}, self._clock())
            row = (await _rows(connection, [key], lock=True))[0]
            if row.next_offset != position:
                return
            # Every loss is an incident of its own: another range may be lost before the first is acknowledged.
            await self._open(
                connection,
                IncidentKind.MESSAGES_LOST,
                f"{_name(key)} {position}-{first - 1}",
                {"from": position, "to": first - 1},
                key,
            )
            await self._move(connection, key, first)

    async def missing(self, topics: Collection[str], there: Collection[str]) -> None:
        """See Positions."""
        async with self._transaction() as connection:
            read = (
                select(_p.topic, func.max(_p.moved_at).label("moved_at"))
                .where(_p.topic.in_(topics), _p.next_offset > 0)
                .group_by(_p.topic)
            )
            known = await open_incidents(connection, IncidentKind.TOPIC_MISSING)
            for row in (await connection.execute(read)).all():
                # Several workers see it; by when it last moved they open one incident.
                await open_incident(
                    connection,
                    IncidentKind.TOPIC_MISSING,
                    row.topic,
                    {"topic": row.topic},
                    "worker",
                    self._clock(),
                    since=row.moved_at,
                )
            for topic in sorted(known.keys() & set(there)):
                await close_incident(connection, known[topic], "it is there", "worker", self._clock())

    async def last_taken(self, keys: Iterable[PartitionKey]) -> dict[PartitionKey, tuple[int, str]]:
        """See Positions."""
        async with self._transaction() as connection:
            return {
                (row.topic, row.partition): (row.last_offset, row.last_sha256)
                for row in await _rows(connection, keys)
                if row.last_offset is not None
            }

    async def made_anew(self, key: PartitionKey, position: int, offset: int) -> None:
        """See Positions."""
        async with self._transaction() as connection:
            await _rows(connection, [key], lock=True)
            detail = {"position": position, "offset": offset}
            await self._open(connection, IncidentKind.TOPIC_MADE_ANEW, _name(key), detail, key)

    async def refused(self, keys: Collection[PartitionKey]) -> set[PartitionKey]:
        """See Positions."""
        async with self._transaction() as connection:
            subjects = {subject for kind in UNTIL_SET for subject in await open_incidents(connection, kind)}
        return {key for key in keys if _name(key) in subjects}

    async def out_of_reach(self, key: PartitionKey, position: int, end: int) -> None:
        """See Positions."""
        async with self._transaction() as connection:
            await _rows(connection, [key], lock=True)
            await self._open(
                connection,
                IncidentKind.POSITION_ABOVE_END,
                _name(key),
                {"position": position, "end": end},
                key,
            )

    async def _move(self, connection: AsyncConnection, key: PartitionKey, offset: int) -> None:
        values = {
            "next_offset": offset,
            "moved_at": self._clock(),
            "suspect_offset": None,
            "suspect_begun": 0,
        }
        await connection.execute(update(position).where(_is(key)).values(**values))

    async def _open(
        self,
        connection: AsyncConnection,
        kind: IncidentKind,
        subject: str,
        detail: Mapping[str, Any],
        key: PartitionKey,
    ) -> None:
        """The caller holds the partition's row lock."""
        full = {"topic": key[0], "partition": key[1], **detail}
        await open_incident(connection, kind, subject, full, "worker", self._clock())

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._engine.begin() as connection:
                yield connection
        except (OSError, TimeoutError, SQLAlchemyError) as error:
            raise StoreUnavailableError(fault_of(error)) from error


async def _meet(connection: AsyncConnection, starts: Mapping[PartitionKey, int], now: datetime) -> None:
    """Partitions that were never read have their start as their position; the others keep theirs."""
    rows = [
        {
            "topic": topic,
            "partition": partition,
            "next_offset": start,
            "moved_at": now,
            "taken_up": 0,
            "suspect_begun": 0,
        }
        for (topic, partition), start in sorted(starts.items())
    ]
    await connection.execute(insert_ignoring(connection, position), rows)


def _is(key: PartitionKey) -> ColumnElement[bool]:
    return and_(_p.topic == key[0], _p.partition == key[1])


def _name(key: PartitionKey) -> str:
    return f"{key[0]}/{key[1]}"


async def _rows(
    connection: AsyncConnection, keys: Iterable[PartitionKey], *, lock: bool = False
) -> list[Row[Any]]:
    """The rows of these partitions, in one order everywhere, so that two workers cannot lock crosswise."""
    query = (
        select(position)
        .where(tuple_(_p.topic, _p.partition).in_(sorted(keys)))
        .order_by(_p.topic, _p.partition)
    )
    return list((await connection.execute(query.with_for_update() if lock else query)).all())
