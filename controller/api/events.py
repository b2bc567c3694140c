"""Events: read only. What they tell is written by those who saw it."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from controller.api.ports import ObjectReads
from controller.api.query import NAME, Param, Where
from controller.api.resource import Resource
from controller.store.contract import EventFilter, NotFound, Page
from kakuri.model import Event

OBJECT_KIND = Param(
    "object_kind", {"type": "string", "enum": ["Workload", "Node", "RuntimeClass"]}, "Of objects of this kind."
)
OBJECT_ID = Param("object_id", NAME, "Of the object with this id.")
TYPE = Param("type", {"type": "string", "enum": ["Normal", "Warning"]}, "Of this type.")
_ID = re.compile(r"[\x21-\x7e]{1,200}")


class Events(Resource[Event]):
    kind = "Event"
    path = "/events"
    shown = Event
    filters = (OBJECT_KIND, OBJECT_ID, TYPE)

    async def one(self, store: ObjectReads, id_: str) -> Event:
        page = await store.list_events(EventFilter(), limit=1, ids=[id_])
        if not page.items:
            raise NotFound(f"there is no Event {id_!r}")
        return page.items[0]

    async def page(
        self,
        store: ObjectReads,
        where: Where,
        *,
        limit: int,
        after: str | None = None,
        ids: Sequence[str] | None = None,
    ) -> Page[Event]:
        filter_ = EventFilter(**where.terms)
        return await store.list_events(filter_, limit=limit, after=after, ids=ids)

    def selects(self, where: Where, object_: Any) -> bool:
        return all(getattr(object_, name) == value for name, value in where.terms.items())

    def born(self, object_: Any, since: datetime) -> bool:
        first_seen: datetime = object_.first_seen
        return first_seen >= since

    def is_id(self, text: str) -> bool:
        return _ID.fullmatch(text) is not None


EVENTS = Events()
