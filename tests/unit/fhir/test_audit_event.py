"""Audit entries as FHIR AuditEvents: sound whatever they hold, and nothing in them that should not be."""

from itertools import product

import orjson
import pytest
from fhir.resources.R4B.auditevent import AuditEvent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.audit.catalogue import CATALOGUE
from hub.audit.entries import Code, Outcome
from hub.fhir.audit_event import BALP_DISCLOSURE, PARS, KnownAs, LocalNumber, Observer, audit_event
from hub.fhir.structure import check
from hub.fhir.systems import (
    HUB_AUDIT_ENTRY,
    HUB_EVENT,
    HUB_OPERATOR,
    HUB_ORGANISATION,
    HUB_REQUEST,
    HUB_ROLE,
    HUB_USER,
    NHS_NUMBER,
    ODS_ORGANISATION,
    PRODUCT,
    SDS_ROLE_PROFILE,
    SDS_USER,
)
from tests.harness.audit_samples import BY_LOCAL_NUMBER, BY_NUMBER, HUB, NAMES, NOBODY_KNOWN, entry

SLICES = {"Organization": (1, 2), "Practitioner": (0, 1), "PractitionerRole": (0, 1), "Endpoint": (0, 1)}
EITHER_WAY = (
    {"person": BY_NUMBER},
    {"user_id": "555000000017"},
    {"role_id": "555000000025"},
    {"client_id": "RH8|epr"},
    {"counterpart": "RH8"},
    {"trust": "RA9"},
)


def shown(code=Code.RECORD_READ, person=None, **columns):
    return audit_event(entry(code, **columns), person, NAMES, HUB)


def who(event, kind):
    return [each["who"] for each in event["agent"] if each["who"]["type"] == kind]


def entity(event, code):
    return [each for each in event["entity"] if each["type"]["code"] == code]


def told(event):
    return {each["type"]: each["valueString"] for each in entity(event, "XrequestId")[0]["detail"]}


@pytest.mark.parametrize("code", Code)
def test_every_code_is_sound_whoever_and_whatever_is_known(code):
    for chosen in product((False, True), repeat=len(EITHER_WAY)):
        given_ = {
            k: v for is_in, part in zip(chosen, EITHER_WAY, strict=True) if is_in for k, v in part.items()
        }
        event = shown(code, **given_)
        assert check(event) == ()
        AuditEvent.model_validate(event)
        kinds = [each["who"]["type"] for each in event["agent"]]
        assert all(low <= kinds.count(kind) <= high for kind, (low, high) in SLICES.items())
        assert set(kinds) <= SLICES.keys()
        assert sum(each["requestor"] for each in event["agent"]) <= 1
        assert len(entity(event, "1")) == len(entity(event, "XrequestId")) == 1


TEXT = st.text(max_size=12)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    detail=st.dictionaries(
        TEXT | st.sampled_from(["why", "topic", "claimed", "interaction"]), ANYTHING, max_size=5
    ),
    request_id=TEXT,
    user_id=TEXT,
    role_id=TEXT,
    client_id=TEXT,
    local=st.builds(LocalNumber, st.just("RA9"), TEXT, TEXT),
)
def test_whatever_a_sender_wrote_makes_a_sound_resource(detail, local, **columns):
    for code in (Code.MESSAGE_REJECTED, Code.DISCLOSURE_SENT):
        event = shown(code, KnownAs(local=local), trust="RA9", counterpart="RH8", detail=detail, **columns)
        assert check(event) == ()
        AuditEvent.model_validate(orjson.loads(orjson.dumps(event)))


def test_the_same_entry_is_the_same_bytes():
    detail = {"b": 1, "a": {"y": 2, "x": [1, 2]}}
    backwards = {"a": {"x": [1, 2], "y": 2}, "b": 1}
    assert orjson.dumps(shown(detail=detail)) == orjson.dumps(shown(detail=backwards))


def test_what_is_changed_in_one_is_not_changed_in_the_next():
    first = shown()
    before = orjson.dumps(first)
    for part in (first["type"], first["subtype"][0], first["meta"], first["entity"][0]["type"]):
        part.clear()
    assert orjson.dumps(shown()) == before


def test_it_claims_the_national_profile_and_for_a_disclosure_the_international_one():
    assert shown()["meta"]["profile"] == [PARS]
    sent = shown(Code.DISCLOSURE_SENT, BY_NUMBER, trust="RA9", counterpart="RH8", client_id="RH8|epr")
    assert sent["meta"]["profile"] == [PARS, BALP_DISCLOSURE]
    sender, receiver, hub = sent["agent"]
    assert (sender["who"]["identifier"]["value"], sender["requestor"]) == ("RA9", True)
    assert receiver["type"]["coding"][0]["code"] == "110152"
    assert receiver["network"] == {"address": f"{ODS_ORGANISATION}|RH8", "type": "5"}
    assert hub["type"]["coding"][0]["code"] == "110153"
    assert hub["who"] == sent["source"]["observer"]
    assert told(sent)["client"] == "RH8|epr"
    # Where nobody is named as the receiver it could not meet that profile.
    assert shown(Code.DISCLOSURE_SENT)["meta"]["profile"] == [PARS]


class TestWho:
    def test_a_trust_by_its_code_and_name_and_whoever_it_was_done_to(self):
        acted, other = who(shown(trust="RA9", counterpart="RH8"), "Organization")
        assert acted == {
            "type": "Organization",
            "identifier": {"system": ODS_ORGANISATION, "value": "RA9"},
            "display": NAMES["RA9"],
        }
        assert other["identifier"]["value"] == "RH8"

    @pytest.mark.parametrize("trust", [None, "hub", "HUB"])
    def test_the_hub_itself(self, trust):
        event = shown(Code.TIMER_ESCALATED, trust=trust)
        assert [each["identifier"] for each in who(event, "Organization")] == [
            {"system": HUB_ORGANISATION, "value": HUB.site}
        ]
        assert event["agent"][0]["requestor"] is True
        assert who(event, "Endpoint")[0]["identifier"] == {"system": PRODUCT, "value": HUB.product}

    def test_the_hub_by_the_code_of_who_runs_it(self):
        event = audit_event(entry(Code.BRAKE_PULLED), None, NAMES, Observer(organisation="X26"))
        assert who(event, "Organization")[0]["identifier"] == {"system": ODS_ORGANISATION, "value": "X26"}

    @pytest.mark.parametrize(
        ("user", "trust", "system", "expected"),
        [
            ("555000000017", "RA9", "rest", SDS_USER),
            ("555000000017", None, "cli", SDS_USER),
            ("j.bloggs", "RA9", "rest", HUB_USER),
            ("ops", "RA9", "cli", HUB_OPERATOR),
            ("ops", None, "worker", HUB_OPERATOR),
        ],
    )
    def test_a_person_by_the_number_they_signed_in_with(self, user, trust, system, expected):
        (found,) = who(shown(user_id=user, trust=trust, system=system), "Practitioner")
        assert (found["identifier"]["system"], found["identifier"]["value"]) == (expected, user)
        assert "display" not in found
        # Two trusts may use one name.
        assert ("assigner" in found["identifier"]) is (expected == HUB_USER)

    @pytest.mark.parametrize(
        ("role", "system"), [("555000000025", SDS_ROLE_PROFILE), ("bed-manager", HUB_ROLE)]
    )
    def test_a_role(self, role, system):
        (found,) = who(shown(role_id=role), "PractitionerRole")
        assert found["identifier"] == {"system": system, "value": role}

    def test_a_client_is_the_system_it_came_by(self):
        (found,) = who(shown(client_id="RH8|epr", trust="RH8"), "Endpoint")
        assert (found["identifier"]["system"], found["identifier"]["value"]) == (PRODUCT, "RH8|epr")

    @pytest.mark.parametrize(
        ("columns", "expected"),
        [
            ({"user_id": "ops", "trust": "RA9", "client_id": "c"}, "Practitioner"),
            ({"trust": "RA9", "client_id": "c"}, "Organization"),
            ({"client_id": "c"}, "Endpoint"),
            ({}, "Organization"),
        ],
    )
    def test_one_of_them_asked_for_it(self, columns, expected):
        asked = [each["who"]["type"] for each in shown(**columns)["agent"] if each["requestor"]]
        assert asked == [expected]

    def test_nobody_asked_where_nobody_proved_who_they_are(self):
        event = shown(Code.AUTHENTICATION_FAILED, outcome=Outcome.SERIOUS_FAILURE.value)
        assert not any(each["requestor"] for each in event["agent"])


class TestPatient:
    @staticmethod
    def number(code=Code.RECORD_READ, person=None, **columns):
        return entity(shown(code, person, **columns), "1")[0]["what"]["identifier"]

    def test_the_nhs_number_and_nothing_else(self):
        both = KnownAs("9990000018", LocalNumber("RA9", "https://torbay.example/Id/mrn", "M-1"))
        event = shown(Code.RECORD_READ, both, person_id="person-1", transfer_id="transfer-1", trust="RH8")
        assert entity(event, "1")[0]["what"] == {
            "type": "Patient",
            "identifier": {"system": NHS_NUMBER, "value": "9990000018"},
        }
        written = orjson.dumps(event)
        assert written.count(b"9990000018") == 1
        assert b"M-1" not in written
        assert b"person-1" not in written

    def test_without_one_the_hospitals_own(self):
        assert self.number(person=BY_LOCAL_NUMBER) == {
            "system": "https://torbay.example/Id/mrn",
            "value": "M-1",
            "assigner": {"type": "Organization", "identifier": {"system": ODS_ORGANISATION, "value": "RA9"}},
        }

    def test_a_hospitals_word_for_a_system_becomes_a_uri(self):
        found = self.number(person=KnownAs(local=LocalNumber("RA9", "case notes", "1")))
        assert found["system"].endswith("/Id/patient/RA9/case%20notes")

    @pytest.mark.parametrize(
        ("code", "person", "person_id", "reason"),
        [
            (Code.CONFIG_CHANGED, None, None, "not-applicable"),
            (Code.AUDIT_READ, None, None, "not-applicable"),
            (Code.AUDIT_READ, None, "person-1", "unknown"),
            (Code.MESSAGE_RECEIVED, None, None, "unknown"),
            (Code.RECORD_READ, NOBODY_KNOWN, "person-1", "unknown"),
        ],
    )
    def test_without_any_it_says_why(self, code, person, person_id, reason):
        found = self.number(code, person, person_id=person_id)
        assert "value" not in found
        assert found["system"] == NHS_NUMBER
        assert found["_value"]["extension"][0]["valueCode"] == reason


class TestWhat:
    def test_the_transaction_is_the_request_else_the_event_else_the_entry(self):
        def transaction(**columns):
            return entity(shown(**columns), "XrequestId")[0]["what"]["identifier"]

        assert transaction(request_id="r", event_id="e") == {"system": HUB_REQUEST, "value": "r"}
        assert transaction(event_id="e") == {"system": HUB_EVENT, "value": "e"}
        assert transaction() == {"system": HUB_AUDIT_ENTRY, "value": "7"}

    def test_the_detail_of_an_entry_is_that_of_the_transaction(self):
        detail = {
            "version": 3,
            "flags": ["a", "b"],
            "found": True,
            "nothing": None,
            "none": [],
            "routes": [{"topic": "t", "to": "RH8"}],
        }
        event = shown(transfer_id="t-1", event_id="e-1", system="dispatcher", detail=detail)
        assert told(event) == {
            "system": "dispatcher",
            "transfer": "t-1",
            "event": "e-1",
            "flags": "a, b",
            "found": "true",
            "routes": "to=RH8 topic=t",
            "version": "3",
        }

    def test_who_a_message_claimed_to_be_from(self):
        event = shown(Code.ORGANISATION_MISMATCH, trust="RA9", detail={"claimed": "RH8"})
        (claimed,) = entity(event, "3")
        assert claimed["what"]["identifier"] == {"system": ODS_ORGANISATION, "value": "RH8"}
        assert who(event, "Organization")[0]["identifier"]["value"] == "RA9"

    @pytest.mark.parametrize(
        ("detail", "name"),
        [
            ({"topic": "epr.ra9.events"}, "Topic epr.ra9.events"),
            ({"interaction": "Task.read"}, "Interaction Task.read"),
        ],
    )
    def test_the_endpoint_where_there_is_one(self, detail, name):
        (endpoint,) = entity(shown(detail=detail), "Endpoint")
        assert endpoint["name"] == name
        assert [each["type"] for each in endpoint["detail"]] == ["productIdentifier", "interactionIdentifier"]
        assert entity(shown(), "Endpoint") == []


class TestHow:
    def test_the_outcome_says_a_reason_by_its_code_only(self):
        refused = shown(outcome=Outcome.MINOR_FAILURE, detail={"why": "transition-denied"})
        assert (refused["outcome"], refused["outcomeDesc"]) == ("4", "transition-denied")
        assert "outcomeDesc" not in shown(detail={"why": "Mrs Okafor was moved"})

    def test_when_it_happened_and_when_it_was_written(self):
        row = entry(Code.DEPARTED)
        event = shown(Code.DEPARTED, occurred_at=row["at"])
        assert event["recorded"] == event["period"]["start"] == event["period"]["end"]
        assert event["recorded"] == "2025-03-04T09:10:11.123Z"
        assert "period" not in shown()

    @pytest.mark.parametrize(
        ("code", "detail", "purpose"),
        [
            (Code.TRANSFER_ACCEPTED, {}, "TREAT"),
            (Code.RECORD_READ, {"glass_broken": True}, "BTG"),
            (Code.GLASS_REVIEWED, {}, "BTG"),
            (Code.AUDIT_READ, {}, "HOPERAT"),
            (Code.BRAKE_PULLED, {}, "HSYSADMIN"),
        ],
    )
    def test_why(self, code, detail, purpose):
        assert shown(code, detail=detail)["purposeOfEvent"][0]["coding"][0]["code"] == purpose

    @pytest.mark.parametrize("code", Code)
    def test_the_hubs_own_code_comes_first(self, code):
        assert shown(code)["subtype"][0]["code"] == code.value
        assert shown(code)["type"]["code"] == CATALOGUE[code].kind.value

    def test_a_code_that_nobody_knows_is_refused(self):
        with pytest.raises(ValueError):
            audit_event({**entry(Code.ROUTED), "code": "no-such"}, None, NAMES, HUB)
