"""An outbox row costs less: it is in the index of what was sent when it is sent and not before, and its message is compressed
by lz4 where PostgreSQL has it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_COLUMNS = ["topic", "sent_partition", "sent_offset"]
_PLACED = sa.text("sent_partition IS NOT NULL")


def upgrade() -> None:
    op.drop_index("ix_outbox_sent", "outbox")
    op.create_index("ix_outbox_sent", "outbox", _COLUMNS, postgresql_where=_PLACED, sqlite_where=_PLACED)
    if _has_lz4():
        op.execute("ALTER TABLE outbox ALTER COLUMN payload SET COMPRESSION lz4")


def downgrade() -> None:
    if _has_lz4():
        op.execute("ALTER TABLE outbox ALTER COLUMN payload SET COMPRESSION default")
    op.drop_index("ix_outbox_sent", "outbox")
    op.create_index("ix_outbox_sent", "outbox", _COLUMNS)


def _has_lz4() -> bool:
    """A PostgreSQL may be built without it, and before 14 there is no choice. Rows that are there stay as they are."""
    if op.get_bind().dialect.name != "postgresql":
        return False
    known = "SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression'"
    return bool(op.get_bind().execute(sa.text(known)).scalar())
