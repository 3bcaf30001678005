"""Patients on their way between hospitals, told in order."""

from datetime import timedelta

import pytest

from hub.audit.catalogue import TRANSFER_CODES
from hub.demo.people import FENNIMOSS, MARSHWIGGLE, O_WINTERBEE, QUILLFEATHER
from hub.fhir.systems import NHS_NUMBER
from hub.store import tables as t
from tests.stories.conftest import edited, resources

NUMBER, STAY, THEIR_STAY = "TR-1", "V-1", "W-7"


async def ask(torbay, patient=MARSHWIGGLE, number=NUMBER, to="RH8", **more):
    asked = await torbay.asks_to_transfer(
        patient, to=to, request_number=number, encounter_number=more.pop("encounter_number", STAY), **more
    )
    assert str(asked) == "accepted"
    return asked


async def answer(hospital, status, patient=MARSHWIGGLE, *, to, **more):
    return await hospital.answers(
        patient, status, requester=to.profile, **({"request_number": NUMBER} | more)
    )


async def test_planned_transfer_from_torbay_to_exeter(hub, torbay, exeter):
    """Asked, seen, accepted, bed ready, left, arrived: each side hears what the other did, and nothing else."""
    asked = await ask(torbay, to_site="RH801")
    transfer = asked.transfer_id
    steps = [("received", 5), ("accepted", 20), ("ready", 50)]
    for status, minute in steps:
        hub.clock.at(9, minute)
        assert str(await answer(exeter, status, to=torbay)) == "accepted"
    hub.clock.at(10, 30)
    left = await torbay.discharges(MARSHWIGGLE, encounter_number=STAY, to_site="RH801")
    hub.clock.at(11, 10)
    arrived = await exeter.admits(MARSHWIGGLE, encounter_number=THEIR_STAY, ward="Taw Ward", site="RH801")

    assert await hub.states(transfer) == [
        "requested",
        "received",
        "accepted",
        "bed-allocated",
        "in-transit",
        "completed",
    ]
    assert await hub.told("RH8") == ["transfer.requested", "transfer.departed"]
    assert await hub.told("RA9") == [
        "transfer.received", "transfer.accepted", "transfer.bed.allocated", "transfer.completed",
    ]  # fmt: skip
    assert {left.transfer_id, arrived.transfer_id} == {transfer}
    assert left.flags == arrived.flags == ()
    assert {record.key for ods in ("RA9", "RH8") for record in await hub.inbox(ods)} == {transfer}
    codes = [entry["code"] for entry in await hub.audit(transfer_id=transfer)]
    assert codes.count("transfer-created") == 1
    assert [code for code in codes if code in TRANSFER_CODES] == [
        "transfer-created", "transfer-received", "transfer-accepted", "bed-allocated", "departed", "completed",
    ]  # fmt: skip
    assert codes.count("routed") == 6
    assert (len(await hub.receipts("RA9")), len(await hub.receipts("RH8"))) == (2, 4)
    news = (await hub.inbox("RA9"))[-1]
    assert news.of("Task")["status"] == "completed"
    assert news.headers["source-ods"] == "RH8"
    assert news.headers["transfer-id"] == transfer


async def test_the_request_carries_the_patient_to_the_receiver(hub, torbay):
    """Names leave the hub only in the inbox of the trust that is asked."""
    await ask(torbay, O_WINTERBEE)

    [record] = await hub.inbox("RH8")
    assert record.of("Patient")["name"][0]["family"] == "O'Winterbée"
    assert record.of("ServiceRequest")["identifier"][0]["value"] == NUMBER


async def test_audit_of_a_request_and_of_an_answer(hub, torbay, exeter):
    asked = await ask(torbay)
    said = await answer(exeter, "accepted", to=torbay)

    assert await hub.codes(asked) == [
        "msg-received",
        "msg-repaired",
        "identity-unmatched",
        "transfer-created",
        "routed",
    ]
    assert await hub.codes(said) == ["msg-received", "msg-repaired", "transfer-accepted", "routed"]
    moved = (await hub.audit(event_id=said.event_id, code="transfer-accepted"))[0]
    assert moved["trust"] == "RH8"
    assert (moved["detail"]["from"], moved["detail"]["to"]) == ("requested", "accepted")
    assert moved["detail"]["why"] == "RH8 accepted"
    routed = (await hub.audit(event_id=said.event_id, code="routed"))[0]
    assert (routed["counterpart"], routed["detail"]["routes"]) == (
        "RA9",
        [{"to": "RA9", "topic": "hub.ra9.inbox"}],
    )


async def test_refused_with_a_reason_then_withdrawn(hub, torbay, exeter):
    asked = await ask(torbay)
    hub.clock.later(minutes=5)
    refused = await answer(exeter, "rejected", to=torbay, reason="RRNA")
    hub.clock.later(minutes=5)
    cancelled = await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number=NUMBER)

    assert (str(refused), str(cancelled)) == ("accepted", "accepted")
    assert await hub.states(asked.transfer_id) == ["requested", "rejected", "cancelled"]
    assert await hub.told("RA9") == ["transfer.rejected"]
    assert (await hub.inbox("RA9"))[0].of("Task")["statusReason"]["coding"][0]["code"] == "RRNA"
    assert await hub.told("RH8") == ["transfer.requested", "transfer.cancelled"]


async def test_a_refusal_without_a_reason_is_sent_back(hub, torbay, exeter):
    asked = await ask(torbay)
    refused = await answer(exeter, "rejected", to=torbay)

    assert str(refused) == "rejected: reason-missing at Task.statusReason"
    assert await hub.state(asked.transfer_id) == "requested"
    assert await hub.told("RA9") == []


async def test_a_name_in_the_place_of_a_reason_code_stays_in_the_message(hub, torbay, exeter):
    """FHIR lets a code hold any words; what leaks into the audit is found when the fixture ends."""
    asked = await ask(torbay)
    refused = await answer(exeter, "rejected", to=torbay, reason=f"{MARSHWIGGLE.given} {MARSHWIGGLE.family}")

    assert str(refused) == "accepted"
    assert await hub.state(asked.transfer_id) == "rejected"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
async def test_a_departure_that_came_too_early_counts_once_the_story_has_room_for_it(
    hub, torbay, exeter, order
):
    """Refused at 5, accepted after all at 15, left at 30 minutes past; told in any order."""
    asked = await ask(torbay)
    began = hub.clock()
    hub.clock.later(hours=1)
    happened = [
        lambda: answer(exeter, "rejected", to=torbay, reason="RRNA", at=began + timedelta(minutes=5)),
        lambda: answer(exeter, "accepted", to=torbay, at=began + timedelta(minutes=15)),
        lambda: torbay.discharges(
            MARSHWIGGLE, encounter_number=STAY, to_site="RH801", at=began + timedelta(minutes=30)
        ),
    ]
    for each in order:
        await happened[each]()

    assert await hub.state(asked.transfer_id) == "in-transit"


@pytest.mark.parametrize("in_error", [False, True])
async def test_withdrawn_or_sent_in_error(hub, torbay, in_error):
    asked = await ask(torbay)
    hub.clock.later(minutes=1)
    gone = await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number=NUMBER, in_error=in_error)

    assert str(gone) == "accepted"
    assert await hub.state(asked.transfer_id) == ("entered-in-error" if in_error else "cancelled")
    assert (await hub.inbox("RH8"))[-1].of("ServiceRequest")["status"] == (
        "entered-in-error" if in_error else "revoked"
    )


@pytest.mark.parametrize(
    ("encounter", "state", "event"),
    [
        ("planned", "accepted", "transfer.accepted"),
        ("cancelled", "rejected", "transfer.rejected"),
        ("in-progress", "completed", "transfer.completed"),
        ("finished", "completed", "transfer.completed"),
    ],
)
async def test_answers_in_the_shape_of_bars(hub, torbay, exeter, encounter, state, event):
    asked = await ask(torbay)
    hub.clock.later(minutes=5)
    said = await exeter.answers_bars(MARSHWIGGLE, encounter, requester=torbay.profile, request_number=NUMBER)

    assert str(said) == "accepted"
    assert said.transfer_id == asked.transfer_id
    assert await hub.state(asked.transfer_id) == state
    assert await hub.told("RA9") == [event]


async def test_an_update_is_told_and_moves_nothing(hub, torbay, exeter):
    asked = await ask(torbay)
    hub.clock.later(minutes=5)
    await answer(exeter, "accepted", to=torbay)
    hub.clock.later(minutes=5)
    changed = await torbay.updates_request(
        MARSHWIGGLE, to="RH8", request_number=NUMBER, encounter_number=STAY, priority="stat"
    )

    assert str(changed) == "accepted"
    assert await hub.states(asked.transfer_id) == ["requested", "accepted", "accepted"]
    assert (await hub.inbox("RH8"))[-1].of("ServiceRequest")["priority"] == "stat"
    assert await hub.told("RH8") == ["transfer.requested", "transfer.updated"]


@pytest.mark.parametrize("draft", [False, True])
async def test_an_update_that_comes_after_a_later_one_makes_nothing_less_urgent(hub, torbay, exeter, draft):
    """It lay in quarantine while the patient became an emergency; Exeter hears it, and that it is not the last word."""
    asked = await ask(torbay, draft=draft)
    said_at = hub.clock.later(minutes=5)
    hub.clock.later(minutes=5)
    if draft:
        await ask(torbay, priority="stat")
    else:
        await update_(torbay, priority="stat", version=3)
    late = await update_(torbay, priority="routine", version=1 if draft else 2, at=said_at)

    assert (str(late), late.transfer_id) == ("accepted", asked.transfer_id)
    assert (await hub.rows(t.transfer))[0]["priority"] == "stat"
    assert (await hub.inbox("RH8"))[-1].of("Task")["note"][0]["text"] == (
        "RA9 changed the request; it has said since what it asks for"
    )
    hub.clock.later(minutes=5)
    await update_(torbay, priority="asap", version=4)
    assert (await hub.rows(t.transfer))[0]["priority"] == "asap"
    assert "note" not in (await hub.inbox("RH8"))[-1].of("Task")


async def test_an_update_that_comes_after_a_later_one_says_what_that_left_out(hub, torbay):
    """The request says no priority, nor does the later update, which is about something else."""
    silent = {"hub": hub, "hospital": torbay}
    await without_priority(torbay.epr.asks_to_transfer, **silent)
    said_at = hub.clock.later(minutes=5)
    hub.clock.later(minutes=5)
    await without_priority(torbay.epr.updates_request, **silent, version=3)
    assert (await hub.rows(t.transfer))[0]["priority"] is None
    await update_(torbay, priority="stat", version=2, at=said_at)
    [row] = await hub.rows(t.transfer)
    assert (row["priority"], row["due_clock"]) == ("stat", "view:1")


async def without_priority(make, *, hub, hospital, **more):
    said = make(MARSHWIGGLE, to="RH8", request_number=NUMBER, encounter_number=STAY, at=hub.clock(), **more)
    return await hospital.send(
        edited(said, lambda tree: resources(tree, "ServiceRequest")[0].pop("priority") and None)
    )


async def test_an_update_with_a_clock_put_back_or_without_a_time_of_its_own_is_the_last_word(hub, torbay):
    asked_at = hub.clock()
    await ask(torbay)
    hub.clock.later(minutes=40)
    await update_(torbay, priority="stat", version=2)
    for priority, version, at in (("asap", 3, hub.clock() - timedelta(minutes=20)), ("routine", 2, asked_at)):
        hub.clock.later(minutes=5)
        await update_(torbay, priority=priority, version=version, at=at)
        assert (await hub.rows(t.transfer))[0]["priority"] == priority


async def update_(hospital, **more):
    return await hospital.updates_request(
        MARSHWIGGLE, to="RH8", request_number=NUMBER, encounter_number=STAY, **more
    )


async def test_an_update_that_names_another_receiver_is_refused(hub, torbay):
    await ask(torbay)
    changed = await torbay.updates_request(
        MARSHWIGGLE, to="RK9", request_number=NUMBER, encounter_number=STAY
    )

    assert (changed.disposition, changed.why) == ("rejected", "receiver-changed")
    assert await hub.told("RK9") == []


@pytest.mark.parametrize("order", ["left first", "arrived first"])
async def test_arrival_told_before_departure_ends_in_the_same_state(hub, torbay, exeter, order):
    asked = await ask(torbay)
    await answer(exeter, "accepted", to=torbay, at=hub.clock.later(minutes=10))
    left_at, arrived_at = hub.clock() + timedelta(minutes=30), hub.clock() + timedelta(minutes=80)
    hub.clock.later(hours=2)

    async def left():
        return await torbay.discharges(MARSHWIGGLE, encounter_number=STAY, to_site="RH801", at=left_at)

    async def arrived():
        return await exeter.admits(MARSHWIGGLE, encounter_number=THEIR_STAY, ward="Taw", at=arrived_at)

    for tell in (left, arrived) if order == "left first" else (arrived, left):
        assert (await tell()).transfer_id == asked.transfer_id
    assert await hub.state(asked.transfer_id) == "completed"
    transfer = (await hub.rows(t.transfer))[0]
    assert transfer["version"] == 4


async def test_a_third_trust_learns_nothing_by_answering(hub, torbay, exeter, plymouth):
    """By the request's number or by the hub's own id: the answer is the same as for a transfer that is not there."""
    asked = await ask(torbay)
    by_number = await answer(plymouth, "accepted", to=torbay)
    by_id = await answer(plymouth, "accepted", to=torbay, request_number=None, transfer_id=asked.transfer_id)
    nothing = await answer(plymouth, "accepted", to=torbay, request_number="TR-999", transfer_id="no-such")

    assert {o.why for o in (by_number, by_id, nothing)} == {"transfer-unknown"}
    assert (by_id.at, by_id.detail) == (nothing.at, nothing.detail)
    assert by_id.receipt.of("OperationOutcome") == nothing.receipt.of("OperationOutcome")
    assert await hub.state(asked.transfer_id) == "requested"
    assert await hub.told("RA9") == await hub.told("RK9") == []
    assert asked.transfer_id not in str((await hub.receipts("RK9"))[1].of("OperationOutcome"))


async def test_cancelling_after_the_patient_left_is_denied(hub, torbay, exeter):
    asked = await ask(torbay)
    await answer(exeter, "accepted", to=torbay, at=hub.clock.later(minutes=10))
    hub.clock.later(minutes=10)
    await torbay.discharges(MARSHWIGGLE, encounter_number=STAY, to_site="RH801")
    hub.clock.later(minutes=10)
    late = await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number=NUMBER)

    assert (late.disposition, late.why) == ("rejected", "transition-denied")
    assert "in-transit" in late.detail
    assert await hub.state(asked.transfer_id) == "in-transit"
    assert "transition-denied" in await hub.codes(late)
    assert "transfer.cancelled" not in await hub.told("RH8")


async def test_accepting_what_was_withdrawn_is_denied(hub, torbay, exeter):
    asked = await ask(torbay)
    hub.clock.later(minutes=5)
    await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number=NUMBER)
    hub.clock.later(minutes=5)
    late = await answer(exeter, "accepted", to=torbay)

    assert (late.disposition, late.why) == ("rejected", "transition-denied")
    assert await hub.state(asked.transfer_id) == "cancelled"
    assert await hub.told("RA9") == []


async def test_the_sender_cannot_accept_for_the_receiver(hub, torbay):
    asked = await ask(torbay)
    own = await answer(torbay, "accepted", to=torbay)

    assert (own.disposition, own.why) == ("rejected", "transition-denied")
    assert await hub.state(asked.transfer_id) == "requested"


async def test_a_patient_known_by_the_hospital_number_alone(hub, torbay, exeter):
    def without_nhs(tree):
        for patient in resources(tree, "Patient"):
            patient["identifier"] = [i for i in patient["identifier"] if i["system"] != NHS_NUMBER]

    def blind(message):
        return edited(message, without_nhs)

    asked = await torbay.send(
        blind(
            torbay.epr.asks_to_transfer(
                MARSHWIGGLE, to="RH8", request_number=NUMBER, encounter_number=STAY, at=hub.clock()
            )
        )
    )
    assert str(asked) == "accepted"
    hub.clock.later(minutes=10)
    left = await torbay.send(
        blind(torbay.epr.discharges(MARSHWIGGLE, encounter_number=STAY, to_site="RH801", at=hub.clock()))
    )

    assert left.transfer_id == asked.transfer_id
    assert await hub.state(asked.transfer_id) == "in-transit"
    assert {row["authority"] for row in await hub.rows(t.person_identifier)} == {
        f"RA9|{torbay.profile.identifier_systems.patient}"
    }


async def test_the_same_hospital_number_at_two_trusts_is_two_people(hub, torbay, exeter):
    """Both hospitals write the number under the same system, too: only the authority keeps them apart."""
    same = [{"system": "urn:hospital-number", "value": "1234567"}]

    def numbered(tree):
        for patient in resources(tree, "Patient"):
            patient["identifier"] = same

    stay = {"encounter_number": "S-1", "ward": "A", "at": hub.clock()}
    one = await torbay.send(edited(torbay.epr.admits(MARSHWIGGLE, **stay), numbered))
    other = await exeter.send(edited(exeter.epr.admits(QUILLFEATHER, **stay), numbered))

    assert (str(one), str(other)) == ("accepted", "accepted")
    assert len(await hub.rows(t.person)) == 2
    assert sorted(row["authority"] for row in await hub.rows(t.person_identifier)) == [
        "RA9|urn:hospital-number", "RH8|urn:hospital-number",
    ]  # fmt: skip


async def test_identifiers_of_two_people_in_one_message_move_nothing(hub, torbay):
    await ask(torbay, MARSHWIGGLE, "TR-1")
    await ask(torbay, QUILLFEATHER, "TR-2", encounter_number="V-2")

    def mixed(tree):
        for patient in resources(tree, "Patient"):
            patient["identifier"][1]["value"] = QUILLFEATHER.local["RA9"]

    message = torbay.epr.discharges(MARSHWIGGLE, encounter_number=STAY, to_site="RH801", at=hub.clock())
    outcome = await torbay.send(edited(message, mixed))

    assert str(outcome) == "quarantined: needs-confirmation at Patient.identifier"
    assert {row["state"] for row in await hub.rows(t.transfer)} == {"requested"}


async def test_moved_without_acceptance_is_flagged(hub, torbay):
    asked = await ask(torbay)
    hub.clock.later(minutes=10)
    left = await torbay.discharges(MARSHWIGGLE, encounter_number=STAY, to_site="RH801")

    assert left.flags == ("moved-without-acceptance",)
    assert await hub.state(asked.transfer_id) == "in-transit"
    normalised = (await hub.audit(event_id=left.event_id, code="msg-repaired"))[0]
    assert normalised["detail"]["flags"] == ["moved-without-acceptance"]
    [departed] = await hub.audit(event_id=left.event_id, code="departed")
    assert (departed["outcome"], departed["detail"]["without_acceptance"]) == (4, True)


@pytest.mark.parametrize("form", ["collection", "message"])
async def test_after_years_on_a_ward_the_patient_is_moved(hub, torbay, exeter, form):
    """A long stay in mental health: the record is sent anew, and says that it began nine years ago."""
    began = "2017-02-03T10:00:00Z"

    def years_ago(tree):
        [stay] = resources(tree, "Encounter")
        stay["period"]["start"] = began

    stay = torbay.epr.admits(MARSHWIGGLE, encounter_number=STAY, ward="A", at=hub.clock(), form=form)
    told = await torbay.send(edited(stay, years_ago))
    hub.clock.later(minutes=5)
    transfer = (await ask(torbay)).transfer_id
    await answer(exeter, "accepted", to=torbay)
    hub.clock.later(minutes=30)
    await torbay.discharges(MARSHWIGGLE, encounter_number=STAY, to_site="RH801")
    hub.clock.later(minutes=40)
    await exeter.admits(MARSHWIGGLE, encounter_number=THEIR_STAY, ward="Taw Ward", site="RH801")

    assert str(told) == "accepted"
    assert await hub.states(transfer) == ["requested", "accepted", "in-transit", "completed"]


@pytest.mark.parametrize("no_date", ["0001-01-01", "1753-01-01", "1900-01-01", "1970-01-01"])
async def test_what_systems_write_where_they_have_no_date_is_no_long_stay(hub, torbay, exeter, no_date):
    """Taken for a stay that began long before the transfer, the patient would never arrive, and nobody would hear of it."""
    transfer = (await ask(torbay)).transfer_id
    await torbay.discharges(MARSHWIGGLE, encounter_number=STAY, to_site="RH801")

    def without_a_date(tree):
        [stay] = resources(tree, "Encounter")
        stay["period"]["start"] = f"{no_date}T00:00:00Z"

    arrival = exeter.epr.admits(
        MARSHWIGGLE, encounter_number=THEIR_STAY, ward="Taw", site="RH801", at=hub.clock()
    )
    refused = await exeter.send(edited(arrival, without_a_date))
    assert (refused.disposition, refused.why) == ("quarantined", "clock-implausible")
    assert await hub.state(transfer) == "in-transit"


@pytest.mark.parametrize("form", ["collection", "message", "bare"])
async def test_stays_without_a_transfer_are_nobody_elses_business(hub, torbay, form):
    a, b = hub.clock(), hub.clock() + timedelta(minutes=1)
    hub.clock.later(hours=1)
    outcomes = [
        await torbay.admits(FENNIMOSS, encounter_number=STAY, ward="A", at=a, form=form),
        await torbay.moves(
            FENNIMOSS, encounter_number=STAY, from_ward="A", to_ward="B", at=b, admitted_at=a, form=form
        ),
        await torbay.discharges(FENNIMOSS, encounter_number=STAY, disposition="19", form=form),
    ]

    assert [(str(o), o.transfer_id) for o in outcomes] == [("accepted", None)] * 3
    assert {record.topic for record in await hub._outbox()} == {"hub.ra9.receipts"}
    assert await hub.audit(code="routed") == []


async def test_after_the_transfer_the_stays_are_private_again(hub, torbay, exeter):
    await ask(torbay)
    hub.clock.later(minutes=30)
    await exeter.admits(MARSHWIGGLE, encounter_number=THEIR_STAY, ward="Taw")
    told = await hub.told("RA9")
    since = hub.clock()
    hub.clock.later(minutes=30)
    await exeter.moves(
        MARSHWIGGLE,
        encounter_number=THEIR_STAY,
        from_ward="Taw",
        to_ward="Exe",
        at=hub.clock(),
        admitted_at=since,
    )

    assert told == await hub.told("RA9") == ["transfer.completed"]


async def test_the_same_message_again_is_a_duplicate(hub, torbay):
    message = torbay.epr.asks_to_transfer(
        MARSHWIGGLE, to="RH8", request_number=NUMBER, encounter_number=STAY, at=hub.clock()
    )
    first, again = await torbay.send(message), await torbay.send(message)

    assert (first.disposition, again.disposition) == ("accepted", "duplicate")
    assert again.receipt.headers["disposition"] == "duplicate"
    assert again.row["first_event_id"] == first.event_id
    assert await hub.codes(again) == ["msg-received", "msg-duplicate"]
    assert (await hub.audit(event_id=again.event_id, code="msg-duplicate"))[0]["detail"] == {
        "first_event_id": first.event_id
    }
    assert await hub.told("RH8") == ["transfer.requested"]
    assert len(await hub.rows(t.transfer)) == 1


async def test_the_same_id_with_other_content_is_a_conflict(hub, torbay):
    asked = await ask(torbay)
    used = asked.row["headers"]["x-request-id"]
    other = torbay.epr.cancels_request(MARSHWIGGLE, to="RH8", request_number=NUMBER, at=hub.clock())
    outcome = await torbay.send(edited(other, lambda _: None, **{"x-request-id": used}))

    assert str(outcome) == "conflict: message-id-reused at x-request-id"
    assert await hub.codes(outcome) == ["msg-received", "msg-conflict"]
    assert await hub.state(asked.transfer_id) == "requested"
    assert await hub.raw(outcome) != await hub.raw(asked)


async def test_two_trusts_may_use_the_same_message_id(hub, torbay, exeter):
    one = torbay.epr.admits(MARSHWIGGLE, encounter_number="A", ward="A", at=hub.clock())
    two = exeter.epr.admits(QUILLFEATHER, encounter_number="A", ward="A", at=hub.clock())

    assert str(await torbay.send(edited(one, lambda _: None, **{"x-request-id": "1"}))) == "accepted"
    assert str(await exeter.send(edited(two, lambda _: None, **{"x-request-id": "1"}))) == "accepted"


async def test_a_whole_transfer_in_one_batch_is_as_one_by_one(hub, torbay, exeter):
    at = hub.clock()
    hub.clock.later(hours=3)
    asked = torbay.record(
        torbay.epr.asks_to_transfer(
            MARSHWIGGLE, to="RH8", request_number=NUMBER, encounter_number=STAY, at=at
        )
    )
    rest = [
        exeter.record(
            exeter.epr.answers(MARSHWIGGLE, status, requester=torbay.profile, request_number=NUMBER, at=when)
        )
        for status, when in (("accepted", at + timedelta(minutes=5)), ("ready", at + timedelta(minutes=9)))
    ]
    await hub.take([asked, *rest])

    transfer = (await hub.outcome(asked.event_id)).transfer_id
    assert await hub.states(transfer) == ["requested", "accepted", "bed-allocated"]
    assert await hub.told("RA9") == ["transfer.accepted", "transfer.bed.allocated"]
