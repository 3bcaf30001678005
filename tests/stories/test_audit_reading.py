"""Who may see what of the audit, over REST: every role at every trust, by every way of asking; and that each reading is written down.

What each must see is worked out here a second time, from the entries as the database has them.
"""

import re
import uuid

import orjson
import pytest

from hub.audit.catalogue import CATALOGUE
from hub.audit.entries import AuditEntry, Code, Outcome
from hub.audit.note import Signer, sign
from hub.demo.people import MARSHWIGGLE, QUILLFEATHER
from hub.domain.roles import Role
from hub.domain.trust import Directory, Issuer
from hub.facade.access import AUDIT
from hub.fhir.systems import (
    HUB_AUDIT_EVENT,
    HUB_EVENT,
    HUB_ORGANISATION,
    HUB_REQUEST,
    HUB_TRANSFER,
    NHS_NUMBER,
    ODS_ORGANISATION,
    PRODUCT,
    SDS_USER,
)
from hub.store import book
from hub.store import tables as t
from hub.store.sealing import seal
from hub.store.search import write_down
from tests.stories import test_people
from tests.stories.conftest import PERSONAL
from tests.stories.rest import System, facade_of, issue
from tests.stories.test_journeys import answer, ask, discharge
from tests.stories.test_people import ISSUER, ROLES, Somebody

people, sign_in = test_people.people, test_people.sign_in
"""Fixtures."""
PATIENT = f"{NHS_NUMBER}|{MARSHWIGGLE.nhs_number}"
OTHER = f"{NHS_NUMBER}|{QUILLFEATHER.nhs_number}"
CLINICAL = re.compile(
    r"penicillin|allerg|diagnosi|fracture|cardiolog|Taw Ward|chest pain|ambul", re.IGNORECASE
)
SIGNER = Signer("log.example", b"\x07" * 32)


async def sealed(hub):
    """All that waits becomes leaves."""
    await seal(
        hub.engine,
        lambda size, root: sign("log.example/audit", size, root, [SIGNER]),
        hub.clock(),
        most=50_000,
    )


async def delivered(hub):
    """What the dispatcher would have written: that the news lies where its receiver reads it."""
    rows = [row for row in await hub.rows(t.outbox) if row["transfer_id"] and row["state"] == "pending"]
    entries = [
        AuditEntry(
            Code.DISCLOSURE_SENT, hub.clock(), "dispatcher", trust="RH8" if row["receiver"] == "RA9" else "RA9",
            counterpart=row["receiver"], event_id=row["event_id"], person_id=row["person_id"], transfer_id=row["transfer_id"],
            detail={"topic": row["topic"], "seq": row["seq"]},
        )
        for row in rows
    ]  # fmt: skip
    await write_down(hub.engine, entries)


async def told(hub, torbay, exeter, plymouth):
    """Torbay asks Exeter for Mr Marshwiggle, who leaves before they accept; Plymouth asks North Bristol for Ms Quillfeather."""
    first = await ask(torbay, MARSHWIGGLE)
    hub.clock.later(minutes=5)
    await answer(exeter, "received", MARSHWIGGLE, torbay)
    await discharge(torbay, MARSHWIGGLE)
    hub.clock.later(minutes=5)
    second = await ask(plymouth, QUILLFEATHER, to="RVJ", number="TR-9", stay="P-1")
    await delivered(hub)
    hub.clock.later(minutes=5)
    await sealed(hub)
    # Some of the book is sealed and some waits.
    await answer(exeter, "accepted", MARSHWIGGLE, torbay)
    return first, second


def somebody(hub, facade, sign_in, ods, role, **claims):
    if role is Role.SYSTEM:
        return None
    return Somebody(facade, sign_in.person(hub.clock, ods, role, **claims))


async def caller(hub, facade, sign_in, ods, role):
    if role is Role.SYSTEM:
        return await (await System.join(facade, ods)).signed_in()
    return somebody(hub, facade, sign_in, ods, role)


def events(response):
    assert response.status_code == 200, response.text
    return [
        each["resource"] for each in response.json().get("entry", ()) if each["search"]["mode"] == "match"
    ]


async def all_pages(who, query=""):
    """The ids on all pages, in order."""
    found, path = [], f"/AuditEvent?_count=7{query}"
    while path:
        answer = await who.get(path)
        found += [int(each["id"]) for each in events(answer)]
        following = [each["url"] for each in answer.json()["link"] if each["relation"] == "next"]
        path = following[0].partition("/fhir")[2] if following else None
    return found


async def persons(hub):
    rows = await hub.rows(t.person_identifier)
    return {row["value"]: row["person_id"] for row in rows}


def acts(row, *trusts):
    return row["trust"] in trusts


def touches(row, *trusts):
    return row["trust"] in trusts or row["counterpart"] in trusts


#                       Torbay and Exeter, whose patient it is                    Plymouth, a third trust
MUST = {
    Role.SYSTEM:           (lambda row, own, marsh, quill: acts(row, own),)* 2,
    Role.CLINICIAN:        (None, None),
    Role.BED_MANAGER:      (None, None),
    Role.TRANSPORT:        (None, None),
    Role.GOVERNANCE:       (lambda row, own, marsh, quill: touches(row, own) or row["person_id"] == marsh,
                            lambda row, own, marsh, quill: touches(row, own) or row["person_id"] == quill),
    # Nobody has opened their audit to anybody: it sees what governance sees.
    Role.JOINT_GOVERNANCE: (lambda row, own, marsh, quill: touches(row, own) or row["person_id"] == marsh,
                            lambda row, own, marsh, quill: touches(row, own) or row["person_id"] == quill),
}  # fmt: skip


def test_every_role_is_here():
    assert set(MUST) == set(AUDIT) == set(Role)


@pytest.mark.parametrize("role", MUST)
async def test_what_each_role_sees_of_the_audit(hub, torbay, exeter, plymouth, people, sign_in, role):
    transfer, foreign = await told(hub, torbay, exeter, plymouth)
    known = await persons(hub)
    marsh, quill = known[MARSHWIGGLE.nhs_number], known[QUILLFEATHER.nhs_number]
    for ods, rule in zip(("RA9", "RH8", "RK9"), (MUST[role][0], MUST[role][0], MUST[role][1]), strict=True):
        who = await caller(hub, people, sign_in, ods, role)
        before = await hub.audit()
        if rule is None:
            for path in (
                "/AuditEvent",
                f"/AuditEvent/{before[0]['entry']}",
                f"/AuditEvent?patient:identifier={PATIENT}",
            ):
                refused = await who.get(path)
                assert (refused.status_code, issue(refused)[0]) == (403, "SEND_FORBIDDEN")
            assert [e["detail"]["why"] for e in (await hub.audit())[len(before) :]] == ["role"] * 3
            continue
        must = {row["entry"] for row in before if rule(row, ods, marsh, quill)}
        latest = max(row["entry"] for row in before)
        found = await all_pages(who)
        assert {each for each in found if each <= latest} == must, (ods, role)
        assert must or role is Role.SYSTEM
        assert len(found) == len(set(found))
        counted = (await who.get("/AuditEvent?_summary=count")).json()["total"]
        newer = {row["entry"] for row in await hub.audit() if row["entry"] > latest and acts(row, ods)}
        assert counted == len(must | newer) - 1, "the counting itself is written after it"
        for row in before:
            one = await who.get(f"/AuditEvent/{row['entry']}")
            assert one.status_code == (200 if row["entry"] in must else 404), (ods, role, row)
        for patient, person_id in ((PATIENT, marsh), (OTHER, quill)):
            by_patient = {
                each for each in await all_pages(who, f"&patient:identifier={patient}") if each <= latest
            }
            assert by_patient == {
                r["entry"] for r in before if r["entry"] in must and r["person_id"] == person_id
            }
        not_theirs = foreign if ods != "RK9" else transfer
        asked = await who.get(f"/AuditEvent?entity:identifier={HUB_TRANSFER}|{not_theirs}")
        of_others = {int(each["id"]) for each in events(asked) if int(each["id"]) <= latest}
        assert of_others <= must


async def test_a_third_trusts_governance_learns_nothing_of_others_patients(
    hub, torbay, exeter, plymouth, people, sign_in
):
    """Not by asking, not by asking twice, not by finding its own questions afterwards."""
    transfer, _ = await told(hub, torbay, exeter, plymouth)
    officer = somebody(hub, people, sign_in, "RK9", Role.GOVERNANCE)
    local = f"{torbay.profile.identifier_systems.patient}|{MARSHWIGGLE.local['RA9']}"
    unknown = f"{NHS_NUMBER}|9990009996"
    answers = [
        (await officer.get(f"/AuditEvent?patient:identifier={patient}&_total=accurate")).json()
        for patient in (PATIENT, PATIENT, local, unknown, unknown)
    ]
    assert [(each["total"], each.get("entry", [])) for each in answers] == [(0, [])] * 5
    for _ in range(2):
        by_transfer = await officer.get(f"/AuditEvent?entity:identifier={HUB_TRANSFER}|{transfer}")
        assert [e for e in events(by_transfer) if e["subtype"][0]["code"] == "audit-read"] == []
    own = await officer.get("/AuditEvent?subtype=audit-read")
    assert transfer not in own.text
    entities = {orjson.dumps(each["entity"][0]) for each in events(own)}
    assert len(events(own)) == 7
    assert len(entities) == 1, "whether the hub knows the number cannot be told"
    assert MARSHWIGGLE.nhs_number not in own.text
    # Torbay's governance sees that Plymouth asked.
    at_torbay = somebody(hub, people, sign_in, "RA9", Role.GOVERNANCE)
    asked = events(
        await at_torbay.get(
            f"/AuditEvent?patient:identifier={PATIENT}&subtype=audit-read&agent:identifier=RK9"
        )
    )
    assert len(asked) == 4


async def test_a_trust_that_is_to_be_asked_does_not_see_a_draft(hub, torbay, people, sign_in):
    transfer = await ask(torbay, MARSHWIGGLE, draft=True)
    at_exeter = somebody(hub, people, sign_in, "RH8", Role.GOVERNANCE)
    assert events(await at_exeter.get(f"/AuditEvent?entity:identifier={HUB_TRANSFER}|{transfer}")) == []
    at_torbay = somebody(hub, people, sign_in, "RA9", Role.GOVERNANCE)
    assert events(await at_torbay.get(f"/AuditEvent?entity:identifier={HUB_TRANSFER}|{transfer}"))


async def test_joint_governance_sees_across_the_trusts_that_agreed_to_each_other(
    hub, torbay, exeter, plymouth, sign_in
):
    """Torbay and Plymouth opened their audits to each other; Exeter opened its own to Plymouth, and Plymouth not to Exeter."""
    issuer = Issuer(url=ISSUER, jwks_url=sign_in.address, people=True, roles=ROLES)
    opened = {"RA9": ("RK9",), "RK9": ("RA9",), "RH8": ("RK9",)}
    trusts = [
        each.model_copy(update={"issuers": (issuer,), "audit_opened_to": opened.get(each.ods, ())})
        for each in hub.journey.directory
    ]
    facade = facade_of(hub, directory=Directory(trusts))
    await told(hub, torbay, exeter, plymouth)
    rows = await hub.audit()
    known = await persons(hub)
    both = {known[MARSHWIGGLE.nhs_number], known[QUILLFEATHER.nhs_number]}
    for ods, must in (
        ("RK9", {r["entry"] for r in rows if touches(r, "RA9", "RK9") or r["person_id"] in both}),
        (
            "RH8",
            {
                r["entry"]
                for r in rows
                if touches(r, "RH8") or r["person_id"] == known[MARSHWIGGLE.nhs_number]
            },
        ),
    ):
        joint = somebody(hub, facade, sign_in, ods, Role.JOINT_GOVERNANCE)
        latest = max(row["entry"] for row in rows)
        assert {each for each in await all_pages(joint) if each <= latest} == must, ods
    alone = somebody(hub, facade, sign_in, "RK9", Role.GOVERNANCE)
    assert events(await alone.get(f"/AuditEvent?patient:identifier={PATIENT}")) == []


async def test_records_that_were_merged_are_one_patient_in_both_directions(hub, people, sign_in):
    """first → second → survivor ← other: asked for by any number, the trail is that of all four, and of nobody else."""
    now = hub.clock()
    into = {"first": "second", "second": "survivor", "other": "survivor", "survivor": None, "stranger": None}
    async with hub.engine.begin() as connection:
        await connection.execute(
            t.person.insert(),
            [{"person_id": one, "created_at": now, "merged_into": to} for one, to in into.items()],
        )
        numbers = [
            ("9990000026", "nhs", "survivor"),
            ("T-1", "RA9|https://a", "first"),
            ("T-1", "RH8|https://b", "stranger"),
        ]
        await connection.execute(
            t.person_identifier.insert(),
            [{"value": v, "authority": a, "person_id": p, "event_id": "e"} for v, a, p in numbers],
        )
    await write_down(
        hub.engine,
        [
            AuditEntry(Code.RECORD_READ, now, "rest", trust="RX1", person_id=each, user_id=f"u-{each}")
            for each in into
        ],
    )
    officer = somebody(hub, people, sign_in, "RA9", Role.GOVERNANCE)
    four = {"u-first", "u-second", "u-survivor", "u-other"}
    for number in (f"{NHS_NUMBER}|999 000 0026", "9990000026", "https://a|T-1", "T-1"):
        found = events(await officer.get(f"/AuditEvent?patient:identifier={number}&subtype=record-read"))
        assert {each["agent"][1]["who"]["identifier"]["value"] for each in found} == four, number
        said = {each["entity"][0]["what"]["identifier"]["value"] for each in found}
        assert said == {"9990000026"}, "the number that stands now, in old entries too"
    reads = await hub.audit(code="audit-read")
    assert [row["person_id"] for row in reads] == ["survivor"] * 4
    both = await book.patients(hub.engine, [book.Token(None, "T-1")])
    assert {each.record for each in both} == {"survivor", "stranger"}


async def test_paging_neither_repeats_nor_skips_while_entries_arrive_and_are_sealed(
    hub, torbay, exeter, plymouth, people, sign_in
):
    await told(hub, torbay, exeter, plymouth)
    officer = somebody(hub, people, sign_in, "RA9", Role.GOVERNANCE)
    for sort in ("-date", "date"):
        at_first = [
            int(each["id"]) for each in events(await officer.get(f"/AuditEvent?_count=200&_sort={sort}"))
        ]
        found, path, pages = [], f"/AuditEvent?_count=4&_sort={sort}", 0
        while path:
            answered = await officer.get(path)
            found += [int(each["id"]) for each in events(answered)]
            following = [each["url"] for each in answered.json()["link"] if each["relation"] == "next"]
            path = following[0].partition("/fhir")[2] if following else None
            pages += 1
            if pages < 6:
                # Entries of before, of now, and of the same moment; what waited is sealed.
                for at in (hub.clock(), hub.clock.now.replace(hour=9, minute=1)):
                    await write_down(
                        hub.engine, [AuditEntry(Code.RECORD_READ, at, "rest", trust="RA9", user_id="u")]
                    )
                hub.clock.later(seconds=20)
            if pages % 2:
                await sealed(hub)
        assert len(found) == len(set(found)), sort
        assert [each for each in found if each in set(at_first)] == at_first, sort
        rows = {row["entry"]: row["at"] for row in await hub.audit()}
        order = [(rows[each], each) for each in found]
        assert order == sorted(order, reverse=sort == "-date")


async def test_each_reading_is_audited_once_before_it_is_answered(
    hub, torbay, exeter, plymouth, people, sign_in
):
    transfer, _ = await told(hub, torbay, exeter, plymouth)
    marsh = (await persons(hub))[MARSHWIGGLE.nhs_number]
    officer = somebody(hub, people, sign_in, "RA9", Role.GOVERNANCE)
    [some] = await hub.audit(code="departed")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for ask_it, about, names in (
        (officer.get("/AuditEvent"), (None, None), []),
        (officer.get(f"/AuditEvent?patient:identifier={PATIENT}&date=ge2026"), (marsh, None), ["date", "patient:identifier"]),
        (officer.get(f"/AuditEvent?patient:identifier={PATIENT}&_summary=count"), (marsh, None), ["_summary", "patient:identifier"]),
        (officer.call("POST", "/AuditEvent/_search", headers=form, content=f"patient:identifier={PATIENT}"), (marsh, None), ["patient:identifier"]),
        (officer.get(f"/AuditEvent?entity:identifier={HUB_TRANSFER}|{transfer}"), (marsh, transfer), ["entity:identifier"]),
        (officer.get(f"/AuditEvent/{some['entry']}"), (marsh, transfer), ["_id"]),
        (officer.get("/AuditEvent/99999999999999999999"), (None, None), ["_id"]),
    ):  # fmt: skip
        before = len(await hub.audit())
        answered = await ask_it
        assert answered.status_code in {200, 404}, answered.text
        [entry] = (await hub.audit())[before:]
        assert (entry["code"], entry["trust"], entry["user_id"], entry["role_id"]) == (
            "audit-read",
            "RA9",
            "555000000001",
            "1111",
        )
        assert (entry["person_id"], entry["transfer_id"]) == about
        assert entry["detail"]["parameters"] == names
        assert MARSHWIGGLE.nhs_number not in str(entry["detail"])


async def test_two_patients_are_two_readings(hub, torbay, exeter, plymouth, people, sign_in):
    await told(hub, torbay, exeter, plymouth)
    known = await persons(hub)
    officer = somebody(hub, people, sign_in, "RA9", Role.GOVERNANCE)
    await officer.get(f"/AuditEvent?patient:identifier={PATIENT},{OTHER}")
    assert {row["person_id"] for row in await hub.audit(code="audit-read")} == {
        known[MARSHWIGGLE.nhs_number], known[QUILLFEATHER.nhs_number],
    }  # fmt: skip


async def test_nothing_is_answered_that_was_not_written_down(hub, torbay, people, sign_in, monkeypatch):
    await ask(torbay, MARSHWIGGLE)
    officer = somebody(hub, people, sign_in, "RA9", Role.GOVERNANCE)

    async def away(*_):
        raise OSError

    monkeypatch.setattr(book, "write_audit", away)
    answered = await officer.get("/AuditEvent")
    assert answered.status_code == 503
    assert "AuditEvent" not in answered.text


async def test_every_way_of_asking(hub, torbay, exeter, plymouth, people, sign_in):
    transfer, _ = await told(hub, torbay, exeter, plymouth)
    doctor = somebody(hub, people, sign_in, "RA9", Role.CLINICIAN, nhsid_useruid="555000000077")
    await doctor.call("GET", f"/Task/{transfer}", headers={"X-Request-Id": "req-77"})
    await doctor.get("/Task/nobody")
    officer = somebody(hub, people, sign_in, "RA9", Role.GOVERNANCE)
    marsh = (await persons(hub))[MARSHWIGGLE.nhs_number]
    by_itself = AuditEntry(Code.MESSAGE_REPLAYED, hub.clock(), "clock", person_id=marsh, transfer_id=transfer)
    await write_down(hub.engine, [by_itself])
    own = [r for r in await hub.audit() if touches(r, "RA9") or r["person_id"] == marsh]
    event = next(row["event_id"] for row in own if row["code"] == "departed")
    number = own[3]["entry"]

    def of(*codes):
        return lambda row: row["code"] in codes

    def by_the_hub(row):
        """Which the hub did by itself, a receipt among them."""
        return row["trust"] in {None, "hub"} or row["counterpart"] == "hub"

    assert any(map(by_the_hub, own)), "else nothing is asked"

    dcm, rest = (
        "http://dicom.nema.org/resources/ontology/DCM",
        "http://terminology.hl7.org/CodeSystem/audit-event-type",
    )
    ways = {
        f"agent:identifier={ODS_ORGANISATION}|RH8": lambda r: touches(r, "RH8"),
        f"agent:identifier={SDS_USER}|555000000077": lambda r: r["user_id"] == "555000000077",
        f"agent:identifier={PRODUCT}|RA9%7C555000000077": lambda r: r["client_id"] == "RA9|555000000077",
        "agent:identifier=555000000077": lambda r: r["user_id"] == "555000000077",
        "agent:identifier=https://nobody|RH8": lambda r: False,
        "agent:identifier=hub": by_the_hub,
        f"agent:identifier={HUB_ORGANISATION}|transfer-hub": by_the_hub,
        f"agent:identifier={HUB_ORGANISATION}|another": lambda r: False,
        f"agent:identifier={ODS_ORGANISATION}|hub": lambda r: False,
        f"entity:identifier={HUB_TRANSFER}|{transfer}": lambda r: r["transfer_id"] == transfer,
        f"entity:identifier={HUB_EVENT}|{event}": lambda r: r["event_id"] == event,
        f"entity:identifier={HUB_REQUEST}|req-77": lambda r: r["request_id"] == "req-77",
        f"entity:identifier={event}": lambda r: r["event_id"] == event,
        f"_id={number}": lambda r: r["entry"] == number,
        "subtype=departed": of("departed"),
        f"subtype={HUB_AUDIT_EVENT}|departed,{HUB_AUDIT_EVENT}|record-read": of("departed", "record-read"),
        "subtype=disclose": of("disclosure-sent"),
        f"type={dcm}|110106": of("disclosure-sent"),
        f"type={rest}|rest": of("record-read", "record-search"),
        "type=110106&subtype=departed": lambda r: False,
        "action=C": lambda r: CATALOGUE[Code(r["code"])].action == "C",
        "outcome=8": lambda r: r["outcome"] == 8,
        "outcome=4,8": lambda r: r["outcome"] in {4, 8},
        "source=rest": lambda r: r["system"] == "rest",
        f"source:identifier={PRODUCT}|transfer-hub": lambda r: True,
        f"source:identifier={PRODUCT}|another": lambda r: False,
        "date=ge2026-11-23T09:06:00Z": lambda r: r["at"].minute >= 6,
        "date=ge2026-11-23T09:06:00Z&date=lt2026-11-23T09:12:00Z": lambda r: 6 <= r["at"].minute < 12,
        "_lastUpdated=gt2026-11-23": lambda r: False,
        f"patient:identifier={PATIENT}&agent:identifier=RH8": lambda r: r["person_id"] == marsh and touches(r, "RH8"),
    }  # fmt: skip
    last = max(row["entry"] for row in own)
    for query, rule in ways.items():
        found = events(await officer.get(f"/AuditEvent?_count=200&{query}"))
        must = [
            row["entry"]
            for row in sorted(own, key=lambda r: (r["at"], r["entry"]), reverse=True)
            if rule(row)
        ]
        assert [int(e["id"]) for e in found if int(e["id"]) <= last] == must, query
    for query, status in (
        ("outcome=well", 400), ("action=X", 400), ("date=soon", 400), ("_count=many", 400), ("_sort=agent", 400), ("_page=x", 400),
        ("colour=red", 200), ("patient=1", 400),
    ):  # fmt: skip
        said = await officer.get(f"/AuditEvent?{query}")
        assert said.status_code == status, query
        assert (status == 400) or "Ignored, because" in said.text
    strict = await officer.call("GET", "/AuditEvent?colour=red", headers={"Prefer": "handling=strict"})
    assert strict.status_code == 400


async def test_in_xml_too_and_without_a_scope_not_at_all(hub, torbay, people):
    await ask(torbay, MARSHWIGGLE)
    system = await (await System.join(people, "RA9")).signed_in()
    said = await system.get("/AuditEvent?_format=xml&_count=2")
    assert (said.status_code, said.headers["content-type"]) == (200, "application/fhir+xml; charset=utf-8")
    assert said.text.count("<AuditEvent>") == 2
    narrow = await (await System.join(people, "RA9", scopes="system/Task.rs")).signed_in()
    assert (await narrow.get("/AuditEvent")).status_code == 403


async def test_no_word_of_a_patient_is_in_any_answer(hub, torbay, exeter, plymouth, people, sign_in):
    """A number, which is how a patient is named here, and nothing else."""
    await told(hub, torbay, exeter, plymouth)
    doctor = somebody(hub, people, sign_in, "RK9", Role.CLINICIAN)
    reason = "Mr Marshwiggle is unconscious in resus with a fracture"
    assert (await doctor.breaks_the_glass(reason)).status_code == 200
    officer = somebody(hub, people, sign_in, "RA9", Role.GOVERNANCE)
    pages = [
        await officer.get(f"/AuditEvent?_count=200{more}") for more in ("", "&_format=xml", "&outcome=4,8")
    ]
    pages += [await officer.get(f"/AuditEvent/{row['entry']}") for row in await hub.audit()]
    numbers = {MARSHWIGGLE.nhs_number, QUILLFEATHER.nhs_number}
    for each in pages:
        assert {found.group() for found in PERSONAL.finditer(each.text)} <= numbers
        assert not CLINICAL.search(each.text)
        assert "resus" not in each.text


async def test_a_page_looks_at_so_many_entries_and_says_where_to_go_on(hub, people, sign_in, monkeypatch):
    """A trust that has next to nothing among very many: no question reads the whole log at once, and nothing is missed."""
    monkeypatch.setattr(book, "LOOKED_AT_MAX", 1000)
    now = hub.clock()
    mine = AuditEntry(Code.ACCESS_DENIED, now, "rest", Outcome.SERIOUS_FAILURE, trust="RK9", user_id="mine")
    others = AuditEntry(Code.RECORD_READ, now, "rest", trust="RA9", user_id="others")
    await write_down(hub.engine, [mine, *[others] * 2500, mine])
    officer = somebody(hub, people, sign_in, "RK9", Role.GOVERNANCE)
    first = await officer.get("/AuditEvent?agent:identifier=mine,others")
    assert [each["relation"] for each in first.json()["link"]] == ["self", "next"]
    assert len(await all_pages(officer, "&agent:identifier=mine,others")) == 2


async def test_a_guessed_number_opens_no_transfer_of_others(hub, torbay, exeter, plymouth, people, sign_in):
    """Plymouth writes down Mr Marshwiggle's NHS number with the right date of birth: he is theirs by number, his transfer is not."""
    transfer, _ = await told(hub, torbay, exeter, plymouth)
    officer = somebody(hub, people, sign_in, "RK9", Role.GOVERNANCE)
    at_plymouth = await (await System.join(people, "RK9")).signed_in()
    assert (await at_plymouth.get(f"/Task/{transfer}")).status_code == 404
    before = await hub.audit()
    patient = {
        "resourceType": "Patient",
        "identifier": [
            {"system": NHS_NUMBER, "value": MARSHWIGGLE.nhs_number},
            {"system": plymouth.profile.identifier_systems.patient, "value": "PLY-1"},
        ],
        "name": [{"family": "X"}],
        "birthDate": MARSHWIGGLE.birth_date.isoformat(),
    }
    said = await at_plymouth.call(
        "POST",
        "/Bundle",
        headers={"Content-Type": "application/fhir+json", "X-Request-Id": str(uuid.uuid4())},
        content=orjson.dumps(
            {
                "resourceType": "Bundle",
                "type": "collection",
                "entry": [{"fullUrl": f"urn:uuid:{uuid.uuid4()}", "resource": patient}],
            }
        ),
    )
    assert said.status_code == 200
    hub.expected += 1
    marsh = (await persons(hub))[MARSHWIGGLE.nhs_number]
    for query in (
        f"patient:identifier={PATIENT}",
        f"entity:identifier={HUB_TRANSFER}|{transfer}",
        "_count=200",
    ):
        answer = await officer.get(f"/AuditEvent?{query}&_total=accurate")
        found = events(answer)
        assert transfer not in orjson.dumps(found).decode()
        assert not [each for each in found if "RH8" in orjson.dumps(each).decode()]
        assert answer.json()["total"] == len(found)
    for row in before:
        if row["transfer_id"] == transfer:
            one = await officer.get(f"/AuditEvent/{row['entry']}")
            denied = row["code"] == "access-denied"
            assert (one.status_code, transfer in one.text) == (200 if denied else 404, False), row
    # What Plymouth itself did for the patient it sees, and what it tried in vain.
    own = events(await officer.get(f"/AuditEvent?patient:identifier={PATIENT}&_count=200"))
    assert {"msg-received", "access-denied"} <= {each["subtype"][0]["code"] for each in own}
    # The parties see their transfer as before, and that Plymouth wrote the number down.
    at_torbay = somebody(hub, people, sign_in, "RA9", Role.GOVERNANCE)
    theirs = {
        int(e["id"])
        for e in events(await at_torbay.get(f"/AuditEvent?patient:identifier={PATIENT}&_count=200"))
    }
    assert theirs >= {row["entry"] for row in before if row["person_id"] == marsh}
