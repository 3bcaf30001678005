"""Ninety days after a transfer is over what was said of it is gone; that it happened, and all that can be asked of that, is not."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from hub.demo.people import FENNIMOSS, MARSHWIGGLE, PEOPLE, QUILLFEATHER, THISTLEWICK
from hub.domain.ids import OdsCode
from hub.domain.retention import Hold, Kind
from hub.governance.trail import tell
from hub.store import book, clients, outbox, queries, retention, subscriptions
from hub.store import tables as t
from hub.store.subscriptions import Subscription
from hub.trusts import load_retention
from tests.harness.log import exported, seal_all, verified
from tests.stories.conftest import SCHEMAS, TRUSTS
from tests.stories.rest import System, facade_of, issue
from tests.stories.test_journeys import admit, answer, ask, on_the_way

POLICY = load_retention(SCHEMAS, TRUSTS)


async def moved(hub, torbay, exeter, patient=MARSHWIGGLE):
    """A transfer from asking to admission; its id."""
    transfer = await on_the_way(hub, torbay, exeter, patient)
    hub.clock.later(minutes=50)
    await admit(exeter, patient)
    assert await hub.state(transfer) == "completed"
    return transfer


async def deliver_all(hub):
    """Every receiver has what waits for it."""
    for ods in await outbox.receivers_with_pending(hub.engine):
        rows = await hub.rows(t.outbox, t.outbox.c.receiver == ods, t.outbox.c.state == "pending")
        await outbox.fetched(hub.engine, ods, [row["seq"] for row in rows], "test", hub.clock())


async def go(hub, policy=POLICY, **more):
    return {
        each.rule.kind: each.rows
        for each in await retention.let_go(hub.engine, policy, hub.clock(), "steward", **more)
        if each.rows
    }


async def planned(hub, policy=POLICY):
    return {
        each.rule.kind: each.rows
        for each in await retention.plan(hub.engine, policy, hub.clock())
        if each.rows
    }


async def contents(hub, transfer):
    """How many of a transfer's messages and events still have their content."""
    events = await hub.rows(t.event, t.event.c.transfer_id == transfer)
    messages = await hub.rows(t.message, t.message.c.event_id.in_([each["event_id"] for each in events]))
    return sum(m["raw"] is not None for m in messages), sum(e["payload"] is not None for e in events)


CONTENTS = {Kind.MESSAGE_OF_TRANSFER, Kind.CONTENT_OF_TRANSFER, Kind.NEWS}


async def test_ninety_days_after_the_admission_the_contents_go_and_the_account_stays(hub, torbay, exeter):
    transfer = await moved(hub, torbay, exeter)
    await deliver_all(hub)
    before = (await hub.states(transfer), await hub.counts())
    hub.clock.later(days=89)
    assert await contents(hub, transfer) == (6, 6)
    assert not CONTENTS & (await go(hub)).keys()

    hub.clock.later(days=2)
    would = await planned(hub)
    went = await go(hub)

    assert would == went
    assert (went[Kind.MESSAGE_OF_TRANSFER], went[Kind.CONTENT_OF_TRANSFER]) == (6, 6)
    assert await contents(hub, transfer) == (0, 0)
    assert not await planned(hub)
    assert await hub.states(transfer) == before[0]
    after = await hub.counts()
    # Nothing but attempts is taken out of the database, and what was done is in the book.
    assert {name for name in after if after[name] != before[1][name]} <= {"delivery_attempt", "audit_batch"}
    for row in await hub.rows(t.message) + await hub.rows(t.event):
        assert not [p for p in PEOPLE if p.family in str(row) or p.nhs_number in str(row)]
        assert not [p for p in PEOPLE for number in p.local.values() if number in str(row.get("key"))]
    asked = book.Asked(fits=[[book.Is("transfer_id", transfer)]], oldest_first=True)
    asking = book.Asking("cli", hub.clock(), {"user_id": "steward"})
    entries = (await book.entries(hub.engine, asked, asking)).rows
    told = tell(await queries.transfer_row(hub.engine, transfer), entries, {"RA9": "Torbay", "RH8": "Exeter"})
    assert "admitted" in "\n".join(told).lower()


async def test_what_went_is_in_the_book_with_counts_and_the_policys_digest(hub, torbay, exeter):
    """Batch by batch, each in its own transaction; no patient is named."""
    await moved(hub, torbay, exeter)
    await deliver_all(hub)
    hub.clock.later(days=91)
    sizes = {each.rule.kind: each.bytes for each in await retention.plan(hub.engine, POLICY, hub.clock())}
    went = await go(hub, batch=2)

    entries = await hub.audit(code="retention-applied")
    of_messages = [e for e in entries if e["detail"]["kind"] == Kind.MESSAGE_OF_TRANSFER]
    assert [e["detail"]["rows"] for e in of_messages] == [2, 2, 2]
    assert sum(e["detail"]["bytes"] for e in of_messages) == sizes[Kind.MESSAGE_OF_TRANSFER] > 0
    assert {e["detail"]["policy"] for e in entries} == {POLICY.digest}
    assert {(e["user_id"], e["person_id"], e["transfer_id"]) for e in entries} == {("steward", None, None)}
    assert {Kind(e["detail"]["kind"]) for e in entries} == went.keys()


async def test_the_log_is_intact_when_the_contents_are_gone(hub, torbay, exeter):
    """The export is verified from end to end, and the checkpoint that was kept before still fits."""
    await moved(hub, torbay, exeter)
    await deliver_all(hub)
    kept = (await seal_all(hub.engine)).note
    before = verified(await exported(hub.engine))
    hub.clock.later(days=91)
    assert CONTENTS <= (await go(hub)).keys()
    await seal_all(hub.engine)
    after = verified(await exported(hub.engine), kept)
    assert (before.intact, after.intact, after.findings) == (True, True, ())
    assert after.size > before.size


async def test_nothing_of_an_open_transfer_goes_however_old_it_is(hub, torbay, exeter):
    transfer = await ask(torbay, FENNIMOSS)
    await deliver_all(hub)
    hub.clock.later(days=2000)
    went = await go(hub)

    assert not CONTENTS & went.keys()
    assert await contents(hub, transfer) == (1, 1)
    [news] = await hub.rows(t.outbox, t.outbox.c.transfer_id == transfer)
    assert news["payload"] is not None


async def test_a_refusal_that_nobody_has_withdrawn_is_open(hub, torbay, exeter):
    transfer = await ask(torbay, FENNIMOSS)
    await answer(exeter, "rejected", FENNIMOSS, torbay, reason="RRNA")
    assert await hub.state(transfer) == "rejected"
    await deliver_all(hub)
    hub.clock.later(days=400)
    await go(hub)
    assert (await contents(hub, transfer))[0] > 0


async def test_a_message_in_quarantine_stays_until_it_is_mended(hub, torbay, exeter):
    hub.mend(trusts=["RA9", "RK9"])
    outcome = await torbay.asks_to_transfer(
        MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1"
    )
    assert outcome.disposition == "quarantined"
    await deliver_all(hub)
    hub.clock.later(days=300)
    went = await go(hub)
    shown, raw = await queries.message(hub.engine, outcome.event_id)

    assert not {Kind.MESSAGE_ALONE, Kind.MESSAGE_OF_TRANSFER} & went.keys()
    assert (shown["content"], raw is not None) == ("kept", True)
    hub.mend(trusts=["RA9", "RH8", "RK9"])
    assert (await hub.unit.retry(outcome.event_id, "duty")).disposition in {"accepted", "quarantined"}


async def test_nothing_that_was_not_delivered_goes_nor_the_message_it_tells_of(hub, torbay, exeter):
    """Torbay's link has been down since the departure; the rest of the transfer goes without it."""
    transfer = await moved(hub, torbay, exeter)
    rows = await hub.rows(t.outbox)
    last = [row for row in rows if row["receiver"] == "RA9" and row["transfer_id"]][-1]
    for ods in ("RA9", "RH8"):
        done = [row["seq"] for row in rows if row["receiver"] == ods and row["seq"] != last["seq"]]
        await outbox.fetched(hub.engine, ods, done, "test", hub.clock())
    hub.clock.later(days=200)
    await go(hub)

    [waits] = await hub.rows(t.outbox, t.outbox.c.seq == last["seq"])
    assert (waits["state"], waits["payload"] is not None) == ("pending", True)
    assert await contents(hub, transfer) == (1, 1)
    assert (await queries.message(hub.engine, last["event_id"]))[1] is not None


async def test_what_never_became_part_of_a_transfer_goes_after_thirty_days(hub, torbay, plymouth):
    stay = await plymouth.admits(QUILLFEATHER, encounter_number="P-1", ward="Sharp Ward", site="RK950")
    junk = await torbay.send(b"{}")
    await deliver_all(hub)
    hub.clock.later(days=29)
    assert not {Kind.MESSAGE_ALONE, Kind.CONTENT_ALONE} & (await go(hub)).keys()
    hub.clock.later(days=2)
    went = await go(hub)

    waits = junk.disposition == "quarantined"
    assert (went[Kind.MESSAGE_ALONE], went[Kind.CONTENT_ALONE]) == (1 if waits else 2, 1)
    shown, raw = await queries.message(hub.engine, stay.event_id)
    assert (shown["content"], raw, shown["sha256"]) == ("aged out", None, stay.row["sha256"])


async def test_a_repetition_and_a_conflict_are_known_by_their_hash_when_the_bytes_are_gone(
    hub, torbay, exeter
):
    message = torbay.epr.asks_to_transfer(
        MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1", at=hub.clock()
    )
    first = await torbay.send(message)
    hub.clock.later(minutes=5)
    await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number="TR-1")
    assert await hub.state(first.transfer_id) == "cancelled"
    await deliver_all(hub)
    hub.clock.later(days=91)
    await go(hub)
    assert await hub.raw(first) is None

    again = await torbay.send(message)
    other = torbay.epr.asks_to_transfer(
        THISTLEWICK, to="RH8", request_number="TR-9", encounter_number="V-9", at=hub.clock()
    )
    changed = await torbay.send(other.body, headers=message.headers)
    assert (again.disposition, changed.disposition) == ("duplicate", "conflict")
    assert (await queries.message(hub.engine, again.event_id))[0]["content"] == "that of the first message"


async def test_late_news_finds_its_transfer_when_the_contents_are_gone(hub, torbay, exeter):
    """The state is the fold of the facts, and these stay. What is new is kept from now on."""
    transfer = await moved(hub, torbay, exeter)
    await deliver_all(hub)
    hub.clock.later(days=91)
    await go(hub)
    late = await answer(exeter, "received", MARSHWIGGLE, torbay)
    assert late.transfer_id == transfer
    assert await hub.state(transfer) == "completed"
    assert await contents(hub, transfer) == (1, 1)
    assert not CONTENTS & (await go(hub)).keys()


async def test_over_rest_what_has_aged_out_is_said_to_be_gone_and_the_task_stays(hub, torbay, exeter):
    transfer = await moved(hub, torbay, exeter)
    await deliver_all(hub)
    facade = facade_of(hub)
    system = await (await System.join(facade, "RA9")).signed_in()
    [person] = {row["person_id"] for row in await hub.rows(t.transfer)}
    [*_, news] = await hub.rows(t.outbox, t.outbox.c.receiver == "RA9", t.outbox.c.transfer_id == transfer)
    [*_, receipt] = await hub.rows(t.outbox, t.outbox.c.receiver == "RA9", t.outbox.c.transfer_id.is_(None))
    asked = (
        f"/ServiceRequest/{transfer}", f"/ServiceRequest/{transfer}/_history", f"/ServiceRequest/{transfer}/_history/1",
        f"/Patient/{person}", f"/Patient/{person}/_history", f"/Patient/{person}/_history/1",
        f"/Encounter/{transfer}-sender", f"/Encounter/{transfer}-receiver/_history",
        f"/Bundle/{news['seq']}", f"/Bundle/{receipt['seq']}", f"/MessageHeader/{news['seq']}",
    )  # fmt: skip
    assert [(await system.get(path)).status_code for path in asked] == [200] * len(asked)
    hub.clock.later(days=91)
    system = await system.signed_in()
    await go(hub)

    for path in asked:
        answer = await system.get(path)
        assert answer.status_code == 410, path
        assert issue(answer) == ("REC_NOT_FOUND", "deleted")
    assert (await system.get(f"/ServiceRequest/{'0' * 8}")).status_code == 404
    task = await system.get(f"/Task/{transfer}")
    assert (task.status_code, task.json()["status"]) == (200, "completed")
    assert (await system.get(f"/Provenance/{transfer}-1")).status_code == 200
    history = (await system.get(f"/Task/{transfer}/_history")).json()
    assert history["total"] == len(await hub.states(transfer))
    for path in ("/ServiceRequest", "/Patient", "/Encounter", "/MessageHeader", "/Task?_include=Task:focus"):
        entries = (await system.get(path)).json()["entry"]
        [said] = [each["resource"] for each in entries if each["search"]["mode"] == "outcome"]
        assert (said["issue"][0]["severity"], said["issue"][0]["code"]) == ("warning", "deleted")
        assert {each["resource"]["resourceType"] for each in entries} <= {"Task", "OperationOutcome"}
    plain = (await system.get("/Task")).json()["entry"]
    assert [each["resource"]["resourceType"] for each in plain] == ["Task"]
    read = [e for e in await hub.audit(code="record-read") if e["detail"].get("aged_out")]
    assert read
    assert {e["transfer_id"] for e in read} == {transfer}


async def test_another_hospital_is_not_told_that_there_was_something(hub, torbay, exeter):
    transfer = await moved(hub, torbay, exeter)
    await deliver_all(hub)
    hub.clock.later(days=91)
    await go(hub)
    plymouth = await (await System.join(facade_of(hub), "RK9")).signed_in()
    assert (await plymouth.get(f"/ServiceRequest/{transfer}")).status_code == 404


async def test_an_order_not_to_destroy_is_kept_to(hub, torbay, exeter):
    """An inquiry asks for everything of Exeter's, and for one transfer by its number."""
    transfer = await moved(hub, torbay, exeter)
    await deliver_all(hub)
    hub.clock.later(days=500)
    for named in ({"trusts": (OdsCode("RH8"),)}, {"transfers": (transfer,)}):
        hold = Hold(since=hub.clock().date(), because="Public inquiry", **named)
        went = await go(hub, POLICY.model_copy(update={"holds": (hold,)}))
        assert not CONTENTS & went.keys()
    assert await contents(hub, transfer) == (6, 6)
    await go(hub)
    assert await contents(hub, transfer) == (0, 0)


async def test_numbers_of_subscriptions_go_once_they_are_told(hub, torbay, exeter):
    facade = facade_of(hub)
    system = await (await System.join(facade, "RH8")).signed_in()
    wish = Subscription(
        "board", OdsCode("RH8"), system.client.id, {"channel": {}}, {}, "requested", hub.clock()
    )
    await subscriptions.add(hub.engine, wish)
    await moved(hub, torbay, exeter)
    last = await subscriptions.number_events(hub.engine, wish.id)
    hub.clock.later(days=31)
    assert Kind.TOLD not in await go(hub)
    async with hub.engine.begin() as connection:
        await connection.execute(update(t.subscription).values(told_number=last - 1))
    assert (await go(hub))[Kind.TOLD] == last - 1

    system = await system.signed_in()
    gone = await system.get("/Subscription/board/$events?eventsSinceNumber=1")
    assert (gone.status_code, f"eventsSinceNumber={last}" in gone.text) == (410, True)
    kept = await system.get("/Subscription/board/$events")
    assert kept.status_code == 200
    assert len(kept.json()["entry"]) == 2  # the status, and the one event that is left


async def test_attempts_and_assertions_go_when_they_are_of_no_use(hub, torbay):
    await ask(torbay, MARSHWIGGLE)
    await deliver_all(hub)
    expires = hub.clock() + timedelta(minutes=5)
    assert await clients.use_assertion(hub.engine, "c", "j", expires, hub.clock())
    attempts = len(await hub.rows(t.delivery_attempt))
    hub.clock.later(days=91)
    went = await go(hub, batch=1)
    assert (went[Kind.ATTEMPT], went[Kind.ASSERTION]) == (attempts, 1)
    assert await hub.rows(t.delivery_attempt) == await hub.rows(t.used_assertion) == []


@pytest.mark.parametrize("kind", Kind)
async def test_stopped_in_the_middle_it_is_run_again(hub, torbay, exeter, kind, monkeypatch):
    """Each transaction is whole: what is gone is in the book, and nothing else is."""
    await moved(hub, torbay, exeter)
    await deliver_all(hub)
    hub.clock.later(days=91)
    true_way = retention._WAYS[kind]

    def fails(before, policy):
        raise RuntimeError("killed")

    broken = retention._Way(true_way.table, fails, true_way.emptied, true_way.locks)
    monkeypatch.setattr(retention, "_WAYS", {**retention._WAYS, kind: broken})
    with pytest.raises(RuntimeError):
        await go(hub)
    monkeypatch.undo()
    counted = await planned(hub)
    assert await go(hub) == counted
    booked = {}
    for entry in await hub.audit(code="retention-applied"):
        booked[entry["detail"]["kind"]] = booked.get(entry["detail"]["kind"], 0) + entry["detail"]["rows"]
    events = await hub.rows(t.event)
    assert booked.get(Kind.CONTENT_OF_TRANSFER) == sum(event["payload"] is None for event in events)


async def test_looking_costs_what_there_is_to_find(hub):
    """On SQLite the plan of each search for contents uses the index of what is kept; PostgreSQL has the same indexes."""
    if hub.engine.dialect.name != "sqlite":
        pytest.skip("plans of an empty table say nothing on PostgreSQL")
    for kind, index in (
        (Kind.MESSAGE_ALONE, "ix_message_kept"),
        (Kind.CONTENT_ALONE, "ix_event_kept"),
        (Kind.RECEIPT, "ix_outbox_kept"),
    ):
        query = retention._WAYS[kind].find(hub.clock(), POLICY)
        said = query.compile(hub.engine.sync_engine, compile_kwargs={"literal_binds": True})
        async with hub.engine.connect() as connection:
            plan = (await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {said}")).all()
        assert any(index in row[3] for row in plan), (kind, plan)
    await asyncio.sleep(0)
    async with hub.engine.connect() as connection:
        assert (await connection.execute(select(t.message))).all() == []


async def test_two_who_let_go_at_once_write_down_each_thing_once(hub, torbay, exeter):
    """The night's timer on two machines: the book would say that more had gone than there was. Seen where there are row locks, on PostgreSQL."""
    await moved(hub, torbay, exeter)
    for _ in range(20):
        await torbay.send(b"{")
    await deliver_all(hub)
    hub.clock.later(days=91)
    would = await planned(hub)
    assert would[Kind.RECEIPT] > 20

    first, second = await asyncio.gather(go(hub, batch=2), go(hub, batch=2))

    assert {kind: first.get(kind, 0) + second.get(kind, 0) for kind in would} == would
    told = [entry["detail"] for entry in await hub.audit(code="retention-applied")]
    assert {kind: sum(each["rows"] for each in told if each["kind"] == kind) for kind in would} == would
