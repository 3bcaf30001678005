"""The dispatcher's beat, with doors out that take everything; `tests/live/test_dispatcher.py` has the real ones."""

import asyncio
from datetime import UTC, datetime
from itertools import count

import pytest
from sqlalchemy import insert

from hub.domain.delivery import Placed, ReadBack
from hub.domain.trust import Directory, IdentifierSystems, Site, TrustProfile
from hub.services.dispatcher import Dispatcher, DispatcherConfig, to_next_beat
from hub.store import outbox
from hub.store.engine import open_engine
from hub.store.tables import metadata
from hub.store.tables import outbox as table
from hub.telemetry.log import get_log

TAKES_S = {"RA9": 0, "RH8": 0.04, "RK9": 0.08}


@pytest.mark.parametrize("done_at", [100.0, 100.01, 100.149])
def test_whoever_is_done_when_goes_on_at_the_same_moment(done_at):
    assert done_at + to_next_beat(0.15, done_at) == pytest.approx(100.05 if done_at < 100.05 else 100.2)


def test_without_a_beat_nobody_waits():
    assert to_next_beat(0, 100.0) == 0


def directory():
    systems = IdentifierSystems(patient="urn:p", encounter="urn:e", request="urn:r")
    return Directory(
        TrustProfile(
            ods=ods,
            name=ods,
            illustration=True,
            epr="none",
            sites=(Site(ods=ods, name=ods),),
            identifier_systems=systems,
        )
        for ods in TAKES_S
    )


@pytest.fixture
async def engine(tmp_path):
    engine = open_engine(f"sqlite+aiosqlite:///{tmp_path}/hub.db")
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield engine
    await engine.dispose()


async def write(engine, ods):
    row = {
        "receiver": ods,
        "topic": f"hub.{ods.lower()}.inbox",
        "key": "k",
        "headers": {},
        "payload": b"{}",
        "event_id": f"e-{ods}",
        "created_at": datetime.now(UTC),
    }
    async with engine.begin() as connection:
        await connection.execute(insert(table), [row])


class Door:
    """Takes what it is given, in its receiver's own time; then there is one more."""

    def __init__(self, ods, engine):
        self._ods, self._engine, self._offsets = ods, engine, count()

    async def start(self):
        pass

    close = start

    async def read_back(self, topics, known):
        return ReadBack()

    async def send(self, rows):
        await asyncio.sleep(TAKES_S[self._ods])
        await write(self._engine, self._ods)
        return [Placed(row.seq, row.topic, 0, next(self._offsets), row.event_id) for row in rows]


async def test_receivers_that_are_behind_begin_together_however_long_each_takes(engine, monkeypatch):
    looked, enough, look = [], asyncio.Event(), outbox.pending_of_each

    async def looking(store, receivers, limit, now):
        looked.append(set(receivers))
        if len(looked) == 12:
            enough.set()
        return await look(store, receivers, limit, now)

    monkeypatch.setattr(outbox, "pending_of_each", looking)
    for ods in TAKES_S:
        await write(engine, ods)
    stop = asyncio.Event()
    dispatcher = Dispatcher(
        engine,
        directory(),
        lambda ods: Door(ods, engine),
        get_log(service="dispatcher"),
        DispatcherConfig(gather_s=0.3),
    )
    task = asyncio.create_task(dispatcher.run(stop))
    await asyncio.wait_for(enough.wait(), 60)
    stop.set()
    await asyncio.wait_for(task, 30)

    together = [each for each in looked if each == set(TAKES_S)]
    assert len(together) > len(looked) / 2, looked
