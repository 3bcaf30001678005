"""Records that were merged one after the other are one patient over REST too, however many merges lie between."""

from dataclasses import replace
from itertools import pairwise

import pytest

from hub.demo.people import MARSHWIGGLE, patient_number
from hub.fhir.systems import NHS_NUMBER
from tests.stories.conftest import TRUSTS, edited, resources
from tests.stories.test_mistaken_identity import (
    THIRD,
    TWIN,
    ask,
    person_of,
    record_of,
    tells,
    without_nhs_number,
)

RESTRICTED = {
    "security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}]
}
POSTCODE = "TQ2 7AA"


def lives_at(postcode):
    def change(tree):
        for each in resources(tree, "Patient"):
            each["address"] = [{"postalCode": postcode}]

    return change


@pytest.fixture
async def merged_twice(hub, torbay):
    """The first record, which is restricted, stands in the second, and that one in the third: a transfer of each."""
    people = (TWIN, MARSHWIGGLE, THIRD)
    await torbay.send(without_nhs_number(tells(torbay, "A28", TWIN, meta=RESTRICTED)))
    found = []
    for number, patient in enumerate(people, 1):
        message = edited(ask(torbay, patient, f"TR-{number}", f"V-{number}"), lives_at(POSTCODE))
        found.append(await torbay.send(without_nhs_number(message)))
        hub.clock.later(minutes=1)
    for loser, survivor in pairwise(people):
        link = [{"type": "replaced-by", "other": record_of("RA9", survivor)}]
        merged = await torbay.send(without_nhs_number(tells(torbay, "A40", loser, active=False, link=link)))
        assert str(merged) == "accepted"
        hub.clock.later(minutes=1)
    return found


async def test_who_is_restricted_is_so_after_two_merges(hub, at_torbay, at_exeter, merged_twice):
    """The address that the last of the records has is the restricted patient's."""
    for each in merged_twice:
        person = await person_of(hub, each)
        read = await at_exeter.get(f"/Patient/{person}")
        assert (read.status_code, POSTCODE in read.text) == (200, False)
        assert POSTCODE in (await at_torbay.get(f"/Patient/{person}")).text
    assert POSTCODE not in (await at_exeter.get("/Task?_include=Task:patient")).text


async def test_a_search_for_one_of_the_records_finds_the_transfers_of_all(hub, at_torbay, merged_twice):
    transfers = {each.transfer_id for each in merged_twice}
    system = TRUSTS["RA9"].identifier_systems.patient
    for each, patient in zip(merged_twice, (TWIN, MARSHWIGGLE, THIRD), strict=True):
        for asked in (
            f"patient=Patient/{await person_of(hub, each)}",
            f"patient:identifier={system}|{patient.local['RA9']}",
        ):
            found = (await at_torbay.get(f"/Task?{asked}")).json()["entry"]
            assert {entry["resource"]["id"] for entry in found} == transfers, asked


async def test_a_transfer_of_a_record_that_was_merged_shows_the_number_that_the_patient_has_now(
    hub, torbay, at_torbay, at_exeter
):
    """Who was asked for without a number, and was found to be somebody who has one; then that number is replaced."""
    asked = await torbay.send(without_nhs_number(ask(torbay, TWIN)))
    assert "identifier" not in (await at_exeter.get(f"/Task/{asked.transfer_id}")).json()["for"]
    await torbay.send(tells(torbay, "A28", MARSHWIGGLE))
    link = [{"type": "replaced-by", "other": record_of("RA9", MARSHWIGGLE)}]
    hub.clock.later(minutes=1)
    await torbay.send(without_nhs_number(tells(torbay, "A40", TWIN, active=False, link=link)))
    for number in (MARSHWIGGLE.nhs_number, *(patient_number(each).nhs_number for each in (88, 83))):
        if number != MARSHWIGGLE.nhs_number:
            old = {"system": NHS_NUMBER, "value": MARSHWIGGLE.nhs_number, "use": "old"}
            hub.clock.later(minutes=5)
            news = edited(
                tells(torbay, "A31", replace(MARSHWIGGLE, nhs_number=number)),
                lambda tree, old=old: resources(tree, "Patient")[0]["identifier"].append(old),
            )
            assert str(await torbay.send(news)) == "accepted"
        for system in (at_torbay, at_exeter):
            task = (await system.get(f"/Task/{asked.transfer_id}")).json()
            assert task["for"]["identifier"]["value"] == number
