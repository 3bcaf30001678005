"""The journeys of `test_journeys` again, through a broker and real processes.

Each story is first told to the one transaction alone (SQLite, a clock in the hand), which keeps what every hospital sent. The
same messages then go to the hospitals' topics, for patients and requests of each story's own, so that all stories can run at once;
and what the processes made of each story must be what the transaction made of it.
"""

import asyncio
import functools
import inspect
import itertools
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hub.demo.epr import Message
from hub.demo.people import PEOPLE, patient_number
from hub.store.engine import open_engine
from tests.stories import test_journeys
from tests.stories.conftest import TRUSTS, Hub

HOSPITALS = {"torbay": "RA9", "exeter": "RH8", "plymouth": "RK9"}
LEFT_OUT = {
    "test_a_shared_record_system_echoes_and_only_the_owners_word_counts": "it changes trusts' profiles",
    "test_a_merge_that_names_the_survivor_by_a_resource_id_alone_and_its_unmerge": "the duty team acts in it",
    "test_an_nhs_number_without_a_date_of_birth_is_a_question": "the duty team acts in it",
    "test_two_open_transfers_and_a_discharge_that_does_not_say_where_is_a_question": "the duty team acts in it",
    "test_nobody_asked_but_the_patient_came_from_another_hospital": "it quotes the id that the hub gave its transfer",
    "test_an_earlier_stay_at_the_receiver_is_another_story": "what it waits for is that nothing happens",
}
"""Stories that are more than what hospitals send."""


def stories():
    """Every journey that needs nothing but hospitals and messages; of one told in many orders the first and the last."""
    for name, story in inspect.getmembers(test_journeys, inspect.iscoroutinefunction):
        if not name.startswith("test_") or name in LEFT_OUT:
            continue
        cases = [({}, "")]
        for mark in getattr(story, "pytestmark", ()):
            names, values = [mark.args[0]] if isinstance(mark.args[0], str) else mark.args[0], mark.args[1]
            rows = [(value,) if len(names) == 1 else value for value in values]
            cases = [
                (dict(zip(names, row, strict=True)), f"[{place}]")
                for place, row in enumerate(rows)
                if len(rows) < 5 or row in (rows[0], rows[-1])
            ]
        for fixed, mark in cases:
            yield name + mark, functools.partial(story, **fixed)


@dataclass
class Told:
    """One story as it was told to the transaction alone."""

    name: str
    messages: list[tuple[str, Message]]
    dispositions: list[str]
    states: Counter
    inboxes: Counter


class _Recording(Hub):
    """Keeps what the hospitals send."""

    def __init__(self, engine):
        super().__init__(engine)
        self.clock.now = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
        self.sent = []

    async def take(self, batch, **more):
        self.sent += [
            (each.trust, Message(dict(each.headers), each.key, each.raw), each.event_id) for each in batch
        ]
        return await super().take(batch, **more)


async def told(name, story, store_url):
    """Tell one story and keep it."""
    engine = open_engine(store_url)
    hub = _Recording(engine)
    hospitals = {each: hub.trust(ods) for each, ods in HOSPITALS.items()}
    given = {"hub": hub, **hospitals}
    wanted = inspect.signature(story).parameters.keys() - story.keywords
    await story(**{each: given[each] for each in wanted})
    outcomes = [await hub.outcome(event_id) for _, _, event_id in hub.sent]
    inboxes = await inboxes_of({ods: await hub.inbox(ods) for ods in HOSPITALS.values()})
    states = Counter([await hub.state(each) for each in {o.transfer_id for o in outcomes if o.transfer_id}])
    await engine.dispose()
    messages = [(ods, message) for ods, message, _ in hub.sent]
    return Told(name, messages, [each.disposition for each in outcomes], states, inboxes)


async def told_alone(folder, empty):
    """Every story, each in a copy of the empty database."""
    everything = []
    for name, story in stories():
        path = folder / f"{name}.db"
        shutil.copy(empty, path)
        everything.append(await told(name, story, f"sqlite+aiosqlite:///{path}"))
        path.unlink()
    return everything


async def inboxes_of(records):
    """How each transfer was told at each hospital: what came, in the order in which it came."""
    found = {}
    for ods, inbox in records.items():
        for record in inbox:
            found.setdefault((ods, record.key), []).append(record.event_type)
    return Counter((ods, tuple(types)) for (ods, _), types in found.items())


_numbers = itertools.count(850_000, len(PEOPLE))


def with_its_own_people(story):
    """The same story with patients, requests and conversations that no other story has."""
    first = next(_numbers)
    mark = uuid.uuid4().hex[:8]
    words = {b'"TR-': f'"{mark}-TR-'.encode()}
    for place, person in enumerate(PEOPLE):
        other = patient_number(first + place)
        words[person.nhs_number.encode()] = other.nhs_number.encode()
        words |= {person.local[ods].encode(): other.local[ods].encode() for ods in HOSPITALS.values()}
    ids = {}
    for ods, message in story.messages:
        body = message.body
        for before, after in words.items():
            body = body.replace(before, after)
        said = dict(message.headers)
        said["x-request-id"] = ids.setdefault(said.get("x-request-id"), str(uuid.uuid4()))
        if "x-correlation-id" in said:
            said["x-correlation-id"] += mark
        key = next((after for before, after in words.items() if before == message.key), message.key)
        yield ods, Message(said, key, body)


@dataclass
class Broker:
    """How the messages get in, and how it is seen what became of them."""

    produce: Callable[[str, Message], Awaitable[None]]
    rows: Callable[[str], Awaitable[list]]


async def replay(broker, story):
    """One story's messages, each when the one before is taken in; the ids they had, in order."""
    ids = []
    for ods, message in with_its_own_people(story):
        await broker.produce(ods, message)
        ids.append((ods, message.headers["x-request-id"]))
        times = sum(each == ids[-1] for each in ids)
        deadline = time.monotonic() + 60
        question = f"select event_id, disposition, trust from message where message_id = '{ids[-1][1]}' and trust = '{ods}'"
        while len(found := await broker.rows(question)) < times:
            assert time.monotonic() < deadline, f"{story.name}: a message of {ods} was not taken in"
            await asyncio.sleep(0.05)
    return [each[1] for each in ids], found


async def became(broker, story, message_ids, inboxes):
    """What the processes made of it, in the form of `Told`. ``inboxes``: ODS → records of the topic."""
    listed = ", ".join(f"'{each}'" for each in message_ids)
    rows = await broker.rows(
        f"select m.message_id, m.event_id, m.disposition, e.transfer_id from message m left join event e on e.event_id = m.event_id where m.message_id in ({listed}) order by m.received_at, m.event_id"
    )
    events = {row["event_id"] for row in rows}
    transfers = {row["transfer_id"] for row in rows if row["transfer_id"]}
    names = ", ".join(f"'{each}'" for each in transfers) or "''"
    states = await broker.rows(f"select state from transfer where transfer_id in ({names})")
    mine = {ods: [r for r in records if r.headers["event-id"] in events] for ods, records in inboxes.items()}
    return Told(
        story.name,
        [],
        [row["disposition"] for row in rows],
        Counter(row["state"] for row in states),
        await inboxes_of(mine),
    )


@dataclass
class Seen:
    """A record in a hospital's inbox."""

    key: str
    headers: dict

    @property
    def event_type(self):
        return self.headers["event-type"]


def seen(record):
    """A consumer's record as `Seen`."""
    return Seen(record.key.decode(), {name: value.decode() for name, value in record.headers})


async def tell_them_all(broker, everything, on, until_delivered):
    """All stories at once; then each is what it was when it was told to the transaction alone."""
    results = await asyncio.gather(*(replay(broker, story) for story in everything))
    await until_delivered()
    inboxes = {ods: [seen(r) for r in await on(TRUSTS[ods].inbox_topic)] for ods in HOSPITALS.values()}
    wrong = []
    for story, (message_ids, _) in zip(everything, results, strict=True):
        now = await became(broker, story, message_ids, inboxes)
        for what in ("dispositions", "states", "inboxes"):
            before, after = getattr(story, what), getattr(now, what)
            if sorted(before) != sorted(after) if what == "dispositions" else before != after:
                wrong.append(f"{story.name}: {what} were {before} and are {after}")
    assert wrong == [], "\n".join(wrong)


def as_bytes(message):
    """Headers as a producer wants them."""
    return [(name, value.encode()) for name, value in message.headers.items()]
