"""Which transfer a message means, where a patient has had more than one stay and more than one transfer.

Each is one patient. Torbay (RA9) is where they are, Exeter (RH8) where they are to go; Plymouth (RK9) is another hospital.
"""

from datetime import timedelta

import pytest

from hub.demo.people import MARSHWIGGLE
from tests.stories.test_journeys import admit, ask, on_the_way

OLD_STAY = "W-0"


def period(began, **lasted):
    return {"start": began.isoformat(), "end": (began + timedelta(**lasted)).isoformat()}


# ----------------------------------------------------------------------------------------------------------------------
# Old stays that are told again
# ----------------------------------------------------------------------------------------------------------------------


async def test_an_old_stay_that_is_coded_while_the_patient_waits_is_no_arrival(hub, torbay, exeter):
    """They were at Exeter three weeks ago; its coders finish that record an hour after Torbay has asked."""
    began = hub.clock() - timedelta(days=24)
    await exeter.discharges(
        MARSHWIGGLE,
        encounter_number=OLD_STAY,
        at=began + timedelta(days=4),
        admitted_at=began,
        disposition="19",
    )
    transfer = await ask(torbay, MARSHWIGGLE)
    hub.clock.later(hours=1)
    coded = await exeter.reports(
        "A08", MARSHWIGGLE, encounter_number=OLD_STAY, status="finished", period=period(began, days=4)
    )

    assert (str(coded), coded.transfer_id) == ("accepted", None)
    assert await hub.state(transfer) == "requested"
    assert await hub.told("RA9") == []


@pytest.mark.parametrize("status", ["in-progress", "finished"])
async def test_an_old_stay_with_a_patient_from_a_hospital_is_no_arrival_either(hub, torbay, exeter, status):
    """Whoever came from Plymouth last week did not come from Torbay now."""
    began = hub.clock() - timedelta(days=7)
    await admit(exeter, MARSHWIGGLE, stay=OLD_STAY, at=began)
    transfer = await ask(torbay, MARSHWIGGLE)
    hub.clock.later(minutes=5)
    source = {"admitSource": {"coding": [{"code": "51"}]}}
    await exeter.reports(
        "A08", MARSHWIGGLE, encounter_number=OLD_STAY, status=status, period={"start": began.isoformat()},
        hospitalization=source,
    )  # fmt: skip

    assert await hub.state(transfer) == "requested"


async def test_an_update_of_a_stay_that_does_not_say_when_it_began_is_no_arrival(hub, torbay, exeter):
    transfer = await ask(torbay, MARSHWIGGLE)
    hub.clock.later(minutes=5)
    await exeter.reports("A08", MARSHWIGGLE, encounter_number=OLD_STAY, status="finished")

    assert await hub.state(transfer) == "requested"


async def test_an_update_of_the_new_stay_is_the_arrival_if_nothing_was_told_of_it_before(hub, torbay, exeter):
    """The admission itself was lost on the way; the first that the hub hears is a ward's correction."""
    transfer = await on_the_way(hub, torbay, exeter, MARSHWIGGLE)
    hub.clock.later(hours=1)
    began = hub.clock()
    hub.clock.later(hours=1)
    await exeter.reports(
        "A08", MARSHWIGGLE, encounter_number="W-7", status="in-progress", period={"start": began.isoformat()}
    )

    assert await hub.state(transfer) == "completed"


async def test_a_stay_of_one_night_that_is_told_when_it_is_over_was_the_arrival(hub, torbay, exeter):
    transfer = await on_the_way(hub, torbay, exeter, MARSHWIGGLE)
    began = hub.clock.later(hours=1)
    hub.clock.later(hours=14)
    await exeter.discharges(MARSHWIGGLE, encounter_number="W-7", admitted_at=began, disposition="19")

    assert await hub.state(transfer) == "completed"


async def test_the_stay_that_a_patient_left_is_no_arrival_when_they_are_to_come_home(hub, torbay, exeter):
    """Torbay's coders finish the stay that sent the patient to Exeter while Exeter asks Torbay to take them back."""
    await on_the_way(hub, torbay, exeter, MARSHWIGGLE)
    left = hub.clock()
    hub.clock.later(hours=1)
    await admit(exeter, MARSHWIGGLE)
    hub.clock.later(days=9)
    home = await ask(exeter, MARSHWIGGLE, to="RA9", number="X-1", stay="W-7", kind="repatriation")
    hub.clock.later(hours=2)
    began = left - timedelta(days=2)
    await torbay.reports(
        "A08", MARSHWIGGLE, encounter_number="V-1", status="finished", period=period(began, days=2)
    )
    assert await hub.state(home) == "requested"

    await admit(torbay, MARSHWIGGLE, stay="V-2", at=hub.clock.later(hours=5))
    assert await hub.state(home) == "completed"


async def test_a_stay_that_says_itself_whose_transfer_it_is(hub, torbay, exeter):
    """It does not say when it began, but names the request."""
    transfer = await ask(torbay, MARSHWIGGLE)
    named = {"system": torbay.profile.identifier_systems.request, "value": "TR-1"}
    await exeter.reports(
        "A08", MARSHWIGGLE, encounter_number="W-7", at=hub.clock.later(hours=1), status="in-progress",
        basedOn=[{"type": "ServiceRequest", "identifier": named}],
    )  # fmt: skip

    assert await hub.state(transfer) == "completed"
