"""The door in for Kafka: a Faust worker over the events topics of every trust.

Faust carries group membership, batches and the lifecycle. What was taken in is known by the database alone, so
whatever goes wrong here ends the process before anything is acknowledged, and the next one starts where the database says.
"""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn

import faust
from faust.types import TP

from hub.domain.ids import EventId, OdsCode, time_ordered_id
from hub.domain.message import Position, Received
from hub.domain.trust import Directory
from hub.sources.consumer import Bounds, consumer_class
from hub.sources.reader import first_record_from, waiting
from hub.store.intake import Intake, PartitionKey, StoreUnavailableError, Taken
from hub.store.positions import Positions
from hub.telemetry.log import Log, fault_of


class ExitCode(IntEnum):
    """Why a worker left. All but the first are restarted by whoever supervises it; nothing was acknowledged."""

    DRAINED = 0
    """SIGTERM or SIGINT: the batch under way was finished and the group left."""
    FAULT = 70
    """Something nobody foresaw."""
    STORE_UNAVAILABLE = 75
    """The database could not be used."""
    MESSAGE_MISSED = 76
    """A record exists between two that were delivered: Kafka's client skipped it."""
    STALLED = 77
    """Messages waited and nothing moved."""
    KAFKA_UNSEEN = 78
    """Nothing moved and Kafka could not be asked why."""


_DEATHS_BEFORE_UNREAD = 3
_TAKEN_UP_SUSPICIOUS = 2
_BRAKE_LOOK_S = 2.0
_WATCHDOG_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Units and reasons: the settings of the same names in `hub.settings`."""

    bootstrap_servers: str
    client_options: Mapping[str, Any] = field(default_factory=dict)
    """What aiokafka's clients need to reach Kafka."""
    group: str = "hub.worker"
    instance: str | None = None
    batch_messages_max: int = 200
    batch_wait_s: float = 0.05
    session_timeout_s: float = 10
    watchdog_s: float = 60
    read_committed: bool = True
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None


class KafkaSource:
    """Between Faust and the journey: positions, gaps, brakes, and what to do when something is wrong."""

    def __init__(
        self, config: WorkerConfig, directory: Directory, intake: Intake, positions: Positions, log: Log
    ) -> None:
        self._config = config
        self._trust_of_topic = directory.trust_of_topic
        self._intake = intake
        self._positions = positions
        self._log = log
        self._next: dict[PartitionKey, int] = {}
        self._cautious: dict[PartitionKey, int] = {}
        self._refused: set[PartitionKey] = set()
        self._braked: frozenset[OdsCode] = frozenset()
        self._moved_at = time.monotonic()
        self.app = self._build()

    def _build(self) -> faust.App:
        config = self._config
        app = faust.App(
            config.group,
            broker=[f"kafka://{server}" for server in config.bootstrap_servers.split(",")],
            broker_credentials=self._credentials(),
            store="memory://",
            processing_guarantee="at_least_once",
            topic_allow_declare=False,
            topic_disable_leader=True,
            web_enabled=False,
            stream_wait_empty=True,
            stream_buffer_maxsize=512,
            consumer_auto_offset_reset="earliest",
            consumer_group_instance_id=config.instance,
            consumer_metadata_max_age_ms=15_000,
            broker_session_timeout=config.session_timeout_s,
            broker_heartbeat_interval=config.session_timeout_s / 4,
            broker_rebalance_timeout=20.0,
            broker_commit_interval=0.5,
            broker_max_poll_records=config.batch_messages_max,
        )
        app.transport.Consumer = consumer_class(self._starts, read_committed=config.read_committed)
        topic = app.topic(*sorted(self._trust_of_topic), key_serializer="raw", value_serializer="raw")

        async def intake(stream: Any) -> None:
            async for events in stream.take_events(config.batch_messages_max, within=config.batch_wait_s):
                await self._batch(events)

        app.agent(topic, name="intake", concurrency=1)(intake)
        app.task(self._look_at_brakes)
        return app

    def _credentials(self) -> Any:
        if self._config.username is None:
            return None
        import ssl  # noqa: PLC0415 - only where Kafka is secured

        return faust.SASLCredentials(
            username=self._config.username,
            password=self._config.password,
            mechanism="SCRAM-SHA-512",
            ssl_context=ssl.create_default_context(cafile=self._config.ca_file),
        )

    # ------------------------------------------------------------ starting

    async def _starts(self, bounds: Bounds) -> tuple[Mapping[PartitionKey, int], set[PartitionKey]]:
        """Where to start, for each partition that was assigned; and which ones to leave alone."""
        try:
            return await self._decide_starts(bounds)
        except Exception as error:  # noqa: BLE001 - Faust would carry on from its own commits
            self._log.error("store.unavailable", fault=fault_of(error))
            self._leave(ExitCode.STORE_UNAVAILABLE)

    async def _decide_starts(self, bounds: Bounds) -> tuple[Mapping[PartitionKey, int], set[PartitionKey]]:
        known = await self._positions.load(bounds)
        starts: dict[PartitionKey, int] = {}
        self._refused = set()
        for key, (first, end) in sorted(bounds.items()):
            position = known.get(key, first)
            if position < first:
                await self._lost(key, position, first)
                position = first
            elif position > end:
                await self._beyond(key, position, end)
                self._refused.add(key)
                continue
            starts[key] = position
        taken_up = await self._positions.take_up(starts) if starts else {}
        batch = self._config.batch_messages_max
        self._cautious = {key: batch for key, times in taken_up.items() if times >= _TAKEN_UP_SUSPICIOUS}
        self._next = dict(starts)
        self._moved_at = time.monotonic()
        self._braked = await self._positions.braked()
        self._log.info("worker.assigned", partitions=len(bounds), cautious=len(self._cautious))
        return starts, self._refused | {key for key in starts if self._trust_of_topic[key[0]] in self._braked}

    async def _lost(self, key: PartitionKey, position: int, first: int) -> None:
        """Kafka's retention ate messages while nobody read them: loud, and visible until acknowledged."""
        detail = {
            "topic": key[0],
            "partition": key[1],
            "from": position,
            "to": first - 1,
            "messages_at_most": first - position,
        }
        self._log.error("position.below_first", **detail)
        await self._positions.open_incident("messages-lost", f"{key[0]}/{key[1]}", detail)
        await self._positions.skip_to(key, first)

    async def _beyond(self, key: PartitionKey, position: int, end: int) -> None:
        """The topic was made anew, or the database and Kafka are from different days: refuse the partition."""
        detail = {
            "topic": key[0],
            "partition": key[1],
            "position": position,
            "end": end,
            "mend": f"hub positions set {key[0]} {key[1]} OFFSET --because …, then restart the worker",
        }
        self._log.error("position.above_end", **detail)
        await self._positions.open_incident("position-above-end", f"{key[0]}/{key[1]}", detail)

    # ------------------------------------------------------------ batches

    async def _batch(self, events: Sequence[Any]) -> None:
        """Take in a batch, or end the process. Nothing may leave this but success: Faust would acknowledge it."""
        try:
            await self._take(events)
        except StoreUnavailableError as error:
            self._log.error("store.unavailable", fault=str(error))
            self._leave(ExitCode.STORE_UNAVAILABLE)
        except Exception as error:  # noqa: BLE001
            self._log.error("fault", fault=fault_of(error))
            self._leave(ExitCode.FAULT)

    async def _take(self, events: Sequence[Any]) -> None:
        by_partition: dict[PartitionKey, list[Any]] = {}
        for event in events:
            key = (event.message.topic, event.message.partition)
            # Not ours any more, refused, braked, or read again after a seek: left alone.
            if (
                event.message.offset >= self._next.get(key, 1 << 62)
                and self._trust_of_topic[key[0]] not in self._braked
            ):
                by_partition.setdefault(key, []).append(event.message)
        careful = {key: by_partition.pop(key) for key in list(by_partition) if self._cautious.get(key)}
        await self._together(by_partition)
        for key, messages in careful.items():
            await self._one_by_one(key, messages)

    async def _together(self, by_partition: Mapping[PartitionKey, list[Any]]) -> None:
        for key, messages in by_partition.items():
            await self._no_message_missed(key, [message.offset for message in messages])
        batch = [self._received(message) for messages in by_partition.values() for message in messages]
        if batch:
            await self._done(await self._intake.take(batch))

    async def _one_by_one(self, key: PartitionKey, messages: Sequence[Any]) -> None:
        """A position that was taken up before without getting past it: one of its messages may kill the process."""
        await self._no_message_missed(key, [message.offset for message in messages])
        for message in messages:
            if self._trust_of_topic[key[0]] in self._braked:
                return
            begun = await self._positions.begin_suspect(key, message.offset) if self._cautious.get(key) else 0
            unread = (
                f"The process died {begun} times while reading it."
                if begun >= _DEATHS_BEFORE_UNREAD
                else None
            )
            await self._done(await self._intake.take([self._received(message, unread)]))
            self._cautious[key] = max(0, self._cautious.get(key, 0) - 1)

    async def _done(self, taken: Taken) -> None:
        for key, offset in taken.positions.items():
            if key in self._next:
                self._next[key] = max(self._next[key], offset)
        self._moved_at = time.monotonic()
        if taken.braked - self._braked:
            await self._brake(taken.braked - self._braked)

    async def _no_message_missed(self, key: PartitionKey, offsets: Sequence[int]) -> None:
        """Offsets that did not arrive are a real gap only if a second reader does not see them either."""
        expected = self._next[key]
        for offset in offsets:
            if (
                offset > expected
                and await first_record_from(self._reader_options(), key, expected, offset) is not None
            ):
                self._log.error("position.missed", topic=key[0], partition=key[1], offset=expected)
                self._leave(ExitCode.MESSAGE_MISSED)
            expected = offset + 1

    def _received(self, message: Any, unread: str | None = None) -> Received:
        now = datetime.now(UTC)
        position = Position(message.topic, message.partition, message.offset)
        # Kafka's own time, so that a record that is delivered again has the id it had.
        at = datetime.fromtimestamp(message.timestamp, UTC) if _is_plausible(message.timestamp, now) else now
        return Received(
            event_id=EventId(time_ordered_id(at, position.topic, position.partition, position.offset)),
            trust=self._trust_of_topic[position.topic],
            position=position,
            headers=_headers(message.headers),
            key=message.key,
            raw=message.value or b"",
            received_at=now,
            unread=unread,
        )

    # ------------------------------------------------------------ brakes

    async def _brake(self, trusts: frozenset[OdsCode]) -> None:
        """Pause a trust's partitions on the client; its messages wait in Kafka."""
        self._braked |= trusts
        for trust in trusts:
            self._log.error(
                "brake.pulled",
                trust=trust,
                mend=f"hub quarantine list --trust {trust}, then hub brake release {trust}",
            )
        await self.app.consumer._thread.hold(self._partitions_of(trusts), still=True)  # noqa: SLF001

    async def _look_at_brakes(self) -> None:
        while not self.app.should_stop:
            await asyncio.sleep(_BRAKE_LOOK_S)
            try:
                pulled = await self._positions.braked()
                if pulled - self._braked:
                    await self._brake(pulled - self._braked)
                if self._braked - pulled:
                    await self._release(self._braked - pulled)
            except Exception as error:  # noqa: BLE001 - looked at again soon; batches notice a store that is gone
                self._log.warning("store.unavailable", fault=fault_of(error))

    async def _release(self, trusts: frozenset[OdsCode]) -> None:
        partitions = self._partitions_of(trusts)
        found = await self._positions.load({(tp.topic, tp.partition) for tp in partitions})
        offsets = {
            tp: found[(tp.topic, tp.partition)] for tp in partitions if (tp.topic, tp.partition) in found
        }
        await self.app.consumer.go_to(offsets)
        for tp, offset in offsets.items():
            self._next[(tp.topic, tp.partition)] = offset
        self._braked -= trusts
        await self.app.consumer._thread.hold(partitions, still=False)  # noqa: SLF001
        for trust in trusts:
            self._log.info("brake.released", trust=trust)

    def _partitions_of(self, trusts: frozenset[OdsCode]) -> set[TP]:
        return {
            TP(topic, partition) for topic, partition in self._next if self._trust_of_topic[topic] in trusts
        }

    # ------------------------------------------------------------ leaving

    def _leave(self, code: ExitCode) -> NoReturn:
        """End now, acknowledging nothing: Faust's own way out would commit offsets of what was not done."""
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)

    def _reader_options(self) -> dict[str, Any]:
        isolation = "read_committed" if self._config.read_committed else "read_uncommitted"
        return {**self._config.client_options, "isolation_level": isolation}

    def watch(self) -> None:
        """The watchdog, in a thread of its own: a blocked event loop must not silence it."""
        while True:
            time.sleep(_WATCHDOG_LOOK_S)
            still_s = time.monotonic() - self._moved_at
            if still_s < self._config.watchdog_s or not self._next:
                continue
            positions = {
                key: offset
                for key, offset in self._next.items()
                if self._trust_of_topic[key[0]] not in self._braked
            }
            try:
                stuck = asyncio.run(
                    asyncio.wait_for(waiting(self._reader_options(), positions), self._config.watchdog_s)
                )
            except Exception as error:  # noqa: BLE001
                self._log.error("watchdog.blind", seconds=int(still_s), fault=fault_of(error))
                self._leave(ExitCode.KAFKA_UNSEEN)
            if stuck is not None and time.monotonic() - self._moved_at >= self._config.watchdog_s:
                self._log.error("watchdog.stalled", seconds=int(still_s), topic=stuck[0], partition=stuck[1])
                self._leave(ExitCode.STALLED)
            self._moved_at = time.monotonic()

    def run(self) -> int:
        """Until SIGTERM or SIGINT. No listener is opened: the command line of Faust would open one."""
        threading.Thread(target=self.watch, name="watchdog", daemon=True).start()
        self._log.info("service.started", service="worker", pid=os.getpid())
        worker = faust.Worker(self.app, loglevel="ERROR", redirect_stdouts=False, quiet=True)
        worker.spinner = None
        try:
            worker.execute_from_commandline()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0
        else:
            code = 0
        self._log.info("worker.leaving", exit_code=code)
        return code


def _is_plausible(timestamp: float | None, now: datetime) -> bool:
    return timestamp is not None and 0 < timestamp < now.timestamp() + 10 * 365 * 86_400


def _headers(found: Any) -> dict[str, str]:
    """Kafka's headers by lower-case name; of several with one name the first counts."""
    pairs = found.items() if isinstance(found, Mapping) else (found or ())
    headers: dict[str, str] = {}
    for name, value in pairs:
        headers.setdefault(str(name).lower(), (value or b"").decode("utf-8", errors="replace"))
    return headers
