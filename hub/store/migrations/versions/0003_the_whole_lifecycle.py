"""The whole lifecycle: facts are kept with the transfer, stays with their events, merges with the person; clocks on the transfer.

What happened before stays as it was; a bed that was `ready` is `bed-allocated` now.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_MERGED = sa.text("merged_into IS NOT NULL")
_DUE = sa.text("due_at IS NOT NULL")


def upgrade() -> None:
    op.add_column("person", sa.Column("merged_into", sa.String(64)))
    op.add_column("person", sa.Column("sensitivity", sa.String(1)))
    op.create_index(
        "ix_person_merged_into", "person", ["merged_into"], postgresql_where=_MERGED, sqlite_where=_MERGED
    )
    op.drop_table("person_link")
    op.create_table(
        "person_link",
        sa.Column("person_id", sa.String(64), primary_key=True),
        sa.Column("event_id", sa.String(64), primary_key=True),
        sa.Column("linked_to", sa.String(64)),
        sa.Column("kind", sa.String(40), nullable=False),
    )
    op.drop_table("due")
    op.add_column("event", sa.Column("stay", sa.JSON()))
    for column in (
        sa.Column("specialty", sa.String(20)),
        sa.Column("priority", sa.String(20)),
        sa.Column("kind", sa.String(40)),
        sa.Column("inferred", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("replaces", sa.String(64)),
        sa.Column("due_at", sa.DateTime(timezone=True)),
        sa.Column("due_clock", sa.String(30)),
    ):
        op.add_column("transfer", column)
    op.create_index("ix_transfer_due", "transfer", ["due_at"], postgresql_where=_DUE, sqlite_where=_DUE)
    _facts_to_history()


def _facts_to_history() -> None:
    """A fact was a column of the event and a row of the history; now it is the row."""
    with op.batch_alter_table("transfer_history") as table:
        table.alter_column(
            "recorded_at", new_column_name="received_at", existing_type=sa.DateTime(timezone=True)
        )
        for column in (
            sa.Column("by", sa.String(6), nullable=False, server_default=""),
            sa.Column("sequence", sa.BigInteger()),
            sa.Column("encounter_key", sa.String(600)),
            sa.Column("retracts", sa.JSON()),
            sa.Column("until", sa.DateTime(timezone=True)),
            sa.Column("clock", sa.String(30)),
            sa.Column("stated_at", sa.DateTime(timezone=True)),
        ):
            table.add_column(column)
    op.execute(
        """
        UPDATE transfer_history SET
            "by" = (SELECT e.trust FROM event e WHERE e.event_id = transfer_history.event_id),
            sequence = (SELECT e.sequence FROM event e WHERE e.event_id = transfer_history.event_id),
            encounter_key = (SELECT e.encounter_key FROM event e WHERE e.event_id = transfer_history.event_id)
        """
    )
    op.execute("UPDATE transfer_history SET from_state = 'bed-allocated' WHERE from_state = 'ready'")
    op.execute("UPDATE transfer_history SET to_state = 'bed-allocated' WHERE to_state = 'ready'")
    op.execute("UPDATE transfer SET state = 'bed-allocated' WHERE state = 'ready'")
    with op.batch_alter_table("event") as table:
        table.drop_column("step")
        table.drop_column("because")


def downgrade() -> None:
    raise NotImplementedError("Facts that the older program does not know would be lost: restore a backup.")
