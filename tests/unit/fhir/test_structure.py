"""hub.fhir.structure, by itself and against fhir.resources R4B, whose rules it is made from. STU3: test_structure_stu3.py.

The two may differ only in the ways listed in STRICTER and LAXER, each with the reason why FHIR R4 is on our side.
"""

import copy
import random
import re
from collections import Counter
from pathlib import Path

import orjson
import pytest
from fhir.resources.R4B import get_fhir_model_class
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.fhir import structure
from hub.fhir.elements import _CODES, FhirVersion, elements, resource_types
from hub.fhir.structure import StructureIssue, check

CORPUS = Path(__file__).resolve().parents[3].parent / "shared" / "corpus"
R4_FOLDERS = ("hl7-r4-spec", "bars-api", "nhs-pds", "nhs-ers")
MUTATED_FILE_BYTES_MAX = 30_000
MUTATIONS_PER_FILE = 30
MUTATIONS_PER_MESSAGE = 400

NHS_NUMBER = "9990000018"  # 999…: never issued
MARKER = "Zzyzx"  # stands for whatever must not be repeated


# --- messages nobody sent ------------------------------------------------------------------------------------------


def patient():
    return {
        "resourceType": "Patient",
        "id": "patient-1",
        "meta": {"lastUpdated": "2026-03-01T09:10:00.000Z", "profile": ["https://fhir.hl7.org.uk/StructureDefinition/UKCore-Patient"]},
        "identifier": [{"system": "https://fhir.nhs.uk/Id/nhs-number", "value": NHS_NUMBER}],
        "active": True,
        "name": [{"use": "official", "family": "Okafor", "given": ["Ada", None], "_given": [None, {"id": "g2", "extension": [
            {"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason", "valueCode": "masked"}]}]}],
        "gender": "female",
        "birthDate": "1956-02-29",
        "deceasedBoolean": False,
        "address": [{"line": ["1 Mill Lane"], "postalCode": "ZZ99 3WZ"}],
        "extension": [{"url": "https://fhir.hl7.org.uk/StructureDefinition/x", "extension": [
            {"url": "status", "valueCodeableConcept": {"coding": [{"system": "http://snomed.info/sct", "code": "1"}]}},
            {"url": "since", "valuePeriod": {"start": "2020-01"}}]}],
    }  # fmt: skip


def encounter():
    return {
        "resourceType": "Encounter",
        "id": "encounter-1",
        "status": "in-progress",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"},
        "subject": {"reference": "urn:uuid:6b5a8f2e-1111-4222-8333-444455556666"},
        "period": {"start": "2026-03-01T08:00:00+00:00"},
        "length": {"value": 2.5, "unit": "d", "system": "http://unitsofmeasure.org", "code": "d"},
        "location": [{"location": {"display": "Ward 7"}, "status": "active"}],
    }


def service_request():
    return {
        "resourceType": "ServiceRequest",
        "id": "request-1",
        "status": "active",
        "intent": "order",
        "priority": "urgent",
        "subject": {"reference": "urn:uuid:6b5a8f2e-1111-4222-8333-444455556666"},
        "occurrenceDateTime": "2026-03-02",
        "authoredOn": "2026-03-01T09:10:00Z",
        "note": [{"text": "two nurses", "authorString": "ward"}],
        "contained": [{"resourceType": "Practitioner", "id": "p1", "name": [{"family": "Reed"}]}],
    }


def organization():
    return {
        "resourceType": "Organization",
        "identifier": [{"system": "https://fhir.nhs.uk/Id/ods-organization-code", "value": "ZZ1"}],
        "name": "Northmoor",
        "telecom": [{"system": "phone", "value": "0", "rank": 1}],
    }


def task():
    return {
        "resourceType": "Task",
        "status": "ready",
        "intent": "order",
        "lastModified": "2026-03-01T09:10:00Z",
        "input": [{"type": {"text": "bed"}, "valueInteger": 7}],
        "restriction": {"repetitions": 1, "period": {"end": "2026-03-03"}},
    }


def message():
    entries = [
        {
            "resourceType": "MessageHeader",
            "id": "header-1",
            "eventCoding": {
                "system": "https://fhir.nhs.uk/CodeSystem/message-events-bars",
                "code": "servicerequest-request",
            },
            "source": {"name": "EPR", "endpoint": "https://epr.example/ZZ1"},
            "focus": [{"reference": "ServiceRequest/request-1"}],
        },
        service_request(),
        patient(),
        encounter(),
        organization(),
        task(),
    ]
    return {
        "resourceType": "Bundle",
        "id": "message-1",
        "type": "message",
        "timestamp": "2026-03-01T09:10:00Z",
        "entry": [
            {"fullUrl": f"urn:uuid:6b5a8f2e-1111-4222-8333-44445555{n:04d}", "resource": resource}
            for n, resource in enumerate(entries)
        ],
    }


MESSAGES = (message, patient, encounter, service_request, organization, task)


def said(resource):
    return [(issue.path, issue.code) for issue in check(resource)]


def changed(resource, **elements):
    return {k: v for k, v in (resource | elements).items() if v is not ...}


# --- what it says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MESSAGES)
def test_a_sound_message_has_no_issues(make):
    assert check(make()) == ()


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        # a required primitive: itself or an extension that says why not
        (changed(encounter(), status=...), [("Encounter.status", "required")]),
        (changed(encounter(), status=..., _status={"extension": [{"url": "u", "valueCode": "unknown"}]}), []),
        (changed(encounter(), status=..., _status={"id": "a"}), [("Encounter.status", "required")]),
        (changed(encounter(), **{"class": ...}), [("Encounter.class", "required")]),
        # required codes: from the models, and from R4 where the models' list is cut short
        (changed(encounter(), status="entered-in-error"), []),
        (changed(encounter(), status="unknown"), []),
        (changed(encounter(), status="+"), [("Encounter.status", "value")]),
        (changed(encounter(), status="completed"), [("Encounter.status", "value")]),  # R5's word
        (changed(task(), status="entered-in-error"), []),
        (changed(task(), status="+"), [("Task.status", "value")]),
        (changed(patient(), gender="Female"), [("Patient.gender", "value")]),
        (changed(encounter(), length={"value": 1, "comparator": "~"}), [("Encounter.length.comparator", "value")]),
        # nothing is empty or null
        (changed(patient(), name=[{}]), [("Patient.name[0]", "structure")]),
        (changed(patient(), name=[]), [("Patient.name", "structure")]),
        (changed(patient(), gender=None), [("Patient.gender", "value")]),
        (changed(patient(), name=None), [("Patient.name", "structure")]),
        (changed(patient(), name=[None]), [("Patient.name[0]", "structure")]),
        (changed(patient(), name=[{"family": ""}]), [("Patient.name[0].family", "value")]),
        (changed(patient(), text={}), [("Patient.text", "structure"), ("Patient.text.div", "required"),
                                       ("Patient.text.status", "required")]),
        (changed(patient(), _birthDate={}), [("Patient._birthDate", "structure")]),
        # null in a list of primitives only where the sibling list has something
        (changed(patient(), name=[{"given": ["Ada", None]}]), [("Patient.name[0].given[1]", "structure")]),
        (changed(patient(), name=[{"given": [None], "_given": [None]}]), [("Patient.name[0]", "structure")]),
        (changed(patient(), name=[{"given": [None], "_given": [{"id": "x"}]}]), []),
        (changed(patient(), name=[{"given": ["Ada", None], "_given": [{"id": "x"}]}]), [("Patient.name[0]", "structure")]),
        (changed(patient(), name=[{"_given": [{"id": "x"}, {}]}]), [("Patient.name[0]._given[1]", "structure")]),
        # shapes
        (changed(patient(), name={"family": "x"}), [("Patient.name", "structure")]),
        (changed(patient(), active="true"), [("Patient.active", "structure")]),
        (changed(patient(), shoeSize=7), [("Patient", "structure")]),
        (changed(patient(), id="a" * 64), []),
        (changed(patient(), id="a" * 65), [("Patient.id", "value")]),
        (changed(patient(), id="a_b"), [("Patient.id", "value")]),
        (changed(patient(), id="a\n"), [("Patient.id", "value")]),
        (changed(patient(), implicitRules="two words"), [("Patient.implicitRules", "value")]),
        (changed(encounter(), length={"value": 3}), []),
        (changed(encounter(), length={"value": 3.25}), []),
        (changed(encounter(), length={"value": "3"}), [("Encounter.length.value", "structure")]),
        (changed(organization(), telecom=[{"rank": 0}]), [("Organization.telecom[0].rank", "value")]),
        # value[x]
        (changed(patient(), deceasedDateTime="2026"), [("Patient", "structure")]),
        (changed(patient(), deceasedBoolean=..., _deceasedBoolean={"id": "x"}, deceasedDateTime="2026"), [("Patient", "structure")]),
        (changed(patient(), extension=[{"url": "u", "valueCode": "a", "valueId": "b"}]), [("Patient.extension[0]", "structure")]),
        (changed(patient(), extension=[{"url": "u", "id": "a", "_valueCode": {"id": "b"}}]), []),
        (changed(patient(), extension=[{"url": "u", "valueMeta": {"versionId": "1"}}]), []),
        (changed(patient(), extension=[{"url": "u", "valueRatioRange": {"denominator": {"value": 1}}}]), [("Patient.extension[0]", "structure")]),
        (changed(patient(), extension=[{"valueCode": "a"}]), [("Patient.extension[0].url", "required")]),
        (changed(patient(), extension=[{"url": "u", "_url": {"id": "b"}}]), [("Patient.extension[0]", "structure")]),
        (changed(task(), input=[{"type": {"text": "x"}}]), [("Task.input[0].value[x]", "required")]),
        (changed(task(), input=[{"type": {"text": "x"}, "valueCode": "a", "valueId": "a"}]), [("Task.input[0]", "structure")]),
        # resources
        ({}, [("Resource.resourceType", "required")]),
        ({"resourceType": 7}, [("Resource.resourceType", "structure")]),
        ({"resourceType": []}, [("Resource.resourceType", "structure")]),
        ({"resourceType": None}, [("Resource.resourceType", "structure")]),
        ({"resourceType": "NutritionIntake"}, [("Resource.resourceType", "not-supported")]),  # R5
        ({"resourceType": "SubscriptionStatus"}, [("Resource.resourceType", "not-supported")]),  # R4B
        ({"resourceType": "DomainResource"}, [("Resource.resourceType", "not-supported")]),  # abstract
        ({"resourceType": "HumanName", "family": "x"}, [("Resource.resourceType", "not-supported")]),
        ({"resourceType": "EvidenceVariable"}, [("Resource.resourceType", "not-supported")]),
        ([], [("Resource", "structure")]),
        ({"resourceType": "Parameters"}, []),  # ele-1 of R4: the one resource that may be empty
        ({"resourceType": "Parameters", "parameter": [{"name": "a", "part": [{"name": "b", "resource": changed(patient(), gender="x")}]}]},
         [("Parameters.parameter[0].part[0].resource.gender", "value")]),
        ({"resourceType": "Bundle", "type": "message", "entry": [{"resource": 7}]}, [("Bundle.entry[0].resource", "structure")]),
        ({"resourceType": "Bundle", "type": "message", "entry": [{"resource": {"id": "x"}}]},
         [("Bundle.entry[0].resource.resourceType", "required")]),
        ({"resourceType": "Bundle", "type": "message", "entry": [{"resource": {}}]},
         [("Bundle.entry[0].resource.resourceType", "required")]),
        ({"resourceType": "Bundle", "type": "message", "entry": {"resource": {}}}, [("Bundle.entry", "structure")]),
        ({"resourceType": "Bundle", "type": "message", "entry": [7, {"resource": changed(encounter(), status="x")}]},
         [("Bundle.entry[0]", "structure"), ("Bundle.entry[1].resource.status", "value")]),
        ({"resourceType": "Bundle", "type": "batch-response", "entry": [{"response": {"status": "400", "outcome": {
            "resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "nonsense"}]}}}]},
         [("Bundle.entry[0].response.outcome.issue[0].code", "value")]),
        (changed(patient(), contained=[{"resourceType": "Practitioner", "gender": "x"}]), [("Patient.contained[0].gender", "value")]),
        (changed(patient(), contained=["x"]), [("Patient.contained[0]", "structure")]),
        (changed(patient(), contained=[{"resourceType": "Location", "contained": [{"resourceType": "Location", "id": "x"}]}]),
         [("Patient.contained[0].contained", "invariant")]),
    ],
)  # fmt: skip
def test_each_rule_is_said_where_it_is_broken(resource, expected):
    assert sorted(expected) == sorted(said(resource))


DATES = {
    # (date, dateTime, instant): which of them may be written so. https://hl7.org/fhir/R4/datatypes.html
    "2024": (True, True, False),
    "2024-02": (True, True, False),
    "2024-02-29": (True, True, False),
    "2000-02-29": (True, True, False),
    "2023-02-29": (False, False, False),
    "1900-02-29": (False, False, False),
    "2024-02-30": (False, False, False),
    "2024-04-31": (False, False, False),
    "2024-12-31": (True, True, False),
    "2024-13": (False, False, False),
    "2024-00": (False, False, False),
    "0000": (False, False, False),
    "24": (False, False, False),
    "2024-2-1": (False, False, False),
    "20240201": (False, False, False),
    "2024-02-01\n": (False, False, False),
    "2024-02-01Z": (False, False, False),
    "2024-02-01T10:00:00Z": (False, True, True),
    "2024-02-01T10:00:00.123456789Z": (False, True, True),
    "2024-02-29T23:59:60+14:00": (False, True, True),
    "2024-02-01T10:00:00-13:59": (False, True, True),
    "2024-02-01T10:00:00+14:01": (False, False, False),
    "2024-02-01T10:00:00": (False, False, False),
    "2024-02-01T10:00Z": (False, False, False),
    "2024-02-01T24:00:00Z": (False, False, False),
    "2024-02-01T10:60:00Z": (False, False, False),
    "2024-02-01t10:00:00z": (False, False, False),
    "2024-02-01 10:00:00Z": (False, False, False),
    "2024-02T10:00:00Z": (False, False, False),
    "2024-02-30T10:00:00Z": (False, False, False),
    "٢٠٢٤": (False, False, False),
}


@pytest.mark.parametrize("written", DATES)
def test_dates_are_written_as_r4_writes_them(written):
    found = (
        not check(changed(patient(), birthDate=written)),
        not check(changed(service_request(), authoredOn=written)),
        not check(changed(message(), timestamp=written)),
    )

    assert found == DATES[written]


@pytest.mark.parametrize(
    ("data", "sound"),
    [("QQ==", True), ("QUI=", True), ("QUJD", True), ("QUJD\r\nQUJD", True), ("+/+/", True), ("", False), ("Q", False),
     ("QQ=", False), ("QQ==QQ==", False), ("Q*JD", False)],
)  # fmt: skip
def test_base64_is_base64(data, sound):
    assert sound == (not check({"resourceType": "Binary", "contentType": "text/plain", "data": data}))


def test_it_says_no_more_than_it_is_asked_for_and_never_nothing():
    wrong = changed(
        message(), entry=[{"resource": changed(patient(), gender="x", active=1)} for _ in range(50)]
    )

    assert len(check(wrong)) == 20
    assert len(check(wrong, limit=3)) == 3
    assert len(check(wrong, limit=0)) == 1


def test_messages_as_deep_as_orjson_reads_them_are_checked_and_not_a_crash():
    """Callers stop at 64; orjson stops at 1024 by itself."""
    levels = 505
    raw = b'{"resourceType":"Patient","extension":[' + b'{"url":"a","extension":[' * levels
    raw += b'{"url":"b","valueString":""}' + b"]}" * levels + b"]}"

    assert [issue.code for issue in check(orjson.loads(raw))] == ["value"]


def test_bundles_in_bundles_are_walked_not_recursed_into():
    inner = changed(patient(), gender="x")
    for _ in range(5_000):
        inner = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": inner}]}

    (issue,) = check(inner)

    assert issue.path.endswith(".resource.gender")


def test_issues_never_repeat_the_message():
    def poisoned(value):
        return {"resourceType": MARKER, MARKER: value}

    wrong = changed(
        message(),
        id=MARKER + "_",
        entry=[
            {"resource": poisoned(1), MARKER: MARKER},
            {"resource": changed(patient(), gender=MARKER, birthDate=MARKER, active=MARKER, name=MARKER, status=MARKER)},
            {"resource": changed(patient(), extension=[{"url": MARKER + " ", "valueCode": MARKER + " ", MARKER: {}}])},
            {"resource": changed(patient(), contained=[poisoned(MARKER), MARKER], multipleBirthInteger=99900000180)},
            {"resource": {"resourceType": {MARKER: MARKER}}},
            {"resource": changed(patient(), name=[{MARKER: MARKER, "given": [None, MARKER]}], deceasedDateTime=MARKER)},
        ],
    )  # fmt: skip

    issues = check(wrong, limit=100)

    assert len(issues) > 15
    assert MARKER not in repr(issues)
    assert "99900000180" not in repr(issues)
    assert any("status" in issue.message for issue in issues)  # FHIR's own word, in the wrong place


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.just(MARKER)
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "url", "extension", "resourceType", "value", MARKER]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(junk=JSON, where=st.integers(min_value=0))
def test_junk_anywhere_is_an_answer_and_not_an_exception(junk, where):
    tree = message()
    slots = list(places(tree))
    parent, key = slots[where % len(slots)]
    parent[key] = junk

    for issue in check(tree):
        assert issue.code in {"structure", "required", "value", "invariant", "not-supported"}
        assert re.fullmatch(r"(Resource|[A-Z][A-Za-z]+)((\.[A-Za-z0-9_]+(\[x\])?)|\[\d+\])*", issue.path)
        assert MARKER not in repr(issue)


# --- held to the models ------------------------------------------------------------------------------------------


def elements_of(version):
    """(type name, element) of everything within reach of a resource type."""
    seen, found = set(), []
    waiting = sorted(resource_types(version))
    while waiting:
        type_name = waiting.pop()
        if type_name in seen:
            continue
        seen.add(type_name)
        for element in elements(version, type_name).values():
            found.append((type_name, element))
            if not element.primitive and element.type != "Resource":
                waiting.append(element.type)
    return found


@pytest.fixture(scope="module")
def all_elements():
    return elements_of(FhirVersion.R4)


def test_time_properties_are_those_of_the_models(all_elements):
    of_models = {element.name for _, element in all_elements if element.type in {"dateTime", "instant"}}

    assert of_models == structure.TIME_PROPERTIES
    assert {"authoredOn", "start", "lastUpdated", "occurrenceDateTime"} <= of_models
    assert "birthDate" not in of_models


def test_resources_are_looked_for_wherever_r4_may_have_one(all_elements):
    hold_to_the_places_of_resources(all_elements)


def hold_to_the_places_of_resources(every_element):
    found = {
        f"{type_name}.{element.name}" for type_name, element in every_element if element.type == "Resource"
    }
    not_contained = {place for place in found if not place.endswith(".contained")}

    assert not_contained == {
        "BundleEntry.resource",
        "BundleEntryResponse.outcome",
        "ParametersParameter.resource",
    }
    for name in ("Bundle", "Parameters"):  # their branch does not look for contained
        assert f"{name}.contained" not in found


def test_only_codes_are_closed_lists_and_every_list_by_hand_is_of_an_element_there_is(all_elements):
    with_codes = {(type_name, element.name): element for type_name, element in all_elements}

    assert {element.type for element in with_codes.values() if element.codes} == {"code"}
    assert set(_CODES) <= set(with_codes)
    assert not [key for key, element in with_codes.items() if set(element.codes or ()) & {"+", "etc.", "..."}]


def test_every_resource_type_compiles_and_every_model_is_r4b(all_elements):
    assert all(
        get_fhir_model_class(e.type).__module__.startswith("fhir.resources.R4B.")
        for _, e in all_elements
        if not e.primitive
    )
    for name in resource_types():
        assert get_fhir_model_class(name).has_resource_base()
        assert structure._validator(FhirVersion.R4, name).is_valid({"resourceType": name, MARKER: 1}) is False
    assert len(resource_types()) == 126


def test_the_primitives_have_words():
    assert set(structure._PRIMITIVES) == set(structure._EXPECTED)


# --- compared with the models -----------------------------------------------------------------------------------

STRICTER = {
    # what we refuse and the models take: the issue's message says which kind it is
    r"expected one of: ": "required codes: the models only carry the lists, they do not enforce them",
    r"found null$": "R4 JSON has no null but in lists of primitives; the models read it as absent",
    r"^null is allowed here only|^at no position may": "R4 JSON: null stands only for a position its sibling fills",
    r"^a list must not be empty$|^an object must not be empty$": "R4 JSON: nothing is empty",
    r"^expected (text that is not empty|a URI|a URL|a canonical|base64)": "R4: no empty text, no white space in a URI, RFC 4648; "
    "the models' patterns are not anchored and base64 is decoded leniently",
    r"^expected .*, found (text|a number|true or false)$": "R4 JSON: numbers, booleans and text are different things; "
    "pydantic turns one into the other",
    r"^expected an id": "R4: 64 characters; fhir_core allows 255",
    r"^resourceType is required": "R4 JSON: every resource names its type; inside another the models take it for a bare Resource",
    r"dom-2": "R4: no resources inside contained ones; the models do not look",
}  # fmt: skip

LAXER = {
    # what we take and the models refuse: what the model says about it
    r"_value\w+\n  Extra inputs": "R4: value[x] of an extension may have a sibling; the models of Extension forgot it",
    r"valueMeta\n  Extra inputs": "R4 datatypes.html#open has Meta; the models forgot it",
    r"valid UUID|UUID version": "R4: any UUID; the models want version 4",
}


EXAMPLES = [
    (changed(patient(), gender="x"), r"expected one of: "),
    (changed(patient(), active=None), r"found null$"),
    (changed(patient(), name=[{"given": ["Ada", None]}]), r"^null is allowed here only|^at no position may"),
    (changed(patient(), name=[]), r"^a list must not be empty$|^an object must not be empty$"),
    (changed(patient(), meta={}), r"^a list must not be empty$|^an object must not be empty$"),
    (changed(patient(), implicitRules="two words"), r"^expected (text that is not empty|a URI|a URL|a canonical|base64)"),
    (changed(service_request(), note=[{"text": ""}]), r"^expected (text that is not empty|a URI|a URL|a canonical|base64)"),
    (changed(patient(), active="true"), r"^expected .*, found (text|a number|true or false)$"),
    (changed(patient(), birthDate=0), r"^expected .*, found (text|a number|true or false)$"),
    (changed(patient(), id="a" * 65), r"^expected an id"),
    (changed(message(), entry=[{"resource": {"id": "x"}}]), r"^resourceType is required"),
    (changed(patient(), contained=[{"resourceType": "Location", "contained": [{"resourceType": "Location"}]}]), r"dom-2"),
    (changed(patient(), extension=[{"url": "u", "_valueCode": {"id": "x"}}]), r"_value\w+\n  Extra inputs"),
    (changed(patient(), extension=[{"url": "u", "valueMeta": {"versionId": "1"}}]), r"valueMeta\n  Extra inputs"),
    (changed(patient(), extension=[{"url": "u", "valueUuid": "urn:uuid:c757873d-ec9a-1326-a141-556f43239520"}]),
     r"valid UUID|UUID version"),
]  # fmt: skip


@pytest.mark.parametrize(("tree", "kind"), EXAMPLES)
def test_each_allowed_disagreement_is_still_there(tree, kind):
    """When fhir.resources has caught up, this fails, and the exemption goes."""
    assert disagreement(tree) == (kind, None)


def test_each_allowed_disagreement_has_an_example():
    assert {kind for _, kind in EXAMPLES} == STRICTER.keys() | LAXER.keys()


def model_refuses(tree, models=get_fhir_model_class):
    """What fhir.resources says about a tree, or None when it takes it."""
    try:
        models(tree["resourceType"]).model_validate(tree)
    except Exception as refusal:  # it lets KeyError, AttributeError and TypeError out as well
        return f"{type(refusal).__name__}: {refusal}"
    return None


def disagreement(tree, checker=check, models=get_fhir_model_class, laxer=LAXER):
    """(what kind of allowed disagreement, None) or (None, what is not allowed) or None when both agree."""
    issues, refusal = checker(tree), model_refuses(tree, models)
    if bool(issues) == bool(refusal):
        return None
    if issues:
        for issue in issues:
            kind = next((kind for kind in STRICTER if re.search(kind, issue.message)), None)
            if kind is None:
                return None, f"refused, but the models take it: {issue}"
        return kind, None
    kind = next((kind for kind in laxer if re.search(kind, refusal)), None)
    return (kind, None) if kind else (None, f"taken, but the models refuse it: {refusal[:300]}")


def places(tree):
    """Every (container, key) of a tree, parents first."""
    waiting = [tree]
    for one in waiting:
        for key in one if isinstance(one, dict) else range(len(one)):
            yield one, key
            if isinstance(one[key], (dict, list)):
                waiting.append(one[key])


BAD_DATES = (
    "2024-02-30",
    "2024-13-01",
    "2024-02-01T10:00:00",
    "2024-02-01T10:00Z",
    "2024-02-01T24:00:00Z",
    "yesterday",
)
OTHER_TYPES = ("text", 7, True, 1.5, ["text"], {"id": "x"}, [{"id": "x"}])


def drop(rng, parent, key):
    del parent[key]


def wrong_type(rng, parent, key):
    others = [other for other in OTHER_TYPES if type(other) is not type(parent[key])]
    parent[key] = copy.deepcopy(rng.choice(others))


def null(rng, parent, key):
    parent[key] = None


def empty(rng, parent, key):
    parent[key] = {dict: {}, list: []}.get(type(parent[key]), "")


def unknown_element(rng, parent, key):
    one = parent[key] if isinstance(parent[key], dict) else parent
    if isinstance(one, dict):
        one[rng.choice(["unknownThing", "_unknown", "class_fhir_", "Id"])] = "x"
    else:
        one.append({"unknownThing": "x"})


def bad_code(rng, parent, key):
    parent[key] = (
        rng.choice(["no-such-code", "two  spaces", " x", "+"])
        if isinstance(parent[key], str)
        else {"code": " "}
    )


def bad_date(rng, parent, key):
    parent[key] = rng.choice(BAD_DATES)


MUTATIONS = (drop, wrong_type, null, empty, unknown_element, bad_code, bad_date)
ALWAYS_WRONG = (null, empty, unknown_element)


CODED = frozenset(
    ("status", "intent", "gender", "use", "type", "priority", "mode", "severity", "code", "comparator")
)


def aimed(mutation, slots):
    """The places where a mutation is worth most: dates for bad dates, codes for bad codes. All when there are none."""
    names = {bad_date: structure.TIME_PROPERTIES - {"value"} | {"birthDate"}, bad_code: CODED}.get(mutation)
    if names is None:
        return slots
    return [(parent, key) for parent, key in slots if key in names and isinstance(parent[key], str)] or slots


def mutants(tree, seed, count):
    """(mutation, changed copy), the same ones for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        mutant = copy.deepcopy(tree)
        mutation = rng.choice(MUTATIONS)
        parent, key = rng.choice(aimed(mutation, list(places(mutant))))
        if key == "resourceType" and parent is mutant:
            continue  # the model is chosen by it
        mutation(rng, parent, key)
        yield mutation, mutant


def compared(trees, checker=check, **others):
    """How often which kind of disagreement was found, and what was found that is not allowed."""
    kinds, not_allowed = Counter(), []
    for name, tree in trees:
        found = disagreement(tree, checker, **others)
        kinds[found[0] if found else "agree"] += 1
        if found and found[1]:
            not_allowed.append((name, found[1]))
    return kinds, not_allowed


def corpus_files():
    """(name, tree) of every R4 resource among the examples; skips when they are not there."""
    if not CORPUS.is_dir():
        pytest.skip(
            f"the public examples are not there: no folder {CORPUS.parent.name}/{CORPUS.name} beside the repository"
        )
    for path in sorted(path for folder in R4_FOLDERS for path in (CORPUS / folder).rglob("*.json")):
        try:
            tree = orjson.loads(path.read_bytes())
        except orjson.JSONDecodeError:
            continue  # one of bars-api's is not JSON
        if isinstance(tree, dict) and tree.get("resourceType") in resource_types():
            yield str(path.relative_to(CORPUS)), tree


def all_mutants():
    for make in MESSAGES:
        for mutation, mutant in mutants(make(), make.__name__, MUTATIONS_PER_MESSAGE):
            yield f"{make.__name__}, {mutation.__name__}", mutant


def test_every_example_of_the_corpus_is_judged_as_the_models_judge_it():
    kinds, not_allowed = compared(corpus_files())

    assert not_allowed == []
    assert kinds["agree"] > 380  # it did look
    # Three OperationOutcomes of BaRS 1.4.0 with issue codes that R4 does not have.
    assert {kind: n for kind, n in kinds.items() if kind != "agree"} == {"expected one of: ": 3}


def test_mutated_messages_are_judged_as_the_models_judge_them():
    kinds, not_allowed = compared(all_mutants())

    assert not_allowed == []
    assert kinds["agree"] > kinds.total() / 2


def test_mutated_corpus_files_are_judged_as_the_models_judge_them():
    files = [
        (name, tree) for name, tree in corpus_files() if len(orjson.dumps(tree)) <= MUTATED_FILE_BYTES_MAX
    ]
    kinds, not_allowed = compared(
        (f"{name}, {mutation.__name__}", mutant)
        for name, tree in files
        for mutation, mutant in mutants(tree, name, MUTATIONS_PER_FILE)
    )

    assert not_allowed == []
    assert kinds["agree"] > kinds.total() / 2


@pytest.mark.parametrize("make", MESSAGES)
def test_what_is_always_wrong_is_always_refused_whatever_the_models_say(make):
    """null, empty and unknown, put at every place there is. No model decides here."""
    tree = make()
    for position, _ in enumerate(places(tree)):
        for mutation in ALWAYS_WRONG:
            mutant = copy.deepcopy(tree)
            parent, key = list(places(mutant))[position]
            if isinstance(parent, list) and mutation is null and parent == [None, *parent[1:]]:
                continue  # it was null before, and may be
            if mutation is null and parent[key] is None:
                continue
            mutation(random.Random(position), parent, key)
            assert check(mutant), (mutation.__name__, position, key)


def blind(_tree):
    return ()


def only_top_level(tree):
    return tuple(issue for issue in check(tree) if issue.path.count(".") <= 1)


def refuses_everything(_tree):
    return (StructureIssue("Resource", "structure", "no"),)


def without_required(tree):
    return tuple(issue for issue in check(tree, limit=1000) if issue.code != "required")


def without_patterns(tree):
    return tuple(issue for issue in check(tree, limit=1000) if "a date" not in issue.message)


@pytest.mark.parametrize(
    "checker", [blind, only_top_level, refuses_everything, without_required, without_patterns]
)
def test_the_comparison_notices_a_checker_that_is_wrong(checker):
    _, not_allowed = compared(all_mutants(), checker)

    assert not_allowed


# --- what is asked only where it can matter --------------------------------------------------------------------------


def test_two_of_a_choice_are_refused_whichever_they_are():
    """Python's keyword is asked behind a condition, so every pair of properties has to get past it."""
    event = {"eventCoding": {"code": "a"}, "eventUri": "urn:a", "_eventUri": {"id": "a"}}
    head = {"resourceType": "MessageHeader", "source": {"endpoint": "urn:x"}}
    dead = {
        "deceasedBoolean": True,
        "_deceasedBoolean": {"id": "a"},
        "deceasedDateTime": "2026",
        "_deceasedDateTime": {"id": "a"},
    }
    for base, choice in ((head, event), ({"resourceType": "Patient"}, dead)):
        for one in choice:
            for other in choice:
                of_one_element = one.strip("_") == other.strip("_")
                issues = check({**base, one: choice[one], other: choice[other]})
                refused = [each for each in issues if "may be given once, as one type only" in each.message]
                assert len(refused) == (not of_one_element), (one, other, issues)


def test_a_uri_has_no_blank_of_any_kind():
    """The validator knows the pattern `^\\S*$` by heart; it must mean by it what the regular expression means."""
    by_expression = structure.jsonschema_rs.Draft202012Validator(
        {"type": "string", "pattern": r"^\S+$"}, pattern_options=structure.jsonschema_rs.RegexOptions()
    )
    by_heart = structure.jsonschema_rs.Draft202012Validator(
        structure._PRIMITIVES["uri"], pattern_options=structure.jsonschema_rs.RegexOptions()
    )
    surrogates = range(0xD800, 0xE000)
    texts = [f"urn:{chr(code)}x" for code in range(0x1_1000) if code not in surrogates]
    texts += ["", " ", "a ", "\na", "a\n", "a b", "a"]

    assert [each for each in texts if by_expression.is_valid(each) != by_heart.is_valid(each)] == []
    assert not any(map(by_heart.is_valid, ("", "a\u2003b")))
