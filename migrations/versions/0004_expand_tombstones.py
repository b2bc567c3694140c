"""Allocations that SQL gave up on while their node may still run them."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    id_ = sa.Text(collation="C") if op.get_bind().dialect.name == "postgresql" else sa.Text()
    op.create_table(
        "tombstones",
        sa.Column("id", id_, primary_key=True),
        sa.Column("node", id_, nullable=False),
        sa.Column("workload", id_, nullable=False),
        sa.Column("slot", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("blocks", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("tombstones_by_node", "tombstones", ["node"])
    op.create_index("tombstones_by_workload", "tombstones", ["workload"])
