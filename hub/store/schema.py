"""The database's schema: bringing it up to date, and refusing to work on an old one."""

import asyncio
from contextlib import suppress
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from hub.store import grants
from hub.store.bulk import is_postgresql

MIGRATIONS = Path(__file__).parent / "migrations"


class SchemaError(Exception):
    """The database is not at the version this program works with. The message names the command that mends it."""


class TablesInUseError(Exception):
    """Other transactions hold what the upgrade must have for itself. Nothing was changed."""


_UPGRADING = 4_206_014
"""The advisory lock of whoever upgrades."""
_IN_USE = {"55P03", "40P01"}
"""PostgreSQL's lock_not_available and deadlock_detected."""


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """The version this program works with."""
    found = ScriptDirectory.from_config(_config()).get_current_head()
    assert found is not None, "there is at least one migration"
    return found


async def current(engine: AsyncEngine) -> str | None:
    """The version the database is at; None if nothing was ever made in it."""
    async with engine.connect() as connection:
        return await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())


async def upgrade(engine: AsyncEngine) -> tuple[str | None, str]:
    """Bring the database to this program's version. Returns the versions before and after.
    What the hub's services may do is granted each time (`hub.store.grants`).

    Of two at once the second finds all done. Raises TablesInUseError; SchemaError if the database is newer than this program.
    """
    try:
        return await _upgrade(engine)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in _IN_USE:
            raise TablesInUseError(
                "Somebody works on the tables, and the upgrade did not get them for itself in time: nothing was changed. "
                "Stop the hub's services, and what else holds a transaction open, and run hub db upgrade again."
            ) from error
        raise


async def _upgrade(engine: AsyncEngine) -> tuple[str | None, str]:
    async with engine.begin() as connection:
        if is_postgresql(connection):
            await connection.execute(select(func.pg_advisory_xact_lock(_UPGRADING)))
        before = await connection.run_sync(
            lambda sync: MigrationContext.configure(sync).get_current_revision()
        )
        _require_known(before)
        await connection.run_sync(lambda sync: command.upgrade(_config(sync), "head"))
        if is_postgresql(connection):
            for statement in grants.statements():
                await connection.exec_driver_sql(statement)
    return before, head()


async def require_current(engine: AsyncEngine) -> None:
    """Raise SchemaError unless the database is at this program's version."""
    found = await current(engine)
    if found == head():
        return
    _require_known(found)
    raise SchemaError(
        f"The database is at version {found or 'none'}, this program needs {head()}. Run: hub db upgrade"
    )


async def changed(engine: AsyncEngine, every_s: float) -> None:
    """Returns once the database is at another version than this program's; looks so often. One that is away is no answer."""
    wanted = head()
    while True:
        await asyncio.sleep(every_s)
        with suppress(OSError, TimeoutError, SQLAlchemyError):
            async with engine.connect() as connection:
                found = await connection.scalar(text("SELECT version_num FROM alembic_version"))
            if found != wanted:
                return


def _require_known(found: str | None) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaError(
            f"The database is at version {found}, newer than this program ({head()}). Install the newer hub."
        )
