"""What the hub asks of PostgreSQL for every session."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from hub.store.engine import open_engine
from hub.telemetry.log import fault_of

pytestmark = pytest.mark.live
LOCK = text("SELECT pg_advisory_xact_lock(20261126)")


@pytest.fixture
async def engines(database_url):
    """One whose process will stand still for longer than it may, and one that waits half a second for a lock."""
    frozen = open_engine(database_url, idle_in_transaction_s=2)
    hasty = open_engine(database_url, patience_s=0.5)
    yield frozen, hasty
    for each in (frozen, hasty):
        await each.dispose()


async def test_who_stands_still_within_a_transaction_loses_it_and_the_others_go_on(engines):
    """A frozen worker keeps its patients' locks for a while and no longer; the others are told by its code what they wait for."""
    frozen, hasty = engines
    asleep = await frozen.connect()
    await asleep.execute(LOCK)
    with pytest.raises(DBAPIError) as told:
        async with hasty.begin() as awake:
            await awake.execute(LOCK)
    assert fault_of(told.value).startswith("DBAPIError 55P03 at ")

    await asyncio.sleep(2)
    async with hasty.begin() as awake:
        await awake.execute(LOCK)
    with pytest.raises(DBAPIError):
        await asleep.execute(LOCK)
    await asleep.close()
