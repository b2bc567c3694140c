"""The events table: deduplicated history, newest kept. The same thing said again counts up in one statement."""

from collections.abc import Mapping
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from controller.store.contract import EventFilter, Invalid
from controller.store.rows import AnyRow
from controller.store.schema import events
from controller.store.tables import Paging
from kakuri.model import Event, EventDraft, EventType


def list_page(connection: sa.Connection, where: EventFilter, page: Paging) -> list[Event]:
    query = sa.select(events)
    wanted = {"object_kind": where.object_kind, "object_id": where.object_id, "type": where.type}
    for column, value in wanted.items():
        if value is not None:
            query = query.where(events.c[column] == value)
    if page.ids is not None:
        query = query.where(events.c.id.in_(sorted(set(page.ids))))
    if page.after is not None:
        seen, id_ = place_after(page.after)
        query = query.where(sa.or_(events.c.last_seen > seen, sa.and_(events.c.last_seen == seen, events.c.id > id_)))
    query = query.order_by(events.c.last_seen, events.c.id).limit(page.limit + 1)
    return [_from_row(row) for row in connection.execute(query)]


def token(event: Event) -> str:
    """Where a page that ends with this event goes on."""
    return f"{event.last_seen.isoformat()}/{event.id}"


def place_after(text: str) -> tuple[datetime, str]:
    seen, _, id_ = text.rpartition("/")
    try:
        when = datetime.fromisoformat(seen)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise Invalid(f"{text!r} is no place to continue a list of events at; use the one that a page gave")
    return when, id_


def add(connection: sa.Connection, said: Mapping[str, tuple[EventDraft, int]], now: datetime) -> None:
    if not said:
        return
    rows = [
        {
            "id": id_,
            "object_kind": draft.object_kind,
            "object_id": draft.object_id,
            "type": draft.type.value,
            "reason": draft.reason,
            "message": draft.message,
            "allocation": draft.allocation,
            "node": draft.node,
            "count": count,
            "first_seen": now,
            "last_seen": now,
            "resource_version": 0,
        }
        for id_, (draft, count) in sorted(said.items())  # in one order, since each row is locked
    ]
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(events)
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=["id"],
            set_={"count": events.c.count + insert.excluded.count, "last_seen": insert.excluded.last_seen},
        ),
        rows,
    )


def trim(connection: sa.Connection, kept: int) -> None:
    oldest = sa.select(events.c.resource_version).order_by(events.c.resource_version.desc()).offset(kept).limit(1)
    connection.execute(sa.delete(events).where(events.c.resource_version <= oldest.scalar_subquery()))


def _from_row(row: AnyRow) -> Event:
    return Event.model_construct(
        kind="Event",
        id=row.id,
        object_kind=row.object_kind,
        object_id=row.object_id,
        type=EventType(row.type),
        reason=row.reason,
        message=row.message,
        allocation=row.allocation,
        node=row.node,
        count=row._mapping["count"],  # noqa: SLF001 - public; row.count is the tuple's method
        first_seen=row.first_seen,
        last_seen=row.last_seen,
        resource_version=row.resource_version,
    )
