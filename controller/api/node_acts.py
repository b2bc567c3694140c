"""What a person does to a node beyond writing it down: drain it, say that it is gone, have its agent let go of us.

One rule: an act answers with how far it has come; who asks again is told again, and nothing is done twice.
"""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any, TypeVar

from aiohttp import web
from pydantic import Field, StrictBool, StrictInt, StrictStr, ValidationError

from controller.api.body import MAX_OBJECT_BYTES, read_json
from controller.api.context import Api
from controller.api.nodes import NODES
from controller.api.objects import shown
from controller.api.problem import FieldError, Problem, invalid
from controller.exchange import Released
from controller.plan.progress import concerned, progress_of
from controller.store.contract import AllocationFilter
from kakuri.model import Allocation, Drain, Model, Node
from kakuri.validation import explain

MAX_DEADLINE_S = 30 * 86_400
"""A month. A longer one is a slip of units: milliseconds for seconds."""
_M = TypeVar("_M", bound=Model)


class DrainBody(Model):
    """How to drain."""

    deadline_s: Annotated[StrictInt, Field(ge=0, le=MAX_DEADLINE_S)] | None = None
    """From so many seconds on, what is still there is stopped whether or not it has a place elsewhere, jobs too.
    null: it may stay for ever. Left out: a drain that goes on keeps its deadline, a new one has none."""


class ReleaseBody(Model):
    """Whose hold on the agent is to end."""

    held_by: Annotated[StrictStr, Field(max_length=64)] | None = None
    """The id of the cluster that holds the agent; this one's own when it is left out."""
    stop: StrictBool = False
    """End what runs of that cluster there; else the agent refuses while anything does."""


async def drain(api: Api, request: web.Request) -> web.StreamResponse:
    """The node takes no new work and is emptied. Again: with another deadline, if one is given."""
    id_ = NODES.check_id(request.match_info["id"])
    body = _judge(await read_json(request, limit=MAX_OBJECT_BYTES), DrainBody)
    now = api.clock()
    until = None if body.deadline_s is None else now + timedelta(seconds=body.deadline_s)
    kept = "deadline_s" not in body.model_fields_set
    wanted = Drain(asked_at=now, deadline_at=until)
    node, owners = await api.store.drain_node(id_, wanted, keep_deadline=kept, now=now)
    api.kick.nodes()
    api.kick.workloads(sorted(owners))
    return web.json_response(await _progress(api, node), status=202)


async def read_drain(api: Api, request: web.Request) -> web.StreamResponse:
    """How far the node's drain has come."""
    node = await api.store.get_node(NODES.check_id(request.match_info["id"]))
    if node.status.drain is None:
        raise Problem(404, "NotDraining", f"node {node.id} is not being drained; POST to drain it")
    return web.json_response(await _progress(api, node))


async def end_drain(api: Api, request: web.Request) -> web.StreamResponse:
    """The node is emptied no more. It stays cordoned."""
    node, owners = await api.store.drain_node(NODES.check_id(request.match_info["id"]), None, now=api.clock())
    api.kick.nodes()
    api.kick.workloads(sorted(owners))
    return shown(node)


async def forget(api: Api, request: web.Request) -> web.StreamResponse:
    """The node is gone for good, or for so long that what it had is given up."""
    id_ = NODES.check_id(request.match_info["id"])
    await _forget(api, id_, released=False)
    return web.json_response({"kind": "Node", "id": id_})


async def release(api: Api, request: web.Request) -> web.StreamResponse:
    """The node's agent is no cluster's any more. One of our own leaves with what ran there ended; ask until it has."""
    node = await api.store.get_node(NODES.check_id(request.match_info["id"]))
    body = _judge(await read_json(request, limit=MAX_OBJECT_BYTES), ReleaseBody)
    held_by = body.held_by or api.store.cluster_id
    ours = held_by == api.store.cluster_id
    if not node.status.address:
        raise Problem(409, "NoAgent", f"no agent has registered for node {node.id}, so there is none to release")
    left, began = await _let_go(api, node, stop=body.stop) if ours else ([], None)
    if left:
        return web.json_response(_release_answer(node, released=False, left=left), status=202)
    try:
        answer = await _ask_agent(api, node, held_by, stop=body.stop)
    except BaseException:
        if began is not None:
            await _take_back(api, node, began)
        raise
    if answer.released and ours:
        await _forget(api, node.id, released=True)
    status = 200 if answer.released else 202
    return web.json_response(_release_answer(node, released=answer.released, left=list(answer.left)), status=status)


async def _ask_agent(api: Api, node: Node, held_by: str, *, stop: bool) -> Released:
    answer = await api.releases.release(node.status.address, held_by=held_by, stop=stop)
    if not answer.released and not stop:
        raise Problem(409, "NodeInUse", f"on node {node.id} still runs {_some(answer.left)}; end it, or ask with stop")
    return answer


async def _let_go(api: Api, node: Node, *, stop: bool) -> tuple[list[str], Drain | None]:
    """What of ours is live there yet. With stop it is being ended: the way of a drain whose deadline is now, so that
    what should run is replaced elsewhere. And that drain, if it was begun for this."""
    live = [a.id for a in await _allocations(api, node.id) if a.live]
    if live and not stop:
        raise Problem(
            409,
            "NodeInUse",
            f"on node {node.id} still runs {_some(live)}; drain it first (kakuri drain {node.id}), or ask with stop",
        )
    now, drain_ = api.clock(), node.status.drain
    if drain_ is not None and drain_.deadline_at is not None and drain_.deadline_at <= now:
        return live, None
    # Also when nothing runs there, so that nothing is placed while it goes.
    drained, owners = await api.store.drain_node(node.id, Drain(asked_at=now, deadline_at=now), now=now)
    api.kick.nodes()
    api.kick.workloads(sorted(owners))
    return live, drained.status.drain


async def _take_back(api: Api, node: Node, began: Drain) -> None:
    """The agent was not released, so the node is no more emptied than before."""
    owners = await api.store.take_back_drain(
        node.id, began, before=node.status.drain, schedulable=node.schedulable, now=api.clock()
    )
    api.kick.nodes()
    api.kick.workloads(sorted(owners))


async def _forget(api: Api, id_: str, *, released: bool) -> None:
    dirty = await api.store.forget_node(id_, released=released, now=api.clock())
    api.kick.nodes()
    api.kick.workloads(sorted(dirty))


async def _progress(api: Api, node: Node) -> dict[str, Any]:
    owners = concerned(await _allocations(api, node.id))
    snapshot = await api.store.load_snapshot(owners, now=api.clock(), seed="")
    progress = progress_of(node.id, snapshot)
    drain_ = node.status.drain
    assert drain_ is not None
    times = {"asked_at": drain_.asked_at, "deadline_at": drain_.deadline_at}
    return {
        "node": node.id,
        "state": "Drained" if progress.done else "Draining",
        "ready": node.status.ready,
        **{name: when.isoformat() for name, when in times.items() if when is not None},
        "left": [asdict(x) for x in progress.left],
        "waiting": [asdict(x) for x in progress.waiting],
        "moved": progress.moved,
        "by_hand": [run.id for run in node.status.by_hand],
    }


async def _allocations(api: Api, node: str) -> list[Allocation]:
    found: list[Allocation] = []
    after: str | None = None
    while True:
        page = await api.store.list_allocations(AllocationFilter(node=node), after=after)
        found += page.items
        after = page.next
        if after is None:
            return found


def _release_answer(node: Node, *, released: bool, left: list[str]) -> Mapping[str, Any]:
    return {"node": node.id, "released": released, "left": left}


def _judge(body: object, model: type[_M]) -> _M:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise invalid([FieldError(p.pointer, p.message) for p in explain(error, model)]) from None


def _some(ids: "list[str] | tuple[str, ...]") -> str:
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
