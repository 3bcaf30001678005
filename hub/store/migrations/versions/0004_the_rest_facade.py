"""The REST facade: messages without a place in Kafka, the systems that may send them, and searching transfers by their ends."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_OPEN = sa.text(
    "state NOT IN ('completed', 'redirected', 'cancelled', 'entered-in-error', 'failed', 'expired')"
)


def upgrade() -> None:
    with op.batch_alter_table("message") as table:
        table.alter_column("topic", existing_type=sa.String(249), nullable=True)
        table.alter_column("partition", existing_type=sa.Integer(), nullable=True)
        table.alter_column("offset", existing_type=sa.BigInteger(), nullable=True)
    op.create_index("ix_transfer_sender", "transfer", ["sender", "changed_at", "transfer_id"])
    op.create_index("ix_transfer_receiver", "transfer", ["receiver", "changed_at", "transfer_id"])
    for end in ("sender", "receiver"):
        columns = [end, "changed_at", "transfer_id"]
        op.create_index(
            f"ix_transfer_{end}_open", "transfer", columns, postgresql_where=_OPEN, sqlite_where=_OPEN
        )
    op.create_table(
        "client",
        sa.Column("client_id", sa.String(64), primary_key=True),
        sa.Column("trust", sa.String(6), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("keys", sa.JSON(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
    )
    op.create_table(
        "used_assertion",
        sa.Column("client_id", sa.String(64), primary_key=True),
        sa.Column("jti", sa.String(255), primary_key=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_used_assertion_expires_at", "used_assertion", ["expires_at"])


def downgrade() -> None:
    raise NotImplementedError(
        "What came over REST would have no place in the older schema: restore a backup."
    )
