"""What operators and their machines ask: alive, ready, metrics, version."""

import asyncio

from aiohttp import web

from controller.api.context import Api
from controller.store.contract import Unavailable
from kakuri import metrics

PING_S = 5.0
"""For the store to say that it can be written. SQLite's busy timeout may be spent in there by honest work."""


async def alive(_api: Api, _request: web.Request) -> web.StreamResponse:
    """The process answers. Says nothing of the store: to restart the controller would not mend that."""
    return web.json_response({"status": "ok"})


async def ready(api: Api, _request: web.Request) -> web.StreamResponse:
    """The store can be written, so requests can be served, whoever leads; else 503 with why."""
    try:
        async with asyncio.timeout(PING_S):
            await api.store.ping()
    except TimeoutError:
        raise Unavailable(f"the store did not answer within {PING_S:g} s") from None
    return web.json_response({"status": "ok"})


async def show_metrics(_api: Api, _request: web.Request) -> web.StreamResponse:
    return web.Response(body=metrics.render(), headers={"Content-Type": metrics.CONTENT_TYPE})


async def show_version(api: Api, _request: web.Request) -> web.StreamResponse:
    return web.json_response({"version": api.version, "cluster_id": api.store.cluster_id})


async def show_description(api: Api, _request: web.Request) -> web.StreamResponse:
    return web.Response(body=api.description(), content_type="application/json")
