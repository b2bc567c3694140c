"""What other controllers committed: PostgreSQL tells of it, and every store can say which changes were not its own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from builders import NOW, a_manifest
from controller.store import open_store
from controller.store.contract import Expired, Put, Store
from support.postgres import Server
from support.stores import StoreSubject

_BOUND_S = 10


@pytest.fixture
async def two(shared_postgres_url: str) -> AsyncIterator[tuple[Store, Store]]:
    """Two controllers' stores on one PostgreSQL database, each listening."""
    async with contextlib.AsyncExitStack() as stack:
        stores: list[Store] = []
        for _ in range(2):
            store = await open_store(shared_postgres_url)
            stack.push_async_callback(store.close)
            await _kick_of(store, asyncio.sleep(0))  # it kicks when it begins to listen
            stores.append(store)
        yield stores[0], stores[1]


async def test_a_commit_kicks_who_listens_elsewhere(two: tuple[Store, Store]) -> None:
    here, there = two
    await _kick_of(here, there.apply([Put(a_manifest("web"))], now=NOW))
    await _kick_of(there, here.apply([Put(a_manifest("db"))], now=NOW))


async def test_only_what_wrote_changes_kicks(two: tuple[Store, Store]) -> None:
    here, there = two
    kicks: list[None] = []
    here.on_commit(lambda: kicks.append(None))
    lease = await there.acquire_lease("there", ttl_s=60)
    assert await there.renew_lease("there", epoch=lease.epoch, ttl_s=60)
    await there.ping()
    await there.apply([Put(a_manifest("web"))], now=NOW, dry_run=True)
    await _until_kicked(kicks, there.apply([Put(a_manifest("web"))], now=NOW), 1)
    await there.apply([Put(a_manifest("web"))], now=NOW)  # the same again
    await _until_kicked(kicks, there.apply([Put(a_manifest("db"))], now=NOW), 2)
    assert len(kicks) == 2


async def test_one_that_could_not_listen_listens_again(two: tuple[Store, Store], postgres_server: Server) -> None:
    here, there = two
    again = _kick_of(here, asyncio.sleep(0))
    listening = "datname = 'kakuri_shared' AND query LIKE 'LISTEN%'"
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {listening}"
    await asyncio.to_thread(postgres_server.sql, end)
    await again
    await _kick_of(here, there.apply([Put(a_manifest("web"))], now=NOW))


async def test_changes_by_others_are_those_that_this_store_did_not_commit(two: tuple[Store, Store]) -> None:
    here, there = two
    start = await here.resource_version()
    for n in range(4):
        await here.apply([Put(a_manifest(f"here-{n}")), Put(a_manifest(f"here-too-{n}"))], now=NOW)
        if n % 2:
            await there.apply([Put(a_manifest(f"there-{n}"))], now=NOW)
    changes, newest = await here.changes_by_others(start)
    assert [c.id for c in changes] == ["there-1", "there-3"]
    assert newest == await here.resource_version()
    assert await here.changes_by_others(newest) == ([], newest)
    changes, newest = await there.changes_by_others(start)
    assert [c.id for c in changes] == [f"here-{t}{n}" for n in range(4) for t in ("", "too-")]
    at, pages = start, []
    while at < newest:
        some, at = await here.changes_by_others(at, limit=1)
        pages += some
    assert [c.id for c in pages] == ["there-1", "there-3"], "page by page"


async def test_a_store_that_is_alone_has_no_others(store: Store) -> None:
    start = await store.resource_version()
    await store.apply([Put(a_manifest("a")), Put(a_manifest("b"))], now=NOW)
    await store.apply([Put(a_manifest("c"))], now=NOW)
    assert await store.changes_by_others(start) == ([], await store.resource_version())


async def test_a_store_opened_anew_takes_nothing_for_its_own(store_subject: StoreSubject) -> None:
    if store_subject.again is None:
        pytest.skip("the store in memory is one process's own")
    start = await store_subject.store.resource_version()
    await store_subject.store.apply([Put(a_manifest("a"))], now=NOW)
    anew = await store_subject.again()
    changes, _ = await anew.changes_by_others(start)
    assert [c.id for c in changes] == ["a"]


async def test_changes_by_others_from_a_version_never_reached_are_expired(store: Store) -> None:
    with pytest.raises(Expired, match="was never reached"):
        await store.changes_by_others(await store.resource_version() + 1)


async def _kick_of(store: Store, doing: object) -> None:
    kicked = asyncio.Event()
    store.on_commit(kicked.set)
    await doing  # type: ignore[misc]
    await asyncio.wait_for(kicked.wait(), _BOUND_S)


async def _until_kicked(kicks: list[None], doing: object, times: int) -> None:
    await doing  # type: ignore[misc]
    async with asyncio.timeout(_BOUND_S):
        while len(kicks) < times:
            await asyncio.sleep(0.005)
