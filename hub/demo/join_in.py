"""Taking part from a terminal: send one file as a trust would, and watch what the hub tells a trust.

Works against any broker. Nothing here joins a consumer group, so watching takes nothing away from anybody.
"""

import asyncio
import logging
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import UnknownTopicOrPartitionError

from hub.destinations.kafka import KafkaAccess
from hub.domain.rejection import Disposition
from hub.domain.trust import Directory, TrustProfile
from hub.fhir import headers
from hub.patience import leave

# What the client library writes about a broker that is away is said by the command line, in one line.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

ACCEPTED, REFUSED, NO_RECEIPT = 0, 1, 3
"""Exit codes of `send_file`."""

_CONTENT_TYPE_XML = "application/fhir+xml"
_PATIENCE_S = 10.0
_WELL = frozenset({Disposition.ACCEPTED.value, Disposition.DUPLICATE.value})


@dataclass(frozen=True, slots=True)
class Record:
    """One record that the hub wrote."""

    topic: str
    partition: int
    offset: int
    at: datetime
    headers: Mapping[str, str]
    body: bytes

    def header(self, name: str) -> str:
        """Its text as it can be shown, "" if it is absent."""
        return "".join(c if c.isprintable() else "?" for c in self.headers.get(name, ""))


def record_of(raw: Any) -> Record:
    """Aiokafka's record as ours."""
    return Record(
        raw.topic,
        raw.partition,
        raw.offset,
        datetime.fromtimestamp(raw.timestamp / 1000, UTC),
        {name.lower(): (value or b"").decode(errors="replace") for name, value in raw.headers},
        raw.value or b"",
    )


@asynccontextmanager
async def reading(access: KafkaAccess, topics: tuple[str, ...], *, from_start: bool) -> AsyncIterator[Any]:
    """A consumer of all partitions of the topics, placed before it is handed over: what is written from now on is seen.

    Raises KafkaError, OSError, TimeoutError.
    """
    consumer = AIOKafkaConsumer(
        *topics,
        **access.client_options(),
        group_id=None,
        enable_auto_commit=False,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        fetch_max_wait_ms=200,
    )
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await consumer.start()
            parts = list(consumer.assignment())
            place = consumer.beginning_offsets if from_start else consumer.end_offsets
            for part, offset in (await place(parts)).items():
                consumer.seek(part, offset)
        yield consumer
    finally:
        await _stop(consumer)


@asynccontextmanager
async def writing(access: KafkaAccess) -> AsyncIterator[Any]:
    """A producer that waits for all copies. Raises KafkaError, OSError, TimeoutError."""
    producer = AIOKafkaProducer(
        **access.client_options(), acks="all", request_timeout_ms=int(_PATIENCE_S * 1000)
    )
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await producer.start()
        yield producer
    finally:
        await _stop(producer)


async def _stop(client: Any) -> None:
    await leave(5, client.stop)


# ---------------------------------------------------------------- send


async def send_file(
    access: KafkaAccess,
    directory: Directory,
    file: Path,
    ods: str,
    message_id: str | None,
    key: str,
    wait_s: float,
) -> int:
    """Send the file's bytes unchanged to the trust's events topic and tell its receipt; the exit code.

    ``wait_s`` 0 does not wait. Raises KeyError for a trust that has not joined, KafkaError, OSError, TimeoutError.
    """
    profile = directory[ods]
    try:
        body = await asyncio.to_thread(file.read_bytes)
    except OSError as error:
        return _complain(f"{file} cannot be read: {error.strerror}.")
    request_id = message_id or str(uuid.uuid4())
    try:
        return await _send(access, profile, body, _headers(file, request_id), key, wait_s)
    except UnknownTopicOrPartitionError:
        return _complain(f"A topic of {ods} is missing at {access.bootstrap_servers}. Run: hub topics apply")


def _headers(file: Path, request_id: str) -> dict[str, str]:
    is_xml = file.suffix.lower() == ".xml"
    return {
        headers.REQUEST_ID: request_id,
        headers.CORRELATION_ID: str(uuid.uuid4()),
        headers.CONTENT_TYPE: _CONTENT_TYPE_XML if is_xml else headers.CONTENT_TYPE_FHIR,
    }


async def _send(
    access: KafkaAccess, profile: TrustProfile, body: bytes, sent: Mapping[str, str], key: str, wait_s: float
) -> int:
    # The receipts are watched before the message is sent: a receipt of an earlier try has the same id.
    async with (
        writing(access) as producer,
        reading(access, (profile.receipts_topic,), from_start=False) as receipts,
    ):
        async with asyncio.timeout(_PATIENCE_S):
            placed = await producer.send_and_wait(
                profile.events_topic, value=body, key=key.encode() or None, headers=encoded(sent)
            )
        print(
            f"sent     {placed.topic}, partition {placed.partition}, offset {placed.offset}, {len(body)} bytes"
        )
        print(f"         {headers.REQUEST_ID} {sent[headers.REQUEST_ID]}", flush=True)
        if wait_s <= 0:
            return ACCEPTED
        receipt = await _receipt(receipts, sent[headers.REQUEST_ID], wait_s)
    if receipt is None:
        print(
            f"receipt  none on {profile.receipts_topic} within {wait_s:g} s. Is the hub running? The message stays in its topic."
        )
        return NO_RECEIPT
    for label, line in explain(receipt):
        print(f"{label:9}{line}")
    return ACCEPTED if receipt.header(headers.DISPOSITION) in _WELL else REFUSED


def encoded(named: Mapping[str, str]) -> list[tuple[str, bytes]]:
    """Headers as aiokafka wants them."""
    return [(name, value.encode()) for name, value in named.items()]


async def _receipt(consumer: Any, request_id: str, wait_s: float) -> Record | None:
    until = time.monotonic() + wait_s
    while (left := until - time.monotonic()) > 0:
        batches = await consumer.getmany(timeout_ms=int(min(left, 1) * 1000))
        for raw in (raw for batch in batches.values() for raw in batch):
            record = record_of(raw)
            if record.headers.get(headers.REQUEST_ID) == request_id:
                return record
    return None


def explain(receipt: Record) -> Iterator[tuple[str, str]]:
    """A receipt in words: (label, text) for the disposition, the reason and what to do."""
    yield "receipt", receipt.header(headers.DISPOSITION) or "without a disposition"
    issue = _issue(receipt.body)
    why = receipt.header(headers.WHY)
    if why:
        places = ", ".join(map(str, issue.get("expression", ())))
        yield "reason", f"{why}{f', at {places}' if places else ''}"
    if issue.get("diagnostics"):
        yield "to do", str(issue["diagnostics"])


def _issue(body: bytes) -> Mapping[str, Any]:
    outcome = _resource(body, "OperationOutcome")
    issues = outcome.get("issue")
    return issues[0] if isinstance(issues, list) and issues and isinstance(issues[0], dict) else {}


def _resource(body: bytes, resource_type: str) -> Mapping[str, Any]:
    """The Bundle's first resource of this type, empty if there is none."""
    try:
        bundle = orjson.loads(body)
        resources = [entry["resource"] for entry in bundle["entry"]]
        found: Mapping[str, Any] = next(
            (each for each in resources if each["resourceType"] == resource_type), {}
        )
    except (ValueError, TypeError, LookupError):
        return {}
    return found


# ---------------------------------------------------------------- tail


async def tail_topics(
    access: KafkaAccess, directory: Directory, ods: str, from_start: bool, as_json: bool
) -> int:
    """Show a trust's inbox and receipts as they come, until cancelled; the exit code.

    Raises KeyError for a trust that has not joined, KafkaError, OSError, TimeoutError.
    """
    profile = directory[ods]
    topics = (profile.inbox_topic, profile.receipts_topic)
    try:
        async with reading(access, topics, from_start=from_start) as consumer:
            if not as_json:
                print(
                    f"Watching {' and '.join(topics)} at {access.bootstrap_servers}. Ctrl-C ends it.",
                    flush=True,
                )
            async for raw in consumer:
                record = record_of(raw)
                print(_as_json(record) if as_json else _as_line(record, profile), flush=True)
    except UnknownTopicOrPartitionError:
        return _complain(f"A topic of {ods} is missing at {access.bootstrap_servers}. Run: hub topics apply")
    except BrokenPipeError:
        # Whoever read us (`| head`) has left; without this Python complains once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _as_json(record: Record) -> str:
    try:
        body = orjson.loads(record.body)
    except ValueError:
        body = record.body.decode(errors="replace")
    place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    return orjson.dumps(
        {**place, "at": record.at, "headers": record.headers, "body": body}, default=str
    ).decode()


def _as_line(record: Record, profile: TrustProfile) -> str:
    at = f"{record.at.astimezone():%H:%M:%S}"
    if record.topic == profile.receipts_topic:
        said = dict(explain(record))
        reason = f"  {said['reason']}" if "reason" in said else ""
        to_do = f"\n{'':10}{said['to do']}" if "to do" in said else ""
        return (
            f"{at}  receipt  {said['receipt']:22} message  {record.header(headers.REQUEST_ID)}{reason}{to_do}"
        )
    state = _state(record.body)
    return (
        f"{at}  inbox    {record.header(headers.EVENT_TYPE):22} transfer {record.header(headers.TRANSFER_ID)}"
        f"  from {record.header(headers.SOURCE_ODS)}{f'  is now {state}' if state else ''}"
    )


def _state(body: bytes) -> str:
    """The transfer's state as the Task says it."""
    task = _resource(body, "Task")
    try:
        state = task["businessStatus"]["coding"][0]["code"]
    except (LookupError, TypeError):
        state = task.get("status", "")
    return state if isinstance(state, str) and state.isprintable() else ""


def _complain(line: str) -> int:
    print(f"hub: {line}", file=sys.stderr)
    return REFUSED
