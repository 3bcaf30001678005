"""What ages out: a delivered message may have no body any more; indexes of what is still kept, so that looking costs what there is to find."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("outbox") as table:
        table.alter_column("payload", existing_type=sa.LargeBinary(), nullable=True)
    for name, table_name, column, kept in (
        ("ix_message_kept", "message", "received_at", "raw IS NOT NULL"),
        ("ix_event_kept", "event", "received_at", "payload IS NOT NULL"),
        ("ix_outbox_kept", "outbox", "sent_at", "state = 'sent' AND payload IS NOT NULL"),
    ):
        where = sa.text(kept)
        op.create_index(name, table_name, [column], postgresql_where=where, sqlite_where=where)


def downgrade() -> None:
    raise NotImplementedError("What has aged out does not come back: restore a backup.")
