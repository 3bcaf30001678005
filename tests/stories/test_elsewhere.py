"""The patient goes elsewhere than to where a request had been made, and a stay that is planned and no arrival.

Each is one patient. Torbay (RA9) is where they are, Exeter (RH8) and Plymouth (RK9) are where they may go.
"""

from datetime import timedelta

import pytest

from hub.demo.people import MARSHWIGGLE
from hub.journey.decide import Choice
from hub.store import tables as t
from tests.stories.conftest import edited, resources
from tests.stories.rest import System, facade_of
from tests.stories.test_journeys import accepted, admit, answer, ask, discharge, on_the_way
from tests.stories.test_which_transfer import without_stay

PLYMOUTH = "RK950"


async def two_are_asked(hub, torbay, *, names_stay=True):
    """Exeter and Plymouth, for two specialties."""
    first = await ask(torbay, MARSHWIGGLE)
    asked = torbay.epr.asks_to_transfer(
        MARSHWIGGLE, to="RK9", request_number="TR-2", encounter_number="V-1", at=hub.clock(), specialty="150"
    )
    second = await torbay.send(asked if names_stay else without_stay(asked))
    hub.clock.later(minutes=5)
    return first, second.transfer_id


# ----------------------------------------------------------------------------------------------------------------------
# Nobody asked the hospital to which they go
# ----------------------------------------------------------------------------------------------------------------------


async def withdrawn(hub, torbay, exeter):
    transfer = await accepted(hub, torbay, exeter, MARSHWIGGLE)
    await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number="TR-1")
    return transfer


async def sent_in_error(hub, torbay, exeter):
    transfer = await ask(torbay, MARSHWIGGLE)
    hub.clock.later(minutes=5)
    await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number="TR-1", in_error=True)
    return transfer


async def refused(hub, torbay, exeter):
    transfer = await ask(torbay, MARSHWIGGLE)
    hub.clock.later(minutes=5)
    await answer(exeter, "rejected", MARSHWIGGLE, torbay, reason="RRNA")
    return transfer


async def failed(hub, torbay, exeter):
    """The ambulance turns back; by a Task, so that the discharge is not taken back."""
    transfer = await on_the_way(hub, torbay, exeter, MARSHWIGGLE)
    hub.clock.later(minutes=15)
    await answer(torbay, "failed", MARSHWIGGLE, torbay, reason="OTH")
    return transfer


async def drafted(hub, torbay, exeter):
    return await ask(torbay, MARSHWIGGLE, draft=True)


@pytest.mark.parametrize("before", [withdrawn, sent_in_error, refused, failed, drafted])
async def test_who_leaves_for_a_hospital_that_nobody_asked_is_announced_there_whatever_was_asked_elsewhere(
    hub, torbay, exeter, plymouth, before
):
    first = await before(hub, torbay, exeter)
    state, told = await hub.state(first), await hub.told("RH8")
    hub.clock.later(hours=1)
    left = await discharge(torbay, MARSHWIGGLE, to_site=PLYMOUTH)

    assert left.flags == ("transfer-inferred",)
    assert left.transfer_id != first
    assert await hub.told("RK9") == ["transfer.departed"]
    assert (await hub.state(first), await hub.told("RH8")) == (state, told)
    hub.clock.later(hours=1)
    await admit(plymouth, MARSHWIGGLE)
    assert await hub.state(left.transfer_id) == "completed"


@pytest.mark.parametrize("before", [withdrawn, sent_in_error])
async def test_who_goes_home_after_a_request_was_withdrawn_is_nobody_elses_business(
    hub, torbay, exeter, before
):
    transfer = await before(hub, torbay, exeter)
    told = await hub.told("RH8")
    hub.clock.later(hours=1)
    went = await torbay.discharges(MARSHWIGGLE, encounter_number="V-1", disposition="19")

    assert went.flags == ()
    assert await hub.told("RH8") == told
    assert await hub.state(transfer) in {"cancelled", "entered-in-error"}


@pytest.mark.parametrize(
    "where", ["home", "home, by the request's number", "to another hospital by themselves"]
)
async def test_where_a_patient_went_whom_it_refused_is_not_told_to_a_hospital(
    hub, torbay, exeter, plymouth, where
):
    transfer = await refused(hub, torbay, exeter)
    told = await hub.told("RH8")
    hub.clock.later(hours=10)
    if where == "to another hospital by themselves":
        await plymouth.admits(
            MARSHWIGGLE, encounter_number="P-1", ward="Lyn", source="19", method="21", at=hub.clock()
        )
    else:
        named = {"system": torbay.profile.identifier_systems.request, "value": "TR-1"}
        by = {"basedOn": [{"type": "ServiceRequest", "identifier": named}]} if "number" in where else {}
        await torbay.reports(
            "A03", MARSHWIGGLE, encounter_number="V-1", status="finished",
            hospitalization={"dischargeDisposition": {"coding": [{"code": "19"}]}}, **by,
        )  # fmt: skip

    assert (await hub.told("RH8"), await hub.state(transfer)) == (told, "rejected")
    at_exeter = await (await System.join(facade_of(hub), "RH8")).signed_in()
    note = (await at_exeter.get(f"/Task/{transfer}")).json()["note"][0]["text"]
    assert note == "RH8 refused (RRNA)"


@pytest.mark.parametrize("in_a_batch", [False, True])
@pytest.mark.parametrize("how", ["accepted", "ready"])
@pytest.mark.parametrize("where", ["home", "admitted by another", "left for another", "home, and back"])
async def test_a_hospital_that_takes_a_patient_after_all_hears_that_they_have_gone(
    hub, torbay, exeter, plymouth, where, how, in_a_batch
):
    """Exeter gets a bed ready, and may not wait in vain."""
    transfer = await refused(hub, torbay, exeter)
    before = await hub.told("RA9"), await hub.told("RH8")
    went_at = hub.clock.later(hours=2)
    home = torbay.epr.discharges(MARSHWIGGLE, encounter_number="V-1", disposition="19", at=went_at)
    went = {
        "admitted by another": [(plymouth, plymouth.epr.admits(
            MARSHWIGGLE, encounter_number="P-1", ward="Lyn", source="19", method="21", at=went_at
        ))],
        "left for another": [
            (torbay, torbay.epr.discharges(MARSHWIGGLE, encounter_number="V-1", to_site=PLYMOUTH, at=went_at))
        ],
    }.get(where, [(torbay, home)])  # fmt: skip
    if where.endswith("back"):
        went.append((torbay, torbay.epr.reports(
            "A13", MARSHWIGGLE, encounter_number="V-1", status="in-progress", at=hub.clock.later(minutes=5)
        )))  # fmt: skip
    hub.clock.later(minutes=10)
    takes = exeter.epr.answers(
        MARSHWIGGLE, how, requester=torbay.profile, request_number="TR-1", at=hub.clock()
    )
    records = [hospital.record(each) for hospital, each in (*went, (exeter, takes))]
    for batch in [records] if in_a_batch else [[each] for each in records]:
        await hub.take(batch)

    state, said = {
        "accepted": ("accepted", "transfer.accepted"),
        "ready": ("bed-allocated", "transfer.bed.allocated"),
    }[how]
    alarm = [] if where.endswith("back") else ["transfer.diverged"]
    assert await hub.state(transfer) == state
    assert (await hub.told("RA9"), await hub.told("RH8")) == (
        [*before[0], said, *alarm],
        [*before[1], *alarm],
    )
    hub.clock.later(minutes=10)
    await answer(exeter, "rejected", MARSHWIGGLE, torbay, reason="RRNA")
    await answer(exeter, how, MARSHWIGGLE, torbay)
    assert (await hub.told("RH8"))[len(before[1]) :] == alarm


async def test_a_stay_before_the_refusal_is_no_alarm_when_the_patient_is_taken_after_all(
    hub, torbay, exeter, plymouth
):
    """Plymouth's emergency department has sent them to Torbay in the morning."""
    await plymouth.admits(MARSHWIGGLE, encounter_number="P-1", ward="Lyn", source="19", method="21")
    hub.clock.later(hours=1)
    transfer = await refused(hub, torbay, exeter)
    await answer(exeter, "accepted", MARSHWIGGLE, torbay)
    assert (await hub.state(transfer), await hub.told("RH8")) == ("accepted", ["transfer.requested"])


async def test_who_leaves_for_the_hospital_that_refused_is_announced_there(hub, torbay, exeter):
    transfer = await refused(hub, torbay, exeter)
    hub.clock.later(hours=1)
    left = await discharge(torbay, MARSHWIGGLE)

    assert (left.transfer_id, await hub.state(transfer)) == (transfer, "in-transit")
    assert (await hub.told("RH8"))[-1] == "transfer.departed"


async def test_the_record_of_who_left_is_sent_again_and_announces_nobody_twice(hub, torbay, exeter, plymouth):
    await withdrawn(hub, torbay, exeter)
    hub.clock.later(hours=1)
    at = hub.clock()
    for _ in range(3):
        await discharge(torbay, MARSHWIGGLE, to_site=PLYMOUTH, at=at)
        hub.clock.later(minutes=30)

    assert await hub.told("RK9") == ["transfer.departed"]
    assert len(await hub.rows(t.transfer)) == 2


# ----------------------------------------------------------------------------------------------------------------------
# Back to whom had been asked before
# ----------------------------------------------------------------------------------------------------------------------


async def redirected(hub, torbay, exeter, plymouth, *, names_stay=True):
    """From Exeter, which refused, to Plymouth, which accepts."""
    first = await refused(hub, torbay, exeter)
    asked = torbay.epr.asks_to_transfer(
        MARSHWIGGLE, to="RK9", request_number="TR-2", encounter_number="V-1", at=hub.clock(), replaces="TR-1"
    )
    second = (await torbay.send(asked if names_stay else without_stay(asked))).transfer_id
    hub.clock.later(minutes=5)
    await answer(plymouth, "accepted", MARSHWIGGLE, torbay, number="TR-2")
    assert (await hub.state(first), await hub.state(second)) == ("redirected", "accepted")
    hub.clock.later(minutes=30)
    return first, second


@pytest.mark.parametrize("names_stay", [True, False])
async def test_redirected_and_then_they_leave_for_the_first_hospital_after_all(
    hub, torbay, exeter, plymouth, names_stay
):
    first, second = await redirected(hub, torbay, exeter, plymouth, names_stay=names_stay)
    left = await discharge(torbay, MARSHWIGGLE)

    assert left.transfer_id == first
    assert (await hub.state(first), await hub.state(second)) == ("in-transit", "accepted")
    assert (await hub.told("RH8"))[-1] == "transfer.reopened"
    assert (await hub.told("RK9"))[-1] == "transfer.diverged"
    assert {"transfer.reopened", "transfer.diverged"} <= set(await hub.told("RA9"))
    hub.clock.later(hours=1)
    await admit(exeter, MARSHWIGGLE)
    assert (await hub.state(first), await hub.state(second)) == ("completed", "accepted")
    assert (await hub.told("RK9")).count("transfer.diverged") == 1


async def test_the_same_from_the_bed_that_an_earlier_transfer_brought_them_to(hub, torbay, exeter, plymouth):
    """Plymouth sent them to Torbay; Torbay asks Exeter, then Plymouth again, and they leave for Exeter."""
    await ask(plymouth, MARSHWIGGLE, to="RA9", number="P-1", stay="P-1")
    hub.clock.later(hours=1)
    await admit(torbay, MARSHWIGGLE, stay="V-1")
    hub.clock.later(days=1)
    first, second = await redirected(hub, torbay, exeter, plymouth)
    left = await discharge(torbay, MARSHWIGGLE)

    assert left.transfer_id == first
    assert (await hub.state(first), await hub.state(second)) == ("in-transit", "accepted")


async def test_a_request_that_was_an_error_and_then_they_leave_for_it(hub, torbay, exeter):
    transfer = await sent_in_error(hub, torbay, exeter)
    hub.clock.later(minutes=30)
    left = await discharge(torbay, MARSHWIGGLE)

    assert (left.transfer_id, await hub.state(transfer)) == (transfer, "in-transit")
    assert (await hub.told("RH8"))[-1] == "transfer.reopened"


async def test_what_nobody_asked_was_taken_back_and_they_leave_again(hub, torbay, exeter):
    left = await discharge(torbay, MARSHWIGGLE)
    hub.clock.later(minutes=10)
    await torbay.reports("A13", MARSHWIGGLE, encounter_number="V-1", status="in-progress")
    assert await hub.state(left.transfer_id) == "entered-in-error"
    hub.clock.later(hours=1)
    await discharge(torbay, MARSHWIGGLE)

    assert await hub.state(left.transfer_id) == "in-transit"
    assert (await hub.told("RH8"))[-1] == "transfer.reopened"


async def test_who_was_turned_back_and_leaves_again_is_announced_again(hub, torbay, exeter):
    """The same stay, the same hospital; its record that is only sent again announces nobody."""
    first = await failed(hub, torbay, exeter)
    told = await hub.told("RH8")
    await torbay.reports(
        "A08", MARSHWIGGLE, encounter_number="V-1", status="finished", at=hub.clock.later(minutes=5),
        hospitalization={"destination": site("RH801"), "dischargeDisposition": {"coding": [{"code": "51"}]}},
    )  # fmt: skip
    assert await hub.told("RH8") == told
    hub.clock.later(hours=3)
    again = await discharge(torbay, MARSHWIGGLE)

    assert again.transfer_id not in {None, first}
    assert (await hub.told("RH8"))[-1] == "transfer.departed"
    assert await hub.state(first) == "failed"


def site(code):
    return {
        "type": "Location",
        "identifier": {"system": "https://fhir.nhs.uk/Id/ods-site-code", "value": code},
    }


async def test_a_wrong_destination_that_is_coded_after_the_arrival_sends_nobody_to_the_former_receiver(
    hub, torbay, exeter, plymouth
):
    first, second = await redirected(hub, torbay, exeter, plymouth)
    await discharge(torbay, MARSHWIGGLE, to_site=PLYMOUTH)
    hub.clock.later(hours=1)
    await admit(plymouth, MARSHWIGGLE)
    told = await hub.told("RH8")
    hub.clock.later(days=1)
    await torbay.reports(
        "A08", MARSHWIGGLE, encounter_number="V-1", status="finished",
        hospitalization={"destination": site("RH801"), "dischargeDisposition": {"coding": [{"code": "51"}]}},
    )  # fmt: skip

    assert (await hub.state(first), await hub.state(second)) == ("redirected", "completed")
    assert await hub.told("RH8") == told


# ----------------------------------------------------------------------------------------------------------------------
# Two hospitals were asked
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names_stay", [True, False])
async def test_of_two_that_were_asked_the_other_hears_at_once_that_the_patient_left(
    hub, torbay, exeter, plymouth, names_stay
):
    first, second = await two_are_asked(hub, torbay, names_stay=names_stay)
    await answer(exeter, "ready", MARSHWIGGLE, torbay)
    left = await discharge(torbay, MARSHWIGGLE, to_site=PLYMOUTH)

    assert left.transfer_id == second
    assert (await hub.state(first), await hub.state(second)) == ("bed-allocated", "in-transit")
    assert (await hub.told("RK9"))[-1] == "transfer.departed"
    alarm = (await hub.inbox("RH8"))[-1]
    assert alarm.event_type == "transfer.diverged"
    assert [e["resource"]["resourceType"] for e in alarm.bundle["entry"]] == ["MessageHeader", "Task"]
    assert (await hub.told("RA9"))[-1] == "transfer.diverged"
    at_exeter = await (await System.join(facade_of(hub), "RH8")).signed_in()
    stays = (await at_exeter.get("/Encounter")).json().get("entry", [])
    assert all(each["resource"].get("status") != "finished" for each in stays)

    hub.clock.later(hours=1)
    await admit(plymouth, MARSHWIGGLE)
    await discharge(torbay, MARSHWIGGLE, to_site=PLYMOUTH, at=hub.clock() - timedelta(hours=1))
    assert (await hub.told("RH8")).count("transfer.diverged") == 1
    closed = await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number="TR-1")
    assert (str(closed), await hub.state(first)) == ("accepted", "cancelled")


async def test_of_two_that_were_asked_the_other_hears_that_the_patient_was_admitted(
    hub, torbay, exeter, plymouth
):
    """Torbay's ward closes its record late: Plymouth's admission is the first that is heard."""
    first, second = await two_are_asked(hub, torbay)
    await admit(plymouth, MARSHWIGGLE, stay="P-1")

    assert (await hub.state(first), await hub.state(second)) == ("requested", "completed")
    assert (await hub.told("RH8"))[-1] == "transfer.diverged"
    assert "transfer.diverged" in await hub.told("RA9")
    await plymouth.reports(
        "A11", MARSHWIGGLE, encounter_number="P-1", status="cancelled", at=hub.clock.later(minutes=9)
    )
    assert (await hub.told("RH8"))[-1] == "transfer.corrected"
    assert (await hub.state(first), await hub.state(second)) == ("requested", "requested")


@pytest.mark.parametrize("names_stay", [True, False])
async def test_of_two_that_were_asked_the_other_hears_of_a_departure_that_a_task_told(
    hub, torbay, exeter, plymouth, names_stay
):
    """Torbay's bed manager says it before the ward closes the record; Exeter has kept a bed."""
    first, second = await two_are_asked(hub, torbay, names_stay=names_stay)
    await answer(exeter, "ready", MARSHWIGGLE, torbay)
    hub.clock.later(minutes=5)
    left = await answer(torbay, "in-progress", MARSHWIGGLE, torbay, number="TR-2", reason="OTH")

    assert (str(left), left.transfer_id) == ("accepted", second)
    assert (await hub.state(first), await hub.state(second)) == ("bed-allocated", "in-transit")
    assert (await hub.told("RK9"))[-1] == "transfer.departed"
    alarm = (await hub.inbox("RH8"))[-1]
    assert (alarm.event_type, alarm.headers["transfer-id"]) == ("transfer.diverged", first)
    assert [e["resource"]["resourceType"] for e in alarm.bundle["entry"]] == ["MessageHeader", "Task"]
    task = alarm.of("Task")
    assert task["note"][0]["text"] == "RA9 said that the patient has left for another hospital, not RH8"
    # What the Task says else is Plymouth's.
    assert "statusReason" not in task
    requested = next(each for each in await hub.inbox("RH8") if each.event_type == "transfer.requested")
    assert alarm.headers["x-correlation-id"] == requested.headers["x-correlation-id"]
    assert (await hub.told("RA9"))[-1] == "transfer.diverged"

    # Sent again, nobody is alarmed again; the ward's record says it too, and takes both back when it is taken back.
    hub.clock.later(minutes=5)
    await answer(torbay, "in-progress", MARSHWIGGLE, torbay, number="TR-2")
    assert (await hub.told("RH8")).count("transfer.diverged") == 1
    await discharge(torbay, MARSHWIGGLE, to_site=PLYMOUTH)
    hub.clock.later(minutes=10)
    await torbay.reports("A13", MARSHWIGGLE, encounter_number="V-1", status="in-progress")
    assert (await hub.told("RH8"))[-1] == (await hub.told("RK9"))[-1] == "transfer.corrected"
    assert (await hub.state(first), await hub.state(second)) == ("bed-allocated", "requested")


async def test_of_two_that_were_asked_the_other_hears_of_an_admission_that_a_task_told(
    hub, torbay, exeter, plymouth
):
    first, second = await two_are_asked(hub, torbay)
    await answer(plymouth, "completed", MARSHWIGGLE, torbay, number="TR-2")
    assert (await hub.state(first), await hub.state(second)) == ("requested", "completed")
    alarm = (await hub.inbox("RH8"))[-1]
    assert (alarm.event_type, alarm.headers["transfer-id"]) == ("transfer.diverged", first)
    assert "RK9, which has no part in it" in alarm.of("Task")["note"][0]["text"]
    assert (await hub.told("RA9"))[-1] == "transfer.diverged"


async def test_a_departure_told_by_its_address_moves_that_transfer_and_alarms_the_other(
    hub, torbay, exeter, plymouth, at_torbay
):
    first, second = await two_are_asked(hub, torbay)
    task = (await at_torbay.get(f"/Task/{second}")).json()
    said = await at_torbay.put(task | {"status": "in-progress", "lastModified": hub.clock().isoformat()})
    hub.expected += 1
    assert said.status_code == 200, said.text
    assert (await hub.state(first), await hub.state(second)) == ("requested", "in-transit")
    assert (await hub.told("RH8"))[-1] == "transfer.diverged"


@pytest.mark.parametrize("how", ["asked afterwards", "from another stay", "to come back"])
async def test_a_departure_by_task_alarms_nobody_who_may_still_expect_the_patient(
    hub, torbay, exeter, plymouth, how
):
    kind = {"kind": "treat-and-return"} if how == "to come back" else {}
    await torbay.asks_to_transfer(
        MARSHWIGGLE, to="RK9", request_number="TR-2", encounter_number="V-1", specialty="150", **kind
    )
    other = {"stay": "V-2"} if how == "from another stay" else {}
    left_at = hub.clock.later(minutes=5)
    hub.clock.later(hours=2)
    if how == "asked afterwards":
        await ask(torbay, MARSHWIGGLE)
        await answer(torbay, "in-progress", MARSHWIGGLE, torbay, number="TR-2", at=left_at)
    else:
        await ask(torbay, MARSHWIGGLE, **other)
        hub.clock.later(minutes=5)
        await answer(torbay, "in-progress", MARSHWIGGLE, torbay, number="TR-2")
    assert (await hub.told("RK9"))[-1] == "transfer.departed"
    assert await hub.told("RH8") == ["transfer.requested"]


@pytest.mark.parametrize("waits", [False, True])
async def test_a_departure_told_after_the_arrival_is_that_transfers_though_another_hospital_waits(
    hub, torbay, exeter, plymouth, waits
):
    """Nobody had accepted them, which both must hear, whether or not Exeter was asked as well."""
    second = (await two_are_asked(hub, torbay))[1] if waits else await ask(torbay, MARSHWIGGLE, to="RK9")
    left_at = hub.clock.later(minutes=10)
    hub.clock.later(hours=1)
    await admit(plymouth, MARSHWIGGLE, stay="P-1")
    left = await discharge(torbay, MARSHWIGGLE, to_site=PLYMOUTH, at=left_at)

    assert (left.transfer_id, await hub.state(second)) == (second, "completed")
    assert "moved-without-acceptance" in left.flags
    assert (await hub.told("RK9"))[-1] == "transfer.departed"
    assert "transfer.departed" in await hub.told("RA9")


async def test_the_discharge_is_cancelled_and_both_are_as_they_were(hub, torbay, exeter, plymouth):
    first, second = await two_are_asked(hub, torbay)
    await discharge(torbay, MARSHWIGGLE, to_site=PLYMOUTH)
    hub.clock.later(minutes=10)
    back = await torbay.reports("A13", MARSHWIGGLE, encounter_number="V-1", status="in-progress")

    assert str(back) == "accepted"
    assert (await hub.state(first), await hub.state(second)) == ("requested", "requested")
    assert (await hub.told("RH8"))[-1] == (await hub.told("RK9"))[-1] == "transfer.corrected"
    hub.clock.later(minutes=10)
    await discharge(torbay, MARSHWIGGLE)
    assert (await hub.state(first), await hub.state(second)) == ("in-transit", "requested")
    assert (await hub.told("RK9"))[-1] == "transfer.diverged"


async def test_the_discharge_named_the_wrong_one_of_two(hub, torbay, exeter, plymouth):
    """The patient is at Exeter, and Plymouth, where they were announced, hears of it."""
    first, second = await two_are_asked(hub, torbay)
    await discharge(torbay, MARSHWIGGLE, to_site=PLYMOUTH)
    hub.clock.later(hours=1)
    await admit(exeter, MARSHWIGGLE)

    assert (await hub.state(first), await hub.state(second)) == ("completed", "in-transit")
    assert (await hub.told("RK9"))[-1] == "transfer.diverged"


async def test_the_duty_team_says_to_which_of_two_and_the_other_hears_of_it(hub, torbay, exeter, plymouth):
    first, second = await two_are_asked(hub, torbay)
    left = await discharge(torbay, MARSHWIGGLE, to_site=None)
    assert left.why == "needs-confirmation"
    await hub.unit.retry(left.event_id, "duty team", Choice(transfer_id=second))

    assert (await hub.state(first), await hub.state(second)) == ("requested", "in-transit")
    assert (await hub.told("RH8"))[-1] == "transfer.diverged"


async def test_two_requests_to_one_hospital_are_not_elsewhere(hub, torbay, exeter):
    """Two of its specialties; which of them is for a person to say, and the other is no alarm."""
    first = await ask(torbay, MARSHWIGGLE)
    second = await ask(torbay, MARSHWIGGLE, number="TR-2", specialty="150")
    hub.clock.later(minutes=5)
    left = await discharge(torbay, MARSHWIGGLE)
    assert left.why == "needs-confirmation"
    await hub.unit.retry(left.event_id, "duty team", Choice(transfer_id=second))

    assert (await hub.state(first), await hub.state(second)) == ("requested", "in-transit")
    assert "transfer.diverged" not in await hub.told("RH8")


async def test_in_one_batch_it_is_as_one_by_one(hub, torbay, exeter, plymouth):
    at, epr = hub.clock(), torbay.epr
    asked = {"encounter_number": "V-1", "at": at}
    said = (
        epr.asks_to_transfer(MARSHWIGGLE, to="RH8", request_number="TR-1", **asked),
        epr.asks_to_transfer(MARSHWIGGLE, to="RK9", request_number="TR-2", specialty="150", **asked),
        epr.discharges(MARSHWIGGLE, encounter_number="V-1", to_site=PLYMOUTH, at=hub.clock.later(minutes=5)),
        epr.reports("A13", MARSHWIGGLE, encounter_number="V-1", status="in-progress", at=hub.clock.later(minutes=5)),
        epr.discharges(MARSHWIGGLE, encounter_number="V-1", to_site="RH801", at=hub.clock.later(minutes=5)),
    )  # fmt: skip
    await hub.take([torbay.record(each) for each in said])

    assert await hub.told("RH8") == [
        "transfer.requested", "transfer.diverged", "transfer.corrected", "transfer.departed"
    ]  # fmt: skip
    assert await hub.told("RK9") == [
        "transfer.requested", "transfer.departed", "transfer.corrected", "transfer.diverged"
    ]  # fmt: skip


async def test_a_draft_and_an_arrival_in_one_batch(hub, torbay, exeter):
    at = hub.clock()
    asked = {"to": "RH8", "request_number": "TR-1", "encounter_number": "V-1"}
    draft = torbay.epr.asks_to_transfer(MARSHWIGGLE, at=at, draft=True, **asked)
    arrival = exeter.epr.admits(
        MARSHWIGGLE, encounter_number="W-7", ward="Taw", at=hub.clock.later(minutes=30)
    )
    request_ = torbay.epr.asks_to_transfer(MARSHWIGGLE, at=hub.clock.later(minutes=10), **asked)
    await hub.take([torbay.record(draft), exeter.record(arrival), torbay.record(request_)])

    [row] = await hub.rows(t.transfer)
    assert row["state"] == "completed"
    assert await hub.told("RH8") == ["transfer.requested"]


async def test_two_were_asked_and_the_patient_goes_home_is_no_question(hub, torbay, exeter, plymouth):
    await two_are_asked(hub, torbay)
    went = await torbay.discharges(MARSHWIGGLE, encounter_number="V-1", disposition="19")

    assert (str(went), went.flags) == ("accepted", ("records-diverge",))
    assert (await hub.told("RH8"))[-1] == (await hub.told("RK9"))[-1] == "transfer.diverged"


async def test_who_is_treated_elsewhere_and_comes_back_is_still_expected_by_the_other(
    hub, torbay, exeter, plymouth
):
    await ask(torbay, MARSHWIGGLE, kind="treat-and-return")
    await ask(torbay, MARSHWIGGLE, to="RK9", number="TR-2", specialty="150")
    hub.clock.later(minutes=9)
    await torbay.reports("A21", MARSHWIGGLE, encounter_number="V-1", status="onleave")
    hub.clock.later(hours=1)
    await admit(exeter, MARSHWIGGLE)

    assert "transfer.diverged" not in await hub.told("RK9")


async def test_a_draft_for_another_hospital_is_not_told(hub, torbay, exeter, plymouth):
    await ask(torbay, MARSHWIGGLE)
    await ask(torbay, MARSHWIGGLE, to="RK9", number="TR-2", specialty="150", draft=True)
    hub.clock.later(minutes=9)
    left = await discharge(torbay, MARSHWIGGLE)

    assert str(left) == "accepted"
    assert await hub.told("RK9") == []


# ----------------------------------------------------------------------------------------------------------------------
# An alarm that was an arrival: one hospital's messages are read hours after another's
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [True, False])
async def test_who_was_sent_on_has_arrived_though_the_hospital_in_between_is_read_last(
    hub, torbay, exeter, plymouth, asked
):
    """Torbay to Exeter to Plymouth. Plymouth's admission is an alarm to the first transfer before the second one is known."""
    first = await on_the_way(hub, torbay, exeter, MARSHWIGGLE)
    there, asked_at, left_at = (hub.clock() + timedelta(hours=each) for each in (1, 2, 3))
    hub.clock.later(hours=5)
    await admit(plymouth, MARSHWIGGLE, stay="P-1")
    assert (await hub.told("RH8"))[-1] == "transfer.diverged"
    hub.clock.later(hours=4)
    await admit(exeter, MARSHWIGGLE, at=there)
    if asked:
        await ask(exeter, MARSHWIGGLE, to="RK9", number="X-1", stay="W-7", at=asked_at)
    left = await discharge(exeter, MARSHWIGGLE, to_site=PLYMOUTH, stay="W-7", at=left_at)

    assert left.transfer_id not in {None, first}
    assert (await hub.state(first), await hub.state(left.transfer_id)) == ("completed", "completed")
    rows = {row["transfer_id"]: row["due_clock"] for row in await hub.rows(t.transfer)}
    assert rows == {first: None, left.transfer_id: None}


@pytest.mark.parametrize("taken_back", [False, True])
async def test_who_was_admitted_before_the_second_request_was_read_has_arrived(
    hub, torbay, exeter, plymouth, taken_back
):
    """Unless the admission was taken back meanwhile."""
    await ask(torbay, MARSHWIGGLE)
    asked_at = hub.clock.later(minutes=5)
    hub.clock.later(hours=1)
    await admit(plymouth, MARSHWIGGLE, stay="P-1")
    if taken_back:
        hub.clock.later(minutes=10)
        await plymouth.reports("A11", MARSHWIGGLE, encounter_number="P-1", status="cancelled")
    second = await ask(torbay, MARSHWIGGLE, to="RK9", number="TR-2", specialty="150", at=asked_at)

    assert await hub.state(second) == ("requested" if taken_back else "completed")
    hub.clock.later(hours=1)
    await discharge(torbay, MARSHWIGGLE, to_site=PLYMOUTH, at=hub.clock() - timedelta(hours=2))
    assert await hub.state(second) == ("in-transit" if taken_back else "completed")
    facts = [row["event_id"] for row in await hub.rows(t.transfer_history) if row["transfer_id"] == second]
    assert len(facts) == len(set(facts))


async def test_a_request_that_lay_in_quarantine_while_its_patient_left_knows_that_they_left(
    hub, torbay, exeter, plymouth
):
    """The discharge was an alarm to the other hospital, the only one that was asked as far as the hub knew."""
    await ask(torbay, MARSHWIGGLE)
    asked_at = hub.clock.later(minutes=5)
    hub.clock.later(hours=1)
    await discharge(torbay, MARSHWIGGLE, to_site=PLYMOUTH)
    hub.clock.later(hours=1)
    second = await ask(torbay, MARSHWIGGLE, to="RK9", number="TR-2", specialty="150", at=asked_at)

    assert await hub.state(second) == "in-transit"


# ----------------------------------------------------------------------------------------------------------------------
# Planned is not arrived
# ----------------------------------------------------------------------------------------------------------------------

ELECTIVE = {
    "admitSource": {"coding": [{"code": "19"}]},
    "extension": [
        {
            "url": "https://fhir.hl7.org.uk/StructureDefinition/Extension-UKCore-AdmissionMethod",
            "valueCodeableConcept": {"coding": [{"code": "12"}]},
        }
    ],
}


@pytest.mark.parametrize(
    ("trigger", "status", "encounter_class", "elements"),
    [
        ("A05", "planned", "IMP", {"hospitalization": ELECTIVE}),
        ("A14", "planned", "PRENC", {"hospitalization": ELECTIVE}),
        ("A05", "planned", "IMP", {"period": {"start": "2027-01-11T08:00:00+00:00"}}),
        ("A04", "in-progress", "PRENC", {}),
        ("A04", "arrived", "PRENC", {}),
        ("A04", "in-progress", "AMB", {}),
        ("A01", "planned", "IMP", {}),
        ("A01", "in-progress", "PRENC", {}),
        ("A08", "planned", "IMP", {"hospitalization": ELECTIVE}),
        ("A04", "planned", "IMP", {}),
        ("A03", "finished", "PRENC", {}),
        ("A01", "in-progress", "IMP", {"hospitalization": ELECTIVE}),
    ],
)
async def test_a_planned_stay_of_the_patients_own_at_the_receiver_is_neither_bed_nor_arrival(
    hub, torbay, exeter, trigger, status, encounter_class, elements
):
    """Months ago they were put on Exeter's list for a hip; now they wait at Torbay for Exeter's cardiology."""
    transfer = await ask(torbay, MARSHWIGGLE)
    await answer(exeter, "accepted", MARSHWIGGLE, torbay)
    told = await hub.told("RA9")
    hub.clock.later(minutes=30)
    period = {"period": {"start": hub.clock().isoformat()}} if status != "planned" else {}
    said = await exeter.reports(
        trigger, MARSHWIGGLE, encounter_number="E-1", status=status, encounter_class=encounter_class, **(period | elements)
    )  # fmt: skip

    assert str(said) == "accepted"
    assert await hub.state(transfer) == "accepted"
    assert await hub.told("RA9") == told


async def test_a_pending_admission_of_the_transfer_is_a_bed_and_its_admission_the_arrival(
    hub, torbay, exeter
):
    transfer = await ask(torbay, MARSHWIGGLE)
    await answer(exeter, "accepted", MARSHWIGGLE, torbay)
    hub.clock.later(minutes=30)
    await exeter.reports("A14", MARSHWIGGLE, encounter_number="W-7", status="planned")
    assert await hub.state(transfer) == "bed-allocated"
    await discharge(torbay, MARSHWIGGLE, at=hub.clock.later(minutes=30))
    await admit(exeter, MARSHWIGGLE, at=hub.clock.later(hours=1))
    assert await hub.state(transfer) == "completed"


@pytest.mark.parametrize("source", ["19", "51"])
async def test_who_has_left_and_is_admitted_by_an_elective_method_has_arrived(hub, torbay, exeter, source):
    """Exeter's clerk books it as a planned admission, as clerks do."""
    transfer = await on_the_way(hub, torbay, exeter, MARSHWIGGLE)
    await admit(exeter, MARSHWIGGLE, at=hub.clock.later(hours=1), method="13", source=source)
    assert await hub.state(transfer) == "completed"


async def test_who_has_left_and_is_registered_for_the_day_has_arrived(hub, torbay, exeter):
    """Same-day emergency care is an ambulatory attendance."""
    transfer = await on_the_way(hub, torbay, exeter, MARSHWIGGLE)
    await exeter.reports(
        "A04", MARSHWIGGLE, encounter_number="S-1", status="arrived", encounter_class="AMB", at=hub.clock.later(hours=1)
    )  # fmt: skip
    assert await hub.state(transfer) == "arrived"


async def test_a_planned_stay_elsewhere_has_sent_nobody(hub, torbay, exeter, plymouth):
    """Plymouth has the patient on a list; only Torbay can have sent them."""
    await torbay.admits(MARSHWIGGLE, encounter_number="V-1", ward="A", source="19", method="21")
    await plymouth.reports(
        "A04", MARSHWIGGLE, encounter_number="P-1", status="in-progress", encounter_class="PRENC"
    )
    arrived = await admit(exeter, MARSHWIGGLE, at=hub.clock.later(hours=2))
    assert arrived.flags == ("transfer-inferred",)


# ----------------------------------------------------------------------------------------------------------------------
# Where they came from
# ----------------------------------------------------------------------------------------------------------------------


def came_from(code):
    def change(tree):
        resources(tree, "Encounter")[0]["hospitalization"]["origin"] = site(code)

    return change


async def admit_from(hospital, code, stay="W-7"):
    said = hospital.epr.admits(MARSHWIGGLE, encounter_number=stay, ward="Taw", at=hospital.hub.clock())
    return await hospital.send(edited(said, came_from(code)))


async def test_an_admission_from_a_third_hospital_is_not_the_arrival_of_this_transfer(
    hub, torbay, exeter, plymouth
):
    transfer = await accepted(hub, torbay, exeter, MARSHWIGGLE)
    hub.clock.later(hours=1)
    arrived = await admit_from(exeter, PLYMOUTH)

    assert str(arrived) == "accepted"
    assert await hub.state(transfer) == "bed-allocated"
    assert (await hub.told("RA9"))[-1] == (await hub.told("RH8"))[-1] == "transfer.diverged"
    assert "RK9" not in str(resources((await hub.inbox("RA9"))[-1].bundle, "Task"))
    assert await hub.told("RK9") == []
    hub.clock.later(hours=1)
    await exeter.moves(MARSHWIGGLE, encounter_number="W-7", from_ward="Taw", to_ward="Exe")
    assert await hub.state(transfer) == "bed-allocated"


@pytest.mark.parametrize("code", ["RA901", "RA9", "RH801", "ZZ999"])
async def test_an_admission_from_here_or_from_nowhere_that_is_known_is_the_arrival(hub, torbay, exeter, code):
    """Some write the hospital's own emergency department, or a place that has not joined."""
    transfer = await accepted(hub, torbay, exeter, MARSHWIGGLE)
    hub.clock.later(hours=1)
    await admit_from(exeter, code)
    assert await hub.state(transfer) == "completed"


async def test_of_two_hospitals_that_asked_the_one_is_meant_from_which_the_patient_came(
    hub, torbay, exeter, plymouth
):
    first = await ask(torbay, MARSHWIGGLE)
    second = await ask(plymouth, MARSHWIGGLE, number="P-1", stay="P-1")
    hub.clock.later(hours=1)
    arrived = await admit_from(exeter, PLYMOUTH)

    assert arrived.transfer_id == second
    assert (await hub.state(first), await hub.state(second)) == ("requested", "completed")


async def test_of_two_hospitals_that_had_the_patient_the_one_is_meant_that_the_admission_names(
    hub, torbay, exeter, plymouth
):
    for hospital in (torbay, plymouth):
        await hospital.admits(MARSHWIGGLE, encounter_number="V-1", ward="A", source="19", method="21")
    hub.clock.later(hours=1)
    arrived = await admit_from(exeter, PLYMOUTH)

    assert arrived.flags == ("transfer-inferred",)
    [row] = await hub.rows(t.transfer)
    assert (row["sender"], row["state"]) == ("RK9", "completed")
    assert await hub.told("RA9") == []


# ----------------------------------------------------------------------------------------------------------------------
# Arrived while the request was being written
# ----------------------------------------------------------------------------------------------------------------------


async def test_who_arrives_while_the_request_is_a_draft_has_arrived_when_it_is_made(hub, torbay, exeter):
    drafted = await ask(torbay, MARSHWIGGLE, draft=True)
    hub.clock.later(hours=1)
    arrived = await admit(exeter, MARSHWIGGLE)
    assert (await hub.told("RH8"), await hub.told("RA9")) == ([], ["transfer.diverged"])
    hub.clock.later(minutes=20)
    assert await ask(torbay, MARSHWIGGLE) == drafted

    assert await hub.state(drafted) == "completed"
    assert await hub.told("RH8") == ["transfer.requested"]
    [row] = await hub.rows(t.event, t.event.c.event_id == arrived.event_id)
    assert row["transfer_id"] == drafted


async def test_who_was_there_for_something_else_while_the_request_was_a_draft_has_not_arrived(
    hub, torbay, exeter
):
    drafted = await ask(torbay, MARSHWIGGLE, draft=True)
    hub.clock.later(hours=1)
    await admit(exeter, MARSHWIGGLE, source="19", method="21")
    hub.clock.later(hours=5)
    await ask(torbay, MARSHWIGGLE)
    assert await hub.state(drafted) == "requested"


@pytest.mark.parametrize("in_a_batch", [False, True])
@pytest.mark.parametrize("draft", [False, True])
async def test_who_arrives_while_another_hospital_was_asked_has_arrived_too(
    hub, torbay, exeter, plymouth, draft, in_a_batch
):
    """Plymouth was to have them, or was to be asked; the admission is told to that transfer first."""
    other = await ask(torbay, MARSHWIGGLE, to="RK9", number="TR-0", specialty="150", draft=draft)
    hub.clock.later(minutes=5)
    drafted = await ask(torbay, MARSHWIGGLE, draft=True)
    hub.clock.later(hours=1)
    came = exeter.epr.admits(
        MARSHWIGGLE, encounter_number="W-7", at=hub.clock(), ward="Taw", source="51", method="81"
    )
    hub.clock.later(minutes=20)
    asks = torbay.epr.asks_to_transfer(
        MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1", at=hub.clock()
    )
    records = [exeter.record(came), torbay.record(asks)]
    for batch in [records] if in_a_batch else [[each] for each in records]:
        await hub.take(batch)

    assert (await hub.state(drafted), await hub.told("RH8")) == ("completed", ["transfer.requested"])
    assert await hub.state(other) == ("draft" if draft else "requested")
    again = await exeter.reports("A08", MARSHWIGGLE, encounter_number="W-7", status="in-progress")
    assert (str(again), await hub.state(drafted)) == ("accepted", "completed")


@pytest.mark.parametrize("in_a_batch", [False, True])
async def test_what_takes_back_two_departures_that_come_after_it_takes_back_both(hub, torbay, in_a_batch):
    """Read from another partition, the cancelled discharge comes first; to which hospital it was is corrected in between."""
    left_at = hub.clock()
    cancelled = torbay.epr.reports(
        "A13", MARSHWIGGLE, encounter_number="V-1", status="in-progress", at=hub.clock.later(minutes=10)
    )
    goes = [
        torbay.epr.discharges(
            MARSHWIGGLE, encounter_number="V-1", to_site=to, at=left_at + timedelta(minutes=n)
        )
        for n, to in enumerate((PLYMOUTH, "RH801"))
    ]
    records = [torbay.record(each) for each in (cancelled, *goes)]
    for batch in [records] if in_a_batch else [[each] for each in records]:
        await hub.take(batch)

    states = {row["receiver"]: row["state"] for row in await hub.rows(t.transfer)}
    assert states == {"RK9": "entered-in-error", "RH8": "entered-in-error"}
