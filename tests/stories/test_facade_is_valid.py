"""What the facade serves is valid FHIR R4, as HAPI's validator judges it with UK Core loaded.

Where the validator is and what happens without it: `tests.harness.validator`.
"""

import uuid

import pytest

from hub.demo.people import MARSHWIGGLE, QUILLFEATHER
from hub.domain.trust import Directory
from tests.harness.validator import judge, needs_validator
from tests.stories.rest import System
from tests.stories.test_facade import asked, polled  # noqa: F401 - a fixture
from tests.stories.test_subscriptions import subscribes, wish


@pytest.mark.validator
@pytest.mark.timeout(300)
@needs_validator
async def test_every_resource_that_is_read_back_is_valid(hub, torbay, exeter, polled):  # noqa: F811
    at_torbay = await (await System.join(polled, "RA9")).signed_in()
    at_exeter = await (await System.join(polled, "RH8")).signed_in()
    trusts = [each.model_copy(update={"callback_hosts": ("127.0.0.1",)}) for each in polled.directory]
    polled.directory = Directory(trusts)
    subscribed = await subscribes(
        at_exeter, wish("http://127.0.0.1:1/", content="full-resource", heartbeat=60)
    )
    subscription = f"/Subscription/{subscribed.json()['id']}"
    transfer_id = await asked(hub, torbay, at_torbay)
    await asked(hub, torbay, at_torbay, patient=QUILLFEATHER, number="TR-2", stay="V-2")
    for status, more in (("received", {}), ("accepted", {}), ("ready", {"bed": "Taw 4"})):
        hub.clock.later(minutes=5)
        await exeter.answers(MARSHWIGGLE, status, requester=torbay.profile, request_number="TR-1", **more)
    await exeter.answers(
        QUILLFEATHER, "rejected", requester=torbay.profile, request_number="TR-2", reason="RRNA"
    )
    hub.clock.later(minutes=30)
    await torbay.discharges(MARSHWIGGLE, encounter_number="V-1", to_site="RH801")
    await exeter.admits(MARSHWIGGLE, encounter_number="W-1", ward="Taw Ward", site="RH801")

    read = {
        "capabilities": await at_torbay.get("/metadata"),
        "task": await at_torbay.get(f"/Task/{transfer_id}"),
        "version": await at_exeter.get(f"/Task/{transfer_id}/_history/3"),
        "history": await at_exeter.get(f"/Task/{transfer_id}/_history"),
        "search": await at_torbay.get("/Task?_total=accurate&_count=1&colour=red"),
        "request": await at_exeter.get(f"/ServiceRequest/{transfer_id}"),
        "own-request": await at_torbay.get(f"/ServiceRequest/{transfer_id}"),
        "patients": await at_exeter.get("/Patient"),
        "included": await at_exeter.get("/Task?_include=Task:focus&_include=Task:patient"),
        "requests": await at_torbay.get("/ServiceRequest?_include=ServiceRequest:subject"),
        "count": await at_torbay.get("/Task?_summary=count"),
        "inbox": await at_exeter.get("/$inbox"),
        "organisations": await at_torbay.get("/Organization"),
        "subscribed": subscribed,
        "subscriptions": await at_exeter.get("/Subscription"),
        "subscription-status": await at_exeter.get(f"{subscription}/$status"),
        "subscription-events": await at_exeter.get(f"{subscription}/$events"),
        "subscription-ids": await at_exeter.get(f"{subscription}/$events?content=id-only"),
        "encounters": await at_exeter.get("/Encounter"),
        "encounter": await at_torbay.get(f"/Encounter/{transfer_id}-receiver"),
        "provenance": await at_exeter.get(f"/Provenance?target=Task/{transfer_id}"),
        "headers": await at_exeter.get("/MessageHeader"),
        "request-history": await at_exeter.get(f"/ServiceRequest/{transfer_id}/_history"),
        "request-version": await at_torbay.get(f"/ServiceRequest/{transfer_id}/_history/1"),
        "patient-history": await at_exeter.get(
            f"/Patient/{(await at_exeter.get('/Patient')).json()['entry'][0]['resource']['id']}/_history"
        ),
        "stay-history": await at_torbay.get(f"/Encounter/{transfer_id}-sender/_history"),
        "places": await at_torbay.get("/Location"),
        "place": await at_torbay.get("/Location/RH801"),
        "nothing": await at_torbay.get(f"/Task/{uuid.uuid4()}"),
        "unusable": await at_torbay.get("/Task?_count=many"),
    }
    inbox = read["inbox"].json()["entry"]
    assert len(inbox) >= 3
    read["message"] = await at_exeter.get(f"/Bundle/{inbox[0]['resource']['id']}")
    read["acknowledged"] = await at_exeter.ack(inbox[0]["resource"]["id"])
    read["nobody"] = await at_exeter.get("/Task?_id=none")
    # What was disclosed, moved, read and refused above.
    read["audit"] = await at_torbay.get("/AuditEvent?_count=200&_total=accurate&colour=red")
    read["audit-entry"] = await at_torbay.get(
        f"/AuditEvent/{read['audit'].json()['entry'][0]['resource']['id']}"
    )
    verdict = judge([answer.content for answer in read.values()], names=list(read))
    assert verdict.judged == len(read)
    # The backport's own profile is not among those that lie beside the repository.
    wrong = [
        each for each in verdict.errors if "backport-subscription-status-r4' has not been checked" not in each
    ]
    assert wrong == []
