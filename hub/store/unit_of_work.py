"""THE ONE TRANSACTION. Everything a batch causes is committed together, its Kafka positions included, or not at all.

A crash before the commit: nothing happened and Kafka delivers again. A crash after it: Kafka delivers again
and the position says that it was taken in.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count
from typing import TypeVar

from sqlalchemy import select, update
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.audit.entries import AuditEntry, Code, Outcome
from hub.domain.ids import EventId, OdsCode, made_by
from hub.domain.message import Received
from hub.domain.rejection import Disposition, Rejection, Why
from hub.journey.decide import Choice, Journey, Understood, decide, understand
from hub.journey.effects import Effects
from hub.store import tables as t
from hub.store.bulk import among, among_pairs, insert_ignoring, update_rows
from hub.store.intake import NotWritableError, PartitionKey, StoreUnavailableError, Taken
from hub.store.load import as_received, claim_messages, load_known, lock_names
from hub.store.write import Row, write_audit, write_effects
from hub.telemetry.log import Log, LogEvent, fault_of

# serialization_failure, deadlock_detected, lock_not_available: somebody else was faster; try again.
_CONFLICTS = frozenset({"40001", "40P01", "55P03"})
_ATTEMPTS = 5

Result = TypeVar("Result")


class NotQuarantinedError(LookupError):
    """There is no quarantined message with this id."""


class _StillWaitsError(Exception):
    """The hub ran a message again by itself and it still cannot be taken in: roll back."""


@dataclass(slots=True)
class _Brake:
    """Messages quarantined one after the other, as far as this batch knows: a trust's other partitions are taken in at the
    same time by others. What the batch adds is put on what stands there when it is written (`_write_brakes`).
    """

    in_a_row: int = 0
    pulled: bool = False
    why: str | None = None
    added: int = 0
    """Of ``in_a_row`` what this batch quarantined, since its last message that was none."""
    begun_anew: bool = False
    """Whether this batch held a message that was not quarantined, after some that were."""


class UnitOfWork:
    """Takes in batches and runs quarantined messages again. `take` is for one task at a time."""

    def __init__(
        self,
        engine: AsyncEngine,
        journey: Journey,
        clock: Callable[[], datetime],
        log: Log,
        *,
        quarantine_in_a_row_max: int = 50,
    ) -> None:
        self._engine = engine
        self._journey = journey
        self._clock = clock
        self._log = log
        self._in_a_row_max = quarantine_in_a_row_max

    def understand(self, received: Received) -> Understood:
        """See `hub.store.intake.Intake.understand`."""
        return understand(received, self._journey)

    async def take(
        self, batch: Sequence[Received | Understood], *, next_after: Mapping[PartitionKey, int] | None = None
    ) -> Taken:
        """See `hub.store.intake.Intake.take`."""
        understood = [each if isinstance(each, Understood) else self.understand(each) for each in batch]
        try:
            return await self._take(understood, next_after or {})
        except NotWritableError as error:
            if len(understood) == 1:
                return await self._take([_set_aside(understood[0], error)], next_after or {})
            # The others must not suffer for it. A partition moves past its gap with the last of its messages.
            last = {_partition(each.received): each for each in understood}
            taken = []
            for each in understood:
                key = _partition(each.received)
                gaps = {at: to for at, to in (next_after or {}).items() if at == key and last[key] is each}
                taken.append(await self.take([each], next_after=gaps))
            return _together(taken)

    async def _take(self, understood: Sequence[Understood], next_after: Mapping[PartitionKey, int]) -> Taken:
        attempts = count()
        taken, effects = await self._until_committed(
            lambda: self._take_once(understood, next_after, again=next(attempts) > 0)
        )
        for each in effects:
            self._say(each)
        return taken

    async def take_together(self, batch: Sequence[Received]) -> list[Effects | None]:
        """Take in messages that came over REST: the same journey, one transaction for all, each decided as if it came alone.
        When this returns it is committed. None for a message whose first attempt is still under way in another process.

        The answer is the sender's receipt, so none goes to the outbox; and a brake, which is there to stop a partition that
        nobody watches, does not hold up a caller who hears at once what is wrong. Raises StoreUnavailableError.
        """
        understood = [understand(received, self._journey) for received in batch]
        try:
            taken = await self._until_committed(lambda: self._take_together_once(understood))
        except NotWritableError as error:
            if len(understood) > 1:
                raise
            aside = [_set_aside(understood[0], error)]
            taken = await self._until_committed(lambda: self._take_together_once(aside))
        for each in taken:
            if each is not None:
                self._say(each)
        return taken

    async def _take_together_once(self, understood: Sequence[Understood]) -> list[Effects | None]:
        now = self._clock()
        async with self._engine.begin() as connection:
            claimed = await claim_messages(connection, understood)
            mine = [each for each, ours in zip(understood, claimed, strict=True) if ours]
            await lock_names(connection, mine)
            known = await load_known(connection, mine, now)
            decided = [decide(each, known, self._journey, now) for each in mine]
            written = [replace(each, outbox=each.outbox[:-1]) for each in decided]
            await write_effects(connection, written, now, self._journey.clocks)
        told = iter(decided)
        return [next(told) if ours else None for ours in claimed]

    async def retry(self, event_id: str, operator: str, choice: Choice | None = None) -> Effects:
        """Run a quarantined message's bytes through the journey again. ``operator`` is a role or account, for the audit;
        ``choice`` is their answer to a question that the hub asked.

        Raises NotQuarantinedError, StoreUnavailableError.
        """
        return await self._until_committed(lambda: self._retry_once(event_id, operator, choice or Choice()))

    async def retry_early(self, event_id: str) -> Effects | None:
        """Run a message again that came before its request. None, and nothing is written, if it still has to wait.

        Raises NotQuarantinedError (somebody else was faster), StoreUnavailableError.
        """
        try:
            return await self._until_committed(lambda: self._retry_once(event_id, None, None))
        except _StillWaitsError:
            return None

    async def _until_committed(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """Run a transaction, again after a conflict with another worker; anything else ends it."""
        for again in range(1, _ATTEMPTS + 1):
            try:
                return await attempt()
            except (OSError, TimeoutError) as error:
                raise StoreUnavailableError(fault_of(error)) from error
            except DBAPIError as error:
                if again == _ATTEMPTS or not _is_conflict(error):
                    kind = NotWritableError if is_refusal(error) else StoreUnavailableError
                    raise kind(database_fault(error)) from error
                self._log.warning("store.conflict", fault=database_fault(error), again=again)
        raise AssertionError("unreachable")

    async def _take_once(
        self, understood: Sequence[Understood], next_after: Mapping[PartitionKey, int], *, again: bool
    ) -> tuple[Taken, list[Effects]]:
        """``again``: after a conflict. A position that a person set back leads to messages that were taken in before: they are passed over,
        and the position with them. That is asked only then, because else it does not happen.
        """
        now = self._clock()
        async with self._engine.begin() as connection:
            positions = await _lock_positions(connection, understood, next_after)
            fresh = [u for u in understood if u.received.place.offset >= positions[_partition(u.received)]]
            seen, fresh = await self._parted(connection, fresh) if again else ([], fresh)
            brakes = await _load_brakes(connection, {u.received.trust for u in (*seen, *fresh)})
            wanted = [u for u in fresh if not brakes[u.received.trust].pulled]
            effects = await self._decide_all(connection, wanted, brakes, now)
            await write_effects(connection, effects, now, self._journey.clocks)
            await _write_brakes(connection, brakes, self._in_a_row_max, now)
            done = _done(seen, effects, fresh)
            moved = _moved(positions, done, understood, next_after, brakes)
            await _write_positions(connection, moved, _last_of_each(done), now)
        braked = frozenset(trust for trust, brake in brakes.items() if brake.pulled)
        return Taken(dict(Counter(each.disposition for each in effects)), positions | moved, braked), effects

    async def _parted(
        self, connection: AsyncConnection, batch: Sequence[Understood]
    ) -> tuple[list[Understood], list[Understood]]:
        """What was taken in before, and what was not. An event id is made of a record's time and place, which can come again in a topic
        that was made anew: what says something else is another message, and gets an id of its own.
        """
        known = await _digests(connection, batch)
        named = [
            u if known.get(u.received.event_id) in (None, u.sha256) else self._under_another_id(u)
            for u in batch
        ]
        known |= await _digests(
            connection, [u for u, before in zip(named, batch, strict=True) if u is not before]
        )
        seen = [u for u in named if u.received.event_id in known]
        return seen, [u for u in named if u.received.event_id not in known]

    def _under_another_id(self, understood: Understood) -> Understood:
        received = understood.received
        event_id = EventId(made_by(received.event_id, received.event_id, "other content", understood.sha256))
        return self.understand(replace(received, event_id=event_id))

    async def _decide_all(
        self,
        connection: AsyncConnection,
        fresh: Sequence[Understood],
        brakes: Mapping[OdsCode, _Brake],
        now: datetime,
    ) -> list[Effects]:
        """Decide in order, each message as if it came alone after those before it; a trust's brake ends its part."""
        if not fresh:
            return []
        await lock_names(connection, fresh)
        known = await load_known(connection, fresh, now)
        effects: list[Effects] = []
        for each in fresh:
            brake = brakes[each.received.trust]
            if brake.pulled:
                continue
            decided = decide(each, known, self._journey, now)
            effects.append(decided)
            self._count(brake, decided)
        return effects

    def _count(self, brake: _Brake, decided: Effects) -> None:
        if decided.disposition is Disposition.QUARANTINED:
            brake.in_a_row += 1
            brake.added += 1
            brake.why = decided.rejection.why.value if decided.rejection else None
            brake.pulled = brake.in_a_row >= self._in_a_row_max
        elif brake.in_a_row and decided.disposition is not Disposition.DUPLICATE:
            brake.in_a_row = brake.added = 0
            brake.begun_anew = True

    async def _retry_once(self, event_id: str, operator: str | None, choice: Choice | None) -> Effects:
        """``operator`` None is the hub itself, which asks often and leaves no trace while a message still waits."""
        now = self._clock()
        async with self._engine.begin() as connection:
            received = await _stored(connection, event_id)
            understood = understand(received, self._journey)
            await lock_names(connection, [understood])
            persons = [choice.person_id] if choice and choice.person_id else []
            transfers = [choice.transfer_id] if choice and choice.transfer_id else []
            known = await load_known(connection, [understood], now, persons, transfers)
            decided = decide(understood, known, self._journey, now, again=True, choice=choice)
            if operator is None and decided.disposition is Disposition.QUARANTINED:
                raise _StillWaitsError
            released = decided.disposition is Disposition.ACCEPTED
            replayed = AuditEntry(
                Code.MESSAGE_RELEASED if released else Code.MESSAGE_REPLAYED,
                now,
                "operator" if operator else "clock",
                trust=received.trust,
                event_id=received.event_id,
                person_id=decided.happened.identified.person_id if decided.happened else None,
                transfer_id=decided.happened.transfer_id if decided.happened else None,
                request_id=understood.message_id,
                user_id=operator,
                detail={
                    "disposition": decided.disposition,
                    **({"chosen_transfer": choice.transfer_id} if choice and choice.transfer_id else {}),
                    **({"chosen_person": choice.person_id} if choice and choice.person_id else {}),
                    **({"new_person": True} if choice and choice.new_person else {}),
                },
            )
            decided = replace(decided, audit=(replayed, *decided.audit))
            await write_effects(connection, [decided], now, self._journey.clocks, again=True)
        return decided

    def _say(self, effects: Effects) -> None:
        rejection = effects.rejection
        event: LogEvent | None = _LOG_EVENT.get(effects.disposition)
        if event is not None:
            self._log.warning(
                event,
                event_id=effects.received.event_id,
                trust=effects.received.trust,
                why=rejection.why.value if rejection else None,
                at=rejection.at if rejection else None,
            )


_LOG_EVENT: dict[Disposition, LogEvent] = {
    Disposition.QUARANTINED: "message.quarantined",
    Disposition.REJECTED: "message.rejected",
    Disposition.CONFLICT: "message.conflict",
    Disposition.DUPLICATE: "message.duplicate",
}


def _set_aside(understood: Understood, error: NotWritableError) -> Understood:
    """A message that the store does not take is quarantined as a fault of the hub's: else its partition would stand still for ever."""
    return replace(understood, meaning=Rejection(Why.HUB_FAULT, detail=f"The database refuses it: {error}."))


def _together(taken: Sequence[Taken]) -> Taken:
    dispositions: Counter[Disposition] = Counter()
    positions: dict[PartitionKey, int] = {}
    for each in taken:
        dispositions.update(each.dispositions)
        positions |= each.positions
    return Taken(dict(dispositions), positions, frozenset().union(*(each.braked for each in taken)))


def is_refusal(error: DBAPIError) -> bool:
    """Whether the database is well and refuses a value: SQLSTATE classes 22 (data exception) and 23 (integrity constraint violation)."""
    state = str(getattr(error.orig, "sqlstate", None) or "")
    return isinstance(error, IntegrityError | DataError) or state.startswith(("22", "23"))


def _is_conflict(error: DBAPIError) -> bool:
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return isinstance(error, IntegrityError) or state in _CONFLICTS


def database_fault(error: DBAPIError) -> str:
    """The kind of failure and its SQLSTATE; never the driver's text, which quotes the values."""
    state = getattr(error.orig, "sqlstate", None) or ""
    return f"{type(error.orig).__name__} {state}".strip()


def _partition(received: Received) -> PartitionKey:
    return received.place.topic, received.place.partition


async def _lock_positions(
    connection: AsyncConnection, understood: Sequence[Understood], next_after: Mapping[PartitionKey, int]
) -> dict[PartitionKey, int]:
    """The recorded position of every partition of the batch, locked: for a moment of a rebalance two workers can
    hold the same partition. A partition met for the first time starts where its first message stands.
    """
    first: dict[PartitionKey, int] = dict(next_after)
    for each in understood:
        key = _partition(each.received)
        first[key] = min(first.get(key, each.received.place.offset), each.received.place.offset)
    held = await _positions_locked(connection, first)
    new = sorted(first.keys() - held.keys())
    if new:
        await connection.execute(
            insert_ignoring(connection, t.position),
            [
                {
                    "topic": key[0],
                    "partition": key[1],
                    "next_offset": first[key],
                    "taken_up": 0,
                    "suspect_begun": 0,
                }
                for key in new
            ],
        )
        held = await _positions_locked(connection, first)
    return {key: held[key] for key in first}


async def _positions_locked(
    connection: AsyncConnection, keys: Iterable[PartitionKey]
) -> dict[PartitionKey, int]:
    """Of these partitions and no others: a trust's other partitions belong to other workers, which must not wait."""
    p = t.position
    rows = await connection.execute(
        select(p.c.topic, p.c.partition, p.c.next_offset)
        .where(among_pairs((p.c.topic, p.c.partition), keys, connection))
        .order_by(p.c.topic, p.c.partition)
        .with_for_update(of=p)
    )
    return {(row.topic, row.partition): row.next_offset for row in rows}


def _done(
    seen: Sequence[Understood], effects: Sequence[Effects], fresh: Sequence[Understood]
) -> list[Understood | Effects]:
    """What is behind us, in the order of its partition; not what lies behind something that a brake left undone."""
    decided = {each.received.event_id for each in effects}
    undone: dict[PartitionKey, int] = {}
    for u in fresh:
        if u.received.event_id not in decided:
            undone.setdefault(_partition(u.received), u.received.place.offset)
    both: list[Understood | Effects] = [*seen, *effects]
    both.sort(key=lambda each: each.received.place.offset)
    return [
        each
        for each in both
        if each.received.place.offset < undone.get(_partition(each.received), each.received.place.offset + 1)
    ]


def _moved(
    positions: Mapping[PartitionKey, int],
    done: Sequence[Understood | Effects],
    understood: Sequence[Understood],
    next_after: Mapping[PartitionKey, int],
    brakes: Mapping[OdsCode, _Brake],
) -> dict[PartitionKey, int]:
    """Where each partition stands after the batch; only forward, and not past what a brake left undone."""
    moved: dict[PartitionKey, int] = {}
    for each in done:
        key = _partition(each.received)
        moved[key] = max(moved.get(key, 0), each.received.place.offset + 1)
    trust_of = {_partition(u.received): u.received.trust for u in understood}
    for key, offset in next_after.items():
        trust = trust_of.get(key)
        if trust is None or trust not in brakes or not brakes[trust].pulled:
            moved[key] = max(moved.get(key, 0), offset)
    return {key: offset for key, offset in moved.items() if offset > positions[key]}


def _last_of_each(done: Sequence[Understood | Effects]) -> dict[PartitionKey, Row]:
    """By which record each partition is known again."""
    return {
        _partition(each.received): {"last_offset": each.received.place.offset, "last_sha256": each.sha256}
        for each in done
    }


async def _write_positions(
    connection: AsyncConnection,
    moved: Mapping[PartitionKey, int],
    last: Mapping[PartitionKey, Row],
    now: datetime,
) -> None:
    rows: list[Row] = [
        {
            "topic": topic,
            "partition": partition,
            "next_offset": offset,
            "moved_at": now,
            "suspect_offset": None,
            "suspect_begun": 0,
            **last.get((topic, partition), {}),
        }
        for (topic, partition), offset in sorted(moved.items())
    ]
    for with_a_record in (True, False):  # what passed over markers only is known by the record before them
        some = [row for row in rows if ("last_offset" in row) is with_a_record]
        await update_rows(connection, t.position, ["topic", "partition"], some)


async def _digests(connection: AsyncConnection, batch: Sequence[Understood]) -> dict[EventId, str]:
    """SHA-256 of those of the messages that are there under these event ids."""
    m = t.message.c
    ids = [each.received.event_id for each in batch]
    rows = await connection.execute(select(m.event_id, m.sha256).where(among(m.event_id, ids, connection)))
    return {EventId(row.event_id): row.sha256 for row in rows}


async def _load_brakes(connection: AsyncConnection, trusts: set[OdsCode]) -> dict[OdsCode, _Brake]:
    rows = await connection.execute(select(t.brake).where(among(t.brake.c.trust, trusts, connection)))
    found = {OdsCode(row.trust): _Brake(row.in_a_row, row.pulled, row.why) for row in rows}
    return {trust: found.get(trust, _Brake()) for trust in sorted(trusts)}


async def _write_brakes(
    connection: AsyncConnection, brakes: Mapping[OdsCode, _Brake], in_a_row_max: int, now: datetime
) -> None:
    """Put what the batch adds on what stands there now, locked: whoever counted at the same time is not overwritten, and a
    brake that somebody else has pulled stays pulled. Brakes come in the order of their trusts. Afterwards each says how it stands.
    """
    touched = {trust: brake for trust, brake in brakes.items() if brake.added or brake.begun_anew}
    if not touched:
        return
    b = t.brake
    await connection.execute(
        insert_ignoring(connection, b),
        [{"trust": trust, "in_a_row": 0, "pulled": False} for trust in touched],
    )
    rows = await connection.execute(
        select(b).where(among(b.c.trust, touched, connection)).order_by(b.c.trust).with_for_update()
    )
    for row in rows.all():
        brake = touched[OdsCode(row.trust)]
        if row.pulled:
            brake.pulled = True
            continue
        # What this batch left alone because of its own count must stay there, whatever others counted meanwhile.
        counted = brake.added + (0 if brake.begun_anew else row.in_a_row)
        brake.in_a_row = max(counted, brake.in_a_row) if brake.pulled else counted
        brake.pulled = brake.in_a_row >= in_a_row_max
        values = {"in_a_row": brake.in_a_row, "pulled": brake.pulled, "why": brake.why}
        await connection.execute(
            update(b).where(b.c.trust == row.trust).values(**values, pulled_at=now if brake.pulled else None)
        )
        if brake.pulled:
            detail = {"in_a_row": brake.in_a_row, "why": brake.why}
            pulled = AuditEntry(
                Code.BRAKE_PULLED, now, "worker", Outcome.SERIOUS_FAILURE, trust=row.trust, detail=detail
            )
            await write_audit(connection, [pulled])


async def _stored(connection: AsyncConnection, event_id: str) -> Received:
    m = t.message
    row = (
        await connection.execute(select(m).where(m.c.event_id == event_id).with_for_update())
    ).one_or_none()
    if row is None or row.disposition != Disposition.QUARANTINED or row.raw is None:
        raise NotQuarantinedError(event_id)
    return as_received(row)
