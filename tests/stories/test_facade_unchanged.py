"""Who asks only for what has changed is never told that nothing has."""

from datetime import timedelta
from email.utils import format_datetime

from hub.demo.people import MARSHWIGGLE
from hub.domain.ids import PersonId
from hub.journey.decide import Choice
from tests.stories import test_transfers_cli as at_the_terminal
from tests.stories.conftest import TRUSTS
from tests.stories.test_facade_decisions import WHY, decides
from tests.stories.test_mistaken_identity import TWIN, ask, person_of, tells, without_nhs_number

duty = at_the_terminal.type_


async def test_two_decisions_in_one_second_are_two(hub, torbay, at_torbay, at_exeter):
    """Torbay's system read the acceptance; the refusal came in the same second, and it was told that nothing had changed, for ever."""
    here = (await torbay.send(ask(torbay))).transfer_id
    path = f"/Task/{here}"
    task = (await at_exeter.get(path)).json()
    hub.clock.later(minutes=1, milliseconds=200)
    await decides(hub, at_exeter, "PUT", task, status="accepted")
    read = await at_torbay.get(path)
    asked_at = hub.clock().replace(microsecond=0)
    hub.clock.later(milliseconds=500)
    await decides(hub, at_exeter, "PUT", read.json(), status="rejected", statusReason=WHY)
    known = {
        read.headers.get("last-modified"),
        *(format_datetime(asked_at + timedelta(seconds=s), usegmt=True) for s in (0, 1)),
    }
    for since in known - {None}:
        again = await at_torbay.get(path, headers={"If-Modified-Since": since})
        assert (again.status_code, again.json()["status"]) == (200, "rejected")
    hub.clock.later(minutes=2)
    settled = (await at_torbay.get(path)).headers["last-modified"]
    assert (await at_torbay.get(path, headers={"If-Modified-Since": settled})).status_code == 304


async def test_what_a_person_lets_pass_has_changed_now(hub, torbay, exeter, at_torbay):
    """Exeter's acceptance waited for an answer for an hour; whoever asks for the last ten minutes finds it."""
    asked = await torbay.send(ask(torbay))
    await exeter.send(without_nhs_number(tells(exeter, "A28", TWIN)))
    hub.clock.later(minutes=5)
    answers = exeter.epr.answers(
        TWIN, "accepted", requester=TRUSTS["RA9"], request_number="TR-1", at=hub.clock()
    )
    waits = await exeter.send(without_nhs_number(answers))
    assert waits.why == "needs-confirmation"
    hub.clock.later(minutes=55)
    path = f"/Task/{asked.transfer_id}"
    before = (await at_torbay.get(path)).headers["last-modified"]
    now = hub.clock.later(minutes=5)
    whom = Choice(person_id=PersonId(await person_of(hub, asked)))
    await hub.unit.retry(waits.event_id, "duty", whom)
    lately = (now - timedelta(minutes=10)).isoformat().replace("+00:00", "Z")
    found = (await at_torbay.get(f"/Task?_lastUpdated=ge{lately}")).json()["entry"]
    assert [each["resource"]["status"] for each in found] == ["accepted"]
    again = await at_torbay.get(path, headers={"If-Modified-Since": before})
    assert (again.status_code, again.json()["status"]) == (200, "accepted")
    last = (await at_torbay.get(f"{path}/_history")).json()["entry"][0]["resource"]
    assert last["meta"] == again.json()["meta"]


async def test_a_patient_without_the_number_that_is_not_theirs_is_given_again(hub, torbay, at_exeter, duty):
    """Exeter's copy has the number still, and the Patient's version is the same."""
    asked = await torbay.send(ask(torbay))
    person = await person_of(hub, asked)
    paths = (
        f"/Patient/{person}",
        f"/ServiceRequest/{asked.transfer_id}",
        f"/Encounter/{asked.transfer_id}-sender",
    )
    read = [await at_exeter.get(path) for path in paths]
    because = ("--because", "RA9 registered another patient", "--yes")
    done = await duty("people", "not-theirs", person, MARSHWIGGLE.nhs_number, *because)
    assert done.exit_code == 0, done.output
    for path, before in zip(paths, read, strict=True):
        again = await at_exeter.get(path, headers={"If-None-Match": before.headers["etag"]})
        assert (again.status_code, MARSHWIGGLE.nhs_number in again.text) == (200, False), path


async def test_the_second_telling_of_another_transfer_is_another(hub, torbay, at_exeter):
    """A Patient is shown as the last transfer tells of them, whose tellings are counted from one."""
    versions = []
    for number in (1, 2):
        asked = await torbay.send(ask(torbay, number=f"TR-{number}", stay=f"V-{number}"))
        hub.clock.later(minutes=5)
        path = f"/Patient/{await person_of(hub, asked)}"
        known = {"If-None-Match": versions[-1]} if versions else {}
        read = await at_exeter.get(path, headers=known)
        assert read.status_code == 200
        versions.append(read.headers["etag"])
    assert versions == ['W/"1"'] * 2
