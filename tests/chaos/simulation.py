"""The hospitals: stories of transfers, told by simulated EPRs that answer what they have seen on their inbox."""

import asyncio
import contextlib
import hashlib
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from hub.demo.epr import Epr, Message, Patient, correlation_of
from hub.demo.people import patient_number
from hub.domain.trust import Directory, TrustProfile
from tests.chaos import journeys, tales
from tests.chaos.ledger import GaveUpError, Ledger, Sent, Story
from tests.chaos.rest_door import RestDoor
from tests.stories.on_a_broker import Told

_ACCEPTED = frozenset({"accepted"})
_REPEATED = frozenset({"duplicate"})
_JUNK = (
    b"not JSON at all",
    b'{"resourceType":',
    b"[]",
    b'{"resourceType":"Nonsense"}',
    b"   ",
    b"\xff\xfe\x00",
)

Ending = Literal["completed", "rejected", "cancelled", "requested"]
_ENDINGS: tuple[tuple[Ending, int], ...] = (
    ("completed", 62),
    ("rejected", 14),
    ("cancelled", 16),
    ("requested", 8),
)


_TRANSFERS_OF_A_TALE = 2
_BEGINS_EARLY = 0.6
"""Tales begin in this part of the time: they are long."""


class Post:
    """The trusts' way into Kafka: one idempotent producer, made anew when it breaks, until every record is acknowledged."""

    def __init__(self, bootstrap_servers: str, ledger: Ledger) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._ledger = ledger
        self._producer: AIOKafkaProducer | None = None
        self._lock = asyncio.Lock()

    async def send(
        self,
        trust: str,
        message: Message,
        *,
        what: str,
        story: str,
        expected: frozenset[str],
        news: str | None = None,
        news_to: str | None = None,
    ) -> Sent:
        """Until it is acknowledged. An attempt whose end is unknown can leave a copy: then either may be the first."""
        topic = self._ledger.topic(trust, "events")
        headers = [(name, value.encode()) for name, value in message.headers.items()]
        attempts = 0
        while True:
            attempts += 1
            producer = None
            try:
                producer = await self._usable()
                async with asyncio.timeout(15):
                    done = await producer.send(topic, value=message.body, key=message.key, headers=headers)
                # Not wait_for: a batch under way cannot be cancelled.
                if not (await asyncio.wait({done}, timeout=40))[0]:
                    raise TimeoutError
                metadata = done.result()
                if metadata.offset < 0:
                    raise RuntimeError("acknowledged without an offset")
                break
            except Exception:
                await self._drop(producer)
                await asyncio.sleep(0.3)
        if attempts > 1:
            expected |= _REPEATED
        sent = Sent(
            trust,
            topic,
            metadata.partition,
            metadata.offset,
            message.headers.get("x-request-id", ""),
            hashlib.sha256(message.body).hexdigest(),
            what,
            story,
            attempts,
            expected,
            news,
            news_to,
        )
        self._ledger.sent.append(sent)
        return sent

    async def close(self) -> None:
        await self._drop(self._producer)

    async def _usable(self) -> AIOKafkaProducer:
        async with self._lock:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    bootstrap_servers=self._bootstrap_servers,
                    enable_idempotence=True,
                    acks="all",
                    request_timeout_ms=5000,
                    retry_backoff_ms=200,
                )
                try:
                    await producer.start()
                except BaseException:
                    with contextlib.suppress(Exception):
                        await producer.stop()
                    raise
                self._producer = producer
            return self._producer

    async def _drop(self, producer: Any) -> None:
        current: Any = self._producer
        if producer is None or producer is not current:
            return
        self._producer = None  # first, so that nobody takes it again
        await _within(3, producer.stop())
        # What stop() could not end would go on trying.
        await _within(3, producer.client.close())


@dataclass(frozen=True, slots=True)
class News:
    """What a hospital's system keeps of an inbox record."""

    event_type: str
    transfer_id: str
    correlation_id: str
    request_id: str


@dataclass
class Inbox:
    """One trust's inbox, or its receipts, read as an EPR reads it: committed records only, from the start, through every outage."""

    trust: str
    topic: str
    partitions: int
    bootstrap_servers: str
    seen: list[News] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    closed: bool = False

    async def read_on(self) -> None:
        """Until `closed`."""
        reached: dict[TopicPartition, int] = {}
        while not self.closed:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self.bootstrap_servers,
                isolation_level="read_committed",
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                request_timeout_ms=5000,
                retry_backoff_ms=200,
            )
            try:
                await consumer.start()
                parts = [TopicPartition(self.topic, part) for part in range(self.partitions)]
                consumer.assign(parts)
                for part in parts:
                    consumer.seek(part, reached.get(part, 0))
                while not self.closed:
                    await self._take(consumer, reached)
            except Exception:
                await asyncio.sleep(0.5)
            finally:
                await _within(3, consumer.stop())

    async def _take(self, consumer: AIOKafkaConsumer, reached: dict[TopicPartition, int]) -> None:
        batches = await consumer.getmany(timeout_ms=200)
        for part, records in batches.items():
            for record in records:
                reached[part] = record.offset + 1
                said = {name: value.decode() for name, value in record.headers}
                self.seen.append(
                    News(
                        said.get("event-type", ""),
                        said.get("transfer-id", ""),
                        said.get("x-correlation-id", ""),
                        said.get("x-request-id", ""),
                    )
                )
        if batches:
            async with self.changed:
                self.changed.notify_all()

    async def wait(self, event_type: str, matches: Callable[[News], bool], deadline: float) -> News:
        """The first news of this type that matches. Raises GaveUpError."""
        looked = 0
        while True:
            for news in self.seen[looked:]:
                if news.event_type == event_type and matches(news):
                    return news
            looked = len(self.seen)
            await self._more_than(looked, deadline, f"{event_type} at {self.trust}")

    async def wait_for_answers(self, message_id: str, count: int, deadline: float) -> None:
        """Until this topic has so many records that answer the message. Raises GaveUpError."""
        while sum(news.request_id == message_id for news in self.seen) < count:
            await self._more_than(
                len(self.seen), deadline, f"receipt {count} of {message_id} at {self.trust}"
            )

    async def _more_than(self, looked: int, deadline: float, wanted: str) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise GaveUpError(wanted)
        async with self.changed:
            if len(self.seen) == looked:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), min(left, 2))


@dataclass
class FetchedInbox(Inbox):
    """The inbox of a trust that has none in Kafka: fetched over REST and acknowledged, through every outage."""

    ledger: Ledger | None = None
    rest: RestDoor | None = None

    async def read_on(self) -> None:
        """Until `closed`; and then what is still there."""
        assert self.rest is not None
        assert self.ledger is not None
        while True:
            over = self.closed
            new = await self.rest.fetch(self.ledger, self.trust)
            self.seen += [
                News(
                    each.headers.get("event-type", ""),
                    each.headers.get("transfer-id", ""),
                    each.headers.get("x-correlation-id", ""),
                    each.headers.get("x-request-id", ""),
                )
                for each in new
            ]
            if new:
                async with self.changed:
                    self.changed.notify_all()
            elif over:
                return
            await asyncio.sleep(0.1)


class Hospitals:
    """All stories of one seed. `rng` decides who, what and when; only the machine's speed adds to that."""

    def __init__(
        self,
        directory: Directory,
        ledger: Ledger,
        bootstrap_servers: str,
        partitions: int,
        seed: int,
        rng: random.Random,
        told: Sequence[Told] = (),
        rest: RestDoor | None = None,
    ) -> None:
        self._rest = rest
        self._readers: list[asyncio.Task[None]] = []
        self._directory = directory
        self.ledger = ledger
        self._told = told
        self._seed = seed
        self._rng = rng
        self._post = Post(bootstrap_servers, ledger)
        self._inboxes = {
            each.ods: FetchedInbox(
                each.ods, each.inbox_topic, partitions, bootstrap_servers, ledger=ledger, rest=rest
            )
            if each.doors.outward == "polled"
            else Inbox(each.ods, each.inbox_topic, partitions, bootstrap_servers)
            for each in directory
        }
        # What is fetched has its receipts among it.
        self._receipts = {
            each.ods: self._inboxes[each.ods]
            if each.doors.outward == "polled"
            else Inbox(each.ods, each.receipts_topic, partitions, bootstrap_servers)
            for each in directory
        }
        self._deadline = float("inf")

    def give_up_at(self, moment: float) -> None:
        """No hospital waits longer than until then (monotonic)."""
        self._deadline = moment

    async def tell(self, transfers: int, spread_s: float, patience_s: float) -> None:
        """All stories, begun over `spread_s` seconds; each has `patience_s` from the end of that until it gives up."""
        self.give_up_at(time.monotonic() + spread_s + patience_s)
        read = list({id(each): each for each in (*self._inboxes.values(), *self._receipts.values())}.values())
        readers = [asyncio.create_task(each.read_on()) for each in read]
        # A generator of its own for each story: what one draws does not depend on how far the others are.
        in_tales = transfers // 4
        kinds = (
            *[self._tale] * in_tales,
            *[self._transfer] * (transfers - _TRANSFERS_OF_A_TALE * in_tales),
            *[self._stay_without_transfer] * (transfers // 5),
            *[self._junk] * max(3, transfers // 8),
        )
        tellers = [
            tell(n, self._rng.uniform(0, spread_s), random.Random(self._rng.getrandbits(64)))
            for n, tell in enumerate(kinds)
        ]
        try:
            await asyncio.gather(*tellers, *journeys.tellers(self, self._told, self._rng, spread_s))
        finally:
            for each in read:
                if not isinstance(each, FetchedInbox):
                    each.closed = True
            self._readers = readers
            await self._post.close()

    async def end(self) -> None:
        """When nothing is left to fetch."""
        for each in self._inboxes.values():
            each.closed = True
        await asyncio.wait(self._readers, timeout=15)
        if self._rest is not None:
            await self._rest.close()

    async def _tale(self, n: int, delay: float, rng: random.Random) -> None:
        patient = patient_number(self._seed * 1000 % 800_000 + n)
        await tales.tell(
            self, f"TA-{self._seed}-{n:03d}", self._seed + n, patient, delay * _BEGINS_EARLY, rng
        )

    async def _transfer(self, n: int, delay: float, rng: random.Random) -> None:
        odses = [each.ods for each in self._directory]
        sender, receiver = rng.sample(odses, 2)
        number = f"TR-{self._seed}-{n}"
        ending = rng.choices([name for name, _ in _ENDINGS], [weight for _, weight in _ENDINGS])[0]
        patient = patient_number(self._seed * 1000 % 800_000 + n)
        story = Story(number, sender, receiver, ending, patient.nhs_number)
        self.ledger.stories[number] = story
        telling = _Transfer(self, story, patient, rng)
        await asyncio.sleep(delay)
        try:
            await telling.tell(ending)
            story.finished = True
        except GaveUpError as late:
            story.waited_for = str(late)

    async def _stay_without_transfer(self, n: int, delay: float, rng: random.Random) -> None:
        """Somebody who comes, is moved and goes home: taken in, and nobody else's business."""
        profile = rng.choice(list(self._directory))
        epr, patient, stay = (
            Epr(profile),
            patient_number(self._seed * 1000 % 800_000 + n),
            f"{profile.ods}-S-{self._seed}-{n}",
        )
        await asyncio.sleep(delay)
        began = _now()
        say: dict[str, Any] = {"story": stay, "expected": _ACCEPTED}
        form: Any = rng.choice(["collection", "message", "bare"])
        await self._post.send(
            profile.ods,
            epr.admits(patient, encounter_number=stay, ward="AMU", at=began, form=form),
            what="stay: admitted",
            **say,
        )
        await asyncio.sleep(rng.uniform(0, 3))
        moved = epr.moves(
            patient, encounter_number=stay, from_ward="AMU", to_ward="Six", at=_now(), admitted_at=began
        )
        await self._post.send(profile.ods, moved, what="stay: moved", **say)
        await asyncio.sleep(rng.uniform(0, 3))
        left = epr.discharges(patient, encounter_number=stay, at=_now(), disposition="19", admitted_at=began)
        await self._post.send(profile.ods, left, what="stay: discharged home", **say)

    async def _junk(self, n: int, delay: float, rng: random.Random) -> None:
        """What cannot be read, and what claims to come from somebody else: quarantined, each alone."""
        profile, other = rng.sample(list(self._directory), 2)
        await asyncio.sleep(delay)
        name = f"junk-{self._seed}-{n}"
        if rng.random() < 0.5:
            body = rng.choice(_JUNK)
            headers = {"x-request-id": name, "content-type": "application/fhir+json; fhirVersion=4.0"}
            message = Message(headers, f"junk-{rng.randrange(8)}".encode(), body)
            what = "junk"
        else:
            patient = patient_number(700_000 + self._seed * 100 % 90_000 + n)
            message = Epr(other).admits(
                patient, encounter_number=f"{other.ods}-W-{n}", ward="Nine", at=_now()
            )
            what = "wrong sender"
        quarantined = frozenset({"quarantined"})
        await self._post.send(
            profile.ods,
            message,
            what=what,
            story=name,
            expected=quarantined | ({"duplicate"} if not message.body else set()),
        )
        if rng.random() < 0.5:
            await self._post.send(profile.ods, message, what=f"{what}, again", story=name, expected=_REPEATED)

    async def send(self, *args: Any, **more: Any) -> Sent:
        return await self._post.send(*args, **more)

    async def send_over_rest(self, *args: Any, **more: Any) -> Sent:
        assert self._rest is not None
        return await self._rest.send(self.ledger, *args, **more)

    @property
    def has_rest(self) -> bool:
        return self._rest is not None

    def inbox(self, trust: str) -> Inbox:
        return self._inboxes[trust]

    def receipts(self, trust: str) -> Inbox:
        return self._receipts[trust]

    def profile(self, trust: str) -> TrustProfile:
        return self._directory[trust]

    @property
    def deadline(self) -> float:
        return self._deadline


class _Transfer:
    """One patient's move, told by both hospitals."""

    def __init__(self, hospitals: Hospitals, story: Story, patient: Patient, rng: random.Random) -> None:
        self._hospitals, self._story, self._patient, self._rng = hospitals, story, patient, rng
        self._asks, self._answers = hospitals.profile(story.sender), hospitals.profile(story.receiver)
        self._sender, self._receiver = Epr(self._asks), Epr(self._answers)
        self._stay = f"{story.sender}-V-{story.request_number}"
        self._correlation = correlation_of(story.sender, story.request_number)
        self._transfer_id = ""
        # A hospital tells all of one story through one door: through two, the later could overtake the earlier.
        self._over_rest = {
            ods for ods in (story.sender, story.receiver) if hospitals.has_rest and rng.random() < 0.35
        }

    async def tell(self, ending: Ending) -> None:
        rng, story = self._rng, self._story
        began = _now()
        admitted = self._sender.admits(self._patient, encounter_number=self._stay, ward="AMU", at=began)
        await self._post(story.sender, admitted, "admitted at the sender", None)
        await self._pause(0.5)
        request = self._sender.asks_to_transfer(
            self._patient,
            to=story.receiver,
            request_number=story.request_number,
            encounter_number=self._stay,
            at=_now(),
            admitted_at=began,
        )
        await self._post(story.sender, request, "request", "transfer.requested")
        if rng.random() < 0.2:
            update = self._sender.updates_request(
                self._patient,
                to=story.receiver,
                request_number=story.request_number,
                encounter_number=self._stay,
                at=_now(),
                priority="asap",
            )
            await self._post(story.sender, update, "update", "transfer.updated")
        requested = await self._seen(
            story.receiver, "transfer.requested", lambda news: news.correlation_id == self._correlation
        )
        self._transfer_id = requested.transfer_id
        if ending == "requested":
            return
        if rng.random() < 0.8:
            await self._answer("received", "transfer.received")
            await self._pause(0.5)
        if ending == "rejected":
            await self._answer("rejected", "transfer.rejected", reason="RRNA")
        elif ending == "cancelled":
            await self._cancelled()
        else:
            await self._completed(began)

    async def _cancelled(self) -> None:
        how = self._rng.choice(["at once", "after acceptance", "after refusal"])
        if how == "after acceptance":
            await self._answer("accepted", "transfer.accepted")
            await self._told_sender("transfer.accepted")
        elif how == "after refusal":
            await self._answer("rejected", "transfer.rejected", reason="OTH")
            await self._told_sender("transfer.rejected")
        cancel = self._sender.cancels_request(
            self._patient, to=self._story.receiver, request_number=self._story.request_number, at=_now()
        )
        await self._post(self._story.sender, cancel, "cancel", "transfer.cancelled")
        if self._rng.random() < 0.5:
            # Too late, and told so: the receiver has seen that the request was withdrawn.
            await self._seen(
                self._story.receiver, "transfer.cancelled", lambda news: news.transfer_id == self._transfer_id
            )
            late = self._receiver.answers(
                self._patient,
                "accepted",
                requester=self._asks,
                request_number=self._story.request_number,
                at=_now(),
            )
            await self._hospitals.send(
                self._story.receiver,
                late,
                what="answer: accepted, too late",
                story=self._story.request_number,
                expected=frozenset({"rejected"}),
            )

    async def _completed(self, began: datetime) -> None:
        rng, story = self._rng, self._story
        await self._answer("accepted", "transfer.accepted")
        if rng.random() < 0.6:
            await self._told_sender("transfer.accepted")
        if rng.random() < 0.8:
            await self._pause(0.5)
            await self._answer("ready", "transfer.bed.allocated", bed="Ward 9, bed 3")
            if rng.random() < 0.6:
                await self._told_sender("transfer.bed.allocated")
        serial = rng.random() < 0.6
        site = self._answers.sites[0].ods
        leaves = self._sender.discharges(
            self._patient, encounter_number=self._stay, at=_now(), to_site=site, admitted_at=began
        )
        # If the arrival overtakes it, the departure moves nothing and is nobody's news.
        await self._post(story.sender, leaves, "departure", "transfer.departed" if serial else "?")
        if serial:
            await self._seen(
                story.receiver, "transfer.departed", lambda news: news.transfer_id == self._transfer_id
            )
        await self._pause(0.5)
        arrives = self._receiver.admits(
            self._patient,
            encounter_number=f"{story.receiver}-V-{story.request_number}",
            ward="Nine",
            at=_now(),
            form=rng.choice(["collection", "message", "bare"]),
        )
        await self._post(story.receiver, arrives, "arrival", "transfer.completed")

    async def _answer(self, status: Any, event_type: str, **more: Any) -> None:
        answer = self._receiver.answers(
            self._patient,
            status,
            requester=self._asks,
            request_number=self._story.request_number,
            at=_now(),
            **more,
        )
        await self._post(self._story.receiver, answer, f"answer: {status}", event_type)

    async def _told_sender(self, event_type: str) -> None:
        await self._seen(self._story.sender, event_type, lambda news: news.transfer_id == self._transfer_id)

    async def _seen(self, trust: str, event_type: str, matches: Callable[[News], bool]) -> News:
        return await self._hospitals.inbox(trust).wait(event_type, matches, self._hospitals.deadline)

    async def _post(self, trust: str, message: Message, what: str, news: str | None) -> None:
        """Send, and now and then send the same again, or something else under the same id."""
        story = self._story
        to = story.receiver if trust == story.sender else story.sender
        named = {"story": story.request_number}
        send = self._hospitals.send_over_rest if trust in self._over_rest else self._hospitals.send
        await send(trust, message, what=what, expected=_ACCEPTED, news=news, news_to=to, **named)
        if self._rng.random() < 0.07:
            await self._hospitals.send(trust, message, what=f"{what}, again", expected=_REPEATED, **named)
        if self._rng.random() < 0.03:
            other = Message(message.headers, message.key, message.body + b" ")
            await self._hospitals.send(
                trust, other, what=f"{what}, other bytes", expected=frozenset({"conflict"}), **named
            )

    async def _pause(self, longest: float) -> None:
        await asyncio.sleep(self._rng.uniform(0, longest))


async def _within(seconds: float, work: Coroutine[Any, Any, Any]) -> None:
    """Let it be done, or be cancelled after that long; `wait_for` would wait for a cancellation that is not obeyed."""
    task = asyncio.create_task(work)
    await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        task.cancel()
    elif not task.cancelled():
        task.exception()


def _now() -> datetime:
    return datetime.now(UTC)
