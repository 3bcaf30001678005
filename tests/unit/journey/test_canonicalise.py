"""One form for identifiers and times; the meaning stays, and every change is remembered."""

import copy
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.fhir.systems import NHS_NUMBER, ODS_ORGANISATION
from hub.fhir.tree import identifiers
from hub.journey import canonicalise as canonical_form
from hub.journey.canonicalise import _Answers, _refer_otherwise, canonicalise, instant, to_utc

_DIGITS = st.text("0123456789", max_size=9)
_OFFSETS = st.integers(-14 * 60, 14 * 60).map(
    lambda m: f"{'-' if m < 0 else '+'}{abs(m) // 60:02d}:{abs(m) % 60:02d}"
)


def _url(index: int) -> str:
    return f"urn:uuid:00000000-0000-7000-8000-{index:012d}"


_FIRST, _LAST = datetime.fromisoformat("1001-01-01"), datetime.fromisoformat("9998-01-01")
_TIMES = st.datetimes(_FIRST, _LAST).map(lambda d: d.replace(microsecond=0).isoformat())


@given(_TIMES, _DIGITS, _OFFSETS)
def test_the_same_instant_and_the_fraction_kept(head, digits, offset):
    fraction = f".{digits}" if digits else ""
    said = to_utc(head + fraction + offset)

    assert said.endswith(f"{fraction}Z")
    assert datetime.fromisoformat(said[:19]).replace(tzinfo=UTC) == datetime.fromisoformat(head + offset)


@given(_TIMES, _DIGITS, _OFFSETS)
def test_saying_it_twice_changes_nothing_more(head, digits, offset):
    once = to_utc(head + (f".{digits}" if digits else "") + offset)

    assert to_utc(once) == once


@pytest.mark.parametrize(
    "text",
    [
        "2026",
        "2026-11",
        "2026-11-23",
        "",
        "soon",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-12:00",
        "2026-13-45T00:00:00+00:00",
    ],
)
def test_what_is_no_instant_stays_as_it_is(text):
    assert to_utc(text) == text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2026-11-23T10:00:00+01:00", datetime(2026, 11, 23, 9, tzinfo=UTC)),
        ("2026-11-23T09:00:00Z", datetime(2026, 11, 23, 9, tzinfo=UTC)),
        ("2026-11-23T09:00:00.123456789Z", datetime(2026, 11, 23, 9, 0, 0, 123456, tzinfo=UTC)),
        ("2026-11-23", None),
        ("2026-11-23T09:00:00.5", None),
        ("2026-11-23T09:00:60Z", None),
        (None, None),
        (20261123, None),
    ],
)
def test_instants(text, found):
    assert instant(text) == found


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"])
def test_an_instant_outside_the_calendar_is_its_edge(text):
    found = instant(text)

    assert abs(found - datetime.fromisoformat(text[:19]).replace(tzinfo=UTC)) <= timedelta(hours=14)


def test_identifiers_in_their_one_form_and_every_change_remembered():
    tree = {
        "resourceType": "Patient",
        "identifier": [
            {"system": "http://fhir.nhs.net/Id/nhs-number", "value": "999 000 0018"},
            {"system": "urn:local", "value": "a b"},
        ],
        "managingOrganization": {"identifier": {"system": ODS_ORGANISATION, "value": " ra9"}},
        "meta": {"lastUpdated": "2026-11-23T10:00:00.50+01:00"},
    }
    before = copy.deepcopy(tree)
    changes = canonicalise(tree, _url)

    assert tree["identifier"][0] == {"system": NHS_NUMBER, "value": "9990000018"}
    assert tree["identifier"][1] == before["identifier"][1]
    assert tree["managingOrganization"]["identifier"]["value"] == "RA9"
    assert tree["meta"]["lastUpdated"] == "2026-11-23T09:00:00.50Z"
    assert sorted((c.path, c.rule) for c in changes) == [
        ("Patient.identifier[0].system", "identifier-system"),
        ("Patient.identifier[0].value", "nhs-number-spaces"),
        ("Patient.managingOrganization.identifier.value", "ods-case"),
        ("Patient.meta.lastUpdated", "time-to-utc"),
    ]
    assert canonicalise(tree, _url) == ()


def test_references_inside_a_bundle_lead_to_its_entries_whatever_they_were_called():
    patient = {"resourceType": "Patient", "id": "77"}
    stay = {"resourceType": "Encounter", "id": "5", "subject": {"reference": "Patient/77"}}
    elsewhere = {"reference": "Practitioner/9"}
    task = {
        "resourceType": "Task",
        "for": {"reference": "https://epr.example/fhir/Patient/77"},
        "encounter": {"reference": "Encounter/5"},
        "requester": elsewhere,
    }
    tree = {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [
            {"fullUrl": "https://epr.example/fhir/Patient/77", "resource": patient},
            {"resource": stay},
            {"fullUrl": "urn:uuid:9b2c1d2e-0000-4000-8000-000000000001", "resource": task},
        ],
    }

    changes = canonicalise(tree, _url)

    assert [entry["fullUrl"] for entry in tree["entry"]] == [
        _url(0),
        _url(1),
        "urn:uuid:9b2c1d2e-0000-4000-8000-000000000001",
    ]
    assert stay["subject"]["reference"] == task["for"]["reference"] == _url(0)
    assert task["encounter"]["reference"] == _url(1)
    assert elsewhere == {"reference": "Practitioner/9"}
    assert {(change.path, change.before) for change in changes} == {
        ("Bundle.entry[0].fullUrl", "https://epr.example/fhir/Patient/77"),
        ("Bundle.entry[1].resource.subject.reference", "Patient/77"),
        ("Bundle.entry[2].resource.for.reference", "https://epr.example/fhir/Patient/77"),
        ("Bundle.entry[2].resource.encounter.reference", "Encounter/5"),
    }


_SAID = st.lists(
    st.sampled_from(("Patient", "Patient/1", "/", "/_history/", "?identifier=", "urn:x|", "1", "urn:uuid:", "https://a/", "#")),
    max_size=5,
)  # fmt: skip


@given(_SAID.map("".join))
def test_a_reference_is_looked_at_twice_only_where_that_can_matter(said):
    """What has neither a version nor a question in it means nothing else than it says."""
    bundle = {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [
            {"fullUrl": "https://a/Patient/1", "resource": {"resourceType": "Patient", "id": "1", "identifier": [{"system": "urn:x", "value": "1"}]}},
            {"fullUrl": _url(1), "resource": {"resourceType": "Encounter", "subject": {"reference": said}}},
        ],
    }  # fmt: skip
    whole = copy.deepcopy(bundle)
    changes = [each for each in canonicalise(whole, _url) if each.rule.startswith("reference")]
    urls = {"https://a/Patient/1": _url(0), "Patient/1": _url(0)}
    alone = copy.deepcopy(whole["entry"][1])
    alone["resource"]["subject"] = {"reference": said}
    again = []
    if said not in urls:
        _refer_otherwise(alone["resource"]["subject"], (None, "subject"), _Answers(whole), urls, again)
        assert alone["resource"]["subject"] == whole["entry"][1]["resource"]["subject"]
        assert [(each.before, each.after, each.rule) for each in again] == [
            (each.before, each.after, each.rule) for each in changes
        ]
    else:
        assert whole["entry"][1]["resource"]["subject"] == {"reference": _url(0)}


def test_many_questions_are_answered_in_one_pass(monkeypatch):
    """As Synthea and others write transactions: each reference asks for a number. No entry is looked at again for each of them."""
    count = 50
    asked = [
        {"resource": {"resourceType": "Basic", "subject": {"reference": f"Patient?identifier=urn:x|{n}"}}}
        for n in range(count)
    ]
    known = [
        {"resource": {"resourceType": "Patient", "identifier": [{"system": "urn:x", "value": str(n)}]}}
        for n in range(count)
    ]
    looked_at = []
    monkeypatch.setattr(
        canonical_form, "identifiers", lambda resource: looked_at.append(1) or identifiers(resource)
    )
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [*asked, *known]}
    canonicalise(bundle, _url)
    assert len(looked_at) == 2 * count
    assert all(
        bundle["entry"][n]["resource"]["subject"] == {"reference": _url(count + n)} for n in range(count)
    )
