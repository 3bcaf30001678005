"""Up to when the hub has heard each trust: what it had sent by then was taken in, so that a clock may count on it.

After hours without a worker the answer that a clock waits for lies in Kafka, and a clock that looks before the worker has read it would say
that nobody answered. So a clock waits while the hub reads what lay there when it was due; not for ever: where nothing moves, or it takes too
long, it rings and says what it does not know, because an alarm that is late can hurt somebody too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from hub.domain.clocks import Hearing
from hub.domain.ids import OdsCode
from hub.store.intake import PartitionKey

_IN_ALL = 10
"""As many times the patience with a partition that stands still is waited for one that moves: ten minutes, the shortest limit."""


class Topics(Protocol):
    """What of the trusts' topics was not taken in. None: that cannot be seen now."""

    async def ends(self) -> Mapping[PartitionKey, int] | None:
        """Where each partition ends. Raises StoreUnavailableError."""
        ...

    async def unread(self, ends: Mapping[PartitionKey, int]) -> Mapping[PartitionKey, int] | None:
        """The partitions that hold a message before this end which was not taken in, and the next offset of each. Raises StoreUnavailableError."""
        ...


@dataclass(slots=True)
class _Trust:
    heard: datetime | None = None
    """What it had sent by then was taken in."""
    marked: datetime | None = None
    """When ``ends`` were its ends: it will be heard up to then when they are reached. None: they are."""
    ends: Mapping[PartitionKey, int] = field(default_factory=dict)
    stands: Mapping[PartitionKey, int] | None = field(default_factory=dict)
    """Where its unread partitions stood at the last look; None: that could not be seen."""
    since: datetime | None = None
    """Since when they stand there."""
    awaited: datetime | None = None
    """Since when they move, and are waited for."""


class Heard:
    """Knows from one look to the next how far each trust was read. For one task at a time."""

    def __init__(self, topics: Topics, trust_of_topic: Mapping[str, OdsCode], patience: timedelta) -> None:
        self._topics = topics
        self._trust_of_topic = trust_of_topic
        self._patience = patience
        self._trusts = {ods: _Trust() for ods in trust_of_topic.values()}

    async def look(self, now: datetime) -> Hearing:
        """Up to when the trusts were heard, and which cannot be heard. Raises StoreUnavailableError."""
        ends = await self._topics.ends()
        if ends is not None:
            self._mark(ends, now)
        wanted = {key: end for each in self._trusts.values() for key, end in each.ends.items()}
        unread = None if ends is None else await self._topics.unread(wanted)
        until: dict[str, datetime | None] = {}
        silent: set[str] = set()
        for ods, trust in self._trusts.items():
            stands = (
                None
                if unread is None
                else {k: v for k, v in unread.items() if self._trust_of_topic[k[0]] == ods}
            )
            if stands == {}:
                trust.heard, trust.marked, trust.ends = trust.marked, None, {}
                trust.stands, trust.since, trust.awaited = {}, None, None
            elif not self._is_awaited(trust, stands, now):
                silent.add(ods)
                continue
            if trust.heard != now:
                until[ods] = trust.heard
        return Hearing(until, frozenset(silent))

    def _mark(self, ends: Mapping[PartitionKey, int], now: datetime) -> None:
        for ods, trust in self._trusts.items():
            if trust.marked is None:
                trust.marked = now
                trust.ends = {k: end for k, end in ends.items() if self._trust_of_topic[k[0]] == ods}

    def _is_awaited(self, trust: _Trust, stands: Mapping[PartitionKey, int] | None, now: datetime) -> bool:
        """Whether it moves, or has not stood still for long; and that not for too long altogether."""
        if trust.since is None or trust.stands != stands:
            goes_on = trust.since is not None and now < trust.since + self._patience
            trust.awaited = trust.awaited if goes_on else now
            trust.stands, trust.since = stands, now
        awaited = trust.awaited or now
        return now < trust.since + self._patience and now < awaited + self._patience * _IN_ALL
