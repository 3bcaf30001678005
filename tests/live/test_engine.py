"""What the hub asks of PostgreSQL for every session."""

import asyncio
import contextlib
import os
import subprocess
import sys

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from hub import wiring
from hub.settings import HubSettings
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


@contextlib.asynccontextmanager
async def passed_on(url):
    """The database behind somebody who passes on what is said, until told not to: as a firewall that forgets a connection."""
    to, passes = make_url(url), asyncio.Event()
    passes.set()
    carriers = set()

    async def carry(reader, writer):
        with contextlib.suppress(OSError):
            while said := await reader.read(65_536):
                await passes.wait()
                writer.write(said)
                await writer.drain()
        await passes.wait()
        writer.close()

    async def meet(reader, writer):
        carriers.add(asyncio.current_task())
        there, back = await asyncio.open_connection(to.host, to.port)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(carry(reader, back), carry(there, writer))

    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield to.set(host="127.0.0.1", port=port).render_as_string(hide_password=False), passes
    finally:
        server.close()
        for each in carriers:
            each.cancel()
        await asyncio.gather(*carriers, return_exceptions=True)


async def test_a_service_can_leave_while_the_database_is_silent(database_url):
    """Asked to end, or ended by a fault: a process that stays is taken for one that works."""
    async with (
        passed_on(database_url) as (url, passes),
        asyncio.timeout(15),
        wiring.opened(HubSettings(database_url=url), check_schema=False) as engine,
    ):
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        passes.clear()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"username": "somebody-else", "password": "not-told"}, "lets nobody in with this user and password"),
        ({"database": "not-there"}, "has no database of the name"),
    ],
)
def test_who_is_not_let_in_reads_why_and_no_name(database_url, wrong, said):
    """Before, it was "cannot be used (Error)", whatever was wrong."""
    url = make_url(database_url).set(**wrong).render_as_string(hide_password=False)
    command = [sys.executable, "-m", "hub.cli", "db", "upgrade"]
    given = {**os.environ, "HUB_DATABASE_URL": url}
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, said in done.stderr) == (1, "", True), done.stderr
    assert not any(each in done.stderr for each in [*wrong.values(), make_url(url).host])
