"""The Kafka topics there must be: which, with what settings, and how far the cluster is from that.

Topics are created and compared, never changed and never deleted: what is in them is other people's
messages, and every change that is worth making to a live topic is worth a person.
"""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from hub.domain.trust import Directory

AUDIT_TOPIC: Final = "hub.audit"

EVENTS_BYTES_MAX: Final = 1_048_588
"""Kafka's own default. The hub's limit (HUB_MESSAGE_BYTES_MAX) is below it, so that a message that is
a little too large gets a receipt that says so, and not only a broker's refusal."""

HUB_BYTES_MAX: Final = 2_097_152
"""What the hub sends holds what a trust sent and what the hub says of it; it must never be too large
for having been allowed in. The dispatcher's producer must allow as much."""

_OURS = re.compile(r"epr\.[a-z0-9]{3,6}\.events|hub\.[a-z0-9]{3,6}\.(?:inbox|receipts)")
_ANSWER_S: Final = 15.0
_CREATE_S: Final = 30.0
_SEEN_S: Final = 30.0
_IF_EMBEDDED: Final = " (if this is the broker of `hub demo`: it cannot be asked, makes each topic when it is first used, and needs no `hub topics`)"
"""It has no controller, which topics are asked of and made by."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it should be."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Found:
    """A topic as it is. ``config`` is None if the cluster does not let us read it."""

    partitions: int
    replication: int
    config: Mapping[str, str | None] | None


class TopicState(StrEnum):
    RIGHT = "right"
    MISSING = "missing"
    CREATED = "created"
    DIFFERS = "differs"
    UNKNOWN = "unknown"
    """It is there, but its settings may not be read."""
    UNWANTED = "unwanted"
    """No trust of the directory owns it. Left alone."""
    FAILED = "failed"


BAD: Final = frozenset({TopicState.MISSING, TopicState.DIFFERS, TopicState.FAILED})
"""The states that should make `hub topics list` exit with an error."""

NOT_THERE: Final = frozenset({TopicState.MISSING, TopicState.FAILED})
"""Those that should make `hub topics apply`: what it must not change, the services can live with, and what starts them asks it first."""


class Row(NamedTuple):
    """One line to print."""

    topic: str
    state: TopicState
    detail: str = ""


class KafkaUnavailableError(Exception):
    """Kafka did not answer, or does not let this user ask."""


def wanted_topics(
    directory: Directory,
    partitions: int,
    replication: int,
    retention_days: int,
    *,
    partitions_out: int = 1,
    audit_topic: str = AUDIT_TOPIC,
) -> list[Topic]:
    """Every topic of every trust (``partitions`` for what they write, ``partitions_out`` for what the hub writes to
    them), and the audit's. Pure.
    """
    common = {
        "cleanup.policy": "delete",
        "retention.ms": str(retention_days * 86_400_000),
        # By arrival, not by the sender's clock: a hospital whose clock is a month behind would otherwise
        # have its messages deleted before the hub has read them.
        "message.timestamp.type": "LogAppendTime",
        "min.insync.replicas": "2" if replication >= 3 else "1",
    }

    def topic(name: str, partitions: int, bytes_max: int) -> Topic:
        return Topic(name, partitions, replication, {**common, "max.message.bytes": str(bytes_max)})

    wanted: list[Topic] = []
    for profile in directory:
        wanted += [
            topic(profile.events_topic, partitions, EVENTS_BYTES_MAX),
            topic(profile.inbox_topic, partitions_out, HUB_BYTES_MAX),
            topic(profile.receipts_topic, partitions_out, HUB_BYTES_MAX),
        ]
    return [*wanted, topic(audit_topic, 1, HUB_BYTES_MAX)]


def judge(wanted: Iterable[Topic], found: Mapping[str, Found]) -> list[Row]:
    """How far the cluster is from what is wanted, wanted topics first. Pure."""
    wanted = list(wanted)
    rows = [_judge_one(topic, found.get(topic.name)) for topic in wanted]
    names = {topic.name for topic in wanted}
    rows += [
        Row(name, TopicState.UNWANTED, "no trust in schemas/trusts owns it; left alone")
        for name in sorted(found)
        if name not in names and _OURS.fullmatch(name)
    ]
    return rows


def _judge_one(topic: Topic, found: Found | None) -> Row:
    if found is None:
        return Row(topic.name, TopicState.MISSING)
    differences: list[str] = []
    if found.partitions != topic.partitions:
        differences.append(
            f"partitions {found.partitions}, wanted {topic.partitions} "
            "(left alone: another number sends a patient's next message to another partition, out of order)"
        )
    if found.replication != topic.replication:
        differences.append(
            f"replication {found.replication}, wanted {topic.replication} (reassign with Kafka's tools)"
        )
    if found.config is None:
        note = "its settings may not be read (DESCRIBE_CONFIGS is not granted)"
        return Row(
            topic.name,
            TopicState.DIFFERS if differences else TopicState.UNKNOWN,
            "; ".join([*differences, note]),
        )
    differences += [
        f"{name} {found.config.get(name)}, wanted {value}"
        for name, value in sorted(topic.config.items())
        if found.config.get(name) != value
    ]
    return Row(topic.name, TopicState.DIFFERS if differences else TopicState.RIGHT, "; ".join(differences))


def open_admin(
    bootstrap_servers: str,
    *,
    security_protocol: str = "PLAINTEXT",
    username: str | None = None,
    password: str | None = None,
    ca_file: Path | None = None,
) -> AdminClient:
    """A client that may ask and create. Nothing is connected yet."""
    config: dict[str, Any] = {
        "bootstrap.servers": bootstrap_servers,
        "security.protocol": security_protocol,
        "client.id": "transfer-hub-topics",
        # librdkafka writes connection errors to standard error by itself; what matters is raised.
        "log_level": 0,
    }
    if security_protocol.startswith("SASL"):
        config |= {
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": username or "",
            "sasl.password": password or "",
        }
    if ca_file is not None:
        config["ssl.ca.location"] = str(ca_file)
    return AdminClient(config)


def compare(admin: AdminClient, wanted: Sequence[Topic]) -> list[Row]:
    """Ask the cluster and judge. Changes nothing. Raises KafkaUnavailableError."""
    return judge(wanted, _ask(admin, {topic.name for topic in wanted}))


def apply(admin: AdminClient, wanted: Sequence[Topic]) -> list[Row]:
    """Create the topics that are missing; report on the others. Raises KafkaUnavailableError.

    Safe to run again and by two at once. Kafka says "created" before a broker that is asked knows of the
    topic, so this waits until the one that answers does: what is started next can use the topics.
    """
    rows = {row.topic: row for row in compare(admin, wanted)}
    missing = [topic for topic in wanted if rows[topic.name].state is TopicState.MISSING]
    if missing:
        futures = admin.create_topics(
            [
                NewTopic(
                    topic.name,
                    num_partitions=topic.partitions,
                    replication_factor=topic.replication,
                    config=dict(topic.config),
                )
                for topic in missing
            ],
            operation_timeout=_CREATE_S,
            request_timeout=_CREATE_S + _ANSWER_S,
        )
        made = {name: _outcome(name, future) for name, future in futures.items()}
        unseen = _wait_until_seen(
            admin, {name for name, row in made.items() if row is None or row.state is TopicState.CREATED}
        )
        made |= {
            name: Row(
                name,
                TopicState.FAILED,
                f"Kafka said it was created, but does not show it after {_SEEN_S:g} s",
            )
            for name in unseen
        }
        raced = [topic for topic in missing if made[topic.name] is None]
        again = {row.topic: row for row in compare(admin, raced)} if raced else {}
        for topic in missing:
            rows[topic.name] = made[topic.name] or again[topic.name]
    return list(rows.values())


def _wait_until_seen(admin: AdminClient, names: set[str]) -> set[str]:
    """Wait until each has a leader for every partition; those that still have not are the answer."""
    unseen = set(names)
    until = time.monotonic() + _SEEN_S
    while unseen:
        topics = _list(admin)
        unseen -= {
            name
            for name, metadata in topics.items()
            if metadata.error is None
            and metadata.partitions
            and all(partition.leader >= 0 for partition in metadata.partitions.values())
        }
        if not unseen or time.monotonic() > until:
            break
        time.sleep(0.1)
    return unseen


def _said(fault: KafkaError) -> str:
    no_controller = "waiting for controller" in fault.str()
    return f"{fault.str()}{_IF_EMBEDDED if no_controller else ''}"


def _list(admin: AdminClient) -> dict[str, Any]:
    try:
        topics: dict[str, Any] = admin.list_topics(timeout=_ANSWER_S).topics
    except KafkaException as error:
        raise KafkaUnavailableError(f"Kafka did not list its topics: {error.args[0].str()}") from error
    return topics


def _outcome(name: str, future: "Future[Any]") -> Row | None:
    """What became of one creation; None if somebody else was faster."""
    try:
        future.result(timeout=_CREATE_S + 2 * _ANSWER_S)
    except KafkaException as error:
        fault = error.args[0]
        if fault.code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return None
        return Row(name, TopicState.FAILED, _said(fault))
    except TimeoutError:
        return Row(name, TopicState.FAILED, "Kafka did not say in time whether it was created")
    return Row(name, TopicState.CREATED)


def _ask(admin: AdminClient, names: set[str]) -> dict[str, Found]:
    topics = _list(admin)
    there = sorted(name for name in topics if name in names and topics[name].error is None)
    settings = _settings_of(admin, there)
    found: dict[str, Found] = {}
    for name, metadata in topics.items():
        if name in names and name not in settings:
            continue
        copies = min((len(partition.replicas) for partition in metadata.partitions.values()), default=0)
        found[name] = Found(len(metadata.partitions), copies, settings.get(name))
    return found


def _settings_of(admin: AdminClient, names: Sequence[str]) -> dict[str, Mapping[str, str | None] | None]:
    if not names:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    settings: dict[str, Mapping[str, str | None] | None] = {}
    for resource, future in admin.describe_configs(resources, request_timeout=_ANSWER_S).items():
        try:
            entries = future.result(timeout=2 * _ANSWER_S)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise KafkaUnavailableError(
                    f"Kafka did not describe {resource.name}: {_said(error.args[0])}"
                ) from error
            settings[resource.name] = None
        except TimeoutError as error:
            raise KafkaUnavailableError(f"Kafka did not describe {resource.name} in time") from error
        else:
            settings[resource.name] = {name: entry.value for name, entry in entries.items()}
    return settings
