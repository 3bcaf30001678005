"""`python -m tests.chaos --seeds N`: the hub under fire, and what an independent checker finds afterwards.

Real Apache Kafka, real PostgreSQL, two workers, one or two dispatchers, sealer and feeds of the audit, the REST facade; all of them are killed, stopped and
frozen while hospitals send, some over Kafka and some over REST. Of a seed's transfers half are simple (`simulation`), half stand in tales of patients who are
asked for at two hospitals, redirected, withdrawn while they are accepted, merged, or sent on (`tales`); beside them run the recorded journeys
(`journeys`), stays that are nobody else's business, and junk. The last line is JSON; exit status 1 if any count of it that must be 0 is not. With `--plant`
it is the other way round: a bug is planted in the hub's processes, and status 0 means that the checker found it.
"""

import argparse
import asyncio
import faulthandler
import json
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import yaml
from sqlalchemy import make_url

from hub.domain.trust import Directory
from hub.trusts import load_directory
from tests.chaos import checker, journeys, log_judge
from tests.chaos.faults import Trouble, plan
from tests.chaos.fleet import ROOT, Fleet, Member, environment, hub_command, run_once
from tests.chaos.ledger import Ledger
from tests.chaos.rest_door import RestDoor
from tests.chaos.simulation import Hospitals
from tests.harness.kafka_server import KafkaServer
from tests.harness.postgres_server import PostgresServer, execute
from tests.harness.prerequisites import missing
from tests.stories.on_a_broker import Told

FOUND_AS = {
    "ack-before-commit": ("lost",),
    "no-position-check": ("duplicate_effects",),
    "no-header-check": ("wire_duplicates",),
    "other-told-too": ("misrouted",),
    "other-not-told": ("lost",),
}
"""Plant → what the checker must find; something else only would be an accident."""

_FAULTS_S = 34.0
_SPREAD_S = 28.0
_PATIENCE_S = 60.0
"""How long after the last story began the hospitals wait for what they have to see."""
_DRAIN_S = 40.0
_SESSION_TIMEOUT_S = 6.0
_LEASE_S = 3.0
_PARTITIONS = 3
_SHOWN = 12
"""Sentences of one kind that are printed; the rest is counted."""


@dataclass(slots=True)
class Tally:
    """All seeds together."""

    seeds: int = 0
    events: int = 0
    kills: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def line(self, plant: str | None) -> str:
        found = {"seeds": self.seeds, "events": self.events, "kills": self.kills}
        found |= {kind: self.counts[kind] for kind in checker.KINDS}
        return json.dumps({**found, "plant": plant} if plant else found)


def _say(text: str) -> None:
    print(text, flush=True)


async def run_seed(
    seed: int, transfers: int, plant: str | None, postgres: PostgresServer, folder: Path, told: Sequence[Told]
) -> tuple[checker.Verdict, int, int]:
    """Everything of one seed. Returns the verdict, how many records were acknowledged, how many faults hit."""
    rng = random.Random(seed)
    began = time.monotonic()
    directory = _some_trusts(rng, folder / "schemas")
    ledger = Ledger(tuple(each.ods for each in directory))
    name = f"chaos_{seed}_{uuid.uuid4().hex[:8]}"
    await asyncio.to_thread(postgres.start)
    await asyncio.to_thread(postgres.create_database, name)
    dsn = postgres.url(name).replace("postgresql+asyncpg", "postgresql")
    kafka = KafkaServer(folder / "kafka")
    try:
        await asyncio.to_thread(kafka.start)
        settings = _settings(postgres.url(name), kafka.bootstrap_servers, folder / "schemas")
        env = environment(settings, None)
        settings["database_url"] = _as_a_service(postgres.url(name))
        door = RestDoor(folder)
        await asyncio.gather(
            run_once(hub_command("db", "upgrade"), env, folder),
            run_once(hub_command("topics", "apply"), env, folder),
        )
        await asyncio.to_thread(_make_service, postgres.url(name))
        await door.join(ledger.trusts, env)
        fleet = Fleet(_members(rng, settings | door.settings, plant, folder))
        faults = plan(rng, _FAULTS_S, _SESSION_TIMEOUT_S, _LEASE_S)
        hospitals = Hospitals(directory, ledger, kafka.bootstrap_servers, _PARTITIONS, seed, rng, told, door)
        _say(
            f"seed {seed}: {', '.join(ledger.trusts)} ({', '.join(p.ods for p in directory if p.doors.outward == 'polled')} fetches); {', '.join(m.name for m in fleet.members)}; {len(faults)} faults; {folder}"
        )
        fleet.started()
        trouble = Trouble(fleet, kafka, postgres, dsn)
        try:
            await _working(dsn)
            ready = time.monotonic()
            await _both(
                trouble.make(faults),
                hospitals.tell(transfers, _SPREAD_S, _PATIENCE_S),
                within_s=_SPREAD_S + _PATIENCE_S + 60,
            )
            told = time.monotonic()
            left = await _drain(lambda: checker.drained(ledger, dsn, kafka.bootstrap_servers))
            await hospitals.end()
            await fleet.end(but=LOG_KEEPERS)
            # The others write to the audit to their end; what they wrote last is sealed and passed on too.
            left = left or await _drain(lambda: log_judge.sealed_and_passed_on(dsn))
        finally:
            await fleet.end()
        drained = time.monotonic()
        verdict = await checker.check(ledger, dsn, kafka.bootstrap_servers)
        for sentence in await log_judge.judge(env, folder, dsn, kafka.bootstrap_servers):
            verdict.say("log_faults", sentence)
        if left:
            verdict.say("unexpected", f"not drained within {_DRAIN_S:.0f} s: {left}")
        for member in fleet.members:
            if member.ignored:
                verdict.say(
                    "unexpected", f"{member.name} had not ended 25 s after SIGTERM, {member.ignored} times"
                )
            if 99 in member.exits:
                raise RuntimeError(f"the plant could not be planted:\n{member.tail()}")
        exits = {member.name: dict(Counter(member.exits)) for member in fleet.members if member.exits}
        asked = {
            member.name: dict(Counter(member.after_term)) for member in fleet.members if member.after_term
        }
        _say(f"seed {seed}: {json.dumps(verdict.facts)}")
        _say(
            f"seed {seed}: hit {dict(sorted(trouble.done.items()))}; ended by themselves {exits}; after SIGTERM {asked}"
        )
        _say(
            f"seed {seed}: ready in {ready - began:.0f} s, told in {told - ready:.0f} s, drained {drained - told:.0f} s later, "
            f"judged in {time.monotonic() - drained:.0f} s; {json.dumps(verdict.counts)}"
        )
        return verdict, len(ledger.sent), trouble.done.total()
    finally:
        await asyncio.to_thread(kafka.kill)
        await asyncio.to_thread(postgres.start)
        await asyncio.to_thread(postgres.drop_database, name)


def _some_trusts(rng: random.Random, schemas: Path) -> Directory:
    """Those of the journeys and one or two more, copied: fewer topics, so that Kafka is back sooner."""
    everybody = {each.name for each in (ROOT / "schemas" / "trusts").iterdir() if each.is_dir()}
    others = rng.sample(sorted(everybody - journeys.TRUSTS), rng.choice([1, 2]))
    for ods in sorted({*journeys.TRUSTS, *others}):
        shutil.copytree(ROOT / "schemas" / "trusts" / ods, schemas / "trusts" / ods)
    for shared in ("conceptmaps", "codesystems"):
        shutil.copytree(ROOT / "schemas" / shared, schemas / shared)
    shutil.copy(ROOT / "schemas" / "clocks.yaml", schemas)
    # One that has no topic to read: it fetches.
    profile = schemas / "trusts" / others[0] / "profile.yaml"
    said = yaml.safe_load(profile.read_text(encoding="utf-8")) | {"doors": {"outward": "polled"}}
    profile.write_text(
        f"# Illustration, not supplied or endorsed by the trust.\n{yaml.safe_dump(said)}", encoding="utf-8"
    )
    return load_directory(schemas)


def _settings(database_url: str, bootstrap_servers: str, schemas: Path) -> dict[str, str]:
    return {
        "database_url": database_url,
        "kafka_bootstrap_servers": bootstrap_servers,
        "schemas_dir": str(schemas),
        "topic_partitions": f"{_PARTITIONS}",
        "topic_partitions_out": f"{_PARTITIONS}",
        "session_timeout_s": f"{_SESSION_TIMEOUT_S}",
        "batch_messages_max": "20",
        "watchdog_s": "25",
        "dispatch_batch_max": "20",
        "dispatch_lease_s": f"{_LEASE_S}",
        "dispatch_backoff_s": "0.2",
        "dispatch_backoff_max_s": "2",
        "audit_seal_s": "0.2",
        "audit_checkpoint_s": "2",
        "log_format": "json",
    }


def _members(
    rng: random.Random, settings: Mapping[str, str], plant: str | None, folder: Path
) -> list[Member]:
    """Two workers, with names of their own in the group or without; one or two dispatchers; sealer and feeds; the facade."""
    named = rng.random() < 0.5
    members = []
    for n in (1, 2):
        more = {"worker_instance": f"worker-{n}"} if named else {}
        env = environment({**settings, **more}, plant)
        members.append(Member(f"worker-{n}", "worker", hub_command("worker"), env, folder))
    for n in range(1, rng.choice([1, 2]) + 1):
        env = environment(settings, plant)
        members.append(Member(f"dispatcher-{n}", "dispatcher", hub_command("dispatcher"), env, folder))
    members += [
        Member(f"{kind}-1", kind, hub_command(kind), environment(settings, None), folder)
        for kind in sorted(LOG_KEEPERS)
    ]
    members.append(Member("facade-1", "facade", hub_command("serve"), environment(settings, None), folder))
    return members


SERVICE = "a_service_of_the_hub"
LOG_KEEPERS = frozenset({"sealer", "feeds"})


def _make_service(url: str) -> None:
    """The user that the hub's processes sign in as: it may change nothing that is sealed."""
    execute(
        url,
        f"do $$ begin create user {SERVICE} password '{SERVICE}' in role transfer_hub;"
        " exception when duplicate_object then null; end $$",
    )


def _as_a_service(url: str) -> str:
    return make_url(url).set(username=SERVICE, password=SERVICE).render_as_string(hide_password=False)


async def _working(dsn: str) -> None:
    """Until a worker has partitions; the faults begin then. Raises RuntimeError if that takes 60 s."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        connection = await asyncpg.connect(dsn)
        try:
            if await connection.fetchval("select count(*) from position"):
                return
        finally:
            await connection.close()
        await asyncio.sleep(0.2)
    raise RuntimeError("no worker took up a partition within 60 s")


async def _both(*work: Coroutine[Any, Any, None], within_s: float) -> None:
    """All of it, side by side. Raises RuntimeError that says where each task stands, if it takes longer."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        done, late = await asyncio.wait(tasks, timeout=within_s, return_when=asyncio.FIRST_EXCEPTION)
        for each in done:
            each.result()
        if late:
            stands = Counter(_stands_at(each) for each in asyncio.all_tasks())
            told = "".join(f"\n  {count} at {at}" for at, count in stands.most_common())
            raise RuntimeError(f"not over within {within_s:.0f} s; tasks:{told}")
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.wait(tasks)


def _stands_at(task: asyncio.Task[Any]) -> str:
    """The coroutines of a task that wait for each other, the outermost first."""
    lines, waiting = [], task.get_coro()
    while getattr(waiting, "cr_frame", None) is not None:
        lines.append(f"{waiting.cr_code.co_qualname}:{waiting.cr_frame.f_lineno}")
        waiting = waiting.cr_await
    return " → ".join(lines) or repr(task)


async def _drain(look: Callable[[], Awaitable[str]]) -> str:
    """Wait until nothing is left to do, twice in a row; what is left if that takes too long."""
    deadline = time.monotonic() + _DRAIN_S
    well, left = 0, "nothing was looked at"
    while well < 2 and time.monotonic() < deadline:
        try:
            left = await look()
        except Exception as error:
            left = repr(error)
        well = 0 if left else well + 1
        await asyncio.sleep(0.3)
    return left


def _show(verdict: checker.Verdict) -> None:
    for kind, sentences in verdict.found.items():
        for sentence in sentences[:_SHOWN]:
            _say(f"  {kind}: {sentence}")
        if len(sentences) > _SHOWN:
            _say(f"  {kind}: … and {len(sentences) - _SHOWN} more")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=1, help="the first seed; the others follow it")
    parser.add_argument("--transfers", type=int, default=100, help="transfers of one seed")
    parser.add_argument("--plant", choices=sorted(FOUND_AS), help="plant this bug; status 0 if it is found")
    parser.add_argument("--keep", action="store_true", help="keep the logs of good seeds too")
    return parser.parse_args()


async def _main(arguments: argparse.Namespace) -> int:
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="hub-chaos-journeys-") as databases:
        told = await journeys.recorded(Path(databases))
    with PostgresServer() as postgres:
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            folder = Path(tempfile.mkdtemp(prefix=f"hub-chaos-{seed}-"))
            verdict, events, kills = await run_seed(
                seed, arguments.transfers, arguments.plant, postgres, folder, told
            )
            tally.seeds += 1
            tally.events += events
            tally.kills += kills
            tally.counts.update(verdict.counts)
            _show(verdict)
            bad = any(verdict.counts.values())
            if not arguments.keep and (arguments.plant or not bad):
                shutil.rmtree(folder, ignore_errors=True)
            elif bad:
                _say(f"seed {seed}: the logs are in {folder}")
            if arguments.plant and _caught(arguments.plant, tally):
                break
    if arguments.plant:
        caught = _caught(arguments.plant, tally)
        _say(f"the plant {arguments.plant} was {'found' if caught else 'NOT found'}")
        _say(tally.line(arguments.plant))
        return 0 if caught else 1
    _say(tally.line(None))
    return 1 if tally.counts.total() else 0


def _caught(plant: str, tally: Tally) -> bool:
    """A plant that no longer fits the hub's code ends the workers: then most is lost, and nothing was found."""
    return all(tally.counts[kind] for kind in FOUND_AS[plant]) and tally.counts["lost"] < tally.events / 2


def main() -> int:
    arguments = _arguments()
    if sentences := missing():
        _say("; ".join(sentences))
        return 2
    # Ctrl-C and SIGTERM unwind, so that servers and processes end.
    faulthandler.register(signal.SIGUSR1)
    # What aiokafka says of every outage is expected here.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return asyncio.run(_main(arguments))


if __name__ == "__main__":
    sys.exit(main())
