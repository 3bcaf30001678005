"""Whose a place, a code or a record is: one building of two trusts, codes of trusts that are gone, one record system of three.

Each story goes the whole way, from the sender's bytes to what stands in the receivers' inboxes.
"""

from dataclasses import replace

import pytest

from hub.demo.people import (
    BRAMBLETHORPE,
    FENNIMOSS,
    GOSLINGDALE,
    LARKENBY,
    MOONRAKER,
    OAKENSHADE,
    PEBBLEWORTH,
)
from hub.fhir.systems import ODS_ORGANISATION, ODS_SITE
from hub.store import tables as t
from tests.stories.conftest import edited
from tests.stories.test_journeys import accepted, admit, answer, ask, discharge, sharing_one_record


def called(message, name, other):
    """The same message with an organisation or a place under another code, wherever it is named by it."""

    def rename(node):
        if isinstance(node, list):
            for each in node:
                rename(each)
        elif isinstance(node, dict):
            if node.get("system") in {ODS_ORGANISATION, ODS_SITE} and node.get("value") == name:
                node["value"] = other
                node["system"] = ODS_SITE if len(other) == 5 else ODS_ORGANISATION
            if node.get("endpoint") == f"{ODS_ORGANISATION}|{name}":
                node["endpoint"] = f"{ODS_SITE if len(other) == 5 else ODS_ORGANISATION}|{other}"
            for each in node.values():
                rename(each)

    return edited(message, rename)


async def hears(hub, ods):
    return [(record.key, record.event_type) for record in await hub.inbox(ods)]


# One building, two trusts: Exeter's Wonford hospital is RH801, and within it Plymouth runs RK963.


async def test_two_patients_go_to_one_building_and_each_is_its_trusts_own(hub, torbay, exeter, plymouth):
    to_exeter = await accepted(hub, torbay, exeter, FENNIMOSS)
    theirs = await ask(torbay, MOONRAKER, to="RK9", number="TR-2", stay="V-2", to_site="RK963")
    for status in ("received", "accepted", "ready"):
        hub.clock.later(minutes=5)
        await answer(plymouth, status, MOONRAKER, torbay, number="TR-2")
    hub.clock.later(minutes=20)
    await discharge(torbay, FENNIMOSS, to_site="RH801")
    await discharge(torbay, MOONRAKER, to_site="RK963", stay="V-2")
    assert [await hub.state(each) for each in (to_exeter, theirs)] == ["in-transit", "in-transit"]

    hub.clock.later(minutes=40)
    await admit(exeter, FENNIMOSS, site="RH801")
    assert [await hub.state(each) for each in (to_exeter, theirs)] == ["completed", "in-transit"]
    await admit(plymouth, MOONRAKER, stay="W-8", site="RK963")
    assert [await hub.state(each) for each in (to_exeter, theirs)] == ["completed", "completed"]
    assert {key for key, _ in await hears(hub, "RH8")} == {to_exeter}
    assert {key for key, _ in await hears(hub, "RK9")} == {theirs}


@pytest.mark.parametrize(("site", "owner", "other"), [("RK963", "RK9", "RH8"), ("RH801", "RH8", "RK9")])
async def test_a_request_addressed_to_a_site_goes_to_the_trust_that_runs_it(hub, torbay, site, owner, other):
    asked = torbay.epr.asks_to_transfer(
        LARKENBY, to=owner, request_number="TR-1", encounter_number="V-1", at=hub.clock()
    )
    assert str(await torbay.send(called(asked, owner, site))) == "accepted"
    assert await hub.told(owner) == ["transfer.requested"]
    assert await hub.told(other) == []


async def test_a_site_that_changed_hands_is_whose_profile_lists_it(hub, torbay):
    """Exeter takes the ward over from Plymouth; its code still begins with RK9."""
    sites = {ods: hub.trust(ods).profile.sites for ods in ("RH8", "RK9")}
    [ward] = [site for site in sites["RK9"] if site.ods == "RK963"]
    now = {"RH8": (*sites["RH8"], ward), "RK9": tuple(each for each in sites["RK9"] if each != ward)}
    hub.mend(
        profiles=[
            each.model_copy(update={"sites": now[each.ods]}) if each.ods in now else each
            for each in hub.journey.directory
        ]
    )
    asked = torbay.epr.asks_to_transfer(
        LARKENBY, to="RH8", request_number="TR-1", encounter_number="V-1", at=hub.clock()
    )
    assert str(await torbay.send(called(asked, "RH8", "RK963"))) == "accepted"
    assert (await hub.told("RH8"), await hub.told("RK9")) == (["transfer.requested"], [])


async def test_leaving_for_the_other_trust_in_the_building_is_not_leaving_for_this_one(
    hub, torbay, exeter, plymouth
):
    """Accepted by Exeter; the record says that she went to Plymouth's ward in Exeter's hospital."""
    transfer = await accepted(hub, torbay, exeter, OAKENSHADE)
    hub.clock.later(minutes=20)
    await discharge(torbay, OAKENSHADE, to_site="RK963")

    assert await hub.state(transfer) != "in-transit"
    assert "transfer.diverged" in await hub.told("RH8")
    assert await hub.told("RK9") == []


# Trusts that are gone: their codes mean those that absorbed them.

GONE = [("RBZ", "RBZ12", "RH8"), ("RA3", "RA301", "RA7"), ("RJF", "RJF02", "RTG")]


@pytest.mark.parametrize(("old", "old_site", "new"), GONE)
async def test_a_whole_journey_in_the_codes_of_a_trust_that_is_gone(hub, torbay, old, old_site, new):
    """The sender still knows the hospital by its old codes, and so does the hospital's own record system."""
    receiver = hub.trust(new)
    asked = torbay.epr.asks_to_transfer(
        BRAMBLETHORPE, to=new, request_number="TR-1", encounter_number="V-1", at=hub.clock()
    )
    asked = await torbay.send(called(asked, new, old))
    assert str(asked) == "accepted"
    transfer = asked.transfer_id
    assert await hub.told(new) == ["transfer.requested"]

    for status in ("accepted", "ready"):
        hub.clock.later(minutes=10)
        said = receiver.epr.answers(
            BRAMBLETHORPE, status, requester=torbay.profile, request_number="TR-1", at=hub.clock()
        )
        assert str(await receiver.send(called(said, new, old))) == "accepted"
    hub.clock.later(minutes=30)
    await discharge(torbay, BRAMBLETHORPE, to_site=old_site)
    assert await hub.state(transfer) == "in-transit"

    hub.clock.later(minutes=30)
    arrived = receiver.epr.admits(BRAMBLETHORPE, encounter_number="W-1", ward="Taw", at=hub.clock())
    arrived = called(called(arrived, new, old), receiver.profile.sites[0].ods, old_site)
    assert str(await receiver.send(arrived)) == "accepted"
    assert await hub.state(transfer) == "completed"
    assert [row["receiver"] for row in await hub.rows(t.transfer)] == [new]


@pytest.mark.parametrize(("old", "old_site", "new"), GONE)
async def test_a_gone_trusts_code_is_nobody_elses_to_use(hub, exeter, plymouth, old, old_site, new):
    asked = plymouth.epr.asks_to_transfer(
        BRAMBLETHORPE, to="RVJ", request_number="TR-1", encounter_number="V-1", at=hub.clock()
    )
    for code in (old, old_site):
        said = await plymouth.send(called(asked, "RK9", code))
        assert (said.disposition, said.why) == ("quarantined", "sender-not-topic-owner")
    assert await hub.told("RVJ") == []


async def test_a_trust_does_not_ask_itself_by_its_old_name(hub, exeter):
    asked = exeter.epr.asks_to_transfer(
        BRAMBLETHORPE, to="RVJ", request_number="TR-1", encounter_number="V-1", at=hub.clock()
    )
    said = await exeter.send(called(asked, "RVJ", "RBZ"))
    assert said.why == "receiver-is-sender"


# One record system of three trusts: the same numbers, told on three topics.

THREE = ("RH8", "RK9", "RVJ")


async def test_a_stay_that_three_trusts_tell_happens_once(hub, torbay, exeter):
    """The instance publishes every stay on all its trusts' topics, in any order; one is the owner's word."""
    transfer = await accepted(hub, torbay, exeter, GOSLINGDALE)
    hub.mend(profiles=sharing_one_record(hub))
    hub.clock.later(hours=1)
    own = exeter.epr.admits(GOSLINGDALE, encounter_number="W-7", ward="Taw", at=hub.clock())
    heard = {ods: await hub.trust(ods).send(edited(own, lambda _: None)) for ods in ("RK9", "RH8", "RVJ")}

    assert {ods: each.why for ods, each in heard.items()} == {
        "RK9": "shared-record-echo",
        "RH8": None,
        "RVJ": "shared-record-echo",
    }
    assert await hub.state(transfer) == "completed"
    assert (await hub.told("RA9")).count("transfer.completed") == 1
    assert await hub.told("RK9") == await hub.told("RVJ") == []


@pytest.mark.parametrize("kind", ["collection", "transaction", "searchset"])
async def test_an_echo_is_an_echo_in_every_kind_of_bundle(hub, torbay, exeter, kind):
    transfer = await accepted(hub, torbay, exeter, GOSLINGDALE)
    hub.mend(profiles=sharing_one_record(hub))
    hub.clock.later(hours=1)

    def exchanged(tree):
        tree["type"] = kind
        for entry in tree["entry"]:
            resource_type = entry["resource"]["resourceType"]
            if kind == "transaction":
                entry["request"] = {"method": "POST", "url": resource_type}
            if kind == "searchset":
                entry["search"] = {"mode": "match" if resource_type == "Encounter" else "include"}

    own = exeter.epr.admits(GOSLINGDALE, encounter_number="W-7", ward="Taw", at=hub.clock())
    assert (await hub.trust("RVJ").send(edited(own, exchanged))).why == "shared-record-echo"
    assert str(await exeter.send(edited(own, exchanged))) == "accepted"
    assert await hub.state(transfer) == "completed"


async def test_an_echo_under_the_trusts_own_header_is_an_echo(hub, torbay, exeter):
    """The message says that Plymouth sends it, and so it does; the stay is Exeter's."""
    transfer = await accepted(hub, torbay, exeter, GOSLINGDALE)
    hub.mend(profiles=sharing_one_record(hub))
    hub.clock.later(hours=1)
    plymouth = hub.trust("RK9")
    told = plymouth.epr.admits(
        GOSLINGDALE, encounter_number="W-7", ward="Taw", at=hub.clock(), form="message"
    )

    def of_exeter(tree):
        for entry in tree["entry"]:
            if "serviceProvider" in entry["resource"]:
                entry["resource"]["serviceProvider"]["identifier"]["value"] = "RH8"

    assert (await plymouth.send(edited(told, of_exeter))).why == "shared-record-echo"
    assert await hub.state(transfer) == "bed-allocated"


async def test_one_number_at_two_trusts_of_one_system_is_two_patients(hub, torbay, exeter, plymouth):
    """Two people are 7001 at Exeter and at Plymouth, under the instance's one namespace, and neither has an NHS number yet."""
    shared = plymouth.profile.identifier_systems
    one = [
        each.model_copy(update={"identifier_systems": shared}) if each.ods in THREE else each
        for each in sharing_one_record(hub)
    ]
    hub.mend(profiles=one)
    for hospital, patient in ((exeter, FENNIMOSS), (plymouth, PEBBLEWORTH)):
        hospital.epr.profile = next(each for each in one if each.ods == hospital.ods)
        here = replace(patient, local={hospital.ods: "7001"})

        def numberless(tree):
            for entry in tree["entry"]:
                if entry["resource"]["resourceType"] == "Patient":
                    entry["resource"]["identifier"] = entry["resource"]["identifier"][1:]

        stay = hospital.epr.admits(here, encounter_number="E-1", ward="Taw", at=hub.clock())
        assert str(await hospital.send(edited(stay, numberless))) == "accepted"

    authorities = [
        (row["authority"], row["person_id"])
        for row in await hub.rows(t.person_identifier)
        if row["value"] == "7001"
    ]
    assert {authority for authority, _ in authorities} == {f"RH8|{shared.patient}", f"RK9|{shared.patient}"}
    assert len({person for _, person in authorities}) == 2
