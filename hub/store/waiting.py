"""Audit entries that wait to be sealed: what one transaction wrote is one row, whatever the number of entries.

Each transaction writes here, so it must cost little: no index but the number, and one row instead of seven for each message. The
sealer reads the rows as they were written; whoever asks the book reads the view `audit_pending`, which shows the entries
one by one.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, Table, event, select
from sqlalchemy.ext.asyncio import AsyncConnection

from hub.store.tables import audit_batch

BATCH_MAX = 1000
"""Entries in one row: entry n of a batch (from 0) has the number batch · 1000 + n."""

_BETWEEN = b",\n"
"""Between two entries. A line break is escaped within JSON, so it is nowhere else."""


class Waiting(NamedTuple):
    """An entry that waits: its number, and what it says as it will be hashed (`hub.audit.leaf.said_bytes`)."""

    entry: int
    said: bytes


def rows(said: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    """What entries say, as rows of `audit_batch`."""
    for at in range(0, len(said), BATCH_MAX):
        lines = said[at : at + BATCH_MAX]
        yield {"size": len(lines), "entries": f"[{_BETWEEN.join(lines).decode()}]"}


def entries(batch: int, text: str) -> Iterator[Waiting]:
    """The entries of a row, in the order in which they were written."""
    lines = text[1:-1].encode().split(_BETWEEN)
    return (Waiting(batch * BATCH_MAX + at, line) for at, line in enumerate(lines))


async def waits_since(connection: AsyncConnection) -> datetime | None:
    """When the entry with the lowest number was written; None if nothing waits."""
    first = select(audit_batch.c.batch, audit_batch.c.entries).order_by(audit_batch.c.batch).limit(1)
    row = (await connection.execute(first)).one_or_none()
    if row is None:
        return None
    return datetime.fromisoformat(orjson.loads(next(entries(*row)).said)["at"])


# -- the view ---------------------------------------------------------------------------------------------------

_TYPES = {
    "code": "text",
    "at": "timestamptz",
    "occurred_at": "timestamptz",
    "outcome": "integer",
    "trust": "text",
    "system": "text",
    "counterpart": "text",
    "event_id": "text",
    "person_id": "text",
    "transfer_id": "text",
    "request_id": "text",
    "user_id": "text",
    "role_id": "text",
    "client_id": "text",
    "detail": "json",
}


def view(dialect: str) -> str:
    """What makes `audit_pending`. ``dialect``: postgresql or sqlite."""
    return _on_postgresql() if dialect == "postgresql" else _on_sqlite()


def _on_postgresql() -> str:
    typed = ", ".join(f"{name} {type_}" for name, type_ in _TYPES.items())
    names = ", ".join(_TYPES)
    return f"""
    CREATE VIEW audit_pending AS
    SELECT batch * {BATCH_MAX} + nr - 1 AS entry, {names}
    FROM audit_batch, ROWS FROM (json_to_recordset(entries::json) AS ({typed})) WITH ORDINALITY AS said({names}, nr)
    """  # noqa: S608 - names of ours


def _on_sqlite() -> str:
    names = ", ".join(f"{_of_sqlite(name, type_)} AS {name}" for name, type_ in _TYPES.items())
    return f"""
    CREATE VIEW audit_pending AS
    SELECT batch * {BATCH_MAX} + said.key AS entry, {names}
    FROM audit_batch, json_each(entries) AS said
    """  # noqa: S608 - names of ours


def _of_sqlite(name: str, type_: str) -> str:
    field = f"json_extract(said.value, '$.{name}')"
    # As SQLite's dialect writes times: 2026-03-01 09:10:00.000000, in UTC.
    return f"replace(substr({field}, 1, 26), 'T', ' ')" if type_ == "timestamptz" else field


@event.listens_for(audit_batch, "after_create")
def _with_its_view(_: Table, connection: Connection, **_more: Any) -> None:
    connection.exec_driver_sql(view(connection.dialect.name))
