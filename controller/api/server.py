"""The API as one aiohttp application, and how it is served.

One rule: what the handlers are given is put together here, and nowhere else.
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import cache

from aiohttp import web

from controller.api.context import Api
from controller.api.middleware import around
from controller.api.openapi import describe
from controller.api.ports import AgentLogs, AgentReleases, ApiStore, Kick
from controller.api.query import check_known
from controller.api.route import Route
from controller.api.routes import RESOURCES, ROUTES
from controller.api.streams import Streams
from controller.api.watch import WatchHub
from kakuri.log import OncePer

BOOKMARK_S = 10.0
MAX_LINE_BYTES = 65_536
"""A request's first line. A longest selector fits even when each character of it is escaped; what is longer than this
is answered by aiohttp, in plain text."""
SHUTDOWN_S = 2.0
"""For requests that are being answered when the server ends. Watches and followed logs end at once."""

# What aiohttp itself finds wrong is no HTTP at all (a port scan, TLS on this port): told once a minute for each sender.
_HTTP_LOG = logging.getLogger("controller.api.http")
_say = OncePer(60, time.monotonic)
_HTTP_LOG.addFilter(lambda record: _say(record.getMessage()))


def build_api(
    *,
    store: ApiStore,
    kick: Kick,
    logs: AgentLogs,
    releases: AgentReleases,
    version: str,
    clock: Callable[[], datetime],
    new_id: Callable[[], str] = lambda: f"wl-{secrets.token_hex(5)}",
    bookmark_s: float = BOOKMARK_S,
    served_s: Callable[[], float] | None = None,
) -> web.Application:
    """The application; serving() runs it. served_s: for how long it is served; None: from now on."""
    began = time.monotonic()
    api = Api(
        store=store,
        kick=kick,
        logs=logs,
        releases=releases,
        hub=WatchHub(store, RESOURCES),
        streams=Streams(),
        version=version,
        clock=clock,
        new_id=new_id,
        served_s=served_s or (lambda: time.monotonic() - began),
        bookmark_s=bookmark_s,
        description=cache(lambda: json.dumps(describe(ROUTES, RESOURCES, version)).encode()),
    )
    application = web.Application(middlewares=[around])
    _add_routes(application, api)
    application.cleanup_ctx.append(_hub_of(api))
    application.on_shutdown.append(_streams_of(api))
    return application


@asynccontextmanager
async def serving(application: web.Application, host: str, port: int) -> AsyncIterator[tuple[str, int]]:
    """Serves inside the block, and yields the address that it got (port 0: any free one). OSError for a taken one.

    A handler is not cancelled when its client hangs up: a write must come to its kick.
    """
    runner = web.AppRunner(
        application,
        access_log=None,
        handler_cancellation=False,
        shutdown_timeout=SHUTDOWN_S,
        max_line_size=MAX_LINE_BYTES,
        logger=_HTTP_LOG,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound = runner.addresses[0]
        yield bound[0], bound[1]
    finally:
        await runner.cleanup()


def _add_routes(application: web.Application, api: Api) -> None:
    resources: dict[str, web.Resource] = {}
    for route in ROUTES:
        resource = resources.get(route.path) or application.router.add_resource(route.path)
        resources[route.path] = resource
        handle = _checked(api, route)
        resource.add_route(route.method, handle)
        if route.method == "GET":
            resource.add_route("HEAD", handle)


def _checked(api: Api, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    known = route.query_names

    async def handle(request: web.Request) -> web.StreamResponse:
        check_known(request, known)
        return await route.handle(api, request)

    return handle


def _hub_of(api: Api) -> Callable[[web.Application], AsyncIterator[None]]:
    async def running(_: web.Application) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            hub = group.create_task(api.hub.run())
            yield
            hub.cancel()

    return running


def _streams_of(api: Api) -> Callable[[web.Application], Awaitable[None]]:
    async def close(_: web.Application) -> None:
        api.streams.close()

    return close
