"""A hub in a test: the one transaction on a fresh database, a clock held in the hand, and hospitals that write to it.

After every story five things are looked at again, whatever it was about: each message ended in exactly one disposition
and was told so; no word of a patient is in the audit, the receipts' diagnostics, `message` or the log; every
transfer's state is the fold of its facts; and the audit, sealed, is exported and verified as intact.
"""

import asyncio
import re
import shutil
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import orjson
import pytest
from sqlalchemy import select

from hub.demo.epr import Epr, Message
from hub.demo.people import PEOPLE
from hub.domain.ids import EventId, OdsCode, time_ordered_id
from hub.domain.message import Position, Received
from hub.domain.transfer import final_state, fold
from hub.domain.trust import Directory
from hub.journey.decide import Journey
from hub.store import book, queries, schema
from hub.store import tables as t
from hub.store.engine import open_engine
from hub.store.load import with_facts
from hub.store.unit_of_work import UnitOfWork
from hub.telemetry.log import vocabulary
from hub.trusts import load_books, load_clocks, load_directory
from tests.harness.audit_events import keep_audit_events
from tests.harness.log import SIGNER, exported, seal_all, verified

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
TRUSTS = load_directory(SCHEMAS)
JOURNEY = Journey(TRUSTS, books=load_books(SCHEMAS, TRUSTS), clocks=load_clocks(SCHEMAS, TRUSTS))


class Clock:
    """Stands still until somebody turns it."""

    def __init__(self):
        self.now = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)

    def __call__(self):
        return self.now

    def at(self, hour, minute=0):
        self.now = self.now.replace(hour=hour, minute=minute)
        return self.now

    def later(self, **time):
        self.now += timedelta(**time)
        return self.now


class Lines:
    """The log, kept; a word that is not in the vocabulary fails the story."""

    def __init__(self):
        self.lines = []

    def _write(self, level, event, bound):
        assert event in vocabulary()
        self.lines.append({"level": level, "event": event, **bound})

    def info(self, event, **bound):
        self._write("info", event, bound)

    def warning(self, event, **bound):
        self._write("warning", event, bound)

    def error(self, event, **bound):
        self._write("error", event, bound)

    def bind(self, **_):
        return self


@dataclass(frozen=True)
class Outcome:
    """What became of one message."""

    event_id: str
    disposition: str
    why: str | None
    at: str
    detail: str
    receipt: dict
    transfer_id: str | None
    flags: tuple
    row: dict

    def __str__(self):
        return f"{self.disposition}: {self.why} at {self.at}" if self.why else self.disposition


@dataclass(frozen=True)
class Record:
    """One outbox row, decoded."""

    receiver: str
    topic: str
    key: str
    headers: dict
    bundle: dict

    def of(self, resource_type):
        """The first resource of a type."""
        return next(
            (e["resource"] for e in self.bundle["entry"] if e["resource"]["resourceType"] == resource_type),
            None,
        )

    @property
    def event_type(self):
        return self.headers.get("event-type")


class Hospital:
    """One trust's record system, connected: `Epr`'s calls, `at` being now if not said, taken in and answered."""

    def __init__(self, hub, ods):
        self.hub, self.ods, self.profile = hub, ods, TRUSTS[ods]
        self.epr = Epr(self.profile)
        self.topic = self.profile.events_topic

    def __getattr__(self, name):
        make = getattr(self.epr, name)

        async def call(*args, **kwargs):
            return await self.send(make(*args, **({"at": self.hub.clock()} | kwargs)))

        return call

    def record(self, message, *, offset=None, headers=None, key=b"k", partition=0):
        """The Kafka record a message becomes, at the next offset; bytes alone get an x-request-id of their own."""
        if isinstance(message, bytes):
            said = {"x-request-id": str(uuid.uuid4())} if headers is None else headers
            message = Message(said, key, message)
        offset = (
            next(self.hub.offsets.setdefault((self.topic, partition), count())) if offset is None else offset
        )
        now = self.hub.clock()
        return Received(
            event_id=EventId(time_ordered_id(now, self.topic, partition, offset)),
            trust=OdsCode(self.ods),
            position=Position(self.topic, partition, offset),
            headers=message.headers,
            key=message.key,
            raw=message.body,
            received_at=now,
        )

    async def send(self, message, **how):
        record = self.record(message, **how)
        await self.hub.take([record])
        return await self.hub.outcome(record.event_id)


def edited(message, change, **headers):
    """The same message with something changed in its tree, under a new id."""
    tree = orjson.loads(message.body)
    tree = change(tree) or tree
    return Message(
        {**message.headers, "x-request-id": str(uuid.uuid4()), **headers}, message.key, orjson.dumps(tree)
    )


def resources(tree, resource_type):
    """The resources of a type in a Bundle's tree."""
    return [e["resource"] for e in tree["entry"] if e["resource"]["resourceType"] == resource_type]


class Hub:
    def __init__(self, engine):
        self.engine, self.clock, self.log = engine, Clock(), Lines()
        self.journey = JOURNEY
        self.offsets, self.in_a_row_max, self.expected = {}, 50, 0
        self.signers, self.broken = [SIGNER], False
        self.mend()

    def mend(self, *, trusts=None, profiles=None, rules=None, limits=None, in_a_row_max=None):
        """Start again with other rules or other trusts."""
        if trusts is not None:
            self.journey = replace(self.journey, directory=Directory(TRUSTS[ods] for ods in trusts))
        if profiles is not None:
            self.journey = replace(self.journey, directory=Directory(profiles))
        self.journey = replace(
            self.journey, rules=rules or self.journey.rules, limits=limits or self.journey.limits
        )
        self.in_a_row_max = in_a_row_max or self.in_a_row_max
        self.unit = UnitOfWork(
            self.engine, self.journey, self.clock, self.log, quarantine_in_a_row_max=self.in_a_row_max
        )

    def trust(self, ods):
        return Hospital(self, ods)

    async def take(self, batch, **more):
        taken = await self.unit.take(batch, **more)
        self.expected += sum(taken.dispositions.values())
        return taken

    async def rows(self, table, *where):
        async with self.engine.connect() as connection:
            key = [table.c.entry] if table.name == "book" else list(table.primary_key.columns)
            found = await connection.execute(select(table).where(*where).order_by(*key))
            return [dict(row) for row in found.mappings().all()]

    async def outcome(self, event_id):
        row = (await self.rows(t.message, t.message.c.event_id == event_id))[0]
        event = next(iter(await self.rows(t.event, t.event.c.event_id == event_id)), {})
        receipt = [
            r for r in await self._outbox(t.outbox.c.event_id == event_id) if r.topic.endswith(".receipts")
        ][-1]
        return Outcome(
            event_id,
            row["disposition"],
            row["why"],
            row["at"],
            row["detail"],
            receipt,
            event.get("transfer_id"),
            tuple(flag["code"] for flag in event.get("flags", ())),
            row,
        )

    async def _outbox(self, *where):
        return [
            Record(row["receiver"], row["topic"], row["key"], row["headers"], orjson.loads(row["payload"]))
            for row in await self.rows(t.outbox, *where)
        ]

    async def inbox(self, ods):
        return await self._outbox(t.outbox.c.topic == TRUSTS[ods].inbox_topic)

    async def told(self, ods):
        """The event types in a trust's inbox, in order."""
        return [record.event_type for record in await self.inbox(ods)]

    async def receipts(self, ods):
        return await self._outbox(t.outbox.c.topic == TRUSTS[ods].receipts_topic)

    async def audit(self, *, event_id=None, transfer_id=None, code=None):
        a = book.whole()
        where = [
            c == v
            for c, v in ((a.c.event_id, event_id), (a.c.transfer_id, transfer_id), (a.c.code, code))
            if v
        ]
        return await self.rows(a, *where)

    async def codes(self, outcome):
        return [entry["code"] for entry in await self.audit(event_id=outcome.event_id)]

    async def state(self, transfer_id):
        return (await self.rows(t.transfer, t.transfer.c.transfer_id == transfer_id))[0]["state"]

    async def states(self, transfer_id):
        """The states a transfer had, in the order in which the hub learned of them."""
        return [row["to_state"] for row in await queries.transfer_history(self.engine, transfer_id)]

    async def position(self, ods, partition=0):
        p = t.position
        rows = await self.rows(p, p.c.topic == TRUSTS[ods].events_topic, p.c.partition == partition)
        return rows[0]["next_offset"] if rows else None

    async def counts(self):
        """How many rows each table has."""
        return {
            table.name: len(await self.rows(table))
            for table in t.metadata.sorted_tables
            if table.primary_key.columns
        }

    async def raw(self, outcome):
        return (await queries.message(self.engine, outcome.event_id))[1]


async def look_again(hub):
    """What must be so after every story."""
    messages = await hub.rows(t.message)
    receipts = [row for row in await hub.rows(t.outbox) if row["topic"].endswith(".receipts")]
    audit = await hub.rows(book.whole())
    assert len(messages) == hub.expected
    for message in messages:
        told = [row for row in receipts if row["event_id"] == message["event_id"]]
        # What came over REST was told in the answer.
        assert len(told) == (message["topic"] is not None) + message["retries"]
        heard = [e for e in audit if e["event_id"] == message["event_id"] and e["code"] == "msg-received"]
        assert hub.broken or len(heard) == 1 + message["retries"]
    assert leaks(audit, receipts, messages, hub.log.lines) == []
    if audit and not hub.broken:
        await seal_all(hub.engine, signers=hub.signers)
        assert verified(await exported(hub.engine), signers=hub.signers).findings == ()
        await keep_audit_events(hub.engine)
    async with hub.engine.connect() as connection:
        rows = (await connection.execute(select(t.transfer))).all()
        for transfer in await with_facts(connection, rows):
            assert transfer.state == final_state(fold(transfer.facts))
            assert transfer.version == len(transfer.facts)


PERSONAL = re.compile(
    "|".join(
        rf"\b{re.escape(word)}\b"
        for p in PEOPLE
        for word in (
            p.family, p.given, p.nhs_number, f"{p.nhs_number[:3]} {p.nhs_number[3:6]} {p.nhs_number[6:]}",
            p.birth_date.isoformat(), f"{p.birth_date:%d/%m/%Y}", *p.local.values(),
        )
    ),
    re.IGNORECASE,
)  # fmt: skip


def leaks(audit, receipts, messages, lines):
    """Every word about a patient where none may be."""
    said = [orjson.dumps(entry["detail"]).decode() for entry in audit]
    said += [(row["payload"] or b"").decode() + orjson.dumps(row["headers"]).decode() for row in receipts]
    said += [f"{row['at']} {row['detail']}" for row in messages]
    said += [str(line) for line in lines]
    return [found.group() for text in said for found in PERSONAL.finditer(text)]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A SQLite file at this program's version, made once by the migrations and copied for each story."""
    path = tmp_path_factory.mktemp("template") / "hub.db"

    async def make():
        engine = open_engine(f"sqlite+aiosqlite:///{path}")
        await schema.upgrade(engine)
        await (
            engine.dispose()
        )  # the last connection brings the write-ahead log into the one file that is copied

    asyncio.run(make())
    return path


@pytest.fixture(scope="session")
def store_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def store_url(store_folder, empty_database):
    for of_the_story_before in store_folder.iterdir():
        of_the_story_before.unlink()
    shutil.copy(empty_database, store_folder / "hub.db")
    return f"sqlite+aiosqlite:///{store_folder}/hub.db"


@pytest.fixture
def owner_url(store_url):
    """The database as the owner of its tables signs in."""
    return store_url


@pytest.fixture
async def hub(store_url, owner_url, engines):
    if store_url not in engines:
        engines[store_url] = open_engine(store_url)
    engine = engines[store_url]
    if await schema.current(engine) is None:
        await schema.upgrade(engine)
    hub = Hub(engine)
    hub.owner_url = owner_url
    yield hub
    await look_again(hub)
    await engine.dispose()


@pytest.fixture
def torbay(hub):
    return hub.trust("RA9")


@pytest.fixture
def exeter(hub):
    return hub.trust("RH8")


@pytest.fixture
def plymouth(hub):
    return hub.trust("RK9")


@pytest.fixture
def facade(hub):
    """The REST facade before the same hub."""
    from tests.stories.rest import facade_of

    return facade_of(hub)


@pytest.fixture
async def at_torbay(facade):
    """A system of Torbay's, signed in."""
    from tests.stories.rest import System

    return await (await System.join(facade, "RA9")).signed_in()


@pytest.fixture
async def at_exeter(facade):
    from tests.stories.rest import System

    return await (await System.join(facade, "RH8")).signed_in()
