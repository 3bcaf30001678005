"""Each repair on its own: what comes in, what goes out, what is remembered. And that it can be switched off."""

import copy
from functools import partial
from pathlib import Path

import pytest

from hub.codes.book import CodeFile
from hub.fhir.structure import check
from hub.journey.repair import RULES, RuleId
from hub.journey.repair import repair as repair_with
from hub.journey.repair.glance import nothing_to_mend
from hub.trusts import load_books, load_directory

SCHEMAS = Path(__file__).resolve().parents[3] / "schemas"
BOOK = load_books(SCHEMAS, load_directory(SCHEMAS))["RA9"].with_maps(
    [
        CodeFile(
            "ours.json",
            b"""{"resourceType": "ConceptMap", "group": [
{"source": "https://transfer-hub.example/element/Encounter.status", "target": "http://hl7.org/fhir/encounter-status", "element": [
{"code": "INPATIENT", "target": [{"code": "in-progress"}]}
]}]}""",
        )
    ]
)
repair = partial(repair_with, book=BOOK)
UUID = "6b5a8f2e-1111-4222-8333-444455556666"


def patient(**elements):
    return {"resourceType": "Patient", **elements}


def encounter(**elements):
    return {"resourceType": "Encounter", "status": "planned", "class": {"code": "IMP"}, **elements}


def request(**elements):
    return {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "subject": {"display": "x"},
        **elements,
    }


def bundle(*entries, **elements):
    return {"resourceType": "Bundle", "type": "message", **elements, "entry": list(entries)}


def header(code):
    source = {"endpoint": "https://epr.example"}
    return {"resource": {"resourceType": "MessageHeader", "eventCoding": {"code": code}, "source": source}}


def told(done):
    """What was done, as (rule, path), changes and unmapped in one."""
    return [(change.rule, change.path) for change in done.changes] + [
        (each.why, each.path) for each in done.unmapped
    ]


CASES = [
    # Empties, and lists that belong together
    ("empty-dropped", patient(birthDate="", gender="male"), patient(gender="male")),
    ("empty-dropped", patient(gender=None), patient()),
    ("empty-dropped", patient(birthDate=[None, ""]), patient()),
    ("empty-dropped", patient(name=[None, {"family": "A", "given": []}]), patient(name=[{"family": "A"}])),
    ("empty-dropped", patient(name=[{"family": ""}, {}], contact=[]), patient()),
    ("empty-dropped", patient(name=[{"given": ["A", None, "B", ""]}]), patient(name=[{"given": ["A", "B"]}])),
    (
        "empty-dropped",
        patient(name=[{"given": ["A", None, None], "_given": [None, None, {"id": "x"}]}]),
        patient(name=[{"given": ["A", None], "_given": [None, {"id": "x"}]}]),
    ),
    (
        "empty-dropped",
        patient(name=[{"given": ["A", ""], "_given": [{}, {}]}]),
        patient(name=[{"given": ["A"]}]),
    ),
    # One and many
    ("list-to-single", patient(birthDate=["1956-02-29"]), patient(birthDate="1956-02-29")),
    (
        "list-to-single",
        patient(managingOrganization={"identifier": [{"value": "RA9"}, {"value": "RH8"}]}),
        patient(managingOrganization={"identifier": {"value": "RA9"}}),
    ),
    ("single-to-list", patient(name={"given": "A"}), patient(name=[{"given": ["A"]}])),
    # What FHIR does not have there
    ("unknown-element", patient(ward="7", name=[{"nickname": "A", "family": "B"}]), patient(name=[{"family": "B"}])),
    # Values
    ("spaces", patient(language=" en-GB ", birthDate="1956-02-29 "), patient(language="en-GB", birthDate="1956-02-29")),
    ("boolean-text", patient(active="True"), patient(active=True)),
    ("number-text", patient(multipleBirthInteger="2"), patient(multipleBirthInteger=2)),
    ("text-number", patient(identifier=[{"value": 999}]), patient(identifier=[{"value": "999"}])),
    ("code-case", encounter(status="In_Progress"), encounter(status="in-progress")),
    ("code-case", patient(gender="FEMALE"), patient(gender="female")),
    # Codes that FHIR requires, by the maps
    ("code-map", patient(gender="F"), patient(gender="female")),
    ("code-map", patient(gender="m"), patient(gender="male")),
    ("code-map", patient(gender="1"), patient(gender="male")),
    ("code-map", patient(contact=[{"gender": "Indeterminate"}]), patient(contact=[{"gender": "other"}])),
    ("code-map", patient(gender={"coding": [{"system": "http://hl7.org/fhir/v2/0001", "code": "F"}]}), patient(gender="female")),
    ("code-map", patient(gender={"system": "urn:ours", "code": "female"}), patient(gender="female")),
    (
        "code-map",
        patient(gender={"coding": [{"system": "urn:ours", "code": "W"}, {"system": "http://hl7.org/fhir/v2/0001", "code": "F"}]}),
        patient(gender="female"),
    ),
    ("code-map", request(priority="EMERGENCY"), request(priority="stat")),
    ("code-map", request(priority="IFT2"), request(priority="asap")),
    ("code-map", encounter(status="Inpatient"), encounter(status="in-progress")),
    ("code-unknown", patient(gender="4"), patient()),
    ("code-unknown", patient(gender=["male", "female"]), patient()),
    ("code-unknown", patient(telecom=[{"system": "pigeon", "value": "x"}]), patient(telecom=[{"value": "x"}])),
    # Dates and times
    ("date-day-first", patient(birthDate="29/02/1956"), patient(birthDate="1956-02-29")),
    ("date-day-first", patient(birthDate="3.4.1956"), patient(birthDate="1956-04-03")),
    ("date-day-first", patient(deceasedDateTime="05-07-2026 09:20:00Z"), patient(deceasedDateTime="2026-07-05T09:20:00Z")),
    (
        "tz-assumed",
        encounter(period={"start": "2026-07-15T09:20:00.1234567"}),
        encounter(period={"start": "2026-07-15T09:20:00.1234567+01:00"}),
    ),
    ("time-offset", patient(deceasedDateTime="2026-07-15T09:20:00+0215"), patient(deceasedDateTime="2026-07-15T09:20:00+02:15")),
    ("time-offset", patient(deceasedDateTime="2026-07-15T09:20:00+00"), patient(deceasedDateTime="2026-07-15T09:20:00+00:00")),
    ("time-seconds", patient(deceasedDateTime="2026-07-15T09:20Z"), patient(deceasedDateTime="2026-07-15T09:20:00Z")),
    ("time-separator", patient(deceasedDateTime="2026-07-15 09:20:00Z"), patient(deceasedDateTime="2026-07-15T09:20:00Z")),
    ("time-midnight", patient(deceasedDateTime="2026-12-31T24:00:00Z"), patient(deceasedDateTime="2027-01-01T00:00:00Z")),
    # Encounter.class
    ("class-text", encounter(**{"class": "outpatient"}), encounter(**{"class": {"code": "outpatient"}})),
    (
        "concept-to-coding",
        encounter(**{"class": {"coding": [{"code": "I"}, {"system": "http://hl7.org/fhir/v3/ActCode", "code": "IMP"}], "text": "In"}}),
        encounter(**{"class": {"system": "http://hl7.org/fhir/v3/ActCode", "code": "IMP", "display": "In"}}),
    ),
    # References, extensions, narrative
    ("placeholder", encounter(subject={"reference": "Patient/[PatientResourceId]", "display": "x"}), encounter(subject={"display": "x"})),
    ("placeholder", patient(identifier=[{"system": "urn:x", "value": "$nhs-number"}]), patient(identifier=[{"system": "urn:x"}])),
    ("placeholder", patient(id="{PatientId}"), patient()),
    ("placeholder", patient(managingOrganization={"reference": ":uuid:", "display": "x"}), patient(managingOrganization={"display": "x"})),
    ("uuid-urn", encounter(subject={"reference": UUID.upper()}), encounter(subject={"reference": f"urn:uuid:{UUID}"})),
    ("uuid-urn", encounter(subject={"reference": f":uuid:{UUID}"}), encounter(subject={"reference": f"urn:uuid:{UUID}"})),
    ("reference-empty", encounter(subject={"type": "Patient"}), encounter()),
    ("extension-without-url", patient(extension=[{"valueString": "x"}]), patient()),
    (
        "extension-us-only",
        patient(extension=[{"url": "http://hl7.org/fhir/us/core/StructureDefinition/us-core-birthsex", "valueCode": "F"}]),
        patient(),
    ),
    ("narrative-incomplete", patient(text={"status": "generated"}), patient()),
    # Ids
    ("id-form", patient(id="pat_1"), patient(id="pat-1-5a3fad0bc142aa09")),
    ("id-form", patient(meta={"versionId": 'W/"3"'}), patient(meta={"versionId": "W-3-82a947320751e854"})),
    (
        "id-form",
        patient(contained=[{"resourceType": "Organization", "id": "org_1"}], managingOrganization={"reference": "#org_1"}),
        patient(
            contained=[{"resourceType": "Organization", "id": "org-1-dfc765491880219b"}],
            managingOrganization={"reference": "#org-1-dfc765491880219b"},
        ),
    ),
    (
        "id-form",
        bundle({"resource": patient(id="pat_1")}, {"resource": encounter(subject={"reference": "Patient/pat_1"})}),
        bundle(
            {"resource": patient(id="pat-1-5a3fad0bc142aa09")},
            {"resource": encounter(subject={"reference": "Patient/pat-1-5a3fad0bc142aa09"})},
        ),
    ),
    # Bundles
    ("entry-without-resource", bundle({"resource": patient()}, {"fullUrl": f"urn:uuid:{UUID}"}), bundle({"resource": patient()})),
    (
        "entry-twice",
        bundle(*[{"fullUrl": f"urn:uuid:{UUID}", "resource": patient(active=True)} for _ in range(2)]),
        bundle({"fullUrl": f"urn:uuid:{UUID}", "resource": patient(active=True)}),
    ),
    ("uuid-urn", bundle({"fullUrl": UUID, "resource": patient()}), bundle({"fullUrl": f"urn:uuid:{UUID}", "resource": patient()})),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "tree", "after"), CASES)
def test_mended_remembered_and_sound(rule, tree, after):
    tree = copy.deepcopy(tree)
    done = repair(tree)

    assert after == tree
    assert rule in {name for name, _ in told(done)}
    assert done.issues == check(tree) == ()
    assert told(repair(tree)) == []


@pytest.mark.parametrize(("rule", "tree", "after"), CASES)
def test_switched_off_it_leaves_no_trace(rule, tree, after):
    tree = copy.deepcopy(tree)
    done = repair(tree, frozenset({rule}))

    assert rule not in {name for name, _ in told(done)}
    assert tree != after


@pytest.mark.parametrize(("rule", "tree", "after"), CASES)
def test_the_glance_sees_what_the_structure_check_does_not(rule, tree, after):
    assert check(tree) or not nothing_to_mend(tree, {})
    assert nothing_to_mend(after, {})


def test_every_rule_is_explained_and_tried_here():
    assert set(RuleId) == set(RULES)
    assert {rule for rule, _, _ in CASES} | {"class-assumed", "identifier-namespace"} == set(RuleId)


def test_one_time_can_need_it_all():
    tree = patient(deceasedDateTime=" 2026-10-24 24:00 ")
    done = repair(tree)

    assert tree["deceasedDateTime"] == "2026-10-25T00:00:00+01:00"
    assert [change.rule for change in done.changes] == [
        "spaces", "time-separator", "time-midnight", "time-seconds", "tz-assumed",
    ]  # fmt: skip
    assert done.changes[0].before == " 2026-10-24 24:00 "
    assert done.tz_assumed
    assert not done.class_assumed


def test_a_change_says_what_was_assumed_of_an_hour_that_comes_twice():
    done = repair(patient(deceasedDateTime="2026-10-25T01:30:00"))

    assert done.changes[0].source.startswith("Europe/London: ")
    assert "twice" in done.changes[0].source


@pytest.mark.parametrize(
    ("event", "place", "code"),
    [
        ("A01", None, "IMP"),
        ("ADT_A01", None, "IMP"),
        ("A04", None, "AMB"),
        ("A04", "E04", "EMER"),
        ("A02", None, "UNK"),
        ("servicerequest-request", "E04", "UNK"),
    ],
)
def test_a_missing_class_is_inferred_from_the_event_or_unknown(event, place, code):
    stay = encounter()
    del stay["class"]
    if place:
        stay["location"] = [{"location": {"display": "x"}, "physicalType": {"coding": [{"code": place}]}}]
    done = repair(bundle(header(event), {"resource": stay}))

    assert stay["class"]["code"] == code
    assert done.class_assumed
    assert not done.issues


def test_an_identifier_without_system_gets_the_namespace_of_its_kind():
    """Oracle Health's visit number: no system, and an extension that says so."""
    absent = {
        "extension": [
            {"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason", "valueCode": "unknown"}
        ]
    }
    tree = encounter(
        identifier=[
            {"_system": absent, "type": {"text": "FIN NBR"}, "value": "1"},
            {"type": {"coding": [{"code": "VN"}]}, "value": "2"},
            {"system": "urn:own", "value": "3"},
            {"type": {"text": "FIN NBR"}},
        ]
    )  # fmt: skip
    done = repair(tree, namespaces={"Encounter": {"FIN NBR": "urn:fin"}})

    assert [each.get("system") for each in tree["identifier"]] == ["urn:fin", None, "urn:own", None]
    assert told(done) == [
        ("identifier-namespace", "Encounter.identifier[0].system"),
        ("identifier-namespace", "Encounter.identifier[0]._system"),
    ]
    assert told(repair(tree, namespaces={"Encounter": {"*": "urn:any"}})) == [
        ("identifier-namespace", "Encounter.identifier[1].system")
    ]
    assert not repair(encounter(identifier=[{"value": "1"}])).changes


def test_the_first_of_a_list_stays_and_the_rest_is_kept():
    tree = patient(managingOrganization={"identifier": [None, {"value": "RA9"}, {"value": "RH8"}]})
    done = repair(tree)

    assert tree["managingOrganization"]["identifier"] == {"value": "RA9"}
    assert [(each.path, each.value) for each in done.unmapped] == [
        ("Patient.managingOrganization.identifier[2]", {"value": "RH8"})
    ]


@pytest.mark.parametrize(
    ("start", "end", "after", "assumed"),
    [
        # Half past one comes twice: from ten to two until ten past one, it was the second ten past one.
        ("2026-10-25T01:50:00", "2026-10-25T01:10:00", "2026-10-25T01:10:00+00:00", "later was taken"),
        ("2026-10-25T01:50:00+01:00", "2026-10-25 01:10", "2026-10-25T01:10:00+00:00", "later was taken"),
        ("2026-10-25T01:05:00Z", "2026-10-25T01:10:00", "2026-10-25T01:10:00+00:00", "later was taken"),
        ("2026-10-25T00:50:00", "2026-10-25T01:10:00", "2026-10-25T01:10:00+01:00", "earlier was taken"),
        ("2026-10-25T01:05:00", "2026-10-25T01:10:00", "2026-10-25T01:10:00+01:00", "earlier was taken"),
        # Neither would do: the sender's mistake stays what it was.
        ("2026-10-25T03:00:00", "2026-10-25T01:10:00", "2026-10-25T01:10:00+01:00", "earlier was taken"),
        ("2026-07-25T03:00:00", "2026-07-25T01:10:00", "2026-07-25T01:10:00+01:00", "the clock of the zone"),
    ],
)
def test_a_period_does_not_end_before_it_began_in_the_night_the_clocks_go_back(start, end, after, assumed):
    tree = encounter(location=[{"location": {"display": "x"}, "period": {"start": start, "end": end}}])
    done = repair(tree)

    assert tree["location"][0]["period"]["end"] == after
    change = [each for each in done.changes if each.path.endswith(".end")][-1]
    assert (change.after, change.rule) == (after, "tz-assumed")
    assert assumed in change.source
    assert told(repair(tree)) == []


def test_two_different_resources_under_one_url_are_left_for_a_person():
    url = f"urn:uuid:{UUID}"
    tree = bundle({"fullUrl": url, "resource": patient(active=True)}, {"fullUrl": url, "resource": patient()})
    before = copy.deepcopy(tree)
    done = repair(tree)

    assert tree == before
    assert [(issue.path, issue.code) for issue in done.issues] == [("Bundle.entry[1].fullUrl", "invariant")]


@pytest.mark.parametrize(
    "tree",
    [
        patient(modifierExtension=[{"valueString": "x"}]),
        encounter(status="4"),
        request(priority="4"),
        patient(identifier=[{"use": "former", "value": "1"}]),
        encounter(subject=[{"reference": "Patient/1"}, {"reference": "Patient/2"}]),
        patient(birthDate="02/29/1956"),
        patient(birthDate="29/02/1957"),
        patient(birthDate="29/02-1956"),
        patient(birthDate="29/02/1956 10:00"),
        patient(birthDate="29/02/56"),
        patient(deceasedDateTime="2026-02-30T09:20:00"),
        patient(deceasedBoolean=True, deceasedDateTime="2026"),
        {"resourceType": "ServiceRequest", "status": "active", "intent": "order"},
        {"resourceType": "Unheard"},
        {},
        [],
    ],
)
def test_what_cannot_be_mended_without_guessing_stays_and_is_said(tree):
    before = copy.deepcopy(tree)
    done = repair(tree)

    assert before == tree
    assert done.issues
    assert told(done) == []


def test_a_required_reference_that_was_never_filled_in_is_said_to_be_missing():
    tree = {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "subject": {"reference": "Patient/{id}"},
    }

    assert [issue.path for issue in repair(tree).issues] == ["ServiceRequest.subject"]


def test_a_wrong_profile_is_no_reason_to_touch_anything():
    tree = patient(meta={"profile": ["http://hl7.org/fhir/us/core/StructureDefinition/us-core-patient"]})

    assert repair(tree) == repair(patient())
