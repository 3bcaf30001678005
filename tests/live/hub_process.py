"""A hub made of real processes, on real Kafka and PostgreSQL, with trusts of its own so that tests share a broker."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import yaml
from aiokafka import AIOKafkaProducer
from confluent_kafka.admin import AdminClient

from hub.demo.epr import Epr, Message
from hub.destinations import topics
from hub.domain.trust import Directory, TrustProfile
from tests.harness.kafka_server import free_ports
from tests.harness.postgres_server import binaries
from tests.whole_topic import whole_topic

_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"
_codes = itertools.count()
SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"


async def _run(*command: str | Path) -> None:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    assert process.returncode == 0, said.decode()


class LiveHub:
    """Three invented trusts, their topics, a database, and the processes a test starts."""

    def __init__(self, folder: Path, bootstrap_servers: str, database_url: str) -> None:
        self.folder = folder
        self.bootstrap_servers = bootstrap_servers
        self.database_url = database_url
        prefix = "".join(_LETTERS[b % len(_LETTERS)] for b in uuid.uuid4().bytes[:3])
        profiles = [_profile(f"{prefix}{number}", f"Trust number {number}") for number in (1, 2, 3)]
        for profile in profiles:
            home = folder / "schemas" / "trusts" / profile.ods
            home.mkdir(parents=True)
            text = yaml.safe_dump(profile.model_dump(mode="json"), allow_unicode=True)
            (home / "profile.yaml").write_text(
                f"# Illustration, not supplied or endorsed by any trust.\n{text}"
            )
        # Clocks as shipped, except that a test does not wait a minute for the rest of a backlog.
        clocks = (SCHEMAS / "clocks.yaml").read_text(encoding="utf-8").replace("settle: PT1M", "settle: PT1S")
        (folder / "schemas" / "clocks.yaml").write_text(clocks, encoding="utf-8")
        self.directory = Directory(profiles)
        self.one, self.two, self.three = (Epr(profile) for profile in profiles)
        self._processes: list[subprocess.Popen[bytes]] = []
        (self._facade_port,) = free_ports(1)
        admin = AdminClient({"bootstrap.servers": bootstrap_servers})
        self.audit_topic = f"hub.audit.{self.one.profile.ods.lower()}"
        wanted = topics.wanted_topics(self.directory, 3, 1, 1, partitions_out=2, audit_topic=self.audit_topic)
        topics.apply(admin, wanted)
        self.run("db", "upgrade")

    @property
    def environment(self) -> dict[str, str]:
        given = {
            "HUB_DATABASE_URL": self.database_url,
            "HUB_KAFKA_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "HUB_SCHEMAS_DIR": str(self.folder / "schemas"),
            "HUB_AUDIT_TOPIC": self.audit_topic,
            "HUB_AUDIT_KEY_FILE": str(self.folder / "hub-audit.key"),
            "HUB_AUDIT_CHECKPOINT_FILE": str(self.folder / "checkpoints.txt"),
            # Another test's hub runs beside this one.
            "HUB_FACADE_PORT": str(self._facade_port),
            "HUB_WORKER_GROUP": f"hub.{self.folder.name}.{self.one.profile.ods}",
            "HUB_SESSION_TIMEOUT_S": "6",
            "HUB_DISPATCH_LEASE_S": "3",
            "HUB_LOG_FORMAT": "json",
        }
        return {**os.environ, **given}

    def run(self, *arguments: str) -> str:
        """A `hub` command that ends; its standard output."""
        done = subprocess.run(
            [sys.executable, "-m", "hub.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, service: str, **more: str) -> "Service":
        """A `hub` service as a process."""
        log = self.folder / f"{service}-{len(self._processes)}.log"
        process = subprocess.Popen(
            [sys.executable, "-m", "hub.cli", service],
            env={**self.environment, **more},
            stderr=log.open("wb"),
            stdout=subprocess.DEVNULL,
        )
        self._processes.append(process)
        return Service(process, log)

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    async def produce(self, *sent: tuple[Epr, Message]) -> None:
        """Put messages on their trusts' topics, acknowledged by the broker."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.bootstrap_servers, acks="all", enable_idempotence=True
        )
        await producer.start()
        try:
            for epr, message in sent:
                headers = [(name, value.encode()) for name, value in message.headers.items()]
                await producer.send_and_wait(
                    epr.profile.events_topic, message.body, key=message.key, headers=headers
                )
        finally:
            await producer.stop()

    async def rows(self, sql: str, *arguments: Any) -> list[Mapping[str, Any]]:
        """What the database says, asked without the hub's code."""
        connection = await asyncpg.connect(self.database_url.replace("+asyncpg", ""))
        try:
            return [dict(row) for row in await connection.fetch(sql, *arguments)]
        finally:
            await connection.close()

    async def copy_of_the_database(self) -> str:
        """A backup as it is now, put back beside it as the runbook says (deploy/RUNBOOK.md); its address. Nobody may be connected."""
        copied = f"{self.database_url}_copy"
        name = self.database_url.rsplit("/", 1)[1]
        server = self.database_url.rsplit("/", 1)[0] + "/postgres"
        tools = binaries()
        connection = await asyncpg.connect(server.replace("+asyncpg", ""))
        try:
            await connection.execute(
                f'create database "{name}_copy"' + ("" if tools else f' template "{name}"')
            )
        finally:
            await connection.close()
        if tools:
            dump = self.folder / "hub.dump"
            of, to = (each.replace("+asyncpg", "") for each in (self.database_url, copied))
            await _run(tools / "pg_dump", "--format=custom", f"--file={dump}", of)
            await _run(tools / "pg_restore", "--no-owner", "--exit-on-error", f"--dbname={to}", dump)
        return copied

    async def audit(self, where: str = "true") -> list[Mapping[str, Any]]:
        """Entries of the audit, sealed or waiting, in the order of their numbers."""
        columns = "entry, code, event_id, person_id, transfer_id, counterpart, detail::text"
        return await self.rows(
            f"select * from (select {columns} from audit_pending union all select {columns} from audit_entry) book "
            f"where {where} order by entry"
        )

    async def on(self, topic: str) -> list[Any]:
        """See `whole_topic`."""
        return await whole_topic(self.bootstrap_servers, topic)

    async def until(self, question: Callable[[], Awaitable[Any]], what: str, within_s: float = 60) -> Any:
        """The first truthy answer."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            try:
                if answer := await question():
                    return answer
            except (OSError, asyncpg.PostgresError):
                pass
            await asyncio.sleep(0.2)
        logs = "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.log"))
        raise AssertionError(f"not within {within_s} s: {what}\n{logs}")

    async def until_taken_in(self, messages: int, within_s: float = 60) -> None:
        async def all_there() -> bool:
            return (await self.rows("select count(*) as n from message"))[0]["n"] >= messages

        await self.until(all_there, f"{messages} messages taken in", within_s)

    async def until_delivered(self, within_s: float = 60) -> None:
        async def nothing_waits() -> bool:
            return (await self.rows("select count(*) as n from outbox where state = 'pending'"))[0]["n"] == 0

        await self.until(nothing_waits, "the outbox is empty", within_s)


class Service:
    """One `hub` process."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log_path = log

    def said(self, event: str) -> list[Mapping[str, Any]]:
        """The log lines of one event."""
        lines = [
            orjson.loads(line) for line in self.log_path.read_bytes().splitlines() if line.startswith(b"{")
        ]
        return [line for line in lines if line.get("event") == event]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, within_s: float = 30) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)


@contextmanager
def live_hub(folder: Path, bootstrap_servers: str, database_url: str) -> Iterator[LiveHub]:
    hub = LiveHub(folder, bootstrap_servers, database_url)
    try:
        yield hub
    finally:
        hub.close()


def _profile(ods: str, name: str) -> TrustProfile:
    home = f"https://fhir.{ods.lower()}.example/Id"
    return TrustProfile.model_validate(
        {
            "ods": ods,
            "name": name,
            "illustration": True,
            "epr": "invented",
            "sites": [{"ods": f"{ods}S", "name": f"{name}, main site"}],
            "identifier_systems": {
                "patient": f"{home}/patient",
                "encounter": f"{home}/encounter",
                "request": f"{home}/request",
            },
        }
    )


def now() -> datetime:
    return datetime.now(UTC)
