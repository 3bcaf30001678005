"""Opening the database: PostgreSQL or SQLite, with the settings each needs to keep what it was given."""

from typing import Any

import orjson
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from hub.store.bulk import dumps


def open_engine(
    url: str,
    *,
    patience_s: float = 5,
    pool_size: int = 7,
    idle_in_transaction_s: float = 60,
    long_statements: bool = False,
) -> AsyncEngine:
    """An engine for ``url``. No connection is made yet.

    ``idle_in_transaction_s``: PostgreSQL ends a transaction whose process has stood still for so long, and lets go of its locks.

    ``patience_s`` bounds connecting, waiting for a lock and any one statement, so that a database that
    is gone is an error and not a silence. ``long_statements``: a statement may take as long as it takes.
    """
    common: dict[str, Any] = {"json_serializer": dumps, "json_deserializer": orjson.loads}
    if url.startswith("sqlite"):
        engine = create_async_engine(url, connect_args={"timeout": patience_s}, **common)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_immediate)
        return engine
    return create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,  # one beyond the pool is closed after each use: connecting costs more than the work
        pool_timeout=patience_s,
        pool_pre_ping=False,
        connect_args={
            "timeout": patience_s,
            "command_timeout": None if long_statements else patience_s * 6,
            "server_settings": {
                "application_name": "transfer-hub",
                # A generic plan is made when the tables are empty and reads them whole ever after.
                "plan_cache_mode": "force_custom_plan",
                "lock_timeout": str(int(patience_s * 1000)),
                "idle_in_transaction_session_timeout": str(int(idle_in_transaction_s * 1000)),
            },
        },
        **common,
    )


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # The driver must not begin transactions by itself: _begin_immediate does.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    # Take the write lock at once: upgrading a read transaction later fails instead of waiting.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def is_sqlite(engine: AsyncEngine) -> bool:
    """One machine, one worker, no row locks."""
    return engine.dialect.name == "sqlite"


async def room_for_locks(engine: AsyncEngine) -> int | None:
    """How many locks PostgreSQL can hold at once for everybody (its manual, Lock Management); None on SQLite, which has none."""
    if is_sqlite(engine):
        return None
    settings = "max_locks_per_transaction", "max_connections", "max_prepared_transactions"
    async with engine.connect() as connection:
        each, connections, prepared = [
            int(await connection.scalar(text(f"SHOW {name}")) or 0) for name in settings
        ]
    return each * (connections + prepared)
