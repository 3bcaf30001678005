"""Rows that travel as arrays arrive as they were written."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import JSON, Column, Integer, LargeBinary, MetaData, String, Table, select

from hub.store.bulk import insert_rows, update_rows
from hub.store.engine import open_engine
from hub.store.tables import UtcDateTime

pytestmark = pytest.mark.live

TABLE = Table(
    "bulk",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("text", String(20)),
    Column("at", UtcDateTime),
    Column("said", JSON(none_as_null=True)),
    Column("body", LargeBinary),
)
AT = datetime(2026, 1, 15, 12, 0, 0, 123456, tzinfo=UTC)
EMPTY = {"text": None, "at": None, "said": None, "body": None}
FULL = {"text": "a", "at": AT, "said": {"b": [None, "ü"]}, "body": b"\x00c"}
SOME = [
    [EMPTY],
    [EMPTY, EMPTY],
    [FULL, EMPTY],
    [EMPTY, FULL],
    [EMPTY | {"text": "a"}, EMPTY | {"at": AT}, EMPTY],
]


@pytest.mark.parametrize("rows", SOME)
async def test_columns_without_a_value_and_with_some(database_url, rows):
    rows = [{"id": number, **row} for number, row in enumerate(rows)]
    engine = open_engine(database_url)
    async with engine.begin() as connection:
        await connection.run_sync(TABLE.metadata.create_all)
        await insert_rows(connection, TABLE, rows)
        inserted = [
            dict(row._mapping) for row in await connection.execute(select(TABLE).order_by(TABLE.c.id))
        ]
        await update_rows(connection, TABLE, ["id"], [{"id": row["id"], **EMPTY} for row in rows])
        await update_rows(connection, TABLE, ["id"], rows)
        updated = [dict(row._mapping) for row in await connection.execute(select(TABLE).order_by(TABLE.c.id))]
    await engine.dispose()

    assert inserted == updated == rows
