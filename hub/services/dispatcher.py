"""The dispatcher: takes what waits in the outbox to its receivers, each receiver by itself.

Taking over a receiver, in this order and no other:

1. the lease, so that two dispatchers do not fight over it for long;
2. the fence (`Destination.start`), so that whoever had it can send no more;
3. reading back, so that what the former owner sent and did not write down is written down;
4. only then sending, and after each batch writing down where it lies before the next is read.

Any error goes back to 2 at the latest: after a failure only the topic knows what was sent. That is why
nothing is sent twice, whoever dies when, and why a lease that was believed too long costs time, not order.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from hub.domain.delivery import DeliveryError, Fault, Outgoing, Placed, ReadBack, Scope, backoff_s, judge
from hub.domain.incident import ADVICE, IncidentKind
from hub.domain.trust import Directory
from hub.patience import let_go, outcome_of, steadily
from hub.services.process_name import process_name
from hub.services.together import Together
from hub.store import outbox
from hub.telemetry.log import Log, fault_of

_T = TypeVar("_T")

_STORE_WAIT_MAX_S = 5.0
"""There is one store, and few ask for it: nobody's messages wait for another minute when it is back."""

_HELD_POLL_S = 0.25
"""How often to look again when everything that waits is held back: no need to ask at full speed."""

_WRITE_TOGETHER_S = 0.01
"""Receivers that began together have sent within some milliseconds of each other: one store transaction for them instead
of three. It delays no message, they are with their receivers already.
"""


class Destination(Protocol):
    """A door out to one receiver; `hub.destinations.kafka.KafkaDestination` is one. Used once, until its first error."""

    async def start(self) -> None:
        """Connect, and fence whoever had this receiver before. Raises DeliveryError."""
        ...

    async def read_back(self, topics: Iterable[str], known: Iterable[Placed]) -> ReadBack:
        """What lies in the topics behind what is known to lie last in each partition, and whether that lies there.
        Raises DeliveryError.
        """
        ...

    async def send(self, rows: Sequence[Outgoing]) -> list[Placed]:
        """In order, all of them or (where each is sent for itself) the first ones. Raises DeliveryError: then reading back tells."""
        ...

    async def close(self) -> None:
        """Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class DispatcherConfig:
    """Units and reasons: the settings ``dispatch_*`` of the same names in `hub.settings`."""

    batch_max: int = 200
    poll_s: float = 0.05
    gather_s: float = 0.15
    backoff_s: float = 0.5
    backoff_max_s: float = 60
    lease_s: float = 15


class _StoreError(Exception):
    """The store could not be used. Nothing was half written."""


class _StartOver(Exception):  # noqa: N818 - not an error
    """A topic that was closed may be open again, or one was made anew: it has to be read back before it is written to."""


class _Stopped(Exception):  # noqa: N818 - not an error
    """`run` was asked to end."""


@dataclass(slots=True)
class _ClosedTopic:
    failures: int
    until: float


@dataclass(slots=True)
class _Receiver:
    """What the loop of one receiver remembers. Nothing in it is needed to be right, only to be quick."""

    ods: str
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    failures: int = 0
    closed: dict[str, _ClosedTopic] = field(default_factory=dict)
    careful: int = 0
    """As many rows go one at a time: among them is one that the receiver refuses, and it did not say which."""
    sending: Sequence[Outgoing] = ()
    reached: dict[tuple[str, int], int] = field(default_factory=dict)
    """The highest offset that is known of each partition; filled as topics are sent to."""
    suspicious: set[str] = field(default_factory=set)
    """Topics in which something was given a lower offset than what was sent before: to be read back."""
    leased_until: float = 0.0

    def open_again(self) -> float | None:
        """When the first closed topic is to be tried again (monotonic), None if all are open."""
        return min((each.until for each in self.closed.values()), default=None)


class Dispatcher:
    """One loop per receiver of the directory that does not fetch by itself, fully independent; start it with `run`.

    ``open_destination`` makes a door out for a receiver's ODS code. ``holder`` names this process in the
    leases and must not be shared. Several dispatchers may run: a receiver belongs to one of them at a time.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        directory: Directory,
        open_destination: Callable[[str], Destination],
        log: Log,
        config: DispatcherConfig | None = None,
        *,
        holder: str | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._engine = engine
        self._receivers = {
            profile.ods: _Receiver(profile.ods) for profile in directory if profile.doors.outward != "polled"
        }
        self._fetches_itself = {profile.ods for profile in directory} - self._receivers.keys()
        self._open = open_destination
        self._log = log
        self._config = config or DispatcherConfig()
        self._holder = holder or process_name()
        self._now = now
        self._stop = asyncio.Event()
        # The store is asked for all receivers that are as far as each other; what is sent, each sends by itself.
        self._looked = Together(self._look)
        self._written = Together(self._write_down, gather_s=_WRITE_TOGETHER_S)

    async def run(self, stop: asyncio.Event) -> None:
        """Dispatch until ``stop`` is set; then finish the batches under way, give the leases back and return.

        No failure of the store, of Kafka or of a receiver ends it: they are logged and tried again for ever.
        """
        self._stop = stop
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(steadily(self._watch()))
            for receiver in self._receivers.values():
                tasks.create_task(steadily(self._serve(receiver)))

    # One query for all receivers, so that being idle does not cost one query each.

    async def _watch(self) -> None:
        failures = 0
        strangers: set[str] = set()
        while not self._stop.is_set():
            try:
                waiting = await self._store(outbox.receivers_with_pending(self._engine))
            except _StoreError as error:
                failures += 1
                wait_s = min(self._backoff(failures), _STORE_WAIT_MAX_S)
                self._log.warning("store.unavailable", fault=str(error), wait_s=round(wait_s, 2))
                await self._sleep(wait_s)
                continue
            failures = 0
            for ods in waiting:
                if ods in self._receivers:
                    self._receivers[ods].wake.set()
                elif ods not in strangers | self._fetches_itself:
                    strangers.add(ods)
                    self._log.error(
                        "delivery.failed",
                        receiver=ods,
                        fault="no trust of the directory has this code; its rows stay pending",
                    )
            await self._sleep(self._config.poll_s)

    # One receiver.

    async def _serve(self, receiver: _Receiver) -> None:
        """Wait for work, take the lease, work; for ever. Whatever goes wrong ends in a wait and a new start."""
        try:
            while await self._until_woken(receiver):
                try:
                    if not await self._take_lease(receiver):
                        # Somebody else serves it. Look again when the lease can have run out.
                        await self._sleep(self._jittered(self._config.lease_s / 3))
                        receiver.wake.clear()
                        continue
                    await self._own(receiver)
                except _StoreError as error:
                    await self._after_store_error(receiver, error)
        except _Stopped:
            pass

    async def _own(self, receiver: _Receiver) -> None:
        """With the lease: deliver until it is lost or we are asked to stop."""
        over = asyncio.Event()
        keeper = asyncio.create_task(self._keep_lease(receiver, over))
        try:
            while self._has_lease(receiver):
                wait_s = await self._one_life(receiver)
                if wait_s:
                    await self._sleep(wait_s)
        finally:
            # Asked twice: on a connection that has just died another error can take a cancellation's place.
            over.set()
            await let_go(keeper)
            # Also when the store is the reason: the next owner need not wait for the lease to run out.
            receiver.leased_until = 0.0
            with suppress(_StoreError):
                await self._store(outbox.release_lease(self._engine, _lease_name(receiver), self._holder))

    async def _one_life(self, receiver: _Receiver) -> float:
        """One producer from its start to its first error; the seconds to wait before the next."""
        destination = self._open(receiver.ods)
        receiver.sending = ()
        receiver.reached = {}
        try:
            await self._unless_stopped(destination.start())
            await self._read_back(receiver, destination)
            await self._send_on(receiver, destination)
        except DeliveryError as error:
            return await self._failed(receiver, error)
        except _StartOver:
            return 0
        except (_StoreError, _Stopped):
            raise
        except Exception as error:  # noqa: BLE001 - a bug with one receiver must not end the others
            self._log.error("fault", receiver=receiver.ods, fault=fault_of(error))
            return await self._failed(receiver, DeliveryError(judge(type(error).__name__)))
        finally:
            await destination.close()
        return 0

    async def _read_back(self, receiver: _Receiver, destination: Destination) -> None:
        """Write down what a former life sent and could not write down."""
        now = time.monotonic()
        shut = {topic for topic, each in receiver.closed.items() if now < each.until < float("inf")}
        topics = [
            topic
            for topic in {
                *await self._store(outbox.topics_with_pending(self._engine, receiver.ods)),
                *receiver.suspicious,
            }
            if topic not in shut
        ]
        known = [
            each for topic in topics for each in await self._store(outbox.last_sent(self._engine, topic))
        ]
        back = await self._unless_stopped(destination.read_back(topics, known))
        await self._say_gone(receiver, back.gone)
        receiver.suspicious -= {*topics} - back.closed.keys()
        if back.found:
            rows = await self._store(outbox.mark_sent(self._engine, back.found, self._now(), found=True))
            if rows:
                self._log.info("delivery.found_sent", receiver=receiver.ods, rows=rows)
            await self._say_strange(receiver, back.found)
        self._log.info("delivery.taken_over", receiver=receiver.ods, rows=len(back.found))
        for topic, fault in back.closed.items():
            await self._close_topic(receiver, topic, fault)
        for topic in topics:
            if topic not in back.closed and topic in receiver.closed:
                # It can be looked into again; whether it can be written to, the next batch tells. Its failures
                # go on counting until then.
                receiver.closed[topic].until = float("inf")

    async def _say_gone(self, receiver: _Receiver, gone: Sequence[Placed]) -> None:
        if not gone:
            return
        for each in gone:
            self._log.error(
                "delivery.records_gone",
                receiver=receiver.ods,
                topic=each.topic,
                partition=each.partition,
                offset=each.offset,
                todo=ADVICE[IncidentKind.SENT_RECORDS_GONE],
            )
        await self._store(outbox.forget_places(self._engine, receiver.ods, gone, self._now()))

    async def _say_strange(self, receiver: _Receiver, found: Sequence[Placed]) -> None:
        strange = await self._store(outbox.strangers(self._engine, found))
        if not strange:
            return
        self._log.error(
            "delivery.strangers",
            receiver=receiver.ods,
            rows=len(strange),
            todo=ADVICE[IncidentKind.TOPIC_AHEAD],
        )
        await self._store(outbox.meet_strangers(self._engine, receiver.ods, strange, self._now()))

    async def _send_on(self, receiver: _Receiver, destination: Destination) -> None:
        empty = 0
        while self._has_lease(receiver):
            if self._stop.is_set():
                raise _Stopped
            reopen = receiver.open_again()
            if reopen is not None and reopen <= time.monotonic():
                raise _StartOver
            receiver.wake.clear()
            limit = 1 if receiver.careful else self._config.batch_max
            shut = [topic for topic, each in receiver.closed.items() if each.until != float("inf")]
            rows = await self._waiting_for(receiver, limit, shut)
            if not rows:
                empty += 1
                receiver.careful = 0
                await self._idle(receiver, reopen, held=empty > 1)
                continue
            empty = 0
            # Looked at last: reading the rows may have taken longer than the lease lasts.
            if not self._has_lease(receiver):
                break
            receiver.sending = rows
            placed = await steadily(destination.send(rows))
            if went_back := await self._went_back(receiver, placed):
                # Before it is written down: the new offsets would hide that the old ones are gone.
                receiver.suspicious |= went_back
                raise _StartOver
            await self._store(self._written.ask(placed))
            self._sent(receiver, rows[: len(placed)])
            if len(rows) < limit:
                await self._sleep(to_next_beat(self._config.gather_s, time.monotonic()))
        self._log.warning("delivery.lease_lost", receiver=receiver.ods)

    async def _went_back(self, receiver: _Receiver, placed: Sequence[Placed]) -> set[str]:
        """Topics that gave an offset again: they were made anew since."""
        placed = [each for each in placed if each.partition >= 0]
        for topic in {each.topic for each in placed} - {topic for topic, _ in receiver.reached}:
            known = await self._store(outbox.last_sent(self._engine, topic))
            receiver.reached |= {(topic, each.partition): each.offset for each in known}
        back = {
            each.topic
            for each in placed
            if each.offset <= receiver.reached.get((each.topic, each.partition), -1)
        }
        receiver.reached |= {(each.topic, each.partition): each.offset for each in placed}
        return back

    async def _waiting_for(self, receiver: _Receiver, limit: int, shut: Sequence[str]) -> Sequence[Outgoing]:
        if limit == self._config.batch_max and not shut:
            return await self._store(self._looked.ask(receiver.ods))
        return await self._store(
            outbox.pending(self._engine, receiver.ods, limit, self._now(), without_topics=shut)
        )

    async def _look(self, receivers: Sequence[str]) -> Sequence[Sequence[Outgoing]]:
        return await outbox.pending_of_each(self._engine, receivers, self._config.batch_max, self._now())

    async def _write_down(self, batches: Sequence[Sequence[Placed]]) -> Sequence[None]:
        """In one transaction what several receivers were sent: each was sent by itself."""
        await outbox.mark_sent(self._engine, [each for batch in batches for each in batch], self._now())
        return [None] * len(batches)

    def _sent(self, receiver: _Receiver, rows: Sequence[Outgoing]) -> None:
        receiver.sending = ()
        receiver.careful = max(0, receiver.careful - len(rows))
        recovered = receiver.failures
        receiver.failures = 0
        for topic in {row.topic for row in rows} & receiver.closed.keys():
            recovered += receiver.closed.pop(topic).failures
        self._log.info("delivery.sent", receiver=receiver.ods, rows=len(rows))
        if recovered:
            self._log.info("delivery.recovered", receiver=receiver.ods, attempts=recovered)

    async def _idle(self, receiver: _Receiver, reopen: float | None, *, held: bool) -> None:
        """Until there may be something to do. ``held``: what waits is held back, so do not look at every poll."""
        if held:
            await self._sleep(_HELD_POLL_S)
        patience = self._config.lease_s / 3
        if reopen is not None:
            patience = min(patience, max(0.0, reopen - time.monotonic()))
        await self._first_of(receiver.wake.wait(), timeout_s=patience)

    # When it went wrong.

    async def _failed(self, receiver: _Receiver, error: DeliveryError) -> float:
        """Write the failure down where people look, and say how long to wait before the next life."""
        fault = error.fault
        rows = receiver.sending
        receiver.sending = ()
        if fault.scope is Scope.OWNER:
            self._log.warning("delivery.lease_lost", receiver=receiver.ods, fault=str(fault))
            # Ask who has the lease before the next fence: otherwise two would fence each other in turn.
            if not await self._take_lease(receiver):
                receiver.leased_until = 0.0
                return 0
            receiver.failures += 1
            return self._backoff(receiver.failures)
        if fault.scope is Scope.RECORD and len(error.suspects) > 1:
            # They were refused together. One at a time shows which.
            receiver.careful = 1 + max(at for at, row in enumerate(rows) if row.seq in error.suspects)
            self._log.warning(
                "delivery.failed", receiver=receiver.ods, rows=len(error.suspects), fault=str(fault)
            )
            return 0
        if fault.scope is Scope.RECORD and error.suspects:
            receiver.careful = max(0, receiver.careful - 1)
            guilty = [row for row in rows if row.seq in error.suspects]
            await self._note(
                receiver, guilty, fault, self._backoff(max((row.attempts for row in guilty), default=0) + 1)
            )
            return 0
        if fault.scope is Scope.TOPIC and fault.topic is not None:
            await self._close_topic(receiver, fault.topic, fault, rows)
            return 0
        receiver.failures += 1
        wait_s = self._backoff(receiver.failures)
        if error.retry_after_s is not None:
            wait_s = max(wait_s, min(error.retry_after_s, self._config.backoff_max_s))
        await self._note(receiver, rows or await self._head(receiver, ()), fault, wait_s)
        return wait_s

    async def _close_topic(
        self, receiver: _Receiver, topic: str, fault: Fault, rows: Sequence[Outgoing] = ()
    ) -> None:
        before = receiver.closed.get(topic)
        failures = before.failures + 1 if before else 1
        wait_s = self._backoff(failures)
        receiver.closed[topic] = _ClosedTopic(failures, time.monotonic() + wait_s)
        affected = [row for row in rows if row.topic == topic]
        if not affected:
            others = [
                each
                for each in await self._store(outbox.topics_with_pending(self._engine, receiver.ods))
                if each != topic
            ]
            affected = list(await self._head(receiver, others))
        await self._note(receiver, affected, fault, wait_s)

    async def _head(self, receiver: _Receiver, without_topics: Iterable[str]) -> Sequence[Outgoing]:
        """The rows that stand first, due or not, so that a failure before a batch is seen on them."""
        far = self._now() + timedelta(days=36_500)
        return await self._store(
            outbox.pending(
                self._engine, receiver.ods, self._config.batch_max, far, without_topics=without_topics
            )
        )

    async def _note(self, receiver: _Receiver, rows: Sequence[Outgoing], fault: Fault, wait_s: float) -> None:
        self._log.warning(
            "delivery.failed",
            receiver=receiver.ods,
            rows=len(rows),
            attempts=1 + max((row.attempts for row in rows), default=0),
            fault=str(fault),
            wait_s=round(wait_s, 2),
        )
        now = self._now()
        # A little less than we wait, so that the rows are due when we look again.
        due = now + timedelta(seconds=wait_s * 0.99)
        await self._store(outbox.mark_failed(self._engine, rows, str(fault), due, now))

    async def _after_store_error(self, receiver: _Receiver, error: _StoreError) -> None:
        receiver.failures += 1
        wait_s = min(self._backoff(receiver.failures), _STORE_WAIT_MAX_S)
        self._log.warning(
            "store.unavailable", receiver=receiver.ods, fault=str(error), wait_s=round(wait_s, 2)
        )
        await self._sleep(wait_s)

    # The lease.

    async def _take_lease(self, receiver: _Receiver) -> bool:
        """Take or renew. What we believe ends before what the store says: counted from before asking."""
        asked = time.monotonic()
        now = self._now()
        until = now + timedelta(seconds=self._config.lease_s)
        held = await self._store(
            outbox.hold_lease(self._engine, _lease_name(receiver), self._holder, until, now)
        )
        receiver.leased_until = asked + self._config.lease_s if held else 0.0
        return held

    async def _keep_lease(self, receiver: _Receiver, over: asyncio.Event) -> None:
        while True:
            await asyncio.sleep(self._config.lease_s / 3)
            if over.is_set():
                return
            # An unusable store: go on trying, the belief runs out by itself.
            with suppress(_StoreError):
                if not await self._take_lease(receiver):
                    receiver.wake.set()
                    return

    def _has_lease(self, receiver: _Receiver) -> bool:
        return time.monotonic() < receiver.leased_until

    # Waiting.

    async def _store(self, work: Awaitable[_T]) -> _T:
        """Anything the store or its driver raises becomes one thing: wait and go on."""
        try:
            return await steadily(work)
        except Exception as error:
            raise _StoreError(fault_of(getattr(error, "orig", None) or error)) from error

    def _backoff(self, failures: int) -> float:
        return backoff_s(
            failures, first_s=self._config.backoff_s, max_s=self._config.backoff_max_s, jitter=random.random()
        )

    def _jittered(self, seconds: float) -> float:
        return seconds * (0.75 + random.random() / 2)

    async def _until_woken(self, receiver: _Receiver) -> bool:
        """True when there may be work, False when it is time to stop."""
        await self._first_of(receiver.wake.wait())
        return not self._stop.is_set()

    async def _sleep(self, seconds: float) -> None:
        """Ends early when asked to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    async def _first_of(self, waiting: Coroutine[Any, Any, Any], timeout_s: float | None = None) -> None:
        """Until ``waiting`` is done, or the time is over, or we are asked to stop."""
        tasks = [asyncio.create_task(waiting), asyncio.create_task(self._stop.wait())]
        try:
            await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    async def _unless_stopped(self, work: Coroutine[Any, Any, _T]) -> _T:
        """For what may be broken off at any point: starting and reading back send nothing. Raises _Stopped."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return outcome_of(task)
            raise _Stopped
        finally:
            stopping.cancel()
            await let_go(task)


def to_next_beat(beat_s: float, now: float) -> float:
    """Seconds until the next beat, which is the same moment for all receivers; 0 if there is no beat.

    A Kafka transaction costs the broker as much for two rows as for two hundred, and half as much when others come at the
    same time; what ten receivers want of the store is then one question (`Together`). Nobody waits for anybody: who is
    still sending when the others begin comes along at a later beat.
    """
    return beat_s - now % beat_s if beat_s else 0


def _lease_name(receiver: _Receiver) -> str:
    return f"dispatch.{receiver.ods}"
