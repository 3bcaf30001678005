"""`hub transfers show`, as the duty team reads it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hub.domain.ids import EventId, OdsCode, PersonId, TransferId
from hub.domain.transfer import HUB, Fact, Party, State, Step, Transfer
from hub.governance.timeline import facts, timeline

NINE = datetime(2026, 11, 23, 9, tzinfo=UTC)
RA9, RH8 = OdsCode("RA9"), OdsCode("RH8")


def fact(name, step, minutes, by=RA9, *, late=0, **more):
    at = NINE + timedelta(minutes=minutes)
    party = {RA9: Party.SENDER, RH8: Party.RECEIVER, HUB: Party.HUB}[by]
    heard = at + timedelta(minutes=late)
    return Fact(EventId(name), step, by, party, at, heard, because=f"{by} said {step}", **more)


def told(*story):
    transfer = Transfer(
        TransferId("t"),
        PersonId("p"),
        RA9,
        RH8,
        State.REQUESTED,
        0,
        NINE,
        (),
        priority="stat",
        specialty="320",
    )
    for each in story:
        transfer, _ = transfer.with_fact(each)
    return transfer


def test_a_departure_that_was_taken_back_and_a_late_answer_stand_where_they_happened():
    left = fact("e3", Step.DEPART, 40, encounter="V")
    back = fact("e4", Step.RETRACT, 50, encounter="V", retracts=frozenset({Step.DEPART}))
    transfer = told(fact("e1", Step.REQUEST, 0), left, back, fact("e5", Step.ACCEPT, 20, RH8, late=60))
    lines = list(timeline(transfer, NINE + timedelta(hours=2), "bed:1"))

    assert lines[:4] == [
        "Transfer t  RA9 → RH8",
        "  accepted, version 4, priority stat, specialty 320",
        "  Task accepted, ServiceRequest active",
        "  waits: clock bed:1 rings at 2026-11-23 11:00Z",
    ]
    assert lines[5::2] == [
        "  2026-11-23 09:00Z  request: new → requested",
        "  2026-11-23 09:20Z  accept: requested → accepted",
        "  2026-11-23 09:40Z  depart: accepted → in-transit (taken back later)",
        "  2026-11-23 09:50Z  retract: in-transit → accepted",
    ]
    assert lines[8] == " " * 21 + "because RH8 said accept [event e5, heard at 2026-11-23 10:20Z]"


def test_what_leads_nowhere_and_what_the_hub_did_say_so():
    rang = fact("c1", Step.ESCALATE, 30, HUB, clock="decision:1")
    transfer = told(
        fact("e1", Step.REQUEST, 0), rang, fact("e2", Step.CANCEL, 40), fact("e3", Step.ADMIT, 50, RH8)
    )

    assert [each["effect"] for each in facts(transfer)][1:] == [
        "escalate: stays requested", "cancel: requested → cancelled", "admit: kept; from cancelled it leads nowhere",
    ]  # fmt: skip
    assert "the hub's clock decision:1" in "\n".join(timeline(transfer, None, None))


def test_nobody_asked():
    transfer = replace(told(fact("e3", Step.DEPART, 40)), state=State.IN_TRANSIT)

    assert "inferred: nobody asked for it" in list(timeline(transfer, None, None))[1]
