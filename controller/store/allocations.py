"""The allocations table: the runs, each bound to its node. All writes go under the row lock of their workload."""

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from controller.exchange import Errand
from controller.plan.snapshot import HostPort, host_ports_of
from controller.store.contract import AllocationFilter
from controller.store.records import Usage
from controller.store.rows import AnyRow, paged, selected, spec_of
from controller.store.schema import allocations, nodes, runtime_classes, workloads
from controller.store.tables import Paging
from kakuri.model import Allocation, Desired, Reason, State

_a = allocations.c
# Placement's own columns are written for the indexes, and read from the spec.
_COLUMNS = tuple(c for c in _a if c.name not in {"memory_mb", "cpu_millicores", "has_host_ports"})
_NOT_RELEASED = sa.not_(_a.released)
_UNSENT = _a.accepted_revision < _a.revision


def list_page(connection: sa.Connection, where: AllocationFilter, page: Paging) -> list[tuple[Allocation, str]]:
    silence = sa.case((nodes.c.ready, ""), else_=nodes.c.reason).label("silence")
    query = sa.select(*_COLUMNS, silence).join(nodes, nodes.c.id == _a.node)
    if where.workload is not None:
        query = query.where(_a.workload_id == where.workload)
    if where.node is not None:
        query = query.where(_a.node == where.node)
    if where.selector:
        query = selected(query.join(workloads, workloads.c.id == _a.workload_id), workloads.c.labels, where.selector)
    return [(_from_row(row), row.silence) for row in connection.execute(paged(query, _a.id, page))]


def by_id(connection: sa.Connection, ids: Collection[str]) -> list[Allocation]:
    return _all(connection, _a.id.in_(sorted(ids)))


def of_workloads(connection: sa.Connection, workload_ids: Collection[str]) -> list[Allocation]:
    return _all(connection, _a.workload_id.in_(sorted(workload_ids)))


def on_node(connection: sa.Connection, node: str) -> list[Allocation]:
    return _all(connection, _a.node == node)


def leaving(connection: sa.Connection, on: Collection[str]) -> list[Allocation]:
    """As Allocation.leaves_a_drain says."""
    stopped = sa.and_(_a.desired != Desired.RUN.value, _a.desired_reason == Reason.DRAINED.value)
    return _all(connection, sa.and_(_a.node.in_(sorted(on)), _NOT_RELEASED, stopped))


def unseen_on(connection: sa.Connection, on: Collection[str]) -> list[Allocation]:
    return _all(connection, sa.and_(_a.node.in_(sorted(on)), _NOT_RELEASED, _a.observed_at.is_(None)))


def _all(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> list[Allocation]:
    return [_from_row(row) for row in connection.execute(sa.select(*_COLUMNS).where(condition).order_by(_a.id))]


def owners_on(connection: sa.Connection, node: str, ids: Collection[str] | None) -> list[str]:
    query = sa.select(_a.workload_id).where(_a.node == node).distinct()
    if ids is not None:
        query = query.where(_a.id.in_(sorted(ids)))
    return list(connection.scalars(query))


def live_of_class(connection: sa.Connection, runtime_class: str) -> list[str]:
    query = sa.select(_a.id).where(_a.runtime_class == runtime_class, _NOT_RELEASED).order_by(_a.id)
    return list(connection.scalars(query))


def errands(connection: sa.Connection, node: str, limit: int) -> list[Errand]:
    query = (
        sa.select(*_COLUMNS, runtime_classes.c.handler.label("class_handler"))
        .join(runtime_classes, runtime_classes.c.id == _a.runtime_class, isouter=True)
        .where(_a.node == node, _UNSENT)
        .order_by(_a.created_at, _a.id)
        .limit(limit)
    )
    return [Errand(_from_row(row), row.class_handler or "") for row in connection.execute(query)]


def nodes_with_errands(connection: sa.Connection) -> set[str]:
    return set(connection.scalars(sa.select(_a.node).where(_UNSENT).distinct()))


def owes_stops(connection: sa.Connection, node: str) -> bool:
    # Of one that is to be removed, the revision before says that it is to stop.
    stopped = _a.revision - sa.case((_a.desired == Desired.REMOVE.value, 1), else_=0)
    query = sa.select(_a.id).where(_a.node == node, _UNSENT, _a.released, _a.accepted_revision < stopped).limit(1)
    return connection.scalar(query) is not None


def has_errands(connection: sa.Connection, node: str, besides: Collection[str]) -> bool:
    query = sa.select(_a.id).where(_a.node == node, _UNSENT).limit(1)
    if besides:
        query = query.where(_a.id.not_in(sorted(besides)))
    return connection.scalar(query) is not None


def usage(connection: sa.Connection, on: Collection[str] | None) -> dict[str, Usage]:
    query = (
        sa.select(_a.node, sa.func.sum(_a.memory_mb), sa.func.sum(_a.cpu_millicores), sa.func.count())
        .where(_NOT_RELEASED)
        .group_by(_a.node)
    )
    if on is not None:
        query = query.where(_a.node.in_(sorted(on)))
    return {row[0]: Usage(int(row[1]), int(row[2]), row[3]) for row in connection.execute(query)}


def host_ports(connection: sa.Connection) -> dict[str, frozenset[HostPort]]:
    found: dict[str, set[HostPort]] = {}
    query = sa.select(_a.node, _a.spec).where(_NOT_RELEASED, _a.has_host_ports)
    for node, spec in connection.execute(query):
        found.setdefault(node, set()).update(host_ports_of(spec_of(spec)))
    return {node: frozenset(ports) for node, ports in found.items()}


def to_row(row: Allocation) -> dict[str, Any]:
    spec = row.spec
    return {
        "id": row.id,
        "workload_id": row.workload,
        "workload_uid": row.workload_uid,
        "slot": row.slot,
        "node": row.node,
        "runtime_class": row.runtime_class,
        "state": row.state.value,
        "reason": row.reason,
        "message": row.message,
        "exit_code": row.exit_code,
        "restarts": row.restarts,
        "desired": row.desired.value,
        "desired_reason": row.desired_reason,
        "revision": row.revision,
        "accepted_revision": row.accepted_revision,
        "generation": row.generation,
        "spec_hash": row.spec_hash,
        "failures": row.failures,
        "started_once": row.started_once,
        "released": row.released,
        "lease_bound": row.lease_bound,
        "simulated": row.simulated,
        "handler": row.handler,
        "ledger_uid": row.ledger_uid,
        "sandbox_id": row.sandbox_id,
        "container_id": row.container_id,
        "ip": row.ip,
        "memory_mb": spec.memory_mb,
        "cpu_millicores": spec.cpu_millicores,
        "has_host_ports": bool(host_ports_of(spec)),
        "spec": spec.model_dump_json(),
        "created_at": row.created_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "observed_at": row.observed_at,
        "resource_version": row.resource_version,
    }


def _from_row(row: AnyRow) -> Allocation:
    return Allocation.model_construct(
        id=row.id,
        workload=row.workload_id,
        workload_uid=row.workload_uid,
        slot=row.slot,
        node=row.node,
        runtime_class=row.runtime_class,
        generation=row.generation,
        spec_hash=row.spec_hash,
        spec=spec_of(row.spec),
        desired=Desired(row.desired),
        desired_reason=row.desired_reason,
        revision=row.revision,
        accepted_revision=row.accepted_revision,
        failures=row.failures,
        state=State(row.state),
        reason=row.reason,
        message=row.message,
        exit_code=row.exit_code,
        restarts=row.restarts,
        started_once=row.started_once,
        released=row.released,
        lease_bound=row.lease_bound,
        simulated=row.simulated,
        handler=row.handler,
        ledger_uid=row.ledger_uid,
        sandbox_id=row.sandbox_id,
        container_id=row.container_id,
        ip=row.ip,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        observed_at=row.observed_at,
        resource_version=row.resource_version,
    )
