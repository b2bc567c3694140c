"""Allocations: read only, and the logs that their agents keep."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

from aiohttp import web

from controller.api.context import Api
from controller.api.ports import AgentError, ObjectReads
from controller.api.query import MAX_TAIL, NAME, SELECTOR, Param, Where, read_flag, read_int
from controller.api.resource import Resource
from controller.api.streams import begin, cut, gone, send
from controller.store.contract import AllocationFilter, Page
from kakuri.model import Allocation

WORKLOAD = Param("workload", NAME, "Of the workload with this id.")
NODE = Param("node", NAME, "On the node with this id.")
_ID = re.compile(r"[-a-z0-9]{1,63}\.[0-9]{1,5}\.[0-9a-f]{8}")
BEGIN_S = 0.5
"""How long an error may turn a followed log's answer into a problem, before the answer begins without a first line."""
LOOK_S = 2.0
"""Between two looks at whether the reader of a silent log is still there; its agent's stream is held so much longer."""


class Allocations(Resource[Allocation]):
    kind = "Allocation"
    path = "/allocations"
    shown = Allocation
    filters = (SELECTOR, WORKLOAD, NODE)

    async def one(self, store: ObjectReads, id_: str) -> Allocation:
        return await store.get_allocation(id_)

    async def page(
        self,
        store: ObjectReads,
        where: Where,
        *,
        limit: int,
        after: str | None = None,
        ids: Sequence[str] | None = None,
    ) -> Page[Allocation]:
        filter_ = AllocationFilter(where.terms.get("workload"), where.terms.get("node"), where.selector)
        return await store.list_allocations(filter_, limit=limit, after=after, ids=ids)

    def selects(self, where: Where, object_: Any) -> bool:
        # Its spec has the workload's labels: a change of them is brought to live allocations in place.
        chosen = all(getattr(object_, name) == value for name, value in where.terms.items())
        return chosen and where.selector.matches(object_.spec.labels)

    def is_id(self, text: str) -> bool:
        return _ID.fullmatch(text) is not None


ALLOCATIONS = Allocations()


async def read_logs(api: Api, request: web.Request) -> web.StreamResponse:
    """The log as bytes. What fails before the first of them is a problem; what fails later cuts the connection."""
    follow, previous = read_flag(request, "follow"), read_flag(request, "previous")
    tail = read_int(request, "tail", default=-1, least=-1, most=MAX_TAIL)
    allocation = await api.store.get_allocation(ALLOCATIONS.check_id(request.match_info["id"]))
    response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"})
    log = api.logs.read(allocation, follow=follow, tail=tail, previous=previous)
    error: AgentError | None = None
    async with api.streams.until_shutdown(), asyncio.TaskGroup() as group:
        chunks: Chunks = asyncio.Queue(maxsize=4)
        pump = group.create_task(_pump(log, chunks))
        try:
            error = await _relay(request, response, chunks, patient=follow)
        finally:
            pump.cancel()
    if error is not None:
        raise error
    return response


Chunks = asyncio.Queue[bytes | AgentError | None]
"""None: the log ends here."""


async def _pump(log: AsyncIterator[bytes], chunks: Chunks) -> None:
    # In a task of its own: to stop waiting for a silent agent's next chunk would end its stream.
    try:
        async for chunk in log:
            await chunks.put(chunk)
    except AgentError as error:
        await chunks.put(error)
    else:
        await chunks.put(None)


async def _relay(
    request: web.Request, response: web.StreamResponse, chunks: Chunks, *, patient: bool
) -> AgentError | None:
    """What went wrong before the answer began. patient: a silent log's answer begins without its first chunk."""
    while not gone(request):
        try:
            async with asyncio.timeout(BEGIN_S if patient and not response.prepared else LOOK_S):
                chunk = await chunks.get()
        except TimeoutError:
            if patient:
                await begin(request, response)
            continue
        if isinstance(chunk, AgentError) and not response.prepared:
            return chunk
        await begin(request, response)
        match chunk:
            case None:
                return None
            case AgentError():
                cut(request)
                return None
            case bytes():
                if request.method == "HEAD" or not await send(request, response, chunk):
                    return None
    return None
