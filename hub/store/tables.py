"""The tables, once for PostgreSQL and SQLite. `hub.store.migrations` makes them.

Times are UTC. Ids are text (UUIDs of version 7's shape, so that they sort by time).
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)

from hub.audit.leaf import SHARED

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

views = MetaData()
"""Read like tables; made by `hub.store.waiting` and `hub.store.acts`."""


class UtcDateTime(TypeDecorator[datetime]):
    """An instant. SQLite has no time zones, so there it is stored without one and read back as UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


# SQLite numbers rows by itself only in a column of type INTEGER.
Sequence = BigInteger().with_variant(Integer, "sqlite")


def _id(name: str, **more: Any) -> Column[str]:
    return Column(name, String(64), **more)


position = Table(
    "position",
    metadata,
    Column("topic", String(249), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("next_offset", BigInteger, nullable=False),
    Column("moved_at", UtcDateTime),
    # How often this position was taken up without getting past it, and how often the message at
    # `suspect_offset` was begun on its own: a message that kills the process must not loop for ever.
    Column("taken_up_at", BigInteger),
    Column("taken_up", Integer, nullable=False, default=0),
    Column("suspect_offset", BigInteger),
    Column("suspect_begun", Integer, nullable=False, default=0),
    Column(
        "last_offset",
        BigInteger,
        comment="Of the last record taken in; a topic made anew holds another there",
    ),
    Column("last_sha256", String(64)),
    comment="The next offset of every partition: the truth about what was taken in",
)

message = Table(
    "message",
    metadata,
    _id("event_id", primary_key=True),
    Column("trust", String(6), nullable=False),
    # Where it lies in Kafka; empty for what came over REST.
    Column("topic", String(249)),
    Column("partition", Integer),
    Column("offset", BigInteger),
    Column("message_id", String(255), nullable=False),
    # Set on the first message with this id only; unique, so that two workers cannot both be first.
    Column("first_key", String(300), unique=True),
    _id("first_event_id"),
    Column("headers", JSON, nullable=False),
    Column("key", LargeBinary),
    Column(
        "raw", LargeBinary, comment="As received, zlib-compressed; absent on a duplicate, and once aged out"
    ),
    Column("raw_size", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("received_at", UtcDateTime, nullable=False),
    Column("disposition", String(16), nullable=False),
    Column("why", String(40)),
    Column("at", Text),
    Column("detail", Text),
    Column("retries", Integer, nullable=False, default=0),
    Column("retried_at", UtcDateTime),
    Index(
        "ix_message_disposition",
        "disposition",
        "trust",
        "received_at",
        postgresql_where=text("disposition <> 'accepted'"),
        sqlite_where=text("disposition <> 'accepted'"),
    ),
    # What has not aged out yet: retention looks at nothing else.
    Index(
        "ix_message_kept",
        "received_at",
        postgresql_where=text("raw IS NOT NULL"),
        sqlite_where=text("raw IS NOT NULL"),
    ),
)

person = Table(
    "person",
    metadata,
    _id("person_id", primary_key=True),
    Column("birth_date", String(10)),
    Column("created_at", UtcDateTime, nullable=False),
    _id("merged_into", comment="The record that stands for this one; empty: it stands for itself"),
    Column("sensitivity", String(1), comment="R or V (PDS): whereabouts are kept back"),
    Column("restricted_by", String(6), comment="The trust that said so; empty: not known, before 0013"),
)
Index(
    "ix_person_merged_into",
    person.c.merged_into,
    postgresql_where=person.c.merged_into.is_not(None),
    sqlite_where=person.c.merged_into.is_not(None),
)

person_identifier = Table(
    "person_identifier",
    metadata,
    # The value first: lookups are by many values at once.
    Column("value", String(255), primary_key=True),
    Column("authority", String(310), primary_key=True),
    _id("person_id", nullable=False, index=True),
    _id("event_id", nullable=False),
    comment="nhs, or <ODS>|<system>: a hospital's numbers mean nothing outside it",
)

person_not_theirs = Table(
    "person_not_theirs",
    metadata,
    _id("person_id", primary_key=True),
    Column("authority", String(310), primary_key=True),
    Column("value", String(255), primary_key=True),
    Column("since", UtcDateTime, nullable=False),
    comment="Numbers that a person took from a record: who gives one for it asks a question. Who and why is in the audit",
)

person_link = Table(
    "person_link",
    metadata,
    _id("person_id", primary_key=True),
    _id("event_id", primary_key=True),
    _id("linked_to", comment="Empty: parted again"),
    Column("kind", String(40), nullable=False),
    comment="Merges are facts, not deletions; `person.merged_into` is where they lead",
)

event = Table(
    "event",
    metadata,
    _id("event_id", primary_key=True),
    Column("trust", String(6), nullable=False),
    Column("event_type", String(40), nullable=False),
    _id("person_id"),
    _id("transfer_id"),
    Column("encounter_key", String(600)),
    Column("occurred_at", UtcDateTime, nullable=False),
    Column("received_at", UtcDateTime, nullable=False),
    Column("sequence", BigInteger),
    Column("stay", JSON, comment="What an encounter event says of a stay, as far as it can move a transfer"),
    Column("flags", JSON, nullable=False),
    Column("changes", JSON, nullable=False),
    Column("unmapped", JSON, nullable=False, server_default="[]"),
    Column(
        "payload", LargeBinary, comment="The canonical resources, zlib-compressed JSON; absent once aged out"
    ),
    Index(
        "ix_event_kept",
        "received_at",
        postgresql_where=text("payload IS NOT NULL"),
        sqlite_where=text("payload IS NOT NULL"),
    ),
)
# A request asks for the stays of its patient that belong to no transfer; nobody asks for the others.
Index(
    "ix_event_loose",
    event.c.person_id,
    postgresql_where=event.c.transfer_id.is_(None),
    sqlite_where=event.c.transfer_id.is_(None),
)

transfer = Table(
    "transfer",
    metadata,
    _id("transfer_id", primary_key=True),
    _id("person_id", nullable=False, index=True),
    Column("sender", String(6), nullable=False),
    Column("receiver", String(6), nullable=False),
    Column("sender_code", String(6)),
    Column("receiver_code", String(6)),
    Column("state", String(20), nullable=False),
    Column("version", Integer, nullable=False),
    Column("requested_at", UtcDateTime, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    Column("correlation_id", String(255), index=True),
    Column("origin_encounter", String(600)),
    Column("specialty", String(20)),
    Column("priority", String(20)),
    Column("kind", String(40)),
    Column("inferred", Boolean, nullable=False, default=False),
    _id("replaces"),
    Column("due_at", UtcDateTime, comment="When its next clock rings"),
    Column("due_clock", String(30)),
    Index("ix_transfer_state", "state", "changed_at"),
    # A trust looks for its transfers as the one end or the other, the last changed first.
    Index("ix_transfer_sender", "sender", "changed_at", "transfer_id"),
    Index("ix_transfer_receiver", "receiver", "changed_at", "transfer_id"),
)

Index(
    "ix_transfer_due",
    transfer.c.due_at,
    postgresql_where=transfer.c.due_at.is_not(None),
    sqlite_where=transfer.c.due_at.is_not(None),
)

# Most transfers are over and most people look for those that are not.
_OPEN = text("state NOT IN ('completed', 'redirected', 'cancelled', 'entered-in-error', 'failed', 'expired')")
for _end in (transfer.c.sender, transfer.c.receiver):
    Index(
        f"ix_transfer_{_end.name}_open",
        _end,
        transfer.c.changed_at,
        transfer.c.transfer_id,
        postgresql_where=_OPEN,
        sqlite_where=_OPEN,
    )

transfer_identifier = Table(
    "transfer_identifier",
    metadata,
    _id("transfer_id", primary_key=True),
    Column("system", String(300), primary_key=True),
    Column("value", String(255), primary_key=True),
    Index("ix_transfer_identifier_value", "value", "system"),
)

transfer_history = Table(
    "transfer_history",
    metadata,
    _id("transfer_id", primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("from_state", String(20)),
    Column("to_state", String(20), nullable=False),
    Column("step", String(20), nullable=False),
    Column("by", String(6), nullable=False),
    _id("event_id", nullable=False),
    Column("occurred_at", UtcDateTime, nullable=False),
    Column("received_at", UtcDateTime, nullable=False),
    Column("sequence", BigInteger),
    Column("because", Text, nullable=False),
    Column("encounter_key", String(600)),
    Column("retracts", JSON, comment="Steps of that stay that count no more"),
    Column("until", UtcDateTime),
    Column("clock", String(30)),
    Column("stated_at", UtcDateTime),
    comment="The facts: what a transfer's state is the fold of. Version n is the n-th that was learned",
)

outbox = Table(
    "outbox",
    metadata,
    # Drawn while the transfer's lock is held, so it orders one transfer's rows. Across transfers a
    # lower number can become visible later: read by state, never "above the last number".
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("receiver", String(6), nullable=False),
    Column("topic", String(249), nullable=False),
    Column("key", String(300), nullable=False),
    Column("headers", JSON, nullable=False),
    Column("payload", LargeBinary, comment="Absent once aged out, never while it waits"),
    _id("event_id", nullable=False),
    _id("transfer_id"),
    _id("person_id"),
    Column("created_at", UtcDateTime, nullable=False),
    Column("state", String(8), nullable=False, default="pending"),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_attempt_at", UtcDateTime),
    Column("last_error", Text),
    Column("sent_at", UtcDateTime),
    Column("sent_partition", Integer),
    Column("sent_offset", BigInteger),
    comment="What must reach whom; state is pending or sent",
)
Index(
    "ix_outbox_pending",
    outbox.c.receiver,
    outbox.c.seq,
    postgresql_where=outbox.c.state == "pending",
    sqlite_where=outbox.c.state == "pending",
)
_KEPT = text("state = 'sent' AND payload IS NOT NULL")
Index("ix_outbox_kept", outbox.c.sent_at, postgresql_where=_KEPT, sqlite_where=_KEPT)
_PLACED = outbox.c.sent_partition.is_not(None)
Index(
    "ix_outbox_sent",
    outbox.c.topic,
    outbox.c.sent_partition,
    outbox.c.sent_offset,
    postgresql_where=_PLACED,
    sqlite_where=_PLACED,
)

delivery_attempt = Table(
    "delivery_attempt",
    metadata,
    Column("attempt", Sequence, primary_key=True, autoincrement=True),
    Column("receiver", String(6), nullable=False),
    Column("topic", String(249), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("first_seq", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("outcome", String(16), nullable=False, comment="sent, found-sent, fetched, failed"),
    Column("error", Text),
    Index("ix_delivery_attempt_receiver", "receiver", "at"),
    comment="One row per batch that was tried",
)


def _entry_columns() -> tuple[Column[Any], ...]:
    """What an audit entry says: the same before and after it is sealed."""
    return (
        Column("code", String(40), nullable=False),
        Column("at", UtcDateTime, nullable=False, comment="Hub time"),
        Column("occurred_at", UtcDateTime, comment="Event time"),
        Column("outcome", Integer, nullable=False, comment="FHIR AuditEvent.outcome: 0, 4, 8, 12"),
        Column("trust", String(6), comment="Whose act, as far as it is proved"),
        Column("system", String(20), nullable=False),
        Column("counterpart", String(6), comment="To whom, where there is one"),
        _id("event_id"),
        _id("person_id"),
        _id("transfer_id"),
        Column("request_id", String(255), comment="X-Request-Id"),
        Column("user_id", String(300), comment="Who signed in, or the operator"),
        Column("role_id", String(100), comment="In which role"),
        Column("client_id", String(300), comment="Which system called"),
        Column("detail", JSON, nullable=False),
    )


audit_batch = Table(
    "audit_batch",
    metadata,
    # Drawn before its transaction commits, so it orders nothing: the order is the leaf index, given when an entry is sealed.
    Column("batch", Sequence, primary_key=True, autoincrement=True),
    Column("size", Integer, nullable=False, comment="How many entries"),
    Column("entries", Text, nullable=False, comment="A JSON array, an entry a line"),
    # A number that was given is not given again when the table has been emptied.
    sqlite_autoincrement=True,
    comment="Entries that are not sealed yet, for a second or so: what one transaction wrote is one row",
)

audit_pending = Table(
    "audit_pending",
    views,
    Column("entry", BigInteger, primary_key=True),
    *_entry_columns(),
    comment="A view: the entries of `audit_batch` one by one",
)

audit_act = Table(
    "audit_act",
    metadata,
    Column("first_leaf", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column(
        "first_entry",
        BigInteger,
        nullable=False,
        unique=True,
        comment="Leaves and numbers go on one by one from the first",
    ),
    Column(
        "hashes", LargeBinary, nullable=False, comment="RFC 6962 leaf hashes, as they were when it was sealed"
    ),
    *(each for each in _entry_columns() if each.name in SHARED),
    Column(
        "entries",
        Text,
        nullable=False,
        comment="A JSON array of what each entry says for itself, an entry a line",
    ),
    Index("ix_audit_act_at", "at"),
    # Asked for by equality alone, and each act has an entry in all of them: a hash costs half of what a tree does.
    *(
        Index(f"ix_audit_act_{each}", each, postgresql_using="hash")
        for each in ("event_id", "transfer_id", "person_id")
    ),
    comment="Sealed entries, leaves of the Merkle log: what one act wrote is one row. Only ever inserted; triggers and grants refuse the rest",
)
for _who in (audit_act.c.user_id, audit_act.c.client_id):
    Index(
        f"ix_audit_act_{_who.name}",
        _who,
        audit_act.c.first_leaf,
        postgresql_where=_who.is_not(None),
        sqlite_where=_who.is_not(None),
    )
NOTABLE = text('(outcome > 0 OR entries LIKE \'%{"code":"break-glass-%\')')
"""What was refused or went wrong, and each breaking of the glass: rare, and asked for by name. The index's own words."""
Index("ix_audit_act_notable", audit_act.c.at, postgresql_where=NOTABLE, sqlite_where=NOTABLE)

audit_entry = Table(
    "audit_entry",
    views,
    Column("leaf_index", BigInteger, primary_key=True),
    Column("hash", LargeBinary, nullable=False),
    Column("entry", BigInteger, nullable=False),
    *_entry_columns(),
    Column("first_leaf", BigInteger, nullable=False, comment="Of its act"),
    Column("first_entry", BigInteger, nullable=False, comment="Of its act"),
    Column("act_entries", Text, nullable=False, comment="Of its act, as text"),
    Column("notable", Boolean, nullable=False, comment="Whether its act is (`NOTABLE`)"),
    comment="A view: the entries of `audit_act` one by one",
)

audit_node = Table(
    "audit_node",
    metadata,
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
    comment="Complete subtrees of 256 leaves and more: a proof needs few rows, however long the log is",
)

audit_checkpoint = Table(
    "audit_checkpoint",
    metadata,
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
    Column("note", Text, nullable=False, comment="Signed: C2SP tlog-checkpoint"),
)

audit_feed = Table(
    "audit_feed",
    metadata,
    Column("name", String(40), primary_key=True, comment="topic, repository"),
    Column("next_leaf", BigInteger, nullable=False),
    Column("last_offset", BigInteger, comment="In Kafka: the highest offset known to hold a record of ours"),
    Column("moved_at", UtcDateTime, nullable=False),
    Column("failures", Integer, nullable=False, default=0),
    Column("last_error", Text),
    Column("next_attempt_at", UtcDateTime),
    comment="How far each reader of the sealed log has come",
)

incident = Table(
    "incident",
    metadata,
    _id("incident_id", primary_key=True),
    Column("kind", String(30), nullable=False),
    Column("subject", String(300), nullable=False, comment="The trust, topic or partition it is about"),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("detail", JSON, nullable=False),
    Column("closed_at", UtcDateTime),
    Column("closed_because", Text),
    Index("ix_incident_open", "closed_at", "kind"),
    comment="Loud until somebody acknowledges it",
)

brake = Table(
    "brake",
    metadata,
    Column("trust", String(6), primary_key=True),
    Column("in_a_row", Integer, nullable=False, default=0),
    Column("pulled", Boolean, nullable=False, default=False),
    Column("pulled_at", UtcDateTime),
    Column("why", String(40)),
    comment="Messages quarantined one after the other; at the limit the trust's partitions are paused",
)

lease = Table(
    "lease",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("holder", String(200), nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)

client = Table(
    "client",
    metadata,
    _id("client_id", primary_key=True),
    Column("trust", String(6), nullable=False),
    Column("name", String(200), nullable=False),
    Column("keys", JSON, nullable=False, comment="Its public keys, a JSON Web Key Set (RFC 7517)"),
    Column("scopes", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
    comment="Systems that speak for a trust over REST",
)

used_assertion = Table(
    "used_assertion",
    metadata,
    _id("client_id", primary_key=True),
    Column("jti", String(255), primary_key=True),
    Column("expires_at", UtcDateTime, nullable=False, index=True),
    comment="Signed assertions that were exchanged for a token: each is good for once (RFC 7523, 3)",
)

break_glass = Table(
    "break_glass",
    metadata,
    _id("grant_id", primary_key=True),
    Column("trust", String(6), nullable=False),
    Column("user_id", String(200), nullable=False),
    Column("role_id", String(100), nullable=False),
    _id("person_id", nullable=False),
    Column("reason", Text, nullable=False, comment="The user's own words: nowhere but here"),
    Column("granted_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("closed_at", UtcDateTime, comment="When the audit says that it ended"),
    Column("reviewed_at", UtcDateTime),
    Column("reviewed_by", String(100)),
    Column("verdict", String(20)),
    Index("ix_break_glass_user_id", "user_id", "expires_at"),
    comment="A clinician saw a patient's transfers without a relationship: why, until when, and who looked at that",
)

subscription = Table(
    "subscription",
    metadata,
    _id("subscription_id", primary_key=True),
    Column("trust", String(6), nullable=False),
    Column("client_id", String(300), nullable=False),
    Column("resource", JSON, nullable=False, comment="The Subscription as its client wrote it"),
    Column("wanted", JSON, nullable=False, comment="Its filters: states, senders, receivers"),
    Column("status", String(10), nullable=False, comment="requested, active, error, off"),
    Column("error", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("ends_at", UtcDateTime),
    Column("met", Boolean, nullable=False, comment="Its receiver has answered the handshake"),
    Column("last_number", BigInteger, nullable=False, comment="The highest event number that was given"),
    Column("told_number", BigInteger, nullable=False, comment="The highest that its receiver took"),
    Column("failures", Integer, nullable=False),
    Column("next_attempt_at", UtcDateTime),
    Column("heard_at", UtcDateTime, comment="When its receiver last answered well"),
    Index("ix_subscription_trust", "trust", "status"),
)

subscription_event = Table(
    "subscription_event",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    _id("subscription_id", nullable=False),
    Column("number", BigInteger, comment="Given by the one that tells, so that none is missing"),
    _id("transfer_id", nullable=False),
    Column("version", Integer, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Index("ix_subscription_event_subscription_id", "subscription_id", "number", unique=True),
)
