"""What the five kinds have in common: how one is read, listed and chosen. Each kind's own file says the rest.

One rule: a page and a watch of the same query select the same objects.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

from controller.api.ports import ObjectReads
from controller.api.query import Param, Where
from controller.store.contract import Kind, NotFound, Page
from kakuri.model import Allocation, Event, Model, Node, RuntimeClass, Workload
from kakuri.model.fields import is_name

Shown = Workload | Allocation | Node | RuntimeClass | Event
"""An object as the server shows it."""
T = TypeVar("T", Workload, Allocation, Node, RuntimeClass, Event)


class Resource(ABC, Generic[T]):
    """One kind. It has no state; there is one instance of each."""

    kind: ClassVar[Kind]
    path: ClassVar[str]
    shown: ClassVar[type[Model]]
    filters: ClassVar[tuple[Param, ...]] = ()
    """Query parameters that choose among the objects."""

    @abstractmethod
    async def one(self, store: ObjectReads, id_: str) -> T: ...

    @abstractmethod
    async def page(
        self,
        store: ObjectReads,
        where: Where,
        *,
        limit: int,
        after: str | None = None,
        ids: Sequence[str] | None = None,
    ) -> Page[T]: ...

    @abstractmethod
    def selects(self, where: Where, object_: Any) -> bool:
        """Whether page() would have this object, which is of this kind."""

    def born(self, object_: Any, since: datetime) -> bool:
        """Whether the object, which is of this kind, did not exist before then."""
        created: datetime = object_.created_at
        return created >= since

    def check_id(self, text: str) -> str:
        """The text, when it can be an id of this kind; else NotFound. A database need not be asked for nonsense."""
        if not self.is_id(text):
            raise NotFound(f"there is no {self.kind} {text[:80]!r}")
        return text

    def is_id(self, text: str) -> bool:
        return is_name(text)


def to_text(object_: Model) -> str:
    """The object as JSON, as everywhere: without fields that are None."""
    return object_.model_dump_json(exclude_none=True)
