"""Runtime classes."""

from collections.abc import Sequence
from typing import Any

from controller.api.ports import ObjectReads
from controller.api.query import Where
from controller.api.resource import Resource
from controller.store.contract import Page
from kakuri.model import RuntimeClass


class RuntimeClasses(Resource[RuntimeClass]):
    kind = "RuntimeClass"
    path = "/runtime-classes"
    shown = RuntimeClass

    async def one(self, store: ObjectReads, id_: str) -> RuntimeClass:
        return await store.get_runtime_class(id_)

    async def page(
        self,
        store: ObjectReads,
        where: Where,  # noqa: ARG002 - this kind has no filters
        *,
        limit: int,
        after: str | None = None,
        ids: Sequence[str] | None = None,
    ) -> Page[RuntimeClass]:
        return await store.list_runtime_classes(limit=limit, after=after, ids=ids)

    def selects(self, where: Where, object_: Any) -> bool:  # noqa: ARG002 - as above
        return True


RUNTIME_CLASSES = RuntimeClasses()
