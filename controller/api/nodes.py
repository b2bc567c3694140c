"""Nodes: what people say of them, and how agents register."""

from collections.abc import Sequence
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from controller.api.body import MAX_OBJECT_BYTES, read_json
from controller.api.context import Api
from controller.api.objects import shown
from controller.api.ports import ObjectReads
from controller.api.problem import FieldError, invalid
from controller.api.query import SELECTOR, Where
from controller.api.resource import Resource
from controller.store.contract import Page
from kakuri.model import Node, NodeRegistration
from kakuri.validation import explain


class Nodes(Resource[Node]):
    kind = "Node"
    path = "/nodes"
    shown = Node
    filters = (SELECTOR,)

    async def one(self, store: ObjectReads, id_: str) -> Node:
        return await store.get_node(id_)

    async def page(
        self,
        store: ObjectReads,
        where: Where,
        *,
        limit: int,
        after: str | None = None,
        ids: Sequence[str] | None = None,
    ) -> Page[Node]:
        return await store.list_nodes(selector=where.selector, limit=limit, after=after, ids=ids)

    def selects(self, where: Where, object_: Any) -> bool:
        return where.selector.matches(object_.all_labels)


NODES = Nodes()


async def register(api: Api, request: web.Request) -> web.StreamResponse:
    """What the agent says of its node is known; what users own stays theirs."""
    id_ = request.match_info["id"]
    if not NODES.is_id(id_):
        detail = "is no name; use at most 63 of a-z, 0-9 and '-', starting and ending with a letter or digit"
        raise invalid([FieldError("", f"the node's id {id_[:80]!r} in the path {detail}")])
    body = await read_json(request, limit=MAX_OBJECT_BYTES)
    try:
        registration = NodeRegistration.model_validate(body)
    except ValidationError as error:
        problems = explain(error, NodeRegistration)
        raise invalid([FieldError(p.pointer, p.message) for p in problems]) from None
    node, changed = await api.store.register_node(id_, registration, now=api.clock())
    if changed:
        api.kick.nodes()
    return shown(node)
