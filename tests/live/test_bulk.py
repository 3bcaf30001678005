"""Rows arrive as they were written, with their transaction or not at all, whichever way they travel."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import JSON, Column, Integer, LargeBinary, MetaData, String, Table, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from hub.store.bulk import JsonText, insert_rows, update_rows
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


async def test_json_that_is_text_already_is_stored_as_it_stands(engine):
    said = ['{"b": 1.50}', "[]"]
    rows = [{"id": number, **FULL, "said": JsonText(text)} for number, text in enumerate(said)]
    async with engine.begin() as connection:
        await insert_rows(connection, TABLE, rows)
        inserted = (await connection.execute(text("select said::text from bulk order by id"))).scalars().all()
        await update_rows(connection, TABLE, ["id"], rows[:1])
        updated = await connection.scalar(text("select said::text from bulk where id = 0"))
    assert inserted == said
    assert updated == said[0]


@pytest.fixture
async def engine(database_url):
    engine = open_engine(database_url, pool_size=1)
    async with engine.begin() as connection:
        await connection.run_sync(TABLE.metadata.create_all)
    yield engine
    await engine.dispose()


async def ids(engine):
    async with engine.connect() as connection:
        return list((await connection.execute(select(TABLE.c.id).order_by(TABLE.c.id))).scalars())


async def test_rows_written_before_anything_else_are_taken_back_with_their_transaction(engine):
    """A COPY passes by SQLAlchemy, which has not begun the transaction then."""
    async with engine.connect() as connection:
        await insert_rows(connection, TABLE, [{"id": 1, **FULL}])
        await connection.rollback()
    assert await ids(engine) == []


async def test_a_row_that_is_there_is_an_integrity_error_and_says_nothing_of_the_row(engine):
    async with engine.begin() as connection:
        await insert_rows(connection, TABLE, [{"id": 1, **FULL}])
    with pytest.raises(IntegrityError) as refused:
        async with engine.begin() as connection:
            await insert_rows(connection, TABLE, [{"id": 2, "text": "x"}, {"id": 1, "text": "Marshwiggle"}])
    assert refused.value.orig.sqlstate == "23505"
    assert refused.value.params is None
    assert await ids(engine) == [1]


async def test_a_connection_that_is_lost_meanwhile_is_not_used_again(engine):
    other = open_engine(engine.url.render_as_string(hide_password=False))
    async with engine.connect() as connection:
        mine = await connection.scalar(text("select pg_backend_pid()"))
        async with other.begin() as killer:
            await killer.execute(text("select pg_terminate_backend(:pid)"), {"pid": mine})
        with pytest.raises(DBAPIError):
            await insert_rows(connection, TABLE, [{"id": 1, **FULL}])
    await other.dispose()
    async with engine.begin() as connection:
        await insert_rows(connection, TABLE, [{"id": 2, **FULL}])
    assert await ids(engine) == [2]
