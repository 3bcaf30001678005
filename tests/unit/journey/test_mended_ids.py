"""Ids that FHIR does not take: what refers to a resource leads to the same one before and after, and no id is lost."""

import copy
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.dialects import Dialect
from hub.dialects.fhir_xml_writer import write_xml
from hub.domain.ids import EventId, OdsCode, time_ordered_id
from hub.domain.message import Kind, Position, Received
from hub.domain.rejection import Rejection
from hub.fhir import headers
from hub.fhir.structure import check
from hub.fhir.tree import Entry, Resources
from hub.journey.decide import Journey, understand
from hub.journey.explain import explain
from hub.journey.read import Limits, Read, read
from hub.journey.repair import repair
from hub.journey.repair.ids import well_formed
from hub.trusts import load_books, load_directory
from tests.corpus.test_nothing_is_lost import lost

SCHEMAS = Path(__file__).resolve().parents[3] / "schemas"
DIRECTORY = load_directory(SCHEMAS)
JOURNEY = Journey(DIRECTORY, books=load_books(SCHEMAS, DIRECTORY))
REQUEST = SCHEMAS / "examples" / "transfer-request-RA9-to-RH8.json"
AT = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SERVER = "https://epr.example/fhir"
R4 = "application/fhir+json; fhirVersion=4.0"
LONG = "x" * 80


def received(tree, content_type=R4):
    raw = tree if isinstance(tree, bytes) else orjson.dumps(tree)
    where = Position("epr.ra9.events", 0, 0)
    said = {headers.CONTENT_TYPE: content_type}
    return Received(EventId(time_ordered_id(AT, raw)), OdsCode("RA9"), where, said, b"", raw, AT)


def mended(tree):
    done = repair(tree)
    assert done.issues == ()
    return {change.path: (change.before, change.after) for change in done.changes if change.rule == "id-form"}


def stay(reference, **elements):
    subject = {"reference": reference}
    return {
        "resourceType": "Encounter",
        "status": "planned",
        "class": {"code": "IMP"},
        "subject": subject,
    } | elements


def collection(*entries):
    return {"resourceType": "Bundle", "type": "collection", "entry": list(entries)}


def test_an_id_is_said_as_fhir_says_it_always_the_same_and_two_stay_two():
    assert well_formed("pat-1.A") == "pat-1.A"
    assert well_formed("pat_1") == "pat-1-5a3fad0bc142aa09"
    odd = ("pat_1", "pat:1", "_", "", "ä", LONG, LONG + "x", 'W/"3"', "a\n", "1_2", "1:2")
    said = [well_formed(each) for each in odd]
    assert len(set(said)) == len(odd)
    for each in said:
        assert not check({"resourceType": "Patient", "id": each})
        assert not each.isdigit()  # a version that was no number does not become one


@pytest.mark.parametrize("identity", ["pat_1", "RA9:1", LONG, "ward 7/1"])
def test_what_refers_to_a_resource_follows_it(identity):
    tree = collection(
        {"resource": {"resourceType": "Patient", "id": identity}},
        {"resource": stay(f"Patient/{identity}")},
        {"resource": stay(f"Patient/{identity}/_history/v_2")},
    )
    after = well_formed(identity)

    assert mended(tree) == {
        "Bundle.entry[0].resource.id": (identity, after),
        "Bundle.entry[1].resource.subject.reference": (f"Patient/{identity}", f"Patient/{after}"),
        "Bundle.entry[2].resource.subject.reference": (
            f"Patient/{identity}/_history/v_2",
            f"Patient/{after}/_history/v_2",
        ),
    }


def test_a_url_that_an_entry_has_stays_and_another_servers_follows():
    url = f"{SERVER}/Patient/pat_1"
    tree = collection(
        {"fullUrl": url, "resource": {"resourceType": "Patient", "id": "pat_1"}},
        {"resource": stay(url)},
        {"resource": stay(f"{url}/_history/1")},
        {"resource": stay("https://other.example/Patient/pat_1")},
        {"resource": stay("Patient/pat_2")},
        {"resource": stay("Person/pat_1")},
    )
    mended(tree)

    assert tree["entry"][0]["fullUrl"] == url
    said = [entry["resource"]["subject"]["reference"] for entry in tree["entry"][1:]]
    assert said == [
        url,
        f"{url}/_history/1",
        "https://other.example/Patient/pat-1-5a3fad0bc142aa09",
        "Patient/pat_2",
        "Person/pat_1",
    ]


def test_what_is_contained_is_found_within_what_contains_it():
    ward = {"resourceType": "Organization", "id": "org_1"}
    other = {"resourceType": "Organization", "id": "#org_2", "partOf": {"reference": "#org_1"}}
    form = {
        "resourceType": "QuestionnaireResponse",
        "status": "completed",
        "questionnaire": "#form_1",
        "contained": [{"resourceType": "Questionnaire", "id": "form_1", "status": "active"}],
    }
    tree = collection(
        {"resource": stay("#x", contained=[ward, other], serviceProvider={"reference": "#org_2"})},
        {"resource": stay("#org_1")},
        {"resource": form},
    )
    mended(tree)
    first, second = (entry["resource"] for entry in tree["entry"][:2])

    assert first["contained"][0]["id"] == "org-1-dfc765491880219b"
    assert first["contained"][1]["partOf"] == {"reference": "#org-1-dfc765491880219b"}
    assert first["serviceProvider"] == {"reference": "#" + first["contained"][1]["id"]}
    assert second["subject"] == {"reference": "#org_1"}
    assert form["questionnaire"] == "#" + form["contained"][0]["id"]


def test_ids_everywhere_are_mended_and_those_of_elements_are_left():
    patient = {"resourceType": "Patient", "id": "p_1", "name": [{"id": "n_1", "family": "Okafor"}]}
    outcome = {
        "resourceType": "OperationOutcome",
        "id": "o_1",
        "issue": [{"severity": "error", "code": "invalid"}],
    }
    holder = {"resourceType": "Parameters", "id": "h_1", "parameter": [{"name": "x", "resource": patient}]}
    tree = collection({"resource": holder, "response": {"status": "200", "outcome": outcome}}) | {"id": "b_1"}

    assert [before for before, _ in mended(tree).values()] == ["b_1", "h_1", "o_1", "p_1"]
    assert patient["name"][0]["id"] == "n_1"


def test_where_the_new_id_is_anothers_both_stay_for_a_person():
    taken = {"resourceType": "Patient", "id": well_formed("pat_1")}
    tree = collection({"resource": {"resourceType": "Patient", "id": "pat_1"}}, {"resource": taken})
    before = copy.deepcopy(tree)

    assert [issue.path for issue in repair(tree).issues] == ["Bundle.entry[0].resource.id"]
    assert tree == before


def test_switched_off_for_a_trust_the_message_waits_as_before():
    tree = collection({"resource": {"resourceType": "Patient", "id": "pat_1"}})
    done = repair(tree, frozenset({"id-form"}))

    assert [issue.path for issue in done.issues] == ["Bundle.entry[0].resource.id"]
    assert done.changes == ()


def with_odd_ids(tree):
    """A worked example as a system writes it that calls its resources by type, underscore and number, and by nothing else."""
    tree, named = copy.deepcopy(tree), {}
    for number, entry in enumerate(tree["entry"]):
        resource = entry["resource"]
        resource["id"] = f"{resource['resourceType'].lower()}_{number}"
        named[entry.pop("fullUrl")] = f"{resource['resourceType']}/{resource['id']}"
    text = orjson.dumps(tree).decode()
    for url, reference in named.items():
        text = text.replace(f'"{url}"', f'"{reference}"')
    return orjson.loads(text)


def test_a_request_for_transfer_is_understood_whatever_its_ids_look_like():
    plain = understand(received(orjson.loads(REQUEST.read_bytes())), JOURNEY).meaning
    tree = with_odd_ids(orjson.loads(REQUEST.read_bytes()))
    told = explain(received(tree), JOURNEY).as_json()
    in_xml = understand(received(write_xml(tree), "application/fhir+xml"), JOURNEY).meaning
    meaning = understand(received(tree), JOURNEY).meaning

    assert told["outcome"] == "canonical"
    assert lost(tree, told) == set()
    assert meaning.kind is in_xml.kind is Kind.REQUEST
    for one in (meaning, in_xml):
        assert (one.person, one.refs, one.receiver) == (plain.person, plain.refs, plain.receiver)


@pytest.mark.parametrize("says_so", [True, False])
def test_in_stu3_too_and_explain_names_what_it_was_read_as(says_so):
    """Without a header it looks like R4 until it is read."""
    patient = {"resourceType": "Patient", "id": "pat_1"}
    encounter = stay("Patient/pat_1", id="enc_1", incomingReferral=[{"reference": "ReferralRequest/ref_1"}])
    referral = {"resourceType": "ReferralRequest", "id": "ref_1", "status": "active", "intent": "order"}
    referral["subject"] = {"reference": "Patient/pat_1"}
    entries = [{"resource": each} for each in (patient, encounter, referral)]
    content_type = "application/fhir+json; fhirVersion=3.0" if says_so else ""
    message = received(collection(*entries), content_type)
    found = read(message, Limits(), DIRECTORY["RA9"])

    assert isinstance(found, Read)
    assert found.dialect is Dialect.FHIR_STU3_JSON
    assert found.unmapped == ()
    patient, encounter, referral = (entry["resource"] for entry in found.tree["entry"])
    assert encounter["subject"] == referral["subject"] == {"reference": "Patient/" + patient["id"]}
    assert encounter["basedOn"] == [{"reference": "ServiceRequest/" + referral["id"]}]
    assert explain(message, JOURNEY).dialect == "fhir-stu3-json"


def test_a_record_that_a_link_names_by_its_id_is_the_record_of_that_id():
    """The record that was replaced is not in the message; in its own message its id was mended."""
    number = [{"system": "https://fhir.nhs.uk/Id/nhs-number", "value": "9990000018"}]
    link = [{"other": {"reference": "Patient/old_1"}, "type": "replaces"}]
    old = {"resourceType": "Patient", "id": "old_1", "identifier": number}
    new = {"resourceType": "Patient", "id": "new_1", "identifier": number, "link": link}
    of_old, of_new = (understand(received(each), JOURNEY).meaning for each in (old, new))

    assert not isinstance(of_old, Rejection)
    assert of_old.person.record in of_new.person.links[0].keys
    assert of_old.person.record != of_new.person.record


ids = (
    st.text(st.sampled_from("ab1_:.-#ä"), min_size=1, max_size=4)
    | st.integers(60, 90).map("z".__mul__)
    | st.sampled_from(("a/b", "Patient/a_", "a b", '"', "pat_1"))
)


@st.composite
def messages(draw):
    """A Bundle of patients and stays that refer to one another, rightly and wrongly, in every way there is."""
    patients = draw(st.lists(ids, min_size=1, max_size=4))
    entries = []
    for index, identity in enumerate(patients):
        entries.append({"resource": {"resourceType": "Patient", "id": identity}})
        if " " not in identity and draw(st.booleans()):
            entries[-1]["fullUrl"] = f"https://s{index}.example/Patient/{identity}"
    urls = [entry["fullUrl"] for entry in entries if "fullUrl" in entry]
    for _ in range(draw(st.integers(1, 4))):
        inner = draw(st.lists(ids, max_size=3))
        said = draw(st.sampled_from([*patients, *inner]) | ids)
        ways = [
            f"Patient/{said}",
            f"Patient/{said}/_history/1",
            f"{SERVER}/Patient/{said}",
            f"#{said}",
            f"Encounter/{said}",
        ]
        reference = draw(st.sampled_from([*ways, *urls]))
        encounter = stay(reference, id=draw(ids))
        if inner:
            encounter["contained"] = [{"resourceType": "Organization", "id": each} for each in inner]
        entries.append({"resource": encounter})
    return collection(*entries)


def led_to(tree):
    """Where each stay's subject leads, by position: of an entry, or of what the stay contains."""
    found = [
        (entry.get("fullUrl", f"urn:{index}"), entry["resource"]) for index, entry in enumerate(tree["entry"])
    ]
    resources = Resources([Entry(url, resource, "") for url, resource in found])
    for _, resource in found:
        if resource["resourceType"] != "Encounter":
            continue
        reference = resource["subject"]["reference"].partition("/_history/")[0]
        target = resources.resolve({"reference": reference}, inside=resource)
        places = [other for _, other in found] + resource.get("contained", [])
        yield reference, next((place for place, other in enumerate(places) if other is target), None)


@settings(max_examples=1000, deadline=None)
@given(messages())
def test_whatever_the_ids_references_lead_where_they_led_and_nothing_is_lost(tree):
    before, was = copy.deepcopy(tree), list(led_to(tree))
    done = repair(tree)

    assert done.issues == check(tree) == ()
    for (reference, led), (_, leads) in zip(was, led_to(tree), strict=True):
        assert leads == led or (led is None and reference.startswith("#"))
    changes = [{"before": change.before} for change in done.changes]
    assert lost(before, {"canonical": tree, "changes": changes, "unmapped": []}) == set()
    assert repair(tree).changes == ()
