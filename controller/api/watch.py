"""The hub of all watches: one reader of the change log a process, whatever the number of watchers.

One rule: a watcher is told of every object that changed, with its present state, in the order of the log; it may miss
states between, never the last one.

    commit ──► kick ──► changes_since(position) ──► present objects, read once ──► every subscription of the kind
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller.api.ports import WatchStore
from controller.api.query import Where
from controller.api.resource import Resource, Shown, to_text
from controller.store.contract import Change, Expired, Kind, StoreError
from kakuri.log import OncePer, get_logger

POLL_S = 1.0
"""Between two looks at the log while there are watchers: other controllers' commits don't kick."""
READ_CHANGES = 1000
READ_OBJECTS = 500
MAX_QUEUED = 20_000
"""Changes kept for one watcher that reads slowly. An apply of 5,000 objects must fit in more than once."""
MAX_SERVED = 1024


@dataclass(frozen=True, slots=True)
class News:
    """A change as watchers get it. object: its present state, None when it is gone; text: the same as JSON."""

    resource_version: int
    id: str
    object: Shown | None
    text: str


class Subscription:
    """What one watcher is told from now on."""

    def __init__(self, kind: Kind, live_from: int) -> None:
        self.kind = kind
        self.live_from = live_from
        """Changes after this one come by themselves; those before are the watcher's to read."""
        self.position = live_from
        """All up to here has been offered."""
        self.ended = False
        """No more will come: the log is not held any more, or the watcher is too slow."""
        self._queue: list[News] = []
        self._kick = asyncio.Event()

    def offer(self, news: Sequence[News], position: int) -> None:
        self.position = position
        if not news or self.ended:
            return
        self._queue += news
        if len(self._queue) > MAX_QUEUED:
            self.end()
        self._kick.set()

    def end(self) -> None:
        self.ended = True
        self._queue.clear()
        self._kick.set()

    async def take(self, timeout_s: float) -> list[News]:
        """What has come, waiting for it up to timeout_s; position is up to where that is all."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._kick.wait()
        except TimeoutError:
            pass
        if not self.ended:
            self._kick.clear()
        taken, self._queue = self._queue, []
        return taken


class WatchHub:
    """run() must be running for subscriptions to be told anything."""

    def __init__(self, store: WatchStore, resources: Iterable[Resource[Any]]) -> None:
        self._store = store
        self._resources: Mapping[Kind, Resource[Any]] = {r.kind: r for r in resources}
        self._subscriptions: set[Subscription] = set()
        self._position: int | None = None
        """Up to where the log was read; None while nobody watches."""
        self._kick = asyncio.Event()
        self._watched = asyncio.Event()
        self._served: OrderedDict[int, datetime] = OrderedDict()
        self._log = get_logger("watch")
        self._say = OncePer(60, lambda: asyncio.get_running_loop().time())
        store.on_commit(self._kick.set)

    def note_served(self, resource_version: int, now: datetime) -> None:
        """A list was answered as of this version: what is born from now on is new to a watch that begins there."""
        self._served.setdefault(resource_version, now)
        if len(self._served) > MAX_SERVED:
            self._served.popitem(last=False)

    def served_at(self, resource_version: int) -> datetime | None:
        return self._served.get(resource_version)

    @asynccontextmanager
    async def subscribe(self, kind: Kind) -> AsyncIterator[Subscription]:
        if self._position is None:
            version = await self._store.resource_version()
            if self._position is None:
                self._position = version
        subscription = Subscription(kind, self._position)
        self._subscriptions.add(subscription)
        self._watched.set()
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    async def read(self, changes: Sequence[Change], kind: Kind) -> list[News]:
        """What the changes of this kind come to, each object once, with its present state."""
        latest: dict[str, Change] = {}
        gone: list[News] = []
        for change in changes:
            if change.kind != kind:
                continue
            latest.pop(change.id, None)
            if change.deleted:
                gone.append(News(change.resource_version, change.id, None, ""))
            else:
                latest[change.id] = change
        present = await self._present(kind, list(latest))
        # An object that is missing was deleted after these changes: its deletion is told with a later one.
        there = [
            News(change.resource_version, id_, present[id_], to_text(present[id_]))
            for id_, change in latest.items()
            if id_ in present
        ]
        return sorted([*gone, *there], key=lambda n: n.resource_version)

    async def run(self) -> None:
        """Reads the log while anybody watches. A store that is away ends no watch; it is read again when it is back."""
        while True:
            try:
                await self._watched.wait()
                await self._follow()
            except Expired:
                self._end_all()
            except StoreError as error:
                if self._say(error.message):
                    self._log.warning("change log not read", error=error.message)
                await asyncio.sleep(POLL_S)
            except Exception:  # noqa: BLE001 - a fault of ours ends the watches that it may have hit, not the hub
                self._log.exception("change log not read")
                self._end_all()
                await asyncio.sleep(POLL_S)

    async def _follow(self) -> None:
        """Returns when nobody watches."""
        while self._subscriptions:
            self._kick.clear()
            await self._catch_up()
            try:
                async with asyncio.timeout(POLL_S):
                    await self._kick.wait()
            except TimeoutError:
                pass
        self._position = None
        self._watched.clear()

    async def _catch_up(self) -> None:
        assert self._position is not None
        while changes := await self._store.changes_since(self._position, limit=READ_CHANGES):
            news: dict[Kind, list[News]] = {}
            # Again for those who came during the reads: they begin before these changes too.
            while unread := {s.kind for s in self._subscriptions} - news.keys():
                for kind in unread:
                    news[kind] = await self.read(changes, kind)
            self._position = changes[-1].resource_version
            for subscription in self._subscriptions:
                subscription.offer(news[subscription.kind], self._position)
            if len(changes) < READ_CHANGES:
                return

    async def _present(self, kind: Kind, ids: list[str]) -> dict[str, Shown]:
        resource = self._resources[kind]
        found: dict[str, Shown] = {}
        for start in range(0, len(ids), READ_OBJECTS):
            some = ids[start : start + READ_OBJECTS]
            page = await resource.page(self._store, Where(), limit=len(some), ids=some)
            found.update((o.id, o) for o in page.items)
        return found

    def _end_all(self) -> None:
        for subscription in self._subscriptions:
            subscription.end()
        self._position = None
        self._watched.clear()
