"""A batch is taken in once or not at all, whatever dies when."""

from dataclasses import replace

import pytest
from sqlalchemy.exc import OperationalError

from hub.demo.people import FENNIMOSS, MARSHWIGGLE, OAKENSHADE, QUILLFEATHER
from hub.domain.rejection import Disposition
from hub.store import queries, unit_of_work
from hub.store.intake import StoreUnavailableError

TOPIC = "epr.ra9.events"


def batch(torbay):
    asked = [
        torbay.epr.asks_to_transfer(p, to="RH8", request_number=f"TR-{n}", encounter_number=f"V-{n}", at=torbay.hub.clock())
        for n, p in enumerate((MARSHWIGGLE, QUILLFEATHER))
    ]  # fmt: skip
    return [torbay.record(message) for message in (*asked, b"no")]


async def test_the_same_batch_again_is_skipped_by_position(hub, torbay):
    records = batch(torbay)
    first = await hub.take(records)
    before = await hub.counts()
    again = await hub.take(records)

    assert first.dispositions == {Disposition.ACCEPTED: 2, Disposition.QUARANTINED: 1}
    assert again.dispositions == {}
    assert again.positions == first.positions == {(TOPIC, 0): 3}
    assert await hub.counts() == before


async def test_an_overlapping_batch_takes_only_what_is_new(hub, torbay):
    records = batch(torbay)
    await hub.take(records[:2])
    taken = await hub.take(records[1:])

    assert taken.dispositions == {Disposition.QUARANTINED: 1}
    assert await hub.position("RA9") == 3


async def set_back(hub, topic=TOPIC):
    await queries.set_position(hub.engine, topic, 0, 0, "to be sure", hub.clock(), "duty")


async def test_a_position_that_is_set_back_moves_over_what_was_taken_in_before(hub, torbay):
    """Also where nothing new is in the batch: the next one would seem to come behind a gap."""
    records = batch(torbay)
    await hub.take(records)
    await set_back(hub)
    before = await hub.counts()
    again = await hub.take(records[:2])
    assert (again.dispositions, again.positions) == ({}, {(TOPIC, 0): 2})
    assert await hub.position("RA9") == 2
    assert await hub.counts() == before


async def test_what_comes_at_the_time_and_place_of_another_is_another_message(hub, torbay):
    """A topic made anew, whose producer gives all records one time: they have the event ids of those that are gone."""
    old = batch(torbay)
    await hub.take(old)
    await set_back(hub)
    others = [
        torbay.epr.asks_to_transfer(p, to="RH8", request_number=f"TR-9{n}", encounter_number=f"V-9{n}", at=hub.clock())
        for n, p in enumerate((FENNIMOSS, OAKENSHADE))
    ]  # fmt: skip
    new = [
        replace(record, raw=torbay.record(message).raw, headers=message.headers)
        for record, message in zip(old, others, strict=False)
    ]
    for expected in ({Disposition.ACCEPTED: 2}, {}):
        await set_back(hub)
        taken = await hub.take(new)
        assert (taken.dispositions, taken.positions) == (expected, {(TOPIC, 0): 2})
    assert await hub.told("RH8") == ["transfer.requested"] * 4


async def test_a_position_that_is_set_back_does_not_move_past_what_a_brake_left_undone(hub, torbay):
    asked = batch(torbay)[0]
    bad, undone, after = (torbay.record(b"no %d" % n) for n in range(3))
    await hub.take([asked, after])
    await set_back(hub)
    hub.mend(in_a_row_max=1)
    taken = await hub.take([asked, bad, undone, after])
    assert taken.dispositions == {Disposition.QUARANTINED: 1}
    assert taken.positions == {(TOPIC, 0): bad.position.offset + 1}


@pytest.mark.parametrize("where", ["write_effects", "_write_brakes", "_write_positions", "load_known"])
@pytest.mark.parametrize("late", [False, True])
async def test_a_failure_inside_the_transaction_leaves_nothing(hub, torbay, monkeypatch, where, late):
    """Before the step or right after it: no message, no outbox row, no audit, no position."""
    records = batch(torbay)
    right = getattr(unit_of_work, where)

    async def wrong(*args, **kwargs):
        if late:
            await right(*args, **kwargs)
        raise OperationalError("INSERT …", {}, Exception(MARSHWIGGLE.family))

    before = await hub.counts()
    with monkeypatch.context() as patched:
        patched.setattr(unit_of_work, where, wrong)
        with pytest.raises(StoreUnavailableError) as raised:
            await hub.take(records)
    assert MARSHWIGGLE.family not in str(raised.value)
    assert await hub.counts() == before
    assert await hub.position("RA9") is None

    taken = await hub.take(records)
    assert sum(taken.dispositions.values()) == 3
    assert await hub.told("RH8") == ["transfer.requested"] * 2


async def test_a_fault_of_ours_in_the_store_leaves_nothing_and_is_not_hidden(hub, torbay, monkeypatch):
    async def wrong(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(unit_of_work, "_write_positions", wrong)
    before = await hub.counts()
    with pytest.raises(ZeroDivisionError):
        await hub.take(batch(torbay))
    assert await hub.counts() == before


async def test_next_after_moves_past_a_gap(hub, torbay):
    """Offsets 3 to 6 are transaction markers: no message stands there, and none may be waited for."""
    records = batch(torbay)
    taken = await hub.take(records, next_after={(TOPIC, 0): 7})

    assert taken.positions == {(TOPIC, 0): 7}
    assert await hub.position("RA9") == 7


async def test_next_after_without_a_message(hub, torbay):
    await hub.take(batch(torbay))
    taken = await hub.take([], next_after={(TOPIC, 0): 9})

    assert (taken.dispositions, await hub.position("RA9")) == ({}, 9)


async def test_positions_only_move_forward(hub, torbay):
    records = batch(torbay)
    await hub.take(records)
    await hub.take(records[:1], next_after={(TOPIC, 0): 1})

    assert await hub.position("RA9") == 3


async def test_partitions_move_apart(hub, torbay):
    one, two = torbay.record(b"no", partition=0), torbay.record(b"no", partition=1, offset=40)
    await hub.take([one, two])

    assert (await hub.position("RA9", 0), await hub.position("RA9", 1)) == (1, 41)


async def test_the_same_batch_gives_the_same_bytes_on_a_second_hub(hub, torbay, monkeypatch):
    """A failed attempt and its repetition name everything alike: ids are hashes of what they stand for."""
    records = batch(torbay)
    seen = []
    right = unit_of_work.write_effects

    async def watch(connection, effects, now, clocks, **more):
        seen.append([(out.topic, out.key, out.payload) for each in effects for out in each.outbox])
        await right(connection, effects, now, clocks, **more)
        if len(seen) == 1:
            raise OperationalError("COMMIT", {}, Exception)

    monkeypatch.setattr(unit_of_work, "write_effects", watch)
    with pytest.raises(StoreUnavailableError):
        await hub.take(records)
    await hub.take(records)
    assert seen[0] == seen[1] != []
