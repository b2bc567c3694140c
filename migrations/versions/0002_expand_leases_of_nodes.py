"""A node's lease: when it was certainly over, under which epoch the node's whole inventory was read, and which
allocations end with it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("lost_at", sa.DateTime(timezone=True)))
    op.add_column("nodes", sa.Column("inventory_epoch", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("allocations", sa.Column("lease_bound", sa.Boolean(), nullable=False, server_default=sa.false()))
