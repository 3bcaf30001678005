"""How many messages a second the REST facade commits on this machine, how soon, and how soon it finds a transfer among a million.

Run: python -m tests.bench.rest [--seconds 20] [--transfers 1000000] [--connections 32]
What is measured and how to read it: tests/bench/README.md. Exit 1 if anything was answered otherwise than it must be.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
from joserfc.jwk import ECKey

from hub import wiring
from hub.demo.rest_client import RestClient
from hub.domain.ids import OdsCode
from hub.domain.trust import Directory
from hub.settings import REPOSITORY
from hub.store.clients import Client, add
from hub.store.engine import open_engine
from hub.trusts import load_directory
from tests.bench.end_to_end import Event, build
from tests.harness.postgres_server import PostgresServer

WARM_UP_S = 4.0
STARTS_WITHIN_S = 60.0
SEARCHES = 600


@dataclass
class Answers:
    """What came back: how long each took (seconds), and what was not as it must be."""

    took: list[float] = field(default_factory=list)
    wrong: dict[str, int] = field(default_factory=dict)

    def percentile_ms(self, percent: float) -> float:
        ordered = sorted(self.took)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1000 if ordered else 0.0


class Connection:
    """One HTTP/1.1 connection that is kept: as little work for the load as can be, because it shares the processors."""

    def __init__(self, port: int, tokens: dict[str, str]) -> None:
        self._port, self._tokens = port, tokens

    async def open(self) -> "Connection":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def ask(
        self, method: str, path: str, ods: str, more: str = "", body: bytes = b""
    ) -> tuple[int, bytes]:
        """Status and body."""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {self._tokens[ods]}\r\n"
            f"Content-Length: {len(body)}\r\n{more}\r\n"
        )
        self._writer.write(head.encode() + body)
        said = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = next(
            int(line.partition(":")[2])
            for line in said.split("\r\n")
            if line.lower().startswith("content-length")
        )
        return int(said[9:12]), await self._reader.readexactly(length)

    async def send(self, event: Event, answers: Answers) -> None:
        ods = event.topic.split(".")[1].upper()
        names = {name: value.decode() for name, value in event.headers}
        more = "Content-Type: application/fhir+json\r\n" + "".join(
            f"{name}: {names[name]}\r\n" for name in ("x-request-id", "x-correlation-id")
        )
        begun = time.perf_counter()
        status, body = await self.ask("POST", "/fhir/$process-message", ods, more, event.body)
        answers.took.append(time.perf_counter() - begun)
        if status != 200:
            why = f"{status} {body[:300].decode()}"
            answers.wrong[why] = answers.wrong.get(why, 0) + 1


async def closed_loop(
    connections: Sequence[Connection], events: Iterator[Event], seconds: float
) -> tuple[float, Answers]:
    """Each connection sends as soon as it has its answer: messages a second."""
    answers, until = Answers(), time.perf_counter() + seconds

    async def work(connection: Connection) -> None:
        while time.perf_counter() < until:
            await connection.send(next(events), answers)

    begun = time.perf_counter()
    await asyncio.gather(*(work(each) for each in connections))
    return len(answers.took) / (time.perf_counter() - begun), answers


async def open_loop(
    connections: Sequence[Connection], events: Iterator[Event], rate: float, seconds: float
) -> Answers:
    """A message every ``1/rate`` seconds, whatever the answers do; the time counts from when it should have been sent."""
    answers, free = Answers(), asyncio.Queue[Connection]()
    for each in connections:
        free.put_nowait(each)
    begun = time.perf_counter()

    async def one(due: float) -> None:
        connection = await free.get()
        await connection.send(next(events), answers)
        answers.took[-1] = time.perf_counter() - due
        free.put_nowait(connection)

    tasks = []
    for number in range(int(rate * seconds)):
        due = begun + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    return answers


async def searches(connection: Connection, trusts: Sequence[str], stored: int, count: int) -> Answers:
    """What a user would look for, one after the other."""
    answers, rng = Answers(), random.Random(2)
    kinds: dict[str, Answers] = {}
    for number in range(count):
        patient = f"999{rng.randrange(stored):06d}x"  # no message has such a number
        kind, query = (
            ("patient", f"patient:identifier=https://fhir.nhs.uk/Id/nhs-number%7C{patient}"),
            ("identifier", f"identifier=S{rng.randrange(stored)}"),
            ("newest", "_count=20"),
            ("status", "status=requested&_count=20"),
            ("status, oldest first", "status=accepted,ready&_count=20&_sort=_lastUpdated"),
            ("since", f"_lastUpdated=ge{2025 + rng.randrange(2)}-06&_count=20"),
        )[number % 6]
        begun = time.perf_counter()
        status, body = await connection.ask("GET", f"/fhir/Task?{query}", rng.choice(trusts))
        for each in (answers, kinds.setdefault(kind, Answers())):
            each.took.append(time.perf_counter() - begun)
        if status != 200:
            answers.wrong[f"{status} {body[:300].decode()}"] = 1
    for kind, each in kinds.items():
        say(f"  {kind}: median {each.percentile_ms(50):.0f} ms, p95 {each.percentile_ms(95):.0f} ms")
    return answers


async def fill(url: str, trusts: Sequence[str], count: int) -> None:
    """Transfers as two years would leave them, most of them over, each of a patient of its own."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    codes = "','".join(trusts)
    trust = f"(ARRAY['{codes}'])"
    number = len(trusts)
    at = "timestamptz '2025-01-01Z' + g * interval '1 second' * (60000000.0 / $1)"
    transfer = "'00000000-0000-7000-8000-' || lpad(g::text, 12, '0')"
    person = "'p-' || g"
    state = "CASE WHEN g % 50 = 0 THEN 'requested' WHEN g % 50 = 1 THEN 'accepted' ELSE 'completed' END"
    sender, receiver = (
        f"{trust}[1 + g % {number}]",
        f"{trust}[1 + (g + 1 + (g / {number}) % {number - 1}) % {number}]",
    )
    rows = "FROM generate_series(0, $1::int - 1) AS g"
    for statement in (
        f"INSERT INTO person (person_id, created_at) SELECT {person}, {at} {rows}",
        f"INSERT INTO person_identifier (value, authority, person_id, event_id) SELECT '999' || lpad(g::text, 6, '0') || 'x', 'nhs', {person}, 'e-' || g {rows}",
        (
            "INSERT INTO transfer (transfer_id, person_id, sender, receiver, state, version, requested_at, changed_at, inferred) "
            f"SELECT {transfer}, {person}, {sender}, {receiver}, {state}, 1, {at}, {at}, false {rows}"
        ),
        f"INSERT INTO transfer_identifier (transfer_id, system, value) SELECT {transfer}, 'https://bench.example/request', 'S' || g {rows}",
        (
            "INSERT INTO transfer_history (transfer_id, version, to_state, step, by, event_id, occurred_at, received_at, because) "
            f"SELECT {transfer}, 1, {state}, 'request', {sender}, 'e-' || g, {at}, {at}, 'asked' {rows}"
        ),
    ):
        await connection.execute(statement, count, timeout=1200)
    await connection.execute("ANALYZE", timeout=600)
    await connection.close()


async def joined(url: str, facade: str, trusts: Directory) -> dict[str, str]:
    """A token for a client of each trust."""
    engine, tokens = open_engine(url), {}
    for profile in trusts:
        key = ECKey.generate_key("P-384", {"kid": "demo"})
        client = Client(
            str(uuid.uuid4()), OdsCode(profile.ods), "bench", {"keys": [key.as_dict(private=False)]},
            "system/*.cruds", wiring.now(),
        )  # fmt: skip
        await add(engine, client)
        tokens[profile.ods] = await asyncio.to_thread(RestClient(facade, client.id, key).token)
    await engine.dispose()
    return tokens


async def measure(port: int, url: str, options: argparse.Namespace, trusts: Directory) -> dict[str, object]:
    facade = f"http://127.0.0.1:{port}"
    tokens = await joined(url, facade, trusts)
    ods = sorted(tokens)
    say("building the messages")
    events = iter(build(int(options.seconds * 1200) + 20_000, trusts))
    connections = [await Connection(port, tokens).open() for _ in range(options.connections)]
    say("synchronous messages, as many as there are")
    await closed_loop(connections, events, WARM_UP_S)
    rate, busy = await closed_loop(connections, events, options.seconds)
    say("100 messages a second")
    await open_loop(connections, events, 100, WARM_UP_S)
    calm = await open_loop(connections, events, 100, options.seconds)
    say("searches")
    await searches(connections[0], ods, options.transfers, 60)
    looked = await searches(connections[0], ods, options.transfers, SEARCHES)
    wrong = {**busy.wrong, **calm.wrong, **looked.wrong}
    for each in wrong:
        say(f"  not as it must be: {each}")
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    stored = await connection.fetchval("SELECT count(*) FROM transfer")
    await connection.close()
    return {
        "messages_per_s": round(rate, 1),
        "p99_ms_at_100": round(calm.percentile_ms(99), 1),
        "search_p95_ms": round(looked.percentile_ms(95), 1),
        "stored_transfers": stored,
        "errors": sum(wrong.values()),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--transfers", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    trusts = load_directory(REPOSITORY / "schemas")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with PostgresServer(fsync=True) as postgres, tempfile.TemporaryDirectory(prefix="hub-bench-") as folder:
        postgres.create_database("hub")
        url = postgres.url("hub")
        environment = {
            **os.environ,
            "HUB_DATABASE_URL": url,
            "HUB_FACADE_PORT": str(port),
            "HUB_FACADE_URL": f"http://127.0.0.1:{port}",
            "HUB_FACADE_REQUESTS_PER_S": "100000",
            "HUB_TOKEN_LIFE_S": "3600",
            "HUB_WATCHDOG_S": "100000",
            "HUB_LOG_LEVEL": "error",
        }
        hub = [sys.executable, "-m", "hub.cli"]
        subprocess.run([*hub, "db", "upgrade"], env=environment, check=True, stdout=subprocess.DEVNULL)
        say(f"storing {options.transfers} transfers")
        begun = datetime.now(UTC)
        asyncio.run(fill(url, [each.ods for each in trusts], options.transfers))
        say(f"  took {(datetime.now(UTC) - begun).total_seconds():.0f} s")
        with Path(folder, "serve.log").open("wb") as log:
            serving = subprocess.Popen([*hub, "serve"], env=environment, stdout=log, stderr=log)
            try:
                result = asyncio.run(measure(port, url, options, trusts))
            finally:
                serving.terminate()
                serving.wait(30)
    print(json.dumps(result))
    return 0 if result["errors"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
