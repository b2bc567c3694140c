"""The tombstones table: allocations that SQL gave up on while their nodes may still run them."""

from collections.abc import Collection, Iterable

import sqlalchemy as sa

from controller.store.rows import AnyRow
from controller.store.schema import tombstones
from kakuri.model import Tombstone


def on_nodes(connection: sa.Connection, nodes: Collection[str]) -> list[Tombstone]:
    return _all(connection, tombstones.c.node.in_(sorted(nodes)))


def of_workloads(connection: sa.Connection, workload_ids: Collection[str]) -> list[Tombstone]:
    return _all(connection, tombstones.c.workload.in_(sorted(workload_ids)))


def nodes_with_any(connection: sa.Connection) -> set[str]:
    return set(connection.scalars(sa.select(tombstones.c.node).distinct()))


def trim(connection: sa.Connection, kept: int) -> None:
    """The oldest go of those that block nothing: of nodes that never came back."""
    newest = sa.select(tombstones.c.id).order_by(tombstones.c.created_at.desc(), tombstones.c.id).limit(kept)
    connection.execute(sa.delete(tombstones).where(sa.not_(tombstones.c.blocks), tombstones.c.id.not_in(newest)))


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
