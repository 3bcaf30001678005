"""Two workers share a trust's partitions on PostgreSQL: neither waits for the other, and neither undoes what the other did."""

import asyncio
import random
import uuid
from collections import Counter
from datetime import timedelta

import pytest
from sqlalchemy import select, text, update

from hub.demo.people import MARSHWIGGLE, QUILLFEATHER, patient_number
from hub.domain.ids import NHS_AUTHORITY, PersonKey
from hub.domain.rejection import Disposition
from hub.journey.known import Known
from hub.sources.kafka_config import WorkerConfig
from hub.sources.kafka_reader import Reader
from hub.sources.kafka_source import KafkaSource
from hub.store import people, queries, unit_of_work
from hub.store import tables as t
from hub.store.load import _persons
from hub.store.positions import StoredPositions
from hub.store.unit_of_work import UnitOfWork
from tests.harness.kafka_server import create_topics
from tests.live.test_stories import owner_url, store_url, stories_url  # noqa: F401 - fixtures
from tests.stories.conftest import exeter, hub, torbay  # noqa: F401 - fixtures
from tests.stories.test_mistaken_identity import tells, without_nhs_number

pytestmark = pytest.mark.live

PATIENCE_S = 20


class Held:
    """Two workers of one hub. The first one's transaction stands still before its positions are written, until it is let go."""

    def __init__(self, hub, monkeypatch):  # noqa: F811
        self.hub = hub
        self.first = UnitOfWork(
            hub.engine, hub.journey, hub.clock, hub.log, quarantine_in_a_row_max=hub.in_a_row_max
        )
        self.second = UnitOfWork(
            hub.engine, hub.journey, hub.clock, hub.log, quarantine_in_a_row_max=hub.in_a_row_max
        )
        self._there, self._on = asyncio.Event(), asyncio.Event()
        self._monkeypatch = monkeypatch

    async def before(self, step, batch):
        """The first worker takes ``batch`` up to this step of its transaction."""
        right, waits = getattr(unit_of_work, step), True

        async def wait(*args, **more):
            nonlocal waits
            if waits:
                waits = False
                self._there.set()
                await self._on.wait()
            return await right(*args, **more)

        self._monkeypatch.setattr(unit_of_work, step, wait)
        self._taking = asyncio.create_task(self.first.take(batch))
        async with asyncio.timeout(PATIENCE_S):
            await self._there.wait()

    async def beside(self, batch):
        """What the second worker makes of ``batch`` meanwhile."""
        async with asyncio.timeout(PATIENCE_S):
            return self._counted(await self.second.take(batch))

    async def goes_on(self):
        """What became of the first one's batch."""
        self._on.set()
        return self._counted(await self._taking)

    def _counted(self, taken):
        self.hub.expected += sum(taken.dispositions.values())
        return taken


@pytest.fixture
def held(hub, monkeypatch):  # noqa: F811
    hub.mend(in_a_row_max=4)
    return Held(hub, monkeypatch)


def bad(hospital, partition, count):
    return [hospital.record(uuid.uuid4().bytes, partition=partition) for _ in range(count)]


def good(hospital, partition, person):
    asked = hospital.epr.asks_to_transfer(
        person,
        to="RH8",
        request_number=f"TR-{partition}",
        encounter_number=f"V-{partition}",
        at=hospital.hub.clock(),
    )
    return hospital.record(asked, partition=partition)


async def the_brake(hub):  # noqa: F811
    row = (await hub.rows(t.brake))[0]
    return row["in_a_row"], row["pulled"]


async def test_a_trusts_other_partition_does_not_wait_for_the_one_that_is_being_taken_in(held, torbay):  # noqa: F811
    # A partition without a position yet has no row that anybody could wait for.
    await held.hub.take([], next_after={("epr.ra9.events", each): 0 for each in (0, 1)})
    await held.before("_write_positions", [good(torbay, 0, MARSHWIGGLE)])
    other = await held.beside([good(torbay, 1, QUILLFEATHER)])
    one = await held.goes_on()

    assert one.dispositions == other.dispositions == {Disposition.ACCEPTED: 1}
    assert [await held.hub.position("RA9", each) for each in (0, 1)] == [1, 1]


async def test_two_workers_that_hold_the_same_partition_for_a_moment_take_turns(held, torbay):  # noqa: F811
    """A rebalance: the second reads again what the first has not committed yet."""
    await held.hub.take([], next_after={("epr.ra9.events", 0): 0})
    batch = [good(torbay, 0, MARSHWIGGLE)]
    await held.before("_write_positions", batch)
    second = asyncio.create_task(held.beside(batch))
    await somebody_waits(held.hub)
    assert not second.done()
    one, other = await held.goes_on(), await second

    assert (one.dispositions, other.dispositions) == ({Disposition.ACCEPTED: 1}, {})
    assert len(await held.hub.rows(t.transfer)) == 1


async def test_a_merge_that_is_committed_while_its_patient_is_waited_for_is_seen(hub, torbay):  # noqa: F811
    """Else the survivor's new number would not be compared with the number of the record that was merged into it."""
    await hub.take([good(torbay, 0, MARSHWIGGLE), good(torbay, 1, QUILLFEATHER)])
    merged, survivor = [each["person_id"] for each in await hub.rows(t.person)]
    known = Known()

    async def look():
        async with hub.engine.begin() as connection:
            return await _persons(connection, {survivor}, known)

    async with hub.engine.begin() as connection:
        await connection.execute(select(t.person).where(t.person.c.person_id == survivor).with_for_update())
        await connection.execute(
            update(t.person).where(t.person.c.person_id == merged).values(merged_into=survivor)
        )
        looking = asyncio.create_task(look())
        await somebody_waits(hub)
    assert await looking == {merged, survivor}
    assert known.persons[merged].merged_into == survivor


async def take_the_number_of(hub, person):  # noqa: F811
    key, directory = PersonKey(NHS_AUTHORITY, MARSHWIGGLE.nhs_number), hub.journey.directory
    clocks, now = hub.journey.clocks, hub.clock()
    return await people.take_number(hub.engine, person, key, "phoned", directory, clocks, now, "duty")


async def numbers(hub):  # noqa: F811
    return {row["value"] for row in await hub.rows(t.person_identifier)}


async def test_a_number_that_a_worker_is_about_to_learn_is_taken_as_well(held, torbay):  # noqa: F811
    """The duty team waits for the batch, and sees what it learned."""
    hub = held.hub  # noqa: F811
    await hub.take([torbay.record(without_nhs_number(tells(torbay, "A28", MARSHWIGGLE)))])
    hub.clock.later(minutes=1)
    [his] = [each["person_id"] for each in await hub.rows(t.person)]
    await held.before("_write_positions", [torbay.record(tells(torbay, "A31", MARSHWIGGLE))])
    taking = asyncio.create_task(take_the_number_of(hub, his))
    await somebody_waits(hub)
    assert not taking.done()
    await held.goes_on()
    assert (await taking).record.id == his
    assert MARSHWIGGLE.nhs_number not in await numbers(hub)


async def test_a_message_that_comes_while_a_number_is_taken_is_a_question(hub, torbay, monkeypatch):  # noqa: F811
    """The worker waits for the duty team, and then knows what was said."""
    await hub.take([good(torbay, 0, MARSHWIGGLE)])
    [his] = [each["person_id"] for each in await hub.rows(t.person)]
    right, there, on = people.write_rung, asyncio.Event(), asyncio.Event()

    async def waits(*args):
        there.set()
        await on.wait()
        await right(*args)

    monkeypatch.setattr(people, "write_rung", waits)
    taking = asyncio.create_task(take_the_number_of(hub, his))
    async with asyncio.timeout(PATIENCE_S):
        await there.wait()
    hub.clock.later(minutes=1)
    claims = asyncio.create_task(hub.take([good(torbay, 0, MARSHWIGGLE)]))
    await somebody_waits(hub)
    on.set()
    await taking
    assert (await claims).dispositions == {Disposition.QUARANTINED: 1}
    assert MARSHWIGGLE.nhs_number not in await numbers(hub)


async def somebody_waits(hub):  # noqa: F811
    """Until a session of the database waits for a lock."""
    async with asyncio.timeout(PATIENCE_S), hub.engine.connect() as connection:
        while not await connection.scalar(text("select count(*) from pg_locks where not granted")):
            await asyncio.sleep(0.02)
            await connection.rollback()


async def test_messages_quarantined_at_the_same_moment_are_all_counted(held, torbay):  # noqa: F811
    await held.before("_write_brakes", bad(torbay, 0, 2))
    await held.beside(bad(torbay, 1, 2))
    taken = await held.goes_on()

    assert taken.braked == {"RA9"}
    assert await the_brake(held.hub) == (4, True)
    assert len(await held.hub.audit(code="brake-pulled")) == 1


async def test_a_brake_that_another_worker_pulled_meanwhile_stays_pulled(held, torbay):  # noqa: F811
    await held.hub.take(bad(torbay, 0, 1))
    await held.before("_write_brakes", [good(torbay, 0, MARSHWIGGLE)])
    await held.beside(bad(torbay, 1, 3))
    taken = await held.goes_on()

    assert taken.braked == {"RA9"}
    assert (await the_brake(held.hub))[1] is True
    assert len(await held.hub.audit(code="brake-pulled")) == 1


async def test_a_good_message_at_the_same_moment_begins_the_count_anew(held, torbay):  # noqa: F811
    await held.hub.take(bad(torbay, 0, 2))
    await held.before("_write_brakes", [good(torbay, 0, MARSHWIGGLE)])
    await held.beside(bad(torbay, 1, 1))
    taken = await held.goes_on()

    assert (taken.braked, await the_brake(held.hub)) == (frozenset(), (0, False))


async def test_a_batch_that_pulled_the_brake_pulls_it_whatever_another_counted_meanwhile(held, torbay):  # noqa: F811
    """It has left its last message alone: only a pause brings that back."""
    await held.hub.take(bad(torbay, 0, 3))
    await held.before("_write_brakes", bad(torbay, 0, 2))
    await held.beside([good(torbay, 1, MARSHWIGGLE)])
    taken = await held.goes_on()

    assert (taken.braked, await the_brake(held.hub)) == ({"RA9"}, (4, True))
    assert [each["detail"]["in_a_row"] for each in await held.hub.audit(code="brake-pulled")] == [4]
    assert await held.hub.position("RA9") == 4


async def test_a_brake_that_was_let_go_is_not_pulled_again_by_what_was_counted_before(held, torbay):  # noqa: F811
    await held.before("_write_brakes", bad(torbay, 0, 1))
    await held.beside(bad(torbay, 1, 4))
    await queries.release_brake(held.hub.engine, "RA9", "mended", held.hub.clock(), "ops-1")
    taken = await held.goes_on()

    assert (taken.braked, await the_brake(held.hub)) == (frozenset(), (1, False))


async def test_four_workers_meet_the_same_patients_from_two_hospitals(hub, torbay, exeter):  # noqa: F811
    """Forty journeys, each told by both hospitals at once, in whatever order the workers come to it."""
    patients = [patient_number(n) for n in range(40)]
    workers = [UnitOfWork(hub.engine, hub.journey, hub.clock, hub.log) for _ in range(4)]
    queues = [[] for _ in workers]
    for n, patient in enumerate(patients):
        for message in asked_for(torbay, patient, n):
            queues[n % 4].append(torbay.record(message, partition=n % 4))
        for message in taken_over(exeter, torbay, patient, n):
            queues[n % 3].append(exeter.record(message, partition=n % 3))

    async def work(worker, queue, dice):
        while queue:
            size = dice.randint(1, 9)
            batch, queue[:] = queue[:size], queue[size:]
            taken = await worker.take(batch)
            hub.expected += sum(taken.dispositions.values())

    async with asyncio.timeout(PATIENCE_S * 3):
        await asyncio.gather(
            *(
                work(each, queue, random.Random(n))
                for n, (each, queue) in enumerate(zip(workers, queues, strict=True))
            )
        )
        while early := await hub.rows(t.message, t.message.c.disposition == Disposition.QUARANTINED):
            assert any([await hub.unit.retry_early(row["event_id"]) for row in early]), early

    assert [line for line in hub.log.lines if line["event"] == "store.conflict"] == []
    transfers = await hub.rows(t.transfer)
    assert [each["state"] for each in transfers] == ["completed"] * len(patients)
    assert len(await hub.rows(t.person)) == len({each["person_id"] for each in transfers}) == len(patients)
    told = Counter((each.topic, each.key, each.event_type) for each in await hub._outbox())
    assert max(told[each] for each in told if each[0].endswith(".inbox")) == 1


def asked_for(torbay, patient, n):  # noqa: F811
    epr, at = torbay.epr, torbay.hub.clock()
    yield epr.asks_to_transfer(patient, to="RH8", request_number=f"R{n}", encounter_number=f"E{n}", at=at)
    yield epr.discharges(patient, encounter_number=f"E{n}", to_site="RH801", at=at + timedelta(hours=2))


def taken_over(exeter, torbay, patient, n):  # noqa: F811
    epr, at = exeter.epr, torbay.hub.clock()
    for minutes, status in enumerate(("received", "accepted", "ready"), 1):
        yield epr.answers(
            patient, status, requester=torbay.profile, request_number=f"R{n}", bed="Bed 4", at=at + timedelta(minutes=minutes)
        )  # fmt: skip
    yield epr.admits(patient, encounter_number=f"A{n}", ward="Cardiology", at=at + timedelta(hours=3))


async def test_a_worker_without_partitions_does_not_take_a_pause_for_a_group_that_is_stuck(
    hub,  # noqa: F811
    torbay,  # noqa: F811
    bootstrap_servers,
):
    """It looks after the others' partitions, and a message of a paused trust is no message that ought to be taken in."""
    topic = f"epr.idle.{uuid.uuid4().hex}"
    create_topics(bootstrap_servers, [topic])
    positions = StoredPositions(hub.engine, hub.clock)
    await positions.take_up({(topic, 0): 0})
    config = WorkerConfig(bootstrap_servers=bootstrap_servers)
    async with Reader(config) as reader:
        idle = KafkaSource(config, {topic: "RA9"}, hub.unit, positions, reader, hub.log, pytest.fail)
        await idle._tend_once()
        assert idle.vitals().waiting_at == {(topic, 0): 0}
        hub.mend(in_a_row_max=1)
        await hub.take(bad(torbay, 0, 1))
        await idle._tend_once()
        assert idle.vitals().waiting_at == {}
        await queries.release_brake(hub.engine, "RA9", "mended", hub.clock(), "ops-1")
        await idle._tend_once()
        assert idle.vitals().waiting_at == {(topic, 0): 0}
