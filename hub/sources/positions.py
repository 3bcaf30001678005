"""What the Kafka door needs to know and to write about positions, apart from the batch's own transaction."""

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from hub.domain.ids import OdsCode
from hub.store.intake import PartitionKey


class Positions(Protocol):
    """The store's memory of where each partition stands. Every method is one transaction and raises StoreUnavailableError."""

    async def load(self, keys: Iterable[PartitionKey]) -> dict[PartitionKey, int]:
        """The next offset of each of these partitions; those never read are left out."""
        ...

    async def take_up(self, starts: Mapping[PartitionKey, int]) -> dict[PartitionKey, int]:
        """Note that reading of these partitions begins now; one never read gets its start as its position.

        Returns how often each was taken up at its position without getting past it, this time included: 1 is
        usual, more means that a worker died there. 2 at least where a message was begun alone and not finished.
        """
        ...

    async def lay_down(self, keys: Iterable[PartitionKey]) -> None:
        """Note that reading ended in good order: this taking up does not count as a death."""
        ...

    async def begin_suspect(self, topic: str, partition: int, offset: int) -> int:
        """Commit a mark before this one message is tried. Returns how often it has begun, this time included."""
        ...

    async def acquit(self, topic: str, partition: int, offset: int) -> None:
        """Take the last mark back: what ended this try was not the message."""
        ...

    async def braked(self) -> frozenset[OdsCode]:
        """The trusts whose messages are to be left alone."""
        ...

    async def lost(self, key: PartitionKey, position: int, first: int) -> None:
        """Retention removed the messages from ``position`` to before ``first``: open an incident, and go on from ``first``. A partition that
        was never read counts as read up to 0.
        """
        ...

    async def missing(self, topics: Collection[str], there: Collection[str]) -> None:
        """Topics that are not on the cluster, and those that are: an incident for each that was read before, closed when it is there again."""
        ...

    async def last_taken(self, keys: Iterable[PartitionKey]) -> dict[PartitionKey, tuple[int, str]]:
        """Offset and SHA-256 of the last record that was taken in from each partition, where that is known."""
        ...

    async def made_anew(self, key: PartitionKey, position: int, offset: int) -> None:
        """At ``offset`` lies another record than was taken in there: open an incident; the position stays."""
        ...

    async def refused(self, keys: Collection[PartitionKey]) -> set[PartitionKey]:
        """Those of the partitions that nobody reads until a person says from where: an incident of theirs is open."""
        ...

    async def out_of_reach(self, key: PartitionKey, position: int, end: int) -> None:
        """The topic ends at ``end``, below the position: open an incident; the position stays."""
        ...
