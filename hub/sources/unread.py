"""What lies in the trusts' topics and was not taken in: for the clock, which must not ring for want of an answer that lies there."""

from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from hub.sources.kafka_config import WorkerConfig
from hub.sources.kafka_reader import KafkaUnavailableError, Reader
from hub.sources.positions import Positions
from hub.store.intake import PartitionKey


class Unread:
    """Asks Kafka and the database. Implements `hub.services.heard.Topics`; bound to the event loop it is entered in."""

    def __init__(self, config: WorkerConfig, topics: Iterable[str], positions: Positions) -> None:
        self._config = config
        self._topics = frozenset(topics)
        self._positions = positions
        self._stack = AsyncExitStack()
        self._reader: Reader | None = None
        self._ends: dict[PartitionKey, int] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def ends(self) -> Mapping[PartitionKey, int] | None:
        """Where each partition of the topics ends now. None: Kafka does not say."""
        try:
            # Entered when it is needed: a clock goes on without Kafka.
            if self._reader is None:
                self._reader = await self._stack.enter_async_context(Reader(self._config))
            there = await self._reader.partitions(self._topics)
            keys = [(topic, partition) for topic, partitions in there.items() for partition in partitions]
            self._ends = {key: end for key, (_, end) in (await self._reader.bounds(keys)).items()}
        except (
            KafkaUnavailableError,
            OSError,
        ):  # also a CA file that is not there: no reason for a clock to be silent
            return None
        return self._ends

    async def unread(self, ends: Mapping[PartitionKey, int]) -> Mapping[PartitionKey, int] | None:
        """The partitions with a record before this end that was not taken in, and where each stands. None: Kafka does not say.

        Raises StoreUnavailableError.
        """
        if self._reader is None:
            return None
        # A topic that was deleted holds nothing that could still be read.
        there = ends.keys() & self._ends.keys()
        held = await self._positions.load(there) if there else {}
        refused = await self._positions.refused(there) if there else set()
        try:
            bounds = await self._reader.bounds(there)
            found: dict[PartitionKey, int] = {}
            for key in there:
                first, last = bounds[key]
                end = min(ends[key], last)
                at = max(held.get(key, 0), first)
                # Made anew, or it has lost its end: nobody reads it before a person says from where, and that can be from the beginning.
                if key in refused or at > last:
                    at = first
                # Not "end minus position": markers and aborted records would be unread for ever.
                if at < end and await self._reader.offsets_in(key, at, end, at_most=1):
                    found[key] = at
        except KafkaUnavailableError:
            return None
        return found
