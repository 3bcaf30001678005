"""Health is progress: a thread of its own that ends the process when a message waits and nothing moves."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from hub.sources.kafka_config import ExitCode, Leave, WorkerConfig
from hub.sources.kafka_reader import KafkaUnavailableError, Reader
from hub.sources.kafka_source import Vitals
from hub.store.intake import PartitionKey
from hub.telemetry.log import Log, fault_of


class Watchdog(threading.Thread):
    """Its own thread, event loop and connection: a blocked event loop must not silence it."""

    def __init__(self, config: WorkerConfig, vitals: Callable[[], Vitals], log: Log, leave: Leave) -> None:
        super().__init__(name="hub-watchdog", daemon=True)
        self._config = config
        self._vitals = vitals
        self._log = log
        self._leave = leave
        self._done = threading.Event()
        self._stood_at: dict[PartitionKey, int] = {}
        # Where a record was first seen waiting, and when.
        self._waiting: dict[PartitionKey, tuple[int, float]] = {}

    def stop(self) -> None:
        """Look no more; an orderly end has a limit of its own."""
        self._done.set()

    def run(self) -> None:
        """Until stopped."""
        try:
            asyncio.run(self._watch())
        except BaseException as error:  # noqa: BLE001 - a dead watchdog would be silence
            if not self._done.is_set():
                self._log.error("fault", fault=fault_of(error))
                self._leave(ExitCode.UNFORESEEN)

    async def _watch(self) -> None:
        interval_s = max(0.2, self._config.watchdog_s / 6)
        seen_at = time.monotonic()
        async with AsyncExitStack() as stack:
            reader: Reader | None = None
            while not await self._stopped_within(interval_s):
                self._judge_beat()
                try:
                    if reader is None:
                        reader = await stack.enter_async_context(Reader(self._config))
                    await self._judge_partitions(reader)
                    seen_at = time.monotonic()
                except KafkaUnavailableError as error:
                    blind_s = time.monotonic() - seen_at
                    if blind_s > self._config.watchdog_s and not self._done.is_set():
                        self._log.error("watchdog.blind", seconds=round(blind_s), fault=str(error))
                        self._leave(ExitCode.BLIND)

    async def _stopped_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self._done.is_set() and time.monotonic() < end:  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(min(0.2, seconds))
        return self._done.is_set()

    def _judge_beat(self) -> None:
        silent_s = time.monotonic() - self._vitals().beat_at
        if silent_s > self._config.watchdog_s and not self._done.is_set():
            self._log.error(
                "watchdog.stalled",
                seconds=round(silent_s),
                what="the event loop is blocked or the database silent",
            )
            self._leave(ExitCode.STALLED)

    async def _judge_partitions(self, reader: Reader) -> None:
        positions = self._vitals().waiting_at
        there = await reader.partitions({topic for topic, _ in positions})
        bounds = await reader.bounds([key for key in positions if key[1] in there.get(key[0], ())])
        now = time.monotonic()
        stood_at, self._stood_at = self._stood_at, dict(positions)
        still: dict[PartitionKey, tuple[int, float]] = {}
        for key, (first, end) in bounds.items():
            position = max(positions[key], first)
            # What moves is well, and is not read: under load that would be a megabyte of every partition at every look.
            if end <= position or stood_at.get(key) != positions[key]:
                continue
            # Not "end minus position": markers and aborted records would count as lag for ever.
            if not await reader.offsets_in(key, position, end, at_most=1):
                continue
            known = self._waiting.get(key)
            since = known[1] if known is not None and known[0] == position else now
            still[key] = (position, since)
            if now - since > self._config.watchdog_s and not self._done.is_set():
                self._log.error(
                    "watchdog.stalled", seconds=round(now - since), topic=key[0], partition=key[1]
                )
                self._leave(ExitCode.STALLED)
        self._waiting = still
