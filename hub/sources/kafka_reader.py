"""A second pair of eyes: reads Kafka outside the group, so that what the group's consumer says can be checked."""

import asyncio
import hashlib
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from hub.patience import StrayCancellationError, leave, within
from hub.sources.kafka_config import WorkerConfig
from hub.store.intake import PartitionKey


class KafkaUnavailableError(Exception):
    """Kafka could not be reached or did not answer in time."""


class Reader:
    """Bound to the event loop it is entered in. Every method raises KafkaUnavailableError, and none waits longer than ``patience_s``."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._consumer = AIOKafkaConsumer(
            **config.client_options(),
            client_id="hub-worker-reader",
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed" if config.read_committed else "read_uncommitted",
            fetch_max_wait_ms=200,
            request_timeout_ms=int(config.patience_s * 1000),
        )
        # Reading a range replaces the client's assignment: one at a time.
        self._reading = asyncio.Lock()

    async def __aenter__(self) -> Self:
        try:
            await within(self._config.patience_s, self._consumer.start())
        except (KafkaError, OSError, TimeoutError, StrayCancellationError) as error:
            await self._stop()
            raise KafkaUnavailableError(type(error).__name__) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        # A consumer that fails to stop leaves its client open.
        await leave(self._config.patience_s, self._consumer.stop, self._consumer._client.close)  # noqa: SLF001

    async def bounds(self, keys: Iterable[PartitionKey]) -> dict[PartitionKey, tuple[int, int]]:
        """First and end offset of each partition. With read_committed the end is the last stable offset."""
        partitions = [TopicPartition(*key) for key in keys]
        if not partitions:
            return {}
        try:
            async with asyncio.timeout(self._config.patience_s):
                firsts = await self._consumer.beginning_offsets(partitions)
                ends = await self._consumer.end_offsets(partitions)
        except (KafkaError, OSError, TimeoutError) as error:
            raise KafkaUnavailableError(type(error).__name__) from error
        return {(tp.topic, tp.partition): (firsts[tp], ends[tp]) for tp in partitions}

    async def partitions(self, topics: Iterable[str]) -> dict[str, set[int]]:
        """The partitions of those of the topics that exist. Asks for all topics, which never makes one."""
        try:
            async with asyncio.timeout(self._config.patience_s):
                # `topics()` asks the same and keeps only the names; what the client itself knows may be five minutes old.
                cluster = await self._consumer._client.fetch_all_metadata()  # noqa: SLF001
        except (KafkaError, OSError, TimeoutError) as error:
            raise KafkaUnavailableError(type(error).__name__) from error
        existing = cluster.topics()
        return {
            topic: set(cluster.partitions_for_topic(topic) or ()) for topic in topics if topic in existing
        }

    async def digests_at(self, offsets: Mapping[PartitionKey, int]) -> dict[PartitionKey, str]:
        """The SHA-256 of the record at this offset of each partition, as hexadecimal digits; left out where there is none."""
        wanted = {TopicPartition(*key): offset for key, offset in offsets.items()}
        found: dict[PartitionKey, str] = {}
        if not wanted:
            return found
        async with self._reading:
            try:
                async with asyncio.timeout(self._config.patience_s):
                    self._consumer.assign(list(wanted))
                    for tp, offset in wanted.items():
                        self._consumer.seek(tp, offset)
                    while behind := [
                        tp for tp, at in wanted.items() if await self._consumer.position(tp) <= at
                    ]:
                        for tp, records in (await self._consumer.getmany(*behind, timeout_ms=200)).items():
                            for each in records:
                                if each.offset == wanted[tp]:
                                    digest = hashlib.sha256(each.value or b"").hexdigest()
                                    found[tp.topic, tp.partition] = digest
            except (KafkaError, OSError, TimeoutError) as error:
                raise KafkaUnavailableError(type(error).__name__) from error
            finally:
                self._consumer.unsubscribe()  # else it goes on fetching what nobody wants
        return found

    async def offsets_in(
        self, key: PartitionKey, begin: int, end: int, *, at_most: int | None = None
    ) -> list[int]:
        """The offsets from ``begin`` to before ``end`` at which there is a record; no more than ``at_most`` are looked for."""
        tp = TopicPartition(*key)
        found: list[int] = []
        async with self._reading:
            try:
                async with asyncio.timeout(self._config.patience_s):
                    self._consumer.assign([tp])
                    self._consumer.seek(tp, begin)
                    # By position and not by the last record: the last offsets can be markers.
                    while await self._consumer.position(tp) < end and (
                        at_most is None or len(found) < at_most
                    ):
                        records = await self._consumer.getmany(tp, timeout_ms=200)
                        found.extend(
                            record.offset for record in records.get(tp, ()) if begin <= record.offset < end
                        )
            except (KafkaError, OSError, TimeoutError) as error:
                raise KafkaUnavailableError(type(error).__name__) from error
            finally:
                self._consumer.unsubscribe()  # else it goes on fetching what nobody wants
        return found
