"""Patients' journeys, told in order: what two hospitals' records say, and what becomes of the transfer.

Each is one patient. Torbay (RA9) is where they are, Exeter (RH8) where they are to go, Plymouth (RK9) has no part unless the
story gives it one.
"""

import itertools
import uuid
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from hub.demo.epr import Patient
from hub.demo.people import (
    BRAMBLETHORPE,
    FENNIMOSS,
    GOSLINGDALE,
    LARKENBY,
    MARSHWIGGLE,
    MOONRAKER,
    OAKENSHADE,
    PEBBLEWORTH,
    QUILLFEATHER,
    SNOWCROFT,
    THISTLEWICK,
)
from hub.fhir.systems import NHS_NUMBER
from hub.journey.decide import Choice
from hub.store import tables as t
from tests.stories.conftest import edited, resources
from tests.stories.rest import System, facade_of

NUMBER, STAY, THEIRS = "TR-1", "V-1", "W-7"


async def ask(hospital, patient, to="RH8", number=NUMBER, stay=STAY, **more):
    asked = await hospital.asks_to_transfer(
        patient, to=to, request_number=number, encounter_number=stay, **more
    )
    assert str(asked) == "accepted"
    return asked.transfer_id


async def answer(hospital, status, patient, to, number=NUMBER, **more):
    said = await hospital.answers(patient, status, requester=to.profile, request_number=number, **more)
    hospital.hub.clock.later(minutes=1)
    return said


async def discharge(hospital, patient, to_site="RH801", stay=STAY, **more):
    return await hospital.discharges(patient, encounter_number=stay, to_site=to_site, **more)


async def admit(hospital, patient, stay=THEIRS, **more):
    return await hospital.admits(patient, encounter_number=stay, ward="Taw", **more)


async def why(hub, transfer_id):
    return [
        row["because"]
        for row in await hub.rows(t.transfer_history, t.transfer_history.c.transfer_id == transfer_id)
    ]


async def accepted(hub, torbay, exeter, patient, **more):
    """As far as a bed."""
    transfer = await ask(torbay, patient, **more)
    for status in ("received", "accepted", "ready"):
        hub.clock.later(minutes=5)
        assert str(await answer(exeter, status, patient, torbay)) == "accepted"
    return transfer


async def on_the_way(hub, torbay, exeter, patient, **more):
    transfer = await accepted(hub, torbay, exeter, patient, **more)
    hub.clock.later(minutes=20)
    await discharge(torbay, patient)
    assert await hub.state(transfer) == "in-transit"
    return transfer


async def test_planned_with_a_question_a_wait_for_a_bed_and_booked_transport(hub, torbay, exeter):
    transfer = await ask(torbay, MARSHWIGGLE)
    later = hub.clock.later
    for hospital, status, business in (
        (exeter, "received", None), (exeter, "on-hold", "info-requested"), (torbay, "requested", "query-answered"),
        (exeter, "accepted", None), (exeter, "accepted", "awaiting-bed"), (exeter, "ready", None),
        (torbay, "ready", "transport-booked"),
    ):  # fmt: skip
        later(minutes=5)
        said = await answer(hospital, status, MARSHWIGGLE, torbay, business_status=business)
        assert str(said) == "accepted", status
    later(minutes=30)
    await discharge(torbay, MARSHWIGGLE)
    later(minutes=50)
    await exeter.reports(
        "A04", MARSHWIGGLE, encounter_number="ED-1", at=hub.clock(), status="arrived", encounter_class="EMER"
    )
    later(minutes=40)
    await admit(exeter, MARSHWIGGLE)

    assert await hub.states(transfer) == [
        "requested", "received", "info-requested", "received", "accepted", "awaiting-bed", "bed-allocated",
        "transport-booked", "in-transit", "arrived", "completed",
    ]  # fmt: skip
    assert await hub.told("RA9") == [
        "transfer.received", "transfer.query.raised", "transfer.accepted", "transfer.bed.awaited",
        "transfer.bed.allocated", "transfer.arrived", "transfer.completed",
    ]  # fmt: skip
    assert (await why(hub, transfer))[8] == "RA9's encounter ended with destination RH801"
    assert (await hub.inbox("RA9"))[3].of("Task")["businessStatus"]["coding"][0]["code"] == "awaiting-bed"


async def test_emergency_moved_before_anybody_accepted(hub, torbay, exeter):
    """The ambulance does not wait: it goes, and both hospitals are alarmed."""
    transfer = await ask(torbay, QUILLFEATHER, priority="stat")
    hub.clock.later(minutes=8)
    left = await discharge(torbay, QUILLFEATHER)

    assert left.flags == ("moved-without-acceptance",)
    assert await hub.state(transfer) == "in-transit"
    assert await hub.told("RA9") == ["transfer.departed"]
    assert await hub.told("RH8") == ["transfer.requested", "transfer.departed"]
    assert "ended with destination" in (await hub.inbox("RH8"))[-1].of("Task")["note"][0]["text"]


async def test_declined_then_redirected_to_another_hospital(hub, torbay, exeter, plymouth):
    first = await ask(torbay, THISTLEWICK)
    hub.clock.later(minutes=10)
    await answer(exeter, "rejected", THISTLEWICK, torbay, reason="RRNA")
    second = await ask(torbay, THISTLEWICK, to="RK9", number="TR-2", replaces=NUMBER)

    assert (await hub.state(first), await hub.state(second)) == ("redirected", "requested")
    assert await hub.told("RH8") == ["transfer.requested", "transfer.redirected"]
    assert await hub.told("RK9") == ["transfer.requested"]
    task = (await hub.inbox("RH8"))[-1].bundle
    assert resources(task, "Task")[0]["businessStatus"]["coding"][0]["code"] == "redirected"
    # What Plymouth is asked is not Exeter's business, nor that it is Plymouth.
    assert {each["resource"]["resourceType"] for each in task["entry"]} == {"MessageHeader", "Task"}
    assert not any(word in str(task) for word in ("RK9", "TR-2"))
    asked, told = await hub.inbox("RH8")
    assert told.headers["x-correlation-id"] == asked.headers["x-correlation-id"]


async def test_a_second_request_for_the_same_stay_and_specialty_is_a_conflict_that_names_the_first(
    hub, torbay
):
    first = await ask(torbay, THISTLEWICK)
    second = await torbay.asks_to_transfer(
        THISTLEWICK, to="RK9", request_number="TR-2", encounter_number=STAY
    )

    assert (second.disposition, second.why) == ("rejected", "transfer-exists")
    assert first in second.detail
    assert await hub.told("RK9") == []
    other = await torbay.asks_to_transfer(
        THISTLEWICK, to="RK9", request_number="TR-3", encounter_number=STAY, specialty="150"
    )
    assert str(other) == "accepted"


async def test_an_answer_that_names_another_request_moves_nothing(hub, torbay, exeter):
    """Another department's, or an answer that overtook its own request: it is not about the one transfer that is open."""
    transfer = await ask(torbay, PEBBLEWORTH)

    said = await exeter.answers_bars(
        PEBBLEWORTH, "planned", requester=torbay.profile, request_number="ORDER-77"
    )

    assert (said.disposition, said.why) == ("quarantined", "transfer-unknown")
    assert await hub.state(transfer) == "requested"


async def test_a_decision_on_an_old_version_is_refused_with_the_state_as_it_is(hub, torbay, exeter):
    transfer = await ask(torbay, THISTLEWICK)
    hub.clock.later(minutes=1)
    version = int((await hub.inbox("RH8"))[0].of("Task")["meta"]["versionId"])
    await torbay.updates_request(
        THISTLEWICK, to="RH8", request_number=NUMBER, encounter_number=STAY, priority="stat"
    )
    hub.clock.later(minutes=1)
    stale = await answer(exeter, "accepted", THISTLEWICK, torbay, version=version)
    fresh = await answer(exeter, "accepted", THISTLEWICK, torbay, version=version + 1)

    assert (stale.why, stale.detail) == (
        "version-stale", "The transfer is requested at version 2; this was decided on version 1.",
    )  # fmt: skip
    assert str(fresh) == "accepted"
    assert await hub.state(transfer) == "accepted"


async def test_repatriation_back_to_the_home_hospital(hub, torbay, exeter):
    transfer = await accepted(hub, torbay, exeter, OAKENSHADE, kind="repatriation")
    hub.clock.later(hours=20)
    await discharge(torbay, OAKENSHADE)
    hub.clock.later(hours=1)
    await admit(exeter, OAKENSHADE)

    row = (await hub.rows(t.transfer))[0]
    assert (row["kind"], row["state"], row["transfer_id"]) == ("repatriation", "completed", transfer)


async def test_treat_and_return(hub, torbay, exeter):
    """The bed at home stays the patient's: they are on leave, are treated, and come back."""
    transfer = await accepted(hub, torbay, exeter, LARKENBY, kind="treat-and-return")
    hub.clock.later(minutes=30)
    await torbay.reports("A21", LARKENBY, encounter_number=STAY, at=hub.clock(), status="onleave")
    assert await hub.state(transfer) == "in-transit"
    hub.clock.later(hours=1)
    await exeter.reports(
        "A04", LARKENBY, encounter_number=THEIRS, at=hub.clock(), status="arrived", encounter_class="EMER"
    )
    hub.clock.later(hours=4)
    await torbay.reports("A22", LARKENBY, encounter_number=STAY, at=hub.clock(), status="in-progress")

    assert await hub.state(transfer) == "completed"
    assert (await hub.told("RH8"))[-1] == "transfer.returned"


@pytest.mark.parametrize(("when", "state"), [("before", "cancelled"), ("in transit", "failed")])
async def test_the_patient_dies(hub, torbay, exeter, when, state):
    way = accepted if when == "before" else on_the_way
    transfer = await way(hub, torbay, exeter, GOSLINGDALE)
    hub.clock.later(minutes=15)
    teller = torbay if when == "before" else exeter
    await teller.reports(
        "A03", GOSLINGDALE, encounter_number=STAY if when == "before" else THEIRS, at=hub.clock(), status="finished",
        hospitalization={"dischargeDisposition": {"coding": [{"code": "79", "system": "https://fhir.hl7.org.uk/CodeSystem/UKCore-DischargeDestinationEngland"}]}},
    )  # fmt: skip

    assert await hub.state(transfer) == state
    assert (await hub.told("RH8" if when == "before" else "RA9"))[-1] == "transfer.patient.died"


async def test_a_death_that_was_recorded_by_mistake(hub, torbay, exeter):
    transfer = await accepted(hub, torbay, exeter, GOSLINGDALE)
    hub.clock.later(minutes=1)
    await torbay.tells_of_patient("A31", GOSLINGDALE, at=hub.clock(), deceasedBoolean=True)
    assert await hub.state(transfer) == "cancelled"
    hub.clock.later(minutes=1)
    await torbay.tells_of_patient("A31", GOSLINGDALE, at=hub.clock(), deceasedBoolean=False)

    assert await hub.state(transfer) == "bed-allocated"
    assert (await hub.told("RH8"))[-2:] == ["transfer.patient.died", "transfer.reopened"]


async def test_arrived_before_the_request(hub, torbay, exeter):
    """An emergency: the patient is in Exeter's bed before Torbay's request has come through."""
    asked_at = hub.clock()
    hub.clock.later(hours=2)
    arrived = await admit(exeter, BRAMBLETHORPE, at=hub.clock())
    assert arrived.transfer_id is None
    transfer = await ask(torbay, BRAMBLETHORPE, at=asked_at)

    assert await hub.state(transfer) == "completed"
    assert await hub.states(transfer) == ["requested", "completed"]
    row = (await hub.rows(t.event, t.event.c.event_id == arrived.event_id))[0]
    assert row["transfer_id"] == transfer


async def test_an_earlier_stay_at_the_receiver_is_another_story(hub, torbay, exeter):
    """Seen at Exeter in the morning from home, asked for in the afternoon: nobody has arrived."""
    await admit(exeter, BRAMBLETHORPE, stay="W-1", source="19", method="21")
    hub.clock.later(hours=5)
    transfer = await ask(torbay, BRAMBLETHORPE)

    assert await hub.state(transfer) == "requested"


async def test_left_before_the_request_came_is_inferred_and_then_confirmed_by_it(hub, torbay, exeter):
    asked_at = hub.clock()
    hub.clock.later(minutes=30)
    left = await discharge(torbay, PEBBLEWORTH)
    assert left.flags == ("transfer-inferred",)
    assert await hub.state(left.transfer_id) == "in-transit"
    assert await hub.told("RH8") == ["transfer.departed"]
    transfer = await ask(torbay, PEBBLEWORTH, at=asked_at)

    assert transfer == left.transfer_id
    row = (await hub.rows(t.transfer))[0]
    assert (row["inferred"], row["state"], row["requested_at"]) == (False, "in-transit", asked_at)


async def test_nobody_asked_but_the_patient_came_from_another_hospital(hub, torbay, exeter):
    await torbay.admits(PEBBLEWORTH, encounter_number=STAY, ward="A", source="19", method="21")
    hub.clock.later(hours=9)
    arrived = await admit(exeter, PEBBLEWORTH)

    transfer = (await hub.rows(t.transfer))[0]
    assert arrived.flags == ("transfer-inferred",)
    assert (transfer["sender"], transfer["receiver"], transfer["state"], transfer["inferred"]) == (
        "RA9", "RH8", "completed", True,
    )  # fmt: skip
    assert await hub.told("RA9") == ["transfer.completed"]
    hub.clock.later(minutes=5)
    said = await torbay.answers(
        PEBBLEWORTH,
        "completed",
        requester=torbay.profile,
        transfer_id=arrived.transfer_id,
        business_status="confirmed",
    )
    assert str(said) == "accepted"
    assert (await hub.rows(t.transfer))[0]["inferred"] is False
    assert await hub.told("RH8") == ["transfer.confirmed"]


async def test_two_hospitals_could_have_sent_the_patient(hub, torbay, exeter, plymouth):
    for hospital in (torbay, plymouth):
        await hospital.admits(PEBBLEWORTH, encounter_number=STAY, ward="A", source="19", method="21")
    hub.clock.later(hours=1)
    arrived = await admit(exeter, PEBBLEWORTH)

    assert arrived.flags == ("transfer-ambiguous",)
    assert await hub.rows(t.transfer) == []
    assert await hub.told("RA9") == await hub.told("RK9") == []


async def test_the_discharge_is_cancelled_and_the_patient_stays(hub, torbay, exeter):
    transfer = await on_the_way(hub, torbay, exeter, MOONRAKER)
    hub.clock.later(minutes=10)
    await torbay.reports("A13", MOONRAKER, encounter_number=STAY, at=hub.clock(), status="in-progress")

    assert await hub.state(transfer) == "bed-allocated"
    assert (await hub.told("RH8"))[-1] == "transfer.corrected"
    assert (await why(hub, transfer))[-1] == "RA9 cancelled the discharge"
    hub.clock.later(hours=1)
    await discharge(torbay, MOONRAKER)
    assert await hub.state(transfer) == "in-transit"


async def test_the_same_without_an_event_name_the_record_goes_back(hub, torbay, exeter):
    transfer = await on_the_way(hub, torbay, exeter, MOONRAKER)
    hub.clock.later(minutes=10)
    again = await torbay.reports(
        "A02", MOONRAKER, encounter_number=STAY, at=hub.clock(), status="in-progress", form="collection"
    )

    assert again.transfer_id == transfer
    assert await hub.state(transfer) == "bed-allocated"


async def test_a_demographics_update_takes_nothing_back(hub, torbay, exeter):
    transfer = await on_the_way(hub, torbay, exeter, MOONRAKER)
    hub.clock.later(minutes=10)
    await torbay.reports("A08", MOONRAKER, encounter_number=STAY, at=hub.clock(), status="in-progress")
    await torbay.tells_of_patient("A31", MOONRAKER, at=hub.clock())

    assert await hub.state(transfer) == "in-transit"
    assert (await hub.told("RH8"))[-2:] == ["encounter.updated", "patient.updated"]


async def test_the_discharge_is_cancelled_after_the_arrival(hub, torbay, exeter):
    """Both cannot be true: nothing moves, and both hospitals must talk."""
    transfer = await on_the_way(hub, torbay, exeter, SNOWCROFT)
    hub.clock.later(hours=1)
    await admit(exeter, SNOWCROFT)
    hub.clock.later(minutes=5)
    back = await torbay.reports("A13", SNOWCROFT, encounter_number=STAY, at=hub.clock(), status="in-progress")

    assert await hub.state(transfer) == "completed"
    assert back.flags == ("records-diverge",)
    assert (await hub.told("RA9"))[-1] == (await hub.told("RH8"))[-1] == "transfer.corrected"


@pytest.mark.parametrize("how", ["A11", "entered-in-error"])
async def test_the_admission_is_cancelled_and_the_transfer_is_open_again(hub, torbay, exeter, how):
    transfer = await on_the_way(hub, torbay, exeter, SNOWCROFT)
    hub.clock.later(hours=1)
    await admit(exeter, SNOWCROFT)
    hub.clock.later(minutes=5)
    if how == "A11":
        await exeter.reports("A11", SNOWCROFT, encounter_number=THEIRS, at=hub.clock(), status="cancelled")
    else:
        await exeter.reports(
            "x",
            SNOWCROFT,
            encounter_number=THEIRS,
            at=hub.clock(),
            status="entered-in-error",
            form="collection",
        )

    assert await hub.state(transfer) == "in-transit"
    assert (await hub.told("RA9"))[-1] == "transfer.reopened"


async def test_a_pending_admission_is_a_bed_until_it_is_cancelled(hub, torbay, exeter):
    transfer = await ask(torbay, LARKENBY)
    await answer(exeter, "accepted", LARKENBY, torbay)
    await exeter.reports(
        "A14", LARKENBY, encounter_number=THEIRS, at=hub.clock.later(minutes=5), status="planned"
    )
    assert await hub.state(transfer) == "bed-allocated"
    await exeter.reports(
        "A38", LARKENBY, encounter_number=THEIRS, at=hub.clock.later(minutes=5), status="cancelled"
    )

    assert await hub.state(transfer) == "accepted"
    assert (await hub.told("RA9"))[-1] == "transfer.corrected"


async def test_discharged_home_instead(hub, torbay, exeter):
    transfer = await accepted(hub, torbay, exeter, FENNIMOSS)
    hub.clock.later(minutes=10)
    went = await torbay.discharges(FENNIMOSS, encounter_number=STAY, disposition="19")

    assert went.flags == ("records-diverge",)
    assert await hub.state(transfer) == "bed-allocated"
    assert (await hub.told("RH8"))[-1] == (await hub.told("RA9"))[-1] == "transfer.diverged"


async def test_a_third_trust_admits_the_patient(hub, torbay, exeter, plymouth):
    transfer = await on_the_way(hub, torbay, exeter, FENNIMOSS)
    hub.clock.later(minutes=40)
    await plymouth.admits(FENNIMOSS, encounter_number="P-1", ward="Secret Ward", source="19", method="21")

    assert await hub.state(transfer) == "in-transit"
    alarm = (await hub.inbox("RA9"))[-1]
    assert (await hub.told("RH8"))[-1] == alarm.event_type == "transfer.diverged"
    assert [e["resource"]["resourceType"] for e in alarm.bundle["entry"]] == ["MessageHeader", "Task"]
    assert "Secret" not in str(alarm.bundle)
    assert await hub.told("RK9") == []


async def test_one_alarm_for_one_stay_however_often_its_record_is_sent(hub, torbay, exeter, plymouth):
    await on_the_way(hub, torbay, exeter, FENNIMOSS)
    for _ in range(3):
        await plymouth.admits(
            FENNIMOSS,
            encounter_number="P-1",
            ward="A",
            source="19",
            method="21",
            at=hub.clock.later(minutes=10),
        )

    assert (await hub.told("RA9")).count("transfer.diverged") == 1


async def test_an_outpatient_visit_ends_and_the_transfer_does_not_care(hub, torbay, exeter):
    """The request named no stay, so any of the sender's could be meant; but not one without a bed."""

    def without_stay(tree):
        tree["entry"] = [e for e in tree["entry"] if e["resource"]["resourceType"] != "Encounter"]
        resources(tree, "ServiceRequest")[0].pop("encounter")

    request = torbay.epr.asks_to_transfer(
        FENNIMOSS, to="RH8", request_number=NUMBER, encounter_number=STAY, at=hub.clock()
    )
    asked = await torbay.send(edited(request, without_stay))
    assert str(asked) == "accepted"
    visit = await torbay.reports(
        "A03",
        FENNIMOSS,
        encounter_number="OP-1",
        at=hub.clock.later(hours=1),
        status="finished",
        encounter_class="AMB",
    )

    assert visit.flags == ()
    assert "transfer.diverged" not in await hub.told("RH8")


async def test_a_record_id_that_is_used_for_two_people_links_nobody(hub, torbay):
    await torbay.tells_of_patient("A28", FENNIMOSS, at=hub.clock(), id="1")
    again = await torbay.tells_of_patient("A28", SNOWCROFT, at=hub.clock.later(minutes=1), id="1")

    assert str(again) == "accepted"
    assert len(await hub.rows(t.person)) == 2


async def test_a_ward_move_reaches_the_receiver_while_the_transfer_is_open_and_nobody_after(
    hub, torbay, exeter
):
    await accepted(hub, torbay, exeter, FENNIMOSS)
    await torbay.moves(
        FENNIMOSS, encounter_number=STAY, from_ward="A", to_ward="B", at=hub.clock.later(minutes=5)
    )
    assert (await hub.told("RH8"))[-1] == "encounter.transferred"
    await torbay.cancels_request(FENNIMOSS, to="RH8", request_number=NUMBER, at=hub.clock.later(minutes=5))
    told = await hub.told("RH8")
    await torbay.moves(
        FENNIMOSS, encounter_number=STAY, from_ward="B", to_ward="C", at=hub.clock.later(minutes=5)
    )

    assert told == await hub.told("RH8")


async def test_a_ward_move_in_the_bed_that_a_transfer_brought_them_to_reaches_who_is_asked_next(
    hub, torbay, exeter, plymouth
):
    await on_the_way(hub, torbay, exeter, FENNIMOSS)
    hub.clock.later(hours=1)
    await admit(exeter, FENNIMOSS)
    hub.clock.later(hours=5)
    await ask(exeter, FENNIMOSS, to="RK9", number="X-1", stay=THEIRS)
    told = await hub.told("RA9")
    await exeter.moves(
        FENNIMOSS, encounter_number=THEIRS, from_ward="Taw", to_ward="Exe", at=hub.clock.later(minutes=5)
    )

    assert await hub.told("RK9") == ["transfer.requested", "encounter.transferred"]
    assert await hub.told("RA9") == told


async def test_a_draft_is_nobody_elses_business(hub, torbay, exeter):
    drafted = await torbay.asks_to_transfer(
        FENNIMOSS, to="RH8", request_number=NUMBER, encounter_number=STAY, draft=True
    )
    assert await hub.state(drafted.transfer_id) == "draft"
    peeked = await answer(exeter, "accepted", FENNIMOSS, torbay)
    assert peeked.why == "transfer-unknown"
    assert await hub.told("RH8") == []
    assert await ask(torbay, FENNIMOSS, at=hub.clock.later(minutes=3)) == drafted.transfer_id
    assert await hub.told("RH8") == ["transfer.requested"]


async def test_a_draft_stays_nobody_elses_business_through_a_death_that_is_taken_back(
    hub, torbay, exeter, plymouth
):
    """Plymouth's record says of the wrong patient that they have died, and then that they have not."""
    drafted = await ask(torbay, FENNIMOSS, draft=True)
    for has_died, state in ((True, "cancelled"), (False, "draft")):
        hub.clock.later(minutes=1)
        await plymouth.tells_of_patient("A31", FENNIMOSS, deceasedBoolean=has_died)
        assert await hub.state(drafted) == state
    assert await hub.told("RH8") == await hub.told("RK9") == []
    assert await hub.told("RA9") == ["transfer.patient.died", "transfer.reopened"]
    assert [record.of("Patient") for record in await hub.inbox("RA9")] == [None, None]
    assert await ask(torbay, FENNIMOSS, at=hub.clock.later(minutes=3)) == drafted
    assert await hub.told("RH8") == ["transfer.requested"]


@pytest.mark.parametrize("in_error", [False, True])
async def test_a_draft_that_was_withdrawn_was_never_the_receivers(hub, torbay, exeter, in_error):
    drafted = await ask(torbay, FENNIMOSS, draft=True)
    hub.clock.later(minutes=1)
    await torbay.cancels_request(FENNIMOSS, to="RH8", request_number=NUMBER, in_error=in_error)
    hub.clock.later(minutes=1)
    peeked = await answer(exeter, "accepted", FENNIMOSS, torbay, transfer_id=drafted)
    assert peeked.why == "transfer-unknown"
    assert await hub.told("RH8") == []

    at_exeter = await (await System.join(facade_of(hub), "RH8")).signed_in()
    for kind in ("Task", "ServiceRequest", "Patient", "Encounter", "Provenance"):
        assert "entry" not in (await at_exeter.get(f"/{kind}")).json(), kind
    assert (await at_exeter.get("/Task?_summary=count")).json()["total"] == 0
    for path in ("", "/_history", "/_history/1"):
        assert (await at_exeter.get(f"/Task/{drafted}{path}")).status_code == 404


async def test_who_left_before_being_asked_for_is_the_receivers_business_though_it_is_withdrawn_after(
    hub, torbay, exeter
):
    """The ambulance leaves on a draft and comes back: what Exeter was told it must see the end of."""
    drafted = await ask(torbay, FENNIMOSS, draft=True)
    hub.clock.later(minutes=5)
    await discharge(torbay, FENNIMOSS)
    hub.clock.later(minutes=5)
    await torbay.reports("A13", FENNIMOSS, encounter_number=STAY, at=hub.clock(), status="in-progress")
    assert await hub.state(drafted) == "draft"
    hub.clock.later(minutes=5)
    await torbay.cancels_request(FENNIMOSS, to="RH8", request_number=NUMBER)
    assert await hub.told("RH8") == ["transfer.departed", "transfer.corrected", "transfer.cancelled"]
    assert (await hub.inbox("RH8"))[1].of("Patient") is None
    at_exeter = await (await System.join(facade_of(hub), "RH8")).signed_in()
    assert (await at_exeter.get(f"/Task/{drafted}")).json()["businessStatus"]["coding"][0][
        "code"
    ] == "cancelled"


async def test_merged_on_arrival(hub, torbay, exeter):
    """Exeter registered the patient without an NHS number, then found its own old record of them."""
    transfer = await on_the_way(hub, torbay, exeter, OAKENSHADE)
    hub.clock.later(hours=1)
    fresh = replace(OAKENSHADE, local={"RH8": "9000001"})
    nameless = edited(
        exeter.epr.admits(
            fresh, encounter_number=THEIRS, ward="Taw", at=hub.clock(), source="19", method="21"
        ),
        _without_nhs_number,
    )
    arrived = await exeter.send(nameless)
    assert arrived.transfer_id is None
    await exeter.tells_of_patient("A28", OAKENSHADE, at=hub.clock.later(minutes=5))
    survivor = {
        "identifier": {"system": exeter.profile.identifier_systems.patient, "value": OAKENSHADE.local["RH8"]}
    }
    merge = exeter.epr.tells_of_patient(
        "A40",
        fresh,
        at=hub.clock.later(minutes=5),
        active=False,
        link=[{"type": "replaced-by", "other": survivor}],
    )
    merged = await exeter.send(edited(merge, _without_nhs_number))

    assert str(merged) == "accepted"
    assert await hub.told("RA9") == [
        "transfer.received", "transfer.accepted", "transfer.bed.allocated", "transfer.patient.identified",
    ]  # fmt: skip
    assert (await hub.told("RH8"))[-1] == "transfer.patient.identified"
    assert "identity-merged" in await hub.codes(merged)
    await exeter.send(
        edited(nameless, lambda tree: tree.update(timestamp=hub.clock.later(minutes=5).isoformat()))
    )
    assert await hub.state(transfer) == "completed"


def _without_nhs_number(tree):
    for patient in resources(tree, "Patient"):
        patient["identifier"] = [each for each in patient["identifier"] if each["system"] != NHS_NUMBER]


async def test_a_merge_that_names_the_survivor_by_a_resource_id_alone_and_its_unmerge(hub, torbay):
    survivor, loser = LARKENBY, replace(LARKENBY, local={"RA9": "9000002"})
    linked = {"active": False, "link": [{"type": "replaced-by", "other": {"reference": "Patient/abc-1"}}]}
    merge = torbay.epr.tells_of_patient("A40", loser, at=hub.clock(), **linked)
    too_early = await torbay.send(edited(merge, _without_nhs_number))
    assert (too_early.why, too_early.at) == ("needs-confirmation", "Patient.link")
    await torbay.tells_of_patient("A28", survivor, at=hub.clock.later(minutes=1), id="abc-1")
    again = await hub.unit.retry(too_early.event_id, "duty team")
    assert again.disposition == "accepted"
    people = {row["person_id"]: row["merged_into"] for row in await hub.rows(t.person)}
    assert sorted(each is None for each in people.values()) == [False, True]

    unmerge = torbay.epr.tells_of_patient("A37", loser, at=hub.clock.later(minutes=1), active=True)
    parted = await torbay.send(edited(unmerge, _without_nhs_number))
    assert "identity-unmerged" in await hub.codes(parted)
    assert {row["merged_into"] for row in await hub.rows(t.person)} == {None}
    assert len(await hub.rows(t.person_link)) == 2


async def test_records_that_are_parted_show_nobody_to_the_other_ones_hospitals(hub, torbay, exeter):
    """Two brothers' records were taken for one. Exeter expects the one and is told that they are parted, not who the other is."""
    one, other = LARKENBY, replace(SNOWCROFT, birth_date=LARKENBY.birth_date)
    for each in (one, other):
        await torbay.send(
            edited(torbay.epr.tells_of_patient("A28", each, at=hub.clock()), _without_nhs_number)
        )
    wish = torbay.epr.asks_to_transfer(
        one, to="RH8", request_number=NUMBER, encounter_number=STAY, at=hub.clock()
    )
    await torbay.send(edited(wish, _without_nhs_number))
    kept = {"identifier": {"system": torbay.profile.identifier_systems.patient, "value": one.local["RA9"]}}
    merge = torbay.epr.tells_of_patient(
        "A40",
        other,
        at=hub.clock.later(minutes=1),
        active=False,
        link=[{"type": "replaced-by", "other": kept}],
    )
    await torbay.send(edited(merge, _without_nhs_number))
    unmerge = torbay.epr.tells_of_patient("A37", other, at=hub.clock.later(minutes=1), active=True)
    parted = await torbay.send(edited(unmerge, _without_nhs_number))
    assert "identity-unmerged" in await hub.codes(parted)

    told = (await hub.inbox("RH8"))[-1]
    assert told.event_type == "transfer.patient.identified"
    assert told.of("Patient") is None
    assert "for" not in told.of("Task")
    assert other.local["RA9"] not in str(told.bundle)
    at_exeter = await (await System.join(facade_of(hub), "RH8")).signed_in()
    [shown] = (await at_exeter.get("/Patient")).json()["entry"]
    assert one.local["RA9"] in str(shown)
    assert other.local["RA9"] not in str(shown)


async def test_a_merge_of_records_with_different_dates_of_birth_asks_a_human(hub, torbay):
    await torbay.tells_of_patient("A28", LARKENBY, at=hub.clock())
    other = {
        "identifier": {"system": torbay.profile.identifier_systems.patient, "value": LARKENBY.local["RA9"]}
    }
    merge = torbay.epr.tells_of_patient(
        "A40", SNOWCROFT, at=hub.clock(), active=False, link=[{"type": "replaced-by", "other": other}]
    )
    asked = await torbay.send(edited(merge, _without_nhs_number))

    assert asked.why == "needs-confirmation"
    assert {row["merged_into"] for row in await hub.rows(t.person)} == {None}


async def test_a_superseded_nhs_number(hub, torbay, exeter):
    transfer = await accepted(hub, torbay, exeter, LARKENBY)
    new = replace(LARKENBY, nhs_number=BRAMBLETHORPE.nhs_number)
    old = {"system": NHS_NUMBER, "value": LARKENBY.nhs_number, "use": "old"}

    def with_old(tree):
        resources(tree, "Patient")[0]["identifier"].append(old)

    told = await torbay.send(edited(torbay.epr.tells_of_patient("A31", new, at=hub.clock()), with_old))
    assert str(told) == "accepted"
    assert "identity-superseded" in await hub.codes(told)
    hub.clock.later(minutes=10)
    await discharge(torbay, new)
    hub.clock.later(minutes=50)
    await admit(exeter, new)

    assert await hub.state(transfer) == "completed"
    assert "transfer.patient.identified" in await hub.told("RH8")


async def test_twins_are_two_people(hub, torbay, exeter):
    """The same name, the same birthday, the same ward; each has a number of their own."""
    born = date(2026, 11, 20)
    one = Patient("Larkenby", "Baby", born, BRAMBLETHORPE.nhs_number, {"RA9": "9100001", "RH8": "9200001"})
    two = Patient("Larkenby", "Baby", born, GOSLINGDALE.nhs_number, {"RA9": "9100002", "RH8": "9200002"})
    first = await ask(torbay, one, number="TR-1", stay="B-1")
    second = await ask(torbay, two, number="TR-2", stay="B-2")
    hub.clock.later(minutes=30)
    await admit(exeter, two)

    assert (await hub.state(first), await hub.state(second)) == ("requested", "completed")


async def test_a_newborn_without_an_nhs_number_is_found_by_the_transfer_it_names(hub, torbay, exeter):
    baby = Patient(
        "Moonraker", "Baby", date(2026, 11, 21), MOONRAKER.nhs_number, {"RA9": "9100003", "RH8": "9200003"}
    )
    asked = await torbay.send(
        edited(
            torbay.epr.asks_to_transfer(
                baby, to="RH8", request_number=NUMBER, encounter_number=STAY, at=hub.clock()
            ),
            _without_nhs_number,
        )
    )
    hub.clock.later(hours=1)

    def based_on(tree):
        _without_nhs_number(tree)
        named = {"system": torbay.profile.identifier_systems.request, "value": NUMBER}
        resources(tree, "Encounter")[0]["basedOn"] = [{"type": "ServiceRequest", "identifier": named}]

    arrived = await exeter.send(
        edited(exeter.epr.admits(baby, encounter_number=THEIRS, ward="NICU", at=hub.clock()), based_on)
    )

    assert arrived.transfer_id == asked.transfer_id
    assert await hub.state(asked.transfer_id) == "completed"


async def test_unknown_in_the_emergency_department(hub, torbay, exeter):
    """Somebody without a name has somebody else's card in the pocket: its number links nobody."""
    await ask(torbay, MARSHWIGGLE)
    unknown = [
        {"url": "http://hl7.org/fhir/StructureDefinition/patient-unknownIdentity", "valueBoolean": True}
    ]

    def nobody_knows(tree):
        resources(tree, "Patient")[0]["extension"] = unknown

    stranger = replace(MARSHWIGGLE, local={"RH8": "9300001"})
    message = exeter.epr.reports(
        "A04",
        stranger,
        encounter_number="ED-9",
        at=hub.clock.later(minutes=9),
        status="arrived",
        encounter_class="EMER",
    )
    seen = await exeter.send(edited(message, nobody_knows))

    assert str(seen) == "accepted"
    assert (seen.transfer_id, seen.flags) == (None, ("identity-unknown",))


async def test_an_nhs_number_without_a_date_of_birth_is_a_question(hub, torbay, exeter):
    transfer = await ask(torbay, MARSHWIGGLE)
    hub.clock.later(hours=1)

    def undated(tree):
        del resources(tree, "Patient")[0]["birthDate"]

    arrived = await exeter.send(
        edited(exeter.epr.admits(MARSHWIGGLE, encounter_number=THEIRS, ward="T", at=hub.clock()), undated)
    )
    assert (arrived.disposition, arrived.why) == ("quarantined", "needs-confirmation")
    person = (await hub.rows(t.person))[0]["person_id"]
    assert person not in str(arrived.receipt.bundle)
    await hub.unit.retry(arrived.event_id, "duty team", Choice(person_id=person))

    assert await hub.state(transfer) == "completed"


async def test_two_open_transfers_and_a_discharge_that_does_not_say_where_is_a_question(
    hub, torbay, exeter, plymouth
):
    first = await ask(torbay, MARSHWIGGLE)
    second = await ask(torbay, MARSHWIGGLE, to="RK9", number="TR-2", specialty="150")
    hub.clock.later(hours=1)
    left = await torbay.discharges(MARSHWIGGLE, encounter_number=STAY, disposition="51")
    assert left.why == "needs-confirmation"
    assert {await hub.state(first), await hub.state(second)} == {"requested"}
    assert first in str((await hub.audit(event_id=left.event_id, code="msg-quarantined"))[0]["detail"])
    await hub.unit.retry(left.event_id, "duty team", Choice(transfer_id=second))

    assert (await hub.state(first), await hub.state(second)) == ("requested", "in-transit")


async def test_a_restricted_patient_leaves_no_address_behind(hub, torbay, exeter):
    home = {"address": [{"text": "1 Hidden Lane"}], "telecom": [{"system": "phone", "value": "01632 960001"}]}

    lane = home["address"][0]
    beside = [
        {"resourceType": "Person", **home},
        {"resourceType": "Location", "name": "Ambulance stop", "address": lane},
        {"resourceType": "RelatedPerson", "patient": {"display": "hers"}, **home},
    ]
    # The surgery round the corner: an entry of its own, one that the message holds for another reason too, and a contained one.
    surgery, ward, role = (f"urn:uuid:{uuid.uuid4()}" for _ in range(3))
    doctors = {
        surgery: {"resourceType": "Organization", "name": "Hidden Lane Surgery", "address": [lane]},
        role: {"resourceType": "PractitionerRole", "organization": {"reference": surgery}},
        ward: {"resourceType": "Practitioner", "name": [{"family": "Ottery"}]},
    }
    born = {"url": "http://hl7.org/fhir/StructureDefinition/patient-birthPlace", "valueAddress": lane}
    narrative = {
        "status": "generated",
        "div": '<div xmlns="http://www.w3.org/1999/xhtml">Lives at 1 Hidden Lane, 01632 960001</div>',
    }

    def restricted(tree, *, label=True):
        patient = resources(tree, "Patient")[0]
        patient.update(home | {"extension": [born], "text": narrative})
        patient["contained"] = [{"resourceType": "Organization", "id": "gp", "name": "Hidden Lane Surgery"}]
        patient["generalPractitioner"] = [{"reference": each} for each in (role, ward, "#gp")]
        request = resources(tree, "ServiceRequest")[0]
        request["text"] = narrative
        request["performer"] = [*request.get("performer", []), {"reference": ward}]
        tree["entry"] += [{"fullUrl": url, "resource": each} for url, each in doctors.items()]
        for each in beside:
            tree["entry"].append({"fullUrl": f"urn:uuid:{uuid.uuid4()}", "resource": each})
        if label:
            code = {"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}
            patient["meta"] = {"security": [code]}

    request = torbay.epr.asks_to_transfer(
        FENNIMOSS, to="RH8", request_number=NUMBER, encounter_number=STAY, at=hub.clock()
    )
    asked = await torbay.send(edited(request, restricted))
    update = torbay.epr.updates_request(
        FENNIMOSS, to="RH8", request_number=NUMBER, encounter_number=STAY, at=hub.clock.later(minutes=1)
    )
    await torbay.send(edited(update, lambda tree: restricted(tree, label=False)))

    told = await hub.inbox("RH8")
    assert len(told) == 2
    assert all("Hidden" not in str(r.bundle) and "01632" not in str(r.bundle) for r in told)
    assert told[0].of("Patient")["name"]
    assert told[0].of("Location")["name"] == "Ambulance stop"
    assert told[0].of("PractitionerRole") is None
    assert told[0].of("Practitioner")["name"] == [{"family": "Ottery"}]
    assert "sensitivity-applied" in await hub.codes(asked)


async def test_the_origin_learns_of_the_arrival_and_nothing_clinical(hub, torbay, exeter):
    await on_the_way(hub, torbay, exeter, FENNIMOSS)
    finding = {"fullUrl": "urn:uuid:5f0c7a4e-3c1d-4b4e-9c59-0d8d0e5a1c11", "resource": {
        "resourceType": "Observation", "status": "final", "code": {"text": "a finding of Exeter's"}}}  # fmt: skip
    arrival = exeter.epr.admits(FENNIMOSS, encounter_number=THEIRS, ward="Taw", at=hub.clock.later(hours=1))
    await exeter.send(edited(arrival, lambda tree: tree["entry"].append(finding)))

    record = (await hub.inbox("RA9"))[-1]
    assert record.event_type == "transfer.completed"
    assert record.of("Observation") is None
    assert record.of("Encounter")["status"] == "in-progress"
    assert "name" not in record.of("Patient")


async def test_a_shared_record_system_echoes_and_only_the_owners_word_counts(hub, torbay, exeter):
    transfer = await ask(torbay, FENNIMOSS)
    shared = sharing_one_record(hub)
    hub.mend(profiles=shared)
    hub.clock.later(hours=1)
    own = exeter.epr.admits(FENNIMOSS, encounter_number=THEIRS, ward="Taw", at=hub.clock())
    echo = await hub.trust("RK9").send(edited(own, lambda _: None))

    assert (echo.disposition, echo.why) == ("rejected", "shared-record-echo")
    assert await hub.state(transfer) == "requested"
    await exeter.send(own)
    assert await hub.state(transfer) == "completed"


def sharing_one_record(hub):
    """RH8, RK9 and RVJ on one record system."""
    one = ("RH8", "RK9", "RVJ")
    return [
        each.model_copy(update={"shares_record_with": tuple(o for o in one if o != each.ods)})
        if each.ods in one
        else each
        for each in hub.journey.directory
    ]


def last_night_with_two_half_past_ones(now):
    """The last Sunday of October (Summer Time Act 1972), the latest one that is over."""
    days = [date(year, 10, day) for year in (now.year - 1, now.year) for day in range(25, 32)]
    return max(each for each in days if each.weekday() == 6 and each < now.date())


async def test_the_night_the_clocks_go_back(hub, torbay, exeter):
    """01:30 comes twice: left at the first, arrived at the second, one hour apart."""
    night = last_night_with_two_half_past_ones(hub.clock())
    hub.clock.now = datetime(night.year, 10, night.day - 1, 22, 0, tzinfo=UTC)
    transfer = await accepted(hub, torbay, exeter, MOONRAKER)
    hub.clock.later(hours=6)
    summer, winter = f"{night}T01:30:00+01:00", f"{night}T01:30:00+00:00"
    await admit(exeter, MOONRAKER, at=datetime.fromisoformat(winter))
    await discharge(torbay, MOONRAKER, at=datetime.fromisoformat(summer))

    facts = {row["step"]: row["occurred_at"] for row in await hub.rows(t.transfer_history)}
    assert facts["admit"] - facts["depart"] == timedelta(hours=1)
    assert await hub.state(transfer) == "completed"


async def test_a_day_of_back_loaded_events_after_downtime(hub, torbay, exeter):
    """Exeter's system was down; everything comes at once in the evening, the last things first."""
    transfer = await ask(torbay, MOONRAKER)
    began = hub.clock()
    hub.clock.later(hours=10)
    happened = [
        lambda: admit(exeter, MOONRAKER, at=began + timedelta(hours=5)),
        lambda: discharge(torbay, MOONRAKER, at=began + timedelta(hours=4)),
        lambda: answer(exeter, "ready", MOONRAKER, torbay, at=began + timedelta(hours=2)),
        lambda: answer(exeter, "accepted", MOONRAKER, torbay, at=began + timedelta(hours=1)),
        lambda: answer(exeter, "received", MOONRAKER, torbay, at=began + timedelta(minutes=10)),
    ]
    for each in happened:
        assert str(await each()) == "accepted"

    assert await hub.state(transfer) == "completed"
    assert set(await hub.states(transfer)) == {"requested", "completed"}


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
async def test_what_happened_ends_the_same_in_whatever_order_it_is_told(hub, torbay, exeter, order):
    """Left, the leaving cancelled, left again, admitted."""
    transfer = await accepted(hub, torbay, exeter, SNOWCROFT)
    began = hub.clock()
    hub.clock.later(hours=9)

    def at(hours):
        return began + timedelta(hours=hours)

    happened = [
        lambda: discharge(torbay, SNOWCROFT, at=at(1)),
        lambda: torbay.reports("A13", SNOWCROFT, encounter_number=STAY, at=at(2), status="in-progress"),
        lambda: discharge(torbay, SNOWCROFT, at=at(3)),
        lambda: admit(exeter, SNOWCROFT, at=at(4)),
    ]
    for each in order:
        await happened[each]()

    assert await hub.state(transfer) == "completed"
