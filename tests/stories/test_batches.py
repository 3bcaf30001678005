"""A worker takes in what has arrived, be it one message or five hundred: what becomes of them is the same."""

import random
import shutil
from dataclasses import replace
from datetime import timedelta

import pytest

from hub.demo.people import FENNIMOSS, LARKENBY
from hub.store import tables as t
from hub.store.engine import open_engine
from tests.stories.conftest import Hub, look_again
from tests.stories.test_machine import ANSWERS, EVENTS, SITE

HOSPITALS = ("RA9", "RH8", "RK9")
PEOPLE = (FENNIMOSS, LARKENBY)


@pytest.mark.parametrize("sizes", [[1, 1, 1], [3]])
async def test_a_ward_move_that_was_told_to_one_hospital_is_no_arrival_from_another(
    hub, torbay, exeter, plymouth, sizes
):
    """Exeter has asked Plymouth, and Plymouth hears of the patient's ward move; then Torbay asks Exeter for the same patient."""
    at = hub.clock()
    hub.clock.later(minutes=30)
    moved = exeter.epr.reports(
        "A02", FENNIMOSS, encounter_number="W-1", at=at + timedelta(minutes=30), status="in-progress",
        period={"start": (at + timedelta(minutes=20)).isoformat()},
    )  # fmt: skip
    told = [
        exeter.record(
            exeter.epr.asks_to_transfer(
                FENNIMOSS, to="RK9", request_number="X-1", encounter_number="W-1", at=at
            )
        ),
        exeter.record(moved),
        torbay.record(
            torbay.epr.asks_to_transfer(
                FENNIMOSS,
                to="RH8",
                request_number="TR-1",
                encounter_number="V-1",
                at=at + timedelta(minutes=15),
            )
        ),
    ]
    await in_batches(hub, told, sizes)

    assert {row["state"] for row in await hub.rows(t.transfer)} == {"requested"}
    assert await hub.told("RK9") == ["transfer.requested", "encounter.transferred"]


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_arrives_is_decided_as_if_it_came_alone(hub, tmp_path, empty_database, seed):
    records = stories(hub, random.Random(seed))
    now = hub.clock()
    one_by_one = await outcome(tmp_path / "one.db", empty_database, records, now, [1] * len(records))
    for sizes in ([len(records)], [7, 3, 11, 1, len(records)]):
        path = tmp_path / f"{len(sizes)}.db"
        assert await outcome(path, empty_database, records, now, sizes) == one_by_one


async def in_batches(hub, records, sizes):
    records = list(records)
    for size in sizes:
        batch, records = records[:size], records[size:]
        await hub.take(batch)


async def outcome(path, empty_database, records, now, sizes):
    """All that a hub makes of the messages, told in batches of these sizes."""
    shutil.copy(empty_database, path)
    engine = open_engine(f"sqlite+aiosqlite:///{path}")
    try:
        hub = Hub(engine)
        hub.clock.now = now
        await in_batches(hub, records, sizes)
        await look_again(hub)
        return {
            "messages": [(m["event_id"], m["disposition"], m["why"]) for m in await hub.rows(t.message)],
            "events": [(e["event_id"], e["person_id"], e["transfer_id"]) for e in await hub.rows(t.event)],
            "transfers": await hub.rows(t.transfer),
            "outbox": [(o["topic"], o["headers"], o["payload"]) for o in await hub.rows(t.outbox)],
        }
    finally:
        await engine.dispose()


def stories(hub, chance, length=45):
    """Messages of three hospitals about two patients, in the order in which they come."""
    hospitals = {ods: hub.trust(ods) for ods in HOSPITALS}
    asked, records = [], []
    for _ in range(length):
        hub.clock.later(minutes=chance.choice((1, 5, 20, 90)))
        ods, who, stay = chance.choice(HOSPITALS), chance.choice(PEOPLE), chance.choice("AB")
        to = chance.choice([each for each in HOSPITALS if each != ods])
        at = hub.clock() - timedelta(minutes=chance.choice((0, 0, 0, 5, 60, 300)))
        what = chance.choices(("ask", "answer", "cancel", "report", "leave", "merge"), (5, 5, 2, 6, 3, 1))[0]
        if what in {"answer", "cancel"} and not asked:
            what = "ask"
        epr = hospitals[ods].epr
        if what == "ask":
            number = f"{who.given}-{to}-{stay}"
            asked.append((ods, to, who, number))
            message = epr.asks_to_transfer(
                who, to=to, request_number=number, encounter_number=stay, at=at, priority="stat"
            )
        elif what == "answer":
            asker, to, who, number = chance.choice(asked)
            ods = chance.choice((to, to, asker))
            status, business_status = chance.choice(ANSWERS)
            message = hospitals[ods].epr.answers(
                who, status, requester=hospitals[asker].profile, request_number=number, at=at,
                business_status=business_status, reason="RRNA",
            )  # fmt: skip
        elif what == "cancel":
            ods, to, who, number = chance.choice(asked)
            message = hospitals[ods].epr.cancels_request(who, to=to, request_number=number, at=at)
        elif what == "report":
            trigger, status, encounter_class = chance.choice(EVENTS)
            source = {"hospitalization": {"admitSource": {"coding": [{"code": "51"}]}}}
            message = epr.reports(
                trigger, who, encounter_number=stay, at=at, status=status, encounter_class=encounter_class,
                period={"start": (at - timedelta(minutes=chance.choice((0, 200)))).isoformat()},
                **chance.choice(({}, source)),
            )  # fmt: skip
        elif what == "leave":
            home = chance.random() < 0.3
            message = epr.discharges(
                who, encounter_number=stay, at=at, to_site=None if home else SITE[to],
                disposition="19" if home else "51",
            )  # fmt: skip
        else:
            system = epr.profile.identifier_systems.patient
            link = {
                "type": "replaced-by",
                "other": {"identifier": {"system": system, "value": who.local[ods]}},
            }
            old = replace(who, local={ods: f"old-{who.given}"})
            message = epr.tells_of_patient("A40", old, at=at, active=False, link=[link])
        records.append(hospitals[ods].record(message))
    return records
