"""However a Bundle was exchanged, what it says is the same."""

import copy
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest

from hub.domain.ids import EventId, OdsCode
from hub.domain.message import Canonical, Kind, Position, Received
from hub.domain.rejection import Rejection
from hub.journey.decide import Journey, understand
from hub.trusts import load_books, load_directory

SCHEMAS = Path(__file__).resolve().parents[3] / "schemas"
TRUSTS = load_directory(SCHEMAS)
JOURNEY = Journey(TRUSTS, books=load_books(SCHEMAS, TRUSTS))
SERVER = "https://epr.torbay.example/fhir"
OWN = "https://fhir.torbay.example/Id/visit"
NHS = "https://fhir.nhs.uk/Id/nhs-number"
PATIENT = {"resourceType": "Patient", "id": "p1", "identifier": [{"system": NHS, "value": "9990000018"}]}
STAY = {
    "resourceType": "Encounter",
    "id": "e1",
    "identifier": [{"system": OWN, "value": "V-1"}],
    "status": "in-progress",
    "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"},
    "subject": {"reference": "Patient/p1"},
    "serviceProvider": {
        "identifier": {"system": "https://fhir.nhs.uk/Id/ods-organization-code", "value": "RA9"}
    },
    "period": {"start": "2026-01-15T09:10:00Z"},
}
OUTCOME = {
    "resourceType": "OperationOutcome",
    "issue": [{"severity": "information", "code": "informational"}],
}


def entry(resource, **more):
    return {"fullUrl": f"{SERVER}/{resource['resourceType']}/{resource['id']}", "resource": resource, **more}


def understood(kind, *entries, **more):
    tree = copy.deepcopy({"resourceType": "Bundle", "type": kind, "entry": list(entries), **more})
    received = Received(
        EventId("e"),
        OdsCode("RA9"),
        Position("epr.ra9.events", 0, 0),
        {"x-request-id": "m1"},
        b"k",
        orjson.dumps(tree),
        datetime(2026, 1, 15, 12, tzinfo=UTC),
    )
    return understand(received, JOURNEY).meaning


def post(resource):
    return entry(resource, request={"method": "POST", "url": resource["resourceType"]})


def found(resource, mode="match"):
    return entry(resource, search={"mode": mode})


SAID = understood("collection", entry(STAY), entry(PATIENT))

EXCHANGED = {
    "transaction": understood("transaction", post(STAY), post(PATIENT)),
    "what depends on another comes first": understood("transaction", post(PATIENT), post(STAY)),
    "batch": understood("batch", post(STAY), post(PATIENT)),
    "upsert": understood(
        "transaction",
        entry(STAY, request={"method": "PUT", "url": f"Encounter?identifier={OWN}|V-1"}),
        post(PATIENT),
    ),
    "with a question between": understood(
        "batch", post(STAY), {"request": {"method": "GET", "url": "Patient/p1"}}, post(PATIENT)
    ),
    "searchset": understood(
        "searchset",
        found(STAY),
        found(PATIENT, "include"),
        total=1,
        link=[{"relation": "self", "url": f"{SERVER}/Encounter?_id=e1"}],
    ),
    "searchset with a word about the search first": understood(
        "searchset",
        {"resource": OUTCOME, "search": {"mode": "outcome"}},
        found(STAY),
        found(PATIENT, "include"),
    ),
    "what came along first": understood("searchset", found(PATIENT, "include"), found(STAY)),
}


def by_type(canonical):
    """The resources, without the URLs that a Bundle gives its entries by their place."""
    tree = orjson.loads(orjson.dumps(canonical.message))
    for each in tree["entry"]:
        if each["resource"]["resourceType"] == "Encounter":
            target = each["resource"]["subject"].pop("reference")
            assert target.startswith("urn:uuid:")
            assert [e["resource"]["id"] for e in tree["entry"] if e["fullUrl"] == target] == ["p1"]
    for each in tree["entry"]:
        del each["fullUrl"]
    return tree["type"], sorted(orjson.dumps(each) for each in tree["entry"])


@pytest.mark.parametrize("name", EXCHANGED)
def test_a_stay_means_the_same_however_it_was_exchanged(name):
    told = EXCHANGED[name]
    assert isinstance(told, Canonical), told
    assert (told.kind, told.event_type, told.encounter, told.occurred_at, told.person) == (
        SAID.kind,
        SAID.event_type,
        SAID.encounter,
        SAID.occurred_at,
        SAID.person,
    )
    assert by_type(told) == by_type(SAID)


def test_what_steered_the_exchange_is_kept_as_changes():
    changes = {
        each.path: each.before for each in EXCHANGED["upsert"].changes if each.rule.startswith("bundle-")
    }
    assert changes["Bundle.type"] == "transaction"
    assert changes["Bundle.entry[0].request"]["url"] == f"Encounter?identifier={OWN}|V-1"
    asked = {each.path: each.before for each in EXCHANGED["with a question between"].changes}
    assert asked["Bundle.entry[1]"] == {"request": {"method": "GET", "url": "Patient/p1"}}


@pytest.mark.parametrize(
    "reference",
    [
        "Patient/p1",
        f"{SERVER}/Patient/p1",
        "Patient/p1/_history/4",
        f"{SERVER}/Patient/p1/_history/4",
        "Patient?identifier=https%3A%2F%2Ffhir.nhs.uk%2FId%2Fnhs-number%7C9990000018",
        "Patient?identifier=https://fhir.nhs.uk/id/nhs-number|999 000 0018",
        "Patient?identifier=9990000018",
    ],
)
def test_every_way_to_refer_to_what_is_in_the_bundle(reference):
    told = understood("transaction", post({**STAY, "subject": {"reference": reference}}), post(PATIENT))
    stay, patient = told.resources
    assert stay["resource"]["subject"] == {"reference": patient["fullUrl"]}


def test_a_record_known_only_by_where_it_stands():
    """The server's URL names it; the resource has no id of its own."""
    patient = {name: value for name, value in PATIENT.items() if name != "id"}
    told = understood("searchset", found(STAY), {"fullUrl": f"{SERVER}/Patient/p1", "resource": patient})
    stay, patient = told.resources
    assert stay["resource"]["subject"]["reference"] == patient["fullUrl"]


def test_a_question_for_somebody_who_is_not_in_the_bundle_names_them():
    told = understood(
        "transaction", post({**STAY, "subject": {"reference": f"Patient?identifier={NHS}|9990000018"}})
    )
    assert told.person.nhs_number.digits == "9990000018"
    assert told.resources[0]["resource"]["subject"] == {"identifier": {"system": NHS, "value": "9990000018"}}
    assert "reference-question" in {each.rule for each in told.changes}


def test_a_question_beside_the_number_it_asks_for_says_nothing_more():
    said = {"system": NHS, "value": "9990000018"}
    told = understood(
        "transaction",
        post({**STAY, "subject": {"reference": f"Patient?identifier={NHS}|9990000018", "identifier": said}}),
    )
    assert told.resources[0]["resource"]["subject"] == {"identifier": said}
    assert "reference-question" in {each.rule for each in told.changes}


def test_a_question_that_two_answer_leads_to_neither():
    other = {**PATIENT, "id": "p2"}
    question = f"Patient?identifier={NHS}|9990000018"
    told = understood(
        "transaction", post({**STAY, "subject": {"reference": question}}), post(PATIENT), post(other)
    )
    assert told.resources[0]["resource"]["subject"] == {"identifier": {"system": NHS, "value": "9990000018"}}


def test_a_stay_is_that_of_the_patient_whose_number_it_says():
    """A mother and her child in one message; the stay names the child by number, not by URL."""
    child = {"resourceType": "Patient", "id": "p2", "identifier": [{"system": NHS, "value": "9990000115"}]}
    stay = {**STAY, "subject": {"identifier": child["identifier"][0]}}
    assert understood("collection", entry(stay), entry(PATIENT), entry(child)).person.nhs_number.digits == (
        "9990000115"
    )
    assert understood("collection", entry(stay), entry(PATIENT)).person.nhs_number.digits == "9990000115"


def test_a_stay_that_leads_to_none_of_two_patients_is_nobodys():
    child = {"resourceType": "Patient", "id": "p2", "identifier": [{"system": NHS, "value": "9990000115"}]}
    stay = {**STAY, "subject": {"reference": "Patient/p3"}}
    refused = understood("collection", entry(stay), entry(PATIENT), entry(child))
    assert isinstance(refused, Rejection)
    assert (refused.why, refused.at) == ("patient-missing", "Bundle.entry[0].resource.subject")
    alone = understood("collection", entry(stay), entry(PATIENT))
    assert alone.why == "patient-unidentified", "the only Patient is another one"
    unsaid = {name: said for name, said in STAY.items() if name != "subject"}
    refused = understood("collection", entry(unsaid), entry(PATIENT), entry(child))
    assert (refused.why, refused.at) == ("patient-missing", "Bundle.entry[0].resource.subject")


ORGANISATION = {
    "resourceType": "Organization",
    "id": "o",
    "identifier": [{"system": "https://fhir.nhs.uk/Id/ods-organization-code", "value": "RA9"}],
}
ROLE = {"resourceType": "PractitionerRole", "id": "r", "organization": {"reference": "#o"}}


@pytest.mark.parametrize(
    ("sender", "more"),
    [
        ({"sender": {"reference": "#o"}, "contained": [ORGANISATION]}, []),
        ({"sender": {"reference": "#r"}, "contained": [ROLE, ORGANISATION]}, []),
        ({"sender": {"reference": "PractitionerRole/r"}}, [{**ROLE, "contained": [ORGANISATION]}]),
    ],
)
def test_who_sent_it_may_be_contained(sender, more):
    header = {
        "resourceType": "MessageHeader",
        "id": "h",
        "eventCoding": {"code": "A01"},
        "source": {"endpoint": "https://epr.torbay.example"},
        **sender,
    }
    told = understood("message", *map(entry, [header, STAY, PATIENT, *more]))
    assert isinstance(told, Canonical), told
    assert told.sender_code == "RA9"


def test_a_role_that_leads_to_itself_is_nobodys():
    role = {**ROLE, "organization": {"reference": "PractitionerRole/r"}}
    stay = {**STAY, "serviceProvider": {"reference": "PractitionerRole/r"}}
    told = understood("collection", *map(entry, [stay, PATIENT, role]))
    assert isinstance(told, Canonical), told
    assert told.sender_code is None


@pytest.mark.parametrize(
    ("stay", "more", "at"),
    [
        ({"period": {"start": "2024-01-01T00:00:00Z"}}, {}, "Bundle.entry[0].resource.period.start"),
        (
            {"status": "finished", "period": {"end": "2027-01-01T00:00:00Z"}},
            {},
            "Bundle.entry[0].resource.period.end",
        ),
        ({"period": {}}, {"timestamp": "2024-01-01T00:00:00Z"}, "Bundle.timestamp"),
        (
            {
                "status": "finished",
                "period": {"start": "2026-01-15T09:10:00Z", "end": "2026-01-14T09:10:00Z"},
            },
            {},
            "Bundle.entry[0].resource.period",
        ),
    ],
)
def test_a_time_that_cannot_be_right_is_named_where_it_is_said(stay, more, at):
    refused = understood("collection", entry({**STAY, **stay}), entry(PATIENT), **more)
    assert isinstance(refused, Rejection)
    assert (refused.why, refused.at) == ("clock-implausible", at)


@pytest.mark.parametrize(
    ("stay", "more", "believed"),
    [
        ({}, {"timestamp": "2026-01-15T11:00:00Z"}, True),
        ({"meta": {"lastUpdated": "2026-01-15T11:00:00Z"}}, {}, True),
        ({}, {}, False),
        ({}, {"timestamp": "2016-05-01T11:00:00Z"}, False),
        ({}, {"timestamp": "2036-01-15T11:00:00Z"}, False),
        (
            {"status": "finished", "period": {"end": "2016-05-02T09:00:00Z"}},
            {"timestamp": "2026-01-15T11:00:00Z"},
            False,
        ),
    ],
)
def test_a_stay_that_goes_on_may_have_begun_ten_years_ago_if_the_message_was_made_lately(
    stay, more, believed
):
    long = {**STAY, "period": {"start": "2016-05-01T09:00:00Z"}, **stay}
    told = understood("collection", entry(long), entry(PATIENT), **more)
    if believed:
        assert isinstance(told, Canonical), told
        assert told.occurred_at == datetime(2016, 5, 1, 9, tzinfo=UTC)
    else:
        assert isinstance(told, Rejection)
        assert told.why == "clock-implausible"


HEADER = {
    "resourceType": "MessageHeader",
    "id": "h",
    "eventCoding": {"code": "A02"},
    "source": {"endpoint": "https://epr.torbay.example"},
    "sender": {"identifier": ORGANISATION["identifier"][0]},
}


def test_a_message_is_about_its_focus_whatever_comes_before():
    """A newborn's stay and its mother's: the header says whose news it is."""
    child = {"resourceType": "Patient", "id": "p2", "identifier": [{"system": NHS, "value": "9990000115"}]}
    hers = {**STAY, "id": "e2", "identifier": [{"system": OWN, "value": "V-2"}]}
    its = {
        **hers,
        "id": "e3",
        "identifier": [{"system": OWN, "value": "V-3"}],
        "subject": {"reference": "Patient/p2"},
    }
    for focus, number, stay in (("Encounter/e2", "9990000018", "V-2"), ("Encounter/e3", "9990000115", "V-3")):
        header = {**HEADER, "focus": [{"reference": focus}]}
        told = understood("message", *map(entry, [header, hers, its, PATIENT, child]))
        assert (told.person.nhs_number.digits, told.encounter.key) == (number, f"RA9|{OWN}|{stay}")


def test_a_message_about_something_else_is_no_news_of_the_stay_that_came_with_it():
    appointment = {
        "resourceType": "Appointment",
        "id": "a",
        "status": "booked",
        "participant": [{"actor": {"reference": "Patient/p1"}, "status": "accepted"}],
    }
    header = {**HEADER, "eventCoding": {"code": "booking-request"}, "focus": [{"reference": "Appointment/a"}]}
    refused = understood("message", *map(entry, [header, appointment, STAY, PATIENT]))
    assert (refused.why, refused.at) == ("message-not-supported", "MessageHeader.focus")
    assert "about Appointment" in refused.detail
    both = {**header, "focus": [{"reference": "Appointment/a"}, {"reference": "Encounter/e1"}]}
    assert isinstance(understood("message", *map(entry, [both, appointment, STAY, PATIENT])), Canonical)
    nowhere = {**header, "focus": [{"reference": "Appointment/b"}]}
    assert isinstance(understood("message", *map(entry, [nowhere, appointment, STAY, PATIENT])), Canonical)


def test_a_search_is_about_what_was_searched_for():
    """The stay's request came along; it is not asked for again."""
    request = {
        "resourceType": "ServiceRequest",
        "id": "r1",
        "status": "active",
        "intent": "order",
        "subject": {"reference": "Patient/p1"},
    }
    told = understood("searchset", found(request, "include"), found(PATIENT, "include"), found(STAY))
    assert told.kind is Kind.ENCOUNTER


@pytest.mark.parametrize(
    ("kind", "entries", "at"),
    [
        ("searchset", [found(STAY), found({**STAY, "id": "e2"})], "Bundle.entry[1].resource"),
        (
            "transaction",
            [post(STAY), {"request": {"method": "DELETE", "url": "Patient/p1"}}],
            "Bundle.entry[1].request.method",
        ),
        (
            "transaction",
            [
                post(STAY),
                {
                    "resource": {"resourceType": "Parameters"},
                    "request": {"method": "PATCH", "url": "Encounter/e1"},
                },
            ],
            "Bundle.entry[1].request.method",
        ),
        ("searchset", [{"resource": OUTCOME, "search": {"mode": "outcome"}}], "Bundle"),
        ("history", [entry(STAY, request={"method": "PUT", "url": "Encounter/e1"})], "Bundle.type"),
    ],
)  # fmt: skip
def test_what_tells_no_one_event_is_not_guessed_at(kind, entries, at):
    said = understood(kind, *entries)
    assert isinstance(said, Rejection)
    assert (said.why, said.at) == ("message-not-supported", at)


def test_a_prescription_is_no_news_of_the_patient_though_it_names_both():
    """As EPS writes its messages; the demographics would have gone on with the prescription beside them."""
    prescription = {
        "resourceType": "MedicationRequest",
        "id": "m",
        "status": "active",
        "intent": "order",
        "medicationCodeableConcept": {"text": "x"},
        "subject": {"reference": "Patient/p1"},
    }
    focus = [{"reference": "Patient/p1"}, {"reference": "MedicationRequest/m"}]
    header = {**HEADER, "eventCoding": {"code": "prescription-order"}, "focus": focus}
    refused = understood("message", *map(entry, [header, PATIENT, prescription]))
    assert isinstance(refused, Rejection)
    assert (refused.why, refused.at) == ("message-not-supported", "MessageHeader.focus")

    who = {**HEADER, "eventCoding": {"code": "A31"}, "focus": [focus[0], {"reference": "PractitionerRole/r"}]}
    told = understood("message", *map(entry, [who, PATIENT, {**ROLE, "contained": [ORGANISATION]}]))
    assert isinstance(told, Canonical), told


def test_what_is_not_supported_says_what_it_holds():
    """At night nobody looks into the message to learn why the hub has no use for it."""
    weight = {"resourceType": "Observation", "id": "o", "status": "final", "code": {"text": "weight"}}
    refused = understood("collection", entry(weight))
    assert (refused.why, refused.at, refused.detail) == (
        "message-not-supported",
        "Bundle",
        "It holds Observation.",
    )

    asked = {"resourceType": "ServiceRequest", "id": "s", "status": "active", "intent": "order"}
    asked["subject"] = {"reference": "Patient/p1"}
    refused = understood("message", *map(entry, [{**HEADER, "eventCoding": {"code": "O01"}}, asked, PATIENT]))
    assert (refused.why, refused.at) == ("message-not-supported", "MessageHeader.event")
    assert "servicerequest-request" in refused.detail


def test_a_bare_stay_that_says_of_what_type_it_is_is_no_bundle():
    """`type` of a Bundle is a code; that of a stay is a list."""
    stay = {
        **STAY,
        "subject": {"identifier": PATIENT["identifier"][0]},
        "type": [{"coding": [{"system": "http://snomed.info/sct", "code": "183452005"}]}],
    }
    received = Received(
        EventId("e"),
        OdsCode("RA9"),
        Position("epr.ra9.events", 0, 0),
        {"x-request-id": "m1"},
        b"k",
        orjson.dumps(stay),
        datetime(2026, 1, 15, 12, tzinfo=UTC),
    )
    told = understand(received, JOURNEY).meaning
    assert isinstance(told, Canonical), told
    assert told.message["type"] == stay["type"]
