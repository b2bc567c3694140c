"""The HTTP API on a free port of loopback, over the in-memory store, with what it was told to do written down."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp

from controller.api import build_api, serving
from controller.exchange import Released
from controller.store import open_store
from controller.store.contract import Store
from kakuri.model import Allocation

BOUND_S = 10.0
"""For anything that is waited for; far more than it takes."""


def workload(id_: str | None = "web", **fields: Any) -> dict[str, Any]:
    named = {} if id_ is None else {"id": id_}
    base = {"image": "ghcr.io/example/app:1.0", "runtime_class": "native", "memory_mb": 64, "cpu_millicores": 100}
    return {"kind": "Workload", **named, **base, **fields}


def registration(**fields: Any) -> dict[str, Any]:
    return {
        "address": "127.0.0.1:9001",
        "capacity": {"memory_mb": 8192, "cpu_millicores": 4000},
        "runtime_classes": [{"id": "native", "handler": "runc"}],
        "instance": "i1",
        "ledger_uid": "l1",
        **fields,
    }


@dataclass
class Kicks:
    workloads_: list[str] = field(default_factory=list)
    nodes_: int = 0

    def workloads(self, ids: Iterable[str]) -> None:
        self.workloads_ += ids

    def nodes(self) -> None:
        self.nodes_ += 1


@dataclass
class ScriptedLogs:
    """Yields the chunks, raises the error when there is one, and with hang waits for ever after that."""

    chunks: Sequence[bytes] = ()
    error: Exception | None = None
    hang: bool = False
    asked: list[tuple[str, bool, int, bool]] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, allocation: Allocation, *, follow: bool, tail: int, previous: bool) -> AsyncIterator[bytes]:
        self.asked.append((allocation.id, follow, tail, previous))
        try:
            for chunk in self.chunks:
                yield chunk
            if self.error:
                raise self.error
            if self.hang:
                await asyncio.Event().wait()
        finally:
            self.ended.set()


@dataclass
class ScriptedReleases:
    """Gives the answers in turn, the last of them for ever; an error is raised."""

    answers: list[Released | Exception] = field(default_factory=lambda: [Released(released=True)])
    asked: list[tuple[str, str, bool]] = field(default_factory=list)

    async def release(self, address: str, *, held_by: str, stop: bool) -> Released:
        self.asked.append((address, held_by, stop))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class SteppedClock:
    """Each look at it is a millisecond later."""

    now: datetime = datetime(2025, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Any
    body: Any
    """JSON where it is that, else text."""


@dataclass
class Watch:
    """The lines of a watch, one at a time."""

    response: aiohttp.ClientResponse

    async def next(self) -> tuple[str, str, Any]:
        """(type, id, object). Bookmarks have the id ""."""
        line = await self.line()
        return line["type"], line["object"].get("id", ""), line["object"]

    async def line(self) -> Any:
        async with asyncio.timeout(BOUND_S):
            text = await self.response.content.readline()
        assert text, "the watch has ended"
        return json.loads(text)

    async def ended(self) -> bool:
        """Reads on until the end, and says whether it came in order."""
        async with asyncio.timeout(BOUND_S):
            while await self.response.content.readline():
                pass
        return True


@dataclass
class RunningApi:
    url: str
    store: Store
    session: aiohttp.ClientSession
    kicks: Kicks
    logs: ScriptedLogs
    releases: ScriptedReleases
    clock: SteppedClock
    stop: Callable[[], Awaitable[None]]
    """The server shuts down; clients stay."""

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.send("GET", path, headers=headers)

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        return await self.send("POST", path, **_json(body, headers))

    async def put(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        return await self.send("PUT", path, **_json(body, headers))

    async def delete(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        return await self.send("DELETE", path, headers=headers)

    async def send(self, method: str, path: str, **how: Any) -> Answer:
        async with asyncio.timeout(BOUND_S), self.session.request(method, self.url + path, **how) as response:
            text = await response.text()
            is_json = response.content_type in {"application/json", "application/problem+json"} and text
            return Answer(response.status, response.headers, json.loads(text) if is_json else text)

    @asynccontextmanager
    async def watch(self, path: str) -> AsyncIterator[Watch]:
        async with self.session.get(self.url + path) as response:
            assert response.status == 200, await response.text()
            yield Watch(response)


def _json(body: Any, headers: Mapping[str, str] | None) -> dict[str, Any]:
    # As a file, since aiohttp's client warns of large bytes.
    return {
        "data": io.BytesIO(json.dumps(body).encode()),
        "headers": {"Content-Type": "application/json", **(headers or {})},
    }


@asynccontextmanager
async def running_api(*, store: Store | None = None, **options: Any) -> AsyncIterator[RunningApi]:
    """options: what build_api takes besides."""
    own = store or await open_store("memory://")
    kicks, logs, releases, clock = Kicks(), ScriptedLogs(), ScriptedReleases(), SteppedClock()
    application = build_api(
        store=own, kick=kicks, logs=logs, releases=releases, version="1.2.3", clock=clock, **options
    )
    async with aiohttp.ClientSession() as session, AsyncExitStack() as server:
        host, port = await server.enter_async_context(serving(application, "127.0.0.1", 0))
        yield RunningApi(f"http://{host}:{port}", own, session, kicks, logs, releases, clock, server.aclose)
    if store is None:
        await own.close()
