"""The tombstones table: allocations that SQL gave up on while their nodes may still run them."""

from collections.abc import Collection, Iterable

import sqlalchemy as sa

from controller.store.rows import AnyRow
from controller.store.schema import tombstones
from kakuri.model import Tombstone


def on_nodes(connection: sa.Connection, nodes: Collection[str]) -> list[Tombstone]:
    return _all(connection, tombstones.c.node.in_(sorted(nodes)))


def blocking(connection: sa.Connection, workload_ids: Collection[str]) -> list[Tombstone]:
    return _all(connection, sa.and_(tombstones.c.workload.in_(sorted(workload_ids)), tombstones.c.blocks))


def _all(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> list[Tombstone]:
    query = sa.select(tombstones).where(condition).order_by(tombstones.c.id)
    return [_from_row(row) for row in connection.execute(query)]


def put(connection: sa.Connection, records: Iterable[Tombstone]) -> None:
    """Each is as given, whether or not one of its id was there."""
    given = [dict(record) for record in records]
    if given:
        connection.execute(sa.delete(tombstones).where(tombstones.c.id.in_(sorted(r["id"] for r in given))))
        connection.execute(sa.insert(tombstones), given)


def _from_row(row: AnyRow) -> Tombstone:
    return Tombstone.model_construct(**row._mapping)  # noqa: SLF001 - public; the name only keeps off the columns'
