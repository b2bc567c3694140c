"""The runtime_classes table."""

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from controller.store.rows import AnyRow, paged
from controller.store.schema import runtime_classes
from controller.store.tables import Paging
from kakuri.model import RuntimeClass


def list_page(connection: sa.Connection, page: Paging) -> list[RuntimeClass]:
    query = paged(sa.select(runtime_classes), runtime_classes.c.id, page)
    return [_from_row(row) for row in connection.execute(query)]


def all_by_id(connection: sa.Connection, *, keep: Collection[str]) -> dict[str, RuntimeClass]:
    if keep:
        kept = sa.select(runtime_classes.c.id).where(runtime_classes.c.id.in_(sorted(keep)))
        connection.execute(kept.order_by(runtime_classes.c.id).with_for_update(key_share=True)).all()
    query = sa.select(runtime_classes).order_by(runtime_classes.c.id)
    return {row.id: _from_row(row) for row in connection.execute(query)}


def to_row(record: RuntimeClass) -> dict[str, Any]:
    return {
        "id": record.id,
        "uid": record.uid,
        "handler": record.handler,
        "min_memory_mb": record.min_memory_mb,
        "generation": record.generation,
        "created_at": record.created_at,
        "resource_version": record.resource_version,
    }


def _from_row(row: AnyRow) -> RuntimeClass:
    return RuntimeClass.model_construct(
        kind="RuntimeClass",
        id=row.id,
        handler=row.handler,
        min_memory_mb=row.min_memory_mb,
        uid=row.uid,
        generation=row.generation,
        resource_version=row.resource_version,
        created_at=row.created_at,
    )
