"""Indexes that nobody asks are dropped, and that of stays holds only those that belong to no transfer: each entry is
written with every event, and again when an outbox row is marked as sent.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_LOOSE = sa.text("transfer_id IS NULL")


def upgrade() -> None:
    op.drop_index("ix_outbox_event_id", "outbox")
    op.drop_index("ix_event_transfer_id", "event")
    op.drop_index("ix_event_person_id", "event")
    op.create_index("ix_event_loose", "event", ["person_id"], postgresql_where=_LOOSE, sqlite_where=_LOOSE)


def downgrade() -> None:
    op.drop_index("ix_event_loose", "event")
    op.create_index("ix_event_person_id", "event", ["person_id"])
    op.create_index("ix_event_transfer_id", "event", ["transfer_id"])
    op.create_index("ix_outbox_event_id", "outbox", ["event_id"])
