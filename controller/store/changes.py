"""The counter and the log of changes: in which order things were committed.

One rule: the counter is taken last, and its row lock is held until the commit. So numbers are in commit order, and who
has seen n will be shown all that is above n.
"""

from collections.abc import Sequence

import sqlalchemy as sa

from controller.store.contract import Change, Kind
from controller.store.schema import changes, cluster

CHANNEL = "kakuri"
"""On which PostgreSQL tells that something was committed; a channel belongs to one database."""


def current(connection: sa.Connection) -> int:
    newest: int = connection.execute(sa.select(cluster.c.resource_version)).scalar_one()
    return newest


def held_after(connection: sa.Connection) -> int:
    last_dropped: int = connection.execute(sa.select(cluster.c.changes_held_after)).scalar_one()
    return last_dropped


def since(connection: sa.Connection, resource_version: int, limit: int) -> list[Change]:
    query = (
        sa.select(changes)
        .where(changes.c.resource_version > resource_version)
        .order_by(changes.c.resource_version)
        .limit(limit)
    )
    return [Change(row.resource_version, row.kind, row.object_id, row.deleted) for row in connection.execute(query)]


def log(connection: sa.Connection, changed: Sequence[tuple[Kind, str, bool]]) -> int:
    """The changes are in the log; the first has the number returned. PostgreSQL tells who listens, at the commit."""
    bump = sa.update(cluster).values(resource_version=cluster.c.resource_version + len(changed))
    # In the same statement: one of its own would be one more round trip while the counter is locked.
    told = [sa.func.pg_notify(CHANNEL, "")] if connection.dialect.name == "postgresql" else []
    last = connection.execute(bump.returning(cluster.c.resource_version, *told)).scalar_one()
    first: int = last - len(changed) + 1
    rows = [
        {"resource_version": first + i, "kind": kind, "object_id": id_, "deleted": deleted}
        for i, (kind, id_, deleted) in enumerate(changed)
    ]
    connection.execute(sa.insert(changes), rows)
    return first


def trim(connection: sa.Connection, up_to: int) -> None:
    if up_to > 0:
        connection.execute(sa.delete(changes).where(changes.c.resource_version <= up_to))
        # A restore may have dropped more than that already.
        further = sa.update(cluster).where(cluster.c.changes_held_after < up_to)
        connection.execute(further.values(changes_held_after=up_to))
