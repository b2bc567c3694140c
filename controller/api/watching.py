"""One watch: newline JSON from a resource_version on, until the reader or the server goes.

    {"type":"ADDED|MODIFIED|DELETED|BOOKMARK","object":{…},"resource_version":"123"}

One rule: whoever comes back with the last line's resource_version misses nothing. So the objects that a watch begins
with bear "0": they are whole only with the BOOKMARK that follows them.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import Any, Literal

from aiohttp import web

from controller.api.context import Api
from controller.api.query import MAX_LIMIT, Where, read_resource_version
from controller.api.resource import Resource, Shown, to_text
from controller.api.streams import begin, send
from controller.api.watch import READ_CHANGES, News
from controller.store.contract import Page, StoreError
from kakuri.metrics import WATCHES

CONTENT_TYPE = "application/x-ndjson"
Type = Literal["ADDED", "MODIFIED", "DELETED"]


async def watch(api: Api, request: web.Request, resource: Resource[Any], where: Where) -> web.StreamResponse:
    """Raises StoreError before the answer begins: Expired for a version that is not held, or Unavailable."""
    since = read_resource_version(request)
    if since is None:
        await api.store.resource_version()
    else:
        await api.store.changes_since(since, limit=1)
    response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})
    with WATCHES.labels(resource.kind).track_inprogress():
        async with api.streams.until_shutdown():
            await begin(request, response)
            if request.method == "HEAD":
                return response
            try:
                async with aclosing(_lines(api, resource, where, since)) as batches:
                    async for lines in batches:
                        if not await send(request, response, lines.encode()):
                            break
            except StoreError:
                pass  # The answer has begun. The reader comes back with its last version, and is told then.
    return response


class Judge:
    """What a change is to one watcher: it may come into what is watched, or leave it."""

    def __init__(self, resource: Resource[Any], where: Where, since: datetime) -> None:
        """since: what was born later is new to the watcher."""
        self._resource = resource
        self._where = where
        self._since = since
        self._known: set[str] = set()
        """With filters: the ids that the watcher has. Without: those it was told of."""
        self._unsure_until = 0
        """Up to this version an object that is not selected may have been, and the watcher may have it."""

    def sent(self, page: Page[Shown]) -> None:
        """The watcher has these."""
        if self._where:
            self._known.update(o.id for o in page.items)

    def had(self, page: Page[Shown]) -> None:
        """The watcher has those of these that are not new to it."""
        self._known.update(o.id for o in page.items if not self._resource.born(o, self._since))
        self._unsure_until = page.resource_version

    def type_of(self, news: News) -> Type | None:
        """None: this is not for the watcher."""
        if news.object is None or not self._resource.selects(self._where, news.object):
            told = not self._where or news.id in self._known or news.resource_version <= self._unsure_until
            self._known.discard(news.id)
            return "DELETED" if told else None
        if news.id in self._known:
            return "MODIFIED"
        self._known.add(news.id)
        return "ADDED" if self._where or self._resource.born(news.object, self._since) else "MODIFIED"


async def _lines(api: Api, resource: Resource[Any], where: Where, since: int | None) -> AsyncGenerator[str]:
    """Batches of lines, as they come. Ends when the change log is not held any more, or the reader is too slow."""
    now = api.clock()
    judge = Judge(resource, where, now if since is None else api.hub.served_at(since) or now)
    if since is None:
        async for page in _pages(api, resource, where):
            since = page.resource_version if since is None else since
            judge.sent(page)
            yield "".join(_line("ADDED", to_text(o), 0) for o in page.items)
        assert since is not None
        yield _bookmark(resource, since)
        seeded = True
    else:
        seeded = not where
    async with api.hub.subscribe(resource.kind) as subscription:
        if not seeded:
            async for page in _pages(api, resource, where):
                judge.had(page)
        async for news in _missed(api, resource, since, subscription.live_from):
            yield _told(resource, judge, news)
        loop = asyncio.get_running_loop()
        bookmark_at = loop.time() + api.bookmark_s
        while not subscription.ended:
            news = await subscription.take(bookmark_at - loop.time())
            lines = _told(resource, judge, [n for n in news if n.resource_version > since])
            if not lines and loop.time() >= bookmark_at:
                lines = _bookmark(resource, max(since, subscription.position))
            if lines:
                bookmark_at = loop.time() + api.bookmark_s
                yield lines


async def _pages(api: Api, resource: Resource[Any], where: Where) -> AsyncIterator[Page[Shown]]:
    after: str | None = None
    while True:
        page: Page[Shown] = await resource.page(api.store, where, limit=MAX_LIMIT, after=after)
        yield page
        after = page.next
        if after is None:
            return


async def _missed(api: Api, resource: Resource[Any], since: int, until: int) -> AsyncIterator[list[News]]:
    """What happened after since, up to until."""
    while since < until and (changes := await api.store.changes_since(since, limit=READ_CHANGES)):
        since = changes[-1].resource_version
        yield await api.hub.read([c for c in changes if c.resource_version <= until], resource.kind)


def _told(resource: Resource[Any], judge: Judge, news: list[News]) -> str:
    lines: list[str] = []
    for one in news:
        match judge.type_of(one):
            case "DELETED":
                lines.append(_line("DELETED", _named(resource, one.id), one.resource_version))
            case "ADDED" | "MODIFIED" as type_:
                lines.append(_line(type_, one.text, one.resource_version))
            case None:
                pass
    return "".join(lines)


def _bookmark(resource: Resource[Any], resource_version: int) -> str:
    return _line("BOOKMARK", f'{{"kind":"{resource.kind}"}}', resource_version)


def _named(resource: Resource[Any], id_: str) -> str:
    return json.dumps({"kind": resource.kind, "id": id_}, separators=(",", ":"))


def _line(type_: Type | Literal["BOOKMARK"], object_: str, resource_version: int) -> str:
    return f'{{"type":"{type_}","object":{object_},"resource_version":"{resource_version}"}}\n'
