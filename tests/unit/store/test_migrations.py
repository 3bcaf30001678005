"""What is in the database when it is brought up to date is there afterwards."""

from datetime import UTC, datetime, timedelta

import pytest
from alembic import command
from sqlalchemy import JSON, DateTime, bindparam, select, text

from hub.audit.entries import AuditEntry, Code
from hub.audit.hashes import leaf_hash
from hub.audit.leaf import leaf_bytes
from hub.audit.merkle import Frontier
from hub.audit.note import sign
from hub.store import schema
from hub.store import tables as t
from hub.store.engine import open_engine
from hub.store.sealing import KEPT_LEVEL
from hub.store.write import write_audit
from tests.harness.log import ORIGIN, SIGNER, exported, seal_all, verified

AT = datetime(2026, 7, 1, 9, 0, 0, 120_000, UTC)


@pytest.fixture
async def engine(tmp_path):
    engine = open_engine(f"sqlite+aiosqlite:///{tmp_path}/hub.db")
    yield engine
    await engine.dispose()


async def test_entries_that_waited_to_be_sealed_wait_on_and_are_sealed(engine):
    """The hub was stopped in the second before they would have been."""
    await bring_to(engine, "0008")
    row = text(
        "insert into audit_pending (code, at, occurred_at, outcome, trust, system, event_id, detail)"
        " values ('msg-received', :at, :occurred_at, 0, 'RA9', 'worker', :event_id, :detail)"
    ).bindparams(
        bindparam("at", type_=t.UtcDateTime()),
        bindparam("occurred_at", type_=DateTime(timezone=True)),
        bindparam("detail", type_=JSON),
    )
    async with engine.begin() as connection:
        for number in range(1200):
            said = {"at": AT + timedelta(seconds=number), "event_id": f"e{number}", "occurred_at": None}
            await connection.execute(row, said | {"detail": {"size": number, "words": ["a\nb", "ü,\n"]}})
        highest = await connection.scalar(text("select max(entry) from audit_pending"))
    await schema.upgrade(engine)
    async with engine.connect() as connection:
        waiting = (await connection.execute(select(t.audit_pending).order_by(t.audit_pending.c.entry))).all()
    assert [(each.event_id, each.at) for each in waiting] == [
        (f"e{number}", AT + timedelta(seconds=number)) for number in range(1200)
    ]
    assert waiting[0].entry > highest
    assert waiting[7].detail == {"size": 7, "words": ["a\nb", "ü,\n"]}
    assert waiting[7].trust == "RA9"
    assert waiting[7].occurred_at is None
    assert (await seal_all(engine, most=1)).size == 1200
    report = verified(await exported(engine))
    assert (report.intact, report.size) == (True, 1200)


async def test_numbers_go_on_above_those_that_were_given(engine):
    await bring_to(engine, "0008")
    sealed = text(
        "insert into audit_entry (leaf_index, hash, entry, code, at, outcome, system, detail)"
        " values (0, :hash, 4321, 'msg-received', :at, 0, 'worker', '{}')"
    ).bindparams(bindparam("at", type_=t.UtcDateTime()))
    async with engine.begin() as connection:
        await connection.execute(sealed, {"at": AT, "hash": b"h" * 32})
    await schema.upgrade(engine)
    async with engine.begin() as connection:
        await write_audit(connection, [AuditEntry(Code.RECORD_READ, AT, "rest")])
        assert await connection.scalar(select(t.audit_pending.c.entry)) > 4321


async def test_what_was_sealed_row_by_row_is_still_the_log_that_was_signed(engine):
    """And the log goes on from there."""
    await bring_to(engine, "0014")
    fields = [
        {
            "entry": 1000 + number,
            "code": "routed" if number % 3 else "break-glass-opened",
            "at": AT + timedelta(seconds=number),
            "outcome": 8 * (number % 2),
            "system": "worker",
            "counterpart": "RH8" if number % 5 == 0 else None,
            "user_id": "somebody" if number % 7 == 0 else None,
            "detail": {"words": ["a\nb", "ü,\n", '"code":'], "n": number},
        }
        for number in range(300)
    ]
    leaves = [leaf_hash(leaf_bytes(leaf, said)) for leaf, said in enumerate(fields)]
    frontier = Frontier()
    kept = frontier.extend(leaves, KEPT_LEVEL)
    row = text(
        "insert into audit_entry (leaf_index, hash, entry, code, at, outcome, system, counterpart, user_id, detail)"
        " values (:leaf, :hash, :entry, :code, :at, :outcome, :system, :counterpart, :user_id, :detail)"
    ).bindparams(bindparam("at", type_=t.UtcDateTime()), bindparam("detail", type_=JSON))
    async with engine.begin() as connection:
        for leaf, (hash_, said) in enumerate(zip(leaves, fields, strict=True)):
            await connection.execute(row, {"leaf": leaf, "hash": hash_, **said})
        for node, hash_ in kept:
            values = {"level": node.level, "number": node.index, "hash": hash_}
            await connection.execute(t.audit_node.insert().values(values))
        note = sign(ORIGIN, frontier.size, frontier.root(), [SIGNER])
        await connection.execute(t.audit_checkpoint.insert().values(size=300, at=AT, note=note))
    await schema.upgrade(engine)
    report = verified(await exported(engine), note)
    assert (report.intact, report.size) == (True, 300)
    async with engine.connect() as connection:
        shown = (await connection.execute(select(t.audit_entry).order_by(t.audit_entry.c.leaf_index))).all()
    assert [(each.entry, each.code, each.counterpart, each.detail, each.user_id) for each in shown] == [
        (said["entry"], said["code"], said["counterpart"], said["detail"], said["user_id"]) for said in fields
    ]
    assert [bool(each.notable) for each in shown] == [
        said["outcome"] > 0 or said["code"] == "break-glass-opened" for said in fields
    ]
    async with engine.begin() as connection:
        await write_audit(connection, [AuditEntry(Code.RECORD_READ, AT, "rest")])
    assert (await seal_all(engine)).size == 302
    assert verified(await exported(engine), note).intact


async def bring_to(engine, version):
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: command.upgrade(schema._config(sync), version))
