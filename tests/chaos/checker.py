"""THE JUDGE: compares what was sent with what lies in Kafka and in the database, by plain means.

Imports nothing of `hub`: topics are read with librdkafka (the hub uses aiokafka), tables with plain SQL. What a
table or a header is called is part of what is judged.
"""

import asyncio
import hashlib
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg  # type: ignore[import-untyped]
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from tests.chaos.ledger import Heard, Ledger, Moment, Outcome, Sent, Tale

KINDS = (
    "lost",
    "duplicate_effects",
    "wire_duplicates",
    "order_violations",
    "misrouted",
    "without_audit",
    "log_faults",
    "unexpected",
)
"""What can be found. `log_faults`: the sealed audit log is not whole, or was not passed on as it is. `unexpected`: a disposition or a story's end other than it must be, an open incident, a brake."""

REST = "rest."
"""How the ledger names the way in of what was not sent through Kafka."""
_READ_PATIENCE_S = 60.0
_OUTCOME_ENTRY = {
    "accepted": "msg-accepted",
    "duplicate": "msg-duplicate",
    "conflict": "msg-conflict",
    "quarantined": "msg-quarantined",
    "rejected": "msg-rejected",
}
_EVENT_TYPE_OF_STEP = {
    "draft": "transfer.drafted",
    "request": "transfer.requested",
    "update": "transfer.updated",
    "cancel": "transfer.cancelled",
    "receive": "transfer.received",
    "query": "transfer.query.raised",
    "answer-query": "transfer.query.answered",
    "accept": "transfer.accepted",
    "reject": "transfer.rejected",
    "redirect": "transfer.redirected",
    "await-bed": "transfer.bed.awaited",
    "allocate-bed": "transfer.bed.allocated",
    "release-bed": "transfer.bed.released",
    "book-transport": "transfer.transport.booked",
    "depart": "transfer.departed",
    "arrive": "transfer.arrived",
    "admit": "transfer.completed",
    "return": "transfer.returned",
    "fail": "transfer.failed",
    "die": "transfer.patient.died",
    "diverge": "transfer.diverged",
    "confirm": "transfer.confirmed",
    "identify": "transfer.patient.identified",
    "retract": "transfer.corrected",
    "escalate": "transfer.escalated",
    "expire": "transfer.expired",
}

_TRANSFER_CODES = frozenset(
    {
        "transfer-created", "transfer-updated", "transfer-cancelled", "transfer-entered-in-error", "transfer-received",
        "transfer-queried", "transfer-answered", "transfer-accepted", "transfer-rejected", "transfer-redirected",
        "transfer-confirmed", "transfer-identified", "transfer-corrected", "transfer-diverged", "bed-awaited",
        "bed-allocated", "bed-released", "transport-booked", "departed", "arrived", "returned", "completed", "failed",
        "died", "reopened", "expired", "timer-escalated",
    }
)  # fmt: skip
"""What may have happened to a transfer."""
_OF_A_MESSAGE = frozenset({"msg-received", "msg-repaired", *_OUTCOME_ENTRY.values()})

Place = tuple[str, int, int]
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Record:
    """One committed record of a topic."""

    topic: str
    partition: int
    offset: int
    key: str
    headers: Mapping[str, str]
    sha256: str
    body: bytes

    @property
    def place(self) -> Place:
        return (self.topic, self.partition, self.offset)

    @property
    def seq(self) -> int:
        return int(self.headers.get("outbox-seq", "-1"))

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"


@dataclass(slots=True)
class Verdict:
    """What was found, kind by kind, each with a sentence."""

    found: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    facts: dict[str, Any] = field(default_factory=dict)

    def say(self, kind: str, sentence: str) -> None:
        self.found[kind].append(sentence)

    @property
    def counts(self) -> dict[str, int]:
        return {kind: len(sentences) for kind, sentences in self.found.items()}


@dataclass(frozen=True, slots=True)
class Tables:
    """The database as it is, whole."""

    known: frozenset[str]
    """Every message's event id, those included that came again over REST."""
    messages: list[dict[str, Any]]
    events: Sequence[Row]
    transfers: Sequence[Row]
    identifiers: Sequence[Row]
    history: Sequence[Row]
    outbox: list[dict[str, Any]]
    audit: Sequence[Row]
    incidents: Sequence[Row]
    brakes: Sequence[Row]


async def check(ledger: Ledger, dsn: str, bootstrap_servers: str) -> Verdict:
    """Judge one seed; call it when nothing runs any more. `dsn` as asyncpg's."""
    tables = await load(dsn)
    extra = _put_in_place(ledger, tables)
    events, inboxes, receipts = [
        await asyncio.to_thread(read_topics, bootstrap_servers, ledger.topics(purpose))
        for purpose in ("events", "inbox", "receipts")
    ]
    inboxes += _fetched(ledger, "inbox")
    receipts += _fetched(ledger, "receipts")
    verdict = Verdict()
    for sentence in extra:
        verdict.say("duplicate_effects", sentence)
    _Court(ledger, tables, [*events, *_answered(ledger)], inboxes, receipts, verdict).judge()
    return verdict


def _as_accepted(code: str) -> str:
    return "msg-accepted" if code == "msg-repaired" else code


def _answered(ledger: Ledger) -> list[Record]:
    """What was answered over REST, as if it lay on a topic: each must have its row as a record has."""
    return [
        Record(each.topic, each.partition, each.offset, "", {}, each.sha256, b"")
        for each in ledger.sent
        if each.topic.startswith(REST)
    ]


def _fetched(ledger: Ledger, purpose: str) -> list[Record]:
    """What hospitals fetched over REST, as if it lay on their topics in the order in which it was given."""
    return [
        Record(each.topic, 0, number, each.key, each.headers, "", each.body)
        for trust, messages in ledger.fetched.items()
        for number, each in enumerate(messages)
        if each.topic == ledger.topic(trust, purpose)
    ]


def _put_in_place(ledger: Ledger, tables: Tables) -> list[str]:
    """Give rows that came over REST the place that their sender counted; what is wrong with their repetitions.

    A repetition after an answer that was lost on its way may have a row of its own: a duplicate, with the same bytes.
    """
    sent = {(each.trust, each.message_id): each for each in ledger.sent if each.topic.startswith(REST)}
    wrong, kept = [], []
    for row in tables.messages:
        if row["topic"] is not None:
            kept.append(row)
            continue
        each = sent.get((row["trust"], row["message_id"]))
        if each is None:
            wrong.append(
                f"{row['trust']}'s message {row['message_id']} came over REST and was never answered"
            )
        elif row["disposition"] == "accepted":
            kept.append(row | {"topic": each.topic, "partition": each.partition, "offset": each.offset})
        elif row["disposition"] != "duplicate" or row["sha256"] != each.sha256:
            wrong.append(f"{each.what}, {each.story}: a repetition over REST is {row['disposition']}")
    tables.messages[:] = kept
    number = {each.seq: n for messages in ledger.fetched.values() for n, each in enumerate(messages)}
    tables.outbox[:] = [
        row | {"sent_partition": 0, "sent_offset": number[row["seq"]]} if row["seq"] in number else row
        for row in tables.outbox
    ]
    return wrong


async def load(dsn: str) -> Tables:
    """Every row of every table that matters, in one snapshot."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            fetch = connection.fetch
            return Tables(
                known=frozenset(row["event_id"] for row in await fetch("select event_id from message")),
                messages=[
                    dict(row)
                    for row in await fetch(
                        'select event_id, trust, topic, partition, "offset", message_id, sha256, disposition, why,'
                        " detail, first_event_id from message"
                    )
                ],
                events=await fetch(
                    "select e.event_id, e.trust, e.transfer_id, h.step, e.event_type, e.flags::text as flags from event e"
                    " left join transfer_history h using (event_id, transfer_id)"
                ),
                transfers=await fetch("select transfer_id, sender, receiver, state, version from transfer"),
                identifiers=await fetch("select transfer_id, system, value from transfer_identifier"),
                history=await fetch(
                    "select transfer_id, version, event_id, step, to_state from transfer_history"
                ),
                outbox=[
                    dict(row)
                    for row in await fetch(
                        "select seq, receiver, topic, key, event_id, transfer_id, state, sent_partition, sent_offset,"
                        " last_error from outbox"
                    )
                ],
                audit=await fetch(
                    "select entry, code, event_id, transfer_id, counterpart, detail::text from audit_pending union all"
                    " select entry, code, event_id, transfer_id, counterpart, detail::text from audit_entry order by entry"
                ),
                # A feed of the audit or a sealer that waited for Kafka says so, and takes it back.
                incidents=await fetch(
                    "select kind, subject, detail::text from incident"
                    " where closed_at is null or kind not in ('audit-feed', 'sealing-late')"
                ),
                brakes=await fetch("select trust, why from brake where pulled"),
            )
    finally:
        await connection.close()


def read_topics(bootstrap_servers: str, topics: Sequence[str]) -> list[Record]:
    """All committed records of these topics. Raises RuntimeError when their ends are not reached in a minute."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "chaos-checker",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    records: list[Record] = []
    try:
        known = consumer.list_topics(timeout=20).topics
        wanted = [TopicPartition(topic, part, 0) for topic in topics for part in known[topic].partitions]
        consumer.assign(wanted)
        open_parts = {(each.topic, each.partition) for each in wanted}
        deadline = time.monotonic() + _READ_PATIENCE_S
        while open_parts:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the checker could not read {sorted(open_parts)} to the end")
            for message in consumer.consume(500, timeout=0.5):
                error = message.error()
                if error is None:
                    records.append(_record(message))
                elif error.code() == KafkaError._PARTITION_EOF:
                    open_parts.discard((message.topic(), message.partition()))
                else:
                    raise KafkaException(error)
    finally:
        consumer.close()
    return sorted(records, key=lambda record: record.place)


def _record(message: Any) -> Record:
    value = message.value() or b""
    headers = {name: (text or b"").decode(errors="replace") for name, text in message.headers() or ()}
    return Record(
        message.topic(),
        message.partition(),
        message.offset(),
        (message.key() or b"").decode(errors="replace"),
        headers,
        hashlib.sha256(value).hexdigest(),
        value,
    )


def _subject(record: Record) -> tuple[str, str, str]:
    """Which request a hospital reads that the news is of, who asks and who is asked: by the message's own words alone."""
    resources = {each["fullUrl"]: each["resource"] for each in json.loads(record.body)["entry"]}
    header = next(each for each in resources.values() if each["resourceType"] == "MessageHeader")
    task = resources[header["focus"][0]["reference"]]
    focus = task["focus"]
    named = [focus["identifier"]] if "identifier" in focus else resources[focus["reference"]]["identifier"]
    ends = (task[end]["identifier"]["value"] for end in ("requester", "owner"))
    return (named[0]["value"], *ends)


def _became(dispositions: set[str]) -> str:
    """Of a message that may have come several times: what became of the first."""
    return (
        "accepted"
        if "accepted" in dispositions
        else ", ".join(sorted(dispositions - {"duplicate", "conflict"}))
    )


_NHS_NUMBER = re.compile(rb'"(999[0-9]{7})"')


def _place(row: Row) -> Place:
    return (row["topic"], row["partition"], row["offset"])


def _where(place: Place) -> str:
    return f"{place[0]}/{place[1]}@{place[2]}"


def _repeats(values: Iterable[Any]) -> dict[Any, int]:
    return {value: count for value, count in Counter(values).items() if count > 1}


class _Court:
    """One seed's evidence."""

    def __init__(
        self,
        ledger: Ledger,
        tables: Tables,
        events: Sequence[Record],
        inboxes: Sequence[Record],
        receipts: Sequence[Record],
        verdict: Verdict,
    ) -> None:
        self.ledger, self.t, self.verdict = ledger, tables, verdict
        self.events, self.inboxes, self.receipts = events, inboxes, receipts
        self.say = verdict.say
        self.rows_at: dict[Place, list[Row]] = defaultdict(list)
        for row in tables.messages:
            self.rows_at[_place(row)].append(row)
        self.message = {row["event_id"]: row for row in tables.messages}
        self.event = {row["event_id"]: row for row in tables.events}
        self.transfer = {row["transfer_id"]: row for row in tables.transfers}
        self.sent_at = {each.place: each for each in ledger.sent}
        # Events of the journeys: one message of those may mean something for several transfers.
        self.journey_of = {
            row["event_id"]: sent.story
            for row in tables.messages
            if (sent := self.sent_at.get(_place(row))) and sent.story in ledger.journeys
        }
        self.moments: dict[tuple[str, str], tuple[Tale, int]] = {
            message: (tale, n)
            for tale in ledger.tales.values()
            for n, moment in enumerate(tale.moments)
            for message in moment.messages
        }
        self.audit_of: dict[str, list[Row]] = defaultdict(list)
        for row in tables.audit:
            if row["event_id"]:
                self.audit_of[row["event_id"]].append(row)

    def judge(self) -> None:
        self._intake()
        self._effects()
        self._outbox()
        self._expected_news()
        self._order()
        self._routing()
        self._tales()
        self._audit()
        self._stories()
        dispositions = Counter(row["disposition"] for row in self.t.messages)
        self.verdict.facts = {
            "in": len(self.events),
            **{name: dispositions[name] for name in _OUTCOME_ENTRY},
            "transfers": len(self.t.transfers),
            "tales": len(self.ledger.tales),
            "inbox": len(self.inboxes),
            "receipts": len(self.receipts),
            "audit": len(self.t.audit),
        }

    # -- in

    def _intake(self) -> None:
        """Each record on an events topic has exactly one row, with its bytes' hash and a disposition that may be."""
        on_topic = {record.place: record for record in self.events}
        for each in self.ledger.sent:
            if each.place not in on_topic:
                self.say(
                    "lost", f"{_where(each.place)} was acknowledged and is not on its topic ({each.what})"
                )
        for record in self.events:
            rows = self.rows_at.get(record.place, [])
            sent = self.sent_at.get(record.place)
            what = f"{sent.what}, {sent.story}" if sent else "an attempt that was not acknowledged"
            if not rows:
                self.say("lost", f"{record} has no message row ({what})")
            if len(rows) > 1:
                self.say("duplicate_effects", f"{record} has {len(rows)} message rows ({what})")
            for row in rows:
                if row["sha256"] != record.sha256:
                    self.say("lost", f"{record}: the row's sha256 is not the record's ({what})")
                if row["disposition"] not in _OUTCOME_ENTRY:
                    self.say("unexpected", f"{record}: disposition {row['disposition']!r}")
                if sent and sent.expected and row["disposition"] not in sent.expected:
                    said = f"{row['disposition']} ({row['why']}, {row['detail']})"
                    self.say(
                        "unexpected",
                        f"{record}, {what}: {said}; it must be {' or '.join(sorted(sent.expected))}",
                    )
        for place in self.rows_at.keys() - on_topic.keys():
            self.say("duplicate_effects", f"{_where(place)} has a message row and no record")
        by_id: dict[tuple[str, str], list[Sent]] = defaultdict(list)
        for each in self.ledger.sent:
            by_id[(each.trust, each.message_id)].append(each)
        accepted = Counter(
            (row["trust"], row["message_id"]) for row in self.t.messages if row["disposition"] == "accepted"
        )
        for key, several in by_id.items():
            if any("accepted" in each.expected for each in several) and not accepted[key]:
                rows = [row for each in several for row in self.rows_at.get(each.place, [])]
                if rows and all(row["disposition"] in {"duplicate", "conflict"} for row in rows):
                    self.say(
                        "lost",
                        f"{several[0].what}, {several[0].story}: only repetitions were taken in, no first",
                    )

    # -- once

    def _effects(self) -> None:
        """One effect for one message."""
        accepted = [row for row in self.t.messages if row["disposition"] == "accepted"]
        for (trust, message_id), count in _repeats(
            (row["trust"], row["message_id"]) for row in accepted
        ).items():
            self.say("duplicate_effects", f"{trust}'s message {message_id} was accepted {count} times")
        for event_id in {row["event_id"] for row in accepted} - self.event.keys():
            self.say("lost", f"{_where(_place(self.message[event_id]))} was accepted and has no event")
        for event_id in self.event.keys() - {row["event_id"] for row in accepted}:
            self.say("duplicate_effects", f"event {event_id} has no accepted message")
        for (system, value), count in _repeats(
            (row["system"], row["value"]) for row in self.t.identifiers
        ).items():
            self.say("duplicate_effects", f"request {value} of {system} made {count} transfers")
        for event_id, count in _repeats(row["event_id"] for row in self.t.history).items():
            if event_id not in self.journey_of and self._moment(event_id) is None:
                self.say(
                    "duplicate_effects", f"event {event_id} stands {count} times in the transfers' history"
                )
        steps = {row["event_id"] for row in self.t.events if row["step"]}
        for event_id in steps ^ {row["event_id"] for row in self.t.history}:
            self.say("lost", f"event {event_id} and the transfer's history name different transfers")
        for records, what in ((self.inboxes, "news"), (self.receipts, "receipts")):
            seqs: dict[tuple[str, str], set[int]] = defaultdict(set)
            for record in records:
                seqs[record.headers.get("event-id", ""), record.topic].add(record.seq)
            for (event_id, _), of_event in seqs.items():
                # One hospital may hear of two of a tale's requests; how much, is judged with the tale.
                if len(of_event) > 1 and (what == "receipts" or self._moment(event_id) is None):
                    self.say(
                        "duplicate_effects",
                        f"{what} of event {event_id} went out as {len(of_event)} outbox rows",
                    )
        versions: dict[str, list[int]] = defaultdict(list)
        for row in self.t.history:
            versions[row["transfer_id"]].append(row["version"])
        for transfer_id, found in versions.items():
            if sorted(found) != list(range(1, len(found) + 1)) or self.transfer[transfer_id][
                "version"
            ] != len(found):
                self.say("lost", f"transfer {transfer_id} has the versions {sorted(found)}")

    # -- out

    def _outbox(self) -> None:
        """Each outbox row lies on its topic once, where the row says; and nothing else lies there."""
        wire: dict[int, list[Record]] = defaultdict(list)
        for record in (*self.inboxes, *self.receipts):
            wire[record.seq].append(record)
        known = {row["seq"]: row for row in self.t.outbox}
        for seq, records in wire.items():
            if len(records) > 1:
                self.say("wire_duplicates", f"outbox-seq {seq} lies at {', '.join(map(str, records))}")
            if seq not in known:
                self.say("misrouted", f"{records[0]} has outbox-seq {seq}, which the outbox does not know")
        for seq, row in known.items():
            records = wire.get(seq, [])
            place = (row["topic"], row["sent_partition"], row["sent_offset"])
            if not records:
                self.say(
                    "lost",
                    f"outbox row {seq} for {row['topic']} is {row['state']} and not on the wire ({row['last_error']})",
                )
            elif row["state"] != "sent":
                self.say(
                    "lost", f"outbox row {seq} for {row['topic']} is on the wire and still {row['state']}"
                )
            elif place not in {record.place for record in records}:
                self.say(
                    "unexpected",
                    f"outbox row {seq} lies at {records[0]}, not where it says ({_where(place)})",
                )
            for record in records:
                if record.topic != row["topic"] or record.headers.get("event-id") != row["event_id"]:
                    self.say(
                        "misrouted",
                        f"{record} is not outbox row {seq} of event {row['event_id']} for {row['topic']}",
                    )
        told = {record.headers.get("event-id") for record in self.receipts}
        for event_id, row in self.message.items():
            # Over REST the answer is the receipt.
            if event_id not in told and not row["topic"].startswith(REST):
                self.say("lost", f"{_where(_place(row))} ({row['disposition']}) has no receipt on the wire")

    def _expected_news(self) -> None:
        """What a message must cause at the other hospital is there, and what it must not cause is not."""
        told: dict[str, list[Record]] = defaultdict(list)
        for record in self.inboxes:
            told[record.headers.get("event-id", "")].append(record)
        first: dict[tuple[str, str], Row] = {
            (row["trust"], row["message_id"]): row
            for row in self.t.messages
            if row["disposition"] == "accepted"
        }
        for each in self.ledger.sent:
            if "accepted" not in each.expected or each.news == "?":
                continue
            row = first.get((each.trust, each.message_id))
            records = told.get(row["event_id"], []) if row is not None else []
            if each.news is None:
                for record in records:
                    self.say(
                        "unexpected",
                        f"{record}: news of {each.what}, {each.story}, which is nobody else's business",
                    )
                continue
            topic = self.ledger.topic(each.news_to or "", "inbox")
            if not any(r.topic == topic and r.headers.get("event-type") == each.news for r in records):
                self.say("lost", f"{each.what}, {each.story}: {each.news} is not on {topic}")

    # -- in order

    def _order(self) -> None:
        """Per key as the outbox numbered it; per transfer by version; per partition as it was sent."""
        version = {(row["transfer_id"], row["event_id"]): row["version"] for row in self.t.history}
        last_of_key: dict[tuple[str, str], Record] = {}
        last_of_transfer: dict[tuple[str, str], Record] = {}
        for record in sorted((*self.inboxes, *self.receipts), key=lambda r: (r.topic, r.partition, r.offset)):
            key = (record.topic, record.key)
            before = last_of_key.get(key)
            if before is not None and before.seq > record.seq:
                self.say(
                    "order_violations",
                    f"{record} (outbox-seq {record.seq}) stands behind {before} ({before.seq}), same key",
                )
            if before is not None and before.partition != record.partition:
                self.say(
                    "order_violations", f"{record} and {before} have the same key and are in two partitions"
                )
            last_of_key[key] = record
            transfer_id = record.headers.get("transfer-id")
            if transfer_id:
                former = last_of_transfer.get((record.topic, transfer_id))
                event_id = record.headers.get("event-id", "")
                if former is not None:
                    old = version.get((transfer_id, former.headers.get("event-id", "")), 0)
                    new = version.get((transfer_id, event_id), old)
                    if old > new:
                        self.say("order_violations", f"{record} tells version {new} behind version {old}")
                last_of_transfer[(record.topic, transfer_id)] = record
        receipts = {
            row["event_id"]: row["seq"] for row in self.t.outbox if row["topic"].endswith(".receipts")
        }
        reached: dict[tuple[str, int], tuple[int, Place]] = {}
        for row in sorted(self.t.messages, key=_place):
            seq, part = receipts.get(row["event_id"], 0), (row["topic"], row["partition"])
            if part in reached and reached[part][1] == _place(row):
                continue  # a second row for one record is judged elsewhere
            if part in reached and reached[part][0] > seq > 0:
                self.say(
                    "order_violations",
                    f"{_where(_place(row))} was taken in before {_where(reached[part][1])}",
                )
            reached[part] = (max(seq, reached.get(part, (0,))[0]), _place(row))

    # -- to the right hospital

    def _routing(self) -> None:
        for record in self.inboxes:
            me = record.topic.split(".")[1].upper()
            source = record.headers.get("source-ods", "")
            row = self.message.get(record.headers.get("event-id", ""))
            event = self.event.get(record.headers.get("event-id", ""))
            transfer = self.transfer.get(record.headers.get("transfer-id", ""))
            if row is None or event is None or transfer is None:
                self.say("misrouted", f"{record} tells of an event or transfer that does not exist")
                continue
            parties = {transfer["sender"], transfer["receiver"]}
            if me not in parties:
                self.say("misrouted", f"{record}: {me} has no part in transfer {transfer['transfer_id']}")
            if journey := self.ledger.journeys.get(
                self.journey_of.get(record.headers.get("event-id", ""), "")
            ):
                # What exactly each hospital must hear of these is judged with their ends.
                if me not in journey.parties:
                    self.say("misrouted", f"{record}: {journey.name} is none of {me}'s business")
                continue
            if self._moment(record.headers.get("event-id", "")) is not None:
                continue  # who must hear what of these is judged with their tale
            if (
                (source == me and not self._is_alarm(event))
                or source != row["trust"]
                or source not in parties
            ):
                self.say("misrouted", f"{record}: news from {source!r} of a message of {row['trust']}")
            if event["transfer_id"] != transfer["transfer_id"]:
                self.say("misrouted", f"{record}: its event belongs to another transfer")
            if record.headers.get("event-type") not in self._names(event):
                self.say(
                    "misrouted",
                    f"{record} says {record.headers.get('event-type')} of the step {event['step']}",
                )
            # Not by the hub's word alone: what we sent, and whose story that was.
            sent = self.sent_at.get(_place(row))
            story = self.ledger.stories.get(sent.story) if sent else None
            if sent and (story is None or not {me, source} <= {story.sender, story.receiver}):
                self.say("misrouted", f"{record}: {sent.what}, {sent.story}, is none of {me}'s business")
            if sent and story:
                ends = (story.sender, story.receiver)
                self._says_whose_it_is(record, story.request_number, ends, story.nhs_number)
        for record in self.receipts:
            me = record.topic.split(".")[1].upper()
            row = self.message.get(record.headers.get("event-id", ""))
            if row is None or row["trust"] != me or row["topic"] != self.ledger.topic(me, "events"):
                self.say("misrouted", f"{record} is a receipt for a message that {me} did not send")
            elif record.headers.get("x-request-id") != row["message_id"]:
                self.say("misrouted", f"{record} names another message than {row['message_id']}")

    def _says_whose_it_is(self, record: Record, number: str, ends: tuple[str, str], nhs_number: str) -> None:
        """What the hospital reads is of that request, between these two, and of no other patient."""
        said = _subject(record)
        if said != (number, *ends):
            self.say("misrouted", f"{record} tells of {' '.join(said)}; it must be {number} {' '.join(ends)}")
        if strangers := {each.decode() for each in _NHS_NUMBER.findall(record.body)} - {nhs_number}:
            self.say("misrouted", f"{record} of {number} holds {len(strangers)} other patients' NHS numbers")

    # -- to these and to nobody else

    def _moment(self, event_id: str) -> tuple[Tale, int] | None:
        row = self.message.get(event_id)
        return None if row is None else self.moments.get((row["trust"], row["message_id"]))

    def _tales(self) -> None:
        """Of each moment there came what may come of it, and nothing else; in order; and of no hospital's secrets anything to another."""
        became: dict[tuple[str, str], set[str]] = defaultdict(set)
        for row in self.t.messages:
            became[row["trust"], row["message_id"]].add(row["disposition"])
        heard: dict[tuple[str, str], Counter[Heard]] = defaultdict(Counter)
        last: dict[tuple[str, str], int] = defaultdict(int)
        ids: dict[str, set[str]] = defaultdict(set)
        secrets = [
            (trust, word.encode(), tale.name)
            for tale in self.ledger.tales.values()
            for trust, words in tale.secrets.items()
            for word in words
        ]
        for record in sorted(self.inboxes, key=lambda r: r.place):
            me = record.topic.split(".")[1].upper()
            for trust, word, name in secrets:
                if trust == me and word in record.body:
                    self.say("misrouted", f"{record} of {name} holds what {me} must not read")
            found = self._moment(record.headers.get("event-id", ""))
            if found is None:
                continue
            tale, n = found
            row = self.message[record.headers["event-id"]]
            said = _subject(record)
            number = said[0]
            heard[row["trust"], row["message_id"]][
                Heard(me, number, record.headers.get("event-type", ""))
            ] += 1
            ids[number].add(record.headers.get("transfer-id", ""))
            if record.headers.get("source-ods") != row["trust"]:
                self.say("misrouted", f"{record} is not told as the word of {row['trust']}")
            if number in tale.requests:
                self._says_whose_it_is(record, number, tale.requests[number], tale.nhs_number)
            if n < last[me, number]:
                what = [tale.moments[each].what for each in (n, last[me, number])]
                self.say("order_violations", f"{record} of {number}: {what[0]} stands behind {what[1]}")
            last[me, number] = n
        for number, several in ids.items():
            if len(several) > 1:
                self.say("misrouted", f"{number} is told as {len(several)} transfers")
        for tale in self.ledger.tales.values():
            for moment in tale.moments:
                found_now = tuple((_became(became[each]), heard[each]) for each in moment.messages)
                self._moment_came_out(tale, moment, found_now)
            self._tale_ended(tale)

    def _moment_came_out(
        self, tale: Tale, moment: Moment, found: tuple[tuple[str, Counter[Heard]], ...]
    ) -> None:
        def differs(outcome: Outcome) -> int:
            return sum(
                (said != disposition) + (Counter(must) - has).total() + (has - Counter(must)).total()
                for (said, must), (disposition, has) in zip(outcome, found, strict=True)
            )

        for (said, must), (disposition, has) in zip(min(moment.outcomes, key=differs), found, strict=True):
            where = f"{tale.name} ({tale.plot}), {moment.what}"
            if said != disposition:
                self.say("unexpected", f"{where}: {disposition or 'nothing'}; it must be {said}")
            for each, count in (Counter(must) - has).items():
                self.say(
                    "lost",
                    f"{where}: {each.to} must hear {each.event_type} of {each.request}, {count} times more",
                )
            for each, count in (has - Counter(must)).items():
                kind = "duplicate_effects" if each in must else "misrouted"
                self.say(
                    kind,
                    f"{where}: {each.to} hears {each.event_type} of {each.request}, {count} times too much",
                )

    def _tale_ended(self, tale: Tale) -> None:
        if not tale.finished:
            self.say(
                "unexpected",
                f"{tale.name} ({tale.plot}) did not come to its end: waited for {tale.waited_for}",
            )
            return
        of_request = {row["value"]: self.transfer.get(row["transfer_id"]) for row in self.t.identifiers}
        for number, ends in tale.requests.items():
            transfer = of_request.get(number)
            if transfer is None:
                self.say("lost", f"{number} ({tale.plot}): there is no transfer")
                continue
            if transfer["state"] != tale.states[number]:
                self.say(
                    "unexpected",
                    f"{number} ({tale.plot}) is {transfer['state']}; it must be {tale.states[number]}",
                )
            if (transfer["sender"], transfer["receiver"]) != ends:
                self.say("misrouted", f"{number} is between {transfer['sender']} and {transfer['receiver']}")

    @staticmethod
    def _is_alarm(event: Row) -> bool:
        """What both hospitals must hear, the one that told it too."""
        corrected = event["event_type"] in {"transfer.corrected", "transfer.reopened"}
        return (
            corrected or "moved-without-acceptance" in event["flags"] or "records-diverge" in event["flags"]
        )

    @staticmethod
    def _names(event: Row) -> set[str | None]:
        """What news of an event may be called: by its step, by what its step corrected, or by the stay it tells of."""
        if event["step"] is None:
            return (
                {event["event_type"]} if event["event_type"].startswith(("encounter.", "patient.")) else set()
            )
        return {_EVENT_TYPE_OF_STEP[event["step"]], "transfer.corrected", "transfer.reopened"}

    # -- in the book

    def _audit(self) -> None:
        """The book has an entry for everything that happened, and no entry for what did not."""
        for event_id, row in self.message.items():
            # What had to be repaired was accepted like what had not.
            codes = Counter(_as_accepted(entry["code"]) for entry in self.audit_of[event_id])
            at = _where(_place(row))
            needed = {"msg-received", _OUTCOME_ENTRY.get(row["disposition"], "?")}
            for code in needed:
                if not codes[code]:
                    self.say("without_audit", f"{at} ({row['disposition']}) has no entry {code}")
            for code in ("msg-received", *_OUTCOME_ENTRY.values()):
                if codes[code] > (code in needed):
                    self.say(
                        "duplicate_effects", f"{at} ({row['disposition']}) has {codes[code]} entries {code}"
                    )
        self._moves()
        self._routes()
        self._deliveries()
        for entry in self.t.audit:
            about = entry["event_id"]
            if entry["code"] in _OF_A_MESSAGE and about not in self.t.known:
                self.say("duplicate_effects", f"entry {entry['entry']} ({entry['code']}) is about no message")

    def _moves(self) -> None:
        """What the entries say that happened to a transfer is its history, and the first is its creation."""
        audited: dict[str, list[str]] = defaultdict(list)
        made: Counter[str] = Counter()
        for entry in self.t.audit:
            if entry["code"] in _TRANSFER_CODES:
                more = json.loads(entry["detail"]).get("with_events", ())
                audited[entry["transfer_id"]] += [entry["event_id"], *more]
                made[entry["transfer_id"]] += entry["code"] == "transfer-created"
        facts: dict[str, list[str]] = defaultdict(list)
        for row in self.t.history:
            facts[row["transfer_id"]].append(row["event_id"])
        for transfer_id in audited.keys() | facts.keys():
            if sorted(audited[transfer_id]) != sorted(facts[transfer_id]):
                self.say(
                    "without_audit", f"the entries of transfer {transfer_id} are not the moves of its history"
                )
            if made[transfer_id] != 1:
                self.say("without_audit", f"transfer {transfer_id} was created {made[transfer_id]} times")

    def _routes(self) -> None:
        routed = Counter(
            (entry["event_id"], entry["transfer_id"], route["to"], route["topic"])
            for entry in self.t.audit
            if entry["code"] == "routed"
            for route in json.loads(entry["detail"])["routes"]
        )
        rows = Counter(
            (row["event_id"], row["transfer_id"], row["receiver"], row["topic"])
            for row in self.t.outbox
            if row["transfer_id"]
        )
        for each in rows - routed:
            self.say("without_audit", f"an outbox row of event {each[0]} for {each[3]} has no entry routed")
        for each in routed - rows:
            self.say("duplicate_effects", f"entry routed of event {each[0]} for {each[3]} has no outbox row")

    def _deliveries(self) -> None:
        """An outbox row that was sent has one entry: a disclosure if it is about a patient, else that it was acknowledged."""
        delivered = Counter(
            (json.loads(entry["detail"]).get("seq"), entry["code"])
            for entry in self.t.audit
            if entry["code"] in {"disclosure-sent", "delivery-ack"}
        )
        sent = Counter(
            (row["seq"], "disclosure-sent" if row["transfer_id"] else "delivery-ack")
            for row in self.t.outbox
            if row["state"] == "sent"
        )
        for seq, code in sent - delivered:
            self.say("without_audit", f"outbox row {seq} was sent and has no entry {code}")
        for seq, code in delivered - sent:
            self.say("duplicate_effects", f"outbox row {seq} has an entry {code} too many")

    # -- to the right end

    def _stories(self) -> None:
        of_request = {row["value"]: self.transfer.get(row["transfer_id"]) for row in self.t.identifiers}
        asked = {each.story for each in self.ledger.sent if each.what == "request"}
        for number, story in self.ledger.stories.items():
            transfer = of_request.get(number)
            if not story.finished:
                self.say("unexpected", f"{number} did not come to its end: waited for {story.waited_for}")
            elif transfer is None:
                self.say("lost", f"{number}: there is no transfer")
            elif transfer["state"] != story.final_state:
                self.say("unexpected", f"{number} is {transfer['state']}; it must be {story.final_state}")
            if transfer is not None and (transfer["sender"], transfer["receiver"]) != (
                story.sender,
                story.receiver,
            ):
                self.say("misrouted", f"{number} is between {transfer['sender']} and {transfer['receiver']}")
        of_journeys = self._journeys()
        others = {row["value"] for row in self.t.identifiers if row["transfer_id"] in of_journeys}
        others |= {number for tale in self.ledger.tales.values() for number in tale.requests}
        for number in of_request.keys() - asked - self.ledger.stories.keys() - others:
            self.say("duplicate_effects", f"request {number} was never sent and has a transfer")
        for row in self.t.incidents:
            self.say("unexpected", f"incident {row['kind']} of {row['subject']}: {row['detail']}")
        for row in self.t.brakes:
            self.say("unexpected", f"the brake of {row['trust']} is pulled: {row['why']}")

    def _journeys(self) -> set[str]:
        """Each journey ends as it must, and each hospital heard of it what it must, in order. Returns its transfers."""
        named: set[str] = set()
        for name, journey in self.ledger.journeys.items():
            mine = {event_id for event_id, of in self.journey_of.items() if of == name}
            transfers = {row["transfer_id"] for row in self.t.history if row["event_id"] in mine}
            named |= transfers
            if not journey.finished:
                self.say("unexpected", f"{name} did not come to its end: waited for {journey.waited_for}")
                continue
            states = Counter(self.transfer[each]["state"] for each in transfers)
            if states != journey.states:
                self.say("unexpected", f"{name} ended in {dict(states)}; it must be {dict(journey.states)}")
            heard: dict[tuple[str, str], list[str]] = defaultdict(list)
            for record in self.inboxes:
                if record.headers.get("event-id") in mine:
                    heard[record.topic, record.key].append(record.headers.get("event-type", ""))
            inboxes = Counter(
                (topic.split(".")[1].upper(), tuple(said)) for (topic, _), said in heard.items()
            )
            for (ods, types), count in (journey.inboxes - inboxes).items():
                self.say("lost", f"{name}: {ods} must hear {', '.join(types)} ({count} times)")
            for (ods, types), count in (inboxes - journey.inboxes).items():
                self.say("unexpected", f"{name}: {ods} heard {', '.join(types)} ({count} times)")
        return named


async def drained(ledger: Ledger, dsn: str, bootstrap_servers: str) -> str:
    """ "" when everything on the events topics was taken in and everything of the outbox was sent; else what is left."""
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        pending = await connection.fetchval("select count(*) from outbox where state <> 'sent'")
        positions = {
            (row["topic"], row["partition"]): row["next_offset"]
            for row in await connection.fetch("select topic, partition, next_offset from position")
        }
    finally:
        await connection.close()
    ends: dict[tuple[str, int], int] = {}
    for each in ledger.sent:
        if each.topic.startswith(REST):
            continue
        part = (each.topic, each.partition)
        ends[part] = max(ends.get(part, 0), each.offset + 1)
    behind = {
        f"{topic}/{part}": f"{positions.get((topic, part), 0)} of {end}"
        for (topic, part), end in ends.items()
        if positions.get((topic, part), 0) < end
    }
    left = [f"{pending} outbox rows"] if pending else []
    return "; ".join([*left, *(f"{name} at {at}" for name, at in sorted(behind.items()))])
