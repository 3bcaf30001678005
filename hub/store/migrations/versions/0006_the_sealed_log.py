"""The sealed log: entries wait in `audit_pending` and are moved to `audit_entry` under a leaf index, where nothing changes them.

Triggers refuse it to everybody, the owner of the tables included; `hub.store.grants` gives the hub's services no right to try.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from hub.store import append_only

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_MOMENT = sa.DateTime(timezone=True)


def _columns() -> "tuple[sa.Column[Any], ...]":
    return (
        sa.Column("code", sa.String(40), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("occurred_at", _MOMENT),
        sa.Column("outcome", sa.Integer(), nullable=False),
        sa.Column("trust", sa.String(6)),
        sa.Column("system", sa.String(20), nullable=False),
        sa.Column("counterpart", sa.String(6)),
        sa.Column("event_id", sa.String(64)),
        sa.Column("person_id", sa.String(64)),
        sa.Column("transfer_id", sa.String(64)),
        sa.Column("request_id", sa.String(255)),
        sa.Column("user_id", sa.String(300)),
        sa.Column("role_id", sa.String(100)),
        sa.Column("client_id", sa.String(300)),
        sa.Column("detail", sa.JSON(), nullable=False),
    )


def upgrade() -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    op.rename_table("audit_entry", "audit_entry_before")
    op.create_table(
        "audit_pending",
        sa.Column("entry", _NUMBER, primary_key=True, autoincrement=True),
        *_columns(),
        sqlite_autoincrement=True,
    )
    op.execute(_CARRIED_OVER)
    if on_postgresql:
        op.execute(
            "SELECT setval(pg_get_serial_sequence('audit_pending', 'entry'), (SELECT max(entry) FROM audit_pending))"
        )
    op.drop_table("audit_entry_before")
    op.create_table(
        "audit_entry",
        sa.Column("leaf_index", _NUMBER, primary_key=True, autoincrement=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("entry", sa.BigInteger(), nullable=False),
        *_columns(),
        sa.UniqueConstraint("entry", name="uq_audit_entry_entry"),
    )
    op.create_index("ix_audit_entry_at", "audit_entry", ["at"])
    op.create_index("ix_audit_entry_event_id", "audit_entry", ["event_id"])
    op.create_index("ix_audit_entry_transfer_id", "audit_entry", ["transfer_id"])
    op.create_index("ix_audit_entry_person_id", "audit_entry", ["person_id", "leaf_index"])
    for who in ("user_id", "client_id"):
        known = sa.text(f"{who} IS NOT NULL")
        op.create_index(
            f"ix_audit_entry_{who}",
            "audit_entry",
            [who, "leaf_index"],
            postgresql_where=known,
            sqlite_where=known,
        )
    notable = sa.text("(outcome > 0 OR code LIKE 'break-glass-%')")
    op.create_index(
        "ix_audit_entry_notable",
        "audit_entry",
        ["code", "at"],
        postgresql_where=notable,
        sqlite_where=notable,
    )
    op.create_table(
        "audit_node",
        sa.Column("level", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "audit_checkpoint",
        sa.Column("size", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
    )
    op.create_table(
        "audit_feed",
        sa.Column("name", sa.String(40), primary_key=True),
        sa.Column("next_leaf", sa.BigInteger(), nullable=False),
        sa.Column("last_offset", sa.BigInteger()),
        sa.Column("moved_at", _MOMENT, nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text()),
        sa.Column("next_attempt_at", _MOMENT),
    )
    op.add_column("break_glass", sa.Column("closed_at", _MOMENT))
    for statement in (
        *append_only.never_changed(
            op.get_bind().dialect.name, "audit_entry", "audit_node", "audit_checkpoint"
        ),
        *(_WAITS_PG if on_postgresql else _WAITS_SQLITE),
    ):
        op.execute(statement)


_CARRIED_OVER = """
INSERT INTO audit_pending
  (entry, code, at, occurred_at, outcome, trust, system, counterpart, event_id, person_id, transfer_id, detail)
SELECT entry,
  CASE code
    WHEN 'msg-normalised' THEN 'msg-repaired'
    WHEN 'transfer-moved' THEN 'transfer-updated'
    WHEN 'delivery-sent' THEN CASE WHEN transfer_id IS NULL THEN 'delivery-ack' ELSE 'disclosure-sent' END
    WHEN 'delivery-failed' THEN 'delivery-retry'
    WHEN 'identity-created' THEN 'identity-unmatched'
    WHEN 'break-glass' THEN 'break-glass-opened'
    ELSE code
  END,
  at, occurred_at, outcome, trust, system, counterpart, event_id, person_id, transfer_id, detail
FROM audit_entry_before ORDER BY entry
"""
"""Entries of before the log was sealed, in the words of today's catalogue. They are sealed when the sealer first runs."""

_WAITS_PG = (
    """
    CREATE FUNCTION refuse_to_lose_an_entry() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF EXISTS (
        SELECT 1 FROM gone LEFT JOIN audit_entry sealed ON sealed.entry = gone.entry
        WHERE sealed.entry IS NULL
          OR (sealed.code, sealed.at, sealed.outcome, sealed.system) <> (gone.code, gone.at, gone.outcome, gone.system)
      ) THEN
        RAISE EXCEPTION 'DELETE on audit_pending: an entry may only be deleted when it is sealed'
          USING ERRCODE = 'insufficient_privilege';
      END IF;
      RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER audit_pending_is_moved AFTER DELETE ON audit_pending REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_lose_an_entry()
    """,
    """
    CREATE TRIGGER audit_pending_is_not_changed BEFORE UPDATE OR TRUNCATE ON audit_pending
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_log()
    """,
)
_WAITS_SQLITE = (
    """
    CREATE TRIGGER audit_pending_refuses_update BEFORE UPDATE ON audit_pending
    BEGIN SELECT RAISE(ABORT, 'UPDATE on audit_pending: an entry is not changed'); END
    """,
    """
    CREATE TRIGGER audit_pending_is_moved BEFORE DELETE ON audit_pending
    WHEN NOT EXISTS (SELECT 1 FROM audit_entry WHERE entry = OLD.entry AND code = OLD.code AND at = OLD.at)
    BEGIN SELECT RAISE(ABORT, 'DELETE on audit_pending: an entry may only be deleted when it is sealed'); END
    """,
)


def downgrade() -> None:
    raise NotImplementedError("The sealed log would be lost: restore a backup.")
