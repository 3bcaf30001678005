"""Messages that wait: seen, mended, run again; and the brake for a trust of which everything waits."""

import asyncio
import getpass
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from hub.cli import app
from hub.commands.terminal import settings_now
from hub.demo.people import MARSHWIGGLE, QUILLFEATHER, THISTLEWICK
from hub.domain.rejection import Disposition
from hub.governance.reports import who_has_seen
from hub.journey import decide as journey_decide
from hub.services.clock import ClockService, is_due
from hub.store import queries
from hub.store import tables as t
from hub.store.incidents import open_incident
from hub.store.unit_of_work import NotQuarantinedError


def ask(torbay, patient=MARSHWIGGLE, number="TR-1"):
    return torbay.epr.asks_to_transfer(
        patient, to="RH8", request_number=number, encounter_number=f"V-{number}", at=torbay.hub.clock()
    )


@pytest.fixture
def not_yet_joined(hub):
    """Exeter joins in the middle of the story."""
    hub.mend(trusts=["RA9", "RK9"])
    return hub


async def test_what_waits_is_listed_with_who_mends_it_and_without_content(not_yet_joined, torbay, plymouth):
    hub = not_yet_joined
    outcome = await torbay.send(ask(torbay))
    await plymouth.send(b"no")
    listed = await queries.quarantined(hub.engine, trust="RA9")
    shown, raw = await queries.message(hub.engine, outcome.event_id)

    assert [(r["event_id"], r["why"], r["owner"], r["retries"]) for r in listed] == [
        (outcome.event_id, "receiver-unknown", "hub team", 0)
    ]
    assert [r["trust"] for r in await queries.quarantined(hub.engine, why=["not-json"])] == ["RK9"]
    assert "Marshwiggle" not in str(listed) + str(shown)
    assert (raw, shown["at"]) == (ask(torbay).body, "MessageHeader.destination.receiver")
    assert "wait until it has joined" in shown["advice"]


async def test_a_retry_after_the_mend_runs_the_same_bytes_and_delivers_once(not_yet_joined, torbay):
    hub = not_yet_joined
    waiting = await torbay.send(ask(torbay))
    assert waiting.why == "receiver-unknown"
    hub.clock.later(hours=2)
    hub.mend(trusts=["RA9", "RH8", "RK9"])
    effects = await hub.unit.retry(waiting.event_id, operator="ops-1")

    assert effects.disposition is Disposition.ACCEPTED
    assert effects.received.raw == ask_bytes(torbay, waiting)
    now = await hub.outcome(waiting.event_id)
    assert (str(now), now.row["retries"], now.row["retried_at"]) == ("accepted", 1, hub.clock())
    assert await hub.told("RH8") == ["transfer.requested"]
    assert await hub.states(now.transfer_id) == ["requested"]
    replayed = (await hub.audit(code="msg-released"))[0]
    assert (replayed["user_id"], replayed["detail"]) == ("ops-1", {"disposition": "accepted"})
    assert await queries.quarantined(hub.engine) == []
    with pytest.raises(NotQuarantinedError):
        await hub.unit.retry(waiting.event_id, operator="ops-1")
    assert await hub.told("RH8") == ["transfer.requested"]
    again = await torbay.send(ask_at(torbay, waiting))
    assert again.disposition == "duplicate"
    assert again.receipt.headers["disposition"] == "duplicate"


def ask_at(torbay, waiting):
    return torbay.epr.asks_to_transfer(
        MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-TR-1", at=waiting.row["received_at"]
    )


def ask_bytes(torbay, waiting):
    return ask_at(torbay, waiting).body


async def test_a_retry_before_the_mend_waits_on(not_yet_joined, torbay):
    hub = not_yet_joined
    waiting = await torbay.send(ask(torbay))
    effects = await hub.unit.retry(waiting.event_id, operator="ops-1")

    assert (effects.disposition, effects.rejection.why) == ("quarantined", "receiver-unknown")
    assert [r["retries"] for r in await queries.quarantined(hub.engine)] == [1]


@pytest.mark.parametrize("what", ["accepted", "rejected", "duplicate", "unknown"])
async def test_a_retry_of_anything_else_fails_and_changes_nothing(hub, torbay, what):
    asked = await torbay.send(ask(torbay))
    again = await torbay.send(ask(torbay))
    refused = await torbay.answers(MARSHWIGGLE, "accepted", requester=torbay.profile, request_number="TR-1")
    assert refused.disposition == "rejected"
    event_id = {
        "accepted": asked.event_id,
        "rejected": refused.event_id,
        "duplicate": again.event_id,
        "unknown": "none",
    }
    before = await hub.counts()

    with pytest.raises(NotQuarantinedError):
        await hub.unit.retry(event_id[what], operator="ops-1")
    assert await hub.counts() == before


@pytest.mark.parametrize("step", ["normalise", "advance"])
async def test_a_bug_in_a_step_of_ours_quarantines_that_message_only(hub, torbay, monkeypatch, step):
    """The exception quotes the patient; nothing that is kept or said does (see conftest)."""
    right = getattr(journey_decide, step)

    def wrong(first, *rest):
        raw = first.raw if step == "normalise" else first.received.raw
        if QUILLFEATHER.nhs_number.encode() in raw:
            raise KeyError(f"{QUILLFEATHER.family} {QUILLFEATHER.nhs_number}")
        return right(first, *rest)

    people = (MARSHWIGGLE, QUILLFEATHER, THISTLEWICK)
    records = [torbay.record(ask(torbay, p, f"TR-{n}")) for n, p in enumerate(people)]
    with monkeypatch.context() as patched:
        patched.setattr(journey_decide, step, wrong)
        await hub.take(records)
    outcomes = [await hub.outcome(record.event_id) for record in records]

    assert [(o.disposition, o.why) for o in outcomes] == [
        ("accepted", None),
        ("quarantined", "hub-fault"),
        ("accepted", None),
    ]
    assert outcomes[1].detail.startswith("KeyError at test_quarantine.py:")
    assert await hub.told("RH8") == ["transfer.requested"] * 2
    await hub.unit.retry(outcomes[1].event_id, operator="ops-1")
    assert await hub.told("RH8") == ["transfer.requested"] * 3


async def test_the_brake_pauses_one_trust_at_the_first_message_not_taken(hub, torbay, plymouth):
    hub.mend(in_a_row_max=3)
    bad = [torbay.record(b"no %d" % n) for n in range(5)]
    others = [plymouth.record(b"no"), plymouth.record(ask_elsewhere(plymouth))]
    taken = await hub.take([bad[0], others[0], *bad[1:], others[1]])

    assert taken.braked == {"RA9"}
    assert taken.dispositions == {Disposition.QUARANTINED: 4, Disposition.ACCEPTED: 1}
    assert await hub.position("RA9") == taken.positions[bad[0].position.topic, 0] == 3
    assert await hub.position("RK9") == 2
    pulled = (await hub.audit(code="brake-pulled"))[0]
    assert (pulled["trust"], pulled["outcome"], pulled["detail"]) == (
        "RA9",
        8,
        {"in_a_row": 3, "why": "not-json"},
    )

    # While it is on, nothing of this trust is taken, good or bad, and the position stays.
    before = await hub.counts()
    again = await hub.take(bad[3:], next_after={(bad[0].position.topic, 0): 5})
    assert (again.braked, again.dispositions) == ({"RA9"}, {})
    assert await hub.position("RA9") == 3
    assert await hub.counts() == before

    await queries.release_brake(hub.engine, "RA9", "feed repaired", hub.clock(), "ops-1")
    released = (await hub.audit(code="brake-released"))[0]
    assert (released["user_id"], released["detail"]) == ("ops-1", {"because": "feed repaired"})
    on = await hub.take([*bad[3:], torbay.record(ask(torbay))])
    assert (on.braked, sum(on.dispositions.values())) == (frozenset(), 3)
    assert await hub.position("RA9") == 6
    assert (await hub.rows(t.brake, t.brake.c.trust == "RA9"))[0]["in_a_row"] == 0
    with pytest.raises(queries.NotFoundError):
        await queries.release_brake(hub.engine, "RA9", "again", hub.clock(), "ops-1")


def ask_elsewhere(plymouth):
    return plymouth.epr.asks_to_transfer(
        THISTLEWICK, to="RH8", request_number="TR-P", encounter_number="V-P", at=plymouth.hub.clock()
    )


async def test_a_good_message_between_bad_ones_keeps_the_brake_off(hub, torbay):
    hub.mend(in_a_row_max=3)
    for n in range(4):
        await torbay.send(b"no %d" % n)
        await torbay.send(b"nor %d" % n)
        assert (await torbay.send(ask(torbay, number=f"TR-{n}"))).disposition == "accepted"
    assert (await hub.rows(t.brake))[0]["pulled"] is False
    assert await hub.audit(code="brake-pulled") == []


async def test_the_brake_counts_over_batches(hub, torbay):
    hub.mend(in_a_row_max=3)
    for n in range(3):
        await torbay.send(b"no %d" % n)
    assert [row["pulled"] for row in await queries.brakes(hub.engine)] == [True]


async def test_what_overtook_its_request_is_taken_in_after_it(hub, torbay, exeter):
    """Asked and withdrawn within a minute; the withdrawal, on another partition, is read first."""
    clock = ClockService(hub.engine, hub.journey, hub.clock, hub.log, poll_s=5)
    asked = ask(torbay)
    hub.clock.later(seconds=20)
    withdrawn = await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number="TR-1")
    before = await hub.counts()
    assert (withdrawn.disposition, withdrawn.why) == ("quarantined", "transfer-unknown")
    assert await clock.look_for_requests() == 0
    assert await hub.counts() == before, "looking leaves no trace"

    hub.clock.later(seconds=3)
    requested = await torbay.send(asked)
    assert await hub.state(requested.transfer_id) == "requested"
    hub.clock.later(seconds=3)
    assert await clock.look_for_requests() == 1
    assert await clock.look_for_requests() == 0

    again = await hub.outcome(withdrawn.event_id)
    assert (str(again), again.transfer_id) == ("accepted", requested.transfer_id)
    assert await hub.state(requested.transfer_id) == "cancelled"
    assert await hub.told("RH8") == ["transfer.requested", "transfer.cancelled"]
    [retried] = await hub.audit(event_id=withdrawn.event_id, code="msg-released")
    assert (retried["system"], retried["user_id"]) == ("clock", None)


async def test_whose_transfer_nobody_asks_for_waits_for_a_human(hub, torbay):
    clock = ClockService(hub.engine, hub.journey, hub.clock, hub.log, poll_s=5)
    await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number="TR-1")
    for _ in range(30):
        hub.clock.later(hours=1)
        assert await clock.look_for_requests() == 0

    [waiting] = await queries.quarantined(hub.engine, trust="RA9")
    assert (waiting["why"], waiting["retries"]) == ("transfer-unknown", 0)


async def test_what_waits_from_a_trust_that_has_left_keeps_the_clock_from_nothing(hub, torbay, exeter):
    """A profile is taken back while one of its messages waits for a request: others' messages are looked at all the same."""
    await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number="TR-1")
    early = await exeter.cancels_request(MARSHWIGGLE, to="RK9", request_number="TR-2")
    hub.mend(trusts=["RH8", "RK9"])
    clock = ClockService(hub.engine, hub.journey, hub.clock, hub.log, poll_s=5)
    hub.clock.later(seconds=3)
    requested = await exeter.asks_to_transfer(
        MARSHWIGGLE, to="RK9", request_number="TR-2", encounter_number="V-9"
    )
    hub.clock.later(seconds=3)

    assert await clock.look_for_requests() == 1
    assert (await hub.outcome(early.event_id)).transfer_id == requested.transfer_id


async def test_what_an_older_process_set_aside_while_a_trust_joined_is_taken_in_by_a_newer_one(
    hub, torbay, exeter
):
    """Exeter joins. A worker that began before still reads: what is for Exeter, and what moves a transfer that Exeter is a party of, waits
    until the clock, which began after, has looked.
    """
    before, after = ["RA9", "RK9"], ["RA9", "RK9", "RH8"]
    known = await torbay.asks_to_transfer(
        MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1"
    )
    hub.clock.later(minutes=1)
    hub.mend(trusts=before)
    new = await torbay.asks_to_transfer(QUILLFEATHER, to="RH8", request_number="TR-2", encounter_number="V-2")
    left = await torbay.discharges(MARSHWIGGLE, encounter_number="V-1", to_site="RH801")
    assert [(each.disposition, each.why) for each in (new, left)] == [("quarantined", "receiver-unknown")] * 2

    hub.mend(trusts=after)
    clock = ClockService(hub.engine, hub.journey, hub.clock, hub.log, poll_s=5)
    assert await clock.look_for_requests() == 2
    assert await hub.state(known.transfer_id) == "in-transit"
    assert await hub.state((await hub.outcome(new.event_id)).transfer_id) == "requested"
    assert sorted(await hub.told("RH8")) == ["transfer.departed", "transfer.requested", "transfer.requested"]


def test_the_longer_it_waits_the_less_often_it_is_looked_at():
    came, second = datetime(2026, 11, 23, 9, tzinfo=UTC), timedelta(seconds=1)
    looks = [
        n for n in range(1, 3600) if is_due(came, came + (n - 1) * second, came + n * second, 5 * second)
    ]
    assert looks == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560]


async def test_what_an_operator_does_is_written_down_with_who_and_why(hub, torbay):
    """Also what leaves no trace in a trust: an incident that was looked at, a position that was set."""
    now = hub.clock()
    await torbay.send(b"no")
    topic = torbay.profile.events_topic
    await queries.set_position(hub.engine, topic, 0, 7, "the topic was made anew", now, "ops-1")
    async with hub.engine.begin() as connection:
        await open_incident(connection, "position-above-end", topic, {}, "kafka", now)
    [incident] = await queries.incidents(hub.engine)
    await queries.close_incident(hub.engine, incident["incident_id"], "done", now, "ops-1")
    acts = await hub.audit(code="position-set") + await hub.audit(code="incident-closed")
    assert [(row["user_id"], row["detail"]["because"]) for row in acts] == [
        ("ops-1", "the topic was made anew"),
        ("ops-1", "done"),
    ]


async def test_who_reads_a_message_as_it_came_is_written_down(hub, store_url, torbay, monkeypatch):
    """It holds a patient's data, so it is told to whoever asks who has seen the patient; that it was listed is not."""
    outcome = await torbay.send(ask(torbay))
    monkeypatch.setenv("HUB_DATABASE_URL", store_url)
    settings_now.cache_clear()
    for words in (["show", outcome.event_id], ["list"]):
        await asyncio.to_thread(CliRunner().invoke, app, ["quarantine", *words])
    assert await hub.audit(code="msg-read") == []
    done = await asyncio.to_thread(CliRunner().invoke, app, ["quarantine", "show", outcome.event_id, "--raw"])
    settings_now.cache_clear()
    assert (done.exit_code, done.stdout_bytes) == (0, ask(torbay).body)
    [read] = await hub.audit(code="msg-read")
    [created] = await hub.audit(code="transfer-created")
    assert (read["user_id"], read["event_id"]) == (getpass.getuser(), outcome.event_id)
    assert (read["person_id"], read["transfer_id"]) == (created["person_id"], outcome.transfer_id)
    [row] = [each for each in who_has_seen([read], {}) if each["how"] == "read a message as it came"]
    assert (row["name"], row["user"]) == ("The transfer hub", getpass.getuser())
