"""Feeds of the audit: each sealed entry as an AuditEvent, in the log's order, to the topic `hub.audit` for monitoring and, where
one is configured, to an audit repository (IHE ITI-20: POST AuditEvent).

The guarantees are the dispatcher's. To Kafka: fence the former owner, read back what it sent, go on behind that, so that no
event is on the topic twice. To a repository: each event under the same X-Request-Id however often it is posted, and 409
means that it has it. What cannot be passed on is tried again without end, waits visibly (`hub audit feeds`), and holds back
what comes after it: a repository that misses one event must not look complete.
"""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.domain.delivery import DeliveryError, Fault, Outgoing, Placed, Scope, backoff_s, judge
from hub.domain.incident import IncidentKind
from hub.services.dispatcher import Destination
from hub.store import feeds, incidents
from hub.store.feeds import Feed
from hub.store.outbox import hold_lease, release_lease
from hub.telemetry.log import Log, fault_of

CHECKPOINT = "checkpoint"
"""The event id of a record that holds a checkpoint and not an entry."""
_LEASE = timedelta(seconds=15)
_BAD_AFTER = 3
"""Failures in a row after which somebody has to look."""

_OTHER_LOG = Fault(
    Scope.RECEIVER,
    "OtherLog",
    "the topic holds entries that this log does not have: the database is older than the topic (`hub db restored`, if that was not done), "
    "or they are another hub's (give this hub a topic of its own, HUB_AUDIT_TOPIC)",
)

_NUMBER = re.compile(r"/([0-9]{1,19})$")
"""The entry's, in an event id."""

Render = Callable[[Sequence[dict[str, Any]]], Awaitable[list[Outgoing]]]
"""Sealed entries → what is sent, its ``seq`` the leaf's index."""


@dataclass(frozen=True, slots=True)
class FeedConfig:
    """``poll_s``: how soon a new leaf is seen; ``backoff_*``: waits after failures; ``batch_max`` leaves at a time."""

    poll_s: float = 1
    backoff_s: float = 0.5
    backoff_max_s: float = 60
    batch_max: int = 500


class FeedService:
    """One feed until told to stop. Several may run; whoever has the lease works."""

    def __init__(
        self,
        engine: AsyncEngine,
        name: str,
        topic: str,
        open_destination: Callable[[], Destination],
        render: Render,
        now: Callable[[], datetime],
        log: Log,
        *,
        holder: str,
        config: FeedConfig | None = None,
    ) -> None:
        self._engine = engine
        self._name, self._topic = name, topic
        self._open, self._render = open_destination, render
        self._now, self._log = now, log
        self._holder = holder
        self._config = config or FeedConfig()

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``. A database or a receiver that is away is waited for."""
        while not stop.is_set():
            wait_s = self._config.poll_s
            try:
                if await self._has_lease():
                    wait_s = await self._life(stop)
            except (OSError, TimeoutError, SQLAlchemyError) as error:
                self._log.warning("feed.waits", feed=self._name, fault=fault_of(error))
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), wait_s)
        with suppress(OSError, TimeoutError, SQLAlchemyError):
            await release_lease(self._engine, self._lease, self._holder)

    async def _life(self, stop: asyncio.Event) -> float:
        """From fencing to the first failure; how long to wait before the next life."""
        destination = self._open()
        feed = await feeds.feed(self._engine, self._name, self._now())
        try:
            await destination.start()
            feed = await self._read_back(feed, destination)
            while not stop.is_set() and await self._has_lease():
                rows = await feeds.leaves(self._engine, feed.next_leaf, self._config.batch_max)
                if rows:
                    feed = await self._pass_on(feed, rows, destination)
                elif feed.failures:
                    # It failed while nothing waited, or what waited was found to have arrived.
                    feed = await self._moved(feed, feed.next_leaf, feed.last_offset)
                else:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), self._config.poll_s)
        except DeliveryError as error:
            return await self._failed(feed, error)
        except (OSError, TimeoutError, SQLAlchemyError):
            raise
        except Exception as error:  # noqa: BLE001 - a bug with one feed must not end the others
            self._log.error("fault", feed=self._name, fault=fault_of(error))
            return await self._failed(feed, DeliveryError(judge(type(error).__name__)))
        finally:
            await destination.close()
        return self._config.poll_s

    async def _read_back(self, feed: Feed, destination: Destination) -> Feed:
        """What a former life sent and could not write down."""
        back = await destination.read_back([self._topic], feeds.last_sent(feed, self._topic))
        for fault in back.closed.values():
            raise DeliveryError(fault)
        if back.gone:
            await self._say_gone(feed)
        sent = [each for each in back.found if each.event_id != CHECKPOINT]
        strange = await self._not_of_this_log(sent)
        if not await self._are_of_a_lost_time(strange):
            raise DeliveryError(_OTHER_LOG)
        ours = [each for each in sent if each not in strange]
        if sent:
            self._log.info("feed.found_sent", feed=self._name, rows=len(ours), of_a_lost_time=len(strange))
        if not ours:
            return await self._moved(feed, feed.next_leaf, None) if back.gone else feed
        last = max(ours, key=lambda each: each.offset)
        next_leaf = max(feed.next_leaf, last.seq + 1)
        return await self._moved(feed, next_leaf, last.offset if next_leaf == last.seq + 1 else None)

    async def _not_of_this_log(self, sent: Sequence[Placed]) -> set[Placed]:
        strange: set[Placed] = set()
        waiting = sorted(sent, key=lambda each: each.seq)
        while waiting:
            rows = await feeds.leaves(self._engine, waiting[0].seq, self._config.batch_max)
            here = {(each.seq, each.event_id) for each in await self._render(rows)}
            some = [each for each in waiting if rows and each.seq <= rows[-1]["leaf_index"]]
            if not some:
                return strange.union(waiting)
            strange.update(each for each in some if (each.seq, each.event_id) not in here)
            waiting = waiting[len(some) :]
        return strange

    async def _are_of_a_lost_time(self, strange: Collection[Placed]) -> bool:
        """Whether somebody said that a backup was put back, and these entries have numbers of before."""
        if not strange:
            return True
        numbers = [_NUMBER.search(each.event_id) for each in strange]
        first = await feeds.first_since_backup(self._engine)
        return all(number is not None and int(number[1]) < first for number in numbers)

    async def _say_gone(self, feed: Feed) -> None:
        now, detail = self._now(), {"topic": self._topic, "next_leaf": feed.next_leaf}
        self._log.error("feed.records_gone", feed=self._name, **detail)
        async with self._engine.begin() as connection:
            await incidents.open_incident(
                connection, IncidentKind.AUDIT_RECORDS_GONE, self._topic, detail, "feeds", now
            )

    async def _pass_on(self, feed: Feed, rows: Sequence[dict[str, Any]], destination: Destination) -> Feed:
        outgoing = await self._render(rows)
        placed = await destination.send(outgoing)
        next_leaf = outgoing[len(placed) - 1].seq + 1
        if placed[0].partition >= 0 and placed[0].offset <= (
            -1 if feed.last_offset is None else feed.last_offset
        ):
            await self._say_gone(feed)
        return await self._moved(feed, next_leaf, max(each.offset for each in placed))

    async def _moved(self, feed: Feed, next_leaf: int, last_offset: int | None) -> Feed:
        now = self._now()
        async with self._engine.begin() as connection:
            ours = await feeds.moved(connection, feed, next_leaf, last_offset, now)
            if ours and feed.failures:
                await self._well_again(connection, now)
        if not ours:
            self._log.warning("feed.waits", feed=self._name, fault="another process has moved it")
        return await feeds.feed(self._engine, self._name, self._now())

    async def _failed(self, feed: Feed, error: DeliveryError) -> float:
        failures = feed.failures + 1
        wait_s = backoff_s(
            failures,
            first_s=self._config.backoff_s,
            max_s=self._config.backoff_max_s,
            jitter=random.random(),
        )
        wait_s = max(wait_s, min(error.retry_after_s or 0, self._config.backoff_max_s))
        now = self._now()
        self._log.warning("feed.failed", feed=self._name, fault=str(error.fault), wait_s=round(wait_s, 2))
        await feeds.failed(self._engine, feed, str(error.fault), now + timedelta(seconds=wait_s))
        if failures >= _BAD_AFTER:
            async with self._engine.begin() as connection:
                detail = {"feed": self._name, "error": str(error.fault), "next_leaf": feed.next_leaf}
                since = feed.moved_at
                await incidents.open_incident(
                    connection, IncidentKind.AUDIT_FEED, self._name, detail, "feeds", now, since=since
                )
        return wait_s

    async def _well_again(self, connection: AsyncConnection, now: datetime) -> None:
        found = (await incidents.open_incidents(connection, IncidentKind.AUDIT_FEED)).get(self._name)
        if found is not None:
            await incidents.close_incident(connection, found, "delivered", "feeds", now)

    async def _has_lease(self) -> bool:
        now = self._now()
        return await hold_lease(self._engine, self._lease, self._holder, now + _LEASE, now)

    @property
    def _lease(self) -> str:
        return f"feed.{self._name}"
