"""Entries that wait to be sealed are one row for each transaction; `audit_pending` becomes a view of them.

Entries that wait get a new number, higher than any that was given. Nobody has seen theirs but in the moment before they
would have been sealed.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from hub.audit.leaf import said_bytes
from hub.store import waiting
from hub.store.tables import audit_pending

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    if dialect == "postgresql":
        # What a service that nobody stopped writes after the entries are copied would go with their table.
        op.execute("LOCK TABLE audit_pending, audit_entry IN ACCESS EXCLUSIVE MODE")
    op.create_table(
        "audit_batch",
        sa.Column("batch", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("entries", sa.Text(), nullable=False),
        sqlite_autoincrement=True,
    )
    _carry_over(op.get_bind())
    op.drop_table("audit_pending")
    if dialect == "postgresql":
        op.execute("DROP FUNCTION refuse_to_lose_an_entry()")
        # Packing it would cost every transaction, for a second or so.
        op.execute("ALTER TABLE audit_batch ALTER COLUMN entries SET STORAGE EXTERNAL")
    op.execute(waiting.view(dialect))
    for statement in _POSTGRESQL if dialect == "postgresql" else _SQLITE:
        op.execute(statement)


def _carry_over(connection: sa.Connection) -> None:
    number = "SELECT max(entry) FROM (SELECT entry FROM audit_pending UNION ALL SELECT entry FROM audit_entry) given"
    highest = connection.scalar(sa.text(number)) or 0
    batch = highest // waiting.BATCH_MAX + 1
    found = connection.execute(sa.select(audit_pending).order_by(audit_pending.c.entry)).mappings()
    while some := found.fetchmany(waiting.BATCH_MAX):
        [row] = waiting.rows([said_bytes(_without_number(each)) for each in some])
        connection.execute(_BATCH.insert().values(batch=batch, **row))
        batch += 1
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"SELECT setval(pg_get_serial_sequence('audit_batch', 'batch'), {batch})"))
    else:
        connection.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = 'audit_batch'"))
        connection.execute(
            sa.text(f"INSERT INTO sqlite_sequence (name, seq) VALUES ('audit_batch', {batch})")  # noqa: S608 - a number
        )


def _without_number(row: sa.RowMapping) -> dict[str, Any]:
    return {str(name): value for name, value in row.items() if name != "entry"}


_POSTGRESQL = (
    # What waits may only leave for the log.
    f"""
    CREATE FUNCTION refuse_to_lose_an_entry() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF EXISTS (SELECT 1 FROM gone WHERE size <> (
        SELECT count(*) FROM audit_entry sealed
        WHERE sealed.entry >= gone.batch * {waiting.BATCH_MAX} AND sealed.entry < gone.batch * {waiting.BATCH_MAX} + gone.size
      )) THEN
        RAISE EXCEPTION 'DELETE on audit_batch: entries may only be deleted when they are sealed'
          USING ERRCODE = 'insufficient_privilege';
      END IF;
      RETURN NULL;
    END $$
    """,  # noqa: S608 - a number of ours
    """
    CREATE TRIGGER audit_batch_is_sealed AFTER DELETE ON audit_batch REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_lose_an_entry()
    """,
    """
    CREATE TRIGGER audit_batch_is_not_changed BEFORE UPDATE OR TRUNCATE ON audit_batch
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_log()
    """,
)
_SQLITE = (
    """
    CREATE TRIGGER audit_batch_refuses_update BEFORE UPDATE ON audit_batch
    BEGIN SELECT RAISE(ABORT, 'UPDATE on audit_batch: an entry is not changed'); END
    """,
    f"""
    CREATE TRIGGER audit_batch_is_sealed BEFORE DELETE ON audit_batch
    WHEN OLD.size <> (
      SELECT count(*) FROM audit_entry
      WHERE entry >= OLD.batch * {waiting.BATCH_MAX} AND entry < OLD.batch * {waiting.BATCH_MAX} + OLD.size
    )
    BEGIN SELECT RAISE(ABORT, 'DELETE on audit_batch: entries may only be deleted when they are sealed'); END
    """,  # noqa: S608 - a number of ours
)

_BATCH = sa.table("audit_batch", sa.column("batch"), sa.column("size"), sa.column("entries"))


def downgrade() -> None:
    raise NotImplementedError("Let everything be sealed and restore a backup.")
