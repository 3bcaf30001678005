"""The patients' journeys on the embedded broker and SQLite, as a newcomer runs them: `hub run`, all stories at once."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from aiokafka import AIOKafkaProducer

from hub.demo.broker import EmbeddedBroker
from hub.store import schema
from hub.store.engine import open_engine
from tests.stories.conftest import SCHEMAS, TRUSTS
from tests.stories.on_a_broker import HOSPITALS, Broker, as_bytes, tell_them_all, told_alone
from tests.whole_topic import whole_topic

pytestmark = pytest.mark.timeout(180)


async def test_every_story_ends_as_it_does_in_the_transaction_alone(tmp_path, empty_database):
    everything = await told_alone(tmp_path, empty_database)
    database = tmp_path / "all.db"
    url = f"sqlite+aiosqlite:///{database}"
    engine = open_engine(url)
    await schema.upgrade(engine)
    await engine.dispose()
    with EmbeddedBroker() as broker:
        for profile in TRUSTS:
            broker.ensure_topics([profile.events_topic, profile.inbox_topic, profile.receipts_topic])
        await _run(broker.bootstrap_servers, url, database, everything, tmp_path)


async def _run(bootstrap_servers, url, database, everything, folder):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HUB_")} | {
        "HUB_DATABASE_URL": url,
        "HUB_KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        "HUB_KAFKA_TRANSACTIONS": "false",
        "HUB_SCHEMAS_DIR": str(SCHEMAS),
        "HUB_LOG_LEVEL": "error",
        "HUB_FACADE_PORT": "0",
        # The stories are told as of two days ago, without a clock: it would ring for them, and retry what waits.
        "HUB_CLOCK_POLL_S": "3600",
    }

    async def rows(sql):
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(sql)]

    async def until_delivered():
        while (await rows("select count(*) as n from outbox where state = 'pending'"))[0]["n"]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    async def on(topic):
        return await whole_topic(bootstrap_servers, topic)

    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all")

    async def produce(ods, message):
        topic = TRUSTS[ods].events_topic
        await producer.send_and_wait(topic, message.body, key=message.key, headers=as_bytes(message))

    log = (folder / "hub.log").open("wb")
    hub = subprocess.Popen(  # noqa: ASYNC220 - it starts in the background
        [sys.executable, "-m", "hub.cli", "run"], env=environment, stdout=log, stderr=log
    )
    await producer.start()
    try:
        await tell_them_all(Broker(produce, rows), everything, on, until_delivered)
    finally:
        await producer.stop()
        hub.send_signal(signal.SIGTERM)
        hub.wait(30)
        log.close()
    assert set(HOSPITALS.values()) <= {profile.ods for profile in TRUSTS}
