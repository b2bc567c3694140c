"""The nodes table: what users own (user_labels, schedulable) beside what agents say. What is used is not stored."""

import json
from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter

from controller.store.records import NodeRecord
from controller.store.rows import AnyRow, labels_text, paged, registration_of, selected
from controller.store.schema import allocations, nodes
from controller.store.tables import RELEASED, Paging
from kakuri.model import ByHand, Drain, Reason
from kakuri.selector import Selector

_BY_HAND: TypeAdapter[tuple[ByHand, ...]] = TypeAdapter(tuple[ByHand, ...])
_COLUMNS = (
    nodes.c.id,
    nodes.c.uid,
    nodes.c.user_labels,
    nodes.c.schedulable,
    nodes.c.generation,
    nodes.c.created_at,
    nodes.c.ready,
    nodes.c.reason,
    nodes.c.message,
    nodes.c.registration,
    nodes.c.registered_at,
    nodes.c.by_hand,
    nodes.c.resource_version,
    nodes.c.lost_at,
    nodes.c.inventory_epoch,
    nodes.c.drain,
)

_KNOWN = nodes.c.reason != Reason.FORGOTTEN.value


def list_page(connection: sa.Connection, selector: Selector, page: Paging) -> list[NodeRecord]:
    query = selected(sa.select(*_COLUMNS).where(_KNOWN), nodes.c.labels, selector)
    return [_from_row(row) for row in connection.execute(paged(query, nodes.c.id, page))]


def by_id(connection: sa.Connection, ids: Collection[str] | None, *, keep: bool) -> dict[str, NodeRecord]:
    query = sa.select(*_COLUMNS).where(_KNOWN).order_by(nodes.c.id)
    if ids is not None:
        query = query.where(nodes.c.id.in_(sorted(ids)))
    if keep:
        query = query.with_for_update(key_share=True)
    return {row.id: _from_row(row) for row in connection.execute(query)}


def forgotten(connection: sa.Connection, *, keep: bool) -> dict[str, str]:
    query = sa.select(nodes.c.id, nodes.c.message).where(sa.not_(_KNOWN)).order_by(nodes.c.id)
    rows = connection.execute(query.with_for_update(key_share=True) if keep else query)
    return {row.id: row.message for row in rows}


def hide(connection: sa.Connection, gone: Mapping[str, str]) -> None:
    """The rows stay, for the allocations that refer to them, and say nothing but how the nodes went."""
    nothing = {"ready": False, "schedulable": False, "registration": None, "drain": None, "lost_at": None}
    empty = {"address": "", "ledger_uid": "", "labels": "{}", "user_labels": "{}", "by_hand": "[]"}
    for id_, how in sorted(gone.items()):
        query = sa.update(nodes).where(nodes.c.id == id_)
        connection.execute(query.values(reason=Reason.FORGOTTEN.value, message=how, **nothing, **empty))


def clear_hidden(connection: sa.Connection) -> None:
    """Those that no allocation refers to go, but for released ones, whose rows say so. One that somebody is about to
    bring back is passed over: to wait for it while holding workloads would be out of order."""
    referred_to = sa.exists().where(allocations.c.node == nodes.c.id)
    hidden = sa.select(nodes.c.id).where(sa.not_(_KNOWN), nodes.c.message != RELEASED, sa.not_(referred_to))
    free = list(connection.scalars(hidden.order_by(nodes.c.id).with_for_update(skip_locked=True)))
    if free:
        connection.execute(sa.delete(nodes).where(nodes.c.id.in_(free)))


def to_row(record: NodeRecord) -> dict[str, Any]:
    told = record.registration
    return {
        "id": record.id,
        "uid": record.uid,
        "ready": record.ready,
        "schedulable": record.schedulable,
        "reason": record.reason,
        "message": record.message,
        "address": told.address if told else "",
        "memory_mb": told.capacity.memory_mb if told else 0,
        "cpu_millicores": told.capacity.cpu_millicores if told else 0,
        "labels": labels_text(record.all_labels),
        "user_labels": labels_text(record.labels),
        "ledger_uid": record.ledger_uid,
        "registration": told.model_dump_json() if told else None,
        "registered_at": record.registered_at,
        "by_hand": _BY_HAND.dump_json(record.by_hand).decode(),
        "generation": record.generation,
        "created_at": record.created_at,
        "resource_version": record.resource_version,
        "lost_at": record.lost_at,
        "inventory_epoch": record.inventory_epoch,
        "drain": record.drain.model_dump_json() if record.drain else None,
    }


def _from_row(row: AnyRow) -> NodeRecord:
    return NodeRecord(
        id=row.id,
        uid=row.uid,
        labels=json.loads(row.user_labels),
        schedulable=row.schedulable,
        generation=row.generation,
        created_at=row.created_at,
        ready=row.ready,
        reason=row.reason,
        message=row.message,
        registration=registration_of(row.registration) if row.registration else None,
        registered_at=row.registered_at,
        by_hand=_BY_HAND.validate_json(row.by_hand) if row.by_hand != "[]" else (),
        resource_version=row.resource_version,
        lost_at=row.lost_at,
        inventory_epoch=row.inventory_epoch,
        drain=Drain.model_validate_json(row.drain) if row.drain else None,
    )
