"""The worker against a real Kafka: nothing lost, nothing twice, nothing silent. The house behind the door is a fake
that writes effects and positions in one transaction; run as a program, this file is that worker."""

import asyncio
import json
import os
import random
import signal
import string
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from sqlalchemy import Column, Integer, MetaData, String, Table, Text, insert, select, text, tuple_, update
from sqlalchemy.exc import SQLAlchemyError

from hub.domain.ids import OdsCode
from hub.domain.message import Received
from hub.domain.rejection import Disposition
from hub.domain.trust import Directory, IdentifierSystems, Site, TrustProfile
from hub.sources.kafka import ExitCode, WorkerConfig, serve
from hub.sources.kafka_consumer import HubConsumer
from hub.sources.kafka_source import KafkaSource
from hub.store import tables as t
from hub.store.engine import open_engine
from hub.store.intake import PartitionKey, StoreUnavailableError, Taken
from hub.store.positions import StoredPositions
from hub.store.unit_of_work import insert_ignoring
from hub.telemetry.log import get_log, set_up
from tests.harness.kafka_server import create_topics

pytestmark = [pytest.mark.live, pytest.mark.long]

# A table of the test alone: in the hub's own metadata it would be looked for by everybody.
_TEST_TABLES = MetaData()
EFFECT = Table(
    "effect",
    _TEST_TABLES,
    Column("id", Integer, primary_key=True),
    Column("topic", String(249)),
    Column("partition", Integer),
    Column("offset", Integer),
    Column("raw", Text),
    Column("unread", Text),
    Column("event_id", String(64)),
)


# -- the worker ----------------------------------------------------------------------------------------------


class FakeIntake:
    """Like the real one towards the worker. Some messages do something to the process that reads them."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def understand(self, received: Received) -> Received:
        return received

    async def take(
        self, batch: Sequence[Received], *, next_after: Mapping[PartitionKey, int] | None = None
    ) -> Taken:
        first: dict[PartitionKey, int] = {}
        for each in batch:
            first.setdefault((each.position.topic, each.position.partition), each.position.offset)
        p = t.position
        try:
            async with self.engine.begin() as connection:
                await connection.execute(
                    insert_ignoring(connection, p),
                    [{"topic": k[0], "partition": k[1], "next_offset": o} for k, o in first.items()],
                )
                keys = tuple_(p.c.topic, p.c.partition).in_(sorted(first))
                rows = await connection.execute(
                    select(p).where(keys).order_by(p.c.topic, p.c.partition).with_for_update()
                )
                after = {(row.topic, row.partition): row.next_offset for row in rows}
                effects, braked = (
                    [],
                    set(
                        (await connection.execute(select(t.brake.c.trust).where(t.brake.c.pulled))).scalars()
                    ),
                )
                for each in batch:
                    at = each.position
                    if at.offset < after[at.topic, at.partition] or each.trust in braked:
                        continue
                    if not each.unread:
                        await self.obey(each.raw)
                    if each.raw == b"brake":
                        braked.add(each.trust)
                        await connection.execute(
                            insert(t.brake).values(trust=each.trust, pulled=True, in_a_row=1)
                        )
                    after[at.topic, at.partition] = at.offset + 1
                    effects.append(
                        {
                            "topic": at.topic,
                            "partition": at.partition,
                            "offset": at.offset,
                            "raw": each.raw.decode(),
                            "unread": each.unread,
                            "event_id": each.event_id,
                        }
                    )
                if effects:
                    await connection.execute(insert(EFFECT), effects)
                for (topic, partition), offset in after.items():
                    await connection.execute(
                        update(p)
                        .where(p.c.topic == topic, p.c.partition == partition)
                        .values(next_offset=offset, suspect_offset=None, suspect_begun=0)
                    )
        except (OSError, TimeoutError, SQLAlchemyError) as error:
            raise StoreUnavailableError(type(error).__name__) from error
        return Taken({Disposition.ACCEPTED: len(effects)}, after, frozenset(OdsCode(o) for o in braked))

    async def obey(self, raw: bytes) -> None:
        if raw == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        if raw == b"raise":
            raise RuntimeError("a bug")
        if raw == b"hang":
            await asyncio.sleep(3600)
        if raw == b"block":
            time.sleep(3600)  # noqa: ASYNC251


def profile(ods: str) -> TrustProfile:
    systems = IdentifierSystems(
        patient="https://p.example", encounter="https://e.example", request="https://r.example"
    )
    return TrustProfile(
        ods=ods,
        name=ods,
        illustration=True,
        epr="none",
        sites=(Site(ods=ods, name=ods),),
        identifier_systems=systems,
    )


def swallow(raw: bytes) -> None:
    """As if Faust had lost this message on its way: it does not come with its batch."""
    handle = KafkaSource.handle

    async def handle_the_rest(source: KafkaSource, messages: Sequence[Any]) -> None:
        await handle(source, [message for message in messages if message.value != raw])

    KafkaSource.handle = handle_the_rest  # type: ignore[method-assign]


def deafen() -> None:
    """As if Faust had forgotten to fetch: everything else goes on, the database is asked and the group is well."""

    async def nothing(consumer: HubConsumer, timeout: float) -> AsyncIterator[Any]:  # noqa: ASYNC109 - Faust's
        await asyncio.sleep(timeout)
        return
        yield

    HubConsumer.getmany = nothing


def be_worker(spec: dict[str, Any]) -> int:
    set_up("json")
    engine = open_engine(spec["url"])
    if spec["swallow"]:
        swallow(spec["swallow"].encode())
    if spec["deaf"]:
        deafen()
    positions = StoredPositions(engine, lambda: datetime.now(UTC))
    trusts = Directory(profile(ods) for ods in spec["trusts"])
    return int(
        asyncio.run(serve(WorkerConfig(**spec["config"]), trusts, FakeIntake(engine), positions, get_log()))
    )


# -- a stage for one test ------------------------------------------------------------------------------------


@dataclass
class Worker:
    process: subprocess.Popen[bytes]
    log_path: Path

    def said(self, event: str) -> list[dict[str, Any]]:
        lines = []
        for line in self.log_path.read_text().splitlines():
            with suppress(ValueError):
                lines.append(json.loads(line))
        return [line for line in lines if isinstance(line, dict) and line.get("event") == event]

    def ended(self, within: float = 30) -> int:
        return self.process.wait(within)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.ended()


class Stage:
    def __init__(self, servers: str, url: str, folder: Path) -> None:
        self.servers, self.url, self.folder = servers, url, folder
        self.trusts = [self.code()]
        self.config: dict[str, Any] = {
            "bootstrap_servers": servers,
            "group": f"hub.test.{self.code()}",
            "session_timeout_s": 3,
            "poll_s": 0.3,
            "metadata_s": 1,
            "batch_messages_max": 50,
        }
        self.workers: list[Worker] = []
        self.run(self.make_tables)

    @staticmethod
    def code() -> str:
        return "Q" + "".join(random.choices(string.ascii_uppercase, k=5))

    @property
    def topic(self) -> str:
        return profile(self.trusts[0]).events_topic

    def worker(self, *, swallow: str = "", deaf: bool = False, **config: Any) -> Worker:
        spec = {
            "url": self.url,
            "trusts": self.trusts,
            "config": self.config | config,
            "swallow": swallow,
            "deaf": deaf,
        }
        log_path = self.folder / f"worker-{len(self.workers)}.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.live.test_kafka_source", json.dumps(spec)],
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[2],
            )
        self.workers.append(Worker(process, log_path))
        return self.workers[-1]

    def topics(self, partitions: int = 1, **config: str) -> None:
        create_topics(self.servers, [profile(ods).events_topic for ods in self.trusts], partitions, config)

    def produce(self, *values: str, topic: str = "", partition: int = 0, **more: Any) -> None:
        producer = Producer({"bootstrap.servers": self.servers})
        for value in values:
            producer.produce(topic or self.topic, value.encode(), partition=partition, **more)
            producer.poll(0)
        assert producer.flush(20) == 0

    @contextmanager
    def transaction(self, *, commit: bool, topic: str = "") -> Iterator[Callable[..., None]]:
        producer = Producer({"bootstrap.servers": self.servers, "transactional.id": self.code()})
        producer.init_transactions(20)
        producer.begin_transaction()
        yield lambda *values: [
            producer.produce(topic or self.topic, value.encode(), partition=0) for value in values
        ]
        producer.flush(20)
        producer.commit_transaction(20) if commit else producer.abort_transaction(20)

    def run(self, work: Callable[[Any], Any]) -> Any:
        async def open_and_work() -> Any:
            engine = open_engine(self.url)
            try:
                async with engine.begin() as connection:
                    return await work(connection)
            finally:
                await engine.dispose()

        return asyncio.run(open_and_work())

    async def make_tables(self, connection: Any) -> None:
        await connection.run_sync(t.metadata.create_all)
        await connection.run_sync(_TEST_TABLES.create_all)

    def sql(self, statement: str) -> list[Any]:
        async def work(connection: Any) -> list[Any]:
            result = await connection.execute(text(statement))
            return list(result.all()) if result.returns_rows else []

        return list(self.run(work))

    def raws(self, topic: str = "") -> list[str]:
        return [
            row.raw
            for row in self.sql(
                f'select raw from effect where topic = \'{topic or self.topic}\' order by "partition", "offset", id'
            )
        ]

    def incidents(self) -> list[Any]:
        return self.sql("select kind, subject, detail, closed_at from incident order by opened_at")

    def set_position(self, offset: int) -> None:
        self.sql(
            f"insert into position (topic, \"partition\", next_offset, taken_up, suspect_begun) values ('{self.topic}', 0, {offset}, 0, 0)"
        )

    def position(self) -> int:
        rows = self.sql(
            f"select next_offset from position where topic = '{self.topic}' and \"partition\" = 0"
        )
        return int(rows[0].next_offset) if rows else -1


def until(true: Callable[[], Any], within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)


@pytest.fixture
def stage(bootstrap_servers: str, database_url: str, tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(bootstrap_servers, database_url, tmp_path)
    yield stage
    for worker in stage.workers:
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait(10)


# -- tests ---------------------------------------------------------------------------------------------------


def test_takes_in_listens_nowhere_and_leaves_the_group_on_sigterm(stage: Stage) -> None:
    stage.topics(3)
    stage.produce("a", "b", headers=[("X-Request-ID", b"\xff"), ("x-request-id", b"2")])
    stage.produce("c", partition=2)
    worker = stage.worker()
    until(lambda: stage.raws() == ["a", "b", "c"])

    process = psutil.Process(worker.process.pid)
    assert [c for c in process.net_connections(kind="all") if c.status == psutil.CONN_LISTEN] == []
    assert process.children() == []
    assert not list(Path(__file__).parents[2].glob(f"*{stage.config['group']}*"))

    began = time.monotonic()
    assert worker.stop() == ExitCode.STOPPED
    assert time.monotonic() - began < 8
    admin = AdminClient({"bootstrap.servers": stage.servers})  # held: without a reference its requests fail
    group = admin.describe_consumer_groups([stage.config["group"]])
    assert next(iter(group.values())).result().members == []
    # Stopping in good order is no death.
    assert {
        row.taken_up for row in stage.sql("select taken_up from position where next_offset = taken_up_at")
    } <= {0}


def test_a_tombstone_an_impossible_time_and_odd_headers_are_only_messages(stage: Stage) -> None:
    stage.topics(**{"message.timestamp.after.max.ms": str(2**63 - 1)})
    producer = Producer({"bootstrap.servers": stage.servers})
    producer.produce(stage.topic, None, key=None, timestamp=2**62)
    producer.produce(stage.topic, b"", key=b"\xff\xfe", headers=[("ü", None), ("a", b"\xff")])
    producer.produce(stage.topic, b"end", timestamp=1)
    producer.flush(10)
    stage.worker()
    until(lambda: stage.raws() == ["", "", "end"])


@pytest.mark.timeout(400)
def test_nothing_is_lost_or_repeated_when_killed_and_stopped_in_turn(stage: Stage) -> None:
    stage.topics(4)
    wanted: set[str] = set()
    struck_at_work = 0
    for round_ in range(4):
        pair = stage.worker(), stage.worker()
        for partition in range(4):
            values = [f"{round_}.{partition}.{n}" for n in range(1000)]
            wanted.update(values)
            stage.produce(*values, partition=partition)
        # Not by the clock: a worker would be killed before it had begun on a busy machine, after it had ended on a fast one.
        some = len(stage.raws()) + random.randrange(1, 1000)
        until(lambda some=some: len(stage.raws()) >= some, 60)
        kind = signal.SIGKILL if round_ % 2 else signal.SIGTERM
        pair[0].process.send_signal(kind)
        pair[1].process.send_signal(signal.SIGKILL)
        code = pair[0].ended()
        pair[1].ended()
        if kind is signal.SIGTERM and pair[0].said("worker.assigned"):
            assert code == ExitCode.STOPPED
        struck_at_work += len(stage.raws()) < len(wanted)
    assert struck_at_work >= 2, "the workers were too fast for this test: it proves nothing"
    stage.worker(), stage.worker()
    until(lambda: len(stage.raws()) >= len(wanted), 90)
    raws = stage.raws()
    assert set(raws) == wanted
    assert len(raws) == len(wanted)


def test_aborted_records_are_not_read_and_their_gap_is_accepted(stage: Stage) -> None:
    stage.topics()
    worker = stage.worker()
    with stage.transaction(commit=True) as send:
        send("1", "2")
    with stage.transaction(commit=False) as send:
        send(*(f"no{n}" for n in range(20)))
    with stage.transaction(commit=True) as send:
        send("3")
    stage.produce("4")
    until(lambda: stage.raws() == ["1", "2", "3", "4"])
    assert worker.said("position.gap")
    worker.process.kill()
    worker.ended()
    stage.produce("5")
    stage.worker()
    until(lambda: stage.raws() == ["1", "2", "3", "4", "5"])


def test_a_message_that_was_missed_ends_the_worker_before_anything_is_written(stage: Stage) -> None:
    stage.topics()
    stage.produce("1", "2", "swallowed", "4", "5")
    worker = stage.worker(swallow="swallowed")
    assert worker.ended(60) == ExitCode.MISSED
    assert worker.said("position.missed")
    assert set(stage.raws()) <= {"1", "2"}
    stage.worker()
    until(lambda: stage.raws() == ["1", "2", "swallowed", "4", "5"])


def test_a_position_below_the_first_offset_is_an_incident_and_reading_goes_on(stage: Stage) -> None:
    stage.topics()
    stage.produce(*map(str, range(10)))
    admin = AdminClient({"bootstrap.servers": stage.servers})
    deleted = admin.delete_records([TopicPartition(stage.topic, 0, 6)])
    [future.result() for future in deleted.values()]
    stage.set_position(3)
    worker = stage.worker()
    until(lambda: stage.raws() == ["6", "7", "8", "9"])
    assert [row.kind for row in stage.incidents()] == ["messages-lost"]
    assert stage.incidents()[0].detail | {"from": 3, "to": 5} == stage.incidents()[0].detail
    assert [row.code for row in stage.sql("select code from audit_pending")] == ["incident-opened"]
    assert worker.said("position.below_first")


def test_a_partition_that_was_never_read_and_has_lost_its_beginning_is_an_incident(stage: Stage) -> None:
    stage.topics()
    stage.produce(*map(str, range(6)))
    admin = AdminClient({"bootstrap.servers": stage.servers})
    [future.result() for future in admin.delete_records([TopicPartition(stage.topic, 0, 4)]).values()]
    stage.worker()
    until(lambda: stage.raws() == ["4", "5"])
    [incident] = stage.incidents()
    assert (incident.kind, incident.detail["from"], incident.detail["to"]) == ("messages-lost", 0, 3)


def test_an_events_topic_that_is_deleted_is_an_incident_until_it_is_there_again(stage: Stage) -> None:
    """A trust that has joined and has no topic yet is none."""
    stage.topics()
    stage.trusts.append(stage.code())
    never_there = profile(stage.trusts[1]).events_topic
    worker = stage.worker()
    stage.produce("1")
    until(lambda: len(stage.raws()) == 1)
    assert [line["topic"] for line in worker.said("topic.missing")] == [never_there]
    admin = AdminClient({"bootstrap.servers": stage.servers})
    admin.delete_topics([stage.topic])[stage.topic].result()
    until(lambda: [(row.kind, row.subject) for row in stage.incidents()] == [("topic-missing", stage.topic)])
    stage.topics()
    until(lambda: stage.incidents()[0].closed_at is not None)
    assert never_there not in {row.subject for row in stage.incidents()}


def test_a_position_above_the_end_is_an_incident_and_others_go_on(stage: Stage) -> None:
    stage.trusts.append(stage.code())
    stage.topics()
    other = profile(stage.trusts[1]).events_topic
    stage.produce("not to be read")
    stage.set_position(5)
    for _ in range(2):
        worker = stage.worker()
        stage.produce("other", topic=other)
        until(lambda worker=worker: worker.said("position.above_end") and worker.said("batch.committed"))
        assert worker.stop() == ExitCode.STOPPED
    assert stage.raws(other) == ["other", "other"]
    assert stage.raws() == []
    assert stage.position() == 5
    assert [row.kind for row in stage.incidents()] == ["position-above-end"]


def test_a_topic_that_is_made_anew_while_the_worker_runs_is_noticed(stage: Stage) -> None:
    stage.topics()
    worker = stage.worker()
    stage.produce("1", "2", "3")
    until(lambda: len(stage.raws()) == 3)
    admin = AdminClient({"bootstrap.servers": stage.servers})
    admin.delete_topics([stage.topic])[stage.topic].result()
    until(lambda: stage.topic not in admin.list_topics(timeout=5).topics)
    stage.topics()
    stage.produce("new")
    until(lambda: [row.kind for row in stage.incidents()] == ["position-above-end"])
    assert stage.raws() == ["1", "2", "3"]
    assert worker.process.poll() is None


def test_a_paused_trust_is_left_alone_and_taken_up_after_the_release(stage: Stage) -> None:
    stage.trusts.append(stage.code())
    stage.topics(2)
    other = profile(stage.trusts[1]).events_topic
    worker = stage.worker()
    stage.produce("1", "brake", *(f"later{n}" for n in range(100)))
    stage.produce("other", topic=other)
    until(lambda: worker.said("brake.pulled") and stage.raws(other) == ["other"])
    # A rebalance must not forget it.
    second = stage.worker()
    until(lambda: second.said("worker.assigned"))
    stage.produce("still", partition=1)
    stage.produce("other2", topic=other)
    until(lambda: stage.raws(other) == ["other", "other2"])
    time.sleep(1)
    assert stage.raws() == ["1", "brake"]

    stage.sql("update brake set pulled = false")
    until(lambda: len(stage.raws()) == 103)
    assert stage.raws() == ["1", "brake", *(f"later{n}" for n in range(100)), "still"]
    assert worker.process.poll() is None
    assert second.process.poll() is None


def test_a_message_that_kills_is_handed_over_unread_in_the_end(stage: Stage) -> None:
    stage.topics()
    stage.produce(*(f"b{n}" for n in range(30)), "die", "raise", *(f"a{n}" for n in range(30)))
    codes = []
    for _ in range(20):
        worker = stage.worker()
        until(lambda worker=worker: worker.process.poll() is not None or len(stage.raws()) == 62)
        if worker.process.poll() is None:
            break
        codes.append(worker.process.returncode)
    assert len(stage.raws()) == 62
    assert {row.raw for row in stage.sql("select raw from effect where unread is not null")} == {
        "die",
        "raise",
    }
    assert set(codes) == {-signal.SIGKILL, ExitCode.UNFORESEEN}
    # Each of the two kills at most twice in a batch that began before it, once at its place, and three times alone.
    assert len(codes) <= 12


def test_a_topic_that_is_not_there_yet_stops_nobody_and_is_picked_up(stage: Stage) -> None:
    stage.topics()
    stage.trusts.append(stage.code())
    late = profile(stage.trusts[1]).events_topic
    worker = stage.worker()
    stage.produce("now")
    until(lambda: stage.raws() == ["now"] and worker.said("topic.missing"))
    stage.topics()
    stage.produce("late", topic=late)
    until(lambda: stage.raws(late) == ["late"] and worker.said("topic.found"))
    assert worker.process.poll() is None


def test_the_watchdog_ends_a_worker_that_hangs_or_blocks(stage: Stage) -> None:
    stage.topics()
    for value in ("hang", "block"):
        stage.sql("delete from position")
        worker = stage.worker(watchdog_s=2)
        until(lambda worker=worker: worker.said("worker.assigned"))
        stage.produce(value)
        assert worker.ended() == ExitCode.STALLED
        assert worker.said("watchdog.stalled")
        assert stage.raws() == []


def test_the_watchdog_ends_a_worker_that_is_alive_and_leaves_messages_unread(stage: Stage) -> None:
    stage.topics()
    worker = stage.worker(deaf=True, watchdog_s=2)
    until(lambda: worker.said("worker.assigned"))
    time.sleep(4)
    assert worker.process.poll() is None
    stage.produce("1")
    assert worker.ended() == ExitCode.STALLED
    assert [line["topic"] for line in worker.said("watchdog.stalled")] == [stage.topic]
    stage.worker()
    until(lambda: stage.raws() == ["1"])


def test_an_idle_worker_and_one_behind_a_marker_are_well(stage: Stage) -> None:
    stage.topics()
    worker = stage.worker(watchdog_s=1)
    stage.produce("1")
    with stage.transaction(commit=False) as send:
        send("no")
    until(lambda: stage.raws() == ["1"])
    time.sleep(5)
    assert worker.process.poll() is None
    stage.produce("2")
    until(lambda: stage.raws() == ["1", "2"])


def test_a_worker_without_kafka_or_database_says_which(stage: Stage) -> None:
    worker = stage.worker(bootstrap_servers="127.0.0.1:1")
    assert worker.ended() == ExitCode.KAFKA_UNAVAILABLE
    stage.topics()
    stage.sql("drop table position")
    worker = stage.worker()
    assert worker.ended() == ExitCode.STORE_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(be_worker(json.loads(sys.argv[1])))
