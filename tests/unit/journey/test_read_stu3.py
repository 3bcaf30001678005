"""A message in STU3 is mended and judged as STU3, before it becomes R4: what comes of it, and in which words it is refused."""

import copy
from collections import Counter
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.codes.book import CodeFile
from hub.dialects.fhir_xml_writer import write_xml
from hub.dialects.stu3 import to_r4
from hub.domain.ids import EventId, OdsCode, time_ordered_id
from hub.domain.message import FlagCode, Position, Received
from hub.domain.rejection import Owner, Rejection, Why
from hub.fhir import headers
from hub.fhir.elements import FhirVersion
from hub.fhir.structure import _EXPECTED, check
from hub.journey.read import Limits, Read, read
from hub.journey.repair import repair_stu3
from hub.onboarding.examples import examples_of
from hub.trusts import load_books, load_directory
from tests.unit.journey.test_nothing_lost import leaves, mutate

SCHEMAS = Path(__file__).resolve().parents[3] / "schemas"
DIRECTORY = load_directory(SCHEMAS)
TORBAY = DIRECTORY["RA9"]
BOOK = load_books(SCHEMAS, DIRECTORY)["RA9"].with_maps(
    [
        CodeFile(
            "ours.json",
            b"""{"resourceType": "ConceptMap", "group": [
{"source": "https://transfer-hub.example/element/ServiceRequest.status", "target": "http://hl7.org/fhir/request-status", "element": [
{"code": "WITHDRAWN", "target": [{"code": "revoked"}]}
]}]}""",
        )
    ]
)
AT = datetime(2026, 3, 1, 9, 10, tzinfo=UTC)
STU3 = "application/fhir+json; fhirVersion=3.0"


def referral(**elements):
    return {
        "resourceType": "ReferralRequest",
        "status": "active",
        "intent": "order",
        "subject": {"display": "x"},
    } | elements


def procedure(**elements):
    return {"resourceType": "Procedure", "status": "completed", "subject": {"display": "x"}} | elements


def read_stu3(tree, trust=TORBAY):
    return read_raw(orjson.dumps(tree, default=str), STU3, trust)


def read_raw(raw, content_type, trust=TORBAY):
    position = Position("epr.ra9.events", 0, 0)
    received = Received(
        EventId(time_ordered_id(AT, raw)),
        OdsCode("RA9"),
        position,
        {headers.CONTENT_TYPE: content_type},
        b"",
        raw,
        AT,
    )
    return read(received, Limits(), trust, BOOK)


def changes(found):
    return [(each.path, each.before, each.after, each.rule) for each in found.changes]


# --- mended first, so that the rules of STU3 → R4 see what was meant ----------------------------------------------


def test_what_was_not_done_does_not_become_done():
    """R4 has no notDone. Text that says true was passed over by the conversion, and "completed" stayed."""
    found = read_stu3(procedure(notDone="true"))

    assert found.tree["status"] == "not-done"
    assert ("Procedure.notDone", "true", True, "boolean-text") in changes(found)


def test_a_list_of_one_is_moved_to_its_place_in_r4():
    found = read_stu3(referral(context=[{"reference": "Encounter/e1"}]))

    assert found.tree["encounter"] == {"reference": "Encounter/e1"}
    assert not found.unmapped


def test_a_change_says_where_the_sender_wrote_it():
    found = read_stu3(referral(authoredOn="2026-07-01T10:00:00", supportingInfo=[]))

    assert (
        "ReferralRequest.authoredOn",
        "2026-07-01T10:00:00",
        "2026-07-01T10:00:00+01:00",
        "tz-assumed",
    ) in changes(found)
    assert ("ReferralRequest.supportingInfo", [], None, "empty-dropped") in changes(found)
    assert [(each.code, each.path) for each in found.flags] == [
        (FlagCode.TIME_ZONE_ASSUMED, "ReferralRequest.authoredOn")
    ]


@pytest.mark.parametrize(
    ("element", "said", "in_stu3", "in_r4"),
    [
        ("status", "Cancelled", "cancelled", "revoked"),
        ("status", "revoked", "cancelled", "revoked"),  # R4's word
        ("status", "WITHDRAWN", "cancelled", "revoked"),  # the trust's own, which its map says in R4's
        ("priority", "EMERGENCY", "stat", "stat"),
        ("priority", {"coding": [{"code": "urgent"}]}, "urgent", "urgent"),
    ],
)
def test_a_word_that_is_no_code_is_said_in_stu3_and_then_in_r4(element, said, in_stu3, in_r4):
    found = read_stu3(referral(**{element: said}))

    assert found.tree[element] == in_r4
    assert changes(found)[0][:3] == (f"ReferralRequest.{element}", said, in_stu3)


def test_a_class_that_stu3_can_do_without_is_assumed_in_r4_where_the_event_is_known():
    header = {"resourceType": "MessageHeader", "event": {"code": "A01"}, "source": {"endpoint": "urn:x"}}
    stay = {"resourceType": "Encounter", "status": "in-progress", "period": {"start": "2026-03-01T09:00:00"}}
    entries = [{"resource": header | {"timestamp": "2026-03-01T09:10:00Z"}}, {"resource": stay}]
    found = read_stu3({"resourceType": "Bundle", "type": "message", "entry": entries})

    assert found.tree["entry"][1]["resource"]["class"]["code"] == "IMP"
    assert [each.code for each in found.flags] == [
        FlagCode.TIME_ZONE_ASSUMED,
        FlagCode.ENCOUNTER_CLASS_ASSUMED,
    ]


# --- what is no STU3, but R4 or a vendor's ------------------------------------------------------------------------


def test_what_stu3_does_not_know_is_left_to_the_rules_of_r4():
    medicine = {
        "resourceType": "MedicationRequest",
        "intent": "order",
        "subject": {"display": "x", "type": "Patient"},
        "medicationCodeableConcept": {"text": "aspirin"},
        "doNotPerform": True,
        "wardColour": "blue",
        "status": "active",
        "note": [{"wardColour": "blue"}],
    }
    found = read_stu3(medicine)

    assert found.tree["doNotPerform"] is True  # R4 has it, and it turns the meaning round
    assert found.tree["subject"] == {"display": "x", "type": "Patient"}
    assert Counter(
        (each.path.rpartition(".")[2], each.value, each.why) for each in found.unmapped
    ) == Counter({("wardColour", "blue", "unknown-element"): 2})


def test_it_is_refused_where_the_trust_wants_to_be_told():
    strict = TORBAY.model_copy(update={"repairs_off": frozenset(["unknown-element"])})
    found = read_stu3(referral(wardColour="blue"), strict)

    assert (found.why, found.at) == (Why.STRUCTURE_INVALID, "ReferralRequest")
    assert found.detail == "ReferralRequest: 1 element that FHIR STU3 does not have here."


def test_a_message_in_r4_throughout_is_r4_whatever_is_claimed():
    request = {
        "resourceType": "ServiceRequest",
        "meta": {
            "profile": ["https://fhir.hl7.org.uk/STU3/StructureDefinition/CareConnect-ProcedureRequest-1"]
        },
        "status": "revoked",
        "intent": "order",
        "subject": {"display": "x"},
        "authoredOn": "2026-07-01T10:00:00",
    }
    condition = {
        "resourceType": "Condition",
        "subject": {"display": "x"},
        "clinicalStatus": {
            "coding": [{"system": "urn:s", "code": "active"}],
            "text": "since Easter",
        },  # a code in STU3
    }
    entries = [{"resource": request}, {"resource": condition}]
    found = read_stu3({"resourceType": "Bundle", "type": "collection", "entry": entries})

    assert isinstance(found, Read)
    assert found.tree["entry"][0]["resource"]["authoredOn"] == "2026-07-01T10:00:00+01:00"
    assert found.tree["entry"][1]["resource"] == condition
    assert [each.rule for each in found.changes] == ["tz-assumed"]


@pytest.mark.parametrize("bundled", [False, True])
def test_the_same_in_xml_where_the_version_says_what_is_a_list(bundled):
    request = {
        "resourceType": "ServiceRequest",
        "status": "revoked",
        "intent": "order",
        "subject": {"display": "x"},
        "performer": [{"display": "y"}],
    }
    tree = (
        {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": request}]}
        if bundled
        else request
    )
    found = read_raw(write_xml(tree), "application/fhir+xml; fhirVersion=3.0")

    assert isinstance(found, Read), found
    assert found.tree == tree


def test_what_is_wrong_in_stu3_is_no_r4_because_r4_does_not_know_it():
    found = read_stu3(procedure(notDone="perhaps"))

    assert (found.why, found.at) == (Why.STRUCTURE_INVALID, "Procedure.notDone")


# --- what is refused, and how it is said --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "at", "detail"),
    [
        (referral(status="no-such"), "ReferralRequest.status",
         "ReferralRequest.status: expected one of: draft, active, suspended, cancelled, completed, entered-in-error, unknown."),
        (referral(requester={"onBehalfOf": {"display": "x"}}), "ReferralRequest.requester.agent",
         "ReferralRequest.requester.agent: agent is required and missing."),
        (referral(authoredOn="in March"), "ReferralRequest.authoredOn",
         f"ReferralRequest.authoredOn: expected {_EXPECTED['dateTime']}."),
        (referral(context=[{"reference": "Encounter/1"}, {"reference": "Encounter/2"}]), "ReferralRequest.context",
         "ReferralRequest.context: expected an object, found a list."),
        ({"resourceType": "Bundle", "type": "message", "entry": [{"resource": {
            "resourceType": "MessageHeader", "event": {"code": "x"}, "source": {"endpoint": "urn:x"}}}]},
         "Bundle.entry[0].resource.timestamp", "Bundle.entry[0].resource.timestamp: timestamp is required and missing."),
    ],
)  # fmt: skip
def test_a_fault_is_told_in_the_senders_own_terms(tree, at, detail):
    found = read_stu3(tree)

    assert isinstance(found, Rejection)
    assert (found.why, found.at, found.detail) == (Why.STRUCTURE_INVALID, at, detail)
    assert found.ruling.owner is Owner.SENDING_TRUST


def test_a_resource_of_no_version_is_said_so():
    found = read_stu3({"resourceType": "Zyx"})

    assert (found.why, found.at) == (Why.RESOURCE_TYPE_UNKNOWN, "resourceType")


# --- nothing is lost ----------------------------------------------------------------------------------------------


@cache
def messages():
    worked = [each.given for profile in DIRECTORY for each in examples_of(SCHEMAS, profile.ods)]
    sent = [
        orjson.loads(path.read_bytes()) for path in worked if "stu3" in path.name and path.suffix == ".json"
    ]
    return [*sent, referral(context={"reference": "Encounter/1"}), procedure(notDone=True)]


def damaged(data):
    tree = copy.deepcopy(data.draw(st.sampled_from(messages())))
    for _ in range(data.draw(st.integers(1, 4))):
        mutate(data.draw, tree)
    return tree


@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_nothing_of_a_damaged_message_is_lost_when_it_is_mended(data):
    tree = damaged(data)
    before, lost = copy.deepcopy(tree), leaves(tree)
    done = repair_stu3(tree, book=BOOK)
    lost -= leaves(tree)
    lost -= leaves([change.before for change in done.changes])
    lost -= leaves([each.value for each in done.unmapped])

    assert not lost
    assert tree == before or done.changes or done.unmapped
    again = repair_stu3(tree, book=BOOK)
    assert (again.changes, again.unmapped, again.issues) == ((), (), done.issues)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_what_is_read_is_sound_and_whole(data):
    tree = damaged(data)
    found = read_stu3(tree)

    if isinstance(found, Read):
        assert check(found.tree) == ()
        lost = leaves(orjson.loads(orjson.dumps(tree)))
        lost -= leaves(found.tree)
        lost -= leaves([change.before for change in found.changes])
        lost -= leaves([each.value for each in found.unmapped])
        assert not lost
    elif found.why is Why.STRUCTURE_INVALID:
        assert check(tree, FhirVersion.STU3) or check(to_r4(tree).tree)
