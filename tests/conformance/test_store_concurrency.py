"""Many at once, on every store that more than one can open: nothing is lost, and watchers miss nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from builders import NOW, a_manifest, later
from controller.plan.action import Plan, WorkloadPlan
from controller.store.contract import (
    AlreadyExists,
    Change,
    Delete,
    EventFilter,
    InUse,
    Invalid,
    Put,
    Stale,
    Store,
    StoreError,
)
from kakuri.model import EventDraft, EventType, RuntimeClassManifest, WorkloadStatus
from kakuri.selector import Selector
from support.store_script import StoreScript
from support.stores import StoreSubject

WRITERS = 4


@pytest.fixture
async def stores(store_subject: StoreSubject) -> list[Store]:
    """A store for each of several controllers, all on one database (in memory: the one store, many times)."""
    if store_subject.again is None:
        return [store_subject.store] * WRITERS
    return [store_subject.store, *[await store_subject.again() for _ in range(WRITERS - 1)]]


async def test_of_writers_who_read_the_same_only_one_is_written(stores: list[Store]) -> None:
    await stores[0].apply([Put(a_manifest("web"))], now=NOW)
    written = 0
    for round_ in range(5):
        etag = (await stores[0].get_workload("web")).etag
        edits = [
            store.apply([Put(a_manifest("web", args=(f"{round_}.{i}",)), if_match=etag)], now=NOW)
            for i, store in enumerate(stores)
        ]
        results = await asyncio.gather(*edits, return_exceptions=True)
        assert [isinstance(r, Stale) for r in results].count(True) == WRITERS - 1
        written += 1
    assert (await stores[0].get_workload("web")).generation == 1 + written


async def test_of_creators_of_one_id_only_one_creates(stores: list[Store]) -> None:
    for round_ in range(5):
        attempts = [
            s.apply([Put(a_manifest(f"w{round_}", args=(str(i),)), "create")], now=NOW) for i, s in enumerate(stores)
        ]
        results = await asyncio.gather(*attempts, return_exceptions=True)
        assert [isinstance(r, AlreadyExists) for r in results].count(True) == WRITERS - 1
        assert [isinstance(r, list) for r in results].count(True) == 1


async def test_a_watcher_that_follows_the_changes_misses_none(stores: list[Store]) -> None:
    each = 15

    async def write(writer: int, store: Store) -> None:
        for i in range(each):
            await store.apply(
                [Put(a_manifest(f"w{writer}-{i}")), Put(a_manifest(f"shared-{i}", args=(str(writer),)))], now=NOW
            )
            await store.add_events([_said(f"e{i}")], now=NOW)

    async with _following(stores[-1]) as seen:
        async with asyncio.TaskGroup() as group:
            for number, store in enumerate(stores):
                group.create_task(write(number, store))
        newest = await stores[0].resource_version()
        await _until(lambda: bool(seen) and seen[-1].resource_version == newest)
    assert [c.resource_version for c in seen] == list(range(1, newest + 1))
    own = {c.id for c in seen if c.kind == "Workload"}
    assert own == {f"w{w}-{i}" for w in range(WRITERS) for i in range(each)} | {f"shared-{i}" for i in range(each)}
    events = (await stores[0].list_events(EventFilter())).items
    assert {e.count for e in events} == {WRITERS}, "no count is lost"
    # Each object's resource_version is that of the last change that tells of it.
    last = {c.id: c.resource_version for c in seen if c.kind == "Workload"}
    listed = (await stores[0].list_workloads(selector=Selector())).items
    assert {w.id: w.resource_version for w in listed} == last


async def test_reports_answers_and_plans_at_once_lose_nothing(stores: list[Store]) -> None:
    script = StoreScript(stores[0])
    await script.node()
    ids = []
    for i in range(3):
        await script.put(f"w{i}")
        ids.append(await script.place(f"w{i}"))
    rounds = 8

    async def report(store: Store) -> None:
        other = StoreScript(store)
        for n in range(1, rounds + 1):
            await other.report(*(other.seen(a, restarts=n) for a in ids))

    async def plan(store: Store, name: str) -> int:
        written = 0
        for n in range(rounds):
            snapshot = await store.load_snapshot([f"w{i}" for i in range(3)], now=NOW, seed="s")
            steps = tuple(
                WorkloadPlan(w.id, w.version, (), WorkloadStatus(message=f"{name} {n}"), status_changed=True)
                for w in snapshot.workloads
            )
            applied = await store.apply_plan(Plan(steps), epoch=0, now=later(n))
            written += len(applied.written)
        return written

    async def edit(store: Store) -> None:
        for n in range(rounds):
            await store.apply([Put(a_manifest(f"w{i}", args=(str(n),))) for i in (2, 0, 1)], now=NOW)

    before = {w.id: w.version for w in (await stores[0].load_snapshot(["w0", "w1", "w2"], now=NOW, seed="s")).workloads}
    async with asyncio.TaskGroup() as group:
        group.create_task(report(stores[0]))
        planners = [group.create_task(plan(stores[1], "a")), group.create_task(plan(stores[2], "b"))]
        group.create_task(edit(stores[3]))
    after = await stores[0].load_snapshot(["w0", "w1", "w2"], now=NOW, seed="s")
    assert {a.restarts for w in after.workloads for a in w.allocations} == {rounds}
    assert {w.generation for w in after.workloads} == {1 + rounds}
    bumps = sum(w.version - before[w.id] for w in after.workloads)
    assert bumps == 3 * rounds + 3 * rounds + sum(p.result() for p in planners), "each write bumped the version once"


async def test_a_class_is_not_deleted_under_a_workload_that_begins_to_ask_for_it(stores: list[Store]) -> None:
    for round_ in range(5):
        class_id = f"c{round_}"
        await stores[0].apply([Put(RuntimeClassManifest(id=class_id, handler="x"))], now=NOW)
        put, deleted = await asyncio.gather(
            stores[1].apply([Put(a_manifest(f"w{round_}", runtime_class=class_id))], now=NOW),
            stores[2].apply([Delete("RuntimeClass", class_id)], now=NOW),
            return_exceptions=True,
        )
        failed = [r for r in (put, deleted) if isinstance(r, StoreError)]
        assert len(failed) == 1
        assert isinstance(failed[0], InUse | Invalid)


async def test_a_page_is_one_moment(stores: list[Store]) -> None:
    """Both workloads change in one transaction, so no reader sees one without the other."""
    ended = asyncio.Event()

    async def write() -> None:
        for n in range(25):
            await stores[0].apply([Put(a_manifest("a", args=(str(n),))), Put(a_manifest("b", args=(str(n),)))], now=NOW)
        ended.set()

    async def read(store: Store) -> None:
        while not ended.is_set():
            page = await store.list_workloads(selector=Selector())
            assert len({w.args for w in page.items}) <= 1
            assert not page.items or max(w.resource_version for w in page.items) == page.resource_version
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        for store in stores[1:]:
            group.create_task(read(store))


async def test_a_write_whose_caller_has_gone_still_kicks_once_it_is_committed(store: Store) -> None:
    kicked = asyncio.Event()
    store.on_commit(kicked.set)
    writing = asyncio.create_task(store.apply([Put(a_manifest("web"))], now=NOW))
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.wait([writing])
    there = bool((await store.list_workloads(selector=Selector())).items)
    if there:
        await asyncio.wait_for(kicked.wait(), 5)
    await store.apply([Put(a_manifest("other"))], now=NOW)
    await asyncio.wait_for(kicked.wait(), 5)


def _said(message: str) -> EventDraft:
    return EventDraft(object_kind="Workload", object_id="w", type=EventType.NORMAL, reason="R", message=message)


@asynccontextmanager
async def _following(store: Store) -> AsyncIterator[list[Change]]:
    """All changes from now on, as a watcher gets them."""
    seen: list[Change] = []

    now = await store.resource_version()

    async def follow() -> None:
        at = now
        while True:
            changes = await store.changes_since(at, limit=7)
            seen.extend(changes)
            at = seen[-1].resource_version if seen else at
            if not changes:
                await asyncio.sleep(0.002)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(follow())
        yield seen
        task.cancel()


async def _until(holds: Callable[[], bool], bound_s: float = 20) -> None:
    async with asyncio.timeout(bound_s):
        while not holds():
            await asyncio.sleep(0.005)
