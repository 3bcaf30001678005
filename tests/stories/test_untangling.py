"""The duty team's and governance's commands: an empty answer is empty, a short one says so, and a mistake is one line."""

import orjson
import pytest

from hub.audit.entries import AuditEntry, Code
from hub.demo.people import MARSHWIGGLE, QUILLFEATHER
from hub.domain.transfer import HUB
from hub.store.search import write_down
from tests.stories import test_transfers_cli
from tests.stories.test_journeys import ask

type_ = test_transfers_cli.type_
"""A fixture."""


@pytest.mark.parametrize(
    "words",
    [
        "quarantine list --trust RA8", "transfers list --trust RA8", "audit search --trust RA8", "audit search --by RA8", "audit search --to RA8 --count",
        "audit report refused --trust RA8", "audit report break-glass --trust RA8", "audit report without-acceptance --trust RA8", "audit report left RA8",
        "audit report user somebody --trust RA8",
    ],
)  # fmt: skip
async def test_a_trust_that_there_is_not_has_no_empty_answer(hub, torbay, type_, words):
    """Nothing left RA8, nothing is stuck there, nobody was refused: true of every mistyped code."""
    await ask(torbay, MARSHWIGGLE)
    for more in ([], [] if "--count" in words else ["--json"]):
        said = await type_(*words.split(), *more)
        assert (said.exit_code, said.stdout) == (1, "")
        assert said.stderr == "hub: No trust RA8 has joined. `hub trust list` shows those that have.\n"


async def test_a_list_that_is_cut_short_says_so(hub, torbay, type_):
    for number, who in enumerate((MARSHWIGGLE, QUILLFEATHER, MARSHWIGGLE)):
        await ask(torbay, who, number=f"TR-{number}", stay=f"V-{number}")
        await torbay.send(b"{")
    for words in ("quarantine list", "transfers list --trust ra9"):
        said = await type_(*words.split(), "--limit", "2", "--json")
        assert (said.exit_code, len(said.stdout.splitlines())) == (0, 2)
        assert "These are 2, and there are more: raise --limit" in said.stderr
        whole = await type_(*words.split(), "--json")
        assert (len(whole.stdout.splitlines()), whole.stderr) == (3, "")
        assert orjson.loads(whole.stdout.splitlines()[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("quarantine list --why nonsense", "There is no reason nonsense"),
        ("transfers list --state moved", "There is no state moved"),
        ("audit report left RA9 --month 2026-10 --since 2026-11-01", "Give a month, or --since and --until."),
        ("audit report left RA9 --month 9999-12", "9999-12 is no month of the hub's."),
    ],
)
async def test_what_cannot_be_asked_is_said(hub, type_, words, said):
    found = await type_(*words.split())
    assert (found.exit_code, found.stdout, said in found.stderr) == (1, "", True)


@pytest.mark.parametrize(
    "words",
    [
        "resend --trust RA9 --after 0 --because lost", "audit trail x", "audit search --fhir", "audit report left RA9",
        "audit report who-has-seen 9990000018",
    ],
)  # fmt: skip
async def test_trusts_that_cannot_be_read_are_said_before_anything_is_read(
    hub, type_, monkeypatch, tmp_path, words
):
    monkeypatch.setenv("HUB_SCHEMAS_DIR", str(tmp_path / "none"))
    said = await type_(*words.split())
    assert isinstance(said.exception, SystemExit), said.exception
    assert (said.exit_code, said.stdout) == (1, "")
    assert "there is no such folder" in said.stderr
    assert await hub.audit() == []


async def test_a_value_that_the_database_refuses_is_not_its_fault(hub, type_):
    said = await type_("quarantine", "show", "\udcff")
    assert said.exit_code == 1
    assert "Check HUB_DATABASE_URL" not in said.stderr


async def test_what_the_hub_itself_did_is_found_by_its_name(hub, type_):
    """It is no trust, and its name is no ODS code: it is written small."""
    rang = AuditEntry(Code.TIMER_ESCALATED, hub.clock(), "clock", trust=HUB, counterpart="RA9")
    await write_down(hub.engine, [rang])
    for words in ("--by hub", "--trust HUB", "--to ra9"):
        said = await type_("audit", "search", *words.split(), "--json")
        assert [orjson.loads(line)["code"] for line in said.stdout.splitlines()] == ["timer-escalated"]
    assert (await type_("audit", "search", "--to", "hub")).stdout == "Nothing was found.\n"
