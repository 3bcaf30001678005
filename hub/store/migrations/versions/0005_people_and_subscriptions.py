"""People who sign in: when one broke the glass, and who looked at that. Subscriptions, and what each must be told."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "break_glass",
        sa.Column("grant_id", sa.String(64), primary_key=True),
        sa.Column("trust", sa.String(6), nullable=False),
        sa.Column("user_id", sa.String(200), nullable=False),
        sa.Column("role_id", sa.String(100), nullable=False),
        sa.Column("person_id", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("granted_at", moment, nullable=False),
        sa.Column("expires_at", moment, nullable=False),
        sa.Column("reviewed_at", moment),
        sa.Column("reviewed_by", sa.String(100)),
        sa.Column("verdict", sa.String(20)),
    )
    op.create_index("ix_break_glass_user_id", "break_glass", ["user_id", "expires_at"])
    op.create_table(
        "subscription",
        sa.Column("subscription_id", sa.String(64), primary_key=True),
        sa.Column("trust", sa.String(6), nullable=False),
        sa.Column("client_id", sa.String(300), nullable=False),
        sa.Column("resource", sa.JSON(), nullable=False),
        sa.Column("wanted", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(10), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("ends_at", moment),
        sa.Column("met", sa.Boolean(), nullable=False),
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.Column("told_number", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", moment),
        sa.Column("heard_at", moment),
    )
    op.create_index("ix_subscription_trust", "subscription", ["trust", "status"])
    op.create_table(
        "subscription_event",
        sa.Column("seq", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("subscription_id", sa.String(64), nullable=False),
        sa.Column("number", sa.BigInteger()),
        sa.Column("transfer_id", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("at", moment, nullable=False),
    )
    op.create_index(
        "ix_subscription_event_subscription_id",
        "subscription_event",
        ["subscription_id", "number"],
        unique=True,
    )


def downgrade() -> None:
    raise NotImplementedError("Grants and subscriptions would be lost: restore a backup.")
