"""A hospital mistypes a date of birth; the duty team says the right one, and what everybody says from then on is no question."""

from dataclasses import replace
from datetime import date

import orjson
import pytest

from hub.demo.people import MARSHWIGGLE
from hub.domain.rejection import Disposition
from hub.store import tables as t
from tests.stories import test_transfers_cli as at_the_terminal
from tests.stories.conftest import TRUSTS
from tests.stories.test_mistaken_identity import (
    NO_MATCH,
    ask,
    person_of,
    record_of,
    tells,
    without_nhs_number,
)

duty = at_the_terminal.type_
MISTYPED = replace(MARSHWIGGLE, birth_date=date(1984, 3, 9))
RIGHT, WRONG = MARSHWIGGLE.birth_date.isoformat(), MISTYPED.birth_date.isoformat()


@pytest.fixture
async def mistyped(hub, torbay):
    """His request, made with a wrong date of birth; the person whom the hub holds for it."""
    asked = await torbay.send(ask(torbay, MISTYPED))
    hub.clock.later(minutes=10)
    return asked, await person_of(hub, asked)


async def mend(duty, person, *more, born=RIGHT):
    done = await duty("people", "born", person, born, "--because", "RA9 read out the passport", *more)
    assert done.exit_code == 0, done.output
    return done.stdout


async def dates(hub):
    return {row["person_id"]: row["birth_date"] for row in await hub.rows(t.person)}


async def test_a_date_of_birth_is_mended_and_nobody_is_asked_again(hub, torbay, exeter, mistyped, duty):
    asked, his = mistyped
    await exeter.answers(MISTYPED, "accepted", requester=TRUSTS["RA9"], request_number="TR-1")
    hub.clock.later(hours=1)
    left = await torbay.discharges(MARSHWIGGLE, encounter_number="V-1", to_site="RH801")
    assert (left.disposition, left.why) == NO_MATCH

    would = await mend(duty, his)
    assert "Nothing was changed" in would
    assert f"transfer {asked.transfer_id}  RA9 → RH8  accepted, open" in would
    assert await dates(hub) == {his: WRONG}
    assert await hub.audit(code="identity-birth-date-set") == []

    done = await mend(duty, his, "--yes")
    assert "hub quarantine list --why needs-confirmation" in done
    assert await dates(hub) == {his: RIGHT}
    assert (await hub.unit.retry(left.event_id, "duty")).disposition is Disposition.ACCEPTED
    assert await hub.state(asked.transfer_id) == "in-transit"

    hub.clock.later(hours=1)
    arrived = await exeter.admits(MARSHWIGGLE, encounter_number="W-1", ward="Taw", site="RH801")
    assert str(arrived) == "accepted"
    assert await hub.state(asked.transfer_id) == "completed"

    # Where it was mistyped it may still stand: who says it again is asked, and moves nothing.
    again = await torbay.send(tells(torbay, "A31", MISTYPED))
    assert (again.disposition, again.why) == NO_MATCH
    assert await dates(hub) == {his: RIGHT}


async def test_it_is_written_down_once_and_without_a_date(hub, mistyped, duty):
    asked, his = mistyped
    await mend(duty, his, "--yes")
    assert "holds this date already" in await mend(duty, his, "--yes")
    [said] = await hub.audit(code="identity-birth-date-set")
    assert (said["person_id"], said["system"], bool(said["user_id"])) == (his, "cli", True)
    assert said["detail"] == {
        "because": "RA9 read out the passport",
        "records": [his],
        "transfers": [asked.transfer_id],
    }
    for date_ in (RIGHT, WRONG):
        assert date_ not in str(await hub.audit())


async def test_whoever_mends_it_sees_what_is_held(hub, mistyped, duty):
    _, his = mistyped
    assert f"born        {WRONG}" in (await duty("people", "show", his)).stdout
    await mend(duty, his, "--yes", born="1948-03")
    assert orjson.loads((await duty("people", "show", his, "--json")).stdout)["birth_date"] == "1948-03"


async def test_records_that_were_not_merged_for_it_are_merged_then_and_mended_together(
    hub, torbay, exeter, mistyped, duty
):
    """Exeter's record has the right date and no NHS number; Torbay's second one too, until somebody says that it is his."""
    asked, his = mistyped
    second = replace(MARSHWIGGLE, local=MARSHWIGGLE.local | {"RA9": "4106666"})
    own = without_nhs_number(tells(torbay, "A28", second))
    other = await person_of(hub, await torbay.send(own))
    assert other != his
    merge = tells(
        torbay,
        "A40",
        second,
        active=False,
        link=[{"type": "replaced-by", "other": record_of("RA9", MARSHWIGGLE)}],
    )
    merge = await torbay.send(without_nhs_number(merge))
    assert (merge.disposition, merge.why) == NO_MATCH

    await mend(duty, his, "--yes")
    assert (await hub.unit.retry(merge.event_id, "duty")).disposition is Disposition.ACCEPTED
    assert {row["person_id"]: row["merged_into"] for row in await hub.rows(t.person)} == {
        his: None,
        other: his,
    }
    # By whichever of the records the person is named, both hold what is said then.
    await mend(duty, other, "--yes", born="1948-03-10")
    assert await dates(hub) == {his: "1948-03-10", other: "1948-03-10"}
    [_, said] = await hub.audit(code="identity-birth-date-set")
    assert (said["person_id"], set(said["detail"]["records"])) == (his, {his, other})
    assert said["detail"]["transfers"] == [asked.transfer_id]


async def test_what_is_no_date_or_nobody_is_said_in_a_line(hub, mistyped, duty):
    _, his = mistyped
    for words, line in (
        (("nobody", RIGHT, "--because", "x"), "There is no person nobody"),
        ((his, "9.3.1948", "--because", "x"), "A date of birth is YYYY-MM-DD"),
        ((his, "1948-02-30", "--because", "x"), "A date of birth is YYYY-MM-DD"),
        ((his, "0000", "--because", "x"), "A date of birth is YYYY-MM-DD"),
        ((his, "2999-01-01", "--because", "x"), "not in the future"),
        ((his, RIGHT, "--because", f"{RIGHT} is on the passport"), "say it without"),
        ((his, RIGHT, "--because", f"{WRONG} was mistyped"), "say it without"),
        ((his, RIGHT, "--because", f"the ward says {MARSHWIGGLE.birth_date:%d/%m/%Y}"), "say it without"),
        ((his, RIGHT, "--because", f"the ward says {MARSHWIGGLE.birth_date:%d.%m.%y}"), "say it without"),
        ((his, RIGHT, "--because", f"born {MARSHWIGGLE.birth_date:%d %B %Y}"), "say it without"),
    ):
        said = await duty("people", "born", *words, "--yes")
        assert (said.exit_code, line in said.stderr) == (1, True), (words, said.stderr)
    assert await dates(hub) == {his: WRONG}
    assert await hub.audit(code="identity-birth-date-set") == []
