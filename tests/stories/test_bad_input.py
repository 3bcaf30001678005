"""What hospitals send that they should not. Each ends in one disposition, with the reason, the place and who mends it."""

import uuid
from dataclasses import replace
from datetime import timedelta

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.demo.epr import Message
from hub.demo.people import MARSHWIGGLE
from hub.domain.rejection import RULINGS, Disposition, Why
from hub.fhir.systems import NHS_NUMBER
from hub.journey.normalise import Rules
from hub.store import tables as t
from tests.stories.conftest import TRUSTS, edited, leaks, resources

AT = "MessageHeader"


def request(hospital, **more):
    told = {
        "to": "RH8",
        "request_number": "TR-1",
        "encounter_number": "V-1",
        "at": hospital.hub.clock(),
    } | more
    return hospital.epr.asks_to_transfer(MARSHWIGGLE, **told)


async def must_be(hub, outcome, why, at=None):
    """Refused for this reason, and said so: in the message's row, in the receipt, in the audit."""
    ruling = RULINGS[Why(why)]
    assert (outcome.disposition, outcome.why) == (ruling.disposition.value, why)
    if at is not None:
        assert outcome.at == at
    assert (outcome.receipt.headers["why"], outcome.receipt.headers["disposition"]) == (
        why,
        ruling.disposition.value,
    )
    issue = outcome.receipt.of("OperationOutcome")["issue"][0]
    assert issue["details"]["coding"][0]["code"] == why
    assert ruling.owner.value in str(issue)
    assert ruling.advice in str(issue)
    if outcome.at:
        assert outcome.at in str(issue)
    assert outcome.receipt.of("MessageHeader")["response"]["code"] == "fatal-error"
    entry = (await hub.audit(event_id=outcome.event_id))[-1]
    assert (
        entry["code"] == {"quarantined": "msg-quarantined", "rejected": "msg-rejected"}[outcome.disposition]
    )
    claimed = entry["detail"].pop("claimed", None)
    assert (claimed is not None) == (why == "sender-not-topic-owner")
    assert entry["detail"] == {"why": why, "at": outcome.at, "owner": ruling.owner.value}
    assert await hub.rows(t.event) == []
    assert await hub.inbox("RH8") == []
    line = hub.log.lines[-1]
    assert (line["event"], line["why"]) == (f"message.{outcome.disposition}", why)


NAMED = MARSHWIGGLE.family.encode()


def _stu3(**elements):
    """A referral as CareConnect has it."""
    referral = {
        "resourceType": "ReferralRequest",
        "status": "active",
        "intent": "order",
        "subject": {"display": "x"},
    }
    return orjson.dumps(referral | elements)


AS_BYTES = [
    ("not JSON", b"Dear colleague, " + NAMED + b" is on the way", "not-json", "line 1, column 1"),
    ("half a message", b'{"resourceType": "Patient", "name": "' + NAMED, "not-json", None),
    ("not UTF-8", b'{"resourceType": "Patient", "id": "\xff\xfe"}', "not-json", None),
    ("lone surrogate", b'{"resourceType": "Patient", "id": "\\ud800"}', "not-json", None),
    ("a list", b"[]", "not-fhir", "resourceType"),
    ("a number", b"42", "not-fhir", "resourceType"),
    ("no FHIR", b'{"patient": "' + NAMED + b'"}', "not-fhir", "resourceType"),
    ("a type that is no text", b'{"resourceType": {"Patient": 1}}', "not-fhir", "resourceType"),
    ("unknown type", b'{"resourceType": "' + NAMED + b'"}', "resource-type-unknown", "resourceType"),
    ("empty", b"", "message-empty", ""),
    ("white space", b" \n\t ", "message-empty", ""),
    ("raw NUL", b'{"resourceType": "Patient\x00"}', "nul-character", ""),
    ("escaped NUL", b'{"resourceType": "Patient", "id": "a\\u0000b"}', "nul-character", ""),
    ("UTF-16", '{"resourceType": "Patient"}'.encode("utf-16"), "not-json", "line 1, column 1"),
    ("UTF-16 without a mark", '{"resourceType": "Patient"}'.encode("utf-16-le"), "not-json", "line 1, column 1"),
    ("too large", b'{"resourceType": "Patient", "id": "' + b"a" * 1_000_000 + b'"}', "message-too-large", ""),
    ("deep", b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "message-too-deep", ""),
    ("deep lists", b"[" * 10_000 + b"]" * 10_000, "message-too-deep", ""),
    ("deep, but parsed", b"[" * 100 + b"]" * 100, "message-too-deep", ""),
    ("HL7 v2", b"MSH|^~\\&|EPR|RA9|HUB||20261123||ADT^A01|1|P|2.4\rPID|1||123||" + NAMED, "dialect-not-supported", ""),
    ("HL7 v2 in MLLP", b"\x0bMSH|^~\\&|EPR\x1c\r", "dialect-not-supported", ""),
    ("XML", b'<Patient xmlns="http://hl7.org/fhir"><name value="' + NAMED + b'"/></Patient>', "patient-unidentified", "Patient.identifier"),
    ("XML with BOM", b"\xef\xbb\xbf<Bundle/>", "not-fhir", None),
    ("half of XML", b'<Patient xmlns="http://hl7.org/fhir"><id value="' + NAMED, "not-xml", None),
    ("a document type", b'<!DOCTYPE x [<!ENTITY a "b">]><Patient xmlns="http://hl7.org/fhir"/>', "xml-unsafe", None),
    ("wrong structure", b'{"resourceType": "Patient", "birthDate": "9 March 1948"}', "structure-invalid", "Patient.birthDate"),
    ("wrong in STU3", _stu3(requester={"onBehalfOf": {"display": MARSHWIGGLE.family}}), "structure-invalid", "ReferralRequest.requester.agent"),
    ("wrong in STU3, in XML", b'<ReferralRequest xmlns="http://hl7.org/fhir"><status value="' + NAMED + b'"/></ReferralRequest>', "structure-invalid", "ReferralRequest.subject"),
    ("a resource of R4 in STU3", _stu3(contained=[{"resourceType": "ServiceRequest"}]), "resource-type-unknown", "ReferralRequest.contained[0].resourceType"),
    ("a name as element", b'{"resourceType": "Patient", "' + NAMED + b'": 1}', "patient-unidentified", "Patient.identifier"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "why", "at"), [c[1:] for c in AS_BYTES], ids=[c[0] for c in AS_BYTES])
async def test_bytes_that_are_no_message(hub, torbay, raw, why, at):
    outcome = await torbay.send(raw)

    await must_be(hub, outcome, why, at)
    assert await hub.raw(outcome) == raw


async def test_a_mark_before_the_first_byte_changes_nothing(hub, torbay):
    """As .NET writes UTF-8."""
    asked = request(torbay)
    outcome = await torbay.send(replace(asked, body=b"\xef\xbb\xbf" + asked.body))

    assert str(outcome) == "accepted"
    assert (await hub.raw(outcome)).startswith(b"\xef\xbb\xbf{")


def _drop(resource_type):
    def change(tree):
        tree["entry"] = [e for e in tree["entry"] if e["resource"]["resourceType"] != resource_type]

    return change


def _patient(identifier):
    def change(tree):
        for patient in resources(tree, "Patient"):
            patient.pop("identifier", None)
            if identifier:
                patient["identifier"] = identifier

    return change


def _nhs(value):
    return _patient([{"system": NHS_NUMBER, "value": value}])


def _status(tree):
    resources(tree, "ServiceRequest")[0]["status"] = "completed"


def _type(tree):
    tree["type"] = "history"


def _organization_named(ods, other):
    def change(tree):
        for organization in resources(tree, "Organization"):
            if organization["identifier"][0]["value"] == ods:
                organization["identifier"][0]["value"] = other

    return change


AS_TREES = [
    ("no MessageHeader", _drop("MessageHeader"), "message-header-missing", "Bundle.entry[0]"),
    ("no patient", _drop("Patient"), "patient-unidentified", None),
    ("no patient identifier", _patient(None), "patient-unidentified", "Patient.identifier"),
    ("only a wrong NHS number", _nhs("9990000000"), "patient-unidentified", "Patient.identifier"),
    ("repeated digits", _nhs("9999999999"), "nhs-number-repeated-digits", "Patient.identifier"),
    ("receiver unknown", _organization_named("RH8", "ZZ9"), "receiver-unknown", f"{AT}.destination.receiver"),
    ("receiver is the sender", _organization_named("RH8", "RA9"), "receiver-is-sender", None),
    ("sender is another trust", _organization_named("RA9", "RK9"), "sender-not-topic-owner", f"{AT}.sender"),
    ("sender is no trust", _organization_named("RA9", "ZZ9"), "sender-not-topic-owner", f"{AT}.sender"),
    ("no request", _drop("ServiceRequest"), "message-not-supported", f"{AT}.focus"),
    ("a request that is over", _status, "status-not-supported", None),
    ("a history Bundle", _type, "message-not-supported", "Bundle.type"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "why", "at"), [c[1:] for c in AS_TREES], ids=[c[0] for c in AS_TREES])
async def test_messages_with_one_thing_wrong(hub, torbay, change, why, at):
    outcome = await torbay.send(edited(request(torbay), change))

    await must_be(hub, outcome, why, at)


async def test_a_message_in_another_trusts_name_is_a_security_event(hub, torbay):
    """Plymouth's request, on Torbay's topic."""
    forged = hub.trust("RK9").epr.asks_to_transfer(
        MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1", at=hub.clock()
    )
    outcome = await torbay.send(forged)

    await must_be(hub, outcome, "sender-not-topic-owner")
    mismatch = await hub.audit(code="org-mismatch")
    assert [(e["event_id"], e["trust"], e["outcome"]) for e in mismatch] == [(outcome.event_id, "RA9", 8)]
    assert await hub.receipts("RK9") == []


async def test_a_wrong_nhs_number_is_flagged_and_never_used(hub, torbay):
    def wrong(tree):
        resources(tree, "Patient")[0]["identifier"][0]["value"] = "9990000000"

    outcome = await torbay.send(edited(request(torbay), wrong))

    assert (str(outcome), outcome.flags) == ("accepted", ("nhs-number-invalid",))
    assert [row["authority"].split("|")[0] for row in await hub.rows(t.person_identifier)] == ["RA9"]


async def test_a_wrong_nhs_number_is_refused_where_that_is_enforced(hub, torbay):
    def wrong(tree):
        resources(tree, "Patient")[0]["identifier"][0]["value"] = "9990000000"

    hub.mend(rules=Rules(nhs_number_check="enforce"))
    await must_be(
        hub, await torbay.send(edited(request(torbay), wrong)), "nhs-number-invalid", "Patient.identifier"
    )


@pytest.mark.parametrize(
    ("off", "direction"), [(timedelta(days=3653), "ahead of"), (timedelta(days=-3653), "behind")]
)
async def test_a_clock_ten_years_off(hub, torbay, off, direction):
    outcome = await torbay.send(request(torbay, at=hub.clock() + off))

    await must_be(hub, outcome, "clock-implausible", "Bundle.timestamp")
    assert outcome.detail == f"3653 days {direction} the hub's clock."


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"])
async def test_a_time_at_the_edge_of_the_calendar_is_the_senders_fault(hub, torbay, time):
    """In UTC it lies outside what Python's calendar holds; that must not count as a fault of the hub's."""
    outcome = await torbay.send(edited(request(torbay), lambda tree: tree.update(timestamp=time)))

    await must_be(hub, outcome, "clock-implausible", "Bundle.timestamp")


async def test_a_clock_two_hours_ahead_is_taken_as_now(hub, torbay):
    outcome = await torbay.send(request(torbay, at=hub.clock() + timedelta(hours=2)))

    assert (str(outcome), outcome.flags) == ("accepted", ("clock-skew",))
    assert (await hub.rows(t.event))[0]["occurred_at"] == hub.clock()


async def test_no_message_id_then_the_content_is_the_id(hub, torbay):
    message = request(torbay)
    nameless = Message({}, message.key, message.body)
    first, again = await torbay.send(nameless), await torbay.send(nameless)

    assert (str(first), first.flags) == ("accepted", ("message-id-missing",))
    assert first.row["message_id"] == f"sha256:{first.row['sha256']}"
    assert again.disposition == "duplicate"


@pytest.mark.parametrize("key", [None, b""])
async def test_an_empty_key_is_flagged(hub, torbay, key):
    message = request(torbay)
    outcome = await torbay.send(Message(message.headers, key, message.body))

    assert (str(outcome), outcome.flags) == ("accepted", ("key-empty",))


async def test_a_failed_message_again_is_told_its_failure_again(hub, torbay):
    headers = {"x-request-id": "once"}
    first, again = [await torbay.send(b"no", headers=headers) for _ in range(2)]
    other = await torbay.send(b"not either", headers=headers)

    assert (first.disposition, again.disposition, other.disposition) == (
        "quarantined",
        "duplicate",
        "conflict",
    )
    assert again.receipt.headers["disposition"] == "quarantined"
    assert again.receipt.headers["why"] == first.receipt.headers["why"] == "not-json"
    assert other.why == "message-id-reused"
    assert again.row["raw"] is None
    assert await hub.raw(other) == b"not either"


async def test_message_ids_that_no_column_could_hold(hub, torbay):
    """Too long, or with a NUL: cut, and still one message each."""
    long = await torbay.send(request(torbay).body, headers={"x-request-id": "x" * 10_000})
    nul = await torbay.send(b"no", headers={"x-request-id": "a\x00b", "x-correlation-id": "c\x00" * 500})

    assert (str(long), nul.disposition) == ("accepted", "quarantined")
    assert (len(long.row["message_id"]), nul.row["message_id"]) == (255, "ab")


async def test_values_longer_than_any_column(hub, torbay):
    """Identifiers of 10,000 characters name nobody, and stop nothing."""

    def long(tree):
        patient, encounter = resources(tree, "Patient")[0], resources(tree, "Encounter")[0]
        patient["identifier"].append({"system": "urn:x", "value": "9" * 10_000})
        patient["identifier"].append({"system": "urn:" + "y" * 10_000, "value": "1"})
        encounter["identifier"][0]["value"] = "8" * 255
        encounter["identifier"][0]["system"] = "urn:" + "z" * 296
        resources(tree, "ServiceRequest")[0]["identifier"].append({"system": "urn:x", "value": "7" * 10_000})

    assert str(await torbay.send(edited(request(torbay), long))) == "accepted"


async def test_all_bad_messages_in_one_batch_leave_the_good_one_alone(hub, torbay):
    bad = [torbay.record(raw) for _, raw, *_ in AS_BYTES]
    good = torbay.record(request(torbay))
    taken = await hub.take([*bad[:10], good, *bad[10:]])

    assert taken.dispositions == {Disposition.QUARANTINED: len(bad), Disposition.ACCEPTED: 1}
    assert await hub.told("RH8") == ["transfer.requested"]
    assert await hub.position("RA9") == len(bad) + 1


async def test_the_search_for_personal_data_finds_it():
    """Else the search after every story proves nothing."""
    found = leaks(
        [{"detail": {"x": "Mr marshwiggle"}}],
        [],
        [{"at": "999 000 0018", "detail": "1948-03-09"}],
        ["4100000"],
    )

    assert found[0] == "marshwiggle"
    assert "1948-03-09" in found


@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(raw=st.binary(max_size=2000) | st.from_regex(rb"\{.*\}", fullmatch=True))
async def test_any_bytes_come_back_exactly_and_end_in_one_disposition(hub, torbay, raw):
    hub.mend(in_a_row_max=1_000_000)
    outcome = await torbay.send(raw)

    assert await hub.raw(outcome) == raw
    assert outcome.disposition == "quarantined"


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(
    max_examples=150, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data(), value=_JSON)
async def test_a_good_message_with_anything_anywhere_is_never_a_fault_of_the_hub(hub, torbay, data, value):
    """One node of a request, an answer or a stay replaced by anything: whatever is said of it, it is not "hub-fault"."""
    hub.mend(in_a_row_max=1_000_000)
    at = hub.clock()
    makers = (
        lambda: request(torbay),
        lambda: torbay.epr.admits(MARSHWIGGLE, encounter_number="V-2", ward="A", at=at),
        lambda: torbay.epr.answers(MARSHWIGGLE, "rejected", requester=TRUSTS["RH8"], request_number="TR-9", at=at, reason="OTH"),
        lambda: torbay.epr.answers_bars(MARSHWIGGLE, "cancelled", requester=TRUSTS["RH8"], request_number="TR-9", at=at),
    )  # fmt: skip
    message = data.draw(st.sampled_from(makers))()
    tree = orjson.loads(message.body)
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.integers(0, 9)) == 0:
            break
        node = node[key]
    if isinstance(node[key], str) and data.draw(st.booleans()):
        value = data.draw(
            st.sampled_from(["", " ", node[key] + "x", node[key][::-1], "é" * 300, "2026", "0001-01-01"])
        )
    node[key] = value
    try:
        raw = orjson.dumps(tree)
    except TypeError:
        return
    outcome = await torbay.send(raw, headers={"x-request-id": str(uuid.uuid4())})

    assert outcome.why != "hub-fault", outcome.detail
