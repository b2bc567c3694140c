"""Workloads, and why each node takes a workload's next allocation or not."""

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from controller.api.context import Api
from controller.api.ports import ObjectReads
from controller.api.query import SELECTOR, Where
from controller.api.resource import Resource
from controller.plan.place import why_not
from controller.store.contract import NotFound, Page
from kakuri.model import Workload


class Workloads(Resource[Workload]):
    kind = "Workload"
    path = "/workloads"
    shown = Workload
    filters = (SELECTOR,)

    async def one(self, store: ObjectReads, id_: str) -> Workload:
        return await store.get_workload(id_)

    async def page(
        self,
        store: ObjectReads,
        where: Where,
        *,
        limit: int,
        after: str | None = None,
        ids: Sequence[str] | None = None,
    ) -> Page[Workload]:
        return await store.list_workloads(selector=where.selector, limit=limit, after=after, ids=ids)

    def selects(self, where: Where, object_: Any) -> bool:
        return where.selector.matches(object_.labels)


WORKLOADS = Workloads()


async def explain(api: Api, request: web.Request) -> web.StreamResponse:
    """Each node with whether one more allocation of this workload would fit there now, and what is in the way."""
    id_ = WORKLOADS.check_id(request.match_info["id"])
    snapshot = await api.store.load_snapshot([id_], now=api.clock(), seed="")
    if not snapshot.workloads:
        raise NotFound(f"there is no Workload {id_!r}")
    spec = snapshot.workloads[0].spec
    nodes = sorted(snapshot.nodes, key=lambda n: n.id)
    whys = {node.id: why_not(spec, node, snapshot.runtime_classes) for node in nodes}
    return web.json_response({"nodes": [{"node": id_, "fits": not why, "why": why} for id_, why in whys.items()]})
