"""Patients who wait too long: clocks are moved by hand, and both hospitals are told."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError
from sqlalchemy import update

from hub.demo.people import MARSHWIGGLE, OAKENSHADE, QUILLFEATHER
from hub.domain.clocks import Clock, Clocks, Pace
from hub.services.clock import ClockService
from hub.store import queries
from hub.store import tables as t
from hub.store.clocks import NotExpiredError, expire_transfer
from hub.trusts import load_clocks
from tests.stories.conftest import SCHEMAS, TRUSTS
from tests.stories.test_journeys import accepted, answer, ask, discharge, on_the_way

CLOCKS = load_clocks(SCHEMAS, TRUSTS)


@pytest.fixture
def clock(hub):
    """A clock that looks at the time in the hub's hand."""
    return ClockService(hub.engine, hub.journey, hub.clock, hub.log, poll_s=1)


async def due(hub):
    row = (await hub.rows(t.transfer))[0]
    return row["due_clock"], row["due_at"]


async def test_an_emergency_that_nobody_looks_at(hub, torbay, clock):
    """View after 10 minutes, decision after 30; then louder, to more people, and never an end."""
    transfer = await ask(torbay, QUILLFEATHER, priority="stat")
    asked = hub.clock()
    assert await due(hub) == ("view:1", asked + timedelta(minutes=10))
    heard = []
    for _ in range(80):
        hub.clock.later(minutes=1)
        while await clock.once():
            row = (await hub.rows(t.transfer_history))[-1]
            heard.append((row["clock"], (row["occurred_at"] - asked).total_seconds() / 60))

    assert sorted(heard) == [
        ("decision:1", 30), ("decision:2", 45), ("decision:3", 60), ("view:1", 10), ("view:2", 15), ("view:3", 20),
    ]  # fmt: skip
    assert await hub.state(transfer) == "requested"
    assert (await hub.told("RA9")) == ["transfer.escalated"] * 6
    note = (await hub.inbox("RH8"))[1].of("Task")["note"][0]["text"]
    assert (
        note == "RH8 has not looked at the request in time. Level 1: RH8's duty or bed manager. Phone as well"
    )
    assert len(await hub.audit(code="timer-escalated")) == 6
    assert await due(hub) == (None, None)


async def test_an_answer_stops_the_clock(hub, torbay, exeter, clock):
    await ask(torbay, QUILLFEATHER, priority="stat")
    hub.clock.later(minutes=9)
    await answer(exeter, "received", QUILLFEATHER, torbay)
    hub.clock.later(minutes=10)

    assert await clock.once() == 0
    assert (await due(hub))[0] == "decision:1"


async def test_a_bed_that_is_held_no_longer_is_given_back(hub, torbay, exeter, clock):
    transfer = await accepted(hub, torbay, exeter, MARSHWIGGLE)
    assert (await due(hub))[0] == "bed-hold:1"
    hub.clock.later(hours=13)
    assert await clock.once() == 1

    assert await hub.state(transfer) == "awaiting-bed"
    assert (await hub.told("RH8"))[-1] == (await hub.told("RA9"))[-1] == "transfer.bed.released"
    await answer(
        exeter, "ready", MARSHWIGGLE, torbay, until=hub.clock() + timedelta(minutes=45), at=hub.clock()
    )
    name, at = await due(hub)
    assert (name, at - hub.clock()) == ("bed-hold:1", timedelta(minutes=44))


async def test_a_bed_that_is_said_to_be_held_until_before_it_was_given_is_held_as_long_as_any(
    hub, torbay, exeter, clock
):
    """The end of yesterday's hold, left in the message: the hub would ring without end, and tell both hospitals each time."""
    transfer = await accepted(hub, torbay, exeter, MARSHWIGGLE)
    given = hub.clock.later(hours=1)
    for until in (given - timedelta(hours=3), given):
        await answer(exeter, "ready", MARSHWIGGLE, torbay, until=until, at=given)
        assert await due(hub) == ("bed-hold:1", given + timedelta(hours=12))
    hub.clock.later(hours=13)
    assert [await clock.once(), await clock.once()] == [1, 0]

    assert await hub.state(transfer) == "awaiting-bed"
    assert (await hub.told("RH8")).count("transfer.bed.released") == 1


NEVER = [datetime(2099, 12, 31, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)]


@pytest.mark.parametrize("until", NEVER)
async def test_a_journey_that_is_to_end_at_the_end_of_days_may_last_as_long_as_any(
    hub, torbay, exeter, clock, until
):
    """What a system writes where it knows no end. No worker could take it in: twice as long is no time any more."""
    await accepted(hub, torbay, exeter, MARSHWIGGLE)
    left = hub.clock()
    booked = await answer(
        torbay, "ready", MARSHWIGGLE, torbay, business_status="transport-booked", until=until, at=left
    )
    gone = await answer(torbay, "in-progress", MARSHWIGGLE, torbay, until=until, at=left)
    assert (str(booked), str(gone)) == ("accepted", "accepted")
    assert await due(hub) == ("arrival:1", left + timedelta(hours=6))
    hub.clock.later(hours=30)
    assert await clock.once() == 1


@pytest.mark.parametrize("until", NEVER)
async def test_a_bed_that_is_held_till_the_end_of_days_is_held_as_long_as_any(hub, torbay, exeter, until):
    await accepted(hub, torbay, exeter, MARSHWIGGLE)
    given = hub.clock.later(hours=1)
    await answer(exeter, "ready", MARSHWIGGLE, torbay, until=until, at=given)
    assert await due(hub) == ("bed-hold:1", given + timedelta(hours=12))


async def test_a_departure_that_was_told_late_takes_the_release_back(hub, torbay, exeter, clock):
    transfer = await accepted(hub, torbay, exeter, MARSHWIGGLE)
    left_at = hub.clock.later(hours=1)
    hub.clock.later(hours=12)
    await clock.once()
    assert await hub.state(transfer) == "awaiting-bed"
    await discharge(torbay, MARSHWIGGLE, at=left_at)

    assert await hub.state(transfer) == "in-transit"


async def test_a_patient_who_does_not_arrive(hub, torbay, exeter, clock):
    await on_the_way(hub, torbay, exeter, MARSHWIGGLE)
    hub.clock.later(hours=6, minutes=1)

    assert await clock.once() == 1
    assert "has not arrived at RH8 in time" in (await hub.inbox("RA9"))[-1].of("Task")["note"][0]["text"]


async def test_repatriation_within_48_hours(hub, torbay, exeter, clock):
    await accepted(hub, torbay, exeter, OAKENSHADE, kind="repatriation")
    rung = []
    for _ in range(50):
        hub.clock.later(hours=1)
        while await clock.once():
            rung.append((await hub.rows(t.transfer_history))[-1]["clock"])

    assert rung == ["bed-hold:1", "moved:1", "bed:1"]


async def test_after_an_outage_the_level_that_is_reached_is_told_and_not_each_before_it(hub, torbay, clock):
    await ask(torbay, QUILLFEATHER, priority="stat")
    hub.clock.later(hours=5)
    rung = 0
    while await clock.once():
        rung += 1

    assert rung == 2
    clocks = [row["clock"] for row in await hub.rows(t.transfer_history)][1:]
    assert sorted(clocks) == ["decision:3", "view:3"]


async def test_a_transfer_that_cannot_be_rung_keeps_no_other_from_ringing(hub, torbay, clock):
    """Its history holds what this version does not know. It is said, not every few seconds, and rung when it is mended."""
    faulty = await ask(torbay, QUILLFEATHER, priority="stat")
    well = await ask(torbay, MARSHWIGGLE, number="TR-2", stay="V-2", priority="stat")
    await says(hub, faulty, step="teleport")
    hub.clock.later(minutes=10)
    for _ in range(3):
        await clock.once()
        hub.clock.later(seconds=5)

    assert [row["transfer_id"] for row in await hub.rows(t.transfer_history) if row["clock"]] == [well]
    said = [line for line in hub.log.lines if line["event"] == "clock.cannot-ring"]
    assert [line["transfer_id"] for line in said] == [faulty]
    await says(hub, faulty, step="request")
    hub.clock.later(minutes=10)
    await clock.once()
    assert {row["transfer_id"] for row in await hub.rows(t.transfer_history) if row["clock"]} == {
        faulty,
        well,
    }


async def says(hub, transfer, **values):
    """Put something else into what is known of a transfer."""
    async with hub.engine.begin() as connection:
        where = t.transfer_history.c.transfer_id == transfer
        await connection.execute(update(t.transfer_history).where(where).values(**values))


async def test_a_backlog_does_not_raise_an_alarm_for_what_it_holds_the_answer_to(hub, torbay, exeter, clock):
    asked_at = hub.clock()
    hub.clock.later(hours=9)
    await ask(torbay, QUILLFEATHER, priority="stat", at=asked_at)
    assert await clock.once() == 0
    await answer(exeter, "accepted", QUILLFEATHER, torbay, at=asked_at + timedelta(minutes=9))
    assert (await due(hub))[0] == "bed:1"


@pytest.mark.parametrize(
    "asked", [datetime(2026, 3, 28, 23, 30, tzinfo=UTC), datetime(2026, 10, 24, 23, 30, tzinfo=UTC)]
)
async def test_the_clocks_that_change_at_night_change_no_limit(hub, torbay, clock, asked):
    """Four hours are four hours, whether the night has 23 or 25."""
    hub.clock.now = asked
    await ask(torbay, QUILLFEATHER, priority="urgent")
    hub.clock.later(hours=1, minutes=59)
    assert await clock.once() == 0
    hub.clock.later(minutes=2)
    assert await clock.once() == 1
    assert (await hub.rows(t.transfer_history))[-1]["occurred_at"] == asked + timedelta(hours=2)


async def test_only_a_person_closes_what_nobody_acts_on(hub, torbay, exeter, clock):
    transfer = await ask(torbay, QUILLFEATHER, priority="stat")
    with pytest.raises(NotExpiredError):
        await expire_transfer(hub.engine, transfer, "x", CLOCKS, TRUSTS, hub.clock(), "ops-1")
    hub.clock.later(hours=5)
    while await clock.once():
        pass
    await expire_transfer(
        hub.engine, transfer, "both wards were phoned", CLOCKS, TRUSTS, hub.clock(), "ops-1"
    )
    assert [row["user_id"] for row in await hub.audit(code="expired")] == ["ops-1"]

    assert await hub.state(transfer) == "expired"
    assert (await hub.told("RA9"))[-1] == (await hub.told("RH8"))[-1] == "transfer.expired"
    hub.clock.later(minutes=1)
    assert await torbay.asks_to_transfer(
        QUILLFEATHER, to="RH8", request_number="TR-9", encounter_number="V-1"
    )


async def test_a_level_that_was_reached_before_an_answer_closes_nothing(hub, torbay, exeter, clock):
    """Nobody decided for hours; then Exeter accepted, minutes ago, and looks for a bed."""
    transfer = await ask(torbay, QUILLFEATHER, priority="stat")
    hub.clock.later(hours=3)
    while await clock.once():
        pass
    await answer(exeter, "accepted", QUILLFEATHER, torbay, at=hub.clock())
    assert "decision:3" in {row["clock"] for row in await hub.rows(t.transfer_history)}
    with pytest.raises(NotExpiredError):
        await expire_transfer(hub.engine, transfer, "x", CLOCKS, TRUSTS, hub.clock(), "ops-1")
    assert (await hub.state(transfer), await hub.audit(code="expired")) == ("accepted", [])

    hub.clock.later(hours=20)
    while await clock.once():
        pass
    await expire_transfer(hub.engine, transfer, "no bed", CLOCKS, TRUSTS, hub.clock(), "ops-1")
    assert await hub.state(transfer) == "expired"


@pytest.mark.parametrize("state", ["draft", "rejected", "info-requested"])
async def test_what_no_clock_watches_is_closed_by_a_person_when_a_decision_would_be_at_its_third_level(
    hub, torbay, exeter, clock, state
):
    """A draft, a refusal, a question that the sender does not answer: for ever open, they would be in the way of the next request."""
    asked = hub.clock()
    transfer = await ask(torbay, QUILLFEATHER, priority="stat", draft=state == "draft")
    if state != "draft":
        status, reason = {"rejected": ("rejected", "RRNA"), "info-requested": ("on-hold", None)}[state]
        await answer(exeter, status, QUILLFEATHER, torbay, at=asked, reason=reason)
    assert (await hub.state(transfer), (await due(hub))[1]) == (state, None)
    hub.clock.now = asked + timedelta(minutes=59)
    with pytest.raises(NotExpiredError):
        await expire_transfer(hub.engine, transfer, "x", CLOCKS, TRUSTS, hub.clock(), "ops-1")
    hub.clock.later(minutes=1)
    await expire_transfer(hub.engine, transfer, "phoned", CLOCKS, TRUSTS, hub.clock(), "ops-1")
    assert await hub.state(transfer) == "expired"
    assert (await hub.told("RH8"))[-1:] == ([] if state == "draft" else ["transfer.expired"])


async def test_a_ladder_of_more_levels_is_closed_at_its_fourth_too(hub, torbay):
    """After an outage the third is passed over."""
    clocks = CLOCKS.model_copy(update={"ladder": (1.0, 1.5, 2.0, 3.0)})
    clock = ClockService(hub.engine, replace(hub.journey, clocks=clocks), hub.clock, hub.log, poll_s=1)
    transfer = await ask(torbay, QUILLFEATHER, priority="stat")
    hub.clock.later(hours=5)
    while await clock.once():
        pass
    await expire_transfer(hub.engine, transfer, "phoned", clocks, TRUSTS, hub.clock(), "ops-1")
    assert await hub.state(transfer) == "expired"


@pytest.mark.parametrize("before", ["longer", "none"])
async def test_shorter_limits_are_those_of_transfers_that_wait_already(hub, torbay, before):
    """The limits were changed and the clock was started anew; nothing is heard of the transfer meanwhile."""
    asked = hub.clock()
    limit = {Clock.VIEW: timedelta(hours=9)} if before == "longer" else {}
    of_then = CLOCKS.model_copy(update={"limits": {Pace.STAT: limit}})
    hub.journey = replace(hub.journey, clocks=of_then)
    hub.mend()
    await ask(torbay, QUILLFEATHER, priority="stat")
    for number in range(2, 104):
        await ask(torbay, QUILLFEATHER, number=f"TR-{number}", stay=f"V-{number}", priority="stat")
    assert (await due(hub))[1] == (asked + timedelta(hours=9) if before == "longer" else None)

    clock = ClockService(
        hub.engine, replace(hub.journey, clocks=CLOCKS), hub.clock, hub.log, poll_s=3600, sealing_late_s=9999
    )
    hub.clock.later(minutes=11)
    stop = asyncio.Event()
    running = asyncio.create_task(clock.run(stop))
    async with asyncio.timeout(20):
        while len([line for line in hub.log.lines if line["event"] == "clock.rang"]) < 103:
            assert not running.done()
            await asyncio.sleep(0.05)
    stop.set()
    await running
    assert {row["due_clock"] for row in await hub.rows(t.transfer)} == {"view:2"}
    assert [line["transfers"] for line in hub.log.lines if line["event"] == "clock.recounted"] == [100, 3]


async def test_a_route_has_limits_of_its_own():
    limits = {Pace.STAT: {Clock.DECISION: timedelta(minutes=15)}}
    clocks = Clocks.model_validate(
        {
            **CLOCKS.model_dump(),
            "routes": [
                {"sender": "RA9", "receiver": "RH8", "limits": limits},
                {
                    "sender": "RA9",
                    "receiver": "RH8",
                    "limits": {Pace.STAT: {Clock.DECISION: timedelta(hours=1)}},
                },
                {"sender": "RH8", "receiver": "RA9", "limits": {Pace.STAT: {Clock.VIEW: timedelta(hours=1)}}},
            ],
        }
    )

    class Stat:
        sender, receiver, kind, priority = "RA9", "RH8", None, "stat"

    limits_of_this_route = clocks.limits_of(Stat)
    assert limits_of_this_route[Clock.DECISION] == timedelta(minutes=15)
    assert limits_of_this_route[Clock.VIEW] == timedelta(minutes=10)


@pytest.mark.parametrize("limit", ["PT0S", "-PT10M"])
def test_a_limit_that_is_over_before_it_begins_is_refused(limit):
    """What rings before its own beginning would not be known to have rung."""
    for said in (
        {"limits": {"stat": {"view": limit}}},
        {"after_expected_end": {"stat": limit}},
        {"routes": [{"sender": "RA9", "receiver": "RH8", "limits": {"stat": {"view": limit}}}]},
    ):
        with pytest.raises(ValidationError):
            Clocks.model_validate(said)


async def test_a_hospital_that_is_given_nothing_for_a_minute_is_an_incident_until_it_is(hub, torbay):
    """The technical acknowledgement: sixty seconds by Kafka."""
    clock = ClockService(hub.engine, hub.journey, hub.clock, hub.log, poll_s=5)
    await torbay.asks_to_transfer(MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1")
    hub.clock.later(seconds=59)
    assert await clock.look_at_deliveries() == []
    hub.clock.later(seconds=1)
    assert await clock.look_at_deliveries() == ["RA9", "RH8"]
    assert await clock.look_at_deliveries() == []

    async with hub.engine.begin() as connection:
        given = update(t.outbox).where(t.outbox.c.receiver == "RH8").values(state="sent")
        await connection.execute(given)
    hub.clock.later(seconds=5)
    assert await clock.look_at_deliveries() == []
    rows = await queries.incidents(hub.engine, closed=True)
    assert {row["subject"]: (row["kind"], row["closed_because"]) for row in rows} == {
        "RA9": ("delivery-late", None), "RH8": ("delivery-late", "delivered"),
    }  # fmt: skip
    assert [len(await hub.audit(code=code)) for code in ("incident-opened", "incident-closed")] == [2, 1]
