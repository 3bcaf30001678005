"""Where every partition stands, in the store: what a worker starts from, and what it remembers about trouble there."""

import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import case, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.audit.entries import AuditEntry, Code, Outcome
from hub.domain.ids import OdsCode
from hub.store import tables as t
from hub.store.intake import PartitionKey
from hub.store.unit_of_work import insert_ignoring
from hub.store.write import write_audit


class Positions:
    """See the methods. Every one is a transaction of its own; the database's errors come through as they are."""

    def __init__(self, engine: AsyncEngine, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._clock = clock

    async def load(self, partitions: Iterable[PartitionKey]) -> dict[PartitionKey, int]:
        """The next offset of each partition that was ever read."""
        p = t.position
        async with self._engine.connect() as connection:
            rows = await connection.execute(
                select(p.c.topic, p.c.partition, p.c.next_offset).where(
                    tuple_(p.c.topic, p.c.partition).in_(sorted(partitions))
                )
            )
            return {(row.topic, row.partition): row.next_offset for row in rows}

    async def take_up(self, starts: Mapping[PartitionKey, int]) -> dict[PartitionKey, int]:
        """Note that these partitions are being read from these offsets. Returns how often each was taken up at
        its offset without getting past it, this time included.
        """
        p = t.position
        async with self._engine.begin() as connection:
            for (topic, partition), offset in sorted(starts.items()):
                await _ensure(connection, topic, partition, offset)
                await connection.execute(
                    update(p)
                    .where(p.c.topic == topic, p.c.partition == partition)
                    .values(
                        taken_up=case((p.c.taken_up_at == offset, p.c.taken_up + 1), else_=1),
                        taken_up_at=offset,
                    )
                )
            rows = await connection.execute(
                select(p.c.topic, p.c.partition, p.c.taken_up).where(
                    tuple_(p.c.topic, p.c.partition).in_(sorted(starts))
                )
            )
            return {(row.topic, row.partition): row.taken_up for row in rows}

    async def begin_suspect(self, partition: PartitionKey, offset: int) -> int:
        """Note, before a message is tried by itself, that it is. Returns how often it was, this time included."""
        p = t.position
        this = (p.c.topic == partition[0], p.c.partition == partition[1])
        async with self._engine.begin() as connection:
            await _ensure(connection, *partition, offset)
            await connection.execute(
                update(p)
                .where(*this)
                .values(
                    suspect_begun=case((p.c.suspect_offset == offset, p.c.suspect_begun + 1), else_=1),
                    suspect_offset=offset,
                )
            )
            return int((await connection.execute(select(p.c.suspect_begun).where(*this))).scalar_one())

    async def skip_to(self, partition: PartitionKey, offset: int) -> None:
        """Move on to where the topic begins now; the messages before it are gone from Kafka."""
        p = t.position
        async with self._engine.begin() as connection:
            await connection.execute(
                update(p)
                .where(p.c.topic == partition[0], p.c.partition == partition[1], p.c.next_offset < offset)
                .values(next_offset=offset)
            )

    async def braked(self) -> frozenset[OdsCode]:
        """The trusts that are paused."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(select(t.brake.c.trust).where(t.brake.c.pulled))
            return frozenset(OdsCode(row.trust) for row in rows)

    async def open_incident(self, kind: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Open an incident and write it into the audit; the same one is not opened twice while it is open."""
        now, i = self._clock(), t.incident
        async with self._engine.begin() as connection:
            same = select(i.c.incident_id).where(
                i.c.kind == kind, i.c.subject == subject, i.c.closed_at.is_(None)
            )
            if (await connection.execute(same)).first() is not None:
                return
            row = {
                "incident_id": str(uuid.uuid4()),
                "kind": kind,
                "subject": subject,
                "opened_at": now,
                "detail": dict(detail),
            }
            await connection.execute(i.insert(), [row])
            said = {"incident": row["incident_id"], "kind": kind, "subject": subject, **detail}
            await write_audit(
                connection,
                [AuditEntry(Code.INCIDENT_OPENED, now, "worker", Outcome.MAJOR_FAILURE, detail=said)],
            )


async def _ensure(connection: AsyncConnection, topic: str, partition: int, offset: int) -> None:
    row = {"topic": topic, "partition": partition, "next_offset": offset, "taken_up": 0, "suspect_begun": 0}
    await connection.execute(insert_ignoring(connection, t.position), [row])
