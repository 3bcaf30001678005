"""Who said that a patient's record is restricted: nobody else takes that back."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "person",
        sa.Column(
            "restricted_by", sa.String(6), comment="The trust that said so; empty: not known, before 0013"
        ),
    )


def downgrade() -> None:
    raise NotImplementedError("Who restricted a record would be forgotten: restore a backup.")
