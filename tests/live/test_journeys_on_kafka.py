"""The patients' journeys on real Kafka and PostgreSQL, all at once, by a worker and a dispatcher."""

import shutil

import pytest
from aiokafka import AIOKafkaProducer

from hub.destinations import topics
from tests.live.hub_process import SCHEMAS, LiveHub
from tests.stories.conftest import TRUSTS, empty_database  # noqa: F401 - a fixture
from tests.stories.on_a_broker import Broker, as_bytes, tell_them_all, told_alone

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]


class ShippedTrusts(LiveHub):
    """With the trusts that are shipped, instead of invented ones."""

    def __init__(self, folder, bootstrap_servers, database_url):
        super().__init__(folder, bootstrap_servers, database_url)
        shutil.rmtree(folder / "schemas")
        shutil.copytree(SCHEMAS, folder / "schemas")
        wanted = topics.wanted_topics(TRUSTS, 3, 1, 1, partitions_out=1)
        topics.apply(topics_admin(bootstrap_servers), wanted)


def topics_admin(bootstrap_servers):
    from confluent_kafka.admin import AdminClient

    return AdminClient({"bootstrap.servers": bootstrap_servers})


async def test_every_story_ends_as_it_does_in_the_transaction_alone(
    tmp_path,
    bootstrap_servers,
    database_url,
    empty_database,  # noqa: F811
):
    everything = await told_alone(tmp_path, empty_database)
    assert len(everything) >= 35
    hub = ShippedTrusts(tmp_path, bootstrap_servers, database_url)
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        hub.start("worker")
        hub.start("dispatcher")

        async def produce(ods, message):
            await producer.send_and_wait(
                TRUSTS[ods].events_topic, message.body, key=message.key, headers=as_bytes(message)
            )

        await tell_them_all(Broker(produce, hub.rows), everything, hub.on, hub.until_delivered)
    finally:
        await producer.stop()
        hub.close()
