"""Faust's consumer, changed where it was measured to be wrong for us: see `hub/decisions` and the comments.

Private parts of faust-streaming 0.15 and aiokafka 0.14 are used here and in `kafka_reader`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import faust
from aiokafka.errors import IllegalStateError, KafkaError
from faust.app.base import BootStrategy
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, ensure_aiokafka_TP
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from hub.store.intake import PartitionKey

_COMMIT_S = 5.0
_FETCH_MIN_BYTES = 262_144
"""About a hundred messages."""


class Steering(Protocol):
    """Who decides where the consumer reads. None of these raises."""

    async def take_up(self, consumer: "HubConsumer") -> None:
        """Partitions were assigned, or Faust lost its place: say from where to read."""
        ...

    async def laid_down(self, keys: Iterable[PartitionKey]) -> None:
        """These are no longer ours, and no message of theirs is in hand."""
        ...

    def next_offset(self, key: PartitionKey) -> int | None:
        """The position as committed in the database."""
        ...


class _Boot(BootStrategy):  # type: ignore[misc]
    enable_web = False
    # Nothing is sent from here: no producer, so no connection and no permission for one.
    enable_kafka_producer = False


class HubApp(faust.App):  # type: ignore[misc]
    """A Faust app that only consumes: no web server, no producer, no folder on the disk."""

    BootStrategy = _Boot
    steering: Steering
    read_committed: bool
    fetch_wait_ms: int

    def _create_directories(self) -> None:
        """Faust would make a folder for tables; the container's file system is read-only."""


class Fetch(ConsumerMessage):  # type: ignore[misc]
    """All that one fetch brought, on its way through Faust as one message: for each, Faust makes half a dozen tasks,
    which costs as much as the journey itself.
    """

    def __init__(self, messages: Sequence[Any], generation_id: int) -> None:
        last = messages[-1]
        super().__init__(
            last.topic, last.partition, last.offset, last.timestamp, last.timestamp_type, None, None, b"", None,
            tp=last.tp, generation_id=generation_id,
        )  # fmt: skip
        self.messages = messages
        self.handled = asyncio.Event()


class HubConsumer(Consumer):  # type: ignore[misc]
    """Starts from the database's positions; Kafka's own commits are for monitoring only."""

    _thread: "HubConsumerThread"
    _in_hand: Fetch | None = None

    def _new_consumer_thread(self) -> "HubConsumerThread":
        return HubConsumerThread(self, loop=self.loop, beacon=self.beacon)

    @property
    def _steering(self) -> Steering:
        steering: Steering = self.app.steering
        return steering

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[Any, Fetch]]:  # noqa: ASYNC109 - Faust's
        """The next fetch, when the one in hand is done: what has arrived meanwhile is one batch."""
        if self._in_hand is not None:
            await self.wait_first(self._in_hand.handled.wait(), self.suspend_flow.wait())
        records, ours = await self._wait_next_records(timeout)
        if not records or self.should_stop:
            return
        if not self.flow_active:
            await self.perform_seek()  # they came too late, and the client stands behind them
            return
        messages = [
            self._to_message(tp, record)
            for tp, of_partition in records.items()
            if ours is None or tp in ours
            for record in of_partition
        ]
        if messages:
            self._in_hand = Fetch(messages, self.app.consumer_generation_id)
            yield self._in_hand.tp, self._in_hand

    async def perform_seek(self) -> None:
        """Faust calls this on every assignment. The group's committed offsets are not even asked for."""
        self._in_hand = None
        await self._steering.take_up(self)

    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        """After Faust has waited for the batch in hand."""
        await super().on_partitions_revoked(revoked)
        await self._steering.laid_down((tp.topic, tp.partition) for tp in revoked)

    def assigned(self) -> list[PartitionKey]:
        """The partitions that are ours now."""
        return sorted((tp.topic, tp.partition) for tp in self.assignment())

    async def read_from(self, starts: Mapping[PartitionKey, int]) -> None:
        """Go to these offsets, in the consumer's own thread, and forget what Faust thought of these partitions."""
        if not starts:
            return
        seeks = {TP(*key): offset for key, offset in starts.items()}
        await self.seek_wait(seeks)
        for tp, offset in seeks.items():
            self._committed_offset[tp] = offset or None
            self._acked[tp].clear()
            self._acked_index[tp].clear()

    async def pause(self, keys: Iterable[PartitionKey]) -> None:
        """Fetch no more from these partitions. A rebalance forgets it."""
        await self._thread.call_thread(self._thread.pause_on_client, [TP(*key) for key in keys])

    async def resume(self, keys: Iterable[PartitionKey]) -> None:
        """Fetch from these partitions again."""
        await self._thread.call_thread(self._thread.resume_on_client, [TP(*key) for key in keys])

    async def _add_gap(self, tp: Any, offset_from: int, offset_to: int) -> None:
        """Gaps are judged by `KafkaSource`; Faust's bookkeeping of them stalls its commits for ever."""

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterable[Any]:
        """All of ours: a fetch is acknowledged as one message of one partition."""
        return [tp for tp in self.assignment() if topics is None or tp in topics or tp.topic in topics]

    def _new_offset(self, tp: Any) -> int | None:
        """What to commit to Kafka: the database's position, so that lag as others measure it is the truth."""
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        return self._steering.next_offset((tp.topic, tp.partition))


class HubConsumerThread(AIOKafkaConsumerThread):  # type: ignore[misc]
    """The thread that owns the aiokafka client."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        if self.app.read_committed:
            # Faust in at_least_once reads aborted records too.
            consumer._isolation_level = "read_committed"  # noqa: SLF001
        # The broker lets a batch fill: else it answers for every message, each time for all partitions.
        consumer._fetch_max_wait_ms = self.app.fetch_wait_ms  # noqa: SLF001
        consumer._fetch_min_bytes = _FETCH_MIN_BYTES  # noqa: SLF001
        return consumer

    def highwater(self, tp: Any) -> Any:
        """The last stable offset where aborted and open records are not for us."""
        return (
            self._ensure_consumer().last_stable_offset(tp)
            if self.app.read_committed
            else super().highwater(tp)
        )

    async def _commit(self, offsets: Mapping[Any, int]) -> bool:
        """Advisory, so a failure is none; Faust would crash on it."""
        ours = self.assignment()
        wanted = {ensure_aiokafka_TP(tp): offset for tp, offset in offsets.items() if tp in ours}
        try:
            async with asyncio.timeout(_COMMIT_S):
                await self._ensure_consumer().commit(wanted)
        except (KafkaError, OSError, TimeoutError):
            return False
        return True

    async def _seek_wait(self, consumer: Any, partitions: Mapping[Any, int]) -> None:
        # A rebalance can take a partition away while the database is asked: then another take_up follows.
        with suppress(IllegalStateError):
            await super()._seek_wait(
                consumer, {tp: offset for tp, offset in partitions.items() if tp in self.assignment()}
            )

    async def pause_on_client(self, tps: Iterable[Any]) -> None:
        consumer = self._ensure_consumer()
        consumer.pause(*(ensure_aiokafka_TP(tp) for tp in tps if tp in self.assignment()))

    async def resume_on_client(self, tps: Iterable[Any]) -> None:
        consumer = self._ensure_consumer()
        consumer.resume(*(ensure_aiokafka_TP(tp) for tp in tps if tp in self.assignment()))
