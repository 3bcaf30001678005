"""Local codes become national ones; what was sent stays beside them."""

import copy
from pathlib import Path

import pytest

from hub.codes.book import CodeFile
from hub.journey.codes import to_national
from hub.trusts import load_books, load_directory

SCHEMAS = Path(__file__).resolve().parents[3] / "schemas"
SHARED = load_books(SCHEMAS, load_directory(SCHEMAS))["RA9"]
OURS = SHARED.with_maps(
    [
        CodeFile(
            "ours.json",
            b"""{"resourceType": "ConceptMap", "group": [
{"source": "urn:oid:1.2.840.114350.1.72.1.7.7.10.696784.13260", "target": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "element": [
{"code": "4", "target": [{"code": "AMB", "equivalence": "wider"}]}
]},
{"source": "urn:ours:from", "target": "https://fhir.hl7.org.uk/CodeSystem/UKCore-SourceOfAdmissionEngland", "element": [
{"code": "OTHHOSP", "target": [{"code": "51", "display": "NHS other hospital", "equivalence": "equivalent"}]}
]}]}""",
        )
    ]
)
ACT = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
UK = "https://fhir.hl7.org.uk/CodeSystem/UKCore-"
CARECONNECT = "https://fhir.hl7.org.uk/STU3/CodeSystem/CareConnect-"
EXTENSION = "https://fhir.hl7.org.uk/StructureDefinition/Extension-UKCore-"


def encounter(**more):
    return {"resourceType": "Encounter", "status": "in-progress", **more}


@pytest.mark.parametrize(
    ("system", "code", "said"),
    [
        (ACT, "IMP", "IMP"),
        ("http://hl7.org/fhir/v3/ActCode", "IMP", "IMP"),
        ("http://hl7.org/fhir/v3-ActEncounterCode", "EMER", "EMER"),
        ("http://hl7.org/fhir/ValueSet/v3-ActEncounterCode", "AMB", "AMB"),
        ("http://hl7.org/fhir/encounter-class", "inpatient", "IMP"),
        ("http://terminology.hl7.org/CodeSystem/v2-0004", "I", "IMP"),
        ("urn:oid:1.2.840.114350.1.72.1.7.7.10.696784.13260", "4", "AMB"),
    ],
)
def test_every_spelling_of_an_encounter_class(system, code, said):
    tree = encounter(**{"class": {"system": system, "code": code}})
    changes, flags = to_national(tree, OURS, "england")

    assert (tree["class"]["system"], tree["class"]["code"]) == (ACT, said)
    assert flags == ()
    assert [change.before for change in changes] == (
        [] if system == ACT else [{"system": system, "code": code}]
    )


def test_a_trusts_own_code_is_kept_behind_the_national_one_and_the_line_is_named():
    ours = {"system": "urn:ours:from", "code": "OTHHOSP", "display": "Another hospital"}
    tree = encounter(hospitalization={"admitSource": {"coding": [ours], "text": "from Torbay"}})
    changes, _ = to_national(tree, OURS, "england")

    source = tree["hospitalization"]["admitSource"]
    assert [each["code"] for each in source["coding"]] == ["51", "OTHHOSP"]
    assert source["coding"][1] == ours
    assert source["text"] == "from Torbay"
    assert [(c.rule, c.source) for c in changes] == [("code-mapped", "ours.json, line 6")]


def test_a_loose_meaning_is_marked():
    tree = encounter(
        **{"class": {"system": "urn:oid:1.2.840.114350.1.72.1.7.7.10.696784.13260", "code": "4"}}
    )
    changes, _ = to_national(tree, OURS, "england")
    assert [change.rule for change in changes] == ["code-mapped-loosely"]


def test_a_code_no_map_knows_stays_and_is_flagged():
    tree = encounter(**{"class": {"system": "urn:elsewhere", "code": "77"}})
    before = copy.deepcopy(tree)
    changes, flags = to_national(tree, OURS, "england")

    assert tree == before
    assert changes == ()
    assert [(flag.code, flag.path) for flag in flags] == [("code-unmapped", "Encounter.class")]


def test_the_standard_coding_is_used_wherever_it_stands():
    local, national = (
        {"system": "urn:cerner", "code": "19"},
        {"system": f"{UK}SourceOfAdmissionEngland", "code": "51"},
    )
    tree = encounter(hospitalization={"admitSource": {"coding": [local, national]}})
    to_national(tree, OURS, "england")
    assert tree["hospitalization"]["admitSource"]["coding"] == [national, local]


@pytest.mark.parametrize("code", ["81", "2B", "28", "2A"])
@pytest.mark.parametrize("nation", ["england", "wales"])
def test_the_admission_methods_of_a_transfer_in_england_and_wales(code, nation):
    system = f"{CARECONNECT}AdmissionMethod-1"
    url = "https://fhir.hl7.org.uk/STU3/StructureDefinition/Extension-CareConnect-AdmissionMethod-1"
    tree = encounter(
        extension=[{"url": url, "valueCodeableConcept": {"coding": [{"system": system, "code": code}]}}]
    )
    to_national(tree, SHARED, nation)

    assert "extension" not in tree
    moved = tree["hospitalization"]["extension"][0]
    assert moved["url"] == f"{EXTENSION}AdmissionMethod"
    found = moved["valueCodeableConcept"]["coding"][0]
    assert (found["system"], found["code"]) == (f"{UK}AdmissionMethodEngland", code)


@pytest.mark.parametrize(
    ("code", "system"),
    [
        ("51", f"{UK}DischargeDestinationEngland"),
        ("54", f"{UK}DischargeDestinationEngland"),
        ("55", "https://transfer-hub.example/CodeSystem/discharge-destination-current"),
    ],
)
def test_discharge_destinations_of_the_old_and_the_current_list(code, system):
    sent = {
        "system": "https://fhir.hl7.org.uk/CodeSystem/NHSDataModelAndDictionary-DischargeDestination",
        "code": code,
    }
    tree = encounter(hospitalization={"dischargeDisposition": {"coding": [sent]}})
    to_national(tree, SHARED, "england")
    found = tree["hospitalization"]["dischargeDisposition"]["coding"][0]
    assert (found["system"], found["code"]) == (system, code)


@pytest.mark.parametrize(
    ("system", "code", "said"),
    [
        (f"{CARECONNECT}NHSNumberVerificationStatus-1", "01", "01"),
        ("https://fhir.hl7.org.uk/CareConnect-NHSNumberVerificationStatus-1", "02", "02"),
        (
            "https://fhir.hl7.org.uk/CodeSystem/CareConnect-NHSNumberVerificationStatus-1",
            "number-present-and-verified",
            "01",
        ),
        ("https://fhir.nhs.uk/STU3/CodeSystem/CareConnect-NHSNumberVerificationStatus-1", "03", "03"),
        (f"{UK}NHSNumberVerificationStatus", "number-present-and-verified", "01"),
        (f"{UK}NHSNumberVerificationStatus", "trace-postponed", "08"),
        (f"{UK}NHSNumberVerificationStatusWales", "05", "05"),
        (f"{UK}NHSNumberVerificationStatusEngland", "04", "04"),
    ],
)
def test_every_spelling_of_the_verification_status(system, code, said):
    url = (
        "https://fhir.hl7.org.uk/STU3/StructureDefinition/Extension-CareConnect-NHSNumberVerificationStatus-1"
    )
    extension = {"url": url, "valueCodeableConcept": {"coding": [{"system": system, "code": code}]}}
    tree = {"resourceType": "Patient", "identifier": [{"value": "9990000018", "extension": [extension]}]}
    to_national(tree, SHARED, "england")

    assert extension["url"] == f"{EXTENSION}NHSNumberVerificationStatus"
    found = extension["valueCodeableConcept"]["coding"][0]
    assert (found["system"], found["code"]) == (f"{UK}NHSNumberVerificationStatusEngland", said)


ARP = "https://fhir.nhs.uk/CodeSystem/arp-priority-codes"


def request(**more):
    return {"resourceType": "ServiceRequest", "status": "active", "intent": "order", **more}


@pytest.mark.parametrize(
    ("system", "sent", "said", "priority"),
    [
        (ARP, "IFT1", "IFT1", "stat"),
        (ARP, "IFT2", "IFT2", "asap"),
        (ARP, "IFT3", "IFT3", "urgent"),
        (ARP, "IFT4", "IFT4", "routine"),
        (ARP.removesuffix("s"), "IFT2", "IFT2", "asap"),
        (ARP.removesuffix("s"), "C1", "IFT1", "stat"),
        (ARP, "C2", "IFT2", "asap"),
    ],
)
@pytest.mark.parametrize("element", ["category", "orderDetail"])
def test_an_ambulance_category_becomes_its_level_and_gives_the_priority(
    element, system, sent, said, priority
):
    coding = {"system": system, "code": sent}
    tree = request(**{element: [{"coding": [coding]}]})
    changes, flags = to_national(tree, SHARED, "england")

    assert (tree[element][0]["coding"][0]["system"], tree[element][0]["coding"][0]["code"]) == (ARP, said)
    assert tree[element][0]["coding"][-1] == coding
    assert tree["priority"] == priority
    assert flags == ()
    [derived] = [change for change in changes if change.rule == "priority-derived"]
    assert derived.source.startswith("conceptmaps/request-priority.json, line ")


def test_a_priority_that_was_said_counts_and_other_categories_are_no_doubt():
    referral = {
        "coding": [
            {"system": "https://fhir.nhs.uk/CodeSystem/message-category-servicerequest", "code": "referral"}
        ]
    }
    tree = request(priority="urgent", category=[referral, {"coding": [{"system": ARP, "code": "IFT4"}]}])
    assert to_national(tree, SHARED, "england") == ((), ())
    assert tree["priority"] == "urgent"
    tree = request(category=[referral, {"coding": [{"system": ARP, "code": "C3"}]}])
    assert to_national(tree, SHARED, "england") == ((), ())
    assert "priority" not in tree


@pytest.mark.parametrize("nation", ["england", "wales"])
def test_a_legal_status_within_its_extension(nation):
    """Detained under section 3, as CareConnect's successor nests it, in the retired systems' words."""
    tree = encounter(
        extension=[
            {
                "url": "https://fhir.hl7.org.uk/STU3/StructureDefinition/Extension-CareConnect-LegalStatus-1",
                "extension": [
                    {"url": "LegalStatusContext", "valueCodeableConcept": {"coding": [{"system": f"{CARECONNECT}LegalStatusContext-1", "code": "admission"}]}},
                    {"url": "legalStatusClassification", "valueCodeableConcept": {"coding": [{"system": f"{CARECONNECT}LegalStatusClassification-1", "code": "03"}]}},
                ],
            }
        ]
    )  # fmt: skip
    changes, flags = to_national(tree, SHARED, nation)

    [status] = tree["extension"]
    assert status["url"] == f"{EXTENSION}LegalStatus"
    assert [part["url"] for part in status["extension"]] == [
        "legalStatusContext",
        "legalStatusClassification",
    ]
    said = [part["valueCodeableConcept"]["coding"][0] for part in status["extension"]]
    assert [(each["system"], each["code"]) for each in said] == [
        (f"{UK}LegalStatusContext", "admission"),
        (f"{UK}LegalStatusClassificationEngland", "03"),
    ]
    assert flags == ()
    assert [change.rule for change in changes] == [
        "extension-url",
        "extension-url",
        "code-mapped",
        "code-mapped",
    ]


def test_a_legal_status_that_no_map_knows_is_flagged_where_it_stands():
    tree = encounter(
        extension=[{"url": f"{EXTENSION}LegalStatus", "extension": [
            {"url": "legalStatusClassification", "valueCodeableConcept": {"coding": [{"system": "urn:ours", "code": "S3"}]}},
            {"url": "legalStatusContext", "valueCode": "admission"},
        ]}]
    )  # fmt: skip
    _, flags = to_national(tree, SHARED, "england")
    assert [flag.path for flag in flags] == ["Encounter.extension[0].extension[0].valueCodeableConcept"]


def test_what_a_sender_claims_to_conform_to_is_not_passed_on():
    tree = {"resourceType": "Patient", "meta": {"profile": ["https://example/StructureDefinition/Ours"]}}
    changes, _ = to_national(tree, SHARED, "england")
    assert tree == {"resourceType": "Patient"}
    assert [(c.path, c.before, c.rule) for c in changes] == [
        ("Patient.meta.profile", ["https://example/StructureDefinition/Ours"], "profile-claim")
    ]


def test_doing_it_twice_changes_nothing_more():
    ours = {"system": "urn:ours:from", "code": "OTHHOSP"}
    tree = encounter(
        hospitalization={"admitSource": {"coding": [ours]}},
        **{"class": {"system": "http://hl7.org/fhir/v3/ActCode", "code": "IMP"}},
    )
    to_national(tree, OURS, "england")
    once = copy.deepcopy(tree)
    assert to_national(tree, OURS, "england") == ((), ())
    assert tree == once


def test_what_stands_within_a_resource_claims_no_profile_either_and_has_no_version():
    """The receiver's validator would look for the profile, wherever the claim stands, and refuse the version (dom-4)."""

    def patient(**more):
        return {
            "resourceType": "Patient",
            "meta": {"profile": ["https://example/StructureDefinition/Ours"]},
            **more,
        }

    versioned = patient(id="p")
    versioned["meta"] |= {"versionId": "3", "lastUpdated": "2026-01-15T09:10:00Z"}
    document = {"resourceType": "Bundle", "type": "document", "entry": [{"resource": patient()}]}
    tree = {
        "resourceType": "Bundle",
        "type": "message",
        "entry": [{"resource": encounter(contained=[versioned])}, {"resource": document}],
    }
    changes, _ = to_national(tree, SHARED, "england")

    assert [change.path for change in changes] == [
        "Bundle.entry[0].resource.contained[0].meta.profile",
        "Bundle.entry[0].resource.contained[0].meta.versionId",
        "Bundle.entry[0].resource.contained[0].meta.lastUpdated",
        "Bundle.entry[1].resource.entry[0].resource.meta.profile",
    ]
    assert "profile" not in str(tree)
    assert "version" not in str(tree)


def test_contacts_as_the_demographics_service_writes_them_are_said_as_uk_core_has_them_now():
    """PDS gives these extensions a Coding, and the kind of contact beside the contact; UK Core 3.0 allows neither."""
    kind = {"system": f"{UK}AddressKeyType", "code": "PAF"}
    other = {"system": f"{UK}OtherContactSystem", "code": "textphone"}
    key = [{"url": "type", "valueCoding": kind}, {"url": "value", "valueString": "12345678"}]
    address = {"postalCode": "TQ2 7AA", "extension": [{"url": f"{EXTENSION}AddressKey", "extension": key}]}
    telecom = {"system": "other", "value": "01632960587"}
    telecom["extension"] = [{"url": f"{EXTENSION}OtherContactSystem", "valueCoding": other}]
    tree = {
        "resourceType": "Patient",
        "address": [copy.deepcopy(address)],
        "telecom": [copy.deepcopy(telecom)],
        "contact": [{"address": address, "telecom": [telecom]}],
    }
    to_national(tree, SHARED, "england")

    contact = tree["contact"][0]
    for said in (tree["address"][0], contact["address"]):
        assert said["extension"][0]["extension"][0] == {
            "url": "type",
            "valueCodeableConcept": {"coding": [kind]},
        }
    for said in (tree["telecom"][0], contact["telecom"][0]):
        assert "extension" not in said
        [beside] = said["_system"]["extension"]
        assert beside == {
            "url": f"{EXTENSION}OtherContactSystem",
            "valueCodeableConcept": {"coding": [other]},
        }
    once = copy.deepcopy(tree)
    assert to_national(tree, SHARED, "england") == ((), ())
    assert tree == once


def test_a_code_that_its_system_does_not_have_is_not_kept_beside_the_national_one():
    """PDS gives 01 under the retired system, whose codes are words; a word of that system stays beside, as any other."""
    number = {"system": "https://fhir.nhs.uk/Id/nhs-number", "value": "9990000018"}
    for code, beside in (("01", 0), ("number-present-and-verified", 1)):
        concept = {"coding": [{"system": f"{UK}NHSNumberVerificationStatus", "code": code}]}
        verified = {"url": f"{EXTENSION}NHSNumberVerificationStatus", "valueCodeableConcept": concept}
        tree = {"resourceType": "Patient", "identifier": [{**number, "extension": [verified]}]}
        changes, flags = to_national(tree, SHARED, "england")
        first, *others = concept["coding"]
        assert (first["system"], first["code"]) == (f"{UK}NHSNumberVerificationStatusEngland", "01")
        assert (len(others), flags) == (beside, ())
        assert changes[0].before["code"] == code
