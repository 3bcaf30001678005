"""A message holds more than what it is about: a mother beside her child, a test that was ordered, an earlier stay.

What comes along is passed on to whom the message is for. It is never taken for what the message is about.
"""

import uuid
from datetime import date

import orjson
import pytest

from hub.demo.epr import Patient
from hub.demo.people import MOONRAKER, QUILLFEATHER, THISTLEWICK
from hub.fhir.systems import NHS_NUMBER
from hub.store import tables as t
from tests.stories.conftest import edited, resources
from tests.stories.rest import System, facade_of
from tests.stories.test_journeys import NUMBER, STAY, answer, ask, discharge

BABY = Patient("Quillfeather", "Baby", date(2026, 11, 21), MOONRAKER.nhs_number, {"RA9": "9100003"})


def beside(resource, *, first=True):
    """Puts one more resource into a message, before or behind those of its type."""

    def change(tree):
        entry = {"fullUrl": f"urn:uuid:{uuid.uuid4()}", "resource": resource}
        at = [
            i
            for i, e in enumerate(tree["entry"])
            if e["resource"]["resourceType"] == resource["resourceType"]
        ]
        tree["entry"].insert(at[0] if first else at[-1] + 1, entry)

    return change


def asks(hospital, patient, to="RH8", number=NUMBER, stay=STAY, **more):
    return hospital.epr.asks_to_transfer(
        patient, to=to, request_number=number, encounter_number=stay, at=hospital.hub.clock(), **more
    )


def led_to(record, reference):
    return next(e["resource"] for e in record.bundle["entry"] if e["fullUrl"] == reference["reference"])


async def test_a_baby_is_asked_for_with_the_mother_first_in_the_message(hub, torbay, exeter):
    mother = torbay.epr._person(QUILLFEATHER)
    asked = await torbay.send(edited(asks(torbay, BABY), beside(mother)))
    assert str(asked) == "accepted"

    told = (await hub.inbox("RH8"))[-1]
    assert led_to(told, told.of("Task")["for"])["birthDate"] == BABY.birth_date.isoformat()
    assert led_to(told, told.of("Task")["focus"])["subject"] == told.of("Task")["for"]
    assert len(resources(told.bundle, "Patient")) == 2

    at_exeter = await (await System.join(facade_of(hub), "RH8")).signed_in()
    [patient] = [e["resource"] for e in (await at_exeter.get("/Patient")).json()["entry"]]
    assert patient["birthDate"] == BABY.birth_date.isoformat()


async def test_a_baby_is_asked_for_by_number_and_only_the_mother_is_described(hub, torbay, exeter):
    """Nobody in the message is whose transfer it is: the Task says so of nobody."""
    number = {"system": torbay.profile.identifier_systems.patient, "value": BABY.local["RA9"]}

    def by_number(tree):
        for each in resources(tree, "ServiceRequest") + resources(tree, "Encounter"):
            each["subject"] = {"type": "Patient", "identifier": number}

    asked = await torbay.send(edited(asks(torbay, QUILLFEATHER), by_number))
    assert str(asked) == "accepted"
    assert "for" not in (await hub.inbox("RH8"))[-1].of("Task")
    at_exeter = await (await System.join(facade_of(hub), "RH8")).signed_in()
    assert QUILLFEATHER.family not in (await at_exeter.get("/Patient")).text


async def test_an_earlier_stay_in_the_emergency_department_is_not_where_the_patient_leaves_from(
    hub, torbay, exeter
):
    """The request names the ward's stay; the emergency department's came first."""
    earlier = torbay.epr._stay(QUILLFEATHER, "ED-1", status="finished")
    earlier["class"]["code"] = "EMER"
    asked = await torbay.send(edited(asks(torbay, QUILLFEATHER), beside(earlier)))
    [row] = await hub.rows(t.transfer)
    assert row["origin_encounter"].endswith(f"|{STAY}")
    assert (await hub.inbox("RH8"))[-1].of("Encounter")["identifier"][0]["value"] == STAY

    hub.clock.later(minutes=5)
    await answer(exeter, "accepted", QUILLFEATHER, torbay)
    left = await discharge(torbay, QUILLFEATHER)
    assert left.transfer_id == asked.transfer_id
    assert await hub.state(asked.transfer_id) == "in-transit"


@pytest.mark.parametrize(
    ("said", "origin"),
    [
        (lambda system, url: {"reference": url}, STAY),
        (lambda system, url: {"identifier": {"system": system, "value": STAY}}, STAY),
        (lambda system, url: {"identifier": {"system": system, "value": "V-99"}}, None),
        (lambda system, url: {"reference": "Encounter/elsewhere"}, None),
        (lambda system, url: None, "ED-1"),
    ],
    ids=["by its place", "by its number", "one that is not here", "one on a server", "not at all"],
)
async def test_which_of_two_stays_a_request_is_made_in(hub, torbay, said, origin):
    def names(tree):
        beside(torbay.epr._stay(QUILLFEATHER, "ED-1", status="finished"))(tree)
        [request] = resources(tree, "ServiceRequest")
        request["encounter"] = said(
            torbay.profile.identifier_systems.encounter, request["encounter"]["reference"]
        )
        if request["encounter"] is None:
            del request["encounter"]

    assert str(await torbay.send(edited(asks(torbay, QUILLFEATHER), names))) == "accepted"
    [row] = await hub.rows(t.transfer)
    assert (row["origin_encounter"] or "").rpartition("|")[2] == (origin or "")


def _blood_test(patient, number="LAB-1"):
    return {
        "resourceType": "ServiceRequest",
        "identifier": [{"system": "https://laboratory.example/order", "value": number}],
        "status": "active",
        "intent": "order",
        "subject": {"identifier": {"system": NHS_NUMBER, "value": patient.nhs_number}},
    }


async def test_two_requests_with_the_same_blood_test_beside_them_are_two(hub, torbay, exeter):
    asked = []
    for number, specialty in (("TR-1", "320"), ("TR-2", "150")):
        message = asks(torbay, QUILLFEATHER, number=number, specialty=specialty)
        asked.append(await torbay.send(edited(message, beside(_blood_test(QUILLFEATHER), first=False))))
        hub.clock.later(minutes=3)
    assert len({each.transfer_id for each in asked}) == 2
    assert sorted(row["value"] for row in await hub.rows(t.transfer_identifier)) == ["TR-1", "TR-2"]

    answers = exeter.epr.answers(
        QUILLFEATHER, "accepted", requester=torbay.profile, request_number="TR-2", at=hub.clock()
    )

    def with_both(tree):
        for each in (_blood_test(QUILLFEATHER), _blood_test(QUILLFEATHER, "TR-1")):
            tree["entry"].append({"fullUrl": f"urn:uuid:{uuid.uuid4()}", "resource": each})

    said = await exeter.send(edited(answers, with_both))
    assert said.transfer_id == asked[1].transfer_id
    assert [await hub.state(each.transfer_id) for each in asked] == ["requested", "accepted"]


@pytest.mark.parametrize("by", ["identifier", "reference"])
async def test_a_request_with_the_one_that_it_stands_in_for_beside_it(hub, torbay, exeter, plymouth, by):
    first = await ask(torbay, THISTLEWICK)
    hub.clock.later(minutes=5)
    system = torbay.profile.identifier_systems.request
    old = _blood_test(THISTLEWICK) | {
        "identifier": [{"system": system, "value": NUMBER}],
        "status": "revoked",
    }

    def with_old(tree):
        beside(old, first=False)(tree)
        new = resources(tree, "ServiceRequest")[0]
        if by == "reference":
            new["replaces"] = [
                {"reference": next(e["fullUrl"] for e in tree["entry"] if e["resource"] is old)}
            ]

    message = asks(torbay, THISTLEWICK, to="RK9", number="TR-2", replaces=NUMBER)
    second = await torbay.send(edited(message, with_old))
    assert str(second) == "accepted"
    assert [await hub.state(each) for each in (first, second.transfer_id)] == ["redirected", "requested"]
    told = (await hub.inbox("RH8"))[-1]
    assert told.of("Task")["focus"]["identifier"]["value"] == NUMBER
    assert told.of("ServiceRequest") is None
    names = {row["value"]: row["transfer_id"] for row in await hub.rows(t.transfer_identifier)}
    assert names == {NUMBER: first, "TR-2": second.transfer_id}


@pytest.mark.parametrize("kind", ["collection", "transaction"])
async def test_a_mothers_and_her_babys_discharges_in_one_bundle_are_two_events(hub, torbay, kind):
    """To act on the first would lose the second without a word."""
    for patient, number, stay in ((QUILLFEATHER, "TR-1", "V-1"), (BABY, "TR-2", "V-2")):
        await ask(torbay, patient, number=number, stay=stay)
    at = hub.clock.later(minutes=5)
    both, other = (
        torbay.epr.discharges(patient, encounter_number=stay, at=at, to_site="RH801")
        for patient, stay in ((QUILLFEATHER, "V-1"), (BABY, "V-2"))
    )

    def together(tree):
        tree["entry"] += orjson.loads(other.body)["entry"]
        tree["type"] = kind
        if kind == "transaction":
            for each in tree["entry"]:
                each["request"] = {"method": "PUT", "url": f"{each['resource']['resourceType']}/1"}

    told = await torbay.send(edited(both, together))
    assert (told.disposition, told.why) == ("quarantined", "message-not-supported")
    assert "more than one Encounter" in told.detail


async def test_two_answers_in_one_message_are_quarantined(hub, torbay, exeter):
    asked = [
        await ask(torbay, QUILLFEATHER, number=number, specialty=specialty)
        for number, specialty in (("TR-1", "320"), ("TR-2", "150"))
    ]
    hub.clock.later(minutes=5)
    yes, no = (
        exeter.epr.answers(
            QUILLFEATHER,
            status,
            requester=torbay.profile,
            request_number=number,
            at=hub.clock(),
            reason=reason,
        )
        for status, number, reason in (("accepted", "TR-1", None), ("rejected", "TR-2", "RRNA"))
    )

    def together(tree):
        more = orjson.loads(no.body)
        tree["entry"] += [e for e in more["entry"] if e["resource"]["resourceType"] == "Task"]
        resources(tree, "MessageHeader")[0]["focus"] += resources(more, "MessageHeader")[0]["focus"]

    said = await exeter.send(edited(yes, together))
    assert (said.disposition, said.why) == ("quarantined", "message-not-supported")
    assert [await hub.state(each) for each in asked] == ["requested", "requested"]


async def test_a_stay_with_the_longer_one_that_it_is_part_of_is_one_event(hub, torbay):
    await ask(torbay, QUILLFEATHER)
    hub.clock.later(minutes=5)
    spell = torbay.epr._stay(QUILLFEATHER, "SPELL-1", status="in-progress")

    def part_of(tree):
        beside(spell, first=False)(tree)
        resources(tree, "Encounter")[0]["partOf"] = {
            "reference": next(e["fullUrl"] for e in tree["entry"] if e["resource"] is spell)
        }

    message = torbay.epr.discharges(QUILLFEATHER, encounter_number=STAY, at=hub.clock(), to_site="RH801")
    left = await torbay.send(edited(message, part_of))
    assert str(left) == "accepted"
    assert await hub.state(left.transfer_id) == "in-transit"


def _hospital(ods):
    return {"identifier": {"system": "https://fhir.nhs.uk/Id/ods-organization-code", "value": ods}}


def _performed_by(*performers):
    def change(tree):
        resources(tree, "ServiceRequest")[0]["performer"] = [_hospital(each) for each in performers]

    return change


def _performed_by_either(tree):
    _performed_by("RH8", "RK9")(tree)
    del resources(tree, "MessageHeader")[0]["destination"]


def _addressed_to_both(tree):
    resources(tree, "MessageHeader")[0]["destination"].append(
        {"endpoint": "https://fhir.nhs.uk/Id/ods-organization-code|RK9", "receiver": _hospital("RK9")}
    )


@pytest.mark.parametrize(
    ("change", "at"),
    [
        (_performed_by("RK9"), "Bundle.entry[1].resource.performer"),
        (_performed_by_either, "Bundle.entry[1].resource.performer"),
        (_addressed_to_both, "MessageHeader.destination.receiver"),
    ],
    ids=["the header and the request disagree", "the request alone names two", "the header names two"],
)
async def test_a_request_that_names_two_hospitals_goes_to_neither(hub, torbay, change, at):
    asked = await torbay.send(edited(asks(torbay, QUILLFEATHER), change))
    assert (asked.disposition, asked.why, asked.at) == ("quarantined", "receiver-missing", at)
    assert "RH8, RK9" in asked.detail
    assert await hub.told("RH8") == await hub.told("RK9") == []


@pytest.mark.parametrize("performers", [("RH801",), ("RA9", "RH8"), ("ZZ999",), ()])
async def test_who_performs_may_be_a_site_of_the_receiver_or_nobody_that_the_hub_knows(
    hub, torbay, performers
):
    asked = await torbay.send(edited(asks(torbay, QUILLFEATHER), _performed_by(*performers)))
    assert str(asked) == "accepted"
    assert await hub.told("RH8") == ["transfer.requested"]


async def test_the_senders_own_team_as_performer_is_no_second_receiver(hub, torbay):
    message = torbay.epr.asks_to_transfer(
        QUILLFEATHER, to="RH8", request_number=NUMBER, encounter_number=STAY, at=hub.clock()
    )
    assert str(await torbay.send(edited(message, _performed_by("RA9")))) == "accepted"
