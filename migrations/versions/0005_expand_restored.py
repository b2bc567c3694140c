"""A database that was restored from a backup deletes nothing until a person has confirmed it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("cluster", sa.Column("restored_at", sa.DateTime(timezone=True)))
    op.add_column("cluster", sa.Column("restored_epoch", sa.BigInteger(), nullable=False, server_default="0"))
