"""Twins, mothers and namesakes: nobody is taken for somebody else, and what was merged by mistake parts whole."""

from dataclasses import replace
from datetime import date

import pytest
from sqlalchemy.exc import IntegrityError

from hub.demo.people import MARSHWIGGLE, QUILLFEATHER, patient_number
from hub.domain.ids import PersonId, TransferId
from hub.domain.rejection import Disposition
from hub.fhir.systems import NHS_NUMBER
from hub.journey.decide import Choice
from hub.services.clock import ClockService
from hub.store import tables as t
from hub.store import unit_of_work
from tests.stories.conftest import TRUSTS, edited, resources

TWIN = replace(
    MARSHWIGGLE,
    given="Twin",
    nhs_number=patient_number(77).nhs_number,
    local={"RA9": "4107777", "RH8": "E277777"},
)
THIRD = replace(TWIN, given="Third", nhs_number=patient_number(78).nhs_number, local={"RA9": "4108888"})
NO_MATCH = ("quarantined", "needs-confirmation")


def without_nhs_number(message):
    def change(tree):
        for patient in resources(tree, "Patient"):
            patient["identifier"] = [each for each in patient["identifier"] if each["system"] != NHS_NUMBER]

    return edited(message, change)


def ask(torbay, patient=MARSHWIGGLE, number="TR-1", stay="V-1"):
    return torbay.epr.asks_to_transfer(
        patient, to="RH8", request_number=number, encounter_number=stay, at=torbay.hub.clock()
    )


def tells(hospital, event, patient, **more):
    return hospital.epr.tells_of_patient(event, patient, at=hospital.hub.clock(), **more)


def record_of(ods, patient):
    return {"identifier": {"system": TRUSTS[ods].identifier_systems.patient, "value": patient.local[ods]}}


async def person_of(hub, outcome):
    [row] = [row for row in await hub.rows(t.event) if row["event_id"] == outcome.event_id]
    return row["person_id"]


async def known_by(hub, person_id):
    rows = await hub.rows(t.person_identifier)
    return {row["value"] for row in rows if row["person_id"] == person_id}


@pytest.mark.parametrize("said", ["admission", "answer"])
async def test_a_record_that_was_met_before_is_not_merged_because_a_message_names_a_transfer(
    hub, torbay, exeter, said
):
    """Exeter has registered a patient without an NHS number, born on the same day: a twin, or the same person. A person is asked."""
    requested = await torbay.send(ask(torbay))
    await exeter.send(without_nhs_number(tells(exeter, "A28", TWIN)))
    hub.clock.later(minutes=5)

    def names_the_request(tree):
        named = {"system": TRUSTS["RA9"].identifier_systems.request, "value": "TR-1"}
        resources(tree, "Encounter")[0]["basedOn"] = [{"type": "ServiceRequest", "identifier": named}]

    if said == "admission":
        message = exeter.epr.admits(TWIN, encounter_number="W-1", ward="Taw", at=hub.clock())
        message = edited(message, names_the_request)
    else:
        message = exeter.epr.answers(
            TWIN, "accepted", requester=TRUSTS["RA9"], request_number="TR-1", at=hub.clock()
        )
    outcome = await exeter.send(without_nhs_number(message))
    assert (outcome.disposition, outcome.why) == NO_MATCH
    assert await hub.state(requested.transfer_id) == "requested"
    assert all(row["merged_into"] is None for row in await hub.rows(t.person))

    await hub.unit.retry(
        outcome.event_id, "duty", Choice(person_id=PersonId(await person_of(hub, requested)))
    )
    assert await hub.state(requested.transfer_id) != "requested"


async def test_whom_a_human_names_does_not_move_another_persons_transfer(hub, torbay, exeter):
    mine = await torbay.send(ask(torbay))
    other = await torbay.send(ask(torbay, QUILLFEATHER, "TR-2", "V-2"))
    hub.clock.later(minutes=5)
    answered = await exeter.answers(QUILLFEATHER, "accepted", requester=TRUSTS["RA9"], request_number="TR-1")
    assert (answered.disposition, answered.why) == NO_MATCH
    again = await hub.unit.retry(
        answered.event_id, "duty", Choice(person_id=PersonId(await person_of(hub, other)))
    )
    assert again.disposition is Disposition.QUARANTINED
    assert await hub.state(mine.transfer_id) == "requested"


async def test_twins_with_their_mothers_number_are_two(hub, torbay):
    """Both newborns carry it beside their own; neither has an NHS number yet."""
    mothers = {"system": "https://ra9.example/Id/mother", "value": "4100001"}

    def with_mothers(tree):
        resources(tree, "Patient")[0]["identifier"].append(mothers)

    first = await torbay.send(edited(without_nhs_number(ask(torbay)), with_mothers))
    second = await torbay.send(edited(without_nhs_number(ask(torbay, TWIN, "TR-2", "V-2")), with_mothers))
    assert first.disposition == "accepted"
    assert (second.disposition, second.why) == NO_MATCH

    retried = await hub.unit.retry(second.event_id, "duty", Choice(new_person=True))
    assert retried.disposition is Disposition.ACCEPTED
    left = torbay.epr.discharges(TWIN, encounter_number="V-2", at=hub.clock(), to_site="RH801")
    assert str(await torbay.send(edited(without_nhs_number(left), with_mothers))) == "accepted"
    states = {row["transfer_id"]: row["state"] for row in await hub.rows(t.transfer)}
    assert sorted(states.values()) == ["in-transit", "requested"]
    assert states[first.transfer_id] == "requested"


async def test_somebody_new_has_no_numbers_of_others_and_moves_no_transfer_of_others(hub, torbay):
    await torbay.send(ask(torbay))
    again = await torbay.send(without_nhs_number(ask(torbay, TWIN, "TR-1", "V-2")))
    retried = await hub.unit.retry(again.event_id, "duty", Choice(new_person=True))
    assert retried.disposition is Disposition.QUARANTINED
    assert len(await hub.rows(t.transfer)) == 1


@pytest.mark.parametrize("unknown", [False, True])
async def test_a_requests_number_used_again_for_another_patient_is_a_question(hub, torbay, unknown):
    await torbay.send(ask(torbay))

    def nobody_knows(tree):
        [patient] = resources(tree, "Patient")
        patient.pop("birthDate")
        if unknown:
            url = "http://hl7.org/fhir/StructureDefinition/patient-unknownIdentity"
            patient["extension"] = [{"url": url, "valueBoolean": True}]

    again = await torbay.send(edited(without_nhs_number(ask(torbay, TWIN, "TR-1", "V-2")), nobody_knows))
    assert (again.disposition, again.why) == NO_MATCH


async def test_a_patient_who_is_registered_twice_is_one_with_nhs_number_and_date_of_birth(hub, torbay):
    first = await torbay.send(ask(torbay))
    twice = replace(MARSHWIGGLE, local={"RA9": "4100009"})
    second = await torbay.send(ask(torbay, twice, "TR-2", "V-2"))
    assert second.disposition == "accepted"
    assert await person_of(hub, second) == await person_of(hub, first)


async def test_one_digit_ten_times_is_nobodys_number_in_any_system(hub, torbay):
    def placeholder(tree):
        for patient in resources(tree, "Patient"):
            patient["identifier"] = [{"system": "NHS", "value": "0000000000"}, patient["identifier"][1]]

    outcomes = [
        await torbay.send(edited(ask(torbay, patient, number, number), placeholder))
        for patient, number in ((MARSHWIGGLE, "TR-1"), (TWIN, "TR-2"))
    ]
    assert len({await person_of(hub, each) for each in outcomes}) == 2


async def test_a_stay_of_a_patient_who_is_not_in_the_message_is_not_the_other_ones(hub, torbay):
    """The baby's stay, with only the mother's record beside it."""
    asked = await torbay.send(ask(torbay))

    def of_the_baby(tree):
        resources(tree, "Encounter")[0]["subject"] = {"reference": "https://ra9.example/fhir/Patient/baby-1"}
        resources(tree, "Patient")[0]["id"] = "mother-1"

    left = torbay.epr.discharges(MARSHWIGGLE, encounter_number="V-1", at=hub.clock(), to_site="RH801")
    outcome = await torbay.send(edited(left, of_the_baby))
    assert (outcome.disposition, outcome.why) == ("quarantined", "patient-unidentified")
    assert await hub.state(asked.transfer_id) == "requested"


async def merged_by_mistake(hub, torbay):
    """Torbay says that the twin's record is replaced by the other's."""
    survivor, loser = [
        await torbay.send(without_nhs_number(tells(torbay, "A28", each))) for each in (MARSHWIGGLE, TWIN)
    ]
    link = [{"type": "replaced-by", "other": record_of("RA9", MARSHWIGGLE)}]
    hub.clock.later(minutes=1)
    await torbay.send(without_nhs_number(tells(torbay, "A40", TWIN, active=False, link=link)))
    hub.clock.later(minutes=1)
    return await person_of(hub, survivor), await person_of(hub, loser)


async def test_what_is_learned_of_a_merged_record_goes_with_it_when_it_parts(hub, torbay):
    survivor, loser = await merged_by_mistake(hub, torbay)
    restricted = {
        "security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}]
    }
    link = [{"type": "replaced-by", "other": record_of("RA9", MARSHWIGGLE)}]
    await torbay.send(tells(torbay, "A31", TWIN, active=False, link=link, meta=restricted))
    hub.clock.later(minutes=1)
    await torbay.send(without_nhs_number(tells(torbay, "A37", TWIN, active=True)))

    assert TWIN.nhs_number in await known_by(hub, loser)
    assert TWIN.nhs_number not in await known_by(hub, survivor)
    labels = {row["person_id"]: row["sensitivity"] for row in await hub.rows(t.person)}
    assert (labels[loser], labels[survivor]) == ("R", None)


async def test_only_who_merged_records_parts_them_by_saying_that_one_is_active(hub, torbay, plymouth):
    """Plymouth knows the patient too, and sends its record as it does every night: active, which it always was."""
    await torbay.send(tells(torbay, "A28", TWIN))
    at_plymouth = replace(TWIN, local=TWIN.local | {"RK9": "P-2"})
    await plymouth.send(tells(plymouth, "A28", at_plymouth))
    _, loser = await merged_by_mistake(hub, torbay)

    async def merged_into():
        [row] = [row for row in await hub.rows(t.person) if row["person_id"] == loser]
        return row["merged_into"]

    hub.clock.later(minutes=1)
    await plymouth.send(tells(plymouth, "A31", at_plymouth, active=True))
    assert await merged_into() is not None
    hub.clock.later(minutes=1)
    await torbay.send(tells(torbay, "A31", TWIN, active=True))
    assert await merged_into() is None


async def test_a_third_trusts_number_is_learned_where_the_patients_nhs_number_is(hub, torbay, plymouth):
    await torbay.send(tells(torbay, "A28", TWIN))
    _, loser = await merged_by_mistake(hub, torbay)
    await plymouth.send(tells(plymouth, "A28", replace(TWIN, local={"RK9": "P-2"})))
    assert {TWIN.nhs_number, "P-2"} <= await known_by(hub, loser)


async def test_a_record_that_is_merged_is_parted_before_it_is_merged_elsewhere(hub, torbay):
    await merged_by_mistake(hub, torbay)
    await torbay.send(without_nhs_number(tells(torbay, "A28", THIRD)))
    link = [{"type": "replaced-by", "other": record_of("RA9", THIRD)}]
    moved = await torbay.send(without_nhs_number(tells(torbay, "A40", TWIN, active=False, link=link)))
    assert (moved.disposition, moved.why) == NO_MATCH
    assert "A37" in (await hub.rows(t.message))[-1]["detail"]


async def test_an_unlink_that_names_the_survivor_says_what_it_should_name(hub, torbay):
    await merged_by_mistake(hub, torbay)
    parted = await torbay.send(without_nhs_number(tells(torbay, "A37", MARSHWIGGLE, active=True)))
    assert (parted.disposition, parted.why) == NO_MATCH


async def test_what_the_database_refuses_is_set_aside_and_stops_nobody_else(
    hub, torbay, plymouth, monkeypatch
):
    """A fault of ours that only shows when it is written: the message waits, and those beside it are taken in."""
    right = unit_of_work.write_effects

    async def refuses(connection, effects, *args, **more):
        if any(each.happened and each.received.trust == "RA9" for each in effects):
            raise IntegrityError("INSERT …", {}, Exception(MARSHWIGGLE.family))
        await right(connection, effects, *args, **more)

    monkeypatch.setattr(unit_of_work, "write_effects", refuses)
    bad = torbay.record(ask(torbay))
    good = plymouth.record(
        plymouth.epr.asks_to_transfer(
            QUILLFEATHER, to="RH8", request_number="P", encounter_number="P", at=hub.clock()
        )
    )
    taken = await hub.take([good, bad])
    assert taken.dispositions == {Disposition.ACCEPTED: 1, Disposition.QUARANTINED: 1}
    assert set(taken.positions.values()) == {1}
    [waits] = [row for row in await hub.rows(t.message) if row["why"]]
    assert (waits["trust"], waits["why"]) == ("RA9", "hub-fault")
    assert MARSHWIGGLE.family not in waits["detail"]


async def test_one_message_that_the_database_refuses_does_not_keep_the_clock_from_others(
    hub, torbay, plymouth, monkeypatch
):
    early = [
        await each.cancels_request(patient, to="RH8", request_number=number)
        for each, patient, number in ((torbay, MARSHWIGGLE, "TR-1"), (plymouth, QUILLFEATHER, "TR-2"))
    ]
    hub.clock.later(seconds=3)
    for each, patient, number in ((torbay, MARSHWIGGLE, "TR-1"), (plymouth, QUILLFEATHER, "TR-2")):
        await each.asks_to_transfer(patient, to="RH8", request_number=number, encounter_number=number)
    right = unit_of_work.write_effects

    async def refuses(connection, effects, *args, **more):
        if any(each.received.trust == "RA9" for each in effects):
            raise IntegrityError("INSERT …", {}, Exception("…"))
        await right(connection, effects, *args, **more)

    monkeypatch.setattr(unit_of_work, "write_effects", refuses)
    clock = ClockService(hub.engine, hub.journey, hub.clock, hub.log, poll_s=5)
    hub.clock.later(seconds=3)
    assert await clock.look_for_requests() == 1
    assert [(await hub.outcome(each.event_id)).disposition for each in early] == ["quarantined", "accepted"]


async def test_only_who_restricted_a_patient_takes_it_back(hub, torbay, plymouth):
    """Plymouth's system writes U into every record, as it does of everybody."""

    def label(code):
        system = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"
        return {"meta": {"security": [{"system": system, "code": code}]}}

    async def kept_back():
        return [row["sensitivity"] for row in await hub.rows(t.person)]

    await torbay.send(tells(torbay, "A31", TWIN, **label("R")))
    await plymouth.send(tells(plymouth, "A31", replace(TWIN, local={"RK9": "P-2"}), **label("U")))
    assert await kept_back() == ["R"]
    await torbay.send(tells(torbay, "A31", TWIN, **label("U")))
    assert await kept_back() == [None]


@pytest.mark.parametrize("status", ["number-present-and-verified", "02", None])
async def test_a_record_that_had_no_nhs_number_is_the_patients_when_the_number_is_traced(
    hub, torbay, exeter, status
):
    """Exeter registered the patient before it knew the number; with the number verified its record and Torbay's are one."""
    asked = await torbay.send(ask(torbay))
    await exeter.send(without_nhs_number(tells(exeter, "A28", MARSHWIGGLE)))
    hub.clock.later(minutes=5)

    def has_status(tree):
        for patient in resources(tree, "Patient"):
            for each in patient["identifier"]:
                if each["system"] == NHS_NUMBER:
                    each.pop("extension", None)
                    if status:
                        coded = {
                            "coding": [
                                {
                                    "system": "https://fhir.hl7.org.uk/CodeSystem/UKCore-NHSNumberVerificationStatusEngland",
                                    "code": status,
                                }
                            ]
                        }
                        url = "https://fhir.hl7.org.uk/StructureDefinition/Extension-UKCore-NHSNumberVerificationStatus"
                        each["extension"] = [{"url": url, "valueCodeableConcept": coded}]

    admitted = edited(
        exeter.epr.admits(MARSHWIGGLE, encounter_number="W-1", ward="Taw", at=hub.clock()), has_status
    )
    outcome = await exeter.send(admitted)
    if status == "number-present-and-verified":
        assert outcome.disposition == "accepted"
        assert await hub.state(asked.transfer_id) == "completed"
        assert sorted(row["merged_into"] is None for row in await hub.rows(t.person)) == [False, True]
    else:
        assert await hub.state(asked.transfer_id) == "requested"
        assert all(row["merged_into"] is None for row in await hub.rows(t.person))


async def test_a_mothers_nhs_number_in_her_babys_record_is_a_question(hub, torbay):
    asked = await torbay.send(ask(torbay))
    baby = replace(MARSHWIGGLE, local={"RA9": "4109999"})

    def without_birth_date(tree):
        resources(tree, "Patient")[0].pop("birthDate")

    left = torbay.epr.discharges(baby, encounter_number="V-B", at=hub.clock(), to_site="RH801")
    outcome = await torbay.send(edited(left, without_birth_date))
    assert (outcome.disposition, outcome.why) == NO_MATCH
    assert await hub.state(asked.transfer_id) == "requested"


_NOT_VERIFIED = {
    "extension": [
        {
            "url": "https://fhir.hl7.org.uk/StructureDefinition/Extension-UKCore-NHSNumberVerificationStatus",
            "valueCodeableConcept": {"coding": [{"code": "02"}]},
        }
    ]
}


@pytest.mark.parametrize(
    ("more", "becomes"),
    [
        ({}, "quarantined"),
        ({"period": {"end": "2027"}}, "quarantined"),
        ({"period": {"end": "2020-01-01"}}, "accepted"),
        ({"period": {"end": "2026-10"}}, "accepted"),
        (_NOT_VERIFIED, "accepted"),
    ],
    ids=[
        "both are current",
        "its period goes on",
        "it has ended",
        "it ended last month",
        "it is not verified",
    ],
)
async def test_a_patient_with_two_nhs_numbers_is_known_by_the_one_that_counts(hub, torbay, more, becomes):
    def with_another(tree):
        another = {"system": NHS_NUMBER, "value": QUILLFEATHER.nhs_number, **more}
        resources(tree, "Patient")[0]["identifier"].insert(0, another)

    asked = await torbay.send(
        edited(
            torbay.epr.asks_to_transfer(
                MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1", at=hub.clock()
            ),
            with_another,
        )
    )
    assert asked.disposition == becomes
    keys = {row["value"] for row in await hub.rows(t.person_identifier)}
    assert QUILLFEATHER.nhs_number not in keys
    assert (MARSHWIGGLE.nhs_number in keys) is (becomes == "accepted")
    assert asked.why == (None if becomes == "accepted" else "patient-unidentified")


async def two_transfers_of_merged_twins(hub, torbay):
    first, second = [
        await torbay.send(without_nhs_number(ask(torbay, patient, number, stay)))
        for patient, number, stay in ((MARSHWIGGLE, "TR-1", "V-1"), (TWIN, "TR-2", "V-2"))
    ]
    link = [{"type": "replaced-by", "other": record_of("RA9", MARSHWIGGLE)}]
    hub.clock.later(minutes=1)
    await torbay.send(without_nhs_number(tells(torbay, "A40", TWIN, active=False, link=link)))
    hub.clock.later(minutes=1)
    return first.transfer_id, second.transfer_id, link


async def test_a_death_that_is_said_when_records_part_is_one_patients(hub, torbay):
    first, second, _ = await two_transfers_of_merged_twins(hub, torbay)
    await torbay.send(without_nhs_number(tells(torbay, "A37", TWIN, active=True, deceasedBoolean=True)))
    assert (await hub.state(first), await hub.state(second)) == ("requested", "cancelled")


async def test_whose_transfer_ended_with_anothers_death_is_told_when_the_records_part(hub, torbay):
    """While the records were merged the twin died, and both transfers ended. When they part, the living one's hospitals hear of it."""
    first, second, link = await two_transfers_of_merged_twins(hub, torbay)
    dead = tells(torbay, "A31", TWIN, active=False, link=link, deceasedBoolean=True)
    await torbay.send(without_nhs_number(dead))
    assert (await hub.state(first), await hub.state(second)) == ("cancelled", "cancelled")
    hub.clock.later(minutes=1)
    before = len(await hub.inbox("RH8"))
    await torbay.send(without_nhs_number(tells(torbay, "A37", TWIN, active=True)))
    told = (await hub.inbox("RH8"))[before:]
    assert {
        each.headers["transfer-id"] for each in told if each.event_type == "transfer.patient.identified"
    } == {first, second}


async def test_what_is_said_of_one_twin_is_not_kept_with_the_other(hub, torbay):
    """Their mother's number comes first in both records, and the second twin gets an NHS number."""
    mothers = {"system": "https://ra9.example/Id/mother", "value": "4100001"}

    def with_mothers(tree):
        resources(tree, "Patient")[0]["identifier"].insert(0, mothers)

    first = await torbay.send(edited(without_nhs_number(tells(torbay, "A28", MARSHWIGGLE)), with_mothers))
    second = await torbay.send(edited(without_nhs_number(tells(torbay, "A28", TWIN)), with_mothers))
    await hub.unit.retry(second.event_id, "duty", Choice(new_person=True))
    hub.clock.later(minutes=1)
    await torbay.send(edited(tells(torbay, "A31", TWIN), with_mothers))
    assert TWIN.nhs_number in await known_by(hub, await person_of(hub, second))
    assert TWIN.nhs_number not in await known_by(hub, await person_of(hub, first))


async def test_a_record_that_a_number_showed_to_be_the_patients_stays_that_every_night(hub, torbay, exeter):
    """Torbay asks before it knows the NHS number; when it is traced the records are one, and stay one, and the hospitals hear of it once."""
    await exeter.send(tells(exeter, "A28", MARSHWIGGLE))
    hub.clock.later(minutes=1)
    asked = await torbay.send(without_nhs_number(ask(torbay)))
    for _ in range(3):
        hub.clock.later(hours=12)
        await torbay.send(tells(torbay, "A31", MARSHWIGGLE, active=True))
        assert sorted(row["merged_into"] is None for row in await hub.rows(t.person)) == [False, True]
    told = await hub.told("RH8")
    assert told.count("transfer.patient.identified") == 1

    hub.clock.later(minutes=1)
    update = torbay.epr.updates_request(
        MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1", at=hub.clock()
    )
    assert str(await torbay.send(update)) == "accepted"
    assert await hub.state(asked.transfer_id) == "requested"


async def test_a_number_that_is_traced_by_an_update_or_a_departure_is_the_same_transfer(hub, torbay, exeter):
    await exeter.send(tells(exeter, "A28", MARSHWIGGLE))
    hub.clock.later(minutes=1)
    asked = await torbay.send(without_nhs_number(ask(torbay)))
    hub.clock.later(minutes=5)
    left = await torbay.discharges(MARSHWIGGLE, encounter_number="V-1", to_site="RH801")
    assert (str(left), left.transfer_id) == ("accepted", asked.transfer_id)
    hub.clock.later(hours=1)
    await exeter.admits(MARSHWIGGLE, encounter_number="W-1", ward="Taw", site="RH801")
    assert await hub.state(asked.transfer_id) == "completed"
    assert len(await hub.rows(t.transfer)) == 1


async def test_that_an_nhs_number_was_replaced_is_told_once(hub, torbay, exeter):
    await torbay.send(ask(torbay))
    new = replace(MARSHWIGGLE, nhs_number=TWIN.nhs_number)

    def replaces_the_old(tree):
        old = {"system": NHS_NUMBER, "value": MARSHWIGGLE.nhs_number, "use": "old"}
        resources(tree, "Patient")[0]["identifier"].append(old)

    for _ in range(3):
        hub.clock.later(hours=12)
        outcome = await torbay.send(edited(tells(torbay, "A31", new), replaces_the_old))
        assert str(outcome) == "accepted"
    assert (await hub.told("RH8")).count("transfer.patient.identified") == 1


async def test_a_human_who_names_the_transfer_answers_for_another_number_of_the_hospital(hub, torbay):
    """An unknown man is known by name now, and has a new number."""
    nobody = replace(MARSHWIGGLE, local={"RA9": "7700001"})

    def without_birth_date(tree):
        resources(tree, "Patient")[0].pop("birthDate", None)

    asked = await torbay.send(edited(without_nhs_number(ask(torbay, nobody)), without_birth_date))
    hub.clock.later(minutes=30)
    update = torbay.epr.updates_request(
        MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1", at=hub.clock()
    )
    outcome = await torbay.send(update)
    assert (outcome.disposition, outcome.why) == NO_MATCH
    retried = await hub.unit.retry(
        outcome.event_id, "duty", Choice(transfer_id=TransferId(asked.transfer_id))
    )
    assert retried.disposition is Disposition.ACCEPTED


async def test_what_is_restricted_stays_so_in_the_very_message_that_shows_whose_it_is(hub, torbay, exeter):
    """Torbay's record without an NHS number is restricted; with the departure the number is traced to a record of Exeter's that is not."""
    restricted = {
        "security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}]
    }
    await exeter.send(tells(exeter, "A28", MARSHWIGGLE))
    await torbay.send(without_nhs_number(tells(torbay, "A28", MARSHWIGGLE, meta=restricted)))
    hub.clock.later(minutes=1)
    await torbay.send(without_nhs_number(ask(torbay)))
    hub.clock.later(minutes=5)

    def lives_somewhere(tree):
        resources(tree, "Patient")[0]["address"] = [{"line": ["1 Hidden Street"]}]

    left = torbay.epr.discharges(MARSHWIGGLE, encounter_number="V-1", at=hub.clock(), to_site="RH801")
    assert str(await torbay.send(edited(left, lives_somewhere))) == "accepted"
    assert "Hidden" not in str(await hub.inbox("RH8"))


def without_birth_date(message, **more):
    def change(tree):
        [patient] = resources(tree, "Patient")
        patient.pop("birthDate")
        patient.update(more)

    return edited(without_nhs_number(message), change)


_NOBODY_KNOWS = [
    {"url": "http://hl7.org/fhir/StructureDefinition/patient-unknownIdentity", "valueBoolean": True}
]
_GUESSED = {"birthDate": "1980", "extension": _NOBODY_KNOWS}


async def known_births(hub):
    return [row["birth_date"] for row in await hub.rows(t.person)]


@pytest.mark.parametrize("at_first", [{}, _GUESSED], ids=["no date of birth", "a guessed one"])
async def test_an_unknown_man_has_a_date_of_birth_once_his_hospital_knows_him(hub, torbay, exeter, at_first):
    """Torbay asks for him before anybody knows who he is; when it does, his admission at Exeter is his, by NHS number and date of birth."""
    asked = await torbay.send(without_birth_date(ask(torbay), **at_first))
    assert await known_births(hub) == [None]
    hub.clock.later(hours=1)
    update = torbay.epr.updates_request(
        MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1", at=hub.clock()
    )
    assert str(await torbay.send(update)) == "accepted"
    assert await known_births(hub) == [MARSHWIGGLE.birth_date.isoformat()]
    [learned] = await hub.audit(code="identity-matched")
    assert learned["detail"]["birth_date"] == "learned"

    hub.clock.later(hours=1)
    arrived = await exeter.admits(MARSHWIGGLE, encounter_number="W-1", ward="Taw", site="RH801")
    assert (str(arrived), arrived.transfer_id) == ("accepted", asked.transfer_id)
    assert await hub.state(asked.transfer_id) == "completed"

    other = replace(MARSHWIGGLE, birth_date=QUILLFEATHER.birth_date)
    contradicts = await torbay.send(tells(torbay, "A31", other))
    assert (contradicts.disposition, contradicts.why) == NO_MATCH
    assert await known_births(hub) == [MARSHWIGGLE.birth_date.isoformat()]


async def test_a_date_of_birth_is_learned_from_the_records_own_hospital_only(hub, torbay, exeter):
    """Exeter's answer names the transfer and gives a date of birth: it may be another patient's."""
    asked = await torbay.send(without_birth_date(ask(torbay)))
    hub.clock.later(minutes=5)
    answered = await exeter.answers(
        TWIN, "accepted", requester=TRUSTS["RA9"], request_number="TR-1", bed="Bed 4"
    )
    assert (str(answered), answered.transfer_id) == ("accepted", asked.transfer_id)
    assert await known_births(hub) == [None]


async def test_a_mothers_number_brings_her_baby_no_date_of_birth(hub, torbay):
    """The baby's record holds its mother's number too, and hers comes with her own date of birth."""
    mothers = {"system": "https://ra9.example/Id/mother", "value": "4100001"}

    def with_mothers(tree):
        resources(tree, "Patient")[0]["identifier"].append(mothers)

    def only_mothers(tree):
        resources(tree, "Patient")[0]["identifier"] = [mothers]

    await torbay.send(edited(without_birth_date(tells(torbay, "A28", MARSHWIGGLE)), with_mothers))
    await torbay.send(edited(tells(torbay, "A31", QUILLFEATHER), only_mothers))
    assert await known_births(hub) == [None]


async def test_a_guess_made_later_is_not_learned(hub, torbay):
    await torbay.send(without_birth_date(tells(torbay, "A28", MARSHWIGGLE)))
    hub.clock.later(minutes=1)
    await torbay.send(without_birth_date(tells(torbay, "A31", MARSHWIGGLE), **_GUESSED))
    assert await known_births(hub) == [None]


async def test_a_date_of_birth_that_contradicts_a_merged_record_is_a_question(hub, torbay):
    """The record that stands for the twin was made without one; the twin's own has one."""
    await torbay.send(without_birth_date(tells(torbay, "A28", MARSHWIGGLE)))
    await torbay.send(without_nhs_number(tells(torbay, "A28", TWIN)))
    link = [{"type": "replaced-by", "other": record_of("RA9", MARSHWIGGLE)}]
    hub.clock.later(minutes=1)
    await torbay.send(without_nhs_number(tells(torbay, "A40", TWIN, active=False, link=link)))
    hub.clock.later(minutes=1)
    other = replace(MARSHWIGGLE, birth_date=QUILLFEATHER.birth_date)
    said = await torbay.send(without_nhs_number(tells(torbay, "A31", other)))
    assert (said.disposition, said.why) == NO_MATCH


#   what a hospital that has nothing to do with the patient says with their NHS number
@pytest.mark.parametrize("guess", ["1931-01-01", "1931", "1948", "1948-03", "1948-04", "1948-03-10", None])
async def test_a_date_of_birth_is_not_found_out_piece_by_piece(hub, torbay, plymouth, guess):
    """Year, month and day were 140 tries, each with an answer of its own."""
    await torbay.send(ask(torbay))
    hub.clock.later(minutes=5)

    def guessed(tree):
        [patient] = resources(tree, "Patient")
        patient.pop("birthDate")
        patient |= {"birthDate": guess} if guess else {}

    asked = await plymouth.send(edited(ask(plymouth, number="TR-9", stay="P-9"), guessed))
    assert (asked.disposition, asked.why) == NO_MATCH
    assert asked.detail.startswith("An NHS number without the date of birth that is held for it"), (
        asked.detail
    )
    assert len(await hub.rows(t.transfer)) == 1

    # Who asks about no transfer of theirs hears the same of a wrong date as of the right one.
    heard = set()
    for patient in (MARSHWIGGLE, replace(MARSHWIGGLE, birth_date=date(1931, 1, 1))):
        hub.clock.later(minutes=1)
        cancel = await plymouth.cancels_request(patient, to="RH8", request_number="TR-9")
        answer = await plymouth.answers_bars(
            patient, "planned", requester=TRUSTS["RH8"], request_number="TR-9"
        )
        heard |= {(each.disposition, each.why, each.at, each.detail) for each in (cancel, answer)}
    assert [each[:2] for each in heard] == [("quarantined", "transfer-unknown")]
