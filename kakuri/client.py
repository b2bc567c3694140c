"""The HTTP API as async calls, for the command line and for agents.

One rule: objects come as the JSON that the server sent, so that a client shows what a newer server says.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import quote

from kakuri.connection import ANSWER_S, ApiError, ClientError, Connection, FieldError, Object, ServerUnreachable

if TYPE_CHECKING:  # pydantic takes longer to import than a whole `kakuri get`
    from kakuri.model import NodeRegistration

__all__ = [
    "PATHS",
    "ApiError",
    "Change",
    "Client",
    "ClientError",
    "FieldError",
    "Kind",
    "Listing",
    "Object",
    "Outcome",
    "ServerUnreachable",
    "View",
]

Kind = Literal["Workload", "Allocation", "Node", "RuntimeClass", "Event"]

PATHS: Mapping[str, str] = {
    "Workload": "workloads",
    "Allocation": "allocations",
    "Node": "nodes",
    "RuntimeClass": "runtime-classes",
    "Event": "events",
}
APPLY_S = 120.0
"""5,000 objects in one transaction on a slow disk."""
SILENCE_S = 35.0
"""A watch sends a bookmark every 10 s. Silence for so long means that the line is dead."""
RELIST_S = 0.2
PAGE = 1000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What apply did with one object. result: created, configured, unchanged, deleting or deleted."""

    kind: str
    id: str
    result: str
    object: Object | None


@dataclass(frozen=True, slots=True)
class Listing:
    """All objects that were asked for. A watch from resource_version misses nothing."""

    items: list[Object]
    resource_version: str


@dataclass(frozen=True, slots=True)
class Change:
    """type: ADDED, MODIFIED, DELETED, or BOOKMARK, whose object is only a kind."""

    type: str
    object: Object
    resource_version: str


@dataclass(frozen=True, slots=True)
class View:
    """The objects by id, as they are until the next view is asked for. changed: the ids that are new, other or gone
    since the view before."""

    objects: Mapping[str, Object]
    changed: frozenset[str]
    complete: bool = field(default=False)
    """True for the first view and after a gap, when all was read anew."""


class Client:
    """An open connection to one server; use it as an async context."""

    def __init__(self, server: str, *, retry_s: float = 0) -> None:
        """server: http://host:port. retry_s: for so long a refused connection is tried again, where that is safe."""
        self._connection = Connection(server, retry_s=retry_s)

    @property
    def server(self) -> str:
        return self._connection.server

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def ready(self) -> None:
        """Returns when the server is ready. Raises ApiError (503) that says why it isn't."""
        await self._connection.json("GET", "/readyz")

    async def version(self) -> str:
        """The server's version."""
        answer = await self._connection.json("GET", "/version")
        return str(answer.get("version", ""))

    async def apply(
        self, objects: Sequence[Object], *, deletes: Sequence[Object] = (), dry_run: bool = False
    ) -> list[Outcome]:
        """All of it in one transaction, or none. deletes: kind and id of each."""
        body: Object = {"objects": list(objects)} | ({"deletes": list(deletes)} if deletes else {})
        query = {"dry_run": "1"} if dry_run else {}
        answer = await self._connection.json("POST", "/apply", query=query, body=body, answer_s=APPLY_S)
        return [Outcome(o["kind"], o["id"], o["result"], o.get("object")) for o in answer["outcomes"]]

    async def get(self, kind: str, id_: str) -> Object:
        return await self._connection.json("GET", self._path(kind, id_))

    async def list(self, kind: str, **filters: str) -> Listing:
        """All pages. filters: selector, and for some kinds others (workload, node, object_kind, object_id, type)."""
        items: list[Object] = []
        query = {**filters, "limit": str(PAGE)}
        while True:
            page = await self._connection.json("GET", f"/{PATHS[kind]}", query=query)
            items += page["items"]
            if not page.get("continue"):
                return Listing(items, str(page["resource_version"]))
            query["continue"] = page["continue"]

    async def watch(self, kind: str, resource_version: str, **filters: str) -> AsyncIterator[Change]:
        """Changes after this resource_version, until the server ends it. Raises ApiError 410 when it is too old."""
        query = {**filters, "watch": "1", "resource_version": resource_version}
        async with self._connection.response("GET", f"/{PATHS[kind]}", query=query, silence_s=SILENCE_S) as response:
            async for line in self._connection.lines(response):
                if line.strip():
                    event = json.loads(line)
                    yield Change(event["type"], event["object"], event["resource_version"])

    async def mirror(self, kind: str, **filters: str) -> AsyncIterator[View]:
        """The objects now, and again after each change. Reads all anew when the server no longer holds what is
        between. Raises ServerUnreachable when the connection is lost."""
        while True:
            listing = await self.list(kind, **filters)
            objects = {o["id"]: o for o in listing.items}
            yield View(MappingProxyType(objects), frozenset(objects), complete=True)
            try:
                async for change in self.watch(kind, listing.resource_version, **filters):
                    if change.type == "BOOKMARK":
                        continue
                    id_ = change.object["id"]
                    if change.type == "DELETED":
                        objects.pop(id_, None)
                    else:
                        objects[id_] = change.object
                    yield View(MappingProxyType(objects), frozenset({id_}))
            except ApiError as error:
                if error.status != 410:
                    raise
            # A server that ends watches at once must not be asked in a tight loop.
            await asyncio.sleep(RELIST_S)

    async def put(self, kind: str, manifest: Object, *, if_match: str) -> Object:
        """The object as it is now. Raises ApiError 409 (Stale) when its ETag is another."""
        path = self._path(kind, str(manifest["id"]))
        return await self._connection.json("PUT", path, body=manifest, headers={"If-Match": f'"{if_match}"'})

    async def delete(self, kind: str, id_: str, *, force: bool = False) -> None:
        """Asked for: a workload is gone when its containers are. force: at once, whatever still runs."""
        await self._connection.json("DELETE", self._path(kind, id_), query={"force": "1"} if force else {})

    async def drain(self, node: str, **wanted: int | None) -> Object:
        """Asked for; the answer is how far it has come, as drain_progress gives it. deadline_s: None for none; left
        out, a drain that goes on keeps its own."""
        return await self._connection.json("POST", f"{self._path('Node', node)}/drain", body=dict(wanted))

    async def drain_progress(self, node: str) -> Object:
        """What is left there and why. Raises ApiError (NotDraining) when it is not being drained."""
        return await self._connection.json("GET", f"{self._path('Node', node)}/drain")

    async def forget(self, node: str) -> None:
        """The node is given up, with what it had."""
        await self._connection.json("POST", f"{self._path('Node', node)}/forget")

    async def release(self, node: str, held_by: str = "", *, stop: bool = False) -> Object:
        """Whether the agent is released, and what is left there. held_by: the cluster that holds it; else our own."""
        body = {"stop": stop, **({"held_by": held_by} if held_by else {})}
        return await self._connection.json("POST", f"{self._path('Node', node)}/release", body=body)

    async def hold(self) -> Object | None:
        """A restored database that waits to be confirmed, and its difference to the nodes; None when none does."""
        try:
            return await self._connection.json("GET", "/restore")
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def confirm_restore(self, without: Sequence[str] = (), *, now: bool = False) -> None:
        """It counts. without: nodes that are not waited for; now: nor are those that joined after the backup. Raises
        ApiError (Held) while others are."""
        body = {"without": list(without), **({"now": True} if now else {})}
        await self._connection.json("POST", "/restore/confirm", body=body)

    async def explanation(self, workload: str) -> Sequence[Object]:
        """For each node whether the workload's next allocation fits there, and why not."""
        answer = await self._connection.json("GET", f"{self._path('Workload', workload)}/explanation")
        nodes: Sequence[Object] = answer["nodes"]
        return nodes

    async def logs(
        self, allocation: str, *, follow: bool = False, tail: int | None = None, previous: bool = False
    ) -> AsyncIterator[bytes]:
        """The log's bytes as they come."""
        query = {name: "1" for name, wanted in (("follow", follow), ("previous", previous)) if wanted}
        if tail is not None:
            query["tail"] = str(tail)
        silence_s = None if follow else ANSWER_S  # a followed log may be silent for days
        path = f"{self._path('Allocation', allocation)}/logs"
        async with self._connection.response("GET", path, query=query, silence_s=silence_s) as response:
            with self._connection.reading():
                async for chunk in response.content.iter_any():
                    yield chunk

    async def register_node(self, id_: str, registration: "NodeRegistration") -> Object:
        """The node as the server has it now."""
        path = f"{self._path('Node', id_)}/registration"
        return await self._connection.json("PUT", path, body=registration.to_json())

    def _path(self, kind: str, id_: str) -> str:
        return f"/{PATHS[kind]}/{quote(id_, safe='')}"
