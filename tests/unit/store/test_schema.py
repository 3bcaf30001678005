"""A program works on a database of its own version only."""

import pytest
from sqlalchemy import text

from hub.store import schema
from hub.store.engine import open_engine


@pytest.fixture
async def engine(tmp_path):
    engine = open_engine(f"sqlite+aiosqlite:///{tmp_path}/hub.db")
    yield engine
    await engine.dispose()


async def at(engine, version):
    async with engine.begin() as connection:
        await connection.execute(text("update alembic_version set version_num = :v"), {"v": version})


async def test_an_empty_an_old_and_a_newer_database_are_refused_with_what_to_do(engine):
    with pytest.raises(schema.SchemaError, match="Run: hub db upgrade"):
        await schema.require_current(engine)
    assert await schema.upgrade(engine) == (None, schema.head())
    await schema.require_current(engine)
    await at(engine, "0001")
    with pytest.raises(schema.SchemaError, match="at version 0001, this program needs"):
        await schema.require_current(engine)
    await at(engine, "9999")
    with pytest.raises(schema.SchemaError, match="newer than this program"):
        await schema.require_current(engine)


async def test_an_older_program_does_not_touch_a_newer_database(engine):
    """As when a version is taken back: whoever does it is told what the database is, and by no traceback."""
    await schema.upgrade(engine)
    await at(engine, "9999")
    with pytest.raises(schema.SchemaError, match="at version 9999, newer than this program"):
        await schema.upgrade(engine)
    assert await schema.current(engine) == "9999"
