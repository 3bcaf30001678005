"""The harness itself: what was acknowledged before a SIGKILL is there after the restart."""

import uuid

import asyncpg  # type: ignore[import-untyped]
import pytest
from confluent_kafka import Consumer, Producer
from sqlalchemy import make_url

from tests.harness.kafka_server import KafkaServer
from tests.harness.postgres_server import PostgresServer

pytestmark = pytest.mark.live


def _read_one(bootstrap_servers: str, topic: str) -> bytes | None:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": f"group-{topic}",
            "auto.offset.reset": "earliest",
        }
    )
    try:
        consumer.subscribe([topic])
        message = consumer.poll(30)
        assert message is not None, "nothing arrived in 30 s"
        assert message.error() is None, message.error()
        value: bytes | None = message.value()
        return value
    finally:
        consumer.close()


def _produce(bootstrap_servers: str, topic: str, value: bytes) -> None:
    failures: list[object] = []
    producer = Producer({"bootstrap.servers": bootstrap_servers, "acks": "all"})
    producer.produce(topic, value, on_delivery=lambda error, _: failures.append(error) if error else None)
    assert producer.flush(30) == 0
    assert not failures


def test_kafka_keeps_an_acknowledged_message_across_sigkill(
    kafka: KafkaServer, bootstrap_servers: str
) -> None:
    if not kafka.controllable:
        pytest.skip("this Kafka is not ours to kill")
    topic = f"kept-{uuid.uuid4().hex}"
    kafka.create_topics([topic])
    _produce(bootstrap_servers, topic, b"still here")

    kafka.kill()
    assert not kafka.running
    kafka.start()

    assert kafka.bootstrap_servers == bootstrap_servers
    assert _read_one(bootstrap_servers, topic) == b"still here"


async def test_postgres_keeps_a_committed_row_across_sigkill(
    postgres: PostgresServer, database_url: str
) -> None:
    if not postgres.controllable:
        pytest.skip("this PostgreSQL is not ours to kill")
    plain = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(plain)
    await connection.execute("create table kept (word text)")
    await connection.execute("insert into kept values ('still here')")

    postgres.kill()
    assert not postgres.running
    connection.terminate()
    postgres.start()

    connection = await asyncpg.connect(plain)
    try:
        assert await connection.fetchval("select word from kept") == "still here"
    finally:
        await connection.close()
