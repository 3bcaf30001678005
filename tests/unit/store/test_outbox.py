"""The outbox on SQLite; `tests/live/test_dispatcher.py` drives the same functions on PostgreSQL."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, insert, select, update

from hub.domain.delivery import Placed
from hub.store import outbox, resending
from hub.store.engine import open_engine
from hub.store.queries import NotFoundError
from hub.store.tables import audit_pending, delivery_attempt, metadata
from hub.store.tables import outbox as table

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
LATER = NOW + timedelta(seconds=30)
INBOX = "hub.ra9.inbox"


@pytest.fixture
async def engine(tmp_path):
    engine = open_engine(f"sqlite+aiosqlite:///{tmp_path}/hub.db")
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield engine
    await engine.dispose()


def row(seq, key="t1", receiver="RA9", topic=None, **more):
    return {
        "seq": seq,
        "receiver": receiver,
        "topic": topic or f"hub.{receiver.lower()}.inbox",
        "key": key,
        "headers": {"event-type": "admit"},
        "payload": b"{}",
        "event_id": f"e{seq}",
        "transfer_id": key,
        "person_id": f"p-{key}",
        "created_at": NOW,
        "state": "pending",
        "attempts": 0,
        "next_attempt_at": None,
        "last_error": None,
    } | more


async def fill(engine, *rows):
    async with engine.begin() as connection:
        await connection.execute(insert(table), list(rows))


async def count(engine, what):
    async with engine.connect() as connection:
        return (await connection.execute(select(func.count()).select_from(what))).scalar_one()


async def rows_of(engine, what):
    async with engine.connect() as connection:
        return (await connection.execute(select(what))).mappings().all()


def placed(seq, offset=None, topic=INBOX, event_id=None, partition=0, holds=b"{}"):
    digest = hashlib.sha256(holds).hexdigest()
    place = seq + 100 if offset is None else offset
    return Placed(seq, topic, partition, place, event_id or f"e{seq}", digest)


async def seqs(engine, **more):
    return [
        each.seq
        for each in await outbox.pending(engine, "RA9", more.pop("limit", 100), more.pop("now", NOW), **more)
    ]


async def test_several_receivers_are_looked_at_together_each_as_if_alone(engine):
    await fill(
        engine,
        row(1, "a"),
        row(2, "b", next_attempt_at=LATER),
        row(3, "b"),
        row(4, "c", receiver="RH8"),
        row(5, "c", receiver="RH8"),
    )

    found = await outbox.pending_of_each(engine, ["RH8", "RVJ", "RA9"], 100, NOW)

    assert [[each.seq for each in rows] for rows in found] == [[4, 5], [], [1]]


async def test_rows_come_in_sequence_for_one_receiver_only(engine):
    await fill(engine, row(3, "b"), row(1, "a"), row(2, "a", receiver="RH8"), row(4, "a", state="sent"))

    (first, second) = await outbox.pending(engine, "RA9", 10, NOW)

    assert (first.seq, second.seq) == (1, 3)
    assert (first.topic, first.key, first.headers, first.payload) == (
        INBOX,
        "a",
        {"event-type": "admit"},
        b"{}",
    )
    assert (first.event_id, first.attempts) == ("e1", 0)
    assert await seqs(engine, limit=1) == [1]


async def test_a_row_that_waits_holds_back_its_key_and_no_other(engine):
    await fill(engine, row(1, "a", next_attempt_at=LATER), row(2, "b"), row(3, "a"), row(4, "c"), row(5, "a"))

    assert await seqs(engine) == [2, 4]
    assert await seqs(engine, now=LATER) == [1, 2, 3, 4, 5]


async def test_a_row_goes_before_the_one_of_its_key_that_waits_behind_it(engine):
    await fill(engine, row(1, "a"), row(2, "a", next_attempt_at=LATER), row(3, "a"))

    assert await seqs(engine) == [1]


async def test_a_long_queue_that_is_held_back_is_walked_over(engine):
    await fill(
        engine,
        row(1, "a", next_attempt_at=LATER),
        *(row(n, "a") for n in range(2, 2500)),
        row(2500, "b"),
        row(2501, "c"),
    )

    assert await seqs(engine, limit=2) == [2500, 2501]


async def test_one_key_in_two_topics_is_two_orders(engine):
    await fill(engine, row(1, "a", next_attempt_at=LATER), row(2, "a", topic="hub.ra9.receipts"))

    assert await seqs(engine) == [2]
    assert await seqs(engine, without_topics=["hub.ra9.receipts"]) == []


async def test_receivers_and_topics_that_have_rows_waiting(engine):
    assert await outbox.receivers_with_pending(engine) == []
    await fill(
        engine,
        row(1, receiver="RH8"),
        row(2),
        row(3, topic="hub.ra9.receipts"),
        row(4, receiver="RK9", state="sent"),
    )

    assert await outbox.receivers_with_pending(engine) == ["RA9", "RH8"]
    assert await outbox.topics_with_pending(engine, "RA9") == [INBOX, "hub.ra9.receipts"]


async def test_sent_rows_say_where_they_lie_and_are_in_the_book(engine):
    await fill(engine, row(1, "a", attempts=2, last_error="X", next_attempt_at=NOW), row(2, "b"), row(3, "c"))

    assert await outbox.mark_sent(engine, [placed(2), placed(1)], LATER) == 2

    assert await seqs(engine) == [3]
    sent = (await rows_of(engine, table))[0]
    assert (sent["state"], sent["sent_at"], sent["sent_partition"], sent["sent_offset"]) == (
        "sent",
        LATER,
        0,
        101,
    )
    assert (sent["last_error"], sent["next_attempt_at"]) == (None, None)
    (attempt,) = await rows_of(engine, delivery_attempt)
    assert (attempt["first_seq"], attempt["last_seq"], attempt["rows"], attempt["outcome"]) == (
        1,
        2,
        2,
        "sent",
    )
    entry, other = await rows_of(engine, audit_pending)
    assert (entry["code"], entry["system"], entry["trust"], entry["counterpart"]) == (
        "disclosure-sent",
        "dispatcher",
        None,
        "RA9",
    )
    assert (entry["event_id"], entry["person_id"], entry["transfer_id"]) == ("e1", "p-a", "a")
    assert entry["detail"] == {"seq": 1, "topic": INBOX, "partition": 0, "offset": 101, "attempts": 3}
    assert other["detail"]["seq"] == 2


async def test_marking_twice_says_nothing_twice(engine):
    await fill(engine, row(1))
    await outbox.mark_sent(engine, [placed(1, offset=7)], NOW)

    assert await outbox.mark_sent(engine, [placed(1, offset=9)], LATER, found=True) == 0

    assert (await count(engine, audit_pending), await count(engine, delivery_attempt)) == (1, 1)
    assert [each.offset for each in await outbox.last_sent(engine, INBOX)] == [7]


async def test_a_record_of_another_database_with_our_number_is_not_our_row(engine):
    """A backup was put back: numbers are given again, and messages that are read again have their event ids again."""
    await fill(engine, row(1), row(2), row(3), row(4))

    found = [
        placed(1, event_id="of-yesterday"),
        placed(2, topic="hub.ra9.receipts"),
        placed(3),
        placed(4, holds=b'{"said": "before the backup was put back"}'),
        placed(99),
        placed(3, event_id="of-yesterday", partition=1),
    ]
    assert await outbox.mark_sent(engine, found, NOW, found=True) == 1

    assert await seqs(engine) == [1, 2, 4]
    (attempt,) = await rows_of(engine, delivery_attempt)
    assert attempt["outcome"] == "found-sent"


async def test_marking_is_all_or_nothing(engine):
    await fill(engine, row(1))

    async with engine.connect() as connection:
        await outbox.mark_sent(connection, [placed(1)], NOW)
        await connection.rollback()

    assert await seqs(engine) == [1]
    assert await count(engine, audit_pending) == 0


async def test_more_rows_than_a_statement_takes(engine):
    await fill(engine, *(row(n, f"k{n}") for n in range(1, 1301)))
    rows = await outbox.pending(engine, "RA9", 2000, NOW)
    assert [each.seq for each in rows] == list(range(1, 1301))

    assert await outbox.mark_sent(engine, [placed(each.seq) for each in rows], NOW) == 1300
    assert await seqs(engine) == []


async def test_a_failed_attempt_is_on_its_rows_and_once_in_the_book(engine):
    await fill(engine, row(1, "a"), row(2, "b"), row(3, "c", state="sent"), row(4, "d"))
    rows = await outbox.pending(engine, "RA9", 2, NOW)

    await outbox.mark_failed(engine, rows, "KafkaConnectionError: …", LATER, NOW)
    await outbox.mark_failed(engine, rows, "TimeoutError: …", LATER, NOW)

    assert await seqs(engine) == [4]
    assert [each["outcome"] for each in await rows_of(engine, delivery_attempt)] == ["failed", "failed"]
    first, _ = await rows_of(engine, audit_pending)
    assert (first["code"], first["counterpart"]) == ("delivery-retry", "RA9")
    assert (first["detail"]["first_seq"], first["detail"]["last_seq"], first["detail"]["rows"]) == (1, 2, 2)
    (ra9,) = await outbox.waiting(engine)
    assert (ra9.receiver, ra9.rows, ra9.oldest, ra9.attempts) == ("RA9", 3, NOW, 2)
    assert (ra9.last_error, ra9.next_attempt_at) == ("TimeoutError: …", LATER)


async def test_a_row_that_was_sent_meanwhile_does_not_fail(engine):
    await fill(engine, row(1))
    rows = await outbox.pending(engine, "RA9", 1, NOW)
    await outbox.mark_sent(engine, [placed(1)], NOW)

    await outbox.mark_failed(engine, rows, "TimeoutError: …", LATER, NOW)

    (sent,) = await rows_of(engine, table)
    assert (sent["state"], sent["attempts"], sent["last_error"]) == ("sent", 0, None)


async def test_what_lies_last_in_each_partition(engine):
    await fill(engine, *(row(n, f"k{n}") for n in range(1, 6)), row(6, topic="hub.ra9.receipts"))
    assert await outbox.last_sent(engine, INBOX) == []
    places = [
        placed(1, 5, partition=0),
        placed(2, 9, partition=0),
        placed(3, 2, partition=3),
        placed(4, 0, partition=1),
    ]
    await outbox.mark_sent(engine, [*places, placed(6, 77, topic="hub.ra9.receipts")], NOW)

    last = {
        each.partition: (each.offset, each.seq, each.event_id)
        for each in await outbox.last_sent(engine, INBOX)
    }
    assert last == {0: (9, 2, "e2"), 1: (0, 4, "e4"), 3: (2, 3, "e3")}


async def test_what_the_database_does_not_know_is_no_row_of_ours(engine):
    """Found in a receiver's topic: what was sent, what waits and was sent in fact; and what a database of another day sent under
    numbers that are other messages' here, or nobody's.
    """
    await fill(engine, row(1), row(2), row(3), row(4))
    await outbox.mark_sent(engine, [placed(1)], NOW)
    found = [
        placed(1),
        placed(2),
        placed(3, event_id="another"),
        placed(4, holds=b"something else"),
        placed(9),
    ]
    assert [each.seq for each in await outbox.strangers(engine, found)] == [3, 4, 9]


async def test_a_lease_has_one_holder_until_it_runs_out_or_is_given_back(engine):
    a_while = timedelta(seconds=10)
    assert await outbox.hold_lease(engine, "x", "one", NOW + a_while, NOW)
    assert not await outbox.hold_lease(engine, "x", "two", NOW + a_while, NOW)
    assert await outbox.hold_lease(engine, "x", "one", NOW + 2 * a_while, NOW), "renewed"
    assert not await outbox.hold_lease(engine, "x", "two", NOW + 3 * a_while, NOW + a_while)
    assert await outbox.hold_lease(engine, "x", "two", NOW + 4 * a_while, NOW + 2 * a_while), "it ran out"
    await outbox.release_lease(engine, "x", "one")
    assert not await outbox.hold_lease(engine, "x", "one", NOW + 5 * a_while, NOW + 2 * a_while), (
        "not ours to give back"
    )
    await outbox.release_lease(engine, "x", "two")
    assert await outbox.hold_lease(engine, "x", "one", NOW + 5 * a_while, NOW + 2 * a_while)


async def test_nothing_waits(engine):
    await fill(engine, row(1))
    async with engine.begin() as connection:
        await connection.execute(update(table).values(state="sent"))

    assert await outbox.waiting(engine) == []


async def test_what_is_sent_again_goes_by_the_order_of_sending(engine):
    """Number 2 was sent before number 1: whoever has read 2 lacks 1. What was fetched or posted never lay in a topic."""
    await fill(engine, *(row(n, f"t{n}") for n in range(1, 6)))
    await outbox.mark_sent(engine, [placed(2, 0)], NOW)
    await outbox.mark_sent(engine, [placed(1, 1), placed(3, 2)], LATER)
    await outbox.fetched(engine, "RA9", [4], "client", LATER)
    await outbox.mark_sent(engine, [placed(5, 5, partition=-1)], LATER)

    async def after(number):
        return [each.seq for each in await resending.sent_after(engine, "RA9", [INBOX], number, NOW)]

    assert await after(2) == [1, 3]
    assert await after(1) == [3]
    assert await after(0) == [2, 1, 3]
    with pytest.raises(NotFoundError):
        await after(77)
    await outbox.forget_places(engine, "RA9", [placed(3, 2)], LATER)
    assert await after(0) == [2, 1, 3]
    assert await outbox.last_sent(engine, INBOX) == []


async def test_two_people_who_send_again_at_once_send_once(engine):
    await fill(engine, row(1), row(2))
    await outbox.mark_sent(engine, [placed(1), placed(2)], NOW)
    gone = await resending.sent_after(engine, "RA9", [INBOX], 0, NOW)
    more = ("RA9", [INBOX], gone, "made anew", LATER, "duty")
    assert await resending.send_again(engine, *more) == 2
    await outbox.mark_sent(engine, [placed(1), placed(2)], LATER)
    assert await resending.send_again(engine, *more) == 0
    assert await seqs(engine) == []
