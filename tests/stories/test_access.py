"""Who may read what of a transfer: every cell of the table (DOMAIN, 5.4, systems), by every way of asking.

What must come out is written here a second time, so that a change of the table is a change of two places.
"""

import pytest

from hub.demo.people import MARSHWIGGLE
from hub.facade.access import READING, End, Phase
from hub.fhir.systems import NHS_NUMBER
from hub.store import tables as t
from tests.stories.conftest import resources
from tests.stories.rest import System, facade_of
from tests.stories.test_facade import asked

#                                       sender      receiver    third trust
MUST = {
    Phase.DRAFT:                       ("clinical", "nothing",  "nothing"),
    Phase.OPEN:                        ("clinical", "clinical", "nothing"),
    Phase.REFUSED:                     ("clinical", "status",   "nothing"),
    Phase.ERROR:                       ("clinical", "status",   "nothing"),
    Phase.ARRIVED:                     ("clinical", "clinical", "nothing"),
    Phase.ENDED:                       ("clinical", "clinical", "nothing"),
    Phase.LONG_ENDED:                  ("clinical", "status",   "nothing"),
}  # fmt: skip
WHO = {End.SENDER: "RA9", End.RECEIVER: "RH8", End.NEITHER: "RK9"}


def test_every_cell_is_here():
    assert set(MUST) == set(Phase)
    assert {end: set(phases) for end, phases in READING.items()} == {end: set(Phase) for end in End}


def status_is(status):
    def change(tree):
        for each in resources(tree, "ServiceRequest"):
            each["status"] = status

    return change


async def brought_to(phase, hub, torbay, exeter, system):
    """A transfer from Torbay to Exeter that has come to this."""
    if phase is Phase.DRAFT:
        return await asked(hub, torbay, system, change=status_is("draft"))
    transfer_id = await asked(hub, torbay, system)
    hub.clock.later(minutes=5)
    if phase is Phase.REFUSED:
        await exeter.answers(
            MARSHWIGGLE, "rejected", requester=torbay.profile, request_number="TR-1", reason="RRNA"
        )
    if phase is Phase.ERROR:
        await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number="TR-1", in_error=True)
    if phase in {Phase.ENDED, Phase.LONG_ENDED}:
        await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number="TR-1")
    if phase is Phase.ARRIVED:
        await torbay.discharges(MARSHWIGGLE, encounter_number="V-1", to_site="RH801")
        hub.clock.later(minutes=30)
        await exeter.admits(MARSHWIGGLE, encounter_number="W-1", ward="Taw Ward", site="RH801")
    if phase is Phase.LONG_ENDED:
        hub.clock.later(days=31)
    return transfer_id


@pytest.mark.parametrize("phase", Phase)
async def test_what_each_end_may_read(hub, torbay, exeter, phase):
    facade = facade_of(hub)
    system = await (await System.join(facade, "RA9")).signed_in()
    transfer_id = await brought_to(phase, hub, torbay, exeter, system)
    [person] = [row["person_id"] for row in await hub.rows(t.person)]
    patient = f"{NHS_NUMBER}|{MARSHWIGGLE.nhs_number}"
    of_status = [
        f"/Task/{transfer_id}", f"/Task/{transfer_id}/_history", "/Task", f"/Task?_id={transfer_id}",
        f"/Task?patient:identifier={patient}", "/Task?identifier=TR-1",
        "/Provenance", f"/Provenance/{transfer_id}-1", f"/Provenance?target=Task/{transfer_id}",
        f"/Provenance?patient:identifier={patient}",
    ]  # fmt: skip
    clinical = [
        f"/ServiceRequest/{transfer_id}", "/ServiceRequest", f"/ServiceRequest?patient:identifier={patient}",
        f"/Patient/{person}", "/Patient", f"/Patient?_id={person}", f"/Patient?identifier={patient}",
        "/Task?_include=Task:focus&_include=Task:patient", "/ServiceRequest?_include=ServiceRequest:subject",
        f"/ServiceRequest/{transfer_id}/_history", f"/ServiceRequest/{transfer_id}/_history/1",
        f"/Patient/{person}/_history", f"/Patient/{person}/_history/1", f"/Encounter/{transfer_id}-sender/_history",
        f"/Encounter/{transfer_id}-sender/_history/1",
        f"/Encounter/{transfer_id}-sender", "/Encounter", f"/Encounter?patient:identifier={patient}",
    ]  # fmt: skip
    for end, level in zip(End, MUST[phase], strict=True):
        client = await (await System.join(facade, WHO[end])).signed_in()

        async def says(path, word, client=client):
            answer = await client.get(path)
            assert answer.status_code in {200, 404}, (path, answer.text)
            body = answer.json()
            body.pop("link", None)
            return answer.status_code == 200 and word in str(body)

        for path in of_status:
            assert await says(path, transfer_id) is (level != "nothing"), (end, path)
            assert not await says(path, MARSHWIGGLE.family), (end, path)
        for path in clinical:
            kinds = ("'resourceType': 'ServiceRequest'", "'resourceType': 'Encounter'")
            shown = any([await says(path, word) for word in (MARSHWIGGLE.family, *kinds)])
            assert shown is (level == "clinical"), (end, path)
        for row in await hub.rows(t.outbox, t.outbox.c.transfer_id == transfer_id):
            mine = row["receiver"] == WHO[end] and level == "clinical"
            assert await says(f"/Bundle/{row['seq']}", transfer_id) is mine, (end, row["receiver"])
            heard = row["receiver"] == WHO[end] and level != "nothing"
            assert await says(f"/MessageHeader/{row['seq']}", transfer_id) is heard, (end, row["receiver"])
        listed = (await client.get(f"/MessageHeader?focus=Task/{transfer_id}")).json().get("entry", [])
        own = await hub.rows(t.outbox, t.outbox.c.transfer_id == transfer_id)
        wanted = [row["seq"] for row in own if row["receiver"] == WHO[end]] if level != "nothing" else []
        assert [int(each["resource"]["id"]) for each in listed] == sorted(wanted, reverse=True)
