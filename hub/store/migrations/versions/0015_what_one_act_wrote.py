"""What one act wrote is one row of the log; `audit_entry` becomes a view of the entries one by one.

What was sealed before keeps its leaf, its hash and its number, as an act of one entry each.
"""

import sqlalchemy as sa
from alembic import op

from hub.store import acts, append_only

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_LEAF = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    if dialect == "postgresql":
        # What a sealer that nobody stopped seals after the entries are copied would go with their table.
        op.execute("LOCK TABLE audit_batch, audit_entry IN ACCESS EXCLUSIVE MODE")
    op.create_table(
        "audit_act",
        sa.Column("first_leaf", _LEAF, primary_key=True, autoincrement=False),
        sa.Column("first_entry", sa.BigInteger(), nullable=False),
        sa.Column("hashes", sa.LargeBinary(), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("occurred_at", _MOMENT),
        sa.Column("outcome", sa.Integer(), nullable=False),
        sa.Column("trust", sa.String(6)),
        sa.Column("system", sa.String(20), nullable=False),
        sa.Column("event_id", sa.String(64)),
        sa.Column("person_id", sa.String(64)),
        sa.Column("transfer_id", sa.String(64)),
        sa.Column("request_id", sa.String(255)),
        sa.Column("user_id", sa.String(300)),
        sa.Column("role_id", sa.String(100)),
        sa.Column("client_id", sa.String(300)),
        sa.Column("entries", sa.Text(), nullable=False),
        sa.UniqueConstraint("first_entry", name="uq_audit_act_first_entry"),
    )
    op.execute(_CARRIED_OVER.format(text="to_json" if dialect == "postgresql" else "json_quote"))
    if dialect == "postgresql":
        op.execute("DROP TRIGGER audit_batch_is_sealed ON audit_batch")
        op.execute("DROP FUNCTION refuse_to_lose_an_entry()")
    else:
        op.execute("DROP TRIGGER audit_batch_is_sealed")
    op.drop_table("audit_entry")
    op.create_index("ix_audit_act_at", "audit_act", ["at"])
    for name in ("event_id", "transfer_id", "person_id"):
        op.create_index(f"ix_audit_act_{name}", "audit_act", [name], postgresql_using="hash")
    for who in ("user_id", "client_id"):
        known = sa.text(f"{who} IS NOT NULL")
        op.create_index(
            f"ix_audit_act_{who}",
            "audit_act",
            [who, "first_leaf"],
            postgresql_where=known,
            sqlite_where=known,
        )
    notable = sa.text('(outcome > 0 OR entries LIKE \'%{"code":"break-glass-%\')')
    op.create_index(
        "ix_audit_act_notable", "audit_act", ["at"], postgresql_where=notable, sqlite_where=notable
    )
    if dialect == "postgresql":
        op.execute("ANALYZE audit_act")
    op.execute(acts.view(dialect))
    for statement in append_only.acts(dialect):
        op.execute(statement)


_CARRIED_OVER = """
INSERT INTO audit_act
  (first_leaf, first_entry, hashes, at, occurred_at, outcome, trust, system, event_id, person_id, transfer_id,
   request_id, user_id, role_id, client_id, entries)
SELECT leaf_index, entry, hash, at, occurred_at, outcome, trust, system, event_id, person_id, transfer_id,
  request_id, user_id, role_id, client_id,
  '[{{"code":' || {text}(code) || coalesce(',"counterpart":' || {text}(counterpart), '') || ',"detail":' || detail || '}}]'
FROM audit_entry ORDER BY leaf_index
"""


def downgrade() -> None:
    raise NotImplementedError("The sealed log would be lost: restore a backup.")
