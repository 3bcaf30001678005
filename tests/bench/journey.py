"""What the journey of one message costs the worker's processor, without Kafka and without a store.

Run: python -m tests.bench.journey [--messages 4000] [--rounds 5]
What is measured and how to read it: tests/bench/README.md.
"""

import argparse
import asyncio
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from hub.domain.ids import EventId, time_ordered_id
from hub.domain.message import Position, Received
from hub.domain.rejection import Disposition, Rejection
from hub.fhir import decimals
from hub.fhir.structure import check
from hub.journey.decide import Journey, Understood, decide, understand
from hub.journey.effects import Effects
from hub.journey.known import Known
from hub.journey.normalise import normalise
from hub.journey.read import read
from hub.store.write import write_effects
from hub.trusts import load_books, load_clocks, load_directory
from tests.bench.end_to_end import BATCH, build

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"


def journey() -> Journey:
    """The rules as the worker has them: the real trusts, their code books and clocks."""
    directory = load_directory(SCHEMAS)
    return Journey(directory, books=load_books(SCHEMAS, directory), clocks=load_clocks(SCHEMAS, directory))


def messages(count: int, rules: Journey) -> list[Received]:
    """Different requests, as the worker's door hands them over."""
    now = datetime.now(UTC)
    found = []
    for offset, event in enumerate(build(count, rules.directory, timedelta(seconds=1))):
        at = Position(event.topic, 0, offset)
        found.append(
            Received(
                EventId(time_ordered_id(now, at.topic, at.partition, at.offset)),
                rules.directory.trust_of_topic[at.topic],
                at,
                {name: value.decode() for name, value in event.headers},
                event.key,
                event.body,
                now,
            )
        )
    return found


def batches(received: Sequence[Received]) -> Iterator[Sequence[Received]]:
    return (received[start : start + BATCH] for start in range(0, len(received), BATCH))


def normalised(received: Received, rules: Journey) -> Any:
    """Bytes → the canonical message."""
    book = rules.books[received.trust]
    found = read(received, rules.limits, rules.directory[received.trust], book)
    if isinstance(found, Rejection):
        raise SystemExit(f"a message of this benchmark is refused: {found}")
    return normalise(received, found, rules.directory, rules.rules, book)


class NoStore:
    """Stands where PostgreSQL's connection does and keeps nothing: what is left is what making the rows costs."""

    dialect = postgresql.dialect()

    async def execute(self, _statement: Any, _values: Any = None) -> Any:
        return self

    def all(self) -> list[Any]:
        return []

    async def get_raw_connection(self) -> "NoStore":
        return self

    @property
    def driver_connection(self) -> "NoStore":
        return self

    def is_in_transaction(self) -> bool:
        return True

    async def copy_records_to_table(self, _table: str, **_what: Any) -> None:
        pass


def rows(effects: Sequence[Effects], rules: Journey, now: datetime) -> None:
    """Make all rows of a batch, as they travel."""
    asyncio.run(write_effects(cast("AsyncConnection", NoStore()), effects, now, rules.clocks))


class Stopwatch:
    """Processor time by part, one figure a round."""

    def __init__(self) -> None:
        self.rounds: dict[str, list[float]] = {}
        self._spent: dict[str, float] = {}

    def run(self, part: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        done = work()
        self._spent[part] = self._spent.get(part, 0.0) + time.process_time() - began
        return done

    def end_round(self, count: int) -> None:
        for part, spent in self._spent.items():
            self.rounds.setdefault(part, []).append(spent / count * 1e6)
        self._spent = {}

    def medians(self) -> dict[str, float]:
        return {part: round(statistics.median(found), 1) for part, found in self.rounds.items()}


def understanding(batch: Sequence[Received], rules: Journey, watch: Stopwatch) -> None:
    """What happens to a message by itself, and two parts of that."""
    trees = watch.run("parse_us", lambda: [decimals.loads(each.raw) for each in batch])
    watch.run("structure_us", lambda: [check(tree) for tree in trees])
    watch.run("normalise_us", lambda: [normalised(each, rules) for each in batch])


def the_journey(batch: Sequence[Received], rules: Journey, watch: Stopwatch) -> None:
    """All that the worker does with a batch but talk to Kafka and PostgreSQL."""
    now = batch[0].received_at
    understood: list[Understood] = watch.run(
        "understand_us", lambda: [understand(each, rules) for each in batch]
    )
    known = Known()
    effects: list[Effects] = watch.run(
        "decide_us", lambda: [decide(each, known, rules, now) for each in understood]
    )
    written = [replace(each, audit=()) for each in effects]
    watch.run("rows_us", lambda: rows(written, rules, now))
    if any(each.disposition is not Disposition.ACCEPTED for each in effects):
        raise SystemExit("a message of this benchmark is not accepted")


def measure(count: int, rounds: int) -> dict[str, float]:
    """Median microseconds of processor time for a message."""
    rules = journey()
    received = messages(count, rules)
    watch = Stopwatch()
    the_journey(received[:BATCH], rules, Stopwatch())  # validators are compiled when first needed
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # as the worker's: hub/wiring.py
    for _ in range(rounds):
        # One after the other over all messages: what is remembered for a while is forgotten before a message comes again.
        for work in (understanding, the_journey):
            for batch in batches(received):
                work(batch, rules, watch)
        watch.end_round(len(received))
    figures = watch.medians()
    figures["journey_us"] = round(sum(figures[each] for each in ("understand_us", "decide_us", "rows_us")), 1)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    figures = measure(given.messages, given.rounds)
    for part, spent in figures.items():
        print(f"{part:16s} {spent:8.1f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
