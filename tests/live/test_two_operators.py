"""Several operators do the same at the same moment, on PostgreSQL: it is done once, told once and written down once."""

import asyncio
from dataclasses import replace

import pytest

from hub.demo.people import MARSHWIGGLE, QUILLFEATHER
from hub.domain.ids import NHS_AUTHORITY, PersonKey
from hub.domain.incident import IncidentKind
from hub.journey.decide import Choice
from hub.services.clock import ClockService
from hub.store import break_glass, people, queries
from hub.store import tables as t
from hub.store.break_glass import Grant
from hub.store.clocks import NotExpiredError, expire_transfer
from hub.store.incidents import open_incident
from hub.store.unit_of_work import NotQuarantinedError
from hub.trusts import load_clocks
from tests.live.test_stories import exeter, hub, owner_url, plymouth, store_url, stories_url, torbay  # noqa: F401 - fixtures
from tests.stories.conftest import SCHEMAS, TRUSTS
from tests.stories.test_journeys import ask

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]
CLOCKS = load_clocks(SCHEMAS, TRUSTS)
OPERATORS = ["ops-1", "ops-2", "ops-3", "ops-4"]


async def all_at_once(act, refused):
    """How many were done; the others were refused as what was done already."""
    done = await asyncio.gather(*map(act, OPERATORS), return_exceptions=True)
    others = [each for each in done if isinstance(each, BaseException)]
    assert all(isinstance(each, refused) for each in others), others
    return len(done) - len(others)


async def test_a_transfer_is_closed_once(hub, torbay):  # noqa: F811 - a fixture
    clock = ClockService(hub.engine, replace(hub.journey, clocks=CLOCKS), hub.clock, hub.log, poll_s=1)
    transfer = await ask(torbay, QUILLFEATHER, priority="stat")
    hub.clock.later(hours=5)
    while await clock.once():
        pass

    async def act(who):
        await expire_transfer(hub.engine, transfer, "phoned", CLOCKS, TRUSTS, hub.clock(), who)

    assert await all_at_once(act, NotExpiredError) == 1
    assert (await hub.told("RH8")).count("transfer.expired") == 1
    assert len(await hub.audit(code="expired")) == 1


async def test_a_message_is_taken_in_once(hub, torbay):  # noqa: F811
    """Nor as two people, where one says that it is somebody new and another that it is not."""
    waits = await torbay.cancels_request(QUILLFEATHER, to="RH8", request_number="TR-1")
    await ask(torbay, QUILLFEATHER)

    async def act(who):
        choice = Choice(new_person=True) if who == "ops-3" else None
        done = await hub.unit.retry(waits.event_id, who, choice)
        if done.rejection is not None:
            raise NotQuarantinedError

    assert await all_at_once(act, NotQuarantinedError) == 1
    assert (await hub.told("RH8")).count("transfer.cancelled") == 1
    assert len(await hub.audit(code="msg-released")) == 1
    assert len(await hub.rows(t.person)) == 1


async def test_a_number_is_taken_once(hub, torbay):  # noqa: F811
    transfer = await ask(torbay, MARSHWIGGLE)
    [row] = await hub.rows(t.person)
    key = PersonKey(NHS_AUTHORITY, MARSHWIGGLE.nhs_number)

    async def act(who):
        await people.take_number(hub.engine, row["person_id"], key, "x", TRUSTS, CLOCKS, hub.clock(), who)

    assert await all_at_once(act, queries.NotFoundError) == 1
    assert (await hub.told("RH8")).count("transfer.patient.identified") == 1
    assert len(await hub.audit(code="identity-number-taken")) == 1
    assert await hub.state(transfer) == "requested"

    async def back(who):
        await people.take_back(hub.engine, row["person_id"], key, "x", hub.clock(), who)

    assert await all_at_once(back, queries.NotFoundError) == 1


async def test_a_date_of_birth_is_set_once(hub, torbay):  # noqa: F811
    await ask(torbay, MARSHWIGGLE)
    [row] = await hub.rows(t.person)

    async def act(who):
        born = await people.set_birth_date(hub.engine, row["person_id"], "1948-03-10", "x", hub.clock(), who)
        if not born.otherwise:
            raise queries.NotFoundError

    assert await all_at_once(act, queries.NotFoundError) == 1
    assert len(await hub.audit(code="identity-birth-date-set")) == 1


async def test_an_incident_is_acknowledged_once_and_a_brake_released_once(hub, torbay):  # noqa: F811
    async with hub.engine.begin() as connection:
        await open_incident(connection, IncidentKind.DELIVERY_LATE, "RH8", {}, "clock", hub.clock())
    [incident] = await queries.incidents(hub.engine, closed=False)
    hub.clock.later(minutes=1)

    async def acknowledge(who):
        await queries.close_incident(hub.engine, incident["incident_id"], "x", hub.clock(), who)

    assert await all_at_once(acknowledge, queries.NotFoundError) == 1
    assert len(await hub.audit(code="incident-closed")) == 1

    hub.mend(in_a_row_max=2)
    for _ in range(2):
        await torbay.send(b"{")
    hub.clock.later(minutes=1)

    async def release(who):
        await queries.release_brake(hub.engine, "RA9", "x", hub.clock(), who)

    assert await all_at_once(release, queries.NotFoundError) == 1
    assert len(await hub.audit(code="brake-released")) == 1


async def test_a_glass_is_broken_once(hub, torbay):  # noqa: F811
    """By a clinician whose first request was not answered in time: both are under way."""
    await ask(torbay, MARSHWIGGLE)
    [row] = await hub.rows(t.person)
    reason, person = "Unconscious in resus, allergies are not known", row["person_id"]

    async def act(who):
        asked = Grant(f"grant-{who}", "RK9", "555000000001", "1111", person, reason, hub.clock())
        return (await break_glass.grant(hub.engine, asked, [person], "rest", TRUSTS)).id

    assert len({*await asyncio.gather(*map(act, OPERATORS))}) == 1
    assert (await hub.told("RH8")).count("access.glass-broken") == 1
    assert len(await hub.rows(t.break_glass)) == len(await hub.audit(code="break-glass-opened")) == 1
