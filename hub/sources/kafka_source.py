"""What happens between Kafka and the one transaction. The rules, in the order in which a message meets them:

* A partition is read from the position in the database. A position below the topic's first offset means that
  messages were lost to retention: an incident, and on from the first. One above its end means that topic and
  database do not belong together: an incident, and the partition is left alone.
* A message of a partition that is no longer ours, or of a trust that is paused, is left alone. One below the
  position was taken in before.
* Offsets that were skipped are looked for by an independent reader. What it sees was missed: the process ends
  before anything is written. What it does not see either is a real gap (markers, aborted records, compaction).
* Where a worker died, messages are tried one by one, with a mark committed before. One that was begun three
  times and never finished is handed over unread.

No exception leaves this object: Faust would acknowledge the batch. Whatever was not foreseen ends the process.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NoReturn

from hub.domain.ids import EventId, OdsCode, time_ordered_id
from hub.domain.incident import ADVICE, IncidentKind
from hub.domain.message import Position, Received
from hub.domain.rejection import Disposition
from hub.journey.decide import Understood
from hub.sources.kafka_config import ExitCode, Leave, WorkerConfig
from hub.sources.kafka_consumer import HubConsumer
from hub.sources.kafka_reader import KafkaUnavailableError, Reader
from hub.sources.positions import Positions
from hub.store.intake import Intake, PartitionKey, StoreUnavailableError
from hub.telemetry.log import Log, fault_of

DEATHS_MAX = 3
_EPOCH = datetime.fromtimestamp(0, UTC)
_SECOND_LOOK_S = 1.0
_RESTLESS, _RESTLESS_S = 30, 60.0
"""So many assignments in so many seconds are nobody's restarts: each costs the group half a second."""
_STRETCH_S = 0.001
"""How long messages are understood before the former batch's transaction gets its turn; one large message can take longer."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """What the watchdog looks at."""

    beat_at: float
    """When (monotonic) the event loop was last seen alive with a database that answers."""
    waiting_at: Mapping[PartitionKey, int]
    """The positions at which a message ought to be taken in soon, if there is one."""


class KafkaSource:
    """The state of one worker between assignments and batches. Lives in the app's event loop."""

    def __init__(
        self,
        config: WorkerConfig,
        trust_of_topic: Mapping[str, OdsCode],
        intake: Intake,
        positions: Positions,
        reader: Reader,
        log: Log,
        leave: Leave,
    ) -> None:
        self._config = config
        self._trust_of_topic = trust_of_topic
        self._intake = intake
        self._positions = positions
        self._reader = reader
        self._log = log
        self._leave = leave
        self._consumer: HubConsumer | None = None
        # One at a time: a batch, or a change of positions.
        self._turn = asyncio.Lock()
        self._committing: asyncio.Task[None] | None = None
        self._next: dict[PartitionKey, int] = {}
        self._refused: set[PartitionKey] = set()
        self._braked: frozenset[OdsCode] = frozenset()
        # Messages still to be tried one by one, per partition.
        self._alone: dict[PartitionKey, int] = {}
        # Where this process has taken up what; to take it up there again is no sign of a death.
        self._taken_up_at: dict[PartitionKey, int] = {}
        self._missing: frozenset[str] = frozenset()
        self._gone: frozenset[str] | None = None
        self._elsewhere: Mapping[PartitionKey, int] = {}
        self._beat_at = time.monotonic()
        self._assigned_at: deque[float] = deque(maxlen=_RESTLESS)

    # -- what others ask --------------------------------------------------------------------------------

    def next_offset(self, key: PartitionKey) -> int | None:
        """See Steering."""
        return self._next.get(key)

    def vitals(self) -> Vitals:
        """May be called from another thread: it only copies."""
        # Without a partition of our own we look after everybody's: the group itself may be stuck.
        positions = self._next.copy() or dict(self._elsewhere)
        braked = self._braked
        return Vitals(
            self._beat_at,
            {k: offset for k, offset in positions.items() if self._trust_of_topic[k[0]] not in braked},
        )

    # -- assignments ------------------------------------------------------------------------------------

    async def take_up(self, consumer: HubConsumer) -> None:
        """See Steering."""

        async def work() -> None:
            async with self._turn:
                await self._take_up(consumer)

        await self._or_leave(work)

    async def _take_up(self, consumer: HubConsumer) -> None:
        self._consumer = consumer
        keys = [key for key in consumer.assigned() if key[0] in self._trust_of_topic]
        self._braked = await self._positions.braked()
        self._refused &= set(keys)
        starts = await self._starts_of(keys)
        await self._mark_suspects(starts)
        self._next = starts
        await consumer.read_from(starts)
        await consumer.pause([key for key in keys if key in self._refused or self._is_braked(key)])
        self._log.info("worker.assigned", partitions=[_name(key) for key in keys])
        self._say_restless()
        for (topic, partition), offset in starts.items():
            self._log.info("position.taken_up", topic=topic, partition=partition, offset=offset)

    def _say_restless(self) -> None:
        """Two workers of one name in the group take everything from each other, twice a second and without end: Kafka lets the newer one in,
        the client library does not know what it tells the older one, and asks again.
        """
        now = time.monotonic()
        self._assigned_at.append(now)
        if len(self._assigned_at) == _RESTLESS and now - self._assigned_at[0] < _RESTLESS_S:
            self._assigned_at.clear()
            todo = (
                "look for workers that come and go"
                if self._config.instance is None
                else "is HUB_WORKER_INSTANCE another worker's too? Each needs a name of its own, or none"
            )
            self._log.error("worker.restless", assignments=_RESTLESS, seconds=_RESTLESS_S, todo=todo)

    async def _starts_of(self, keys: Collection[PartitionKey]) -> dict[PartitionKey, int]:
        """From where to read each of these partitions; those that must not be read are left out."""
        held = await self._positions.load(keys)
        bounds = await self._reader.bounds(keys)
        strange = await self._made_anew(held, bounds)
        starts: dict[PartitionKey, int] = {}
        for key in keys:
            if key in strange:
                continue
            start = await self._start_of(key, held.get(key), bounds[key])
            if start is not None:
                starts[key] = start
        return starts

    async def _made_anew(
        self, held: Mapping[PartitionKey, int], bounds: Mapping[PartitionKey, tuple[int, int]]
    ) -> set[PartitionKey]:
        """Partitions that hold another record than the last that was taken in: the topic was made anew and has grown past our
        position, so that no offset tells. They are not read.
        """
        last = await self._positions.last_taken(held)
        there = {
            key: offset
            for key, (offset, _) in last.items()
            if bounds[key][0] <= offset < held[key] <= bounds[key][1]
        }
        found = await self._reader.digests_at(there)
        strange = {key for key, offset in there.items() if found.get(key) != last[key][1]}
        for key in sorted(strange):
            await self._positions.made_anew(key, held[key], there[key])
            self._log.error(
                "topic.made_anew",
                topic=key[0],
                partition=key[1],
                offset=there[key],
                todo=ADVICE[IncidentKind.TOPIC_MADE_ANEW],
            )
        self._refused |= strange
        return strange

    async def _start_of(self, key: PartitionKey, position: int | None, bounds: tuple[int, int]) -> int | None:
        """From where to read; None if this partition must not be read."""
        first, end = bounds
        if position is None:
            # Never from the group's commits: they are not ours, and what they skip would be lost silently.
            position = 0
        if position > end:
            # Once more: for a moment after a change of leader a broker may know less than there is.
            await asyncio.sleep(_SECOND_LOOK_S)
            now = await self._reader.bounds([key])
            first, end = now[key]
            if position > end:
                await self._refuse(key, position, end)
                return None
            # Or it is another topic that has grown meanwhile.
            if await self._made_anew({key: position}, now):
                self._next.pop(key, None)
                return None
        self._refused.discard(key)
        if position < first:
            await self._say_lost(key, position, first)
            return first
        return position

    async def _say_lost(self, key: PartitionKey, position: int, first: int) -> None:
        self._log.error("position.below_first", topic=key[0], partition=key[1], offset=position, first=first)
        await self._positions.lost(key, position, first)

    async def _refuse(self, key: PartitionKey, position: int, end: int) -> None:
        await self._positions.out_of_reach(key, position, end)
        self._log.error(
            "position.above_end",
            topic=key[0],
            partition=key[1],
            offset=position,
            end=end,
            todo=ADVICE[IncidentKind.POSITION_ABOVE_END],
        )
        self._refused.add(key)
        self._next.pop(key, None)

    async def _mark_suspects(self, starts: Mapping[PartitionKey, int]) -> None:
        new = {key: offset for key, offset in starts.items() if self._taken_up_at.get(key) != offset}
        times = await self._positions.take_up(new)
        self._taken_up_at |= new
        for key, count in times.items():
            if count >= 2:
                # A batch holds at most this many messages of the partition: the one that kills is among them.
                self._alone[key] = self._config.batch_messages_max
                self._log.warning(
                    "suspect.alone", topic=key[0], partition=key[1], offset=new[key], times=count
                )

    async def laid_down(self, keys: Iterable[PartitionKey]) -> None:
        """See Steering."""

        async def work() -> None:
            async with self._turn:
                ours = [key for key in keys if key in self._taken_up_at]
                await self._positions.lay_down(ours)
                for key in ours:
                    del self._taken_up_at[key]
                    self._next.pop(key, None)
                    self._alone.pop(key, None)
                if ours:
                    self._log.info("worker.revoked", partitions=[_name(key) for key in ours])

        await self._or_leave(work)

    async def stopped(self) -> None:
        """The app has ended in good order: nothing that is held was a death."""
        await self.laid_down(list(self._taken_up_at))

    # -- batches ----------------------------------------------------------------------------------------

    async def handle(self, messages: Sequence[Any]) -> None:
        """Take in a batch of Faust's messages. Returns when its transaction is under way: meanwhile the next batch can be
        understood. The former one's is over then. Never raises.
        """
        received: list[Received] = []
        ahead: dict[Position, Understood] = {}

        async def understand() -> None:
            until = time.monotonic() + _STRETCH_S
            for message in messages:
                each = self._received(message)
                received.append(each)
                # Where a worker died, nothing is looked at before that is marked.
                if _key(each) not in self._alone:
                    ahead[each.place] = self._intake.understand(each)
                if time.monotonic() > until:
                    await asyncio.sleep(0)
                    until = time.monotonic() + _STRETCH_S

        async def commit() -> None:
            async with self._turn:
                await self._handle(received, ahead)

        await self._or_leave(understand)
        if self._committing is not None:
            await asyncio.shield(self._committing)
        self._committing = asyncio.create_task(self._or_leave(commit))

    async def _handle(self, received: Sequence[Received], ahead: Mapping[Position, Understood]) -> None:
        of_partition: dict[PartitionKey, dict[int, Received]] = {}
        for each in received:
            of_partition.setdefault(_key(each), {}).setdefault(each.place.offset, each)
        ours = set(self._consumer.assigned()) if self._consumer else set()
        batch: list[Received] = []
        alone: list[Received] = []
        for key, by_offset in of_partition.items():
            if key not in ours or key not in self._next or self._is_braked(key):
                continue
            fresh = [by_offset[offset] for offset in sorted(by_offset) if offset >= self._next[key]]
            if fresh and await self._nothing_missed(key, [each.place.offset for each in fresh]):
                (alone if key in self._alone else batch).extend(fresh)
        if batch:
            await self._take([ahead.get(each.place, each) for each in batch])
        for each in alone:
            await self._take_alone(each)

    async def _nothing_missed(self, key: PartitionKey, offsets: Sequence[int]) -> bool:
        """Whether the messages may be taken in after the position. Leaves if one was missed."""
        expected, here = self._next[key], set(offsets)
        # Usually nothing is absent; a set of the whole range could be large when something is.
        absent = offsets[-1] - expected + 1 - len(here)
        if absent == 0:
            return True
        first, end = (await self._reader.bounds([key]))[key]
        if first > expected:
            # Retention overtook us while we ran. What it left of the batch is still to be taken in.
            await self._say_lost(key, expected, first)
            self._next[key] = first
            return await self._nothing_missed(key, offsets) if offsets[-1] >= first else False
        if end <= offsets[-1]:
            raise KafkaUnavailableError("the end of the topic is behind a message that was read from it")
        begin = next(offset for offset in range(expected, offsets[-1]) if offset not in here)
        missed = [
            offset for offset in await self._reader.offsets_in(key, begin, offsets[-1]) if offset not in here
        ]
        if missed:
            self._log.error(
                "position.missed", topic=key[0], partition=key[1], offset=missed[0], messages=len(missed)
            )
            self._leave(ExitCode.MISSED)
        if absent > 1:  # one alone is nearly always the marker that ends a transaction
            self._log.info("position.gap", topic=key[0], partition=key[1], offset=begin, offsets=absent)
        return True

    async def _take(self, batch: Sequence[Received | Understood]) -> None:
        began = time.monotonic()
        taken = await self._intake.take(batch)
        for key, offset in taken.positions.items():
            if key in self._next:
                self._next[key] = offset
        accepted = taken.dispositions.get(Disposition.ACCEPTED, 0)
        self._log.info(
            "batch.committed",
            messages=len(batch),
            accepted=accepted,
            other=sum(taken.dispositions.values()) - accepted,
            ms=round((time.monotonic() - began) * 1000),
        )
        await self._pull_brakes(taken.braked)

    async def _take_alone(self, received: Received) -> None:
        at = received.place
        key = (at.topic, at.partition)
        if self._is_braked(key):
            return
        begun = await self._positions.begin_suspect(at.topic, at.partition, at.offset)
        if begun > DEATHS_MAX:
            self._log.error(
                "suspect.unread", topic=at.topic, partition=at.partition, offset=at.offset, times=begun - 1
            )
            received = replace(
                received, unread=f"the worker died {begun - 1} times when it read this message"
            )
        try:
            await self._take([received])
        except (StoreUnavailableError, asyncio.CancelledError):
            with suppress(StoreUnavailableError, TimeoutError):
                async with asyncio.timeout(2):
                    await self._positions.acquit(at.topic, at.partition, at.offset)
            raise
        left = self._alone.get(key, 1) - 1
        if left > 0:
            self._alone[key] = left
        else:
            self._alone.pop(key, None)

    def _received(self, message: Any) -> Received:
        topic, partition, offset = message.topic, message.partition, message.offset
        return Received(
            event_id=EventId(time_ordered_id(_instant(message.timestamp), topic, partition, offset)),
            trust=self._trust_of_topic[topic],
            position=Position(topic, partition, offset),
            headers=_headers(message.headers),
            key=message.key,
            raw=message.value or b"",
            received_at=datetime.now(UTC),
        )

    # -- brakes, and what changes while we read -----------------------------------------------------------

    def _is_braked(self, key: PartitionKey) -> bool:
        return self._trust_of_topic[key[0]] in self._braked

    async def _pull_brakes(self, trusts: Iterable[OdsCode]) -> None:
        pulled = frozenset(trusts) - self._braked
        self._braked |= pulled
        if not pulled or self._consumer is None:
            return
        await self._consumer.pause(
            [key for key in self._consumer.assigned() if self._trust_of_topic[key[0]] in pulled]
        )
        for trust in sorted(pulled):
            self._log.error("brake.pulled", trust=trust)

    async def _release_brakes(self, trusts: frozenset[OdsCode]) -> None:
        self._braked -= trusts
        if not trusts or self._consumer is None:
            return
        keys = [key for key in self._next if self._trust_of_topic[key[0]] in trusts]
        # What was fetched before the brake was let go by: back to the position.
        starts = await self._positions.load(keys)
        self._next |= starts
        await self._consumer.read_from(starts)
        await self._consumer.resume(starts)
        for trust in sorted(trusts):
            self._log.warning("brake.released", trust=trust)

    async def tend(self) -> NoReturn:
        """For as long as the worker runs: brakes, topics that were made anew, topics that do not exist yet."""
        while True:
            await self._or_leave(self._tend_once)
            self._beat_at = time.monotonic()
            await asyncio.sleep(self._config.poll_s)

    async def _tend_once(self) -> None:
        async with self._turn:
            braked = await self._positions.braked()
            await self._release_brakes(self._braked - braked)
            await self._pull_brakes(braked)
        # Kafka's absence here is the watchdog's to judge: a broker may be restarted under a worker that has nothing to do.
        with suppress(KafkaUnavailableError):
            await self._look_at_topics()

    async def _look_at_topics(self) -> None:
        there = await self._reader.partitions(self._trust_of_topic)
        missing = frozenset(self._trust_of_topic) - frozenset(there)
        # Seen twice: a broker that is just starting may not know all of them yet.
        gone = missing & self._missing
        if gone != self._gone:
            await self._positions.missing(gone, there)
            self._gone = gone
        for topic in sorted(missing - self._missing):
            self._log.warning(
                "topic.missing", topic=topic, todo="`hub topics apply`; it is read as soon as it is there"
            )
        for topic in sorted(self._missing - missing):
            self._log.info("topic.found", topic=topic)
        self._missing = missing
        keys = {(topic, number) for topic, numbers in there.items() for number in numbers}
        if not self._next:
            refused = await self._positions.refused(keys)
            self._elsewhere = await self._positions.load(keys - refused)
        await self._take_up_freed(keys)
        await self._look_for_topics_made_anew(keys)

    async def _look_for_topics_made_anew(self, there: set[PartitionKey]) -> None:
        bounds = await self._reader.bounds([key for key in self._next.copy() if key in there])
        for key, (_, end) in bounds.items():
            if end >= self._next.get(key, 0):
                continue
            async with self._turn:
                position = self._next.get(key)
                if (
                    position is not None
                    and self._consumer is not None
                    and await self._start_of(key, position, (0, end)) is None
                ):
                    await self._consumer.pause([key])

    async def _take_up_freed(self, there: set[PartitionKey]) -> None:
        """Partitions that were refused, and of which a person has said from where to read them."""
        ours = self._refused & there
        if not ours or ours == await self._positions.refused(ours):
            return
        async with self._turn:
            if self._consumer is None:
                return
            ours &= self._refused & set(self._consumer.assigned())
            freed = ours - await self._positions.refused(ours)
            try:
                starts = await self._starts_of(sorted(freed))
            except KafkaUnavailableError:
                self._refused |= freed
                raise
            if not starts:
                return
            await self._mark_suspects(starts)
            self._next |= starts
            await self._consumer.read_from(starts)
            await self._consumer.resume([key for key in starts if not self._is_braked(key)])
            for (topic, partition), offset in starts.items():
                self._log.info("position.taken_up", topic=topic, partition=partition, offset=offset)

    # -- the end ----------------------------------------------------------------------------------------

    async def _or_leave(self, work: Callable[[], Awaitable[None]]) -> None:
        """Only a cancellation may pass: it is the app's own, and nothing was committed."""
        try:
            await work()
        except StoreUnavailableError as error:
            self._log.error("store.unavailable", fault=str(error))
            self._leave(ExitCode.STORE_UNAVAILABLE)
        except KafkaUnavailableError as error:
            self._log.error("kafka.unavailable", fault=str(error))
            self._leave(ExitCode.KAFKA_UNAVAILABLE)
        except Exception as error:  # noqa: BLE001 - that is the point
            self._log.error("fault", fault=fault_of(error))
            self._leave(ExitCode.UNFORESEEN)


def _key(received: Received) -> PartitionKey:
    return received.place.topic, received.place.partition


def _instant(timestamp: float | None) -> datetime:
    """A record's time, for its id. The producer chooses it, so any number may come; what is no time is 1970."""
    try:
        return datetime.fromtimestamp(timestamp, UTC) if timestamp is not None and timestamp >= 0 else _EPOCH
    except (OverflowError, ValueError, OSError):
        return _EPOCH


def _headers(headers: Any) -> dict[str, str]:
    """Lower-case names and text values; of several with one name the first holds."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
    found: dict[str, str] = {}
    for name, value in pairs:
        text = value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value or "")
        found.setdefault(str(name).lower(), text)
    return found


def _name(key: PartitionKey) -> str:
    return f"{key[0]}/{key[1]}"
