"""A second pair of eyes on a topic: reads committed records on its own connection, without a group."""

from collections.abc import Iterable, Mapping
from typing import Any

import aiokafka
from aiokafka import TopicPartition

from hub.store.intake import PartitionKey

_PATIENCE_MS = 2000


async def first_record_from(
    options: Mapping[str, Any], partition: PartitionKey, start: int, end: int
) -> int | None:
    """The offset of the first committed record in ``[start, end)``, or None if there is none: then those offsets are
    transaction markers, aborted or compacted records. Raises aiokafka's errors if Kafka cannot be asked.
    """
    tp = TopicPartition(*partition)
    consumer = aiokafka.AIOKafkaConsumer(**options, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([tp])
        first = (await consumer.beginning_offsets([tp]))[tp]
        last = min(end, (await consumer.end_offsets([tp]))[tp])
        if max(start, first) >= last:
            return None
        consumer.seek(tp, max(start, first))
        while await consumer.position(tp) < last:
            found = await consumer.getmany(tp, timeout_ms=_PATIENCE_MS, max_records=1)
            for record in found.get(tp, ()):
                return int(record.offset) if record.offset < last else None
        return None
    finally:
        await consumer.stop()


async def waiting(options: Mapping[str, Any], positions: Mapping[PartitionKey, int]) -> PartitionKey | None:
    """A partition in which a committed record waits at or behind its position, if there is one."""
    for partition, position in _sorted(positions):
        if await first_record_from(options, partition, position, 1 << 62) is not None:
            return partition
    return None


def _sorted(positions: Mapping[PartitionKey, int]) -> Iterable[tuple[PartitionKey, int]]:
    return sorted(positions.items())
