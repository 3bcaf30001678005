"""Numbers that a human has said are not a person's: whoever gives one for that record asks a question."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "person_not_theirs",
        sa.Column("person_id", sa.String(64), primary_key=True),
        sa.Column("authority", sa.String(310), primary_key=True),
        sa.Column("value", sa.String(255), primary_key=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        comment="Numbers that a person took from a record: who gives one for it asks a question. Who and why is in the audit",
    )


def downgrade() -> None:
    raise NotImplementedError("What is not a person's number would be learned again: restore a backup.")
