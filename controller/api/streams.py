"""Responses that last: watches and logs that are followed. They end at once when the server does.

One rule: a reader that does not read holds nothing for long; each write has a deadline.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

WRITE_S = 30.0
"""For one write. Too low cuts off people on slow lines; too high keeps buffers for those who are gone."""
BEGUN = web.RequestKey("begun", bool)
"""Set when an answer's headers are out: it is too late for a problem."""


class Streams:
    """The lasting responses of one application."""

    def __init__(self) -> None:
        self._scopes: set[asyncio.Timeout] = set()
        self._closing = False

    @asynccontextmanager
    async def until_shutdown(self) -> AsyncIterator[None]:
        """Leaves the block, without an error, when the server shuts down."""
        try:
            async with asyncio.timeout(0 if self._closing else None) as scope:
                self._scopes.add(scope)
                try:
                    yield
                finally:
                    self._scopes.discard(scope)
        except TimeoutError:
            if not self._closing:
                raise

    def close(self) -> None:
        """Every block is left now, and new ones at once."""
        if self._closing:
            return
        self._closing = True
        for scope in self._scopes:
            scope.reschedule(asyncio.get_running_loop().time())


async def begin(request: web.Request, response: web.StreamResponse) -> None:
    """The status line and the headers are sent; from now on an error can only cut the connection."""
    if not response.prepared:
        request[BEGUN] = True
        await response.prepare(request)


async def send(request: web.Request, response: web.StreamResponse, content: bytes) -> bool:
    """Whether the reader is still there and took it in time. When it did not, the connection is cut."""
    try:
        async with asyncio.timeout(WRITE_S):
            await response.write(content)
    except TimeoutError:
        cut(request)
        return False
    except ConnectionError:
        return False
    return True


def gone(request: web.Request) -> bool:
    """Whether the reader has hung up."""
    return request.transport is None or request.transport.is_closing()


def cut(request: web.Request) -> None:
    """The connection is gone, without the mark that ends a whole answer: a reader must not take a part for it."""
    if request.transport is not None:
        request.transport.abort()
