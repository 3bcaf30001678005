"""The audit that proves itself: what happened becomes leaves of a log, and whatever is done to the log afterwards shows."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import orjson
import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError

from hub.audit.entries import AuditEntry, Code
from hub.audit.note import Signer, sign
from hub.demo.people import FENNIMOSS, MARSHWIGGLE
from hub.domain.delivery import DeliveryError, Outgoing, Placed, ReadBack, judge
from hub.domain.incident import IncidentKind
from hub.services.clock import ClockService
from hub.services.feeds import FeedConfig, FeedService
from hub.services.sealer import LEASE, Sealer, SealerConfig, to_file
from hub.store import acts, exporting, feeds, incidents
from hub.store import tables as t
from hub.store.append_only import SEALED
from hub.store.book import Asked, Asking, Is, page
from hub.store.engine import open_engine
from hub.store.outbox import hold_lease
from hub.store.sealing import LogBrokenError
from hub.store.search import write_down
from hub.verifier import Kind, read_keys, verify_proof
from tests.harness.log import ORIGIN, SIGNER, exported, seal_all, verified
from tests.stories.conftest import Clock

NEW_SIGNER = Signer(ORIGIN, b"\x08" * 32)
KEYS = read_keys(SIGNER.vkey)


async def two_patients(hub, torbay, exeter):
    """Two transfers and a refusal: some twenty entries."""
    for patient, number in ((MARSHWIGGLE, "T-1"), (FENNIMOSS, "T-2")):
        await torbay.asks_to_transfer(
            patient, to="RH8", request_number=number, encounter_number=f"V-{number}"
        )
        await exeter.answers(patient, "accepted", request_number=number, requester=torbay.profile)
    await exeter.send(b"no message")


async def test_everything_that_was_written_is_in_the_export_once_and_the_export_is_intact(
    hub, torbay, exeter
):
    await two_patients(hub, torbay, exeter)
    waiting = await hub.rows(t.audit_pending)
    await seal_all(hub.engine, most=4)
    lines = await exported(hub.engine)
    report = verified(lines)
    assert report.findings == ()
    assert (report.intact, report.first, report.size, report.proved) == (True, 0, len(waiting), len(waiting))
    told = [orjson.loads(line)["entry"] for line in lines if line.startswith(b'{"hash"')]
    assert [each["entry"] for each in told] == [row["entry"] for row in waiting]
    assert [each["code"] for each in told] == [row["code"] for row in waiting]
    # That somebody exported is an entry too, and waits to be sealed.
    assert [row["code"] for row in await hub.rows(t.audit_pending)] == ["audit-exported"]


async def test_the_log_grows_and_an_old_checkpoint_still_fits(hub, torbay, exeter):
    await torbay.asks_to_transfer(MARSHWIGGLE, to="RH8", request_number="T-1", encounter_number="V-1")
    kept = (await seal_all(hub.engine)).note
    hub.clock.later(hours=1)
    since = hub.clock()
    await two_patients(hub, torbay, exeter)
    await seal_all(hub.engine, most=3)
    assert verified(await exported(hub.engine), kept).intact
    # From a later entry on, the export has what is needed to compare: if it is made for that checkpoint.
    old_size = int(kept.split("\n")[1])
    later = await exported(hub.engine, since=since, old_size=old_size)
    report = verified(later, kept)
    assert (report.intact, report.first) == (True, old_size)
    # Another log, as truly signed: whoever kept the checkpoint sees it.
    other = sign(ORIGIN, old_size, b"\x01" * 32, [SIGNER])
    assert Kind.REWRITTEN in {each.kind for each in verified(later, other).findings}


ITS_ACT = "where first_leaf = (select first_leaf from audit_entry where leaf_index = 5)"
CHANGES = {
    "whose act it was": (f"update audit_act set trust = 'RVJ' {ITS_ACT}", Kind.ALTERED),
    "what it was": (f"update audit_act set entries = replace(entries, (select code from audit_entry where leaf_index = 5), 'x') {ITS_ACT}", Kind.ALTERED),
    "how it went": (f"update audit_act set outcome = 8 {ITS_ACT}", Kind.ALTERED),
    "whom it was about": (f"update audit_act set person_id = 'x' {ITS_ACT}", Kind.ALTERED),
    "what is said of it": (f"update audit_act set entries = replace(entries, (select cast(detail as text) from audit_entry where leaf_index = 5), '[]') {ITS_ACT}", Kind.ALTERED),
    "its number": (f"update audit_act set first_entry = 99 {ITS_ACT}", Kind.ALTERED),
    "the hashes it had": (f"update audit_act set hashes = (select hash from audit_entry where leaf_index = 0) {ITS_ACT}", Kind.ALTERED),
    "that it was there": (f"delete from audit_act {ITS_ACT}", Kind.MISSING),
    "that it was said": (f"update audit_act set entries = '[]' {ITS_ACT}", Kind.MISSING),
    "its place": (f"update audit_act set first_leaf = 500 {ITS_ACT}", Kind.MISSING),
}  # fmt: skip


@pytest.mark.parametrize(("change", "kind"), CHANGES.values(), ids=CHANGES)
async def test_an_administrator_changes_one_entry_and_the_export_says_which(
    hub, torbay, exeter, change, kind
):
    """With the triggers taken away, as only the owner of the tables can."""
    await two_patients(hub, torbay, exeter)
    await seal_all(hub.engine)
    async with without_triggers(hub) as connection:
        await connection.execute(text(change))
    [finding] = [each for each in verified(await exported(hub.engine)).findings if each.leaf == 5][:1]
    assert finding.kind is kind
    hub.broken = True


async def test_what_one_message_caused_is_one_act_and_is_read_entry_by_entry(hub, torbay, exeter):
    """The view that is searched shows what the export is made of."""
    outcome = await torbay.asks_to_transfer(
        MARSHWIGGLE, to="RH8", request_number="T-1", encounter_number="V-1"
    )
    await two_patients(hub, torbay, exeter)
    caused = [row["code"] for row in await hub.audit(event_id=outcome.event_id)]
    await seal_all(hub.engine, most=3)
    async with hub.engine.connect() as connection:
        rows = (await connection.execute(select(t.audit_act).order_by(t.audit_act.c.first_leaf))).mappings()
        made = [entry for row in rows for entry in acts.entries(row)]
    [act] = [row for row in await hub.rows(t.audit_act) if row["event_id"] == outcome.event_id]
    assert [each["code"] for each in orjson.loads(act["entries"])] == caused
    assert len(caused) > 3
    shown = await hub.rows(t.audit_entry)
    assert [{name: row[name] for name in made[0]} for row in shown] == made


@pytest.mark.parametrize("words", ["", "x", "7", "[7]", '[{"code":"msg-received","trust":"RVJ"}]'])
async def test_words_that_nobody_can_read_do_not_keep_the_log_from_being_exported(hub, torbay, exeter, words):
    await two_patients(hub, torbay, exeter)
    await seal_all(hub.engine)
    first = t.audit_act.c.first_leaf == 0
    async with without_triggers(hub) as connection:
        [act] = (await connection.execute(select(t.audit_act).where(first))).mappings().all()
        await connection.execute(t.audit_act.update().where(first).values(entries=words))
    report = verified(await exported(hub.engine))
    assert {0} <= {each.leaf for each in report.findings}
    assert not report.intact
    async with without_triggers(hub) as connection:
        await connection.execute(t.audit_act.update().where(first).values(entries=act["entries"]))
    assert verified(await exported(hub.engine)).intact


async def test_an_administrator_swaps_two_acts(hub, torbay, exeter):
    await two_patients(hub, torbay, exeter)
    await seal_all(hub.engine)
    async with without_triggers(hub) as connection:
        acts = select(t.audit_act.c.first_leaf).order_by(t.audit_act.c.first_leaf).limit(2)
        one, other = (await connection.execute(acts)).scalars()
        for before, after in ((one, 900), (other, one), (900, other)):
            await connection.execute(
                text(f"update audit_act set first_leaf = {after} where first_leaf = {before}")
            )
    leaves = {each.leaf for each in verified(await exported(hub.engine)).findings}
    assert {one, other} <= leaves
    hub.broken = True


async def test_nothing_is_added_to_a_log_that_was_changed(hub, torbay, exeter, tmp_path):
    """Entries wait, nothing is lost, and somebody is told; when the log is as it was again, sealing goes on."""
    await two_patients(hub, torbay, exeter)
    await seal_all(hub.engine)
    async with without_triggers(hub) as connection:
        last = select(t.audit_act).order_by(t.audit_act.c.first_leaf.desc()).limit(1)
        act = (await connection.execute(last)).one()
        its = t.audit_act.update().where(t.audit_act.c.first_leaf == act.first_leaf)
        await connection.execute(its.values(hashes=b"\x00" * len(act.hashes)))
    await exeter.send(b"no message either")
    with pytest.raises(LogBrokenError):
        await seal_all(hub.engine)
    stop = asyncio.Event()
    sealer = a_sealer(hub, tmp_path)
    running = asyncio.create_task(sealer.run(stop))
    await until(lambda: "sealer.broken" in [line["event"] for line in hub.log.lines])
    stop.set()
    await running
    async with hub.engine.begin() as connection:
        [(_, incident)] = (await incidents.open_incidents(connection, IncidentKind.AUDIT_LOG_BROKEN)).items()
        await incidents.close_incident(connection, incident, "put back", "cli", hub.clock())
    assert "msg-quarantined" in [row["code"] for row in await hub.rows(t.audit_pending)]
    async with without_triggers(hub) as connection:
        await connection.execute(its.values(hashes=act.hashes))
    await seal_all(hub.engine)
    assert verified(await exported(hub.engine)).intact


@pytest.mark.parametrize(
    "change", ["update audit_checkpoint set note = 'x'", "delete from audit_checkpoint where size > 3"]
)
async def test_nothing_is_added_where_a_checkpoint_was_changed(hub, torbay, exeter, change):
    """The log is longer than it was signed for, or nobody knows what for: that is a broken log, not a database that is away."""
    await two_patients(hub, torbay, exeter)
    await seal_all(hub.engine, most=3)
    async with without_triggers(hub) as connection:
        await connection.execute(text(change))
    await exeter.send(b"no message either")
    with pytest.raises(LogBrokenError):
        await seal_all(hub.engine)
    hub.broken = True


@pytest.mark.parametrize("table", [*SEALED, "audit_batch"])
async def test_nobody_changes_or_deletes(hub, torbay, exeter, table):
    await two_patients(hub, torbay, exeter)
    await seal_all(hub.engine)
    await exeter.send(b"one that waits")
    before = await whole_of(hub, table)
    column = {"audit_node": "level", "audit_checkpoint": "note"}.get(table, "entries")
    ways = [f"update {table} set {column} = {column}", f"delete from {table}"]
    if hub.engine.dialect.name == "postgresql":
        ways += [
            f"truncate {table}",
            f"truncate {table} cascade",
            f"drop table {table}",
            f"alter table {table} disable trigger all",
            f"alter table {table} rename to gone",
            f"create rule gone as on insert to {table} do instead nothing",
            f"drop trigger {table}_is_append_only on {table}",
            "drop view audit_pending cascade",
            "drop view audit_entry cascade",
            "delete from audit_pending",
            f"merge into {table} using (select 1) as one on true when matched then delete",
            f"with gone as (delete from {table} returning 1) select count(*) from gone",
            "drop function refuse_to_change_the_log() cascade",
            "set session_replication_role = replica",
            "alter role transfer_hub superuser",
            "set role pg_write_all_data",
            "insert into audit_act select * from audit_act where first_leaf = 0",
            "insert into audit_act select * from audit_act on conflict (first_leaf) do update set entries = 'x'",
        ]
    else:
        ways += ["insert or replace into audit_act select * from audit_act where first_leaf = 0"]
    for way in ways:
        if table == "audit_node" and hub.engine.dialect.name == "sqlite":
            continue  # row triggers, and there is no row in so short a log
        with pytest.raises(DBAPIError):
            async with hub.engine.begin() as connection:
                await connection.execute(text(way))
    assert await whole_of(hub, table) == before


async def test_two_seal_at_once_and_every_entry_is_one_leaf(hub, torbay, exeter):
    await two_patients(hub, torbay, exeter)
    waiting = len(await hub.rows(t.audit_pending))
    await asyncio.gather(*(seal_all(hub.engine, most=3) for _ in range(4)))
    rows = await hub.rows(t.audit_entry)
    assert [row["leaf_index"] for row in rows] == list(range(waiting))
    assert verified(await exported(hub.engine)).intact


async def test_what_becomes_visible_late_is_sealed_late_and_not_passed_over(hub):
    """A number is drawn before its transaction commits: a lower one can appear after a higher one was sealed."""
    if hub.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has one writer at a time")
    slow = AuditEntry(Code.RECORD_READ, hub.clock(), "rest", detail={"which": "slow"})
    quick = AuditEntry(Code.RECORD_READ, hub.clock(), "rest", detail={"which": "quick"})
    async with hub.engine.connect() as connection:
        from hub.store.write import write_audit

        await write_audit(connection, [slow])
        await write_down(hub.engine, [quick])
        assert (await seal_all(hub.engine)).size == 1
        await connection.commit()
    assert (await seal_all(hub.engine)).size == 2
    rows = await hub.rows(t.audit_entry)
    assert [row["detail"]["which"] for row in rows] == ["quick", "slow"]
    assert rows[0]["entry"] > rows[1]["entry"]


async def test_a_log_that_has_no_statistics_yet_is_not_read_whole_to_add_to_it(hub):
    """After its first hour, or when a backup was put back, PostgreSQL does not know yet how long the log is."""
    if hub.engine.dialect.name != "postgresql":
        pytest.skip("SQLite always goes by the index")
    entry = AuditEntry(Code.RECORD_READ, hub.clock(), "rest")
    another = AuditEntry(Code.RECORD_READ, hub.clock(), "kafka")
    await write_down(hub.engine, [entry, another] * 10_000)
    await seal_all(hub.engine)
    await write_down(hub.engine, [entry])
    asked = []

    def note(_connection, _cursor, statement, parameters, *_):
        if statement.startswith("SELECT") and ("audit_act" in statement or "audit_entry" in statement):
            asked.append((statement, parameters))

    event.listen(hub.engine.sync_engine, "before_cursor_execute", note)
    try:
        assert (await seal_all(hub.engine)).size == 20_001
    finally:
        event.remove(hub.engine.sync_engine, "before_cursor_execute", note)
    assert asked
    async with hub.engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        for statement, parameters in asked:
            plan = [row[0] for row in await driver.fetch(f"EXPLAIN {statement}", *parameters)]
            assert not any("Seq Scan" in line for line in plan), plan


AGENT = [Is(column, "RA9") for column in ("trust", "counterpart", "user_id", "role_id", "client_id")]


FEW_ACTS = (
    (Asked(entries=[1000, 2001, 3002]), 4),
    (Asked(codes=frozenset({Code.BRAKE_PULLED})), 1),
    (Asked(fits=[[Is("counterpart", "RVJ")]]), 1),
    (Asked(fits=[[Is("counterpart", "RK9")]]), 0),
    (Asked(fits=[AGENT]), 200),
)
"""Questions, and how many acts are taken apart for each at most."""


async def test_only_acts_that_may_answer_are_taken_apart(hub):
    """Which costs more than all else: three acts of three thousand, not all of them."""
    if hub.engine.dialect.name != "postgresql":
        pytest.skip("SQLite does not say what it did")
    entries = []
    for second in range(3000):
        at, trust = hub.clock.later(seconds=1), "RA9" if second % 2 else "RH8"
        entries += [AuditEntry(each, at, "rest", trust=trust) for each in (Code.RECORD_READ, Code.ROUTED)]
    entries[7] = replace(entries[7], code=Code.BRAKE_PULLED, counterpart="RVJ")
    await write_down(hub.engine, entries)
    await seal_all(hub.engine)
    async with without_triggers(hub) as owner:
        await owner.execute(text("ANALYZE audit_act"))
    statements = []

    def note(_connection, _cursor, statement, parameters, *_):
        if statement.startswith("SELECT") and "audit_entry" in statement:
            statements.append((statement, parameters))

    event.listen(hub.engine.sync_engine, "before_cursor_execute", note)
    try:
        for asked, _ in FEW_ACTS:
            await page(hub.engine, asked, Asking("cli", hub.clock(), {}))
    finally:
        event.remove(hub.engine.sync_engine, "before_cursor_execute", note)
    async with hub.engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        for (statement, parameters), (asked, most) in zip(statements, FEW_ACTS, strict=True):
            [done] = await driver.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *parameters)
            assert sum(apart(done["Plan"])) <= most, asked


def apart(plan):
    """How many acts were taken apart."""
    if plan["Node Type"] == "Function Scan":
        yield plan["Actual Loops"]
    for each in plan.get("Plans", ()):
        yield from apart(each)


async def test_a_key_is_replaced(hub, torbay, exeter):
    """Both sign for a while; then the old one is retired. Who has all public keys can verify all of it."""
    for signers in ([SIGNER], [NEW_SIGNER, SIGNER], [NEW_SIGNER]):
        await exeter.send(b"something to write down")
        await seal_all(hub.engine, signers=signers)
        await exported(hub.engine)
    await seal_all(hub.engine, signers=[NEW_SIGNER])
    lines = await exported(hub.engine)
    assert verified(lines, signers=[NEW_SIGNER, SIGNER]).intact
    assert Kind.WRONG_KEY in {each.kind for each in verified(lines, signers=[SIGNER]).findings}
    hub.signers = [NEW_SIGNER, SIGNER]


async def test_each_entry_is_proved_alone(hub, torbay, exeter):
    await two_patients(hub, torbay, exeter)
    await seal_all(hub.engine, most=5)
    for row in await hub.rows(t.audit_entry):
        proof = await exporting.prove(hub.engine, row["entry"], reader="tester", now=hub.clock())
        report = verify_proof(proof, KEYS)
        assert (report.intact, report.index) == (True, row["leaf_index"])
        assert orjson.loads(report.entry)["code"] == row["code"]
    assert not verify_proof(proof.replace("\nindex ", "\nindex 1"), KEYS).intact
    with pytest.raises(exporting.NotSealedError):
        await exporting.prove(hub.engine, 10_000, reader="tester", now=hub.clock())
    # The entry is in its proof: who has it is written down under its patient, and who asked in vain too.
    read = [row for row in await hub.audit(code="audit-exported") if row["detail"]["parameters"] == ["entry"]]
    entries = await hub.rows(t.audit_entry)
    assert [(row["user_id"], row["person_id"], row["transfer_id"]) for row in read] == [
        *(("tester", row["person_id"], row["transfer_id"]) for row in entries),
        ("tester", None, None),
    ]
    assert [row["detail"]["entries"] for row in read] == [1] * len(entries) + [0]


async def test_the_sealer_hands_out_checkpoints_and_the_last_one_when_it_ends(hub, torbay, exeter, tmp_path):
    stop = asyncio.Event()
    running = asyncio.create_task(a_sealer(hub, tmp_path).run(stop))
    await two_patients(hub, torbay, exeter)
    file = tmp_path / "checkpoints.txt"
    await until(file.exists)
    await exeter.send(b"the last thing that happens")
    stop.set()
    await running
    assert await hub.rows(t.audit_pending) == []
    newest = await exporting.newest_checkpoint(hub.engine)
    assert file.read_text().endswith(f"{newest}\n")
    assert verified(await exported(hub.engine), newest).intact
    # Whoever keeps the file gives it to the verifier as it is, however many checkpoints are in it.
    async with running_sealer(hub, tmp_path):
        await exeter.send(b"something that happens the next day")
    notes = file.read_text()
    assert notes.count(f"{ORIGIN}\n") >= 2
    report = verified(await exported(hub.engine), notes)
    assert (report.intact, report.findings) == (True, ())


@asynccontextmanager
async def running_sealer(hub, folder):
    """A sealer of its own, until it is told to end."""
    stop = asyncio.Event()
    running = asyncio.create_task(a_sealer(hub, folder).run(stop))
    yield
    stop.set()
    await running


async def test_a_second_sealer_waits_for_the_first_to_be_gone(hub, torbay, exeter, tmp_path):
    await two_patients(hub, torbay, exeter)
    now = hub.clock()
    assert await hold_lease(hub.engine, LEASE, "the first", Clock().later(seconds=10), now)
    second = a_sealer(hub, tmp_path)
    assert await second.once() is None
    hub.clock.later(seconds=11)
    assert (await second.once()).entries > 0


async def test_a_sealer_that_is_missed_is_an_incident_until_it_is_back(hub, torbay):
    clock = ClockService(hub.engine, hub.journey, hub.clock, hub.log, poll_s=5)
    await torbay.asks_to_transfer(MARSHWIGGLE, to="RH8", request_number="T-1", encounter_number="V-1")
    await clock.look_at_the_log()
    assert await hub.rows(t.incident) == []
    for _ in range(2):
        hub.clock.later(seconds=61)
        await clock.look_at_the_log()
    [incident] = await hub.rows(t.incident)
    assert (incident["kind"], incident["closed_at"]) == ("sealing-late", None)
    assert "sealing.late" in [line["event"] for line in hub.log.lines]
    await seal_all(hub.engine)
    await clock.look_at_the_log()
    [incident] = await hub.rows(t.incident)
    assert incident["closed_because"] == "sealed"


async def test_a_feed_that_fails_is_seen_and_goes_on_when_it_can(hub, torbay):
    """A bug of ours while an entry is rendered is a fault of this feed: nothing is passed over, and it is said."""
    await torbay.asks_to_transfer(MARSHWIGGLE, to="RH8", request_number="T-1", encounter_number="V-1")
    size = (await seal_all(hub.engine)).size
    door, broken = Door(), True

    async def render(rows):
        if broken:
            raise KeyError("MARSHWIGGLE")
        return passed_on(rows)

    stop, running = a_feed(hub, door, render)
    await until_true(lambda: failures_of(hub, 3))
    [kept] = await feeds.feeds(hub.engine)
    assert (kept.next_leaf, "KeyError" in kept.last_error, "MARSHWIGGLE" in str(hub.log.lines)) == (
        0,
        True,
        False,
    )
    broken = False
    await until(lambda: len(door.sent) == size)
    stop.set()
    await running
    assert [each.seq for each in door.sent] == list(range(size))
    assert [(r["kind"], r["closed_because"]) for r in await hub.rows(t.incident)] == [
        ("audit-feed", "delivered")
    ]


async def test_a_feed_is_well_again_when_nothing_is_left_to_pass_on(hub, torbay):
    """Kafka went away after it took the last entry and before it said so: what is found there was delivered, and nobody
    has to look any more."""
    await torbay.asks_to_transfer(MARSHWIGGLE, to="RH8", request_number="T-1", encounter_number="V-1")
    size = (await seal_all(hub.engine)).size

    class SilentDoor(Door):
        async def send(self, rows):
            await super().send(rows)
            self.away = True
            raise DeliveryError(judge("KafkaConnectionError"))

    async def render(rows):
        return passed_on(rows)

    door = SilentDoor()
    stop, running = a_feed(hub, door, render, batch_max=size)
    await until_true(lambda: has_open(hub))
    hub.clock.later(seconds=1)
    door.away = False
    await until_true(lambda: all_closed(hub))
    stop.set()
    await running

    # Started while Kafka is away and with nothing to pass on: it fails, and is well when Kafka is back.
    door.away = True
    stop, running = a_feed(hub, door, render)
    await until_true(lambda: has_open(hub))
    door.away = False
    await until_true(lambda: all_closed(hub))
    stop.set()
    await running
    assert [each.seq for each in door.sent] == list(range(size))
    assert [r["closed_because"] for r in await hub.rows(t.incident)] == ["delivered", "delivered"]


def a_feed(hub, door, render, **config):
    """The feed to the topic, running, and what stops it."""
    quick = FeedConfig(**{"poll_s": 0.01, "backoff_s": 0.01, "backoff_max_s": 0.02, "batch_max": 2} | config)
    feed = FeedService(
        hub.engine,
        "topic",
        "hub.audit",
        lambda: door,
        render,
        hub.clock,
        hub.log,
        holder="here",
        config=quick,
    )
    stop = asyncio.Event()
    return stop, asyncio.create_task(feed.run(stop))


def passed_on(rows):
    return [
        Outgoing(row["leaf_index"], "audit", "hub.audit", "k", {}, b"{}", f"e{row['leaf_index']}")
        for row in rows
    ]


async def has_open(hub):
    return any(row["closed_at"] is None for row in await hub.rows(t.incident))


async def all_closed(hub):
    return not await has_open(hub)


class Door:
    """Takes what it is given, and remembers it when it is asked."""

    def __init__(self):
        self.sent = []
        self.away = False

    async def start(self):
        if self.away:
            raise DeliveryError(judge("KafkaConnectionError"))

    async def read_back(self, topics, known):
        return ReadBack(tuple(Placed(each.seq, each.topic, 0, each.seq, each.event_id) for each in self.sent))

    async def send(self, rows):
        self.sent += rows
        return [Placed(each.seq, each.topic, 0, each.seq, each.event_id) for each in rows]

    async def close(self):
        pass


async def failures_of(hub, number):
    found = await feeds.feeds(hub.engine)
    return bool(found) and found[0].failures >= number


async def until_true(ask, patience_s=10):
    async with asyncio.timeout(patience_s):
        while not await ask():  # noqa: ASYNC110 - what is waited for is in a database
            await asyncio.sleep(0.02)


def a_sealer(hub, folder):
    return Sealer(
        hub.engine,
        ORIGIN,
        [SIGNER],
        [to_file(folder / "checkpoints.txt")],
        hub.clock,
        hub.log,
        holder=f"sealer {id(folder)}",
        config=SealerConfig(poll_s=0.02, checkpoint_s=0.05),
    )


async def until(holds, patience_s=10):
    async with asyncio.timeout(patience_s):
        while not holds():  # noqa: ASYNC110 - what is waited for is in a database
            await asyncio.sleep(0.02)


async def whole_of(hub, table):
    async with hub.engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(f"select * from {table} order by 1"))]


@asynccontextmanager
async def without_triggers(hub):
    """A connection of somebody who may alter the tables and has taken the triggers away."""
    engine = open_engine(hub.owner_url)
    async with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            for table in SEALED:
                await connection.execute(text(f"alter table {table} disable trigger user"))
            yield connection
            for table in SEALED:
                await connection.execute(text(f"alter table {table} enable trigger user"))
        else:
            triggers = "select name, sql from sqlite_master where type = 'trigger'"
            found = [tuple(row) for row in await connection.execute(text(triggers))]
            for name, _ in found:
                await connection.execute(text(f"drop trigger {name}"))
            yield connection
            for _, sql in found:
                await connection.execute(text(sql))
    await engine.dispose()
