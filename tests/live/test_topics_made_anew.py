"""What a hospital's topic held is gone: somebody hears of it, and the hospital can be sent it again, each message once."""

import asyncio

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka.admin import AdminClient

from tests.harness.kafka_server import create_topics
from tests.live.hub_process import LiveHub, live_hub
from tests.live.test_hub import _header, _is_gone, _request

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]


@pytest.fixture
def hub(tmp_path, bootstrap_servers, database_url):
    with live_hub(tmp_path, bootstrap_servers, database_url) as found:
        yield found


async def make_anew(hub: LiveHub, topic: str, partitions: int = 1) -> None:
    admin = AdminClient({"bootstrap.servers": hub.bootstrap_servers})
    admin.delete_topics([topic])[topic].result()
    await hub.until(lambda: _is_gone(admin, topic), "the topic to be gone")
    create_topics(hub.bootstrap_servers, [topic], partitions=partitions)


async def others_write(hub: LiveHub, topic: str, records: int, number: bytes = b"77000") -> None:
    headers = [("event-id", b"another"), ("outbox-seq", number)]
    producer = AIOKafkaProducer(bootstrap_servers=hub.bootstrap_servers)
    await producer.start()
    for _ in range(records):
        await producer.send_and_wait(topic, b"{}", key=b"x", headers=headers)
    await producer.stop()


async def numbers_in(hub: LiveHub, topic: str) -> list[int]:
    return [int(_header(record, "outbox-seq")) for record in await hub.on(topic)]


@pytest.mark.parametrize(
    "meanwhile",
    ["the dispatcher is stopped", pytest.param("the dispatcher runs", marks=pytest.mark.long)],
)
async def test_an_inbox_made_anew_is_an_incident_and_what_was_not_read_is_sent_again(hub, meanwhile):
    """The hospital had read one of three messages when its inbox was deleted by mistake."""
    two, topic = hub.two.profile, hub.two.profile.inbox_topic
    await make_anew(hub, topic)  # with one partition, so that there is one order
    hub.start("worker")
    dispatcher = hub.start("dispatcher")
    for number in range(3):
        await hub.produce((hub.one, _request(hub, number)))
        await hub.until_taken_in(number + 1)
    await hub.until_delivered()
    read, *unread = await numbers_in(hub, topic)
    if meanwhile == "the dispatcher is stopped":
        dispatcher.stop()
    await make_anew(hub, topic)
    await hub.produce((hub.one, _request(hub, 3)))
    await hub.until_taken_in(4)
    if meanwhile == "the dispatcher is stopped":
        dispatcher = hub.start("dispatcher")
    await hub.until_delivered()

    async def is_open() -> bool:
        kind = "select * from incident where kind = 'sent-records-gone' and closed_at is null"
        return bool(await hub.rows(kind))

    await hub.until(is_open, "an incident")
    assert "hub resend" in hub.run("incidents", "list", "--json")
    [new] = await numbers_in(hub, topic)

    resend = ("resend", "--trust", two.ods, "--after", str(read), "--because", "deleted by mistake")
    assert "With --yes 2 are sent again." in hub.run(*resend)
    await asyncio.sleep(1)
    assert await numbers_in(hub, topic) == [new]
    assert "2 wait to be sent again." in hub.run(*resend, "--yes")
    await hub.until_delivered()
    assert await numbers_in(hub, topic) == [new, *unread]
    assert not await is_open()
    assert "With --yes 0 are sent again." in hub.run(*resend), "it lies there now"

    dispatcher.kill()
    hub.start("dispatcher")
    await hub.produce((hub.one, _request(hub, 4)))
    await hub.until_taken_in(5)
    await hub.until_delivered()
    assert (await numbers_in(hub, topic))[:3] == [new, *unread]
    assert len(await numbers_in(hub, topic)) == 4
    assert not await is_open()
    [entry] = await hub.audit("detail::json ->> 'because' = 'deleted by mistake' and code = 'delivery-retry'")
    assert orjson.loads(entry["detail"])["rows"] == 2


async def ask(hub: LiveHub, *numbers: int) -> None:
    taken_in = len(await hub.rows("select event_id from message"))
    await hub.produce(*((hub.one, _request(hub, number)) for number in numbers))
    await hub.until_taken_in(taken_in + len(numbers))
    await hub.until_delivered()


@pytest.mark.parametrize(("old", "new"), [(1, 1), pytest.param(2, 5, marks=pytest.mark.long)])
async def test_it_is_noticed_under_a_running_dispatcher_however_much_is_sent_next(hub, old, new):
    """The new records reach the offsets of the old ones at once, which would hide that those are gone."""
    topic = hub.two.profile.inbox_topic
    await make_anew(hub, topic)
    hub.start("worker")
    hub.start("dispatcher")
    await ask(hub, *range(old))
    await make_anew(hub, topic)
    await ask(hub, *range(old, old + new))

    async def said() -> list:
        return await hub.rows("select detail::text from incident where kind = 'sent-records-gone'")

    [incident] = await hub.until(said, "an incident")
    assert orjson.loads(incident["detail"])["offset"] > old - 2
    assert sorted(await numbers_in(hub, topic)) == sorted(set(await numbers_in(hub, topic)))
    assert len(await numbers_in(hub, topic)) == new
    hub.run("resend", "--trust", hub.two.profile.ods, "--after", "0", "--because", "made anew", "--yes")
    await hub.until_delivered()
    assert len(set(await numbers_in(hub, topic))) == len(await numbers_in(hub, topic)) == old + new


@pytest.mark.long
async def test_what_lay_in_partitions_that_a_topic_has_no_longer_is_gone_too(hub):
    topic = hub.two.profile.inbox_topic
    await make_anew(hub, topic, partitions=3)
    hub.start("worker")
    dispatcher = hub.start("dispatcher")
    await ask(hub, *range(15))
    used = {
        row["sent_partition"]
        for row in await hub.rows("select sent_partition from outbox where topic = $1", topic)
    }
    assert len(used) > 1
    dispatcher.stop()
    await make_anew(hub, topic, partitions=1)
    hub.start("dispatcher")
    await ask(hub, 15)

    rows = await hub.rows("select subject from incident where kind = 'sent-records-gone'")
    assert {row["subject"].split(" ")[0] for row in rows} == {f"{topic}/{each}" for each in used}
    hub.run("resend", "--trust", hub.two.profile.ods, "--after", "0", "--because", "made anew", "--yes")
    await hub.until_delivered()
    assert len(set(await numbers_in(hub, topic))) == len(await numbers_in(hub, topic)) == 16


async def test_an_odd_record_in_an_inbox_stops_nobody(hub):
    topic = hub.two.profile.inbox_topic
    await others_write(hub, topic, 1, number=b"9" * 20)
    hub.start("worker")
    hub.start("dispatcher")
    await ask(hub, 1)
    assert len(await hub.on(topic)) == 2


async def test_an_inbox_that_has_grown_past_what_was_known_is_not_taken_for_the_old_one(hub):
    """While the hub stood still the inbox was made anew and another hub's test wrote into it: the offsets fit, the records do not."""
    topic = hub.two.profile.inbox_topic
    await make_anew(hub, topic)
    hub.start("worker")
    dispatcher = hub.start("dispatcher")
    await hub.produce((hub.one, _request(hub, 0)))
    await hub.until_taken_in(1)
    await hub.until_delivered()
    dispatcher.stop()
    old = await hub.on(topic)
    await make_anew(hub, topic)
    await others_write(hub, topic, 5)
    await hub.produce((hub.one, _request(hub, 1)))
    await hub.until_taken_in(2)
    hub.start("dispatcher")
    await hub.until_delivered()

    kinds = {row["kind"] for row in await hub.rows("select kind from incident")}
    assert kinds == {"sent-records-gone", "topic-ahead-of-database"}
    hub.run("resend", "--trust", hub.two.profile.ods, "--after", "0", "--because", "made anew", "--yes")
    await hub.until_delivered()
    hubs_own = [record for record in await hub.on(topic) if record.key != b"x"]
    assert [record.value for record in hubs_own[1:]] == [record.value for record in old]
    assert len(hubs_own) == 2
