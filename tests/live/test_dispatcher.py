"""The dispatcher on a real Kafka and PostgreSQL: every row once on the wire, whoever dies when.

Run as a program, this file is a dispatcher process that the tests kill and freeze.
"""

import asyncio
import contextlib
import ctypes
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import ProducerFenced
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)
from sqlalchemy import delete, event, func, insert, select, update

from hub.audit.leaf import said_bytes
from hub.demo.broker import EmbeddedBroker
from hub.destinations.kafka import KafkaAccess, KafkaDestination
from hub.domain.delivery import DeliveryError, Outgoing, Placed, Scope
from hub.domain.trust import Directory, IdentifierSystems, Site, TrustProfile
from hub.services.dispatcher import Dispatcher, DispatcherConfig
from hub.store import outbox, waiting
from hub.store.engine import open_engine
from hub.store.tables import audit_batch, audit_pending, lease, metadata
from hub.store.tables import outbox as table
from tests.harness.kafka_server import KafkaServer, kafka_is_installed

pytestmark = pytest.mark.live

REPOSITORY = Path(__file__).resolve().parents[2]


class Recorder:
    """A log that keeps what it was told."""

    def __init__(self):
        self.lines = []

    def info(self, event, **bound):
        self.lines.append((event, bound))

    warning = error = info

    def bind(self, **_):
        return self

    def of(self, event):
        return [bound for name, bound in self.lines if name == event]


class Printer(Recorder):
    def info(self, event, **bound):
        print(json.dumps({"event": event, **bound}), flush=True)

    warning = error = info


def new_ods():
    return "T" + uuid.uuid4().hex[:5].upper()


def inbox(ods):
    return f"hub.{ods.lower()}.inbox"


def directory(*codes):
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
        for ods in codes
    )


def dispatcher(
    engine,
    bootstrap_servers,
    codes,
    log,
    *,
    patience_s=10,
    lease_s=5,
    transactions=True,
    wrap=lambda door: door,
):
    access = KafkaAccess(bootstrap_servers)
    return Dispatcher(
        engine,
        directory(*codes),
        lambda ods: wrap(KafkaDestination(ods, access, transactions=transactions, patience_s=patience_s)),
        log,
        DispatcherConfig(batch_max=100, backoff_s=0.2, backoff_max_s=1, lease_s=lease_s),
    )


@contextlib.asynccontextmanager
async def running(*args, **more):
    """A dispatcher in this process, stopped politely at the end."""
    log, stop = Recorder(), asyncio.Event()
    task = asyncio.create_task(dispatcher(*args, log, **more).run(stop))
    try:
        yield log
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)


@pytest.fixture
async def engine(database_url):
    engine = open_engine(database_url)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield engine
    await engine.dispose()


def create(bootstrap_servers, *topics, partitions=3, **config):
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    for made in admin.create_topics(
        [NewTopic(topic, partitions, 1, config=config) for topic in topics]
    ).values():
        made.result(30)


def configure(bootstrap_servers, topic, name, value):
    change = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[change])
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(30)


def on_the_wire(bootstrap_servers, topic):
    """Every committed record of a topic as (key, seq), in the order of each partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": uuid.uuid4().hex,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    try:
        parts = consumer.list_topics(topic, 30).topics[topic].partitions
        consumer.assign([TopicPartition(topic, part, 0) for part in parts])
        ended, found = set(), []
        while len(ended) < len(parts):
            message = consumer.poll(30)
            assert message is not None, "a transaction is open, or Kafka is gone"
            if message.error():
                ended.add(message.partition())
            else:
                found.append((message.key().decode(), int(dict(message.headers())["outbox-seq"])))
        return found
    finally:
        consumer.close()


async def write(engine, ods, keys, *, topic=None, payload=b'{"resourceType":"Bundle"}'):
    """Rows for a receiver, one per key given."""
    values = [
        {
            "receiver": ods,
            "topic": topic or inbox(ods),
            "key": key,
            "headers": {"event-type": "admit"},
            "payload": payload,
            "event_id": uuid.uuid4().hex,
            "transfer_id": key,
            "created_at": datetime.now(UTC),
        }
        for key in keys
    ]
    async with engine.begin() as connection:
        await connection.execute(insert(table), values)


async def rows_of(engine, ods):
    async with engine.connect() as connection:
        return (
            await connection.execute(select(table).where(table.c.receiver == ods).order_by(table.c.seq))
        ).all()


async def until(check, timeout_s=30):
    """Until an async check is true."""
    deadline = time.monotonic() + timeout_s
    while not await check():
        assert time.monotonic() < deadline, f"not after {timeout_s} s"
        await asyncio.sleep(0.05)


async def all_sent(engine, *codes):
    async with engine.connect() as connection:
        left = (
            select(func.count())
            .select_from(table)
            .where(table.c.state == "pending", table.c.receiver.in_(codes))
        )
        return (await connection.execute(left)).scalar_one() == 0


async def assert_each_once_and_in_order(engine, bootstrap_servers, ods):
    """The promise: every row once on the wire, where the row says it is, in order per key, once in the book."""
    rows = [row for row in await rows_of(engine, ods) if row.topic == inbox(ods)]
    wire = await asyncio.to_thread(on_the_wire, bootstrap_servers, inbox(ods))
    seqs = sorted(seq for _, seq in wire)
    repeated = sorted({seq for seq in seqs if seqs.count(seq) > 1}) if len(set(seqs)) < len(seqs) else []
    assert not repeated, f"{len(repeated)} rows more than once on the wire: {repeated[:10]}"
    assert seqs == [row.seq for row in rows]
    by_key = {}
    for key, seq in wire:
        by_key.setdefault(key, []).append(seq)
    assert all(found == sorted(found) for found in by_key.values()), "order per key"
    assert len({(row.sent_partition, row.sent_offset) for row in rows}) == len(rows)
    async with engine.connect() as connection:
        audited = await connection.execute(
            select(audit_pending.c.event_id).where(
                audit_pending.c.code.in_(["disclosure-sent", "delivery-ack"]),
                audit_pending.c.counterpart == ods,
            )
        )
        assert sorted(audited.scalars()) == sorted(row.event_id for row in rows)


# The process that is killed.


class Mortal:
    """A door out that kills its process at its n-th batch: between Kafka's commit and writing it down."""

    left = 0

    def __init__(self, door):
        self._door = door
        self.start, self.read_back, self.close = door.start, door.read_back, door.close

    async def send(self, rows):
        placed = await self._door.send(rows)
        Mortal.left -= 1
        if Mortal.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return placed


def _freeze_while_writing_down(batches):
    """Stop this process in the middle of a store transaction that holds the rows' locks."""
    original, left = outbox._attempts, [batches]

    def attempts(*args):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        return original(*args)

    outbox._attempts = attempts


async def _main(database_url, bootstrap_servers, ods, lease_s, die_at):
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG: do not outlive the tests
    Mortal.left = int(die_at)
    if int(die_at) < 0:
        _freeze_while_writing_down(-int(die_at))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    engine = open_engine(database_url)
    await dispatcher(engine, bootstrap_servers, [ods], Printer(), lease_s=float(lease_s), wrap=Mortal).run(
        stop
    )
    await engine.dispose()


@contextlib.contextmanager
def dispatcher_process(database_url, bootstrap_servers, ods, output, *, lease_s=1.0, die_at=0):
    with output.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, database_url, bootstrap_servers, ods, str(lease_s), str(die_at)],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def events(output):
    lines = [line for line in output.read_text().splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines]


@contextlib.asynccontextmanager
async def writing(engine, ods, *, keys=7):
    """Somebody goes on writing rows meanwhile, several per key."""
    done = asyncio.Event()

    async def go_on():
        while not done.is_set():
            await write(engine, ods, [f"transfer-{random.randrange(keys)}" for _ in range(40)])
            await asyncio.sleep(0.03)

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        done.set()
        await task


async def owner(engine, ods):
    """The process that has the receiver's lease."""
    async with engine.connect() as connection:
        holder = (
            await connection.execute(select(lease.c.holder).where(lease.c.name == f"dispatch.{ods}"))
        ).scalar()
        return int(holder.split(":")[1]) if holder else None


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_killed_between_commit_and_writing_down_every_row_is_once_on_the_wire(
    engine, database_url, bootstrap_servers, tmp_path
):
    ods, output = new_ods(), tmp_path / "dispatcher.log"
    create(bootstrap_servers, inbox(ods))
    async with writing(engine, ods):
        for life in range(12):
            # In turn: surely between commit and mark, at a random batch; and anywhere, at a random time.
            die_at = random.randint(1, 6) if life % 3 else 0
            with dispatcher_process(database_url, bootstrap_servers, ods, output, die_at=die_at) as process:
                if die_at:
                    assert await asyncio.to_thread(process.wait, 60) == -signal.SIGKILL, output.read_text()[
                        -2000:
                    ]
                else:
                    pid = process.pid

                    async def owned(pid=pid):
                        return await owner(engine, ods) == pid

                    await until(owned, 60)
                    await asyncio.sleep(random.uniform(0, 0.7))
                    process.kill()
    with dispatcher_process(database_url, bootstrap_servers, ods, output) as process:
        await until(lambda: all_sent(engine, ods), 60)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0

    await assert_each_once_and_in_order(engine, bootstrap_servers, ods)
    found = [each for each in events(output) if each["event"] == "delivery.found_sent"]
    assert len(found) >= 8, "the kills between commit and mark were not seen: the test tested nothing"


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_a_frozen_owner_that_wakes_up_sends_nothing_twice(
    engine, database_url, bootstrap_servers, tmp_path
):
    ods, first_log, second_log = new_ods(), tmp_path / "first.log", tmp_path / "second.log"
    create(bootstrap_servers, inbox(ods))
    async with writing(engine, ods):
        with (
            dispatcher_process(database_url, bootstrap_servers, ods, first_log) as first,
            dispatcher_process(database_url, bootstrap_servers, ods, second_log) as second,
        ):
            processes = {first.pid: first, second.pid: second}
            for _ in range(6):
                await until(lambda: owner(engine, ods), 60)
                frozen = await owner(engine, ods)
                await asyncio.sleep(random.uniform(0.2, 0.6))
                processes[frozen].send_signal(signal.SIGSTOP)

                async def taken_over(frozen=frozen):
                    return await owner(engine, ods) not in (frozen, None)

                await until(taken_over, 60)
                await asyncio.sleep(random.uniform(0, 0.6))
                processes[frozen].send_signal(signal.SIGCONT)
    with dispatcher_process(database_url, bootstrap_servers, ods, first_log):
        await until(lambda: all_sent(engine, ods), 60)

    await assert_each_once_and_in_order(engine, bootstrap_servers, ods)
    taken_over = [
        each
        for log in (first_log, second_log)
        for each in events(log)
        if each["event"] == "delivery.taken_over"
    ]
    assert len(taken_over) > 3, "nobody took over: the test tested nothing"


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_an_owner_that_freezes_in_the_middle_of_a_transaction_does_not_hold_the_rows(
    engine, database_url, bootstrap_servers, tmp_path
):
    ods = new_ods()
    create(bootstrap_servers, inbox(ods))
    await write(engine, ods, [f"k{n % 9}" for n in range(1000)])
    with dispatcher_process(database_url, bootstrap_servers, ods, tmp_path / "first.log", die_at=-3) as first:

        async def frozen():
            return psutil.Process(first.pid).status() == psutil.STATUS_STOPPED

        await until(frozen, 60)
        async with running(engine, bootstrap_servers, [ods], lease_s=1) as log:
            await until(lambda: all_sent(engine, ods), 20)
            assert log.of("delivery.found_sent") == [{"receiver": ods, "rows": 100}]
            first.send_signal(signal.SIGCONT)
            await asyncio.sleep(2)
    await assert_each_once_and_in_order(engine, bootstrap_servers, ods)


def outgoing(seq, ods, key="k", payload=b"x", topic=None):
    return Outgoing(seq, ods, topic or inbox(ods), key, {}, payload, f"event-{seq}")


async def test_a_stale_owner_is_fenced_and_its_open_transaction_hides_nothing(bootstrap_servers):
    ods = new_ods()
    create(bootstrap_servers, inbox(ods), partitions=1)
    old, new = (KafkaDestination(ods, KafkaAccess(bootstrap_servers)) for _ in range(2))
    await old.start()
    await old.send([outgoing(1, ods)])
    await old._producer.begin_transaction()
    (batch,) = old._packed([outgoing(2, ods)])
    await (await old._hand_over(batch))

    await new.start()
    back = await new.read_back([inbox(ods)], ())
    assert [each.seq for each in back.found] == [1], "committed only"
    await new.send([outgoing(3, ods)])
    with pytest.raises(ProducerFenced):
        await old._producer.commit_transaction()
    with pytest.raises(DeliveryError):
        await old.send([outgoing(4, ods)])
    third = KafkaDestination(ods, KafkaAccess(bootstrap_servers))
    await third.start()
    with pytest.raises(DeliveryError) as fenced:
        await new.send([outgoing(5, ods)])
    for each in (old, new, third):
        await each.close()

    assert fenced.value.fault.scope is Scope.OWNER
    assert [seq for _, seq in on_the_wire(bootstrap_servers, inbox(ods))] == [1, 3]


async def test_reading_back_begins_behind_what_is_known_and_passes_the_markers(bootstrap_servers):
    ods = new_ods()
    create(bootstrap_servers, inbox(ods), partitions=2)
    door = KafkaDestination(ods, KafkaAccess(bootstrap_servers))
    await door.start()
    first = await door.send([outgoing(seq, ods, key=f"k{seq}") for seq in range(1, 21)])
    rows = [outgoing(seq, ods, key=f"k{seq}") for seq in range(21, 41)]
    held = {row.seq: hashlib.sha256(row.payload).hexdigest() for row in rows}
    second = [replace(each, sha256=held[each.seq]) for each in await door.send(rows)]
    known = list({each.partition: each for each in first}.values())

    back = await door.read_back([inbox(ods)], known)
    assert sorted(back.found, key=lambda each: each.seq) == second
    assert not back.gone
    assert len((await door.read_back([inbox(ods)], ())).found) == 40
    beyond = [replace(each, offset=1_000_000) for each in known]
    others = [replace(each, seq=7_000_000) for each in known]
    for no_longer_true in (beyond, others):
        back = await door.read_back([inbox(ods)], no_longer_true)
        assert len(back.found) == 40, "a topic that was made anew is read whole"
        assert sorted(back.gone, key=lambda each: each.partition) == sorted(
            no_longer_true, key=lambda each: each.partition
        )
    missing = await door.read_back([inbox(ods), "hub.nowhere.inbox"], beyond)
    assert "hub topics apply" in str(missing.closed["hub.nowhere.inbox"])
    await door.close()


async def test_marking_goes_by_number_however_much_waits(engine):
    """PostgreSQL thinks that little waits, as before an outage; then 3000 rows do."""
    ods, told = new_ods(), []
    async with engine.connect() as connection:
        plain = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await write(engine, ods, ["k"] * 3000, payload=os.urandom(1500))
        await outbox.mark_sent(engine, placed_of(await rows_of(engine, ods)), datetime.now(UTC))
        await plain.exec_driver_sql("VACUUM ANALYZE outbox")
    await write(engine, ods, ["k"] * 3000, payload=os.urandom(1500))
    some = await outbox.pending(engine, ods, 100, datetime.now(UTC))

    event.listen(
        engine.sync_engine,
        "before_cursor_execute",
        lambda _c, _k, said, given, *_: told.append((said, given)),
    )
    await outbox.mark_sent(engine, placed_of(some), datetime.now(UTC))

    (marking,) = [(said, given) for said, given in told if said.startswith("UPDATE outbox")]
    async with engine.connect() as connection:
        plan = "\n".join(
            (await connection.exec_driver_sql(f"EXPLAIN {marking[0]}", tuple(marking[1]))).scalars()
        )
    assert "ix_outbox_pending" not in plan, plan
    assert "pk_outbox" in plan, plan


def placed_of(rows):
    return [Placed(row.seq, row.topic, 0, row.seq, row.event_id) for row in rows]


async def _lateness(engine, ods):
    return [(row.sent_at - row.created_at).total_seconds() for row in await rows_of(engine, ods)]


async def _trickle(engine, ods, times):
    for n in range(times):
        await write(engine, ods, [f"t{n % 3}"])
        await asyncio.sleep(0.05)


async def test_a_missing_topic_delays_nobody_and_says_why(engine, bootstrap_servers):
    bad, good = new_ods(), new_ods()
    receipts = f"hub.{bad.lower()}.receipts"
    create(bootstrap_servers, inbox(good), receipts)
    await write(engine, bad, ["a", "b", "a"])
    async with running(engine, bootstrap_servers, [bad, good]) as log:
        await _trickle(engine, good, 80)
        await write(engine, bad, ["message-1"], topic=receipts)
        await until(lambda: all_sent(engine, good))
        late = await _lateness(engine, good)
        assert max(late[5:]) < 1.0, f"median {statistics.median(late):.3f} s, worst {max(late):.3f} s"

        (waits,) = await outbox.waiting(engine)
        assert waits.receiver == bad
        assert f"topic {inbox(bad)} does not exist: run `hub topics apply`" in waits.last_error
        assert waits.attempts >= 2
        assert waits.rows >= 3
        assert waits.next_attempt_at is not None

        async def only_inbox_waits():
            return {row.topic for row in await rows_of(engine, bad) if row.state == "pending"} == {inbox(bad)}

        await until(only_inbox_waits)
        create(bootstrap_servers, inbox(bad))
        await until(lambda: all_sent(engine, bad), 15)
    assert log.of("delivery.recovered")
    await assert_failures_are_in_the_book(engine, bad)
    wire = on_the_wire(bootstrap_servers, inbox(bad))
    assert sorted(seq for _, seq in wire) == [
        row.seq for row in await rows_of(engine, bad) if row.topic == inbox(bad)
    ]


async def assert_failures_are_in_the_book(engine, ods):
    async with engine.connect() as connection:
        failed = select(audit_pending.c.detail).where(
            audit_pending.c.code == "delivery-retry", audit_pending.c.counterpart == ods
        )
        details = (await connection.execute(failed)).scalars().all()
    assert details
    assert all("Bundle" not in json.dumps(detail) for detail in details)


async def test_a_topic_that_is_deleted_and_made_anew_delays_nobody_and_gets_what_is_new(
    engine, bootstrap_servers
):
    bad, good = new_ods(), new_ods()
    create(bootstrap_servers, inbox(bad), inbox(good))
    await write(engine, bad, [f"k{n}" for n in range(30)])
    async with running(engine, bootstrap_servers, [bad, good], patience_s=3):
        await until(lambda: all_sent(engine, bad))
        # The client has the topic in its metadata, and would retry a write to it for ever.
        admin = AdminClient({"bootstrap.servers": bootstrap_servers})
        for gone in admin.delete_topics([inbox(bad)]).values():
            gone.result(30)
        await write(engine, bad, ["a", "b", "a"])
        await _trickle(engine, good, 120)
        await until(lambda: all_sent(engine, good))
        assert max((await _lateness(engine, good))[5:]) < 1.0

        async def said():
            return any("hub topics apply" in (each.last_error or "") for each in await outbox.waiting(engine))

        await until(said)
        create(bootstrap_servers, inbox(bad))
        await until(lambda: all_sent(engine, bad), 20)
    wire = [seq for _, seq in on_the_wire(bootstrap_servers, inbox(bad))]
    assert sorted(wire) == [row.seq for row in await rows_of(engine, bad)][30:]


@pytest.fixture
def guarded_servers(tmp_path):
    """A broker that knows permissions; everything is allowed that nobody spoke about."""
    if not kafka_is_installed():
        pytest.skip("needs a broker of its own: python -m tests.harness.prerequisites --install")
    rules = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with KafkaServer(tmp_path / "kafka", properties=rules) as server:
        yield server.bootstrap_servers


async def test_without_permission_to_write_the_reason_is_visible(engine, guarded_servers):
    ods, other = new_ods(), new_ods()
    create(guarded_servers, inbox(ods), inbox(other))
    admin = AdminClient({"bootstrap.servers": guarded_servers})
    rule = (ResourceType.TOPIC, inbox(ods), ResourcePatternType.LITERAL, "User:ANONYMOUS", "*")
    deny = (*rule, AclOperation.WRITE, AclPermissionType.DENY)
    allow = (*rule, AclOperation.ALL, AclPermissionType.ALLOW)
    for made in admin.create_acls([AclBinding(*deny), AclBinding(*allow)]).values():
        made.result(10)
    await write(engine, ods, ["a", "b"])
    async with running(engine, guarded_servers, [ods, other]):

        async def said():
            return any(
                "not authorised to write" in (each.last_error or "") for each in await outbox.waiting(engine)
            )

        await until(said)
        await _trickle(engine, other, 40)
        await until(lambda: all_sent(engine, other))
        assert max((await _lateness(engine, other))[5:]) < 1.0
        for gone in admin.delete_acls([AclBindingFilter(*deny)]).values():
            gone.result(10)
        await until(lambda: all_sent(engine, ods))
    await assert_each_once_and_in_order(engine, guarded_servers, ods)


@pytest.mark.parametrize("limit", [600, 1_048_588], ids=["refused-by-the-broker", "refused-by-the-client"])
async def test_a_record_that_is_too_large_waits_with_its_key_only(engine, bootstrap_servers, limit):
    ods = new_ods()
    create(bootstrap_servers, inbox(ods), **{"max.message.bytes": str(limit)})
    await write(engine, ods, [f"k{n}" for n in range(5)])
    await write(engine, ods, ["big"], payload=b"x" * (limit + 1000))
    await write(engine, ods, ["big", *(f"k{n}" for n in range(20)), "big"])
    async with running(engine, bootstrap_servers, [ods]):

        async def only_big_waits():
            return [row.key for row in await rows_of(engine, ods) if row.state == "pending"] == ["big"] * 3

        await until(only_big_waits)
        await write(engine, ods, ["afterwards"])
        await until(only_big_waits)
        (waits,) = await outbox.waiting(engine)
        assert waits.last_error.startswith("MessageSizeTooLargeError")
        assert {row.attempts > 0 for row in await rows_of(engine, ods) if row.key != "big"} == {False}
        if limit == 600:
            configure(bootstrap_servers, inbox(ods), "max.message.bytes", "100000")
            await until(lambda: all_sent(engine, ods))
    if limit == 600:
        await assert_each_once_and_in_order(engine, bootstrap_servers, ods)


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("server", ["kafka", "postgres"])
async def test_a_server_that_dies_and_comes_back_costs_time_only(
    engine, bootstrap_servers, kafka, postgres, server
):
    ods, victim = new_ods(), {"kafka": kafka, "postgres": postgres}[server]
    if not victim.controllable:
        pytest.skip("this server is not ours to kill")
    create(bootstrap_servers, inbox(ods))
    await write(engine, ods, [f"k{n % 9}" for n in range(6000)])
    async with running(engine, bootstrap_servers, [ods], patience_s=5) as log:
        for _ in range(2):
            await until(lambda: _some_sent(engine, ods))
            await asyncio.to_thread(victim.kill)
            await asyncio.sleep(1.5)
            await asyncio.to_thread(victim.start)
            await engine.dispose()
        await until(lambda: all_sent(engine, ods), 60)
    assert log.of("delivery.failed" if server == "kafka" else "store.unavailable")
    await assert_each_once_and_in_order(engine, bootstrap_servers, ods)


async def _some_sent(engine, ods):
    try:
        return any(row.state == "sent" for row in await rows_of(engine, ods))
    except Exception:
        return False


async def test_a_cancellation_that_the_client_library_passes_on_ends_no_receivers_loop(
    engine, bootstrap_servers, monkeypatch
):
    """aiokafka's consumer, stopped while a fetch sleeps, cancels whoever stops it: the hospital was never served again."""
    theirs, another = new_ods(), new_ods()
    create(bootstrap_servers, inbox(theirs), inbox(another))
    stop_of_the_library, left = AIOKafkaConsumer.stop, [3]

    async def stop(consumer):
        if left[0]:
            left[0] -= 1
            consumer._fetcher._pending_tasks.add(asyncio.create_task(asyncio.sleep(60)))
        await stop_of_the_library(consumer)

    monkeypatch.setattr(AIOKafkaConsumer, "stop", stop)
    async with running(engine, bootstrap_servers, [theirs, another]):
        await write(engine, theirs, "abc")
        await write(engine, another, "abc")
        await until(lambda: all_sent(engine, theirs, another))
    assert left == [0]
    for each in (theirs, another):
        await assert_each_once_and_in_order(engine, bootstrap_servers, each)


async def test_a_broker_that_dies_while_it_is_read_back_is_a_failure_and_nothing_else():
    """A fetch that failed sleeps before its next try, where the client's stop cancels it and is cancelled by it, one time in three."""
    bystanders = asyncio.all_tasks()
    broker = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "hub.demo.broker"], stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    try:
        servers = broker.stdout.readline().decode().strip()
        producer = Producer({"bootstrap.servers": servers})
        producer.produce("inbox", b"x")
        producer.flush(10)
        have_read = set()

        async def reads_back_again_and_again(number):
            door = KafkaDestination(f"T{number}", KafkaAccess(servers), transactions=False, patience_s=3)
            await door.start()
            try:
                while True:
                    await door.read_back(["inbox"], ())
                    have_read.add(number)
            finally:
                await door.close()

        reading = [asyncio.create_task(reads_back_again_and_again(number)) for number in range(12)]
        await until(lambda: asyncio.sleep(0, len(have_read) == len(reading)))
        broker.kill()
        done, _ = await asyncio.wait(reading, timeout=60)
    finally:
        broker.kill()
        broker.wait()
    assert len(done) == 12
    assert [type(each.exception()) for each in done if not each.cancelled()] == [DeliveryError] * 12
    left = [each for each in asyncio.all_tasks() - bystanders if "md_synchronizer" in repr(each.get_coro())]
    assert not left, "clients that nobody closes any more"


async def test_a_door_that_is_cancelled_by_somebody_else_is_tried_again(engine, bootstrap_servers):
    """Wherever it happens: starting, reading back, or sending."""
    theirs = new_ods()
    create(bootstrap_servers, inbox(theirs))
    left = ["send", "read_back", "start"]

    def wrap(door):
        def cancelled_at(name):
            work = getattr(door, name)

            async def call(*given):
                answer = await work(*given)
                if left and left[-1] == name:
                    left.pop()
                    raise asyncio.CancelledError
                return answer

            return call

        return SimpleNamespace(
            **{name: cancelled_at(name) for name in ("start", "read_back", "send", "close")}
        )

    async with running(engine, bootstrap_servers, [theirs], wrap=wrap) as log:
        await write(engine, theirs, "abc")
        await until(lambda: all_sent(engine, theirs))
    assert not left
    assert [line["fault"][:22] for line in log.of("fault")] == ["StrayCancellationError"] * 3
    await assert_each_once_and_in_order(engine, bootstrap_servers, theirs)


async def test_stopping_finishes_the_batch_and_gives_the_lease_back(engine, bootstrap_servers):
    ods = new_ods()
    create(bootstrap_servers, inbox(ods))
    await write(engine, ods, [f"k{n % 9}" for n in range(2000)])
    async with running(engine, bootstrap_servers, [ods], lease_s=60) as log:
        await until(lambda: _some_sent(engine, ods))
    sent = sum(row.state == "sent" for row in await rows_of(engine, ods))
    assert len(on_the_wire(bootstrap_servers, inbox(ods))) == sent, "what was sent is written down"
    assert not log.of("fault")

    async with running(engine, bootstrap_servers, [ods], lease_s=60) as log:
        await until(lambda: all_sent(engine, ods), 10)
    await assert_each_once_and_in_order(engine, bootstrap_servers, ods)
    assert not log.of("delivery.found_sent")


@pytest.mark.timeout(120)
async def test_a_long_queue_goes_out_fast(engine, bootstrap_servers):
    ods, rows = new_ods(), 10_000
    create(bootstrap_servers, inbox(ods))
    for _ in range(rows // 2000):
        await write(engine, ods, [f"k{n % 300}" for n in range(2000)], payload=b"x" * 2000)
    began = time.monotonic()
    async with running(engine, bootstrap_servers, [ods]):
        await until(lambda: all_sent(engine, ods), 100)
        rate = rows / (time.monotonic() - began)
    print(f"{rate:,.0f} rows/s of 2 kB to one receiver")
    await assert_each_once_and_in_order(engine, bootstrap_servers, ods)
    assert rate > 500


@contextlib.asynccontextmanager
async def _sqlite(path):
    engine = open_engine(f"sqlite+aiosqlite:///{path}")
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    try:
        yield engine
    finally:
        await engine.dispose()


@pytest.mark.timeout(120)
async def test_without_transactions_on_the_embedded_broker_and_sqlite(tmp_path):
    """What the demo runs: a dispatcher that stops and starts, and one whose marks were lost."""
    ods, rows = new_ods(), 3000
    with EmbeddedBroker() as broker:
        async with _sqlite(tmp_path / "hub.db") as engine:
            broker.ensure_topics([inbox(ods)])
            for _ in range(2):
                await write(engine, ods, [f"k{n % 9}" for n in range(rows // 2)])
                began = time.monotonic()
                async with running(engine, broker.bootstrap_servers, [ods], transactions=False) as log:
                    await until(lambda: all_sent(engine, ods), 60)
                print(f"embedded broker, SQLite: {rows / 2 / (time.monotonic() - began):,.0f} rows/s")
                assert not log.of("delivery.failed")
            async with engine.begin() as connection:
                newest = table.c.seq > rows - 100
                forgotten = {"state": "pending", "sent_at": None, "sent_partition": None, "sent_offset": None}
                await connection.execute(update(table).where(newest).values(forgotten))
                told = (
                    await connection.execute(select(audit_pending).order_by(audit_pending.c.entry))
                ).mappings()
                kept = [
                    said_bytes({k: v for k, v in each.items() if k != "entry"})
                    for each in told.fetchmany(rows - 100)
                ]
                await connection.execute(delete(audit_batch))
                await connection.execute(insert(audit_batch), list(waiting.rows(kept)))
            async with running(engine, broker.bootstrap_servers, [ods], transactions=False) as log:
                await until(lambda: all_sent(engine, ods), 30)
            assert log.of("delivery.found_sent") == [{"receiver": ods, "rows": 100}]
            await assert_each_once_and_in_order(engine, broker.bootstrap_servers, ods)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
