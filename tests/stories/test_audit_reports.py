"""`hub audit search` and `hub audit report …`, as information governance types them, after a story."""

import asyncio
import csv
import io
from dataclasses import replace

import orjson
import pytest
from typer.testing import CliRunner

from hub import wiring
from hub.audit.entries import AuditEntry, Code, Outcome
from hub.cli import app
from hub.commands.terminal import settings_now
from hub.demo.people import MARSHWIGGLE, QUILLFEATHER, THISTLEWICK
from hub.domain.roles import Role
from hub.store import break_glass
from hub.store.search import write_down
from tests.stories import test_people
from tests.stories.conftest import PERSONAL
from tests.stories.test_audit_reading import somebody, told
from tests.stories.test_journeys import ask

people, sign_in = test_people.people, test_people.sign_in
"""Fixtures."""


@pytest.fixture
def type_(store_url, hub, monkeypatch):
    monkeypatch.setenv("HUB_DATABASE_URL", store_url)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(wiring, "now", hub.clock)
    settings_now.cache_clear()

    async def run(*words):
        # The command line makes a loop of its own.
        done = await asyncio.to_thread(CliRunner().invoke, app, ["audit", *words])
        assert done.exit_code == 0, done.output
        return done.stdout

    yield run
    settings_now.cache_clear()


def ndjson(text):
    return [orjson.loads(line) for line in text.splitlines()]


def rows_of_csv(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


async def a_story(hub, torbay, exeter, plymouth, people, sign_in):
    """Torbay's request, read at Exeter, refused to Plymouth, whose clinician then breaks the glass; Exeter's bed manager may not decide."""
    transfer, _ = await told(hub, torbay, exeter, plymouth)
    doctor = somebody(hub, people, sign_in, "RH8", Role.CLINICIAN, nhsid_useruid="555000000011")
    assert (await doctor.get(f"/Task/{transfer}")).status_code == 200
    stranger = somebody(hub, people, sign_in, "RK9", Role.CLINICIAN, nhsid_useruid="555000000022")
    assert (await stranger.get(f"/Task/{transfer}")).status_code == 404
    given = await stranger.breaks_the_glass("Unconscious in resus, plan unknown")
    assert (await stranger.get(f"/Task/{transfer}")).status_code == 200
    hub.clock.later(minutes=10)
    return transfer, given.json()["parameter"][0]["valueId"]


async def test_who_has_seen_a_patient(hub, torbay, exeter, plymouth, people, sign_in, type_, tmp_path):
    await a_story(hub, torbay, exeter, plymouth, people, sign_in)
    number = MARSHWIGGLE.nhs_number
    rows = ndjson(await type_("report", "who-has-seen", number, "--json"))
    found = {(r["trust"], r["how"], r["user"]) for r in rows}
    assert found == {
        ("RH8", "was told", None), ("RA9", "was told", None), ("RH8", "read", "555000000011"),
        ("RK9", "broke the glass", "555000000022"), ("RK9", "read behind broken glass", "555000000022"),
    }  # fmt: skip
    [one] = [r for r in rows if r["how"] == "read"]
    assert (one["name"], one["role"], one["times"]) == (people.directory["RH8"].name, "clinician", 1)
    # By Torbay's own number, with its system, it is the same patient; and that it was asked before is part of it now.
    own = f"{torbay.profile.identifier_systems.patient}|{MARSHWIGGLE.local['RA9']}"
    again = rows_of_csv(await type_("report", "who-has-seen", own, "--csv"))
    assert {(r["trust"], r["how"]) for r in again} == {(t or "", how) for t, how, _ in found} | {
        ("", "exported audit")
    }
    assert "Nothing of this patient was shown to anybody." in await type_(
        "report", "who-has-seen", number, "--until", "2026-01-01"
    )
    page = tmp_path / "page.html"
    assert f"written: {page}" in await type_(
        "report", "who-has-seen", number, "--page", str(page), "--contact", "the records office"
    )
    text = page.read_text("utf-8")
    assert people.directory["RK9"].name.replace("&", "&amp;") in text
    assert "555000000" not in text
    assert "resus" not in text
    assert {each.group() for each in PERSONAL.finditer(text)} == {"999 000 0018"}
    read = await hub.audit(code="audit-read") + await hub.audit(code="audit-exported")
    assert [(r["code"], r["detail"]["report"]) for r in read] == [("audit-read", "who-has-seen")] + [
        ("audit-exported", "who-has-seen")
    ] * 3
    assert all("patient" in r["detail"]["parameters"] for r in read)
    persons = {r["person_id"] for r in await hub.audit(code="break-glass-opened")}
    assert all(r["person_id"] in persons for r in read)


async def test_everything_a_user_did(hub, torbay, exeter, plymouth, people, sign_in, type_):
    transfer, _ = await a_story(hub, torbay, exeter, plymouth, people, sign_in)
    rows = ndjson(await type_("report", "user", "555000000022", "--json"))
    assert [r["code"] for r in rows] == ["record-read", "break-glass-opened", "access-denied"]
    assert (rows[0]["transfer"], rows[0]["trust"], rows[0]["interaction"]) == (transfer, "RK9", "read_task")
    assert rows[2]["why"] == "no-relationship"
    assert "This user did nothing." in await type_("report", "user", "555000000022", "--trust", "RA9")


async def test_all_refused_access(hub, torbay, exeter, plymouth, people, sign_in, type_):
    await a_story(hub, torbay, exeter, plymouth, people, sign_in)
    await people.refused("expired")
    rows = rows_of_csv(await type_("report", "refused", "--csv"))
    assert [(r["code"], r["why"], r["user"]) for r in rows] == [
        ("auth-failed", "expired", ""), ("access-denied", "no-relationship", "555000000022"),
    ]  # fmt: skip
    hub.clock.later(days=31)
    assert "Nothing was refused." in await type_("report", "refused", "--since", "2026-11-24")
    assert "no-relationship" in await type_("report", "refused")


async def test_all_broken_glass_and_its_reviews(hub, torbay, exeter, plymouth, people, sign_in, type_):
    _, grant = await a_story(hub, torbay, exeter, plymouth, people, sign_in)
    [row] = ndjson(await type_("report", "break-glass", "--json"))
    assert (row["trust"], row["user"], row["owners"], row["review"]) == (
        "RK9",
        "555000000022",
        "RA9, RH8",
        "waits",
    )
    hub.clock.later(days=8)
    assert "overdue" in await type_("report", "break-glass", "--trust", "RA9")
    await break_glass.review(hub.engine, grant, "privacy-officer", "justified", hub.clock())
    text = await type_("report", "break-glass", "--csv", "--until", "2026-11-24")
    [row] = rows_of_csv(text)
    assert (row["review"], row["reviewed_by"], row["grant"]) == ("justified", "privacy-officer", grant)
    assert "resus" not in text
    assert "Nobody broke the glass." in await type_("report", "break-glass", "--trust", "RX1")


async def test_transfers_moved_without_acceptance(hub, torbay, exeter, plymouth, people, sign_in, type_):
    transfer, _ = await a_story(hub, torbay, exeter, plymouth, people, sign_in)
    await ask(torbay, THISTLEWICK, number="TR-7", stay="V-7")
    [row] = ndjson(await type_("report", "without-acceptance", "--json"))
    assert (row["transfer"], row["moved_by"], row["what"]) == (transfer, "RA9", "Patient departed")
    assert (row["sender"], row["receiver"], row["state_now"]) == ("RA9", "RH8", "in-transit")
    for ods, known in (("ra9", 1), ("RH8", 1), ("RK9", 0)):
        rows = ndjson(await type_("report", "without-acceptance", "--json", "--trust", ods))
        assert len(rows) == known, "it is a matter of both ends"


async def test_what_left_the_trust_last_month(hub, torbay, exeter, plymouth, people, sign_in, type_):
    transfer, _ = await a_story(hub, torbay, exeter, plymouth, people, sign_in)
    assert "Nothing left the trust." in await type_("report", "left", "RA9")
    hub.clock.now = hub.clock.now.replace(month=12, day=2)
    rows = rows_of_csv(await type_("report", "left", "ra9", "--csv"))
    sent = [r for r in await hub.audit(code="disclosure-sent") if r["trust"] == "RA9"]
    # What others read of it has left it too: its receiver, and who broke the glass.
    read = [r for r in await hub.audit(code="record-read") if r["transfer_id"] == transfer]
    assert [int(r["entry"]) for r in rows] == sorted(r["entry"] for r in sent + read)
    assert {(r["to"], r["to_name"], r["through"]) for r in rows if r["transfer"] == transfer} == {
        ("RH8", people.directory["RH8"].name, "hub.rh8.inbox"),
        ("RH8", people.directory["RH8"].name, "read_task"),
        ("RK9", people.directory["RK9"].name, "read_task"),
    }
    assert "read_task" not in await type_("report", "left", "RK9", "--csv"), (
        "its own readings do not leave it"
    )
    same = ndjson(await type_("report", "left", "RA9", "--month", "2026-11", "--json"))
    assert len(same) == len(rows)
    assert "Nothing left" in await type_("report", "left", "RA9", "--month", "2026-10")
    assert not PERSONAL.search(orjson.dumps(same).decode())


async def test_search_by_every_option(hub, torbay, exeter, plymouth, people, sign_in, type_):
    transfer, _ = await a_story(hub, torbay, exeter, plymouth, people, sign_in)
    rows = await hub.audit()
    event = next(r["event_id"] for r in rows if r["code"] == "departed")
    request = next(r["request_id"] for r in rows if r["code"] == "departed")
    marsh = next(r["person_id"] for r in rows if r["code"] == "departed")
    ways = {
        ("--patient", MARSHWIGGLE.nhs_number): lambda r: r["person_id"] == marsh,
        ("--transfer", transfer): lambda r: r["transfer_id"] == transfer,
        ("--event", event): lambda r: r["event_id"] == event,
        ("--request", request): lambda r: r["request_id"] == request,
        ("--trust", "rh8"): lambda r: "RH8" in (r["trust"], r["counterpart"]),
        ("--by", "RH8"): lambda r: r["trust"] == "RH8",
        ("--to", "RH8"): lambda r: r["counterpart"] == "RH8",
        ("--user", "555000000022"): lambda r: r["user_id"] == "555000000022",
        ("--client", "RK9|555000000022"): lambda r: r["client_id"] == "RK9|555000000022",
        ("--role", "1111"): lambda r: r["role_id"] == "1111",
        ("--code", "departed", "--code", "routed"): lambda r: r["code"] in {"departed", "routed"},
        ("--action", "e", "--code", "routed", "--code", "departed"): lambda r: r["code"] == "routed",
        ("--outcome", "8"): lambda r: r["outcome"] == 8,
        ("--system", "rest"): lambda r: r["system"] == "rest",
        ("--since", "2026-11-23T09:06:00"): lambda r: r["at"].minute >= 6,
        ("--until", "2026-11-23T09:06:00"): lambda r: r["at"].minute < 6,
    }  # fmt: skip
    last = rows[-1]["entry"]
    for words, rule in ways.items():
        found = [r["entry"] for r in ndjson(await type_("search", *words, "--json")) if r["entry"] <= last]
        newest_first = sorted((r for r in rows if rule(r)), key=lambda r: (r["at"], r["entry"]), reverse=True)
        assert found == [r["entry"] for r in newest_first], words
        assert found, words
    assert (
        int(await type_("search", "--transfer", transfer, "--count"))
        == sum(r["transfer_id"] == transfer for r in await hub.audit()) - 1
    )
    oldest = ndjson(await type_("search", "--oldest-first", "--limit", "3", "--json"))
    assert [r["entry"] for r in oldest] == [r["entry"] for r in rows[:3]]
    fhir = ndjson(await type_("search", "--transfer", transfer, "--code", "departed", "--fhir"))
    assert [(e["resourceType"], e["entity"][0]["what"]["identifier"]["value"]) for e in fhir] == [
        ("AuditEvent", MARSHWIGGLE.nhs_number)
    ]
    assert "departed" in await type_("search", "--code", "departed")
    written = await hub.audit(code="audit-exported")
    assert written[-1]["detail"] == {"parameters": ["code", "transfer"], "entries": 1}
    assert not any(MARSHWIGGLE.nhs_number in str(r["detail"]) for r in written)
    for wrong in (("--code", "nothing"), ("--action", "X"), ("--outcome", "5")):
        refused = await asyncio.to_thread(CliRunner().invoke, app, ["audit", "search", *wrong])
        assert refused.exit_code == 1, wrong


async def test_a_number_of_two_patients_is_not_mixed(hub, torbay, exeter, type_):
    """Two hospitals gave one number to two people: the page of the one must not hold the other."""
    await ask(torbay, MARSHWIGGLE)
    other = replace(QUILLFEATHER, local={"RH8": MARSHWIGGLE.local["RA9"]})
    await exeter.tells_of_patient("A28", other, at=hub.clock())
    refused = await asyncio.to_thread(
        CliRunner().invoke, app, ["audit", "report", "who-has-seen", MARSHWIGGLE.local["RA9"]]
    )
    assert (refused.exit_code, "more than one patient" in refused.stderr) == (1, True)


async def test_the_hubs_own_failures_are_no_refusals(hub, type_):
    retry = AuditEntry(
        Code.DELIVERY_RETRY, hub.clock(), "dispatcher", Outcome.MINOR_FAILURE, counterpart="RH8"
    )
    await write_down(hub.engine, [retry])
    assert "Nothing was refused." in await type_("report", "refused")


async def test_an_answer_that_is_cut_short_says_so(
    hub, torbay, exeter, plymouth, people, sign_in, type_, tmp_path
):
    await a_story(hub, torbay, exeter, plymouth, people, sign_in)
    number, page = MARSHWIGGLE.nhs_number, tmp_path / "page.html"
    for words in (
        ["search"],
        ["search", "--json"],
        ["report", "who-has-seen", number],
        ["report", "user", "555000000022", "--csv"],
    ):
        whole = await asyncio.to_thread(CliRunner().invoke, app, ["audit", *words, "--limit", "500"])
        short = await asyncio.to_thread(CliRunner().invoke, app, ["audit", *words, "--limit", "2"])
        assert (whole.exit_code, "there are more" in whole.stderr) == (0, False)
        assert (short.exit_code, "there are more" in short.stderr, "more" in short.stdout) == (0, True, False)
    told = ["audit", "report", "who-has-seen", number, "--limit", "2", "--page", str(page)]
    refused = await asyncio.to_thread(CliRunner().invoke, app, told)
    assert (refused.exit_code, page.exists()) == (1, False), (
        "a page for a patient says that it lists all of it"
    )


async def test_what_others_wrote_is_shown_as_it_is(hub, type_):
    """Square brackets are no markup: they neither vanish nor end the command."""
    name = "[/bold] [link=http://elsewhere.example]ward[/link]"
    await write_down(
        hub.engine, [AuditEntry(Code.RECORD_READ, hub.clock(), "rest", trust="RA9", user_id=name)]
    )
    assert name in await type_("search")
    assert "record-read" in await type_("report", "user", name)


async def test_all_means_all_also_what_is_long_ago(hub, torbay, exeter, plymouth, people, sign_in, type_):
    """A breaking that nobody has looked at for months is what the report is for, and `--until` alone is a question too."""
    await a_story(hub, torbay, exeter, plymouth, people, sign_in)
    begun = hub.clock()
    hub.clock.later(days=100)
    for more in ((), ("--until", f"{begun.replace(day=28):%Y-%m-%d}")):
        [broken] = ndjson(await type_("report", "break-glass", "--json", *more))
        assert (broken["user"], broken["review"]) == ("555000000022", "overdue")
        assert [r["why"] for r in ndjson(await type_("report", "refused", "--json", *more))] == [
            "no-relationship"
        ]
        assert len(ndjson(await type_("report", "without-acceptance", "--json", *more))) == 1


async def test_a_number_that_nobody_has_gets_no_answer_that_could_be_anybodys(
    hub, torbay, exeter, plymouth, people, sign_in, type_, tmp_path
):
    """A mistyped number must not become a letter that says that nobody looked; that it was asked is written down all the same."""
    await a_story(hub, torbay, exeter, plymouth, people, sign_in)
    page = tmp_path / "page.html"
    for more in ([], ["--page", str(page)], ["--csv"]):
        words = ["audit", "report", "who-has-seen", "9990009996", *more]
        said = await asyncio.to_thread(CliRunner().invoke, app, words)
        assert (said.exit_code, said.stdout) == (1, "")
        assert "knows no patient by this number" in said.stderr
    assert not page.exists()
    read = [*await hub.audit(code="audit-read"), *await hub.audit(code="audit-exported")]
    assert len([row for row in read if row["detail"].get("report") == "who-has-seen"]) == 3
    for empty in (["--patient", ""], ["--user", " "]):
        said = await asyncio.to_thread(CliRunner().invoke, app, ["audit", "search", *empty])
        assert (said.exit_code, "is empty" in said.stderr) == (1, True)
