"""The clock as a process, on real Kafka and PostgreSQL: it rings once, whoever dies."""

import asyncio
import signal
from collections import Counter
from datetime import timedelta

import asyncpg
import orjson
import pytest

from hub.demo.people import patient_number
from tests.live.hub_process import live_hub, now
from tests.live.test_topics_made_anew import make_anew

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]


@pytest.fixture
def hub(tmp_path, bootstrap_servers, database_url):
    with live_hub(tmp_path, bootstrap_servers, database_url) as found:
        yield found


async def test_a_request_that_waited_while_the_clock_was_down_is_told_once_at_the_level_it_has_reached(hub):
    """Asked 35 minutes ago in an emergency: seen is overdue at its last level, decided at its first."""
    one, two = hub.one, hub.two
    asked_at = now() - timedelta(minutes=35)
    request = one.asks_to_transfer(
        patient_number(1), to=two.profile.ods, request_number="R1", encounter_number="E1", at=asked_at,
        priority="stat",
    )  # fmt: skip
    hub.start("worker")
    hub.start("dispatcher")
    await hub.produce((one, request))
    await hub.until_taken_in(1)
    await asyncio.sleep(1.5)
    for clock in [hub.start("clock", HUB_CLOCK_POLL_S="0.1") for _ in range(2)]:
        await asyncio.sleep(0.7)
        clock.process.send_signal(signal.SIGKILL)
    hub.start("clock", HUB_CLOCK_POLL_S="0.1")

    async def both_rang():
        rows = await hub.rows("select clock from transfer_history where clock is not null")
        return rows if len(rows) >= 2 else None

    await hub.until(both_rang, "both clocks have rung")
    await asyncio.sleep(2)
    await hub.until_delivered()

    rows = await hub.rows("select clock, occurred_at from transfer_history where clock is not null")
    assert {row["clock"]: row["occurred_at"] - asked_at for row in rows} == {
        "view:3": timedelta(minutes=20), "decision:1": timedelta(minutes=30),
    }  # fmt: skip
    assert len(rows) == 2
    for epr in (one, two):
        told = Counter(dict(r.headers)["event-type"].decode() for r in await hub.on(epr.profile.inbox_topic))
        assert told["transfer.escalated"] == 2
    inbox = await hub.on(two.profile.inbox_topic)
    record = next(each for each in inbox if dict(each.headers)["source-ods"] == b"hub")
    note = orjson.loads(record.value)["entry"][1]["resource"]["note"][0]["text"]
    assert note.endswith("Phone as well")


async def test_a_withdrawal_that_overtook_its_request_is_taken_in_by_the_clock(hub):
    one, two = hub.one, hub.two
    names = {"to": two.profile.ods, "request_number": "R2", "at": now()}
    request = one.asks_to_transfer(patient_number(2), encounter_number="E2", **names)
    for service in ("worker", "dispatcher"):
        hub.start(service)
    for _ in range(2):
        hub.start("clock", HUB_CLOCK_POLL_S="0.2")
    await hub.produce((one, one.cancels_request(patient_number(2), **names)))
    await hub.until_taken_in(1)
    await hub.produce((one, request))

    async def withdrawn():
        return [r for r in await hub.rows("select state from transfer") if r["state"] == "cancelled"]

    await hub.until(withdrawn, "the withdrawal was taken in")
    await hub.until_delivered()
    told = [dict(r.headers)["event-type"].decode() for r in await hub.on(two.profile.inbox_topic)]
    assert told == ["transfer.requested", "transfer.cancelled"]
    replayed = await hub.audit("code = 'msg-released'")
    assert len(replayed) == 1


async def test_the_answer_that_lies_in_kafka_is_read_before_a_clock_says_that_nobody_answered(hub):
    """Everything was down for hours; a clock that comes back before the workers waits for them."""
    one, two = hub.one, hub.two
    asked_at = now() - timedelta(hours=3)
    names = {"request_number": "R3"}
    request = one.asks_to_transfer(
        patient_number(3), to=two.profile.ods, encounter_number="E3", at=asked_at, priority="stat", **names
    )
    worker = hub.start("worker")
    await hub.produce((one, request))
    await hub.until_taken_in(1)
    worker.stop()
    accepted = two.answers(
        patient_number(3), "accepted", requester=one.profile, at=asked_at + timedelta(minutes=5), **names
    )
    await hub.produce((two, accepted))
    # The settling after news is over: but for the answer that lies there the clock would ring now.
    await asyncio.sleep(2)
    hub.start("clock", HUB_CLOCK_POLL_S="0.2")
    await asyncio.sleep(5)
    assert await hub.rows("select clock from transfer_history where clock is not null") == []
    hub.start("worker")
    await hub.until_taken_in(2)

    async def rang():
        return await hub.rows("select clock, because from transfer_history where clock is not null")

    rows = await hub.until(rang, "the clock of what is waited for now has rung")
    assert {row["clock"].partition(":")[0] for row in rows} <= {"bed", "moved"}
    assert not any("not read" in row["because"] for row in rows)


async def test_what_lies_in_a_topic_that_was_made_anew_is_not_heard(hub):
    """Nobody reads it before a person says from where; its end is below the position, and all the same it is not all read."""
    one, two = hub.one, hub.two
    topic, names = two.profile.events_topic, {"requester": one.profile, "request_number": "R4"}
    asked_at = now() - timedelta(minutes=35)
    request = one.asks_to_transfer(
        patient_number(4), to=two.profile.ods, request_number="R4", encounter_number="E4", at=asked_at, priority="stat"
    )  # fmt: skip
    worker = hub.start("worker")
    await hub.produce((one, request))
    told = (
        two.tells_of_patient("A31", patient_number(4), at=asked_at + timedelta(seconds=n)) for n in range(4)
    )
    await hub.produce(*((two, each) for each in told))
    await hub.until_taken_in(5)
    worker.stop()
    await make_anew(hub, topic, partitions=3)
    accepted = two.answers(patient_number(4), "accepted", at=asked_at + timedelta(minutes=5), **names)
    await hub.produce((two, accepted))
    hub.start("clock", HUB_CLOCK_POLL_S="0.2")

    async def rang():
        return await hub.rows("select because from transfer_history where clock is not null")

    rows = await hub.until(rang, "the clock has rung")
    assert all(f"not read all that {two.profile.ods} sent" in row["because"] for row in rows)


async def test_a_patient_whose_record_somebody_holds_keeps_no_other_from_ringing(hub):
    """One whose clock has run out, and one who is only counted anew after the start. The first rings when the record is let go."""
    one, two = hub.one, hub.two
    asked_at = now()
    requests = [
        one.asks_to_transfer(
            patient_number(n), to=two.profile.ods, request_number=f"R{n}", encounter_number=f"E{n}",
            at=asked_at - timedelta(minutes=waits), priority="stat",
        )
        for n, waits in enumerate((35, 35, 0))
    ]  # fmt: skip
    hub.start("worker")
    await hub.produce(*((one, each) for each in requests))
    await hub.until_taken_in(3)
    [_, *held] = await hub.rows(
        "select person_id, transfer_id from transfer order by requested_at, transfer_id"
    )

    def rung(transfers):
        async def look():
            rows = await hub.rows("select distinct transfer_id from transfer_history where clock is not null")
            return len(rows) == transfers

        return look

    holder = await asyncpg.connect(hub.database_url.replace("+asyncpg", ""))
    try:
        await holder.execute("begin")
        for each in held:
            await holder.execute("select * from person where person_id = $1 for update", each["person_id"])
        hub.start("clock", HUB_CLOCK_POLL_S="0.1")
        await hub.until(rung(1), "the one whose record is free has rung")
    finally:
        await holder.close()
    await hub.until(rung(2), "the other has rung")
