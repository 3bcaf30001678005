"""What a door in needs from the store behind it, and what it hears back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hub.domain.ids import OdsCode
from hub.domain.message import Received
from hub.domain.rejection import Disposition
from hub.journey.decide import Understood

PartitionKey = tuple[str, int]
"""(topic, partition)."""


class StoreUnavailableError(Exception):
    """The transaction could not be written and nothing of it was. Acknowledge nothing; stop."""


class NotWritableError(StoreUnavailableError):
    """The database answers, and refuses what was to be written, however often: a fault of the hub's, in one message."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a batch, after the commit."""

    dispositions: Mapping[Disposition, int] = field(default_factory=dict)
    positions: Mapping[PartitionKey, int] = field(default_factory=dict)
    """The next offset of each partition of the batch, as committed."""
    braked: frozenset[OdsCode] = frozenset()
    """Trusts that are paused: their messages from this batch that come after the brake were left alone."""


class Intake(Protocol):
    """The one transaction, seen from a door."""

    def understand(self, received: Received) -> Understood:
        """What `take` begins with, for whoever has time before it; nothing is asked and nothing is written."""
        ...

    async def take(
        self, batch: Sequence[Received | Understood], *, next_after: Mapping[PartitionKey, int] | None = None
    ) -> Taken:
        """Commit everything the batch causes, positions included, in one transaction.

        Messages below their partition's recorded position are skipped (they were taken in before).
        ``next_after`` moves a partition's position past a gap that was proved to be real, even where no
        message of the batch stands behind it. Raises StoreUnavailableError; any other exception is a fault of the hub's.
        """
        ...
