"""What the duty team types at night: empty variables, ids of something else, what somebody else has done meanwhile."""

import re
import shutil
from datetime import timedelta

import orjson
import pytest

from hub.commands.terminal import settings_now
from hub.demo.people import MARSHWIGGLE, QUILLFEATHER
from hub.store import tables as t
from tests.stories import test_transfers_cli as at_the_terminal
from tests.stories.conftest import SCHEMAS
from tests.stories.test_journeys import ask

duty = at_the_terminal.type_


@pytest.mark.parametrize(
    "words",
    [
        ("transfers", "list", "--trust", ""),
        ("transfers", "list", "--state", " "),
        ("quarantine", "list", "--trust", ""),
        ("quarantine", "list", "--why", ""),
        ("quarantine", "retry", "E", "--transfer", ""),
        ("quarantine", "retry", "E", "--person", " "),
        ("people", "show", ""),
        ("people", "not-theirs", "P", "", "--because", "x"),
        ("people", "born", "P", "", "--because", "x"),
        ("people", "not-theirs", "P", "1", "--because", "x", "--trust", ""),
        ("resend", "--trust", "", "--after", "0", "--because", "x"),
        ("audit", "report", "refused", "--trust", ""),
        ("audit", "report", "user", ""),
        ("audit", "report", "left", ""),
    ],
)
async def test_a_variable_that_was_not_set_asks_for_nothing_and_answers_nothing(hub, torbay, duty, words):
    """All transfers would look like those of one trust, and a message would be run again without the answer that was meant."""
    await ask(torbay, MARSHWIGGLE)
    waits = await torbay.cancels_request(QUILLFEATHER, to="RH8", request_number="TR-77")
    said = await duty(*(waits.event_id if word == "E" else word for word in words))
    assert (said.exit_code, said.stdout, "is empty." in said.stderr) == (1, "", True)
    assert await hub.audit(code="msg-replayed") == []


@pytest.mark.parametrize("because", ["", "  ", "a\x00b"])
@pytest.mark.parametrize(
    "words",
    [
        ("transfers", "expire", "T"),
        ("brake", "release", "RA9"),
        ("incidents", "acknowledge", "I"),
        ("positions", "set", "epr.ra9.events", "0", "1"),
        ("people", "not-theirs", "P", "1", "--yes"),
    ],
)
async def test_what_is_written_down_has_a_reason(hub, duty, words, because):
    said = await duty(*words, "--because", because)
    assert (said.exit_code, "say why" in said.stderr) == (2, True)


async def test_a_transfer_that_there_is_not_has_no_history(hub, torbay, duty):
    await ask(torbay, MARSHWIGGLE)
    for more in ((), ("--json",)):
        said = await duty("transfers", "history", "nope", *more)
        assert (said.exit_code, said.stdout, said.stderr) == (1, "", "hub: There is no transfer nope.\n")


async def test_one_that_somebody_else_was_faster_with_keeps_the_others_from_nothing(
    hub, torbay, exeter, duty
):
    """The clock took the first in while the list of what waits was being typed."""
    told = [await torbay.cancels_request(QUILLFEATHER, to="RH8", request_number=f"TR-{n}") for n in (1, 2)]
    await ask(torbay, QUILLFEATHER, number="TR-1")
    await ask(torbay, QUILLFEATHER, number="TR-2", specialty="150")
    first, second = (each.event_id for each in told)
    assert (await duty("quarantine", "retry", first)).exit_code == 0
    again = await duty("quarantine", "retry", first, second)
    assert again.exit_code == 1
    assert again.stderr == f"hub: There is no quarantined message {first}.\n"
    assert again.stdout == f"{second}  accepted\n"
    assert len(await hub.audit(code="msg-released")) == 2


async def test_a_person_whom_nobody_knows_is_said(hub, torbay, duty):
    transfer = await ask(torbay, MARSHWIGGLE)
    waits = await torbay.cancels_request(QUILLFEATHER, to="RH8", request_number="TR-77")
    said = await duty("quarantine", "retry", waits.event_id, "--person", transfer)
    assert said.exit_code == 1
    assert "Nobody is known by the person id that was given." in said.stdout
    [replayed] = await hub.audit(code="msg-replayed")
    assert replayed["detail"]["chosen_person"] == transfer
    assert len(await hub.rows(t.person)) == 1


async def test_what_there_is_none_of_is_no_line_of_json(hub, duty):
    for words in (
        ("transfers", "list"),
        ("quarantine", "list"),
        ("incidents", "list"),
    ):
        said = await duty(*words, "--json")
        assert (said.exit_code, [orjson.loads(line) for line in said.stdout.splitlines()]) == (0, [])


async def test_what_nobody_sends_waits_for_a_reason_that_is_told(hub, torbay, duty, tmp_path, monkeypatch):
    """RH8 has left, RA9 fetches by itself: for neither anything is tried, and nothing fails."""
    await ask(torbay, MARSHWIGGLE)
    shutil.copytree(SCHEMAS, tmp_path / "schemas")
    monkeypatch.setenv("HUB_SCHEMAS_DIR", str(tmp_path / "schemas"))
    settings_now.cache_clear()

    async def why():
        said = await duty("outbox", "--json")
        assert said.exit_code == 0, said.stderr
        return {row["receiver"]: row["last_error"] for row in map(orjson.loads, said.stdout.splitlines())}

    assert await why() == {"RA9": None, "RH8": None}
    shutil.rmtree(tmp_path / "schemas" / "trusts" / "RH8")
    profile = tmp_path / "schemas" / "trusts" / "RA9" / "profile.yaml"
    profile.write_text(re.sub("outward: kafka", "outward: polled", profile.read_text()))
    told = await why()
    assert told["RH8"].startswith("no trust with this code has joined")
    assert told["RA9"].startswith("it waits until the trust fetches")
    profile.write_text("ods: [")
    assert await why() == {"RA9": None, "RH8": None}


@pytest.mark.parametrize(
    "words",
    [
        "search", "report refused", "report without-acceptance", "report break-glass", "report left RA9", "report user ops-1",
        "report who-has-seen 9990000018",
    ],
)  # fmt: skip
async def test_a_period_that_ends_before_it_begins_is_no_period_without_anything(hub, duty, words):
    """No transfer moved without acceptance between next year and this one."""
    said = await duty("audit", *words.split(), "--since", "2026-12-01", "--until", "2026-11-01")
    assert (said.exit_code, said.stdout) == (1, "")
    assert said.stderr == "hub: --until must be later than --since: nothing happened in between.\n"


#   as it is typed, printed by the hub, or copied from elsewhere
@pytest.mark.parametrize(
    "said",
    ["{:%Y-%m-%d}", "{:%Y-%m-%dT%H:%M:%S}", "{:%Y-%m-%d %H:%M:%S}Z", "{:%Y-%m-%dT%H:%M:%S.%f}Z", "{:%Y-%m-%dT%H:%M:%S}+00:00"],
)  # fmt: skip
async def test_a_time_is_read_as_people_write_it(hub, torbay, duty, said):
    asked = await ask(torbay, MARSHWIGGLE)
    words = ("audit", "search", "--transfer", asked, "--json", "--since", said.format(hub.clock()))
    found = await duty(*words)
    assert (found.exit_code, found.stdout.count('"transfer-created"')) == (0, 1), found.stderr
    # An hour later by a clock that is an hour ahead is the same time; by the hub's it is later.
    an_hour_on = f"{hub.clock() + timedelta(hours=1):%Y-%m-%dT%H:%M:%S}"
    for offset, count in (("+01:00", 1), ("Z", 0), ("", 0)):
        found = await duty(*words[:-1], an_hour_on + offset)
        assert found.stdout.count('"transfer-created"') == count, offset


@pytest.mark.parametrize("said", ["yesterday", "2026-13-01", "0001-01-01T00:00:00+01:00", "23/11/2026"])
async def test_what_is_no_time_is_said(hub, duty, said):
    found = await duty("audit", "search", "--since", said)
    assert (found.exit_code, found.stdout) == (2, "")
    assert "is no time" in found.stderr


@pytest.mark.parametrize("words", [("refused",), ("who-has-seen", "9990000018"), ("left", "RA9")])
async def test_an_answer_has_one_form(hub, duty, words):
    said = await duty("audit", "report", *words, "--csv", "--json")
    assert (said.exit_code, said.stdout) == (1, "")
    assert said.stderr == "hub: Give one of --csv, --json and --page: an answer has one form.\n"
    assert await hub.audit(code="audit-read") == []
