"""The verbs that the kinds share: read one, read a page, create, replace, delete.

One rule: the kick comes right after the commit, with no await between: a write that no loop looks at would wait for
the sweep.
"""

import json
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from controller.api.body import MAX_OBJECT_BYTES, read_json
from controller.api.context import Api
from controller.api.problem import FieldError, bad_request, invalid, of_store
from controller.api.query import (
    DEFAULT_LIMIT,
    MAX_LIMIT,
    Cursor,
    read_create_only,
    read_cursor,
    read_flag,
    read_if_match,
    read_int,
    read_where,
    scope_of,
    write_cursor,
)
from controller.api.resource import Resource, Shown, to_text
from controller.api.watching import watch
from controller.store.contract import Delete, Outcome, Put, Stale, Write
from kakuri.model import Node, RuntimeClass, Workload
from kakuri.validation import InvalidObject, Manifest, validate_object


async def read_one(api: Api, request: web.Request, resource: Resource[Any]) -> web.StreamResponse:
    return shown(await resource.one(api.store, resource.check_id(request.match_info["id"])))


async def read_many(api: Api, request: web.Request, resource: Resource[Any]) -> web.StreamResponse:
    """A page, or with ?watch=1 what changes from now on."""
    where = read_where(request, resource.filters)
    watching = read_flag(request, "watch")
    for name in ("limit", "continue") if watching else ("resource_version",):
        if name in request.query:
            raise bad_request(f"{name} is {'for pages, not for a watch' if watching else 'for ?watch=1'}; leave it out")
    if watching:
        return await watch(api, request, resource, where)
    limit = read_int(request, "limit", default=DEFAULT_LIMIT, least=1, most=MAX_LIMIT)
    scope = scope_of(request, api.store.cluster_id)
    cursor = read_cursor(request, scope)
    page = await resource.page(api.store, where, limit=limit, after=cursor.after if cursor else None)
    version = cursor.resource_version if cursor else page.resource_version
    api.hub.note_served(version, api.clock())
    tail = f',"continue":{json.dumps(write_cursor(Cursor(page.next, version), scope))}' if page.next is not None else ""
    items = ",".join(map(to_text, page.items))
    return web.Response(
        text=f'{{"items":[{items}],"resource_version":"{version}"{tail}}}', content_type="application/json"
    )


async def create(api: Api, request: web.Request, resource: Resource[Any]) -> web.StreamResponse:
    # A node or a class without a name is a slip; a workload may be one of many.
    default_id = api.new_id() if resource.kind == "Workload" else None
    manifest = _judge(await read_json(request, limit=MAX_OBJECT_BYTES), resource, default_id=default_id)
    outcome = await _write(api, resource, Put(manifest, mode="create"))
    return shown(outcome.object, status=201, headers={"Location": f"{resource.path}/{outcome.id}"})


async def put(api: Api, request: web.Request, resource: Resource[Any]) -> web.StreamResponse:
    """Created or replaced. The id in the body is the path's, or absent."""
    if_match, create_only = read_if_match(request), read_create_only(request)
    body = await read_json(request, limit=MAX_OBJECT_BYTES)
    id_ = request.match_info["id"]
    if isinstance(body, dict) and body.get("id", id_) != id_:
        raise invalid(
            [FieldError("/id", f"is another than the path's, {id_[:80]!r}; make them the same, or leave it out")]
        )
    manifest = _judge(body, resource, default_id=id_)
    outcome = await _write(api, resource, Put(manifest, mode="create" if create_only else "upsert", if_match=if_match))
    if outcome.result == "created":
        return shown(outcome.object, status=201, headers={"Location": f"{resource.path}/{outcome.id}"})
    return shown(outcome.object)


async def delete(api: Api, request: web.Request, resource: Resource[Any]) -> web.StreamResponse:
    """202 with the object while what it stands for is being ended; 200 when it is gone at once."""
    if_match = read_if_match(request)
    id_ = resource.check_id(request.match_info["id"])
    kind = resource.kind
    assert kind != "Allocation"
    assert kind != "Event"
    force = kind == "Workload" and read_flag(request, "force")
    outcome = await _write(api, resource, Delete(kind, id_, if_match=if_match, force=force))
    if force:
        api.kick.nodes()  # they have something to be told
    if outcome.object is None:
        return web.json_response({"kind": resource.kind, "id": id_})
    return shown(outcome.object, status=202)


def shown(object_: Shown | None, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """The object as an answer, with its ETag where it has one."""
    assert object_ is not None
    response = web.Response(status=status, text=to_text(object_), content_type="application/json", headers=headers)
    if isinstance(object_, Workload | Node | RuntimeClass):
        response.headers["ETag"] = f'"{object_.etag}"'
    return response


def kick(api: Api, outcomes: Sequence[Outcome]) -> None:
    """The loops look soon at what was changed."""
    changed = [o for o in outcomes if o.result != "unchanged"]
    workloads = [o.id for o in changed if o.kind == "Workload"]
    if workloads:
        api.kick.workloads(workloads)
    if len(workloads) != len(changed):
        api.kick.nodes()


def _judge(body: object, resource: Resource[Any], *, default_id: str | None) -> Manifest:
    """The manifest in the body, of this kind. Raises Problem 422 with all that is wrong."""
    if isinstance(body, dict):
        kind = body.get("kind", resource.kind)
        if kind != resource.kind:
            raise invalid([FieldError("/kind", f"is not {resource.kind}; {resource.path} takes nothing else")])
        body = {"kind": kind, **({"id": default_id} if default_id is not None else {}), **body}
    try:
        return validate_object(body)
    except InvalidObject as error:
        raise invalid([FieldError(p.pointer, p.message) for p in error.problems]) from None


async def _write(api: Api, resource: Resource[Any], write: Write) -> Outcome:
    try:
        outcomes = await api.store.apply([write], now=api.clock())
    except Stale as error:
        problem = of_store(error)
        present = await resource.one(api.store, write.id if isinstance(write, Delete) else write.manifest.id)
        problem.headers = {"ETag": f'"{present.etag}"'}
        if present.etag not in problem.detail:
            problem.detail += f'; the present ETag is "{present.etag}"'
        raise problem from error
    kick(api, outcomes)
    return outcomes[0]
