"""What has no place in the canonical form is kept; indexes of what is looked for only; payloads packed quicker."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_NOT_ACCEPTED = sa.text("disposition <> 'accepted'")
_SEALED = sa.text("leaf_index IS NOT NULL")


def upgrade() -> None:
    op.add_column("event", sa.Column("unmapped", sa.JSON(), nullable=False, server_default="[]"))
    op.drop_index("ix_message_disposition", "message")
    op.create_index(
        "ix_message_disposition",
        "message",
        ["disposition", "trust", "received_at"],
        postgresql_where=_NOT_ACCEPTED,
        sqlite_where=_NOT_ACCEPTED,
    )
    with op.batch_alter_table("audit_entry") as table:
        table.drop_constraint("uq_audit_entry_leaf_index", type_="unique")
    op.create_index(
        "ix_audit_entry_leaf_index",
        "audit_entry",
        ["leaf_index"],
        unique=True,
        postgresql_where=_SEALED,
        sqlite_where=_SEALED,
    )
    connection = op.get_bind()
    if connection.dialect.name == "postgresql" and _has_lz4(connection):
        op.execute("ALTER TABLE outbox ALTER COLUMN payload SET COMPRESSION lz4")


def _has_lz4(connection: sa.Connection) -> bool:
    """PostgreSQL may have been built without it; its own method takes several times as long."""
    known = connection.scalar(
        sa.text("SELECT enumvals FROM pg_settings WHERE name = 'default_toast_compression'")
    )
    return "lz4" in (known or ())


def downgrade() -> None:
    op.drop_index("ix_audit_entry_leaf_index", "audit_entry")
    with op.batch_alter_table("audit_entry") as table:
        table.create_unique_constraint("uq_audit_entry_leaf_index", ["leaf_index"])
    op.drop_index("ix_message_disposition", "message")
    op.create_index("ix_message_disposition", "message", ["disposition", "trust", "received_at"])
    with op.batch_alter_table("event") as table:
        table.drop_column("unmapped")
