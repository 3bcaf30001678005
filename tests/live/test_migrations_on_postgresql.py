"""The same on PostgreSQL: what is in the database when it is brought up to date is there afterwards. And what is there only:
tables so large that an upgrade takes its time, services that work on them, two that upgrade at once.
"""

import asyncio
import os
import subprocess
import sys
import uuid

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from hub.store import schema
from hub.store.engine import open_engine
from hub.store.grants import ROLE
from tests.unit.store.test_migrations import *  # noqa: F403
from tests.unit.store.test_migrations import bring_to


@pytest.fixture
async def engine(postgres):
    name = f"migrated_{uuid.uuid4().hex}"
    postgres.create_database(name)
    engine = open_engine(postgres.url(name))
    yield engine
    await engine.dispose()
    postgres.drop_database(name)


def hub_db_upgrade(engine):
    """As it is run: with patience for 0.1 s, so that a statement of a service may take 0.6."""
    return hub_db(engine.url, "upgrade", HUB_STORE_PATIENCE_S="0.1")


def hub_db(url, *arguments, **more):
    said = {"HUB_DATABASE_URL": url.render_as_string(hide_password=False), **more}
    command = [sys.executable, "-m", "hub.cli", "db", *arguments]
    return asyncio.to_thread(
        subprocess.run, command, env={**os.environ, **said}, capture_output=True, text=True, check=False
    )


async def test_an_upgrade_takes_as_long_as_its_tables_are_large(engine):
    """Building an index over a year of messages takes minutes. A limit would be reached each time anew, and the hub stay down."""
    await bring_to(engine, "0012")
    slowly = """
        CREATE FUNCTION takes_a_second() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1); END';
        CREATE EVENT TRIGGER large_tables ON ddl_command_start WHEN TAG IN ('ALTER TABLE')
          EXECUTE FUNCTION takes_a_second();
    """
    async with engine.begin() as connection:
        for statement in slowly.strip().split(";\n"):
            await connection.execute(text(statement))
    done = await hub_db_upgrade(engine)
    assert (done.returncode, done.stderr) == (0, "")
    assert await schema.current(engine) == schema.head()


async def test_an_upgrade_under_a_service_that_works_says_so_and_changes_nothing(engine):
    await bring_to(engine, "0012")
    async with engine.begin() as service:
        await service.execute(text("LOCK TABLE person IN ROW EXCLUSIVE MODE"))
        done = await hub_db_upgrade(engine)
    assert (done.returncode, "Stop the hub's services" in done.stderr) == (1, True), done.stderr
    assert await schema.current(engine) == "0012"
    assert (await hub_db_upgrade(engine)).returncode == 0


@pytest.mark.parametrize(
    ("version", "drops", "write"),
    [
        (
            "0008",
            "DROP TABLE",
            "insert into audit_pending (code, at, outcome, system, detail) values ('routed', now(), 0, 'x', '{}')",
        ),
        (
            "0014",
            "DROP TRIGGER",
            "insert into audit_entry (leaf_index, hash, entry, code, at, outcome, system, detail) values (7, '', 7, 'routed', now(), 0, 'x', '{}')",
        ),
    ],
)
async def test_no_entry_is_lost_that_a_service_nobody_stopped_writes_while_the_log_is_carried_over(
    engine, version, drops, write
):
    """It commits after the entries were copied and before their table goes."""
    await bring_to(engine, version)
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "CREATE FUNCTION takes_a_second() RETURNS event_trigger LANGUAGE plpgsql"
                " AS 'BEGIN PERFORM pg_sleep(1); END'"
            )
        )
        await connection.execute(
            text(
                f"CREATE EVENT TRIGGER large_tables ON ddl_command_start WHEN TAG IN ('{drops}')"
                " EXECUTE FUNCTION takes_a_second()"
            )
        )
    upgrading = asyncio.create_task(schema.upgrade(engine))
    await until_it_sleeps(engine)
    with pytest.raises(DBAPIError):
        async with engine.begin() as service:
            await service.execute(text(write))
    await upgrading
    assert await schema.current(engine) == schema.head()


async def until_it_sleeps(engine):
    async with asyncio.timeout(20), engine.connect() as connection:
        asleep = "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"
        while not await connection.scalar(text(asleep)):
            await asyncio.sleep(0.02)
            await connection.rollback()


async def test_of_two_that_upgrade_at_once_both_end_well(engine):
    """Each machine that is started anew runs it first."""
    other = open_engine(engine.url.render_as_string(hide_password=False))
    done = await asyncio.gather(schema.upgrade(engine), schema.upgrade(other))
    await other.dispose()
    assert sorted(done, key=str) == [(schema.head(), schema.head()), (None, schema.head())]


async def test_who_is_not_the_owner_is_told_so_and_not_that_the_database_is_away(engine):
    """At night, after a backup was put back, with the services' address still in the environment."""
    await schema.upgrade(engine)
    user = f"service_{uuid.uuid4().hex}"
    async with engine.begin() as connection:
        await connection.execute(text(f"CREATE USER {user} PASSWORD 'x' IN ROLE {ROLE}"))
    try:
        url = engine.url.set(username=user, password="x")
        done = await hub_db(url, "restored", "--because", "the disk was lost")
        assert (done.returncode, "as the owner of the tables" in done.stderr) == (1, True), done.stderr
    finally:
        async with engine.begin() as connection:
            await connection.execute(text(f"DROP USER {user}"))
