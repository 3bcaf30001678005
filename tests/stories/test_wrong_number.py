"""A hospital registers a patient under somebody else's number; the duty team says so, and both go on as the two people they are."""

from dataclasses import replace

import orjson
import pytest

from hub.demo.people import MARSHWIGGLE, QUILLFEATHER
from hub.domain.ids import PersonId, TransferId
from hub.domain.rejection import Disposition
from hub.fhir.systems import NHS_NUMBER
from hub.journey.decide import Choice
from hub.store import tables as t
from tests.stories import test_transfers_cli as at_the_terminal
from tests.stories.conftest import TRUSTS, edited, resources
from tests.stories.test_mistaken_identity import (
    NO_MATCH,
    ask,
    known_by,
    person_of,
    record_of,
    tells,
    without_nhs_number,
)

duty = at_the_terminal.type_
MISTAKEN = replace(MARSHWIGGLE, nhs_number=QUILLFEATHER.nhs_number)
"""Mr Marshwiggle, as Torbay has registered him: under Mrs Quillfeather's NHS number."""
LIKE_HIM = replace(QUILLFEATHER, birth_date=MARSHWIGGLE.birth_date)
"""Somebody with that number who was born on his day: nothing but what was said tells them apart."""


@pytest.fixture
async def mistaken(hub, torbay):
    """His request, made under her number; when it was, the record that has it."""
    asked = await torbay.send(ask(torbay, MISTAKEN))
    hub.clock.later(minutes=10)
    return asked, await person_of(hub, asked)


async def mend(duty, person, *more, number=QUILLFEATHER.nhs_number, because="RA9 registered another patient"):
    done = await duty("people", "not-theirs", person, number, "--because", because, *more)
    assert done.exit_code == 0, done.output
    return done.stdout


async def records(hub):
    return {row["person_id"]: row["merged_into"] for row in await hub.rows(t.person)}


async def test_a_number_that_is_not_theirs_is_taken_and_its_holder_is_somebody_else(
    hub, torbay, exeter, mistaken, duty
):
    asked, his = mistaken
    hers = await exeter.send(tells(exeter, "A28", QUILLFEATHER))
    assert (hers.disposition, hers.why) == NO_MATCH

    would = await mend(duty, his)
    assert "Nothing was changed" in would
    assert asked.transfer_id in would
    assert QUILLFEATHER.nhs_number in await known_by(hub, his)
    assert await hub.audit(code="identity-number-taken") == []

    done = await mend(duty, his, "--yes")
    assert asked.transfer_id in done
    assert await known_by(hub, his) == {MARSHWIGGLE.local["RA9"]}
    assert await hub.state(asked.transfer_id) == "requested"
    [said] = await hub.audit(code="identity-number-taken")
    assert (said["person_id"], said["system"], bool(said["user_id"])) == (his, "cli", True)
    assert said["detail"] == {
        "authority": "nhs",
        "because": "RA9 registered another patient",
        "transfers": [asked.transfer_id],
    }

    # What waited is hers now, and so is what comes next; nobody is asked.
    retried = await hub.unit.retry(hers.event_id, "duty")
    assert retried.disposition is Disposition.ACCEPTED
    for hospital in (exeter, torbay):
        hub.clock.later(minutes=1)
        again = await hospital.send(tells(hospital, "A31", QUILLFEATHER))
        assert str(again) == "accepted"
        assert await person_of(hub, again) != his
    assert len(await records(hub)) == 2

    # His own goes on, with the number that is his.
    left = await torbay.discharges(MARSHWIGGLE, encounter_number="V-1", to_site="RH801")
    assert (str(left), left.transfer_id) == ("accepted", asked.transfer_id)
    hub.clock.later(hours=1)
    arrived = await exeter.admits(MARSHWIGGLE, encounter_number="W-1", ward="Taw", site="RH801")
    assert (str(arrived), await person_of(hub, arrived)) == ("accepted", his)
    assert await hub.state(asked.transfer_id) == "completed"


async def test_both_hospitals_are_told_that_the_number_is_not_his(hub, torbay, exeter, mistaken, duty):
    """They were sent it; what the hub tells them holds no Patient, and says what to check."""
    asked, his = mistaken
    before = {ods: len(await hub.inbox(ods)) for ods in ("RA9", "RH8")}
    await mend(duty, his, "--yes")
    for ods, count in before.items():
        [news] = (await hub.inbox(ods))[count:]
        assert (news.event_type, news.headers["transfer-id"]) == (
            "transfer.patient.identified",
            asked.transfer_id,
        )
        assert news.of("Patient") is None
        assert "took an NHS number from the patient's record" in str(news.bundle)
        assert QUILLFEATHER.nhs_number not in str(news.bundle)
    [told] = await hub.audit(code="transfer-identified")
    assert (told["system"], told["transfer_id"]) == ("cli", asked.transfer_id)
    assert asked.transfer_id in (await duty("audit", "trail", asked.transfer_id, "--json")).stdout


async def test_whoever_reads_his_patient_is_not_given_her_number(
    hub, torbay, exeter, at_torbay, at_exeter, mistaken, duty
):
    """By none of its versions, at neither hospital; and what is read can be decided on. It is shown again once that was said by mistake."""
    asked, his = mistaken
    shown = "/Patient", f"/Patient/{his}", f"/Patient/{his}/_history", f"/Patient/{his}/_history/1"
    for said, count in (((), 1), (("--yes",), 0), (("--take-back", "--yes"), 1)):
        await mend(duty, his, *said)
        for system in (at_torbay, at_exeter):
            for path in (*shown, "/Task?_include=Task:patient"):
                read = await system.get(path)
                assert (read.status_code, MARSHWIGGLE.family in read.text) == (200, True)
                assert (QUILLFEATHER.nhs_number in read.text) == bool(count), path
                assert MARSHWIGGLE.local["RA9"] in read.text
        if not count:
            hub.clock.later(minutes=1)
            task = (await at_exeter.get(f"/Task/{asked.transfer_id}")).json()
            accepts = {"status": "accepted", "lastModified": hub.clock().isoformat()}
            assert (await at_exeter.put(task | accepts)).status_code == 200
            hub.expected += 1
    assert await hub.state(asked.transfer_id) == "accepted"


async def test_what_a_human_lets_pass_is_passed_on_without_her_number(
    hub, torbay, exeter, at_exeter, mistaken, duty
):
    """Torbay's record is still wrong when he leaves; the duty team says that it is him, and Exeter is not sent her number again."""
    asked, his = mistaken
    await mend(duty, his, "--yes")
    left = await torbay.discharges(MISTAKEN, encounter_number="V-1", to_site="RH801")
    assert (left.disposition, left.why) == NO_MATCH
    retried = await hub.unit.retry(left.event_id, "duty", Choice(person_id=PersonId(his)))
    assert retried.disposition is Disposition.ACCEPTED
    news = (await hub.inbox("RH8"))[-1]
    assert (news.event_type, news.headers["transfer-id"]) == ("transfer.departed", asked.transfer_id)
    assert [each["value"] for each in news.of("Patient")["identifier"]] == [MARSHWIGGLE.local["RA9"]]
    assert QUILLFEATHER.nhs_number not in str(news.bundle)
    assert QUILLFEATHER.nhs_number not in (await at_exeter.get(f"/Patient/{his}")).text


async def test_what_was_never_asked_is_told_to_its_sender_alone(hub, torbay, duty):
    drafted = await torbay.send(edited(ask(torbay, MISTAKEN), as_a_draft))
    assert await hub.state(drafted.transfer_id) == "draft"
    await mend(duty, await person_of(hub, drafted), "--yes")
    assert await hub.told("RH8") == []
    assert (await hub.told("RA9"))[-1:] == ["transfer.patient.identified"]


def as_a_draft(tree):
    resources(tree, "ServiceRequest")[0]["status"] = "draft"


@pytest.mark.parametrize("she_is_known", [False, True])
@pytest.mark.parametrize("her", [QUILLFEATHER, LIKE_HIM], ids=["born another day", "born on his day"])
async def test_the_hospital_that_claims_it_again_is_asked_again(
    hub, torbay, exeter, mistaken, duty, she_is_known, her
):
    """Every night, verified or not, until its record is mended; his record does not learn it."""
    _, his = mistaken
    await mend(duty, his, "--yes")
    if she_is_known:
        await exeter.send(tells(exeter, "A28", her))
    for night in range(2):
        hub.clock.later(hours=12)
        again = await torbay.send(edited(tells(torbay, "A31", MISTAKEN), verified if night else same))
        assert (again.disposition, again.why) == NO_MATCH
    assert QUILLFEATHER.nhs_number not in await known_by(hub, his)
    assert set((await records(hub)).values()) == {None}

    # A human's answer, that it is about him all the same, teaches it nothing either.
    retried = await hub.unit.retry(again.event_id, "duty", Choice(person_id=PersonId(his)))
    assert retried.disposition is Disposition.ACCEPTED
    assert QUILLFEATHER.nhs_number not in await known_by(hub, his)
    hub.clock.later(hours=12)
    assert (await torbay.send(tells(torbay, "A31", MISTAKEN))).why == "needs-confirmation"


def same(tree):
    return tree


def verified(tree):
    for each in resources(tree, "Patient")[0]["identifier"]:
        if each["system"] == NHS_NUMBER:
            coded = {"coding": [{"code": "number-present-and-verified"}]}
            url = "https://fhir.hl7.org.uk/StructureDefinition/Extension-UKCore-NHSNumberVerificationStatus"
            each["extension"] = [{"url": url, "valueCodeableConcept": coded}]


async def test_in_one_batch_she_is_taken_in_and_the_claim_is_a_question(hub, torbay, exeter, mistaken, duty):
    _, his = mistaken
    await mend(duty, his, "--yes")
    batch = [
        torbay.record(tells(torbay, "A31", MISTAKEN)),
        exeter.record(tells(exeter, "A28", LIKE_HIM)),
        torbay.record(edited(tells(torbay, "A31", MISTAKEN), verified)),
    ]
    await hub.take(batch)
    outcomes = [await hub.outcome(each.event_id) for each in batch]
    assert [each.disposition for each in outcomes] == ["quarantined", "accepted", "quarantined"]
    assert set((await records(hub)).values()) == {None}


@pytest.mark.parametrize("she_is_known", [False, True])
async def test_a_record_that_keeps_the_wrong_number_as_an_old_one_is_mended(
    hub, torbay, exeter, mistaken, duty, she_is_known
):
    """Torbay mends its record; its system keeps what stood there. That she was born on his day makes them no one person."""
    asked, his = mistaken
    await mend(duty, his, "--yes")
    if she_is_known:
        await exeter.send(tells(exeter, "A28", LIKE_HIM))

    def keeps_the_old(tree):
        old = {"system": NHS_NUMBER, "value": QUILLFEATHER.nhs_number, "use": "old"}
        resources(tree, "Patient")[0]["identifier"].append(old)

    for _ in range(2):
        hub.clock.later(hours=12)
        said = await torbay.send(edited(tells(torbay, "A31", MARSHWIGGLE), keeps_the_old))
        assert (str(said), await person_of(hub, said)) == ("accepted", his)
    assert await known_by(hub, his) >= {MARSHWIGGLE.nhs_number, MARSHWIGGLE.local["RA9"]}
    assert QUILLFEATHER.nhs_number not in await known_by(hub, his)
    assert set((await records(hub)).values()) == {None}
    assert await hub.state(asked.transfer_id) == "requested"


@pytest.mark.parametrize("his_is_known", [False, True])
@pytest.mark.parametrize("she_is_known", [False, True])
async def test_an_answer_that_repeats_the_number_it_was_told_is_a_question(
    hub, torbay, exeter, mistaken, duty, she_is_known, his_is_known
):
    """Exeter has booked him under her number too. Whoever says that this transfer is meant answers for it, and teaches nothing."""
    asked, his = mistaken
    await mend(duty, his, "--yes")
    if she_is_known:
        await torbay.send(tells(torbay, "A28", QUILLFEATHER))
    if his_is_known:
        await torbay.send(tells(torbay, "A31", MARSHWIGGLE))
    hub.clock.later(minutes=1)
    answered = await exeter.answers(
        MISTAKEN, "accepted", requester=TRUSTS["RA9"], request_number="TR-1", bed="Bed 4"
    )
    assert (answered.disposition, answered.why) == NO_MATCH
    assert await hub.state(asked.transfer_id) == "requested"
    choice = Choice(transfer_id=TransferId(asked.transfer_id))
    assert (await hub.unit.retry(answered.event_id, "duty", choice)).disposition is Disposition.ACCEPTED
    assert await hub.state(asked.transfer_id) == "accepted"
    assert QUILLFEATHER.nhs_number not in await known_by(hub, his)
    assert QUILLFEATHER.nhs_number not in str((await hub.inbox("RA9"))[-1].bundle)
    assert set((await records(hub)).values()) == {None}


async def test_whoever_says_which_transfer_is_meant_does_not_say_that_she_is_he(
    hub, torbay, exeter, mistaken, duty
):
    """Her own number at Exeter stands beside it: that the transfer is meant is still a question, since it was said of her NHS number only."""
    asked, his = mistaken
    await mend(duty, his, "--yes")
    await exeter.send(tells(exeter, "A28", QUILLFEATHER))
    hub.clock.later(minutes=1)
    answered = await exeter.answers_bars(
        QUILLFEATHER, "planned", requester=TRUSTS["RA9"], request_number="TR-1"
    )
    assert (answered.disposition, answered.why) == NO_MATCH
    choice = Choice(transfer_id=TransferId(asked.transfer_id))
    retried = await hub.unit.retry(answered.event_id, "duty", choice)
    assert (retried.disposition, retried.rejection.why) == NO_MATCH
    assert await hub.state(asked.transfer_id) == "requested"


async def test_their_records_are_not_merged_afterwards(hub, torbay, exeter, mistaken, duty):
    """Torbay has both by now, and says that one replaces the other: dates of birth agree, the number was said not to be his."""
    _, his = mistaken
    await mend(duty, his, "--yes")
    hers = await person_of(hub, await torbay.send(tells(torbay, "A28", LIKE_HIM)))
    hub.clock.later(minutes=1)
    link = [{"type": "replaced-by", "other": record_of("RA9", LIKE_HIM)}]
    message = without_nhs_number(tells(torbay, "A40", MARSHWIGGLE, active=False, link=link))
    merged = await torbay.send(message)
    assert (merged.disposition, merged.why) == NO_MATCH
    assert await records(hub) == {his: None, hers: None}


async def test_a_traced_number_does_not_bring_back_what_was_taken(hub, torbay, exeter, duty):
    """Exeter's hospital number was found to be hers, not his. She is traced to his NHS number by a message that gives another of her numbers."""
    number = QUILLFEATHER.local["RH8"]
    await torbay.send(tells(torbay, "A28", MARSHWIGGLE))
    his = await person_of(
        hub, await exeter.send(tells(exeter, "A28", replace(MARSHWIGGLE, local={"RH8": number})))
    )
    await mend(duty, his, "--trust", "RH8", "--yes", number=number)
    attendance = {"system": "https://rh8.example/Id/attendance", "value": "ED-5"}

    def attends(tree):
        resources(tree, "Patient")[0]["identifier"].append(attendance)

    def only_attends(tree):
        [patient] = resources(tree, "Patient")
        patient["identifier"] = [each for each in patient["identifier"] if each["system"] == NHS_NUMBER]
        patient["identifier"].append(attendance)
        verified(tree)

    hers = await exeter.send(edited(without_nhs_number(tells(exeter, "A31", LIKE_HIM)), attends))
    assert (str(hers), await person_of(hub, hers) != his) == ("accepted", True)
    hub.clock.later(minutes=1)
    traced = await exeter.send(edited(tells(exeter, "A31", MARSHWIGGLE), only_attends))
    assert (traced.disposition, traced.why) == NO_MATCH
    assert set((await records(hub)).values()) == {None}


async def test_of_merged_records_the_one_that_has_the_number_loses_it_and_parts_without_it(
    hub, torbay, mistaken, duty
):
    """The record with the wrong number was merged into another of his: the merge stays, and so do the numbers and the label of each."""
    _, his = mistaken
    restricted = {
        "security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}]
    }
    other = replace(MARSHWIGGLE, local={"RA9": "4109999"})
    survivor = await person_of(hub, await torbay.send(without_nhs_number(tells(torbay, "A28", other))))
    await torbay.send(without_nhs_number(tells(torbay, "A31", MARSHWIGGLE, meta=restricted)))
    hub.clock.later(minutes=1)
    link = [{"type": "replaced-by", "other": record_of("RA9", other)}]
    await torbay.send(without_nhs_number(tells(torbay, "A40", MARSHWIGGLE, active=False, link=link)))
    hub.clock.later(minutes=1)
    await mend(duty, survivor, "--yes")
    assert await records(hub) == {his: survivor, survivor: None}
    assert (await hub.audit(code="identity-number-taken"))[0]["person_id"] == his
    labels = {row["person_id"]: row["sensitivity"] for row in await hub.rows(t.person)}
    assert labels == {his: "R", survivor: None}
    claims = replace(other, nhs_number=QUILLFEATHER.nhs_number)
    assert (await torbay.send(tells(torbay, "A31", claims))).why == "needs-confirmation"

    hub.clock.later(minutes=1)
    await torbay.send(without_nhs_number(tells(torbay, "A37", MARSHWIGGLE, active=True)))
    assert await known_by(hub, his) == {MARSHWIGGLE.local["RA9"]}
    # What was said was said of his record; the other may learn what it says.
    assert str(await torbay.send(tells(torbay, "A31", claims))) == "accepted"
    assert (await torbay.send(tells(torbay, "A31", MISTAKEN))).why == "needs-confirmation"


async def test_a_hospitals_own_number_can_be_taken_too(hub, torbay, exeter, duty):
    """Exeter answered under a number that is another patient's there, and a human named the transfer's person."""
    asked = await torbay.send(ask(torbay))
    his = await person_of(hub, asked)
    await exeter.send(tells(exeter, "A28", replace(MARSHWIGGLE, local={"RH8": QUILLFEATHER.local["RH8"]})))
    assert QUILLFEATHER.local["RH8"] in await known_by(hub, his)
    hers = await exeter.send(without_nhs_number(tells(exeter, "A31", QUILLFEATHER)))
    assert (hers.disposition, hers.why) == NO_MATCH

    number = QUILLFEATHER.local["RH8"]
    await mend(duty, his, "--trust", "rh8", "--yes", number=number, because="phoned RH8")
    assert await known_by(hub, his) == {MARSHWIGGLE.nhs_number, MARSHWIGGLE.local["RA9"]}
    taken = await hub.unit.retry(hers.event_id, "duty")
    assert taken.happened.identified.person_id != his
    arrived = await exeter.admits(MARSHWIGGLE, encounter_number="W-1", ward="Taw", site="RH801")
    assert (str(arrived), arrived.transfer_id) == ("accepted", asked.transfer_id)
    again = await exeter.send(tells(exeter, "A31", replace(MARSHWIGGLE, local={"RH8": number})))
    assert (again.disposition, again.why) == NO_MATCH


async def test_what_was_said_by_mistake_is_taken_back(hub, torbay, duty):
    asked = await torbay.send(ask(torbay))
    his, number = await person_of(hub, asked), MARSHWIGGLE.nhs_number
    await mend(duty, his, "--yes", number=number)
    assert (await torbay.send(tells(torbay, "A31", MARSHWIGGLE))).why == "needs-confirmation"
    assert "Nothing was changed" in await mend(duty, his, "--take-back", number=number)
    await mend(duty, his, "--take-back", "--yes", number=number, because="it was the other one")
    hub.clock.later(minutes=1)
    assert str(await torbay.send(tells(torbay, "A31", MARSHWIGGLE))) == "accepted"
    assert number in await known_by(hub, his)
    assert [e["detail"].get("taken_back") for e in await hub.audit(code="identity-number-taken")] == [
        None,
        True,
    ]
    twice = await duty("people", "not-theirs", his, number, "--because", "x", "--take-back", "--yes")
    assert (twice.exit_code, "Nobody has said this" in twice.stderr) == (1, True)


async def test_what_cannot_be_taken(hub, mistaken, duty):
    _, his = mistaken
    hers = QUILLFEATHER.nhs_number
    for words, line in (
        ((his, MARSHWIGGLE.nhs_number, "--because", "x"), "This number is not with person"),
        (("nobody", hers, "--because", "x"), "This number is not with person nobody"),
        ((his, hers, "--because", f"{hers[:3]} {hers[3:6]} {hers[6:]} is hers"), "say it without"),
        ((his, hers, "--because", "x", "--trust", "ZZZ"), "No trust ZZZ has joined"),
        ((his, hers, "--because", "x", "--system", "s"), "give --trust too"),
    ):
        said = await duty("people", "not-theirs", *words, "--yes")
        assert (said.exit_code, line in said.stderr) == (1, True), (words, said.stderr)
    assert hers in await known_by(hub, his)
    assert await hub.audit(code="identity-number-taken") == []


async def test_who_is_known_by_a_number_is_shown_and_written_down(hub, torbay, mistaken, duty):
    asked, his = mistaken
    await mend(duty, his, "--yes")
    for number in (MARSHWIGGLE.local["RA9"], his):
        shown = (await duty("people", "show", number)).stdout
        assert f"Record {his}" in shown
        assert f"{asked.transfer_id}  RA9 → RH8  requested, open" in shown
        assert f"not theirs  nhs  {QUILLFEATHER.nhs_number}" in shown
    read = await hub.audit(code="identity-read")
    assert [(each["person_id"], bool(each["user_id"])) for each in read] == [(his, True)] * 2
    plain = orjson.loads((await duty("people", "show", his, "--json")).stdout)
    assert plain["transfers"][0]["open"] is True
    for more in ((), ("--json",)):
        said = await duty("people", "show", QUILLFEATHER.nhs_number, *more)
        assert (said.exit_code, said.stdout, said.stderr) == (1, "", "hub: Nobody is known by this number.\n")


@pytest.mark.parametrize("contained", [True, False], ids=["contained", "by its identifier"])
async def test_no_request_and_no_stay_that_is_read_names_him_by_her_number(
    hub, torbay, exeter, at_torbay, at_exeter, mistaken, duty, contained
):
    """Nor by what it contains; another patient in it keeps their own. Whom it is about is said by the hub's reference."""
    asked, his = mistaken
    number = {"system": NHS_NUMBER, "value": QUILLFEATHER.nhs_number}

    def names_him(tree):
        for each in (*resources(tree, "ServiceRequest"), *resources(tree, "Encounter")):
            each["subject"] = {"type": "Patient", "identifier": number}
            if contained:
                each["contained"] = [{"resourceType": "Patient", "id": "p", "identifier": [number]}]
                each["subject"] = {"reference": "#p"}

    updates = torbay.epr.asks_to_transfer(
        MISTAKEN, to="RH8", request_number="TR-1", encounter_number="V-1", at=hub.clock()
    )
    assert (await torbay.send(edited(updates, names_him))).transfer_id == asked.transfer_id
    request, stay = f"/ServiceRequest/{asked.transfer_id}", f"/Encounter/{asked.transfer_id}-sender"
    paths = (
        request,
        f"{request}/_history",
        f"{request}/_history/2",
        "/ServiceRequest",
        stay,
        f"{stay}/_history",
    )
    paths = (*paths, "/Encounter", "/Task?_include=Task:focus")
    for said, is_shown in (((), True), (("--yes",), False), (("--take-back", "--yes"), True)):
        await mend(duty, his, *said)
        for system in (at_torbay, at_exeter):
            for path in paths:
                read = await system.get(path)
                assert read.status_code == 200, path
                assert (QUILLFEATHER.nhs_number in read.text) == is_shown, path
            if not is_shown and not contained:
                for path in (request, stay):
                    subject = (await system.get(path)).json()["subject"]
                    assert subject == {"reference": f"Patient/{his}", "type": "Patient"}
