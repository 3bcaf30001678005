"""What is too deep to read, what says a thing twice, however the text is written, and what is in another version of FHIR."""

import json
from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.dialects import Dialect
from hub.domain.ids import EventId, OdsCode
from hub.domain.message import Position, Received
from hub.domain.rejection import Rejection, Why
from hub.fhir.tree import deeper_than
from hub.journey.read import Limits, Read, _parse, read
from hub.trusts import load_directory
from tests.unit.journey.test_nothing_lost import SCHEMAS

TRUST = load_directory(SCHEMAS)["RA9"]
AT = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)
LIMITS = Limits(depth_max=6)


def is_too_deep(raw: bytes) -> bool:
    received = Received(EventId("1"), OdsCode("RA9"), Position("epr.ra9.events", 0, 0), {}, b"k", raw, AT)
    found = read(received, LIMITS, TRUST)
    return isinstance(found, Rejection) and found.why is Why.MESSAGE_TOO_DEEP


trees = st.recursive(
    st.none() | st.integers(0, 9) | st.sampled_from(("", "{{{{{{{{", "]]]]", '"}}', "\\")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab{["), inner, max_size=3),
    max_leaves=12,
)


@given(trees, st.lists(st.sampled_from(("a", "{", None)), min_size=4, max_size=9))
def test_only_a_tree_that_is_deeper_than_the_limit_is_too_deep(tree, around):
    for name in around:
        tree = [tree] if name is None else {name: tree}
    for raw in (orjson.dumps(tree), orjson.dumps(tree, option=orjson.OPT_INDENT_2)):
        assert is_too_deep(raw) == deeper_than(tree, LIMITS.depth_max)


@pytest.mark.parametrize(("opened", "closed"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")])
def test_the_limit_is_where_it_is_said_to_be(opened, closed):
    each = opened.count(b"[") + opened.count(b"{")
    for times in range(1, 12):
        raw = opened * times + b"1" + closed * times
        assert is_too_deep(raw) == (each * times > LIMITS.depth_max + 1), raw


@st.composite
def objects(draw):
    """A JSON text of objects in objects, some of which have a name twice, and whether one has."""
    twice = False

    def written(depth):
        nonlocal twice
        names = draw(st.lists(st.sampled_from(("a", "b", '"', "\u00e9")), max_size=3))
        twice = twice or len(set(names)) < len(names)
        members = []
        for name in names:
            value = (
                written(depth - 1)
                if depth
                else draw(st.sampled_from(("1", '"x"', '"\\u0022"', '"\\""', "[]")))
            )
            gap = draw(st.sampled_from(("", " ", "\n")))
            quoted = json.dumps(name, ensure_ascii=draw(st.booleans()))
            members.append(f"{quoted}{gap}:{gap}{value}")
        return "{" + ",".join(members) + "}"

    return written(2), twice


@given(objects())
def test_no_property_is_lost_because_it_comes_twice(given_text):
    """The last would count with one parser and the first with another: the sender is told which it is."""
    text, twice = given_text
    found = _parse(text.encode(), Limits())
    assert isinstance(found, Rejection) == twice
    assert not twice or found.why is Why.STRUCTURE_INVALID


def test_which_property_comes_twice_is_said():
    raw = b'{"resourceType":"Patient","gender":"male","name":[{"family":"A"}],"gender":"female"}'
    found = _parse(raw, Limits())
    assert (found.why, found.at) == (Why.STRUCTURE_INVALID, "gender")


def _stay(**elements):
    return {
        "resourceType": "Encounter",
        "identifier": [{"system": "https://fhir.torbay.example/Id/visit", "value": "V-1"}],
        "status": "in-progress",
        "class": {"code": "IMP"},
        "subject": {"identifier": {"system": "https://fhir.nhs.uk/Id/nhs-number", "value": "9990000018"}},
    } | elements


R5 = {
    "its period": _stay(actualPeriod={"start": "2026-01-15T09:10:00Z"}),
    "its admission": _stay(admission={"dischargeDisposition": {"text": "another hospital"}}),
    "its reason": _stay(reason=[{"value": [{"concept": {"text": "chest pain"}}]}]),
    "its status": _stay(status="discharged", actualPeriod={"end": "2026-01-15T09:10:00Z"}),
    "what it asks for": {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "subject": {"display": "x"},
        "code": {"concept": {"text": "transfer"}},
    },
}


def _read(tree, content_type=""):
    position = Position("epr.ra9.events", 0, 0)
    headers = {"content-type": content_type} if content_type else {}
    return read(
        Received(EventId("1"), OdsCode("RA9"), position, headers, b"k", orjson.dumps(tree), AT),
        Limits(),
        TRUST,
    )


@pytest.mark.parametrize("name", R5)
def test_r5_is_not_read_as_r4_without_what_r4_does_not_know(name):
    """The stay would have been taken as beginning now, and the request would ask for nothing."""
    refused = _read(R5[name])
    assert isinstance(refused, Rejection)
    assert refused.why is Why.DIALECT_NOT_SUPPORTED
    assert "fhir-r5" in refused.detail


def test_a_vendors_own_element_does_not_make_it_another_version():
    found = _read(_stay(admission={"ward": "Ash"}, concept="x", reason="fell", role=["nurse"]))
    assert isinstance(found, Read)
    assert {each.path for each in found.unmapped} == {
        "Encounter.admission",
        "Encounter.concept",
        "Encounter.reason",
        "Encounter.role",
    }


def test_stu3_is_read_as_stu3_though_nothing_says_so():
    """Only STU3 has these elements; one of them names the transfer."""
    tree = _stay(
        reason=[{"text": "chest pain"}],
        incomingReferral=[{"reference": "ReferralRequest/7"}],
        diagnosis=[{"condition": {"display": "x"}, "role": {"text": "admission"}}],
    )
    for content_type in ("", "application/fhir+json; fhirVersion=4.0"):
        found = _read(tree, content_type)
        assert isinstance(found, Read)
        assert found.dialect is Dialect.FHIR_STU3_JSON
        assert found.unmapped == ()
        assert found.tree["reasonCode"] == [{"text": "chest pain"}]
        assert found.tree["basedOn"] == [{"reference": "ServiceRequest/7"}]
        assert found.tree["diagnosis"][0]["use"] == {"text": "admission"}


def test_what_r4_refuses_and_stu3_does_not_is_stu3():
    """In R4 the status of an allergy is a CodeableConcept."""
    allergy = {
        "resourceType": "AllergyIntolerance",
        "clinicalStatus": "active",
        "verificationStatus": "confirmed",
    }
    tree = {"resourceType": "Bundle", "type": "collection"}
    tree["entry"] = [{"resource": _stay()}, {"resource": allergy | {"patient": {"display": "x"}}}]
    found = _read(tree)
    assert isinstance(found, Read)
    status = found.tree["entry"][1]["resource"]["clinicalStatus"]
    assert status["coding"][0]["code"] == "active"

    wrong = allergy | {"patient": {"display": "x"}, "criticality": "worrying"}
    refused = _read(wrong)
    assert isinstance(refused, Rejection)
    assert refused.at == "AllergyIntolerance.clinicalStatus"
