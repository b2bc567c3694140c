"""The workloads table: what people asked for, with what the planner says of it."""

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from controller.store.records import WorkloadRecord
from controller.store.rows import AnyRow, labels_text, paged, selected, spec_of, status_of
from controller.store.schema import allocations, nodes, workloads
from controller.store.tables import Paging
from kakuri.model import State
from kakuri.selector import Selector

_ENDED = tuple(s.value for s in State if s.ended)

_COLUMNS = (
    workloads.c.id,
    workloads.c.uid,
    workloads.c.spec,
    workloads.c.generation,
    workloads.c.version,
    workloads.c.status,
    workloads.c.created_at,
    workloads.c.deleted_at,
    workloads.c.waits_for_place,
    workloads.c.resource_version,
)


def list_page(connection: sa.Connection, selector: Selector, page: Paging) -> list[tuple[WorkloadRecord, str]]:
    silent = (
        sa.select(sa.func.min(allocations.c.node))
        .join(nodes, nodes.c.id == allocations.c.node)
        .where(allocations.c.workload_id == workloads.c.id, *_silent())
        .scalar_subquery()
    )
    query = selected(sa.select(*_COLUMNS, silent), workloads.c.labels, selector)
    rows = connection.execute(paged(query, workloads.c.id, page))
    return [(_from_row(row), row[-1] or "") for row in rows]


def by_id(connection: sa.Connection, ids: Collection[str], *, keep: bool) -> dict[str, WorkloadRecord]:
    query = sa.select(*_COLUMNS).where(workloads.c.id.in_(sorted(ids))).order_by(workloads.c.id)
    if keep:
        query = query.with_for_update(key_share=True)
    return {row.id: _from_row(row) for row in connection.execute(query)}


def keep(connection: sa.Connection, ids: Collection[str]) -> None:
    query = sa.select(workloads.c.id).where(workloads.c.id.in_(sorted(ids))).order_by(workloads.c.id)
    # key_share, here and elsewhere: new allocations, which only refer to the row, don't wait for it.
    connection.execute(query.with_for_update(key_share=True)).all()


def silent_nodes(connection: sa.Connection, ids: Collection[str]) -> dict[str, str]:
    query = (
        sa.select(allocations.c.workload_id, sa.func.min(allocations.c.node))
        .join(nodes, nodes.c.id == allocations.c.node)
        .where(allocations.c.workload_id.in_(sorted(ids)), *_silent())
        .group_by(allocations.c.workload_id)
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def _silent() -> tuple[sa.ColumnElement[bool], ...]:
    return sa.not_(nodes.c.ready), sa.not_(allocations.c.released), allocations.c.state.not_in(_ENDED)


def ids_after(connection: sa.Connection, after: str, limit: int) -> list[str]:
    query = sa.select(workloads.c.id).where(workloads.c.id > after).order_by(workloads.c.id).limit(limit)
    return list(connection.scalars(query))


def waiting(connection: sa.Connection, limit: int) -> list[str]:
    query = (
        sa.select(workloads.c.id)
        .where(workloads.c.waits_for_place)
        .order_by(workloads.c.resource_version, workloads.c.id)
        .limit(limit)
    )
    return list(connection.scalars(query))


def asking_for(connection: sa.Connection, runtime_class: str) -> list[str]:
    query = sa.select(workloads.c.id).where(workloads.c.runtime_class == runtime_class).order_by(workloads.c.id)
    return list(connection.scalars(query))


def bump(connection: sa.Connection, ids: Collection[str]) -> None:
    if ids:
        query = sa.update(workloads).where(workloads.c.id.in_(sorted(ids)))
        connection.execute(query.values(version=workloads.c.version + 1))


def to_row(record: WorkloadRecord) -> dict[str, Any]:
    spec, status = record.spec, record.status
    return {
        "id": record.id,
        "uid": record.uid,
        "image": spec.image,
        "runtime_class": spec.runtime_class,
        "node": status.node,
        "state": status.state.value,
        "reason": status.reason,
        "message": status.message,
        "replicas": spec.replicas,
        "generation": record.generation,
        "version": record.version,
        "waits_for_place": record.waits_for_place,
        "labels": labels_text(spec.labels),
        "spec": spec.model_dump_json(),
        "status": status.model_dump_json(),
        "created_at": record.created_at,
        "deleted_at": record.deleted_at,
        "resource_version": record.resource_version,
    }


def _from_row(row: AnyRow) -> WorkloadRecord:
    return WorkloadRecord(
        id=row.id,
        uid=row.uid,
        spec=spec_of(row.spec),
        generation=row.generation,
        version=row.version,
        status=status_of(row.status),
        created_at=row.created_at,
        deleted_at=row.deleted_at,
        waits_for_place=row.waits_for_place,
        resource_version=row.resource_version,
    )
