"""STU3 and CareConnect in R4: what moves where, and that nothing is lost on the way."""

import copy
import xml.etree.ElementTree as ET
from collections import Counter
from functools import cache
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.dialects.stu3 import to_r4
from hub.dialects.stu3_rules import INNER_TYPES, RESOURCE_TYPES, ROWS
from hub.fhir.elements import FhirVersion, elements, resource_types
from hub.fhir.structure import check

CORPUS = Path(__file__).resolve().parents[3].parent / "shared" / "corpus"
CARE_CONNECT = "https://fhir.hl7.org.uk/STU3/StructureDefinition/Extension-CareConnect-"

REFERRAL = {
    "resourceType": "ReferralRequest",
    "id": "r1",
    "meta": {"profile": ["https://fhir.hl7.org.uk/STU3/StructureDefinition/CareConnect-ReferralRequest-1"]},
    "status": "cancelled",
    "intent": "order",
    "groupIdentifier": {"system": "urn:g", "value": "7"},
    "type": {"coding": [{"code": "3457005"}]},
    "serviceRequested": [{"text": "Cardiac surgery"}, {"text": "Second opinion"}],
    "subject": {"reference": "Patient/p1"},
    "context": {"reference": "Encounter/e1"},
    "requester": {"agent": {"reference": "Practitioner/d1"}, "onBehalfOf": {"display": "Northmoor"}},
    "specialty": {"coding": [{"code": "170"}]},
    "recipient": [{"reference": "Organization/o2"}],
    "description": "Stable since this morning.",
    "note": [{"text": "Family told."}],
}
ENCOUNTER = {
    "resourceType": "Encounter",
    "id": "e1",
    "status": "in-progress",
    "class": {"system": "http://hl7.org/fhir/v3/ActCode", "code": "IMP"},
    "extension": [
        {"url": f"{CARE_CONNECT}AdmissionMethod-1", "valueCodeableConcept": {"coding": [
            {"system": "https://fhir.hl7.org.uk/STU3/CodeSystem/CareConnect-AdmissionMethod-1", "code": "2B"}]}},
        {"url": "urn:else", "valueString": "kept"},
    ],
    "reason": [{"text": "Chest pain"}],
    "incomingReferral": [{"reference": "ReferralRequest/r1"}],
    "appointment": {"reference": "Appointment/a1"},
    "diagnosis": [{"condition": {"reference": "Condition/c1"}, "role": {"text": "AD"}, "rank": 1}],
}  # fmt: skip
HEADER = {
    "resourceType": "MessageHeader",
    "event": {"system": "urn:e", "code": "admit"},
    "receiver": {"reference": "Organization/o2"},
    "timestamp": "2026-03-01T09:10:00Z",
    "source": {"endpoint": "urn:nhs:addressing:asid:1"},
}
OBSERVATION = {
    "resourceType": "Observation",
    "status": "final",
    "code": {"text": "NEWS2"},
    "context": {"reference": "Encounter/e1"},
    "interpretation": {"text": "low"},
    "comment": "At rest",
    "related": [
        {"type": "has-member", "target": {"reference": "#a"}},
        {"type": "replaces", "target": {"reference": "#b"}},
    ],
    "component": [{"code": {"text": "x"}, "valueQuantity": {"value": 1.5}}],
}
CONSENT = {
    "resourceType": "Consent",
    "status": "active",
    "patient": {"reference": "Patient/p1"},
    "category": [{"text": "care"}],
    "identifier": {"value": "9"},
    "policyRule": "urn:opt-in",
    "period": {"start": "2026"},
    "actor": [{"role": {"text": "x"}, "reference": {"reference": "Organization/o2"}}],
    "except": [{"type": "deny", "action": [{"text": "copy"}]}],
}
MEDICATION = {
    "resourceType": "MedicationStatement",
    "status": "active",
    "taken": "n",
    "medicationCodeableConcept": {"text": "aspirin"},
    "subject": {"reference": "Patient/p1"},
    "dosage": [{"text": "one a day", "doseQuantity": {"value": 75, "unit": "mg"}}],
}
BUNDLE = {
    "resourceType": "Bundle",
    "type": "message",
    "entry": [
        {"fullUrl": "urn:uuid:6b5a8f2e-1111-4222-8333-444455556666", "resource": HEADER},
        {"fullUrl": "https://x.example/ReferralRequest/r1", "resource": REFERRAL},
        {"resource": ENCOUNTER},
        {"resource": OBSERVATION},
        {"resource": CONSENT},
        {"resource": MEDICATION},
        {"resource": {"resourceType": "Patient", "id": "p1", "identifier": [{
            "extension": [{"url": f"{CARE_CONNECT}NHSNumberVerificationStatus-1", "valueCodeableConcept": {"coding": [
                {"system": "https://fhir.hl7.org.uk/STU3/CareConnect-NHSNumberVerificationStatus-1", "code": "01"}]}}],
            "system": "https://fhir.nhs.uk/Id/nhs-number", "value": "9990000018"}],
            "_birthDate": {"extension": [{"url": "urn:t", "valueDateTime": "1956-02-29"}]}}},
    ],
}  # fmt: skip


def leaves(tree):
    """Every value that is no object and no list, with its type and how often it is there."""
    found, waiting = Counter(), [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
        else:
            found[type(node).__name__, repr(node)] += 1
    return found


def hold_to_the_rules(tree):
    """Nothing lost, the message itself left alone, every change by a rule of STU3, the same each time."""
    before = copy.deepcopy(tree)
    done = to_r4(tree)
    assert tree == before
    lost = leaves(tree) - leaves(done.tree)
    lost -= leaves([change.before for change in done.changes])
    lost -= leaves([each.value for each in done.unmapped])
    assert not lost
    assert all(change.rule.startswith("stu3-") for change in done.changes)
    assert to_r4(tree) == done
    return done


def stu3_of_xml(node, type_name=None):
    """A small reader of the trusted example files."""
    tag = node.tag.rpartition("}")[2]
    tree = {} if type_name else {"resourceType": tag}
    known = elements(FhirVersion.STU3, type_name or tag)
    if "url" in node.attrib:
        tree["url"] = node.get("url")
    for child in node:
        name = child.tag.rpartition("}")[2]
        element = known[name]
        if element.type == "xhtml":
            tree[name] = ET.tostring(child, encoding="unicode")
        elif element.primitive:
            value = child.get("value")
            value = (
                value == "true" if element.type == "boolean"
                else int(value) if element.type in {"integer", "positiveInt", "unsignedInt"}
                else float(value) if element.type == "decimal" else value
            )  # fmt: skip
            beside = [stu3_of_xml(each, "Extension") for each in child]
            tree[name] = [*tree.get(name, ()), value] if element.repeats else value
            if beside:
                tree[f"_{name}"] = {"extension": beside}
        else:
            value = stu3_of_xml(child[0]) if element.type == "Resource" else stu3_of_xml(child, element.type)
            tree[name] = [*tree.get(name, ()), value] if element.repeats else value
    return tree


@cache
def examples():
    """(name, tree) of every STU3 file among the public examples; none where they are not."""
    found = [
        (path.name, orjson.loads(path.read_bytes()))
        for path in sorted((CORPUS / "nhs-ers").glob("stu3*.json"))
    ]
    found += [
        (path.name, stu3_of_xml(ET.parse(path).getroot()))
        for path in sorted((CORPUS / "nems-stu3-messages").glob("*.xml"))
    ]
    return found


@pytest.fixture
def corpus():
    if not examples():
        pytest.skip("the public example messages are not on this machine")
    return examples()


def test_a_referral_is_a_service_request():
    tree = to_r4(REFERRAL).tree

    assert tree == {
        "resourceType": "ServiceRequest",
        "id": "r1",
        "status": "revoked",
        "intent": "order",
        "requisition": {"system": "urn:g", "value": "7"},
        "category": [{"coding": [{"code": "3457005"}]}],
        "code": {"text": "Cardiac surgery"},
        "subject": {"reference": "Patient/p1"},
        "encounter": {"reference": "Encounter/e1"},
        "requester": {"reference": "Practitioner/d1"},
        "performerType": {"coding": [{"code": "170"}]},
        "performer": [{"reference": "Organization/o2"}],
        "note": [{"text": "Family told."}, {"text": "Stable since this morning."}],
    }
    assert {each.path for each in to_r4(REFERRAL).unmapped} == {
        "ReferralRequest.serviceRequested[1]",
        "ReferralRequest.requester.onBehalfOf",
    }


def test_an_encounter_keeps_how_the_patient_was_admitted_where_uk_core_has_it():
    tree = to_r4(ENCOUNTER).tree

    (method,) = tree["hospitalization"]["extension"]
    assert method["url"] == "https://fhir.hl7.org.uk/StructureDefinition/Extension-UKCore-AdmissionMethod"
    assert method["valueCodeableConcept"]["coding"] == [
        {"system": "https://fhir.hl7.org.uk/CodeSystem/UKCore-AdmissionMethodEngland", "code": "2B"}
    ]
    assert tree["class"]["system"] == "http://terminology.hl7.org/CodeSystem/v3-ActCode"
    assert tree["basedOn"] == [{"reference": "ServiceRequest/r1"}]
    assert tree["diagnosis"][0]["use"] == {"text": "AD"}
    assert tree["extension"] == [{"url": "urn:else", "valueString": "kept"}]


def test_the_bundle_says_when_the_message_was_sent():
    tree = to_r4(BUNDLE).tree
    header = tree["entry"][0]["resource"]

    assert tree["timestamp"] == "2026-03-01T09:10:00Z"
    assert header["destination"][0]["receiver"] == {"reference": "Organization/o2"}
    assert header["eventCoding"] == {"system": "urn:e", "code": "admit"}
    assert tree["entry"][1]["fullUrl"] == "https://x.example/ServiceRequest/r1"


def test_our_own_message_is_sound_r4_and_whole():
    done = hold_to_the_rules(BUNDLE)

    assert check(done.tree) == ()


def test_an_episode_is_no_encounter():
    request = {**REFERRAL, "context": {"reference": "EpisodeOfCare/1"}}

    done = hold_to_the_rules(request)

    assert "encounter" not in done.tree
    assert "ReferralRequest.context" in {each.path for each in done.unmapped}


def test_nothing_of_any_example_is_lost(corpus):
    for name, tree in corpus:
        try:
            hold_to_the_rules(tree)
        except Exception as error:
            raise AssertionError(f"{name} is not converted as it should be") from error


WRONG_IN_STU3_TOO = {
    ("supportingInfo", "a list must not be empty"): 12,
    ("type", "expected a list, found an object"): 6,  # Appointment.participant.type
}
"""What stays unsound, because the sender wrote it so: where and how often. The repairs mend both."""


def test_every_example_is_as_sound_in_r4_as_it_was(corpus):
    unsound = Counter(
        (issue.path.rpartition(".")[2], issue.message)
        for _, tree in corpus
        for issue in check(to_r4(tree).tree)
    )

    assert unsound == WRONG_IN_STU3_TOO


ODD = (None, "", {}, [], [None], True, 5, 1.5, "n", "x", {"type": "has-member"}, [{"reference": 5}], {"coding": "x"},
       {"resourceType": "ReferralRequest"}, [[{}]], {"agent": None}, {"\x00": 1})  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_nothing_of_a_damaged_message_is_lost(data):
    small = [tree for _, tree in examples() if len(orjson.dumps(tree)) < 15_000]
    tree = copy.deepcopy(data.draw(st.sampled_from([BUNDLE, REFERRAL, *small])))
    for _ in range(data.draw(st.integers(1, 4))):
        places, waiting = [], [tree]
        for node in waiting:
            for key in list(node) if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                if isinstance(node[key], dict | list):
                    waiting.append(node[key])
        if not places:
            break
        node, key = places[data.draw(st.integers(0, len(places) - 1))]
        match data.draw(st.sampled_from(("drop", "odd", "wrap", "rename"))):
            case "drop":
                del node[key]
            case "wrap":
                node[key] = [node[key]]
            case "rename" if isinstance(node, dict):
                node[data.draw(st.sampled_from([*(row.element for row in ROWS), "_status", "encounter"]))] = (
                    node.pop(key)
                )
            case _:
                node[key] = copy.deepcopy(data.draw(st.sampled_from(ODD)))

    hold_to_the_rules(tree)


def test_rules_are_told_apart():
    assert max(Counter(row.rule for row in ROWS).values()) == 1


def test_every_row_starts_at_an_element_of_stu3():
    missing = [row.rule for row in ROWS if row.element not in elements(FhirVersion.STU3, row.type)]

    assert missing == []


def test_every_row_leads_to_an_element_of_r4():
    wrong = []
    for row in ROWS:
        to = getattr(row.how, "to", None)
        here = RESOURCE_TYPES.get(row.type, INNER_TYPES.get(row.type, row.type))
        for step in to.split(".") if to and elements(FhirVersion.R4, here) else ():
            element = elements(FhirVersion.R4, here).get(step.removesuffix("[]"))
            if element is None:
                wrong.append((row.rule, step))
                break
            here = element.type

    assert wrong == []


def test_every_stu3_resource_type_is_known():
    assert all(elements(FhirVersion.STU3, name) for name in resource_types(FhirVersion.STU3))


ABSENT = {
    "extension": [
        {"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason", "valueCode": "unknown"}
    ]
}
COMES_ALONG = [
    (
        {"resourceType": "Device", "version": "4.1", "model": "PX", "udi": {"deviceIdentifier": "(01)7", "name": "Pump"}},
        {"version": [{"value": "4.1"}], "modelNumber": "PX", "udiCarrier": [{"deviceIdentifier": "(01)7"}]},
    ),
    ({"resourceType": "Consent", "status": "active", "patient": {"display": "x"}, "policyRule": "urn:p"}, {"category": [ABSENT]}),
    ({"resourceType": "Goal", "status": "in-progress", "description": {"text": "walks"}}, {"subject": ABSENT}),
    ({"resourceType": "RiskAssessment", "status": "final"}, {"subject": ABSENT}),
    (
        {"resourceType": "NutritionOrder", "status": "requested", "patient": {"display": "x"}, "dateTime": "2026-03-01"},
        {"status": "active", "intent": "order"},
    ),
    (
        {"resourceType": "Media", "type": "photo", "content": {"url": "urn:c"}, "context": {"reference": "Encounter/e1"}},
        {
            "type": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/media-type", "code": "image"}]},
            "status": "unknown",
            "encounter": {"reference": "Encounter/e1"},
        },
    ),
    (
        {
            "resourceType": "ImagingStudy",
            "uid": "urn:oid:1.2.3",
            "patient": {"display": "x"},
            "series": [{
                "uid": "urn:oid:1.2.3.4",
                "modality": {"code": "CT"},
                "instance": [{"uid": "urn:oid:1.2.3.4.5", "sopClass": "urn:oid:1.2.840"}],
            }],
        },
        {
            "status": "unknown",
            "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}],
            "subject": {"display": "x"},
            "series": [{
                "uid": "1.2.3.4",
                "modality": {"code": "CT"},
                "instance": [{"uid": "1.2.3.4.5", "sopClass": {"system": "urn:ietf:rfc3986", "code": "urn:oid:1.2.840"}}],
            }],
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "expected"), COMES_ALONG, ids=[each[0]["resourceType"] for each in COMES_ALONG]
)
def test_what_comes_along_stops_no_transfer(said, expected):
    """Each is sound in STU3; R4 has it in another form, or requires what STU3 does not."""
    assert not check(said, FhirVersion.STU3)
    converted = to_r4(said)
    assert not check(converted.tree)
    assert {name: converted.tree[name] for name in expected} == expected
