"""Which transfer a message means, where a patient has had more than one stay and more than one transfer.

Each is one patient. Torbay (RA9) is where they are, Exeter (RH8) where they are to go; Plymouth (RK9) is another hospital.
"""

from datetime import timedelta

import pytest

from hub.demo.people import MARSHWIGGLE
from hub.journey.decide import Choice
from hub.store import tables as t
from tests.stories.conftest import edited, resources
from tests.stories.test_journeys import accepted, admit, answer, ask, discharge, on_the_way

OLD_STAY = "W-0"


def period(began, **lasted):
    return {"start": began.isoformat(), "end": (began + timedelta(**lasted)).isoformat()}


# ----------------------------------------------------------------------------------------------------------------------
# Old stays that are told again
# ----------------------------------------------------------------------------------------------------------------------


async def test_an_old_stay_that_is_coded_while_the_patient_waits_is_no_arrival(hub, torbay, exeter):
    """They were at Exeter three weeks ago; its coders finish that record an hour after Torbay has asked."""
    began = hub.clock() - timedelta(days=24)
    await exeter.discharges(
        MARSHWIGGLE,
        encounter_number=OLD_STAY,
        at=began + timedelta(days=4),
        admitted_at=began,
        disposition="19",
    )
    transfer = await ask(torbay, MARSHWIGGLE)
    hub.clock.later(hours=1)
    coded = await exeter.reports(
        "A08", MARSHWIGGLE, encounter_number=OLD_STAY, status="finished", period=period(began, days=4)
    )

    assert (str(coded), coded.transfer_id) == ("accepted", None)
    assert await hub.state(transfer) == "requested"
    assert await hub.told("RA9") == []


@pytest.mark.parametrize("status", ["in-progress", "finished"])
async def test_an_old_stay_with_a_patient_from_a_hospital_is_no_arrival_either(hub, torbay, exeter, status):
    """Whoever came from Plymouth last week did not come from Torbay now."""
    began = hub.clock() - timedelta(days=7)
    await admit(exeter, MARSHWIGGLE, stay=OLD_STAY, at=began)
    transfer = await ask(torbay, MARSHWIGGLE)
    hub.clock.later(minutes=5)
    source = {"admitSource": {"coding": [{"code": "51"}]}}
    await exeter.reports(
        "A08", MARSHWIGGLE, encounter_number=OLD_STAY, status=status, period={"start": began.isoformat()},
        hospitalization=source,
    )  # fmt: skip

    assert await hub.state(transfer) == "requested"


async def test_an_update_of_a_stay_that_does_not_say_when_it_began_is_no_arrival(hub, torbay, exeter):
    transfer = await ask(torbay, MARSHWIGGLE)
    hub.clock.later(minutes=5)
    await exeter.reports("A08", MARSHWIGGLE, encounter_number=OLD_STAY, status="finished")

    assert await hub.state(transfer) == "requested"


async def test_an_update_of_the_new_stay_is_the_arrival_if_nothing_was_told_of_it_before(hub, torbay, exeter):
    """The admission itself was lost on the way; the first that the hub hears is a ward's correction."""
    transfer = await on_the_way(hub, torbay, exeter, MARSHWIGGLE)
    hub.clock.later(hours=1)
    began = hub.clock()
    hub.clock.later(hours=1)
    await exeter.reports(
        "A08", MARSHWIGGLE, encounter_number="W-7", status="in-progress", period={"start": began.isoformat()}
    )

    assert await hub.state(transfer) == "completed"


async def test_a_stay_of_one_night_that_is_told_when_it_is_over_was_the_arrival(hub, torbay, exeter):
    transfer = await on_the_way(hub, torbay, exeter, MARSHWIGGLE)
    began = hub.clock.later(hours=1)
    hub.clock.later(hours=14)
    await exeter.discharges(MARSHWIGGLE, encounter_number="W-7", admitted_at=began, disposition="19")

    assert await hub.state(transfer) == "completed"


async def test_the_stay_that_a_patient_left_is_no_arrival_when_they_are_to_come_home(hub, torbay, exeter):
    """Torbay's coders finish the stay that sent the patient to Exeter while Exeter asks Torbay to take them back."""
    await on_the_way(hub, torbay, exeter, MARSHWIGGLE)
    left = hub.clock()
    hub.clock.later(hours=1)
    await admit(exeter, MARSHWIGGLE)
    hub.clock.later(days=9)
    home = await ask(exeter, MARSHWIGGLE, to="RA9", number="X-1", stay="W-7", kind="repatriation")
    hub.clock.later(hours=2)
    began = left - timedelta(days=2)
    await torbay.reports(
        "A08", MARSHWIGGLE, encounter_number="V-1", status="finished", period=period(began, days=2)
    )
    assert await hub.state(home) == "requested"

    await admit(torbay, MARSHWIGGLE, stay="V-2", at=hub.clock.later(hours=5))
    assert await hub.state(home) == "completed"


async def test_a_stay_that_says_itself_whose_transfer_it_is(hub, torbay, exeter):
    """It does not say when it began, but names the request."""
    transfer = await ask(torbay, MARSHWIGGLE)
    named = {"system": torbay.profile.identifier_systems.request, "value": "TR-1"}
    await exeter.reports(
        "A08", MARSHWIGGLE, encounter_number="W-7", at=hub.clock.later(hours=1), status="in-progress",
        basedOn=[{"type": "ServiceRequest", "identifier": named}],
    )  # fmt: skip

    assert await hub.state(transfer) == "completed"


# ----------------------------------------------------------------------------------------------------------------------
# Asked here, asked there
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["withdrawn", "redirected"])
async def test_refused_then_asked_elsewhere_then_left(hub, torbay, exeter, plymouth, how):
    """The same stay was named in both requests; the patient leaves for the hospital that took them."""
    first = await ask(torbay, MARSHWIGGLE)
    hub.clock.later(minutes=5)
    await answer(exeter, "rejected", MARSHWIGGLE, torbay, reason="RRNA")
    if how == "withdrawn":
        await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number="TR-1")
        hub.clock.later(minutes=5)
    replaces = "TR-1" if how == "redirected" else None
    second = await ask(torbay, MARSHWIGGLE, to="RK9", number="TR-2", replaces=replaces)
    hub.clock.later(minutes=5)
    await answer(plymouth, "accepted", MARSHWIGGLE, torbay, number="TR-2")
    told = await hub.told("RH8")
    left = await discharge(torbay, MARSHWIGGLE, to_site="RK950")

    assert (str(left), left.transfer_id) == ("accepted", second)
    assert await hub.state(second) == "in-transit"
    assert await hub.state(first) in {"cancelled", "redirected"}
    assert (await hub.told("RK9"))[-1] == "transfer.departed"
    assert await hub.told("RH8") == told
    hub.clock.later(hours=1)
    await admit(plymouth, MARSHWIGGLE)
    assert await hub.state(second) == "completed"


async def test_asked_again_without_the_stay_then_left(hub, torbay, exeter, plymouth):
    """The second request names no stay: the first one, which is over, is the only one that knows it."""
    await ask(torbay, MARSHWIGGLE)
    hub.clock.later(minutes=5)
    await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number="TR-1")
    second = await torbay.send(without_stay(request(hub, torbay, to="RK9", number="TR-2")))
    hub.clock.later(minutes=5)
    left = await discharge(torbay, MARSHWIGGLE, to_site="RK950")

    assert left.transfer_id == second.transfer_id
    assert await hub.state(second.transfer_id) == "in-transit"


async def test_two_hospitals_were_asked_and_the_discharge_says_to_which_the_patient_goes(
    hub, torbay, exeter, plymouth
):
    first = await ask(torbay, MARSHWIGGLE)
    second = await ask(torbay, MARSHWIGGLE, to="RK9", number="TR-2", specialty="150")
    hub.clock.later(minutes=5)
    left = await discharge(torbay, MARSHWIGGLE, to_site="RK950")

    assert left.transfer_id == second
    assert (await hub.state(first), await hub.state(second)) == ("requested", "in-transit")


async def test_a_cancelled_transfer_whose_patient_leaves_after_all(hub, torbay, exeter):
    transfer = await accepted(hub, torbay, exeter, MARSHWIGGLE)
    await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number="TR-1")
    hub.clock.later(minutes=5)
    left = await discharge(torbay, MARSHWIGGLE)

    assert left.flags == ("moved-without-acceptance",)
    assert await hub.state(transfer) == "in-transit"


async def test_who_arrived_by_one_transfer_leaves_by_the_next(hub, torbay, exeter):
    """Exeter's request to send the patient home names no stay; the stay that ends is the one that Torbay's transfer brought."""
    await on_the_way(hub, torbay, exeter, MARSHWIGGLE)
    hub.clock.later(hours=1)
    await admit(exeter, MARSHWIGGLE)
    hub.clock.later(days=2)
    home = (await exeter.send(without_stay(request(hub, exeter, to="RA9", number="X-1")))).transfer_id
    hub.clock.later(hours=2)
    await discharge(exeter, MARSHWIGGLE, to_site="RA901", stay="W-7")

    assert await hub.state(home) == "in-transit"


def request(hub, hospital, *, to, number, stay="V-1"):
    return hospital.epr.asks_to_transfer(
        MARSHWIGGLE, to=to, request_number=number, encounter_number=stay, at=hub.clock()
    )


def without_stay(message):
    """The same request without the stay that the patient is to come from."""

    def change(tree):
        tree["entry"] = [e for e in tree["entry"] if e["resource"]["resourceType"] != "Encounter"]
        resources(tree, "ServiceRequest")[0].pop("encounter")

    return edited(message, change)


# ----------------------------------------------------------------------------------------------------------------------
# Within a week of a transfer that is completed
# ----------------------------------------------------------------------------------------------------------------------


async def home_and_ill_again(hub, torbay, exeter):
    """The first transfer is over, the patient went home from Exeter, and is in Torbay's bed again."""
    hub.clock.later(hours=1)
    await discharge(torbay, MARSHWIGGLE)
    hub.clock.later(hours=1)
    await admit(exeter, MARSHWIGGLE)
    hub.clock.later(hours=24)
    await exeter.discharges(MARSHWIGGLE, encounter_number="W-7", disposition="19")
    hub.clock.later(hours=24)
    await torbay.admits(MARSHWIGGLE, encounter_number="V-2", ward="A", source="19", method="21")
    hub.clock.later(hours=4)


async def test_a_second_journey_two_days_after_the_first_is_a_transfer_of_its_own(hub, torbay, exeter):
    """Nobody asked for it, and the first request named no stay: Exeter is told that somebody is on the way."""
    first = (await torbay.send(without_stay(request(hub, torbay, to="RH8", number="TR-1")))).transfer_id
    await home_and_ill_again(hub, torbay, exeter)
    left = await discharge(torbay, MARSHWIGGLE, stay="V-2")
    hub.clock.later(hours=1)
    arrived = await admit(exeter, MARSHWIGGLE, stay="W-9")

    assert left.flags == ("transfer-inferred",)
    assert left.transfer_id == arrived.transfer_id != first
    assert (await hub.told("RH8"))[-1] == "transfer.departed"
    assert (await hub.told("RA9"))[-1] == "transfer.completed"
    assert await hub.state(left.transfer_id) == "completed"


async def test_of_a_second_journey_the_arrival_is_told_first(hub, torbay, exeter):
    first = await ask(torbay, MARSHWIGGLE)
    await home_and_ill_again(hub, torbay, exeter)
    arrived = await admit(exeter, MARSHWIGGLE, stay="W-9")

    assert arrived.flags == ("transfer-inferred",)
    assert arrived.transfer_id != first
    assert (await hub.told("RA9"))[-1] == "transfer.completed"
    left = await discharge(torbay, MARSHWIGGLE, stay="V-2", at=hub.clock() - timedelta(hours=1))
    assert left.transfer_id == arrived.transfer_id


@pytest.mark.parametrize("hours", [2, 30])
async def test_a_departure_that_is_told_after_the_arrival_is_no_second_journey(hub, torbay, exeter, hours):
    """The request named no stay, and Torbay's ward closes its record late."""
    began = hub.clock()
    hub.clock.later(hours=1)
    transfer = (await torbay.send(without_stay(request(hub, torbay, to="RH8", number="TR-1")))).transfer_id
    hub.clock.later(hours=3)
    await admit(exeter, MARSHWIGGLE)
    hub.clock.later(hours=hours)
    left = await torbay.discharges(MARSHWIGGLE, encounter_number="V-1", admitted_at=began, to_site="RH801")

    assert left.transfer_id == transfer
    assert [row["transfer_id"] for row in await hub.rows(t.transfer)] == [transfer]


async def test_the_stay_that_somebody_has_left_sends_nobody_else(hub, torbay, exeter):
    """Exeter says by a Task that the patient is there; the stay that it opens hours later is no second arrival."""
    await torbay.admits(MARSHWIGGLE, encounter_number="V-1", ward="A", source="19", method="21")
    transfer = await on_the_way(hub, torbay, exeter, MARSHWIGGLE)
    hub.clock.later(hours=1)
    await answer(exeter, "completed", MARSHWIGGLE, torbay)
    hub.clock.later(hours=5)
    await admit(exeter, MARSHWIGGLE)

    assert [row["transfer_id"] for row in await hub.rows(t.transfer)] == [transfer]


# ----------------------------------------------------------------------------------------------------------------------
# Asked for after it happened
# ----------------------------------------------------------------------------------------------------------------------


async def moved_unasked(hub, torbay, exeter):
    left = await discharge(torbay, MARSHWIGGLE)
    hub.clock.later(hours=2)
    await admit(exeter, MARSHWIGGLE)
    assert await hub.state(left.transfer_id) == "completed"
    return left.transfer_id


@pytest.mark.parametrize(("days", "names_stay"), [(90, False), (90, True), (2, False)])
async def test_a_request_for_another_journey_does_not_vanish_in_one_that_nobody_asked_for(
    hub, torbay, exeter, days, names_stay
):
    """An urgent request, weeks after the patient had been moved without one; Exeter has to hear that it is asked."""
    moved = await moved_unasked(hub, torbay, exeter)
    hub.clock.later(days=days)
    asked = request(hub, torbay, to="RH8", number="TR-9")
    again = (await torbay.send(asked if names_stay else without_stay(asked))).transfer_id

    assert again != moved
    assert await hub.state(again) == "requested"
    assert (await hub.inbox("RH8"))[-1].of("Task")["status"] == "requested"


async def test_a_stay_that_moved_in_vain_is_asked_for_anew(hub, torbay, exeter):
    """Nobody asked, the ambulance turned back, and Torbay asks for the same stay the next day."""
    left = await discharge(torbay, MARSHWIGGLE)
    hub.clock.later(hours=1)
    said = await torbay.answers(
        MARSHWIGGLE, "failed", requester=torbay.profile, transfer_id=left.transfer_id, reason="OTH"
    )
    assert str(said) == "accepted"
    hub.clock.later(hours=20)
    again = await ask(torbay, MARSHWIGGLE)

    assert (await hub.state(left.transfer_id), await hub.state(again)) == ("failed", "requested")


@pytest.mark.parametrize("names_stay", [True, False])
async def test_a_request_that_was_asked_in_time_and_came_late_is_for_what_happened(
    hub, torbay, exeter, names_stay
):
    asked = request(hub, torbay, to="RH8", number="TR-1")
    hub.clock.later(minutes=20)
    moved = await moved_unasked(hub, torbay, exeter)
    hub.clock.later(days=1)
    late = await torbay.send(asked if names_stay else without_stay(asked))

    assert late.transfer_id == moved
    assert await hub.state(moved) == "completed"


# ----------------------------------------------------------------------------------------------------------------------
# Answers, and what they call their request
# ----------------------------------------------------------------------------------------------------------------------


def renamed(message, hospital, focus=None):
    """The answer with another focus or none, about the patient by the answering hospital's own number."""

    def change(tree):
        [task] = resources(tree, "Task")
        task.pop("focus")
        task.pop("basedOn", None)
        if focus is not None:
            task["focus"] = focus
        own = {
            "system": hospital.profile.identifier_systems.patient,
            "value": MARSHWIGGLE.local[hospital.ods],
        }
        task["for"] = {"type": "Patient", "identifier": own}

    return edited(message, change)


async def refuses(hospital, asker, number, **more):
    return await hospital.answers(
        MARSHWIGGLE, "rejected", requester=asker.profile, request_number=number, reason="RRNA", **more
    )


async def refuses_as(hospital, asker, focus, at=None):
    """A refusal that calls its request ``focus``, in a conversation of its own."""
    said = hospital.epr.answers(
        MARSHWIGGLE,
        "rejected",
        requester=asker.profile,
        request_number="another",
        at=at or hospital.hub.clock(),
        reason="RRNA",
    )
    return await hospital.send(renamed(said, hospital, focus))


async def test_an_answer_to_an_unknown_request_waits_though_its_conversation_is_known(hub, torbay, exeter):
    """Torbay asks twice in one conversation; the answer to the second request overtakes it."""
    transfer = await ask(torbay, MARSHWIGGLE)
    [row] = await hub.rows(t.transfer)
    said = await refuses(exeter, torbay, "TR-2", correlation_id=row["correlation_id"])
    assert (said.disposition, said.why) == ("quarantined", "transfer-unknown")
    assert await hub.state(transfer) == "requested"

    second = await ask(torbay, MARSHWIGGLE, number="TR-2", specialty="150", at=hub.clock.later(seconds=-5))
    assert (await hub.unit.retry(said.event_id, "duty team")).disposition == "accepted"
    assert (await hub.state(transfer), await hub.state(second)) == ("requested", "rejected")


@pytest.mark.parametrize("number", ["TR-2", "TR-3"])
async def test_the_hubs_id_of_one_transfer_and_the_number_of_another_request_is_a_question(
    hub, torbay, exeter, number
):
    """TR-3 is a request that the hub does not know, or not yet."""
    first = await ask(torbay, MARSHWIGGLE)
    second = await ask(torbay, MARSHWIGGLE, number="TR-2", specialty="150")
    said = await refuses(exeter, torbay, number, transfer_id=first)

    assert (said.disposition, said.why) == ("quarantined", "needs-confirmation")
    assert {await hub.state(first), await hub.state(second)} == {"requested"}
    await hub.unit.retry(said.event_id, "duty team", Choice(transfer_id=second))
    assert (await hub.state(first), await hub.state(second)) == ("requested", "rejected")


async def test_the_hubs_id_with_the_right_number_is_no_question(hub, torbay, exeter):
    transfer = await ask(torbay, MARSHWIGGLE)
    said = await refuses(exeter, torbay, "TR-1", transfer_id=transfer)

    assert (str(said), await hub.state(transfer)) == ("accepted", "rejected")


def numbered(number):
    return {"type": "ServiceRequest", "identifier": {"value": number}}


def at_url(end):
    return {"reference": f"https://epr.example/fhir/{end}"}


@pytest.mark.parametrize(
    ("focus", "means_it"),
    [
        (None, True),
        (numbered("TR-1"), True),
        (numbered("TR-2"), False),
        (numbered("8812377"), False),
        (at_url("ServiceRequest/8812377"), True),
        (at_url("ServiceRequest/5f0c7a4e-3c1d-4b4e-9c59-0d8d0e5a1c11"), True),
        (at_url("ServiceRequest/TR-1"), True),
        (at_url("ServiceRequest/TR-2"), False),
        (at_url("ServiceRequest/tr-20/_history/1"), False),
        (at_url("ServiceRequest/OLD-7"), False),
        (at_url("CarePlan/TR-2"), True),
        (at_url("MedicationRequest/8812377"), False),
        ({"type": "QuestionnaireResponse", "display": "May a relative see the record?"}, False),
    ],
)
async def test_the_one_open_transfer_is_meant_unless_the_answer_calls_it_something_else(
    hub, torbay, exeter, focus, means_it
):
    """The key of a request on the answering hospital's own server says nothing; another request's number does."""
    await exeter.tells_of_patient("A28", MARSHWIGGLE)
    await ask(torbay, MARSHWIGGLE, number="OLD-7", stay="V-0")
    await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number="OLD-7", at=hub.clock.later(minutes=1))
    transfer = await ask(torbay, MARSHWIGGLE)
    hub.clock.later(minutes=1)
    said = await refuses_as(exeter, torbay, focus)

    assert said.why == (None if means_it else "transfer-unknown")
    assert await hub.state(transfer) == ("rejected" if means_it else "requested")


async def test_of_two_open_transfers_a_number_without_a_system_is_enough(hub, torbay, exeter):
    await exeter.tells_of_patient("A28", MARSHWIGGLE)
    first = await ask(torbay, MARSHWIGGLE)
    second = await ask(torbay, MARSHWIGGLE, number="TR-2", specialty="150")
    hub.clock.later(minutes=1)
    assert (await refuses_as(exeter, torbay, None)).why == "needs-confirmation"
    assert str(await refuses_as(exeter, torbay, numbered("TR-2"))) == "accepted"

    assert (await hub.state(first), await hub.state(second)) == ("requested", "rejected")


@pytest.mark.parametrize(("hours", "means_it"), [(6, False), (0.5, True)])
async def test_a_refusal_of_what_was_asked_by_telephone_is_not_of_the_request_that_comes_later(
    hub, torbay, exeter, hours, means_it
):
    """It waits for its transfer, and must not be laid against the first one that comes; but clocks may differ."""
    await exeter.tells_of_patient("A28", MARSHWIGGLE)
    said = await refuses_as(exeter, torbay, None)
    assert (said.disposition, said.why) == ("quarantined", "transfer-unknown")
    hub.clock.later(hours=hours)
    transfer = await ask(torbay, MARSHWIGGLE)
    await hub.unit.retry(said.event_id, "duty team")

    assert await hub.state(transfer) == ("rejected" if means_it else "requested")


async def test_an_answer_that_goes_to_another_hospital_is_about_another_transfer(
    hub, torbay, exeter, plymouth
):
    """Exeter has asked Torbay and withdraws what it promised Plymouth, whose request the hub does not know."""
    own = await ask(exeter, MARSHWIGGLE, to="RA9", number="X-1", stay="W-1")
    hub.clock.later(minutes=5)
    said = await refuses_as(exeter, plymouth, None)
    by_id = await refuses(exeter, plymouth, None, transfer_id=own)

    assert {said.why, by_id.why} == {"transfer-unknown"}
    assert await hub.state(own) == "requested"
    assert await hub.told("RA9") == ["transfer.requested"]


async def test_whom_an_answer_goes_to_says_which_transfer_it_is_about(hub, torbay, exeter, plymouth):
    own = await ask(exeter, MARSHWIGGLE, to="RK9", number="X-1", stay="W-1")
    asked = await ask(torbay, MARSHWIGGLE)
    hub.clock.later(minutes=5)
    said = await refuses_as(exeter, torbay, None)

    assert said.transfer_id == asked
    assert (await hub.state(own), await hub.state(asked)) == ("requested", "rejected")


# ----------------------------------------------------------------------------------------------------------------------
# Ordinary journeys that must go on
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_asked", [True, False])
async def test_the_patient_returns_to_a_bed_that_was_kept(hub, torbay, exeter, is_asked):
    """Torbay's patient goes to Exeter for two days, on leave from a stay that began a month ago, and comes back to it."""
    began = hub.clock() - timedelta(days=30)
    kept = {"encounter_number": "V-1", "period": {"start": began.isoformat()}}
    await torbay.admits(MARSHWIGGLE, encounter_number="V-1", ward="A", source="19", method="21", at=began)
    await torbay.reports("A21", MARSHWIGGLE, status="onleave", **kept)
    hub.clock.later(hours=1)
    await exeter.admits(MARSHWIGGLE, encounter_number="W-7", ward="Taw", source="19", method="21")
    hub.clock.later(days=2)
    if is_asked:
        await ask(exeter, MARSHWIGGLE, to="RA9", number="X-1", stay="W-7")
        hub.clock.later(minutes=9)
        await answer(torbay, "accepted", MARSHWIGGLE, exeter, number="X-1")
        hub.clock.later(hours=1)
    left = await discharge(exeter, MARSHWIGGLE, to_site="RA901", stay="W-7")
    hub.clock.later(hours=1)
    await torbay.reports("A22", MARSHWIGGLE, status="in-progress", **kept)
    assert await hub.state(left.transfer_id) == "completed"


@pytest.mark.parametrize("goal", [("RK950", "RK9"), ("RA901", "RA9")])
async def test_from_the_bed_that_one_transfer_brought_them_to_the_next_begins(
    hub, torbay, exeter, plymouth, goal
):
    """Three days later Exeter sends the patient on, or home again, and nobody has asked."""
    site, trust = goal
    first = await on_the_way(hub, torbay, exeter, MARSHWIGGLE)
    hub.clock.later(hours=1)
    await admit(exeter, MARSHWIGGLE)
    assert await hub.state(first) == "completed"
    hub.clock.later(days=3)
    left = await exeter.discharges(MARSHWIGGLE, encounter_number="W-7", to_site=site)
    assert left.transfer_id not in {None, first}
    assert (await hub.told(trust))[-1] == "transfer.departed"


def refers(focus):
    def change(tree):
        [task] = resources(tree, "Task")
        task.pop("basedOn", None)
        task["focus"] = focus

    return change


async def test_a_number_of_the_answering_hospitals_own_says_nothing_against_the_conversation(
    hub, torbay, exeter
):
    transfer = await ask(torbay, MARSHWIGGLE)
    hub.clock.later(minutes=5)
    own = {"system": "https://fhir.royaldevon.example/Id/incoming-referral", "value": "IN-77"}
    said = exeter.epr.answers(
        MARSHWIGGLE, "accepted", requester=torbay.profile, request_number="TR-1", at=hub.clock()
    )
    await exeter.send(edited(said, refers({"type": "ServiceRequest", "identifier": own})))
    assert await hub.state(transfer) == "accepted"


async def test_a_task_about_a_stay_does_not_call_its_request_by_the_stays_number(hub, torbay, exeter):
    transfer = await ask(torbay, MARSHWIGGLE)
    hub.clock.later(minutes=5)
    stay = {"system": exeter.profile.identifier_systems.encounter, "value": "W-7"}
    said = exeter.epr.answers(
        MARSHWIGGLE, "accepted", requester=torbay.profile, request_number="TR-1", at=hub.clock()
    )
    await exeter.send(edited(said, refers({"type": "Encounter", "identifier": stay})))
    assert await hub.state(transfer) == "accepted"


async def test_an_answer_that_goes_to_another_in_copy_is_for_the_requester(hub, torbay, exeter):
    transfer = await ask(torbay, MARSHWIGGLE)
    hub.clock.later(minutes=5)
    said = exeter.epr.answers(
        MARSHWIGGLE, "accepted", requester=torbay.profile, request_number="TR-1", at=hub.clock()
    )

    def in_copy(tree):
        [header] = resources(tree, "MessageHeader")
        copy = {"system": "https://fhir.nhs.uk/Id/ods-organization-code", "value": "RK9"}
        first = {"endpoint": "https://rk9.example", "receiver": {"identifier": copy}}
        header["destination"] = [first, *header.get("destination", [])]

    await exeter.send(edited(said, in_copy))
    assert await hub.state(transfer) == "accepted"
