"""How much two workers and one dispatcher carry on this machine, and how soon a message arrives.

Run: python -m tests.bench.end_to_end [--seconds 20] [--events N]
What is measured and how to read it: tests/bench/README.md. Exit 1 unless every message arrived exactly once.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from confluent_kafka import Consumer, Producer
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from hub.demo.people import check_digit
from hub.domain.trust import Directory, TrustProfile
from hub.fhir import headers
from hub.fhir.systems import BARS_EVENTS, BARS_REASONS, NHS_NUMBER, ODS_ORGANISATION
from hub.settings import HubSettings
from hub.store.tables import audit_pending
from hub.trusts import load_directory
from tests.harness.kafka_server import KafkaServer, ServerProcess, create_topics, log_tail, run_tool, spawn
from tests.harness.postgres_server import PostgresServer

PARTITIONS = 6
TRUSTS = 10
BATCH = 200
"""Of the passthrough; the hub's own default."""
AHEAD = 3000
"""Messages kept on their way while the backlog is fed: some ten batches, whatever the pace."""
FED_AT_ONCE = 1000
"""So many are produced together: a request for each message would cost the broker as much as the hub does."""
WORKERS = 2
"""A worker keeps one processor busy, and the machine is meant to have two."""
WARM_UP_S = 60.0
"""After the first arrival: Java compiles what it meets for the first time, for half a minute as much as the hub needs Kafka for."""
EVENTS_PER_SECOND_MAX = 2000
"""How many messages are built for each second of each measurement."""
PATIENCE_S = 60.0
"""So long nothing may arrive before the rest counts as lost."""
PACE_S = 0.005
TURN_S = 5.0


# -- the messages --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """One record for a trust's events topic. ``number`` is also what its correlation id says."""

    topic: str
    key: bytes
    headers: list[tuple[str, bytes]]
    body: bytes


def correlation_of(number: int) -> str:
    return str(UUID(int=number, version=4))


def number_of(correlation_id: bytes) -> int:
    return UUID(correlation_id.decode()).int & 0xFFFFFFFFFFFF


def nhs_numbers() -> Iterator[str]:
    """Different synthetic NHS numbers: 999 is never issued."""
    for middle in range(1_000_000):
        start = f"999{middle:06d}"
        digit = check_digit(start)
        if digit is not None:
            yield f"{start}{digit}"


def build(count: int, trusts: Directory, apart: timedelta = timedelta(0)) -> list[Event]:
    """Transfer requests from every trust to every other in turn, each for a patient of its own and written ``apart`` before the other."""
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=5)
    profiles = list(trusts)
    pairs = [(sender, receiver) for sender in profiles for receiver in profiles if sender is not receiver]
    random.Random(1).shuffle(pairs)
    return [
        request(number, *pairs[number % len(pairs)], nhs_number, at - number * apart)
        for number, nhs_number in zip(range(count), nhs_numbers(), strict=False)
    ]


def request(
    number: int, sender: TrustProfile, receiver: TrustProfile, nhs_number: str, at: datetime
) -> Event:
    """A message Bundle of four resources and about 2 KB that asks ``receiver`` to take a patient over."""

    def url(kind: int) -> str:
        return f"urn:uuid:{UUID(int=(kind << 64) | number, version=4)}"

    systems, hospital_number, now = sender.identifier_systems, f"{4_000_000 + number}", at.isoformat()
    head, wish, patient, stay = url(1), url(2), url(3), url(4)
    subject = {"reference": patient}
    resources: dict[str, dict[str, Any]] = {
        head: {
            "resourceType": "MessageHeader",
            "eventCoding": {"system": BARS_EVENTS, "code": "servicerequest-request"},
            "reason": {"coding": [{"system": BARS_REASONS, "code": "new"}]},
            "source": {"name": f"{sender.ods} EPR", "endpoint": f"{ODS_ORGANISATION}|{sender.ods}"},
            "sender": organisation(sender.ods),
            "destination": [{"endpoint": f"{ODS_ORGANISATION}|{receiver.ods}"}],
            "focus": [{"reference": wish}],
        },
        wish: {
            "resourceType": "ServiceRequest",
            "meta": {"versionId": "1", "lastUpdated": now},
            "identifier": [{"system": systems.request, "value": f"R{number}"}],
            "status": "active",
            "intent": "order",
            "priority": "urgent",
            "code": coded("http://snomed.info/sct", "19712007", "Patient transfer"),
            "subject": subject,
            "encounter": {"reference": stay},
            "authoredOn": now,
            "performer": [organisation(receiver.ods)],
            "reasonCode": [{"text": "Needs a specialty that this hospital does not have"}],
        },
        patient: {
            "resourceType": "Patient",
            "identifier": [
                {"system": NHS_NUMBER, "value": nhs_number},
                {"system": systems.patient, "value": hospital_number},
            ],
            "name": [{"use": "official", "family": "Marshwiggle", "given": ["Aldous"]}],
            "birthDate": (date(1930, 1, 1) + timedelta(days=number % 30_000)).isoformat(),
        },
        stay: {
            "resourceType": "Encounter",
            "identifier": [{"system": systems.encounter, "value": f"E{number}"}],
            "status": "in-progress",
            "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"},
            "subject": subject,
            "period": {"start": now},
            "serviceProvider": organisation(sender.ods),
        },
    }
    bundle = {
        "resourceType": "Bundle",
        "id": url(5).removeprefix("urn:uuid:"),
        "type": "message",
        "timestamp": now,
        "entry": [{"fullUrl": each, "resource": resource} for each, resource in resources.items()],
    }
    said = {
        headers.REQUEST_ID: url(6).removeprefix("urn:uuid:"),
        headers.CORRELATION_ID: correlation_of(number),
        headers.CONTENT_TYPE: headers.CONTENT_TYPE_FHIR,
    }
    pairs = [(name, value.encode()) for name, value in said.items()]
    return Event(sender.events_topic, hospital_number.encode(), pairs, orjson.dumps(bundle))


def organisation(ods: str) -> dict[str, Any]:
    return {"type": "Organization", "identifier": {"system": ODS_ORGANISATION, "value": ods}}


def coded(system: str, code: str, display: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code, "display": display}]}


# -- the measure: Kafka alone --------------------------------------------------------------------------------


async def raw_passthrough(bootstrap_servers: str, events: list[Event], seconds: float) -> float:
    """Messages a second that bare aiokafka reads and writes again: a batch, its acknowledgements, its commit."""
    source, target = "bench.source", "bench.target"
    await asyncio.to_thread(create_topics, bootstrap_servers, [source, target], partitions=PARTITIONS)
    await asyncio.to_thread(fill, bootstrap_servers, source, events)
    consumer = AIOKafkaConsumer(
        source,
        bootstrap_servers=bootstrap_servers,
        group_id="bench.passthrough",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all", max_batch_size=131_072)
    async with consumer, producer:
        done, begun = 0, 0.0
        while done < len(events):
            batches = await consumer.getmany(timeout_ms=1000, max_records=BATCH)
            begun = begun or time.monotonic()
            records = [record for batch in batches.values() for record in batch]
            futures = [
                await producer.send(target, record.value, record.key, headers=list(record.headers))
                for record in records
            ]
            await asyncio.gather(*futures)
            await consumer.commit()
            done += len(records)
            if time.monotonic() - begun > seconds:
                break
        return done / (time.monotonic() - begun)


def fill(bootstrap_servers: str, topic: str, events: Iterable[Event]) -> None:
    producer = new_producer(bootstrap_servers)
    for event in events:
        producer.produce(topic, event.body, event.key, headers=event.headers)
        producer.poll(0)
    producer.flush()


def new_producer(bootstrap_servers: str) -> Producer:
    """librdkafka, so that making the load costs the two cores little."""
    return Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "acks": "all",
            "linger.ms": 5,
            "queue.buffering.max.messages": 1_000_000,
            "log_level": 2,  # it outlives Kafka and would say so
        }
    )


# -- the receivers -------------------------------------------------------------------------------------------


class Inboxes(threading.Thread):
    """Reads every trust's inbox, committed messages only, and writes down when it could read which."""

    def __init__(self, bootstrap_servers: str, trusts: Directory) -> None:
        super().__init__(name="inboxes", daemon=True)
        self.arrived: dict[int, float] = {}
        self.twice = 0
        self.last = time.monotonic()
        self._ended = threading.Event()
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "bench.inboxes",
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 50,
            }
        )
        self._consumer.subscribe([profile.inbox_topic for profile in trusts])

    def run(self) -> None:
        while not self._ended.is_set():
            records = self._consumer.consume(500, timeout=0.002)
            now = time.monotonic()
            for record in records:
                if (error := record.error()) is not None:
                    raise RuntimeError(error)
                number = number_of(dict(record.headers() or ())[headers.CORRELATION_ID])
                if number in self.arrived:
                    self.twice += 1
                else:
                    self.arrived[number] = now
                self.last = now

    def close(self) -> None:
        self._ended.set()
        self.join()
        self._consumer.close()


# -- the load ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Load:
    """The events that are still to be produced, and when the others were."""

    producer: Producer
    events: list[Event]
    produced: list[float]

    def next(self, count: int) -> None:
        for event in self.events[len(self.produced) : len(self.produced) + max(0, count)]:
            self.produced.append(time.monotonic())
            self.producer.produce(event.topic, event.body, event.key, headers=event.headers)
        self.producer.poll(0)

    @property
    def used_up(self) -> bool:
        return len(self.produced) >= len(self.events)


def drain(load: Load, inboxes: Inboxes) -> None:
    """Until all that was produced has arrived, or nothing has for a long time."""
    load.producer.flush()
    inboxes.last = time.monotonic()
    while len(inboxes.arrived) < len(load.produced) and time.monotonic() - inboxes.last < PATIENCE_S:
        time.sleep(0.1)


# -- the processes -------------------------------------------------------------------------------------------


class Usage:
    """CPU seconds of processes (PostgreSQL's with its backends), and the highest memory that was seen of one."""

    def __init__(self, pids: Mapping[str, int], java: int) -> None:
        self._java = java
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self.rss_mb = dict.fromkeys(pids, 0.0)

    def look(self) -> None:
        for name, process in self._processes.items():
            self.rss_mb[name] = max(self.rss_mb[name], process.memory_info().rss / 1e6)

    def cpu_s(self) -> dict[str, float]:
        used = {
            name: sum(map(used_s, [process, *(process.children() if name == "postgres" else ())]))
            for name, process in self._processes.items()
        }
        return used | {COMPILER: compiler_s(self._java)}


COMPILER = "of kafka's Java's compiler"


def used_s(process: psutil.Process) -> float:
    try:
        used = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(used.user + used.system)


def compiler_s(pid: int) -> float:
    """CPU seconds of Java's compiler threads. They grow fewer the longer a broker runs, so they are no cost of an event."""
    seconds = 0.0
    for thread in psutil.Process(pid).threads():
        with suppress(OSError):
            name = Path(f"/proc/{pid}/task/{thread.id}/comm").read_text()
            seconds += (thread.user_time + thread.system_time) if "CompilerThre" in name else 0.0
    return seconds


@contextmanager
def service(name: str, folder: Path) -> Iterator[ServerProcess]:
    """`hub worker` or `hub dispatcher` as its own process, in an empty folder."""
    kind = name.partition("-")[0]
    process = ServerProcess(f"hub {name}", folder / f"{name}.log")
    command = [
        *os.environ.get(f"BENCH_{kind.upper()}_UNDER", "").split(),
        sys.executable,
        "-m",
        "hub.cli",
        kind,
    ]
    process.adopt(spawn(command, log_path=process.log_path, cwd=folder, death_signal=signal.SIGKILL))
    try:
        yield process
    finally:
        process.end(signal.SIGTERM, 30)


# -- the measurements ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sustained:
    """The steady middle of a backlog that is fed: ``cpu_us`` is per event and process."""

    events_per_s: float
    cpu_us: dict[str, float]


def keep_ahead(load: Load, inboxes: Inboxes, most: int) -> None:
    """Keep `AHEAD` messages on their way, until there were ``most``."""
    wanted = min(AHEAD - (len(load.produced) - len(inboxes.arrived)), most - len(load.produced))
    if wanted >= FED_AT_ONCE or wanted + len(load.produced) == most:
        load.next(wanted)
    time.sleep(PACE_S)


def sustained(load: Load, inboxes: Inboxes, usage: Usage, seconds: float, most: int) -> Sustained:
    """Keep `AHEAD` messages on their way; count those that arrive once the pace is steady."""
    begun: float | None = None
    before: dict[str, float] = {}
    arrived_before = len(inboxes.arrived)
    while True:
        keep_ahead(load, inboxes, most)
        now = time.monotonic()
        if not inboxes.arrived:
            if now - inboxes.last > PATIENCE_S:
                raise RuntimeError("no message arrived")
            continue
        if begun is None:
            if now - min(inboxes.arrived.values()) >= WARM_UP_S:
                asyncio.run(analyze())
                begun, before = time.monotonic(), usage.cpu_s()
                arrived_before = len(inboxes.arrived)
            continue
        if now - begun >= seconds or len(load.produced) >= most:
            break
    usage.look()
    after, arrived, lasted = usage.cpu_s(), len(inboxes.arrived) - arrived_before, time.monotonic() - begun
    if lasted < seconds:
        print(f"The messages ran out after {lasted:.1f} s; give more with --events.")
    cpu_us = {name: (after[name] - before[name]) * 1e6 / arrived for name in after}
    return Sustained(arrived / lasted, cpu_us)


@dataclass(frozen=True, slots=True)
class InTurn:
    """Events a second while a service stood still, and while it ran and did the work of both times."""

    without: float
    catching_up: float

    @property
    def cost(self) -> float:
        """What part of the pace the service costs when it keeps up."""
        return (1 - self.catching_up / self.without) / 2


def in_turn(load: Load, inboxes: Inboxes, process: psutil.Process, seconds: float) -> InTurn:
    """Let a service stand still and run for `TURN_S` each, under a backlog that is fed. How fast the machine is changes
    within seconds by more than what is measured: so both meet the same.
    """
    arrived, lasted = {True: 0, False: 0}, {True: 0.0, False: 0.0}
    for _ in range(max(1, round(seconds / TURN_S / 2))):
        for stands in (True, False):
            (process.suspend if stands else process.resume)()
            begun, before = time.monotonic(), len(inboxes.arrived)
            while time.monotonic() - begun < TURN_S:
                keep_ahead(load, inboxes, len(load.events))
            arrived[stands] += len(inboxes.arrived) - before
            lasted[stands] += time.monotonic() - begun
    return InTurn(arrived[True] / lasted[True], arrived[False] / lasted[False])


@dataclass(frozen=True, slots=True)
class AtHalfLoad:
    """``took_ms`` from the shortest; ``idle`` is the share of all processors' time."""

    took_ms: list[float]
    offered_per_s: float
    idle: float


def at_half_load(load: Load, inboxes: Inboxes, per_s: float, seconds: float) -> AtHalfLoad:
    """Produce evenly, ``per_s``: how long each message took (the first two seconds do not count), and the rate that was really offered."""
    psutil.cpu_times_percent()
    begun, first = time.monotonic(), len(load.produced)
    while (passed := time.monotonic() - begun) < seconds and not load.used_up:
        load.next(int(passed * per_s) - (len(load.produced) - first))
        time.sleep(PACE_S)
    lasted, idle = time.monotonic() - begun, psutil.cpu_times_percent().idle / 100
    drain(load, inboxes)
    counted = range(first + int(2 * per_s), len(load.produced))
    took = [
        (inboxes.arrived[number] - load.produced[number]) * 1000
        for number in counted
        if number in inboxes.arrived
    ]
    return AtHalfLoad(sorted(took), (len(load.produced) - first) / lasted, idle)


def percentile(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else float("nan")


def measure(
    seconds: float, count: int, workers: int, logs: Path | None, beside: Sequence[str], in_turn_s: float
) -> bool:
    """The whole run; whether every message arrived exactly once."""
    with ExitStack() as stack:
        folder = logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hub-bench-")))
        folder.mkdir(parents=True, exist_ok=True)
        kafka = stack.enter_context(KafkaServer(quick_start=False, heap_mb=1024))
        postgres = stack.enter_context(PostgresServer())
        kafka.start()
        postgres.create_database("bench")
        os.environ |= {
            "HUB_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "HUB_DATABASE_URL": postgres.url("bench"),
            "HUB_TOPIC_PARTITIONS": str(PARTITIONS),
            "HUB_LOG_LEVEL": "info" if logs else "warning",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        for command in ("db upgrade", "topics apply"):
            hub = [sys.executable, "-m", "hub.cli", *command.split()]
            run_tool(hub, what=f"hub {command}", timeout=120, cwd=folder)
        trusts = Directory(list(load_directory(HubSettings().schemas_dir))[:TRUSTS])
        events = build(count, trusts)
        print(
            f"{len(events)} messages from {len(list(trusts))} trusts, {sum(len(e.body) for e in events) / len(events):.0f} bytes each"
        )

        raw = asyncio.run(raw_passthrough(kafka.bootstrap_servers, events[:40_000], seconds / 2))
        print(f"passthrough  {raw:8.0f}/s")

        inboxes = Inboxes(kafka.bootstrap_servers, trusts)
        inboxes.start()
        stack.callback(inboxes.close)
        names = [*(f"worker-{number}" for number in range(1, workers + 1)), "dispatcher", *beside]
        services = {name: stack.enter_context(service(name, folder)) for name in names}
        pids = {name: process.pid for name, process in services.items()}
        usage = Usage(
            pids | {"kafka": kafka.pid, "postgres": postgres_pid(postgres), "bench": os.getpid()}, kafka.pid
        )
        load = Load(new_producer(kafka.bootstrap_servers), events, [])
        try:
            flow = sustained(load, inboxes, usage, seconds, most=len(events) * 2 // 3)
            turns = in_turn(load, inboxes, psutil.Process(pids["sealer"]), in_turn_s) if in_turn_s else None
            waiting = asyncio.run(waiting_to_be_sealed()) if "sealer" in beside else None
            drain(load, inboxes)
            half = at_half_load(load, inboxes, flow.events_per_s / 2, seconds)
        except (RuntimeError, psutil.NoSuchProcess):
            said(services)
            raise
        usage.look()
        time.sleep(1)  # a second copy would follow on the heels of the first
        lost = len(load.produced) - len(inboxes.arrived)
        print(f"sustained    {flow.events_per_s:8.0f}/s")
        print(
            f"at half load {half.offered_per_s:8.0f}/s: half within {percentile(half.took_ms, 0.5):.0f} ms, "
            f"99 % within {percentile(half.took_ms, 0.99):.0f} ms; processors idle {half.idle:.0%}"
        )
        print("CPU per event, µs: " + ", ".join(f"{name} {used:.0f}" for name, used in flow.cpu_us.items()))
        print("memory, MB: " + ", ".join(f"{name} {usage.rss_mb[name]:.0f}" for name in services))
        print(f"produced {len(load.produced)}, lost {lost}, twice {inboxes.twice}")
        if turns is not None:
            print(
                f"while nothing was sealed {turns.without:.0f}/s, while twice as much was {turns.catching_up:.0f}/s: "
                f"sealing costs {turns.cost:.1%} of the pace"
            )
        if waiting is not None:
            print(f"audit entries that waited to be sealed at the end of the sustained load: {waiting}")
        if lost or inboxes.twice:
            said(services)
    figures = {
        "events_per_s": round(flow.events_per_s, 1),
        "p50_ms": round(percentile(half.took_ms, 0.5), 1),
        "p99_ms": round(percentile(half.took_ms, 0.99), 1),
        "offered_per_s": round(half.offered_per_s, 1),
        "raw_passthrough_per_s": round(raw, 1),
        "ratio": round(flow.events_per_s / raw, 3),
        "worker_rss_mb": round(max(usage.rss_mb[name] for name in services if name.startswith("worker")), 1),
        "cpu_us_per_event": round(sum(flow.cpu_us[name] for name in services), 1),
    }
    print(json.dumps(figures))
    return not lost and not inboxes.twice


async def analyze() -> None:
    """What PostgreSQL does by itself within minutes: without statistics it reads young tables whole for every batch."""
    engine = create_async_engine(HubSettings().database_url.get_secret_value())
    async with engine.begin() as connection:
        await connection.execute(text("ANALYZE"))
    await engine.dispose()


async def waiting_to_be_sealed() -> int:
    """At full load two seconds' worth is what keeping up looks like; a backlog grows."""
    engine = create_async_engine(HubSettings().database_url.get_secret_value())
    async with engine.connect() as connection:
        waiting = await connection.scalar(select(func.count()).select_from(audit_pending))
    await engine.dispose()
    return int(waiting or 0)


def postgres_pid(postgres: PostgresServer) -> int:
    return int((postgres.directory / "data" / "postmaster.pid").read_text().split()[0])


def said(services: Mapping[str, ServerProcess]) -> None:
    for process in services.values():
        print(f"--- {process.what}:\n{log_tail(process.log_path)}")


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="how long each measurement lasts")
    parser.add_argument("--events", type=int, help="messages to build; a third of them is for the latency")
    parser.add_argument(
        "--workers", type=int, default=WORKERS, help="more than one for each core does not help"
    )
    parser.add_argument(
        "--beside",
        nargs="*",
        choices=["sealer", "feeds"],
        default=["sealer"],
        help="what else runs; nothing: how much is left without sealing the audit",
    )
    parser.add_argument(
        "--logs", type=Path, help="a folder for what worker and dispatcher say; costs a little speed"
    )
    parser.add_argument(
        "--in-turn",
        type=float,
        default=0,
        metavar="SECONDS",
        help="after the full load, let the sealer stand still and run in turn for so long, and say what sealing costs",
    )
    arguments = parser.parse_args()
    if arguments.in_turn and "sealer" not in arguments.beside:
        parser.error("--in-turn needs --beside sealer")
    count = int((arguments.seconds + WARM_UP_S + arguments.in_turn) * EVENTS_PER_SECOND_MAX)
    return (
        0
        if measure(
            arguments.seconds,
            arguments.events or count,
            arguments.workers,
            arguments.logs,
            arguments.beside,
            arguments.in_turn,
        )
        else 1
    )


if __name__ == "__main__":
    sys.exit(main())
