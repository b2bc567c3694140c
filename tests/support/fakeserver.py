"""A controller's HTTP API as far as the command line's tests need it: objects in dicts, answers that can be set."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Object = dict[str, Any]
PLURALS = {
    "workloads": "Workload",
    "allocations": "Allocation",
    "nodes": "Node",
    "runtime-classes": "RuntimeClass",
    "events": "Event",
}


class FakeServer:
    """kinds: the objects by kind and id. requests: what came in, as (method, path with query, body)."""

    def __init__(self) -> None:
        self.kinds: dict[str, dict[str, Object]] = {kind: {} for kind in PLURALS.values()}
        self.requests: list[tuple[str, str, Any]] = []
        self.explanations: list[Object] = []
        self.logs: dict[tuple[str, bool], bytes] = {}
        self.refusals: list[tuple[int, Object]] = []
        """Each is the answer to one /apply to come."""
        self.acts: dict[str, list[tuple[int, Object]]] = {}
        """By method and path, as in "POST /nodes/n1/drain": the answers in turn, the last of them for ever."""
        self.page = 500
        self.changes: asyncio.Queue[Object] = asyncio.Queue()
        self.expire_watches = 0
        """So many watches to come are answered with 410."""
        self.on_apply: Callable[[], object] = lambda: None
        self.on_watch: Callable[[], None] = lambda: None
        self.url = ""

    def put(self, object_: Object, kind: str = "Workload") -> None:
        self.kinds[kind][object_["id"]] = object_

    def change(self, type_: str, object_: Object, kind: str = "Workload") -> None:
        """The object changes, and a watcher is told."""
        if type_ == "DELETED":
            self.kinds[kind].pop(object_["id"], None)
        else:
            self.put(object_, kind)
        self.changes.put_nowait({"type": type_, "object": object_, "resource_version": "2"})

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["FakeServer"]:
        app = web.Application()
        app.router.add_get("/version", self._version)
        app.router.add_get("/readyz", self._version)
        app.router.add_get("/html", self._html)
        app.router.add_post("/apply", self._apply)
        app.router.add_get("/allocations/{id}/logs", self._logs)
        app.router.add_get("/workloads/{id}/explanation", self._explain)
        app.router.add_put("/nodes/{id}/registration", self._register)
        for plural, kind in PLURALS.items():
            app.router.add_get(f"/{plural}", self._many(kind))
            app.router.add_get(f"/{plural}/{{id}}", self._one(kind))
            app.router.add_delete(f"/{plural}/{{id}}", self._delete(kind))
            app.router.add_put(f"/{plural}/{{id}}", self._put(kind))
        for act in ("drain", "forget", "release"):
            app.router.add_route("*", f"/nodes/{{id}}/{act}", self._act)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _note(self, request: web.Request) -> Any:
        body = json.loads(await request.read() or b"null")
        self.requests.append((request.method, request.path_qs, body))
        return body

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "9.9", "cluster_id": "c"})

    async def _html(self, request: web.Request) -> web.Response:
        return web.Response(text="<html>", content_type="text/html")

    async def _apply(self, request: web.Request) -> web.Response:
        body = await self._note(request)
        if self.refusals:
            return refusal(*self.refusals.pop(0))
        outcomes = [{"kind": o["kind"], "id": o["id"], "result": "created", "object": o} for o in body["objects"]]
        self.on_apply()
        deletes = body.get("deletes", ())
        for named in deletes:
            if named["id"] not in self.kinds[named["kind"]]:
                return refusal(404, {"reason": "NotFound", "detail": f"there is no {named['kind']} {named['id']!r}"})
        for named in deletes:
            del self.kinds[named["kind"]][named["id"]]
            outcomes.append({**named, "result": "deleting" if named["kind"] == "Workload" else "deleted"})
        return web.json_response({"outcomes": outcomes})

    async def _logs(self, request: web.Request) -> web.Response:
        await self._note(request)
        text = self.logs.get((request.match_info["id"], request.query.get("previous") == "1"))
        return web.Response(body=text) if text is not None else refusal(404, {"detail": "no such log"})

    async def _explain(self, request: web.Request) -> web.Response:
        return web.json_response({"nodes": self.explanations})

    async def _register(self, request: web.Request) -> web.Response:
        return web.json_response({"id": request.match_info["id"], "told": await self._note(request)})

    def _many(self, kind: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def many(request: web.Request) -> web.StreamResponse:
            await self._note(request)
            if request.query.get("watch") == "1":
                return await self._watch(request)
            start = int(request.query.get("continue", "0"))
            chosen = [o for o in self.kinds[kind].values() if self._selected(request, o)]
            body: Object = {"items": chosen[start : start + self.page], "resource_version": "1"}
            if start + self.page < len(chosen):
                body["continue"] = str(start + self.page)
            return web.json_response(body)

        return many

    def _selected(self, request: web.Request, object_: Object) -> bool:
        names = ("workload", "node", "object_kind", "object_id", "type")
        fits = all(object_.get(n) == request.query[n] for n in names if n in request.query)
        key, _, value = request.query.get("selector", "").partition("=")
        return fits and (not key or object_.get("labels", {}).get(key) == value)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        if self.expire_watches:
            self.expire_watches -= 1
            return refusal(410, {"reason": "Expired", "detail": "too old"})
        self.on_watch()
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        await response.write(b'{"type":"BOOKMARK","object":{},"resource_version":"1"}\n')
        while True:
            change = await self.changes.get()
            if change["type"] == "CUT":
                assert request.transport is not None
                request.transport.abort()
                return response
            await response.write(json.dumps(change).encode() + b"\n")

    def _one(self, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def one(request: web.Request) -> web.Response:
            await self._note(request)
            found = self.kinds[kind].get(request.match_info["id"])
            return web.json_response(found) if found else self._missing(kind, request)

        return one

    def _put(self, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def put(request: web.Request) -> web.Response:
            body = await self._note(request)
            if self.refusals:
                return refusal(*self.refusals.pop(0))
            self.put({**self.kinds[kind].get(body["id"], {}), **body, "if_match": request.headers["If-Match"]}, kind)
            return web.json_response(body)

        return put

    async def _act(self, request: web.Request) -> web.Response:
        await self._note(request)
        answers = self.acts.get(f"{request.method} {request.path}")
        if not answers:
            return self._missing("Node", request)
        status, body = answers.pop(0) if len(answers) > 1 else answers[0]
        return refusal(status, body) if status >= 400 else web.json_response(body, status=status)

    def _delete(self, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def delete(request: web.Request) -> web.Response:
            await self._note(request)
            found = self.kinds[kind].pop(request.match_info["id"], None)
            return web.json_response(found, status=202) if found else self._missing(kind, request)

        return delete

    def _missing(self, kind: str, request: web.Request) -> web.Response:
        id_ = request.match_info["id"]
        return refusal(404, {"reason": "NotFound", "detail": f"there is no {kind} {id_!r}"})


def refusal(status: int, body: Object) -> web.Response:
    return web.json_response({"status": status, **body}, status=status, content_type="application/problem+json")


def workload(id_: str = "web", **changes: Any) -> Object:
    """A workload as the server shows it: Running, one of one ready. status: changes of its status."""
    status = {
        "state": "Running",
        "node": "n1",
        "nodes": 1,
        "desired": 1,
        "updated": 1,
        "ready": 1,
        "restarts": 0,
        "observed_generation": 1,
        **changes.pop("status", {}),
    }
    return {
        "kind": "Workload",
        "id": id_,
        "image": "example/app:1.0",
        "runtime_class": "gvisor",
        "memory_mb": 64,
        "cpu_millicores": 100,
        "replicas": 1,
        "restart_policy": "Always",
        "uid": "u",
        "generation": 1,
        "resource_version": 1,
        "created_at": "2024-01-01T00:00:00Z",
        **changes,
        "status": status,
    }
