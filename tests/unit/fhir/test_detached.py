"""A resource out of its message."""

from hub.fhir.detached import detached

PATIENT = {"resourceType": "Patient", "identifier": [{"system": "https://x.example", "value": "7"}]}
WARD = {"resourceType": "Location", "name": "Taw Ward"}
ENTRIES = [{"fullUrl": "urn:uuid:p", "resource": PATIENT}, {"fullUrl": "urn:uuid:w", "resource": WARD}]


def test_each_reference_says_what_it_can_without_the_message():
    stay = {
        "resourceType": "Encounter",
        "subject": {"reference": "urn:uuid:p"},
        "location": [{"location": {"reference": "urn:uuid:w"}}, {"location": {"reference": "urn:uuid:w", "display": "Taw"}}],
        "partOf": {"reference": "Encounter/9"},
        "account": [{"reference": "https://ehr.example/Account/1"}],
        "serviceProvider": {"reference": "#org"},
        "contained": [{"resourceType": "Organization", "id": "org", "name": "Trust"}],
    }  # fmt: skip
    alone = detached(stay, ENTRIES, {})
    assert alone == {
        "resourceType": "Encounter",
        "subject": {"type": "Patient", "identifier": PATIENT["identifier"][0]},
        "location": [{"location": {"type": "Location", "display": "Taw"}}],
        "account": [{"reference": "https://ehr.example/Account/1"}],
        "serviceProvider": {"reference": "#org"},
        "contained": [{"resourceType": "Organization", "id": "org", "name": "Trust"}],
    }
    assert detached(stay, ENTRIES, {"Patient": "Patient/1"})["subject"] == {"reference": "Patient/1"}


def test_gaps_of_a_list_keep_their_place():
    name = {"given": ["A", None], "_given": [None, {"id": "x"}]}
    assert detached({"resourceType": "Patient", "name": [name]}, [], {})["name"] == [name]
