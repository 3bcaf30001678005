"""Delivery: what goes to a receiver, where it came to lie, what an error means, and how long to wait.

Nothing here knows Kafka; a door out (`hub.destinations`) hands over an error's *name*, because its text may
quote a message.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from hub.domain.value import value

SEQ_HEADER = "outbox-seq"
"""Every record names its outbox row, so that the receiving topic is the record of what was sent."""

EVENT_HEADER = "event-id"
"""Beside the sequence: two databases number alike, so a number alone does not prove that it is our row."""


@value
class Outgoing:
    """One outbox row, as a door out needs it. ``attempts`` counts the ones that failed."""

    seq: int
    receiver: str
    topic: str
    key: str
    headers: Mapping[str, str]
    payload: bytes
    event_id: str
    attempts: int = 0


@value
class Placed:
    """Where an outbox row lies in the receiver's topic. ``event_id`` is the row's, as the record has it; ``sha256`` is that of what
    the record holds, where it was read back. A door without partitions says -1.
    """

    seq: int
    topic: str
    partition: int
    offset: int
    event_id: str
    sha256: str = ""


class Scope(StrEnum):
    """What an error is about, and so what has to wait."""

    RECORD = "record"
    """This record only: it waits with its key, the other keys go on."""
    TOPIC = "topic"
    """This topic only: its rows wait, the receiver's other topics go on."""
    RECEIVER = "receiver"
    """Everything for this receiver waits."""
    OWNER = "owner"
    """Somebody else dispatches for this receiver now: stop, and ask for the lease again."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A judged error. ``name`` is the exception's type, ``advice`` says what it means and who can mend it."""

    scope: Scope
    name: str
    advice: str
    topic: str | None = None

    def __str__(self) -> str:
        """What may be stored and shown: no word of it comes from a message."""
        return f"{self.name}: {self.advice}"


class DeliveryError(Exception):
    """A door out could not deliver. What was being sent is sent or not: only reading back tells.

    ``suspects`` are the outbox sequences an error of scope RECORD is about; more than one means that the
    receiver refused them together and did not say which. ``retry_after_s`` is how long the receiver asks to be left alone.
    """

    def __init__(
        self, fault: Fault, suspects: tuple[int, ...] = (), retry_after_s: float | None = None
    ) -> None:
        super().__init__(str(fault))
        self.fault = fault
        self.suspects = suspects
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class ReadBack:
    """What a door out found in the receiver's topics behind what was known, and the topics it could not look into.

    ``gone`` are the known records that do not lie any more where they lay: their partition was made anew, or lost its end. Then
    ``found`` is all that lies in it.
    """

    found: tuple[Placed, ...] = ()
    closed: Mapping[str, Fault] = field(default_factory=dict)
    gone: tuple[Placed, ...] = ()


_RECORD = {
    "MessageSizeTooLargeError": "a record is larger than topic {topic} takes: raise its max.message.bytes, or look at the outbox row",
    "RecordListTooLargeError": "a record is larger than the segments of topic {topic}: raise its segment.bytes",
    "RecordTooLargeError": "a record is larger than topic {topic} takes: raise its max.message.bytes",
    "InvalidTimestampError": "topic {topic} refuses the record's time: compare the clocks of hub and broker",
    "InvalidRecord": "topic {topic} refuses the record: the hub team must look at the outbox row",
}
_TOPIC = {
    "UnknownTopicOrPartitionError": "topic {topic} does not exist: run `hub topics apply`",
    "InvalidTopicError": "topic {topic} has a name that Kafka does not accept: correct the trust's profile",
    "TopicAuthorizationFailedError": "not authorised to write to or read topic {topic}: whoever runs Kafka gives the hub's user both (an ACL)",
    "PolicyViolationError": "the broker's policy refuses topic {topic}: ask who runs Kafka",
}
_OWNER = {
    "ProducerFenced": "another dispatcher took this receiver over",
    "InvalidProducerEpoch": "another dispatcher took this receiver over",
    "LeaseLost": "the lease went to another dispatcher or could not be renewed in time",
}
_UNREACHABLE = "Kafka does not answer: is it running, and does the network let the hub through?"
_RECEIVER = {
    "KafkaConnectionError": _UNREACHABLE,
    "NodeNotReadyError": _UNREACHABLE,
    "KafkaTimeoutError": _UNREACHABLE,
    "RequestTimedOutError": _UNREACHABLE,
    "NoBrokersAvailable": _UNREACHABLE,
    "TimeoutError": "Kafka did not finish in time: broker down, topic just deleted, partition without a leader, or overloaded",
    "NotEnoughReplicasError": "too few in-sync replicas: a broker of the cluster is down",
    "NotEnoughReplicasAfterAppendError": "too few in-sync replicas: a broker of the cluster is down",
    "AuthenticationFailedError": "Kafka does not accept the hub's user or password: check HUB_KAFKA_USERNAME and its password",
    "SaslAuthenticationFailed": "Kafka does not accept the hub's user or password: check HUB_KAFKA_USERNAME and its password",
    "UnsupportedSaslMechanismError": "the broker does not offer SCRAM-SHA-512",
    "TransactionalIdAuthorizationFailed": "not authorised for transactional ids hub.dispatcher.*: give the hub's user WRITE on that prefix",
    "ClusterAuthorizationFailedError": "not authorised to produce idempotently: give the hub's user IDEMPOTENT_WRITE",
    "SSLError": "TLS failed: check HUB_KAFKA_CA_FILE against the brokers' certificates",
    "SSLCertVerificationError": "the brokers' certificate is not trusted: check HUB_KAFKA_CA_FILE",
}
_UNFORESEEN = "not foreseen: the hub team must look at the log"


def judge(error_name: str, topic: str | None = None) -> Fault:
    """What an error of this name means, while sending to ``topic`` if that is known. Never fails.

    An error that is about a topic counts for the whole receiver when the topic is not known, and so does
    one that nobody foresaw: holding too much back keeps the order, sending too much breaks it.
    """
    if topic is not None:
        for scope, words in ((Scope.RECORD, _RECORD), (Scope.TOPIC, _TOPIC)):
            if error_name in words:
                return Fault(scope, error_name, words[error_name].format(topic=topic), topic)
    if error_name in _OWNER:
        return Fault(Scope.OWNER, error_name, _OWNER[error_name], topic)
    about_topic = {**_RECORD, **_TOPIC}.get(error_name, _UNFORESEEN).format(topic="(unknown)")
    return Fault(Scope.RECEIVER, error_name, _RECEIVER.get(error_name, about_topic), topic)


def backoff_s(failures: int, *, first_s: float, max_s: float, jitter: float) -> float:
    """Seconds to wait after so many failures in a row (1 for the first): doubling, up to ``max_s``.

    ``jitter`` in [0, 1) is a random number handed in; it takes away up to half, so that receivers that
    failed together do not come back together, and nobody waits longer than ``max_s``.
    """
    doubled = first_s * 2.0 ** min(max(failures - 1, 0), 40)
    return min(max_s, doubled) * (1 - jitter / 2)
