"""hub.fhir.structure on STU3, by itself and against fhir.resources STU3, whose rules it is made from.

The comparison is that of test_structure.py. Where the check is stricter than the models, it is so in the same ways and for
the same reasons; where it is laxer is listed here.
"""

import random
from functools import cache, partial
from pathlib import Path

import pytest
from fhir.resources.STU3 import get_fhir_model_class

from hub.dialects import STU3, detect
from hub.fhir import structure
from hub.fhir.elements import _CODES_OF, FhirVersion, elements, resource_types
from hub.fhir.structure import check
from hub.journey.read import Limits, _tree
from hub.onboarding.examples import examples_of
from hub.trusts import load_directory
from tests.unit.fhir.test_structure import (
    ALWAYS_WRONG,
    CORPUS,
    LAXER,
    MARKER,
    MUTATED_FILE_BYTES_MAX,
    MUTATIONS_PER_FILE,
    MUTATIONS_PER_MESSAGE,
    NHS_NUMBER,
    STRICTER,
    blind,
    changed,
    compared,
    disagreement,
    elements_of,
    hold_to_the_places_of_resources,
    mutants,
    null,
    places,
    refuses_everything,
)

SCHEMAS = Path(__file__).resolve().parents[3] / "schemas"

check_stu3 = partial(check, version=FhirVersion.STU3)

LAXER_STU3 = {kind: why for kind, why in LAXER.items() if kind.startswith("_value")}
"""The models of STU3 have Meta, and its extensions no UUIDs: only what they forgot of R4's and STU3's extensions alike is left."""

against_the_models = partial(compared, checker=check_stu3, models=get_fhir_model_class, laxer=LAXER_STU3)


# --- messages nobody sent ------------------------------------------------------------------------------------------


def header():
    return {
        "resourceType": "MessageHeader",
        "id": "header-1",
        "event": {"system": "https://fhir.nhs.uk/STU3/CodeSystem/ITK-MessageEvent-2", "code": "ITK007C"},
        "timestamp": "2026-03-01T09:10:00+00:00",
        "source": {"name": "EPR", "endpoint": "urn:nhs-uk:addressing:ods:RA9"},
        "receiver": {"reference": "urn:uuid:6b5a8f2e-1111-4222-8333-444455550004"},
        "focus": [{"reference": "urn:uuid:6b5a8f2e-1111-4222-8333-444455550001"}],
    }


def referral():
    return {
        "resourceType": "ReferralRequest",
        "id": "request-1",
        "meta": {
            "profile": ["https://fhir.hl7.org.uk/STU3/StructureDefinition/CareConnect-ReferralRequest-1"]
        },
        "status": "active",
        "intent": "order",
        "priority": "urgent",
        "serviceRequested": [{"coding": [{"system": "http://snomed.info/sct", "code": "19712007"}]}],
        "subject": {"reference": "urn:uuid:6b5a8f2e-1111-4222-8333-444455556666"},
        "context": {"reference": "urn:uuid:6b5a8f2e-1111-4222-8333-444455550003"},
        "occurrencePeriod": {"start": "2026-03-02"},
        "authoredOn": "2026-03-01T09:10:00Z",
        "requester": {"agent": {"reference": "#d1"}, "onBehalfOf": {"display": "Northmoor"}},
        "recipient": [
            {"identifier": {"system": "https://fhir.nhs.uk/Id/ods-organization-code", "value": "RH8"}}
        ],
        "note": [{"text": "two nurses", "authorString": "ward"}],
        "contained": [{"resourceType": "Practitioner", "id": "d1", "name": [{"family": "Reed"}]}],
    }


def patient():
    return {
        "resourceType": "Patient",
        "id": "patient-1",
        "identifier": [{"system": "https://fhir.nhs.uk/Id/nhs-number", "value": NHS_NUMBER, "extension": [
            {"url": "https://fhir.hl7.org.uk/STU3/StructureDefinition/Extension-CareConnect-NHSNumberVerificationStatus-1",
             "valueCodeableConcept": {"coding": [{"code": "01"}]}}]}],
        "name": [{"use": "official", "family": "Okafor", "given": ["Ada", None], "_given": [None, {"id": "g2"}]}],
        "gender": "female",
        "birthDate": "1956-02-29",
        "animal": {"species": {"text": "none"}},
    }  # fmt: skip


def encounter():
    return {
        "resourceType": "Encounter",
        "id": "encounter-1",
        "status": "in-progress",
        "class": {"system": "http://hl7.org/fhir/v3/ActCode", "code": "IMP"},
        "subject": {"reference": "urn:uuid:6b5a8f2e-1111-4222-8333-444455556666"},
        "reason": [{"text": "Chest pain"}],
        "period": {"start": "2026-03-01T08:00:00+00:00"},
        "length": {
            "value": 2.5,
            "comparator": "<",
            "unit": "d",
            "system": "http://unitsofmeasure.org",
            "code": "d",
        },
        "location": [{"location": {"display": "Ward 7"}, "status": "active"}],
    }


def procedure():
    return {
        "resourceType": "Procedure",
        "status": "suspended",
        "subject": {"reference": "Patient/patient-1"},
        "context": {"reference": "Encounter/encounter-1"},
        "notDone": True,
        "notDoneReason": {"text": "too frail"},
        "performedPeriod": {"start": "2026-03-01"},
        "performer": [{"actor": {"display": "Reed"}}],
    }


def medication():
    return {
        "resourceType": "MedicationStatement",
        "status": "active",
        "taken": "n",
        "medicationCodeableConcept": {"text": "aspirin"},
        "subject": {"reference": "Patient/patient-1"},
        "dosage": [{"text": "one a day", "timing": {"repeat": {"frequency": 1, "when": ["MORN"]}},
                    "doseQuantity": {"value": 75, "unit": "mg"}}],
    }  # fmt: skip


def task():
    return {
        "resourceType": "Task",
        "status": "ready",
        "intent": "instance-order",
        "requester": {"agent": {"display": "ward"}},
        "lastModified": "2026-03-01T09:10:00Z",
        "input": [{"type": {"text": "bed"}, "valueInteger": 7}],
        "restriction": {"repetitions": 1, "period": {"end": "2026-03-03"}},
    }


def message():
    resources = [header(), referral(), patient(), encounter(), procedure(), medication(), task()]
    return {
        "resourceType": "Bundle",
        "id": "message-1",
        "type": "message",
        "entry": [
            {"fullUrl": f"urn:uuid:6b5a8f2e-1111-4222-8333-44445555{n:04d}", "resource": resource}
            for n, resource in enumerate(resources)
        ],
    }


MESSAGES = (message, header, referral, patient, encounter, procedure, medication, task)


def said(resource):
    return sorted((issue.path, issue.code) for issue in check_stu3(resource))


# --- what it says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MESSAGES)
def test_a_sound_message_has_no_issues(make):
    assert check_stu3(make()) == ()


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        # required in STU3, whatever R4 says
        (changed(header(), event=...), [("MessageHeader.event", "required")]),
        (changed(header(), timestamp=...), [("MessageHeader.timestamp", "required")]),
        (changed(referral(), requester={"onBehalfOf": {"display": "x"}}), [("ReferralRequest.requester.agent", "required")]),
        (changed(medication(), taken=...), [("MedicationStatement.taken", "required")]),
        (changed(medication(), taken=..., _taken={"extension": [{"url": "u", "valueCode": "unknown"}]}), []),
        (changed(encounter(), **{"class": ...}), []),
        # codes of STU3, from the models and from STU3 where the models' list is cut short
        (changed(referral(), status="cancelled"), []),
        (changed(referral(), status="revoked"), [("ReferralRequest.status", "value")]),  # R4's word
        (changed(referral(), intent="original-order"), []),
        (changed(referral(), intent="+"), [("ReferralRequest.intent", "value")]),
        (changed(referral(), priority="EMERGENCY"), [("ReferralRequest.priority", "value")]),
        (changed(encounter(), status="entered-in-error"), []),
        (changed(encounter(), status="+"), [("Encounter.status", "value")]),
        (changed(task(), priority="normal"), []),
        (changed(procedure(), status="not-done"), [("Procedure.status", "value")]),  # R4's word
        (changed(procedure(), notDone="true"), [("Procedure.notDone", "structure")]),
        (changed(encounter(), length={"value": 1, "comparator": "~"}), [("Encounter.length.comparator", "value")]),
        (changed(encounter(), diagnosis=[{"condition": {"display": "x"}, "rank": 0}]), [("Encounter.diagnosis[0].rank", "value")]),
        # elements of R4 that STU3 does not have
        (changed(encounter(), reasonCode=[{"text": "x"}]), [("Encounter", "structure")]),
        (changed(message(), timestamp="2026-03-01T09:10:00Z"), [("Bundle", "structure")]),
        (changed(encounter(), subject={"type": "Patient"}), [("Encounter.subject", "structure")]),
        # shapes of STU3
        (changed(referral(), serviceRequested={"text": "x"}), [("ReferralRequest.serviceRequested", "structure")]),
        (changed(referral(), context=[{"reference": "x"}]), [("ReferralRequest.context", "structure")]),
        (changed(referral(), occurrenceDateTime="2026"), [("ReferralRequest", "structure")]),
        # resources
        ({"resourceType": "ServiceRequest"}, [("Resource.resourceType", "not-supported")]),  # R4's
        ({"resourceType": "BodySite"}, [("BodySite.patient", "required")]),
        ({"resourceType": "Parameters", "parameter": [{"name": "a", "resource": changed(referral(), status="x")}]},
         [("Parameters.parameter[0].resource.status", "value")]),
        (changed(referral(), contained=[{"resourceType": "Practitioner", "gender": "x"}]),
         [("ReferralRequest.contained[0].gender", "value")]),
    ],
)  # fmt: skip
def test_each_rule_is_said_where_it_is_broken(resource, expected):
    assert said(resource) == sorted(expected)


def test_what_is_wrong_is_told_in_the_terms_of_stu3():
    wrong = changed(
        message(),
        entry=[
            {"resource": changed(encounter(), reasonCode=[{"text": MARKER}], status=MARKER)},
            {"resource": changed(encounter(), **{MARKER: MARKER})},
            {"resource": {"resourceType": "ServiceRequest", "status": MARKER}},
            {"resource": {"resourceType": MARKER}},
            {"resource": changed(referral(), status=MARKER)},
        ],
    )

    words = [issue.message for issue in check_stu3(wrong)]

    assert MARKER not in repr(words)
    assert "1 element that FHIR STU3 does not have here" in words
    assert "ServiceRequest is a resource type of FHIR R4, not of FHIR STU3" in words
    assert "not the name of a resource type of FHIR STU3" in words
    assert (
        "expected one of: draft, active, suspended, cancelled, completed, entered-in-error, unknown" in words
    )


# --- held to the models ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def all_elements():
    return elements_of(FhirVersion.STU3)


def test_resources_are_looked_for_wherever_stu3_may_have_one(all_elements):
    hold_to_the_places_of_resources(all_elements)


def test_only_codes_are_closed_lists_and_every_list_by_hand_is_of_an_element_there_is(all_elements):
    with_codes = {(type_name, element.name): element for type_name, element in all_elements}

    assert {element.type for element in with_codes.values() if element.codes} == {"code"}
    assert set(_CODES_OF[FhirVersion.STU3]) <= set(with_codes)
    assert not [
        key for key, element in with_codes.items() if any(set("+. ") & set(code) for code in element.codes)
    ]


@pytest.mark.parametrize(
    ("type_name", "element", "code"),
    [
        ("Encounter", "status", "unknown"), ("EncounterStatusHistory", "status", "unknown"), ("Task", "status", "failed"),
        ("Task", "intent", "option"), ("Task", "priority", "routine"), ("Observation", "status", "corrected"),
        ("RiskAssessment", "status", "corrected"), ("DetectedIssue", "status", "corrected"),
        ("DiagnosticReport", "status", "appended"), ("DeviceUseStatement", "status", "on-hold"),
        ("SupplyRequest", "status", "unknown"), ("QuestionnaireItem", "type", "quantity"),
        ("StructureMapGroupRuleTarget", "transform", "cp"), ("DeviceUdi", "entryType", "card"),
        ("DeviceComponent", "measurementPrinciple", "manual"), ("Communication", "status", "unknown"),
        ("DeviceRequest", "status", "unknown"), ("ProcedureRequest", "status", "unknown"),
        ("ProcedureRequest", "intent", "option"), ("ReferralRequest", "intent", "option"), ("RequestGroup", "intent", "option"),
        ("CommunicationRequest", "priority", "asap"), ("DeviceRequest", "priority", "asap"),
        ("ReferralRequest", "priority", "asap"), ("Composition", "confidentiality", "V"), ("Money", "comparator", ">="),
        ("OperationOutcomeIssue", "code", "incomplete"), ("TimingRepeat", "when", "PCV"), ("AuditEvent", "action", "E"),
        ("CodeSystemFilter", "operator", "exists"), ("GraphDefinitionLinkTargetCompartment", "code", "Device"),
    ],
)  # fmt: skip
def test_a_list_that_the_models_cut_short_is_whole(type_name, element, code):
    """The last of a list, or what its one-line summary in the standard leaves out."""
    field = next(
        field
        for name, field in get_fhir_model_class(type_name).model_fields.items()
        if (field.alias or name) == element
    )

    assert code not in (field.json_schema_extra or {}).get("enum_values", ())
    assert code in elements(FhirVersion.STU3, type_name)[element].codes


def test_every_resource_type_compiles_and_every_model_is_stu3(all_elements):
    assert all(
        get_fhir_model_class(e.type).__module__.startswith("fhir.resources.STU3.")
        for _, e in all_elements
        if not e.primitive
    )
    for name in resource_types(FhirVersion.STU3):
        validator = structure._validator(FhirVersion.STU3, name)
        assert validator.is_valid({"resourceType": name, MARKER: 1}) is False
    assert len(resource_types(FhirVersion.STU3)) == 117


def test_every_primitive_of_stu3_is_one_that_the_check_knows(all_elements):
    assert {element.type for _, element in all_elements if element.primitive} <= set(structure._PRIMITIVES)


# --- compared with the models -----------------------------------------------------------------------------------

EXAMPLES = [
    (changed(patient(), gender="x"), r"expected one of: "),
    (changed(patient(), active=None), r"found null$"),
    (changed(patient(), name=[{"given": ["Ada", None]}]), r"^null is allowed here only|^at no position may"),
    (changed(referral(), recipient=[]), r"^a list must not be empty$|^an object must not be empty$"),
    (changed(header(), timestamp="2026-03-01T09:10:00Z", source={"endpoint": "two words"}),
     r"^expected (text that is not empty|a URI|a URL|a canonical|base64)"),
    (changed(procedure(), notDone="true"), r"^expected .*, found (text|a number|true or false)$"),
    (changed(patient(), id="a" * 65), r"^expected an id"),
    (changed(message(), entry=[{"resource": {"id": "x"}}]), r"^resourceType is required"),
    (changed(patient(), contained=[{"resourceType": "Location", "contained": [{"resourceType": "Location"}]}]), r"dom-2"),
    (changed(patient(), extension=[{"url": "u", "_valueCode": {"id": "x"}}]), r"_value\w+\n  Extra inputs"),
]  # fmt: skip


@pytest.mark.parametrize(("tree", "kind"), EXAMPLES)
def test_each_allowed_disagreement_is_still_there(tree, kind):
    """When fhir.resources has caught up, this fails, and the exemption goes."""
    assert disagreement(tree, check_stu3, get_fhir_model_class, LAXER_STU3) == (kind, None)


def test_each_allowed_disagreement_has_an_example():
    assert {kind for _, kind in EXAMPLES} == STRICTER.keys() | LAXER_STU3.keys()


@cache
def files():
    """(name, tree) of every STU3 message among the trusts' worked examples and, where they are, the public examples."""
    worked = [each.given for profile in load_directory(SCHEMAS) for each in examples_of(SCHEMAS, profile.ods)]
    public = [*(CORPUS / "nhs-ers").glob("stu3*.json"), *(CORPUS / "nems-stu3-messages").glob("*.xml")]
    return tuple(
        (path.name, _tree(path.read_bytes(), dialect, Limits()))
        for path in [*worked, *sorted(public)]
        if (dialect := detect("", path.read_bytes())) in STU3
    )


def mutants_of(trees, count):
    for name, tree in trees:
        for mutation, mutant in mutants(tree, name, count):
            yield f"{name}, {mutation.__name__}", mutant


def own_mutants():
    return mutants_of(((make.__name__, make()) for make in MESSAGES), MUTATIONS_PER_MESSAGE)


def test_every_example_is_judged_as_the_models_judge_it():
    kinds, not_allowed = against_the_models(files())

    assert not_allowed == []
    assert kinds.total() >= 4  # the worked examples, at least
    # Public examples with `"supportingInfo": []`.
    assert sum(n for kind, n in kinds.items() if kind != "agree") == (10 if CORPUS.is_dir() else 0)


def test_mutated_messages_are_judged_as_the_models_judge_them():
    kinds, not_allowed = against_the_models(own_mutants())

    assert not_allowed == []
    assert kinds["agree"] > kinds.total() / 2
    assert kinds.total() > 3_000


def test_mutated_examples_are_judged_as_the_models_judge_them():
    small = [(name, tree) for name, tree in files() if len(str(tree)) <= MUTATED_FILE_BYTES_MAX]
    kinds, not_allowed = against_the_models(mutants_of(small, MUTATIONS_PER_FILE))

    assert not_allowed == []
    assert kinds["agree"] > kinds.total() / 2


@pytest.mark.parametrize("make", MESSAGES)
def test_what_is_always_wrong_is_always_refused_whatever_the_models_say(make):
    """null, empty and unknown, put at every place there is. No model decides here."""
    for position, _ in enumerate(places(make())):
        for mutation in ALWAYS_WRONG:
            mutant = make()
            parent, key = list(places(mutant))[position]
            if mutation is null and (parent[key] is None or (isinstance(parent, list) and parent[0] is None)):
                continue  # it was null before, or fills a gap, and may
            mutation(random.Random(position), parent, key)
            assert check_stu3(mutant), (mutation.__name__, position, key)


def top_level(tree):
    return tuple(issue for issue in check_stu3(tree) if issue.path.count(".") <= 1)


def without_required(tree):
    return tuple(issue for issue in check_stu3(tree, limit=1000) if issue.code != "required")


def without_patterns(tree):
    return tuple(issue for issue in check_stu3(tree, limit=1000) if "a date" not in issue.message)


def by_the_rules_of_r4(tree):
    return check(tree)


@pytest.mark.parametrize(
    "checker", [blind, top_level, refuses_everything, without_required, without_patterns, by_the_rules_of_r4]
)
def test_the_comparison_notices_a_checker_that_is_wrong(checker):
    _, not_allowed = compared(own_mutants(), checker, models=get_fhir_model_class, laxer=LAXER_STU3)

    assert not_allowed
