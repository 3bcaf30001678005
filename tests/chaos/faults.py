"""What goes wrong: a plan that the seed alone decides, and its execution."""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import asyncpg  # type: ignore[import-untyped]

from tests.chaos.fleet import Fleet, Member
from tests.harness.kafka_server import KafkaServer
from tests.harness.postgres_server import PostgresServer

What = Literal[
    "kill", "term", "freeze", "kafka-kill", "kafka-stop", "postgres-kill", "postgres-stop", "locked"
]

_LOCKED = {"dispatcher": "delivery_attempt", "worker": "message"}
"""What each must write before its transaction can be committed: while that is locked, it stands in the middle of its work."""
_LOCKS = ("dispatcher", "worker", "dispatcher", "worker", "dispatcher")
_MET_S = 8.0
"""So long a lock is held for somebody to meet it: after a death nobody works until a lease or a session has run out."""

_SOMEBODY_WAITS = "select exists (select from pg_locks where relation = $1::text::regclass and not granted)"


@dataclass(frozen=True, slots=True)
class Fault:
    """`at` and `lasts` in seconds; `who` is a member's place among those of its kind."""

    at: float
    what: What
    kind: str = ""
    who: int = 0
    lasts: float = 0
    ripe: float = 0
    """A process younger than this is hit when it is this old: one that is always hit while it starts shows nothing."""


def plan(rng: random.Random, length_s: float, session_timeout_s: float, lease_s: float) -> list[Fault]:
    """Something of everything, at moments of the seed's choice.

    One outage of Kafka, because its start takes longest; three of PostgreSQL; five locks; one worker sleeps past its session, one
    dispatcher past its lease; and a process is hit every second or two.
    """
    faults = [
        Fault(
            rng.uniform(4, length_s - 10),
            rng.choice(["kafka-kill", "kafka-kill", "kafka-stop"]),
            lasts=rng.uniform(1, 4),
        ),
        Fault(
            rng.uniform(2, length_s - session_timeout_s - 4),
            "freeze",
            "worker",
            rng.randrange(2),
            session_timeout_s + rng.uniform(1, 3),
        ),
        Fault(
            rng.uniform(2, length_s - lease_s - 3),
            "freeze",
            "dispatcher",
            rng.randrange(2),
            lease_s + rng.uniform(0.5, 2),
        ),
    ]
    for n in range(3):
        slot = (length_s - 6) / 3
        what: What = rng.choice(["postgres-kill", "postgres-stop"])
        faults.append(
            Fault(
                3 + n * slot + rng.uniform(0, slot - 4),
                what,
                lasts=rng.choice([0.0, 1.0, 2.0, rng.uniform(2, 8)]),
            )
        )
    slot = (length_s - 4) / len(_LOCKS)
    faults += [
        Fault(3 + n * slot + rng.uniform(0, slot - 2), "locked", kind, lasts=rng.uniform(0.2, 1))
        for n, kind in enumerate(_LOCKS)
    ]
    at = rng.uniform(2, 4)
    while at < length_s:
        kind = rng.choice(["worker", "worker", "dispatcher", "dispatcher", "facade", "sealer", "feeds"])
        deed: What = rng.choice(["kill", "kill", "kill", "term"])
        faults.append(Fault(at, deed, kind, rng.randrange(2), ripe=rng.choice([0.5, 4.0, 5.0, 7.0])))
        at += rng.uniform(0.5, 2.6)
    return sorted(faults, key=lambda fault: fault.at)


class Trouble:
    """Carries a plan out. `done` counts what hit something."""

    def __init__(self, fleet: Fleet, kafka: KafkaServer, postgres: PostgresServer, dsn: str) -> None:
        self._fleet, self._kafka, self._postgres, self._dsn = fleet, kafka, postgres, dsn
        self._kafka_lock, self._postgres_lock = asyncio.Lock(), asyncio.Lock()
        self.done: Counter[str] = Counter()

    async def make(self, faults: Sequence[Fault]) -> None:
        """All of them, and everything is up again at the end."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for fault in faults:
                await asyncio.sleep(max(0.0, began + fault.at - time.monotonic()))
                tasks.create_task(self._make(fault))

    async def _make(self, fault: Fault) -> None:
        if fault.what in {"kafka-kill", "kafka-stop"}:
            async with self._kafka_lock:
                await asyncio.to_thread(self._kafka.kill if fault.what == "kafka-kill" else self._kafka.stop)
                self.done[fault.what] += 1
                await asyncio.sleep(fault.lasts)
                await asyncio.to_thread(self._kafka.start)
        elif fault.what in {"postgres-kill", "postgres-stop"}:
            async with self._postgres_lock:
                await asyncio.to_thread(
                    self._postgres.kill if fault.what == "postgres-kill" else self._postgres.stop
                )
                self.done[fault.what] += 1
                await asyncio.sleep(fault.lasts)
                await asyncio.to_thread(self._postgres.start)
        elif fault.what == "locked":
            # Not while PostgreSQL is down or begins again, which can be most of the time: it would meet nobody.
            async with self._postgres_lock:
                try:
                    async with asyncio.timeout(_MET_S + 7):
                        await self._lock_out(fault)
                except TimeoutError:
                    self.done["lock not had in time"] += 1
        else:
            await self._hit(fault)

    async def _lock_out(self, fault: Fault) -> None:
        """Somebody's maintenance locks a table, and all processes of a kind die while they wait for it.

        So this hits the moments that last a millisecond or two and that random kills hardly ever meet: a dispatcher has sent
        and has not written that down; a worker has decided and has not committed.
        """
        connection = await asyncpg.connect(self._dsn)
        try:
            async with connection.transaction():
                await connection.execute(f"lock table {_LOCKED[fault.kind]} in share mode")
                met = await _is_met(connection, _LOCKED[fault.kind])
                await asyncio.sleep(fault.lasts)
                for member in self._fleet.of(fault.kind):
                    if member.hit(signal.SIGKILL):
                        self.done[f"kill {fault.kind}" + (", locked out" if met else "")] += 1
                await asyncio.sleep(0.3)
        finally:
            connection.terminate()

    async def _hit(self, fault: Fault) -> None:
        of_kind = self._fleet.of(fault.kind)
        member: Member = of_kind[fault.who % len(of_kind)]
        ripe = 5.0 if fault.what == "freeze" else fault.ripe
        # Another fault may have begun its life anew meanwhile.
        while True:
            left = ripe - member.age_s
            if left <= 0:
                break
            await asyncio.sleep(left)
        if fault.what == "freeze":
            if member.hit(signal.SIGSTOP):
                frozen = member.process
                self.done[f"freeze {fault.kind}"] += 1
                await asyncio.sleep(fault.lasts)
                if member.process is frozen:
                    member.hit(signal.SIGCONT)
        elif member.hit(signal.SIGKILL if fault.what == "kill" else signal.SIGTERM):
            self.done[f"{fault.what} {fault.kind}"] += 1


async def _is_met(connection: asyncpg.Connection, table: str) -> bool:
    """Until somebody waits for a lock on the table, or nobody did for a long time; whether somebody does."""
    until = time.monotonic() + _MET_S
    while time.monotonic() < until:
        if await connection.fetchval(_SOMEBODY_WAITS, table):
            return True
        await asyncio.sleep(0.02)
    return False
