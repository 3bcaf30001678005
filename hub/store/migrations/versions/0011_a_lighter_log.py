"""A sealed entry costs less: the index by patient holds the patient alone, so that equal ones share an index entry."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_INDEX = "ix_audit_entry_person_id"


def upgrade() -> None:
    op.drop_index(_INDEX, "audit_entry")
    op.create_index(_INDEX, "audit_entry", ["person_id"])


def downgrade() -> None:
    op.drop_index(_INDEX, "audit_entry")
    op.create_index(_INDEX, "audit_entry", ["person_id", "leaf_index"])
