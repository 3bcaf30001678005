"""The hub as processes, on real Kafka and PostgreSQL: a patient crosses while things are killed."""

import asyncio
import os
import subprocess
import sys
from collections import Counter

import psutil
import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import TopicPartition as Partition
from confluent_kafka.admin import AdminClient

from hub.demo.epr import Message
from hub.demo.people import patient_number
from tests.harness.kafka_server import KafkaServer, create_topics
from tests.harness.postgres_server import PostgresServer
from tests.live.hub_process import LiveHub, live_hub, now

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]


@pytest.fixture
def hub(tmp_path, bootstrap_servers, database_url):
    with live_hub(tmp_path, bootstrap_servers, database_url) as found:
        yield found


def _request(hub: LiveHub, number: int) -> Message:
    profile = hub.two.profile
    return hub.one.asks_to_transfer(
        patient_number(number),
        to=profile.ods,
        request_number=f"R{number}",
        encounter_number=f"E{number}",
        at=now(),
    )


def _header(record, name):
    return dict(record.headers).get(name, b"").decode()


async def test_a_patient_crosses_from_one_trust_to_another(hub):
    """Asked, accepted, bed ready, left, admitted: each step is seen at the other trust, and the audit tells it."""
    hub.start("worker")
    hub.start("dispatcher")
    patient, one, two = patient_number(1), hub.one, hub.two
    await hub.produce((one, _request(hub, 1)))
    await hub.until_taken_in(1)
    for status in ("received", "accepted", "ready"):
        answer = two.answers(
            patient, status, requester=one.profile, request_number="R1", at=now(), bed="Bed 4"
        )
        await hub.produce((two, answer))
    await hub.until_taken_in(4)
    await hub.produce(
        (one, one.discharges(patient, encounter_number="E1", at=now(), to_site=two.profile.sites[0].ods))
    )
    await hub.until_taken_in(5)
    await hub.produce((two, two.admits(patient, encounter_number="A1", ward="Cardiology", at=now())))
    await hub.until_taken_in(6)
    await hub.until_delivered()

    inbox_of_two = [_header(record, "event-type") for record in await hub.on(two.profile.inbox_topic)]
    inbox_of_one = [_header(record, "event-type") for record in await hub.on(one.profile.inbox_topic)]
    assert ["transfer.requested", "transfer.departed"] == inbox_of_two
    assert [
        "transfer.received",
        "transfer.accepted",
        "transfer.bed.allocated",
        "transfer.completed",
    ] == inbox_of_one
    transfer = (await hub.rows("select * from transfer"))[0]
    assert "completed" == transfer["state"]
    assert (
        "admitted the patient" in hub.run("audit", "trail", transfer["transfer_id"])
        or transfer["version"] == 6
    )
    assert "disclosure-sent" in hub.run("audit", "search", "--transfer", transfer["transfer_id"], "--json")
    assert [] == await hub.on(hub.three.profile.inbox_topic)


async def test_nothing_is_lost_or_doubled_while_worker_and_dispatcher_are_killed(hub):
    """200 requests; both processes die by SIGKILL four times each while they work."""
    requests = [(hub.one, _request(hub, number)) for number in range(200)]
    producing = asyncio.create_task(hub.produce(*requests))
    for _ in range(4):
        worker, dispatcher = (
            hub.start("worker", HUB_BATCH_MESSAGES_MAX="7"),
            hub.start("dispatcher", HUB_DISPATCH_BATCH_MAX="5"),
        )
        taken_in = (await hub.rows("select count(*) as n from message"))[0]["n"]

        async def moved(before=taken_in) -> bool:
            return (await hub.rows("select count(*) as n from message"))[0]["n"] > min(before + 10, 199)

        await hub.until(moved, "some more messages taken in")
        worker.kill()
        dispatcher.kill()
    await producing
    hub.start("worker")
    hub.start("dispatcher")
    await hub.until_taken_in(200)
    await hub.until_delivered()

    inbox, receipts = await hub.on(hub.two.profile.inbox_topic), await hub.on(hub.one.profile.receipts_topic)
    assert 200 == len({_header(record, "transfer-id") for record in inbox}) == len(inbox)
    assert 200 == len({_header(record, "x-request-id") for record in receipts}) == len(receipts)
    assert {"accepted"} == {row["disposition"] for row in await hub.rows("select disposition from message")}
    audited = Counter(row["code"] for row in await hub.audit())
    assert 200 == audited["msg-received"] == audited["transfer-created"] == audited["routed"]
    assert 400 == audited["disclosure-sent"] + audited["delivery-ack"]


async def test_a_worker_opens_no_port_and_leaves_in_order_when_asked(hub):
    worker = hub.start("worker")
    await hub.produce((hub.one, _request(hub, 1)))
    await hub.until_taken_in(1)

    assert [] == [
        c for c in psutil.Process(worker.process.pid).net_connections() if c.status == psutil.CONN_LISTEN
    ]
    assert 0 == worker.stop()
    assert "worker.leaving" in worker.log_path.read_text()


async def test_two_workers_share_the_partitions_and_one_takes_over_when_the_other_dies(hub):
    first, second = hub.start("worker"), hub.start("worker")

    async def shared() -> bool:
        counts = [
            len(w.said("worker.assigned")[-1]["partitions"])
            for w in (first, second)
            if w.said("worker.assigned")
        ]
        return len(counts) == 2 and sum(counts) == 9 and min(counts) > 0

    await hub.until(shared, "nine partitions on two workers")
    first.kill()
    await hub.produce(*[(hub.one, _request(hub, number)) for number in range(30)])
    await hub.until_taken_in(30)

    assert 30 == (await hub.rows("select count(distinct transfer_id) as n from transfer"))[0]["n"]


async def test_hub_run_starts_as_many_workers_as_it_is_told_each_with_a_name_of_its_own_in_the_group(hub):
    everything = hub.start("run", HUB_WORKERS="2", HUB_WORKER_INSTANCE="ward")

    async def shared() -> bool:
        newest = [line["partitions"] for line in everything.said("worker.assigned")[-2:]]
        return len(newest) == 2 and all(newest) and sum(map(len, newest)) == 9

    await hub.until(shared, "nine partitions on two workers")
    await hub.produce(*[(hub.one, _request(hub, number)) for number in range(30)])
    await hub.until_taken_in(30)
    await hub.until_delivered()

    assert 30 == (await hub.rows("select count(distinct transfer_id) as n from transfer"))[0]["n"]
    started = Counter(line["service"] for line in everything.said("service.started"))
    assert started == {"worker": 2, "dispatcher": 1, "clock": 1, "sealer": 1, "feeds": 1, "serve": 1}


async def test_more_workers_than_postgresql_has_locks_for_are_refused_before_anything_starts(hub):
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "hub.cli", "run"],
        env={**hub.environment, "HUB_WORKERS": "64", "HUB_BATCH_MESSAGES_MAX": "2000"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "may want 640000 locks at once, and PostgreSQL has room for" in done.stderr


async def test_a_database_that_is_gone_stops_the_worker_and_loses_nothing(hub, postgres):
    if not isinstance(postgres, PostgresServer):
        pytest.skip("the PostgreSQL given by HUB_DATABASE_URL is not ours to stop")
    worker = hub.start("worker", HUB_STORE_PATIENCE_S="2")
    await hub.produce((hub.one, _request(hub, 1)))
    await hub.until_taken_in(1)
    postgres.kill()
    await hub.produce(*[(hub.one, _request(hub, number)) for number in range(2, 12)])

    assert 75 == await asyncio.to_thread(worker.process.wait, 60)
    assert worker.said("store.unavailable")
    postgres.start()
    hub.start("worker")
    await hub.until_taken_in(11)
    assert 11 == (await hub.rows("select count(*) as n from transfer"))[0]["n"]


async def test_a_database_that_is_upgraded_under_services_that_rest_ends_them(hub):
    """Nothing was in hand when the upgrade looked who works, so it went through; what rests would go on with tables it does not know."""
    services = {
        name: hub.start(name) for name in ("worker", "dispatcher", "clock", "sealer", "feeds", "serve")
    }
    await hub.produce((hub.one, _request(hub, 1)))
    await hub.until_taken_in(1)
    await hub.until_delivered()
    await hub.rows("update alembic_version set version_num = '9999'")
    for name, service in services.items():
        assert await asyncio.to_thread(service.process.wait, 30) == 1, name
        assert "The database is at version 9999, newer than this program" in service.log_path.read_text(), (
            name
        )


async def test_kafka_gone_for_a_while_costs_time_only(hub, kafka):
    if not isinstance(kafka, KafkaServer):
        pytest.skip("the Kafka given by HUB_KAFKA_BOOTSTRAP_SERVERS is not ours to stop")
    hub.start("run")
    await hub.produce(*[(hub.one, _request(hub, number)) for number in range(10)])
    await hub.until_taken_in(10)
    kafka.kill()
    await asyncio.sleep(15)
    kafka.start()
    await hub.produce(*[(hub.one, _request(hub, number)) for number in range(10, 20)])
    await hub.until_taken_in(20, within_s=120)
    await hub.until_delivered(within_s=120)

    inbox = await hub.on(hub.two.profile.inbox_topic)
    assert 20 == len({_header(record, "transfer-id") for record in inbox}) == len(inbox)


async def test_only_committed_records_are_read_and_their_gaps_are_no_loss(hub):
    """A trust whose exporter uses Kafka transactions aborts one; its offsets stay empty for ever."""
    worker = hub.start("worker")
    topic = hub.one.profile.events_topic
    producer = AIOKafkaProducer(bootstrap_servers=hub.bootstrap_servers, transactional_id=f"epr.{topic}")
    await producer.start()
    for number, keep in ((1, True), (2, False), (3, True)):
        await producer.begin_transaction()
        message = _request(hub, number)
        headers = [(name, value.encode()) for name, value in message.headers.items()]
        await producer.send_and_wait(topic, message.body, key=b"one key", headers=headers)
        await (producer.commit_transaction() if keep else producer.abort_transaction())
    await producer.stop()
    await hub.until_taken_in(2)
    await asyncio.sleep(2)

    assert 2 == (await hub.rows("select count(*) as n from message"))[0]["n"]
    assert worker.process.poll() is None


async def test_messages_that_retention_ate_are_an_incident_and_the_rest_goes_on(hub):
    worker = hub.start("worker")
    sent = [(hub.one, _request(hub, number)) for number in range(6)]
    one_key = [(epr, Message(headers=m.headers, key=b"k", body=m.body)) for epr, m in sent]
    await hub.produce(*one_key[:2])
    await hub.until_taken_in(2)
    worker.stop()
    await hub.produce(*one_key[2:])
    row = (await hub.rows("select * from position where next_offset > 0"))[0]
    admin = AdminClient({"bootstrap.servers": hub.bootstrap_servers})
    for done in admin.delete_records([Partition(row["topic"], row["partition"], 4)]).values():
        done.result()
    hub.start("worker")
    await hub.until_taken_in(4)

    incident = (await hub.rows("select * from incident"))[0]
    assert "messages-lost" == incident["kind"]
    assert "messages-lost" in hub.run("incidents", "list", "--json")
    assert 1 == len(await hub.audit("code = 'incident-opened'"))
    hub.run("incidents", "acknowledge", incident["incident_id"], "--because", "told the trust")
    assert "No incident is open." in hub.run("incidents", "list")


async def test_a_position_beyond_the_end_is_refused_and_the_other_topics_go_on(hub):
    """The topic was made anew, or the database is from another day: nobody may guess."""
    worker = hub.start("worker")
    await hub.produce((hub.one, _request(hub, 1)))
    await hub.until_taken_in(1)
    worker.stop()
    row = (await hub.rows("select * from position where next_offset > 0"))[0]
    hub.run("positions", "set", row["topic"], str(row["partition"]), "1000", "--because", "a restored backup")
    worker = hub.start("worker")

    async def refused() -> bool:
        return bool(await hub.rows("select * from incident where kind = 'position-above-end'"))

    await hub.until(refused, "an incident")
    back = hub.two.asks_to_transfer(
        patient_number(9), to=hub.one.profile.ods, request_number="B1", encounter_number="B1", at=now()
    )
    await hub.produce((hub.two, back))
    await hub.until_taken_in(2)
    said = worker.said("position.above_end")[0]
    assert "hub positions set" in said["todo"]


async def test_a_topic_made_anew_is_read_from_where_a_person_says_and_not_before(hub):
    """Ten were taken in, then somebody made the topic again. It stays refused when it has grown past the old position, whoever
    restarts what; told where to begin, the hub takes in everything, at offsets that it has seen before.
    """
    topic = hub.one.profile.events_topic
    worker = hub.start("worker")
    await hub.produce(*_of_one_key(hub, range(10)))
    await hub.until_taken_in(10)
    worker.stop()
    admin = AdminClient({"bootstrap.servers": hub.bootstrap_servers})
    admin.delete_topics([topic])[topic].result()
    await hub.until(lambda: _is_gone(admin, topic), "the topic to be gone")
    create_topics(hub.bootstrap_servers, [topic], partitions=3)
    await hub.produce(*_of_one_key(hub, range(10, 25)))
    for _ in range(2):
        worker = hub.start("worker")
        await hub.until(lambda worker=worker: _said(worker, "topic.made_anew"), "a refusal")
        await asyncio.sleep(2)
        worker.stop()
    assert len(await hub.rows("select * from message")) == 10
    [incident] = await hub.rows("select * from incident")
    assert incident["kind"] == "topic-made-anew"

    worker = hub.start("worker")
    await hub.until(lambda: _said(worker, "topic.made_anew"), "a refusal")
    for each in await hub.rows("select partition from position where topic = $1", topic):
        hub.run("positions", "set", topic, str(each["partition"]), "0", "--because", "made anew by mistake")
    await hub.until_taken_in(25)
    assert worker.process.poll() is None, "it has taken up by itself what it refused"
    assert not await hub.rows("select * from incident where closed_at is null")


@pytest.mark.long
async def test_a_refused_topic_ends_no_worker_that_has_nothing_else_to_do(hub):
    """More workers than partitions, and one topic made anew in which something lies: nobody is to read that, so nobody is late with it."""
    topic = hub.one.profile.events_topic
    admin = AdminClient({"bootstrap.servers": hub.bootstrap_servers})
    for each in (hub.two, hub.three):
        admin.delete_topics([each.profile.events_topic])[each.profile.events_topic].result()
    await _made_anew(hub, admin, topic)
    worker = hub.start("worker")
    await hub.produce(*_of_one_key(hub, range(2)))
    await hub.until_taken_in(2)
    worker.stop()
    await _made_anew(hub, admin, topic)
    await hub.produce(*_of_one_key(hub, range(2, 8)))
    workers = [hub.start("worker", HUB_WATCHDOG_S="3") for _ in range(2)]

    async def refused() -> bool:
        return any(each.said("topic.made_anew") for each in workers)

    await hub.until(refused, "a refusal")
    await asyncio.sleep(15)
    assert [each.process.poll() for each in workers] == [None, None]


@pytest.mark.parametrize("new", [2, pytest.param(0, marks=pytest.mark.long)])
async def test_a_position_that_is_set_back_takes_nothing_in_twice(hub, new):
    """Several batches are read again, and then what is new, or nothing: the worker comes past them, and lives."""
    topic = hub.one.profile.events_topic
    small = {"HUB_BATCH_MESSAGES_MAX": "5", "HUB_WATCHDOG_S": "6"}
    worker = hub.start("worker", **small)
    await hub.produce(*_of_one_key(hub, range(18)))
    await hub.until_taken_in(18)
    worker.stop()
    before = await hub.rows("select event_id from event order by 1")
    for each in await hub.rows("select partition from position where topic = $1", topic):
        hub.run("positions", "set", topic, str(each["partition"]), "0", "--because", "to be sure")
    worker = hub.start("worker", **small)
    await hub.produce(*_of_one_key(hub, range(18, 18 + new)))

    async def is_past_all() -> bool:
        rows = await hub.rows("select max(next_offset) as n from position where topic = $1", topic)
        return bool(rows[0]["n"] == 18 + new)

    await hub.until(is_past_all, "the position to be where it was")
    assert worker.process.poll() is None
    after = await hub.rows("select event_id from event order by 1")
    assert [each for each in after if each in before] == before
    assert len(after) == len(await hub.rows("select transfer_id from transfer")) == 18 + new


@pytest.mark.parametrize("is_said", [False, True])
async def test_a_backup_is_put_back_and_everything_goes_on_under_the_same_names(hub, is_said):
    """The database is lost and is yesterday's again; Kafka is not. What lies between is read again: both hospitals know the
    transfer by the id it had, so what they say of it afterwards is understood.
    """
    one, two = hub.one, hub.two
    services = [hub.start("worker"), hub.start("dispatcher")]
    await hub.produce((one, _request(hub, 1)))
    await hub.until_taken_in(1)
    await hub.until_delivered()
    for each in services:
        each.stop()
    backup = await hub.copy_of_the_database()

    services = [hub.start("worker"), hub.start("dispatcher")]
    await hub.produce((one, _request(hub, 2)))
    await hub.until_taken_in(2)
    transfer = (await hub.rows("select transfer_id from transfer order by requested_at desc"))[0][
        "transfer_id"
    ]

    async def two_say(status: str) -> None:
        named = {"requester": one.profile, "request_number": "R2", "transfer_id": transfer}
        await hub.produce((two, two.answers(patient_number(2), status, at=now(), bed="Bed 4", **named)))

    await two_say("accepted")
    await hub.until_taken_in(3)
    await hub.until_delivered()
    for each in services:
        each.stop()

    hub.database_url = backup
    before = (await hub.rows("select max(seq) from outbox"))[0]["max"]
    if is_said:
        hub.run("db", "restored", "--because", "the disk was lost")
        assert "backup-put-back" in hub.run("incidents", "list", "--json")
    hub.start("worker")
    hub.start("clock")  # the answer can be read before its request, from another topic
    await hub.until_taken_in(3)
    await hub.until(lambda: _all_accepted(hub), "everything understood")
    hub.start("dispatcher")
    await two_say("ready")
    await hub.until_taken_in(4)
    await hub.until_delivered()
    [row] = await hub.rows("select state from transfer where transfer_id = $1", transfer)
    assert row["state"] == "bed-allocated"
    assert await _all_accepted(hub)
    [given] = await hub.rows("select min(seq) from outbox where seq > $1", before)
    assert (given["min"] > 1_000_000_000) is is_said
    told = await hub.on(one.profile.inbox_topic)
    assert {record.key.decode() for record in told} == {transfer}
    assert [_header(record, "event-type") for record in told][-1] == "transfer.bed.allocated"
    for row in await hub.rows("select topic, payload, sent_partition, sent_offset from outbox"):
        [there] = [
            record
            for record in await hub.on(row["topic"])
            if (record.partition, record.offset) == (row["sent_partition"], row["sent_offset"])
        ]
        assert there.value == row["payload"]


async def test_while_a_service_runs_no_backup_is_said_to_be_put_back(hub):
    """It would go on with numbers that the world has seen, between those that nobody has."""
    sealer = hub.start("sealer")
    await hub.until(lambda: hub.rows("select name from lease where name = 'sealer'"), "the sealer is at work")
    before = await hub.rows("select last_value from outbox_seq_seq")
    command = [sys.executable, "-m", "hub.cli", "db", "restored", "--because", "the disk was lost"]

    async def said() -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run, command, env=hub.environment, capture_output=True, text=True, check=False
        )

    refused = await said()
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1), refused
    assert "sealer" in refused.stderr
    assert "Stop every service" in refused.stderr
    assert await hub.rows("select last_value from outbox_seq_seq") == before
    sealer.kill()
    assert "one that was killed counts until" in (await said()).stderr

    async def is_taken() -> bool:
        return (await said()).returncode == 0

    await hub.until(is_taken, "the lease of who was killed has run out", within_s=30)
    assert "backup-put-back" in hub.run("incidents", "list", "--json")


def _of_one_key(hub: LiveHub, numbers: range) -> list[tuple[object, Message]]:
    return [
        (hub.one, Message(headers=m.headers, key=b"k", body=m.body))
        for m in (_request(hub, number) for number in numbers)
    ]


async def _all_accepted(hub: LiveHub) -> bool:
    return not await hub.rows("select * from message where disposition <> 'accepted'")


async def _made_anew(hub: LiveHub, admin: AdminClient, topic: str) -> None:
    admin.delete_topics([topic])[topic].result()
    await hub.until(lambda: _is_gone(admin, topic), "the topic to be gone")
    create_topics(hub.bootstrap_servers, [topic], partitions=1)


async def _is_gone(admin: AdminClient, topic: str) -> bool:
    return topic not in admin.list_topics(timeout=5).topics


async def _said(worker, event: str) -> bool:
    return bool(worker.said(event))


async def test_a_message_that_kills_the_process_is_set_aside_unread_after_the_third_death(hub, tmp_path):
    """The reader is made to die on one message, as a crash in native code would; the supervisor keeps restarting."""
    plant = tmp_path / "plant"
    plant.mkdir()
    (plant / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'worker' in sys.argv or 'worker' in ' '.join(sys.orig_argv):\n"
        "    import orjson\n"
        "    loads = orjson.loads\n"
        "    def deadly(raw):\n"
        "        if isinstance(raw, bytes) and b'DEADLY' in raw:\n"
        "            os.kill(os.getpid(), 9)\n"
        "        return loads(raw)\n"
        "    orjson.loads = deadly\n"
    )
    good = [(hub.one, _request(hub, number)) for number in range(4)]
    deadly = hub.one.asks_to_transfer(
        patient_number(77),
        to=hub.two.profile.ods,
        request_number="DEADLY",
        encounter_number="E77",
        at=now(),
    )
    await hub.produce(*good[:2], (hub.one, deadly), *good[2:])
    path = os.pathsep.join(filter(None, (str(plant), os.environ.get("PYTHONPATH", ""))))
    hub.start("run", PYTHONPATH=path, HUB_RESTART_BACKOFF_S="0.2", HUB_RESTART_BACKOFF_MAX_S="0.5")
    await hub.until_taken_in(5, within_s=150)

    rows = await hub.rows("select disposition, why, count(*) as n from message group by 1, 2")
    assert {("accepted", None, 4), ("quarantined", "process-killed", 1)} == {
        tuple(row.values()) for row in rows
    }


async def test_a_trust_that_sends_only_junk_is_paused_and_the_others_are_not(hub):
    hub.start("worker", HUB_QUARANTINE_IN_A_ROW_MAX="5")
    junk = [
        (hub.three, Message(headers={"x-request-id": f"junk-{number}"}, key=b"one key", body=b"{not json"))
        for number in range(12)
    ]
    await hub.produce(*junk)

    async def paused() -> bool:
        return bool(await hub.rows("select * from brake where pulled"))

    await hub.until(paused, "the brake")
    await hub.produce((hub.one, _request(hub, 1)))
    await hub.until_taken_in(6)
    await asyncio.sleep(1)
    assert (
        5 == (await hub.rows("select count(*) as n from message where disposition = 'quarantined'"))[0]["n"]
    )
    for _ in range(3):
        if not await paused():
            break
        hub.run("brake", "release", hub.three.profile.ods, "--because", "the export was mended")
        await asyncio.sleep(4)
    await hub.until_taken_in(13)
