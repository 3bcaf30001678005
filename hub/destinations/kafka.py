"""Kafka as a door out: one producer for one receiver.

* One transaction per batch; every future is awaited before the commit, because the commit does not fail for
  a record that failed.
* After any failure the object is done for: close it, make a new one, read back. Whether the last batch
  arrived is known from the topic only.
* Nothing waits without end: aiokafka retries an idempotent batch for ever, and waits for the metadata of a
  topic that does not exist. Every call here is bounded by ``patience_s``.
"""

import asyncio
import hashlib
import logging
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError, UnknownTopicOrPartitionError
from aiokafka.partitioner import DefaultPartitioner

from hub.domain.delivery import (
    EVENT_HEADER,
    SEQ_HEADER,
    DeliveryError,
    Fault,
    Outgoing,
    Placed,
    ReadBack,
    Scope,
    judge,
)
from hub.patience import StrayCancellationError, leave, looked_at, within

_BATCH_BYTES = 131_072
"""Records of one partition that travel together; aiokafka's 16 KiB makes a round trip of every eighth."""
_REQUEST_BYTES = 1_048_576
"""The largest record that is handed over; Kafka's own limit where nobody has set another."""
_PARTITIONER = DefaultPartitioner()
_SECOND_LOOK_S = 1.0
_DIGITS_MAX = 18
"""A number that a database can hold."""
_METADATA_S = 1.0
"""How long a topic may be unknown before it is called missing: the receiver's other topics wait that long too."""

_LEAVE_S = 5.0
_FAILED = (KafkaError, OSError, TimeoutError, StrayCancellationError)

_OPEN_TRANSACTION = Fault(
    Scope.RECEIVER,
    "OpenTransaction",
    "somebody's transaction is open in the receiver's topics, and what lies behind it cannot be seen: who else writes there?",
)

# What the client library writes about an outage is said by `delivery.failed`, once and with advice.
logging.getLogger("aiokafka").setLevel(logging.ERROR)
logging.getLogger("aiokafka.cluster").setLevel(logging.CRITICAL)  # ten lines a second on a missing topic


@dataclass(frozen=True, slots=True)
class KafkaAccess:
    """How to reach Kafka: PLAINTEXT, or SASL_SSL with SCRAM-SHA-512."""

    bootstrap_servers: str
    security_protocol: str = "PLAINTEXT"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    def client_options(self) -> dict[str, Any]:
        """The keyword arguments that aiokafka's clients share. Raises OSError if the CA file cannot be read."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
        }
        if self.security_protocol == "SASL_SSL":
            options |= {
                "sasl_mechanism": "SCRAM-SHA-512",
                "sasl_plain_username": self.username,
                "sasl_plain_password": self.password,
                "ssl_context": ssl.create_default_context(cafile=self.ca_file),
            }
        return options


class KafkaDestination:
    """One receiver's topics, held by a transactional id. Start, read back, send; close after any error.

    ``transactions=False`` is for the embedded broker only: nothing fences a former owner then.
    """

    def __init__(
        self, receiver: str, access: KafkaAccess, *, transactions: bool = True, patience_s: float = 15
    ) -> None:
        self._receiver = receiver
        self._access = access
        self._transactions = transactions
        self._patience_s = patience_s
        self._producer: Any = None

    async def start(self) -> None:
        """Connect and fence: a former owner's open transaction is aborted, and what it sends later is refused.

        Raises DeliveryError.
        """
        identity: dict[str, Any] = {"enable_idempotence": True}
        if self._transactions:
            # Short: an open transaction of a dead owner holds back every read_committed reader of the topic.
            identity = {
                "transactional_id": f"hub.dispatcher.{self._receiver.lower()}",
                "transaction_timeout_ms": 15_000,
            }
        try:
            self._producer = AIOKafkaProducer(
                **self._access.client_options(),
                **identity,
                client_id=f"hub-dispatcher-{self._receiver.lower()}",
                acks="all",
                max_batch_size=_BATCH_BYTES,
                request_timeout_ms=int(self._patience_s * 1000),
            )
            await within(self._patience_s, self._producer.start())
        except _FAILED as error:
            _refuse(error)

    async def send(self, rows: Sequence[Outgoing]) -> list[Placed]:
        """Send the rows in one transaction; where each lies, in the order given.

        Raises DeliveryError: then it is not known whether they were sent.
        """
        for topic in dict.fromkeys(row.topic for row in rows):
            try:
                await within(self._patience_s, self._partitions(topic))
            except _FAILED as error:
                _refuse(error, topic)
        batches = self._packed(rows)
        try:
            await within(self._patience_s, self._send_as_one(batches))
        except (*_FAILED, AssertionError) as error:
            # AssertionError: aiokafka's answer to a state that its background task has left meanwhile.
            _refuse(error)
        if any(batch.done.result().offset < 0 for batch in batches):
            # The broker knew the batch already and does not say where it lies (DuplicateSequenceNumber).
            raise DeliveryError(judge("DuplicateSequenceNumber"))
        place = {each.seq: each for batch in batches for each in batch.placed()}
        return [place[row.seq] for row in rows]

    async def _send_as_one(self, batches: Sequence["_Batch"]) -> None:
        if self._transactions:
            await self._producer.begin_transaction()
        for batch in batches:
            batch.done = await self._hand_over(batch)
        await asyncio.wait([batch.done for batch in batches])
        _raise_first(batches)
        if self._transactions:
            await self._producer.commit_transaction()

    def _packed(self, rows: Sequence[Outgoing]) -> list["_Batch"]:
        """The rows as batches of one partition each, in order. Raises DeliveryError for one that is too large to send."""
        packed: list[_Batch] = []
        last: dict[tuple[str, int], _Batch] = {}
        known = self._producer.client.cluster.partitions_for_topic
        parts = {topic: sorted(known(topic)) for topic in {row.topic for row in rows}}
        for row in rows:
            if len(row.payload) > _REQUEST_BYTES:
                raise DeliveryError(judge("MessageSizeTooLargeError", row.topic), (row.seq,))
            key = row.key.encode()
            part = _partition_of(key, parts[row.topic])
            batch = last.get((row.topic, part))
            if batch is None or not batch.takes(row, key):
                batch = last[row.topic, part] = _Batch(row.topic, part, self._producer.create_batch())
                packed.append(batch)
                batch.takes(row, key)
        return packed

    async def _hand_over(self, batch: "_Batch") -> "asyncio.Future[Any]":
        try:
            done: asyncio.Future[Any] = await self._producer.send_batch(
                batch.builder, batch.topic, partition=batch.partition
            )
        except KafkaError as error:
            raise DeliveryError(judge(_name(error), batch.topic)) from None
        done.add_done_callback(looked_at)
        return done

    async def _partitions(self, topic: str) -> set[int]:
        """The topic's partitions. Raises UnknownTopicOrPartitionError only if Kafka was asked and has it not."""
        known: set[int] | None = self._producer.client.cluster.partitions_for_topic(topic)
        if known:
            return known
        try:
            async with asyncio.timeout(min(_METADATA_S, self._patience_s / 2)):
                partitions: set[int] = await self._producer.partitions_for(topic)
                return partitions
        except TimeoutError:
            pass
        try:
            everything = await self._producer.client.fetch_all_metadata()
        except KafkaError as error:
            raise KafkaConnectionError from error
        if topic in everything.topics():
            raise TimeoutError
        raise UnknownTopicOrPartitionError

    async def read_back(self, topics: Iterable[str], known: Iterable[Placed]) -> ReadBack:
        """Which outbox rows lie in the topics behind those that are known, committed records only.

        ``known`` is what the store knows to lie last in each partition; an empty event id is not compared. Read from there, but
        not before the partition's first offset, to the last stable one; it ends by position, because the last offsets
        can be transaction markers. A partition that ends before what is known, or holds something else there, was made anew or
        lost its end: it is read whole. Call it after `start`: before the fence the former owner can still send.

        A topic that is missing or closed to us is in the answer; raises DeliveryError for everything else.
        """
        closed = {}
        wanted: list[TopicPartition] = []
        for topic in topics:
            try:
                parts = await within(self._patience_s, self._partitions(topic))
                wanted += [TopicPartition(topic, part) for part in parts]
            except _FAILED as error:
                fault = judge(_name(error), topic)
                if fault.scope is not Scope.TOPIC:
                    raise DeliveryError(fault) from None
                closed[topic] = fault
        if not wanted:
            return ReadBack((), closed)
        consumer = AIOKafkaConsumer(
            **self._access.client_options(),
            client_id=f"hub-dispatcher-{self._receiver.lower()}-read-back",
            group_id=None,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            fetch_max_wait_ms=100,
            request_timeout_ms=int(self._patience_s * 1000),
        )
        try:
            await within(self._patience_s, consumer.start())
            await self._until_stable(consumer, wanted)
            found, gone = await self._behind(consumer, wanted, known)
            return ReadBack(found, closed, gone)
        except _FAILED as error:
            _refuse(error)
        finally:
            await _stopped(consumer)

    async def _until_stable(self, consumer: Any, wanted: Sequence[TopicPartition]) -> None:
        """Until no transaction is open in these partitions: what lies behind one cannot be seen, and would be sent again."""
        looking = AIOKafkaConsumer(
            **self._access.client_options(),
            client_id=f"hub-dispatcher-{self._receiver.lower()}-ends",
            group_id=None,
            enable_auto_commit=False,
            request_timeout_ms=int(self._patience_s * 1000),
        )
        try:
            await within(self._patience_s, looking.start())
            looking.assign(wanted)
            deadline = time.monotonic() + self._patience_s
            while await self._ends(looking, wanted) != (await self._bounds(consumer, wanted))[1]:
                if time.monotonic() > deadline:
                    raise DeliveryError(_OPEN_TRANSACTION)
                await asyncio.sleep(0.1)
        finally:
            await _stopped(looking)

    async def _behind(
        self, consumer: Any, wanted: Sequence[TopicPartition], known: Iterable[Placed]
    ) -> tuple[tuple[Placed, ...], tuple[Placed, ...]]:
        """What lies behind what is known, and what of that is gone."""
        first, end = await self._bounds(consumer, wanted)
        known, topics = list(known), {part.topic for part in wanted}
        last = {part: each for each in known if (part := TopicPartition(each.topic, each.partition)) in first}
        # A topic that was made anew can have fewer partitions.
        lost = [each for each in known if each.topic in topics and (each.topic, each.partition) not in first]
        if any(end[part] <= each.offset for part, each in last.items()):
            # Once more: for a moment after a change of leader a broker may know less than there is.
            await asyncio.sleep(_SECOND_LOOK_S)
            first, end = await self._bounds(consumer, wanted)
        # What retention has removed can be compared with nothing.
        last = {part: each for part, each in last.items() if first[part] <= each.offset}
        begin = {part: last[part].offset if part in last else first[part] for part in wanted}
        found = {
            (TopicPartition(each.topic, each.partition), each.offset): each
            for each in await self._read(consumer, begin, end)
        }
        gone = {
            part: each for part, each in last.items() if not _same(found.pop((part, each.offset), None), each)
        }
        behind = [each for (part, _), each in found.items() if part not in gone]
        behind += await self._read(consumer, {part: first[part] for part in gone}, end)
        return tuple(behind), (*gone.values(), *lost)

    async def _bounds(
        self, consumer: Any, wanted: Sequence[TopicPartition]
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        """First and end offsets. With read_committed the end is the last stable offset."""
        consumer.assign(wanted)
        first = await within(self._patience_s, consumer.beginning_offsets(wanted))
        return first, await self._ends(consumer, wanted)

    async def _ends(self, consumer: Any, wanted: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        ends: dict[TopicPartition, int] = await within(self._patience_s, consumer.end_offsets(wanted))
        return ends

    async def _read(
        self, consumer: Any, begin: Mapping[TopicPartition, int], end: Mapping[TopicPartition, int]
    ) -> list[Placed]:
        behind = {part: start for part, start in begin.items() if start < end[part]}
        if not behind:
            return []
        consumer.assign(list(behind))
        for part, start in behind.items():
            consumer.seek(part, start)
        found: list[Placed] = []
        moved_at, reached = time.monotonic(), behind
        while any(reached[part] < end[part] for part in behind):
            records = await within(self._patience_s, consumer.getmany(timeout_ms=100))
            for batch in records.values():
                found += [placed for record in batch if (placed := _placed(record)) is not None]
            positions = {
                part: int(await within(self._patience_s, consumer.position(part))) for part in behind
            }
            if positions != reached:
                moved_at, reached = time.monotonic(), positions
            elif time.monotonic() - moved_at > self._patience_s:
                raise TimeoutError
        return found

    async def close(self) -> None:
        """Let go of the connections, whatever state they are in; never raises, and takes some seconds at most.

        Not `producer.stop()`: that flushes first, and a batch that cannot be sent is retried for ever.
        An open transaction is left to the next owner's fence, or to its short timeout.
        """
        producer, self._producer = self._producer, None
        if producer is None:
            return
        producer._closed = True  # noqa: SLF001 - what stop() does first
        manager, sender = producer._txn_manager, producer._sender  # noqa: SLF001
        task = sender.sender_task
        sending = task is not None and not task.done()
        await leave(_LEAVE_S, *((sender.close,) if sending else ()), producer.client.close)
        # Exceptions nobody asks about any more would be reported when they are collected.
        waiter = getattr(manager, "_transaction_waiter", None)
        for each in (task, waiter):
            if each is not None and each.done():
                looked_at(each)


@dataclass(slots=True, eq=False)
class _Batch:
    """Records of one partition that Kafka takes as one, with one answer for all of them."""

    topic: str
    partition: int
    builder: Any
    rows: list[Outgoing] = field(default_factory=list)
    done: Any = None

    def takes(self, row: Outgoing, key: bytes) -> bool:
        """Add the record, if there is room; the first always has."""
        said = {**row.headers, EVENT_HEADER: row.event_id, SEQ_HEADER: str(row.seq)}
        headers = [(name, str(value).encode()) for name, value in said.items()]
        if self.builder.append(timestamp=None, key=key, value=row.payload, headers=headers) is None:
            return False
        self.rows.append(row)
        return True

    def placed(self) -> Iterable[Placed]:
        """Where each record lies: one behind the other."""
        first = self.done.result().offset
        return (
            Placed(row.seq, self.topic, self.partition, offset, row.event_id)
            for offset, row in enumerate(self.rows, first)
        )


def _partition_of(key: bytes, partitions: Sequence[int]) -> int:
    """Where a key belongs, as every Kafka client reckons; that takes Python long, and most topics have one partition."""
    part: int = partitions[0] if len(partitions) == 1 else _PARTITIONER(key, partitions, ())
    return part


def _raise_first(batches: Sequence[_Batch]) -> None:
    """The most telling error: a fence before a topic before a record before what followed from it."""
    faults = [
        (batch, judge(_name(error), batch.topic))
        for batch in batches
        if (error := batch.done.exception()) is not None
    ]
    for scope in (Scope.OWNER, Scope.TOPIC, Scope.RECORD, Scope.RECEIVER):
        found = [(batch, fault) for batch, fault in faults if fault.scope is scope]
        if found:
            topic = found[0][0].topic
            suspects = tuple(row.seq for batch, _ in found if batch.topic == topic for row in batch.rows)
            raise DeliveryError(found[0][1], suspects if scope is Scope.RECORD else ())


async def _stopped(consumer: Any) -> None:
    """The client is closed by itself: a consumer that fails while it stops leaves it open for ever."""
    await leave(_LEAVE_S, consumer.stop, consumer._client.close)  # noqa: SLF001


def _name(error: BaseException) -> str:
    """The type that says most: aiokafka wraps what its background task met in a bare KafkaError."""
    while type(error) is KafkaError and error.__cause__ is not None:
        error = error.__cause__
    return type(error).__name__


def _refuse(error: BaseException, topic: str | None = None) -> NoReturn:
    raise DeliveryError(judge(_name(error), topic)) from None


def _same(there: Placed | None, known: Placed) -> bool:
    """Whether a record is the one that is known to lie at its place."""
    return there is not None and there.seq == known.seq and known.event_id in ("", there.event_id)


def _placed(record: Any) -> Placed | None:
    """Which row a record is, or None if the hub did not write it."""
    headers = dict(record.headers)
    seq, event_id = headers.get(SEQ_HEADER), headers.get(EVENT_HEADER)
    if seq is None or event_id is None or not seq.isdigit() or len(seq) > _DIGITS_MAX:
        return None
    held = hashlib.sha256(record.value or b"").hexdigest()
    return Placed(
        int(seq), record.topic, record.partition, record.offset, event_id.decode(errors="replace"), held
    )
