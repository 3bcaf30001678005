"""A topic read whole, by a consumer that is not the hub's."""

from aiokafka import AIOKafkaConsumer


async def whole_topic(bootstrap_servers, topic):
    """Every committed record of a topic, from its first to its last."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap_servers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        ends = await consumer.end_offsets(list(consumer.assignment()))
        records = []
        while any([await consumer.position(each) < end for each, end in ends.items()]):
            for found in (await consumer.getmany(timeout_ms=200)).values():
                records.extend(found)
        return records
    finally:
        await consumer.stop()
