"""What can be wrong so that a person has to look at it, and what that person is to do."""

from collections.abc import Mapping
from enum import StrEnum


class IncidentKind(StrEnum):
    """The kinds of incidents; each is about one subject (a partition, a hospital, a feed), and open at most once for it."""

    MESSAGES_LOST = "messages-lost"
    POSITION_ABOVE_END = "position-above-end"
    TOPIC_MADE_ANEW = "topic-made-anew"
    TOPIC_MISSING = "topic-missing"
    DELIVERY_LATE = "delivery-late"
    SENT_RECORDS_GONE = "sent-records-gone"
    TOPIC_AHEAD = "topic-ahead-of-database"
    SUBSCRIPTION_FAILING = "subscription-failing"
    GLASS_BROKEN = "glass-broken"
    SEALING_LATE = "sealing-late"
    AUDIT_LOG_BROKEN = "audit-log-broken"
    AUDIT_FEED = "audit-feed"
    AUDIT_RECORDS_GONE = "audit-records-gone"
    BACKUP_PUT_BACK = "backup-put-back"


_FROM_WHERE = (
    "The topic was made anew, or the database is from another day; the partition is not read. "
    "Find out which, then `hub positions set` to the offset to read from."
)

ADVICE: Mapping[str, str] = {
    IncidentKind.MESSAGES_LOST: "Kafka removed these messages before the hub read them. Ask the trust to send again what it sent then, and raise "
    "the topic's retention.",
    IncidentKind.POSITION_ABOVE_END: _FROM_WHERE,
    IncidentKind.TOPIC_MADE_ANEW: _FROM_WHERE,
    IncidentKind.TOPIC_MISSING: "The trust's events topic is gone: whatever it held unread is lost, and what the trust sends now goes nowhere. "
    "`hub topics apply`, then ask the trust to send again. Closes itself when the topic is there.",
    IncidentKind.DELIVERY_LATE: "`hub outbox` says why. Closes itself when the hospital has its messages.",
    IncidentKind.SENT_RECORDS_GONE: "What was sent to this partition does not lie there any more: the topic was made anew or lost its end. Ask the "
    "receiver which outbox-seq it read last, then `hub resend`.",
    IncidentKind.TOPIC_AHEAD: "The receiver's topic holds messages that this database does not know: it is older than the topic (`hub db restored`, if "
    "that was not done), or another hub writes there.",
    IncidentKind.SUBSCRIPTION_FAILING: "Ask who runs the subscriber. Closes itself when it takes what it is told.",
    IncidentKind.GLASS_BROKEN: "Look at the reason, then `hub break-glass review`.",
    IncidentKind.SEALING_LATE: "Is `hub sealer` running? Closes itself when the entries are sealed.",
    IncidentKind.AUDIT_LOG_BROKEN: "The sealed log is not what was signed. Keep the database as it is; `hub audit export` and `hub audit verify` "
    "say which entry.",
    IncidentKind.AUDIT_FEED: "`hub audit feeds` says why. Closes itself when the feed goes on.",
    IncidentKind.AUDIT_RECORDS_GONE: "The topic of the audit does not hold what was passed on: it was made anew or lost its end. Whoever reads it "
    "takes what is missing from `hub audit search --fhir`.",
    IncidentKind.BACKUP_PUT_BACK: "Ask each hospital what it was told since the backup, and whose REST messages are missing.",
}
