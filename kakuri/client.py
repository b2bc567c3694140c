"""The HTTP API as async calls, for the command line and for agents.

One rule: objects come as the JSON that the server sent, so that a client shows what a newer server says; what goes
wrong is one of the errors below and nothing else.

    ClientError
    ├── ServerUnreachable   no answer: where it looked, and why
    └── ApiError            an answer that is an error: status, reason, detail, errors by field
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import quote

import aiohttp

if TYPE_CHECKING:  # pydantic takes longer to import than a whole `kakuri get`
    from kakuri.model import NodeRegistration

Object = dict[str, Any]
Kind = Literal["Workload", "Allocation", "Node", "RuntimeClass", "Event"]

PATHS: Mapping[str, str] = {
    "Workload": "workloads",
    "Allocation": "allocations",
    "Node": "nodes",
    "RuntimeClass": "runtime-classes",
    "Event": "events",
}
CONNECT_S = 2.0
"""On loopback a refusal comes at once; this is for a machine that answers nothing."""
ANSWER_S = 30.0
"""For a whole answer. A page takes milliseconds; a store that waits for a lock may take seconds."""
APPLY_S = 120.0
"""5,000 objects in one transaction on a slow disk."""
SILENCE_S = 35.0
"""A watch sends a bookmark every 10 s. Silence for so long means that the line is dead."""
RELIST_S = 0.2
PAGE = 1000
_MAX_LINE = 16 * 1024 * 1024


class ClientError(Exception):
    """Why there is no result, in words."""


class ServerUnreachable(ClientError):  # noqa: N818 - what the server is
    """No answer came, or it broke off."""

    def __init__(self, server: str, why: str, *, connected: bool = False) -> None:
        super().__init__(f"no kakuri server answers at {server}: {why}")
        self.server = server
        self.why = why
        self.connected = connected
        """The request may have reached the server."""


@dataclass(frozen=True, slots=True)
class FieldError:
    pointer: str
    """RFC 6901, into what was sent."""
    message: str


class ApiError(ClientError):
    """The server's own words (RFC 9457). reason is for programs, detail for people."""

    def __init__(self, status: int, reason: str, detail: str, errors: Iterable[FieldError] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.errors = tuple(errors)


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
        self.server = (server if "://" in server else f"http://{server}").rstrip("/")
        self._retry_s = retry_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"Accept": "application/json"},
            timeout=aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S),
            read_bufsize=_MAX_LINE,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def ready(self) -> None:
        """Returns when the server is ready. Raises ApiError (503) that says why it isn't."""
        await self._json("GET", "/readyz")

    async def version(self) -> str:
        """The server's version."""
        answer = await self._json("GET", "/version")
        return str(answer.get("version", ""))

    async def apply(
        self, objects: Sequence[Object], *, deletes: Sequence[Object] = (), dry_run: bool = False
    ) -> list[Outcome]:
        """All of it in one transaction, or none. deletes: kind and id of each."""
        body: Object = {"objects": list(objects)} | ({"deletes": list(deletes)} if deletes else {})
        query = {"dry_run": "1"} if dry_run else {}
        answer = await self._json("POST", "/apply", query=query, body=body, timeout_s=APPLY_S)
        return [Outcome(o["kind"], o["id"], o["result"], o.get("object")) for o in answer["outcomes"]]

    async def get(self, kind: str, id_: str) -> Object:
        return await self._json("GET", self._path(kind, id_))

    async def list(self, kind: str, **filters: str) -> Listing:
        """All pages. filters: selector, and for some kinds others (workload, node, object_kind, object_id, type)."""
        items: list[Object] = []
        query = {**filters, "limit": str(PAGE)}
        while True:
            page = await self._json("GET", f"/{PATHS[kind]}", query=query)
            items += page["items"]
            if not page.get("continue"):
                return Listing(items, str(page["resource_version"]))
            query["continue"] = page["continue"]

    async def watch(self, kind: str, resource_version: str, **filters: str) -> AsyncIterator[Change]:
        """Changes after this resource_version, until the server ends it. Raises ApiError 410 when it is too old."""
        query = {**filters, "watch": "1", "resource_version": resource_version}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        async with self._response("GET", f"/{PATHS[kind]}", query=query, timeout=timeout) as response:
            async for line in self._lines(response):
                if line.strip():
                    event = json.loads(line)
                    yield Change(event["type"], event["object"], event["resource_version"])

    async def _lines(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        with self._reading():
            async for line in response.content:
                yield line

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
        return await self._json("PUT", path, body=manifest, headers={"If-Match": f'"{if_match}"'})

    async def delete(self, kind: str, id_: str, *, force: bool = False) -> None:
        """Asked for: a workload is gone when its containers are. force: at once, whatever still runs."""
        await self._json("DELETE", self._path(kind, id_), query={"force": "1"} if force else {})

    async def drain(self, node: str, deadline_s: int | None) -> Object:
        """Asked for; the answer is how far it has come, as drain_progress gives it."""
        return await self._json("POST", f"{self._path('Node', node)}/drain", body={"deadline_s": deadline_s})

    async def drain_progress(self, node: str) -> Object:
        """What is left there and why. Raises ApiError (NotDraining) when it is not being drained."""
        return await self._json("GET", f"{self._path('Node', node)}/drain")

    async def forget(self, node: str) -> None:
        """The node is given up, with what it had."""
        await self._json("POST", f"{self._path('Node', node)}/forget")

    async def release(self, node: str, held_by: str = "", *, stop: bool = False) -> Object:
        """Whether the agent is released, and what is left there. held_by: the cluster that holds it; else our own."""
        body = {"stop": stop, **({"held_by": held_by} if held_by else {})}
        return await self._json("POST", f"{self._path('Node', node)}/release", body=body)

    async def hold(self) -> Object | None:
        """A restored database that waits to be confirmed, and its difference to the nodes; None when none does."""
        try:
            return await self._json("GET", "/restore")
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def confirm_restore(self, without: Sequence[str] = ()) -> None:
        """It counts. without: nodes that are not waited for. Raises ApiError (Held) while others are."""
        await self._json("POST", "/restore/confirm", body={"without": list(without)})

    async def explanation(self, workload: str) -> Sequence[Object]:
        """For each node whether the workload's next allocation fits there, and why not."""
        answer = await self._json("GET", f"{self._path('Workload', workload)}/explanation")
        nodes: Sequence[Object] = answer["nodes"]
        return nodes

    async def logs(
        self, allocation: str, *, follow: bool = False, tail: int | None = None, previous: bool = False
    ) -> AsyncIterator[bytes]:
        """The log's bytes as they come."""
        query = {name: "1" for name, wanted in (("follow", follow), ("previous", previous)) if wanted}
        if tail is not None:
            query["tail"] = str(tail)
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_S, sock_read=None if follow else ANSWER_S
        )  # a followed log may be silent for days
        path = f"{self._path('Allocation', allocation)}/logs"
        async with self._response("GET", path, query=query, timeout=timeout) as response:
            with self._reading():
                async for chunk in response.content.iter_any():
                    yield chunk

    async def register_node(self, id_: str, registration: "NodeRegistration") -> Object:
        """The node as the server has it now."""
        path = f"{self._path('Node', id_)}/registration"
        return await self._json("PUT", path, body=registration.to_json())

    def _path(self, kind: str, id_: str) -> str:
        return f"/{PATHS[kind]}/{quote(id_, safe='')}"

    async def _json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = ANSWER_S,
    ) -> Object:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        async with self._response(
            method, path, query=query or {}, body=body, headers=headers, timeout=timeout
        ) as response:
            with self._reading():
                text = await response.read()
            if not text:
                return {}
            value = _object(text)
            if value is None:
                raise self._not_kakuri(response)
            return value

    @asynccontextmanager
    async def _response(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own, of several parts
        body: Object | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A good response. Raises ServerUnreachable or ApiError."""
        response = await self._request(method, path, params=query, json=body, headers=headers, timeout=timeout)
        try:
            if response.status >= 400:
                raise await self._error(response)
            yield response
        finally:
            response.close()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """An answer that breaks off is a server that is lost."""
        try:
            yield
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ServerUnreachable(self.server, _why(error), connected=True) from error

    async def _request(self, method: str, path: str, **how: Any) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("use the client as an async context")
        try:
            return await self._once(method, path, how)
        except ServerUnreachable as error:
            # Where nothing was connected nothing can have been done, so even a POST may be sent again.
            if error.connected or self._retry_s <= 0:
                raise
        return await self._again(method, path, how)

    async def _again(self, method: str, path: str, how: Mapping[str, Any]) -> aiohttp.ClientResponse:
        import stamina  # noqa: PLC0415 - rarely needed, and the command line starts often

        def refused(error: Exception) -> bool:
            return isinstance(error, ServerUnreachable) and not error.connected

        stamina.instrumentation.set_on_retry_hooks([])  # by default they write to stdout, which is for data
        async for attempt in stamina.retry_context(
            on=refused, attempts=None, timeout=self._retry_s, wait_initial=0.1, wait_max=0.3, wait_jitter=0
        ):
            with attempt:
                return await self._once(method, path, how)
        raise AssertionError("a retry ends by returning or raising")

    async def _once(self, method: str, path: str, how: Mapping[str, Any]) -> aiohttp.ClientResponse:
        assert self._session is not None
        try:
            return await self._session.request(method, self.server + path, allow_redirects=False, **how)
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as error:
            connecting = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
            raise ServerUnreachable(self.server, _why(error), connected=not connecting) from error
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError) as error:
            raise ServerUnreachable(self.server, "that is no address; write http://host:port") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ServerUnreachable(self.server, _why(error), connected=True) from error

    async def _error(self, response: aiohttp.ClientResponse) -> ApiError:
        try:
            problem = _object(await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError):
            problem = None
        return self._not_kakuri(response) if problem is None else _problem(response.status, problem)

    def _not_kakuri(self, response: aiohttp.ClientResponse) -> ApiError:
        detail = f"{self.server} answered {response.status} with {response.content_type}; is that a kakuri server?"
        return ApiError(response.status, "NotKakuri", detail)


def _object(text: bytes) -> Object | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _problem(status: int, problem: Object) -> ApiError:
    detail = str(problem.get("detail") or problem.get("title") or f"status {status}")
    errors = [FieldError(str(e.get("pointer", "")), str(e.get("detail", ""))) for e in problem.get("errors", [])]
    return ApiError(status, str(problem.get("reason", "")), detail, errors)


def _why(error: BaseException) -> str:
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "there is no host of that name"
        case aiohttp.ClientConnectorError():
            number = error.os_error.errno  # its own text is only the address
            return os.strerror(number).lower() if number else str(error.os_error).lower()
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError() | ConnectionError():
            return "it closed the connection"
        case TimeoutError():
            return "it did not answer in time"
        case _:
            return str(error) or type(error).__name__
