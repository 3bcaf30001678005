"""Faust's consumer, made to start from the database.

Faust's own commits are advisory here: it acknowledges a batch even when its body raised or was cancelled. What
counts is the position that was committed with the batch's effects, so on every assignment the consumer seeks there.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiokafka
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from hub.store.intake import PartitionKey

Bounds = Mapping[PartitionKey, tuple[int, int]]
"""Partition → (first offset, offset behind the last committed record)."""

Starts = Callable[[Bounds], Awaitable[tuple[Mapping[PartitionKey, int], set[PartitionKey]]]]
"""Decides where to start each assigned partition, and which to leave paused."""


def consumer_class(starts: Starts, *, read_committed: bool) -> type[driver.Consumer]:
    """The class to set as ``app.transport.Consumer``."""

    class Thread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
        """Reads committed records only; everything on the client happens in this thread."""

        def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
            consumer = super()._create_worker_consumer(transport)
            if read_committed:
                consumer._isolation_level = "read_committed"  # noqa: SLF001 - Faust offers no setting
            return consumer

        def highwater(self, tp: TP) -> int | None:
            # With read_committed the end is the last stable offset; else lag would never reach 0.
            consumer = self._ensure_consumer()
            end: int | None = consumer.last_stable_offset(tp) if read_committed else consumer.highwater(tp)
            return end

        async def hold(self, partitions: set[TP], *, still: bool) -> None:
            """Pause (``still``) or resume partitions on the client itself."""
            await self.call_thread(self._hold, partitions, still)

        async def _hold(self, partitions: set[TP], still: bool) -> None:
            consumer = self._ensure_consumer()
            mine = [
                tp
                for tp in consumer.assignment()
                if (tp.topic, tp.partition) in {(p.topic, p.partition) for p in partitions}
            ]
            if mine:
                (consumer.pause if still else consumer.resume)(*mine)

    class Consumer(driver.Consumer):  # type: ignore[misc]
        def _new_consumer_thread(self) -> Thread:
            return Thread(self, loop=self.loop, beacon=self.beacon)

        async def perform_seek(self) -> None:
            """Called by Faust on every assignment: go where the database says."""
            await super().perform_seek()
            assigned = self.assignment()
            if not assigned:
                return
            first = await self.earliest_offsets(*assigned)
            last = await self.highwaters(*assigned)
            by_key = {(tp.topic, tp.partition): TP(tp.topic, tp.partition) for tp in assigned}
            first = {(tp.topic, tp.partition): offset for tp, offset in first.items()}
            last = {(tp.topic, tp.partition): offset or 0 for tp, offset in last.items()}
            positions, still = await starts({key: (first[key], last[key]) for key in by_key})
            await self.go_to({by_key[key]: offset for key, offset in positions.items() if key in by_key})
            await self._thread.hold({by_key[key] for key in still if key in by_key}, still=True)

        async def go_to(self, offsets: Mapping[TP, int]) -> None:
            """Seek, in the consumer's own thread, and forget what was acknowledged."""
            if offsets:
                await self.seek_wait(offsets)
                for tp, offset in offsets.items():
                    self._committed_offset[tp] = offset
                    self._acked[tp].clear()
                    self._acked_index[tp].clear()

        async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
            """Transaction markers and aborted records leave gaps; Faust's advisory commits must not wait for them."""

        def _new_offset(self, tp: TP) -> int | None:
            acked = self._acked[tp]
            if not acked:
                return None
            behind = max(acked) + 1
            self._acked_index[tp].difference_update(acked)
            acked.clear()
            return int(behind)

    return Consumer
