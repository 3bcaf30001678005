"""A topic that was made anew is known by the last record that was taken in, and its offsets may have been met before."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "position",
        sa.Column(
            "last_offset",
            sa.BigInteger,
            comment="Of the last record taken in; a topic made anew holds another there",
        ),
    )
    op.add_column("position", sa.Column("last_sha256", sa.String(64)))
    with op.batch_alter_table("message") as table:
        table.drop_constraint("uq_message_topic", type_="unique")


def downgrade() -> None:
    raise NotImplementedError("Offsets may be there twice: restore a backup.")
