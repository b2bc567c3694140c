"""Watches: nothing is missed, a selection is kept to, and neither the server nor a slow reader hangs on the other."""

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest

from controller.api import server
from controller.api import watch as hub
from controller.api.watch import News, Subscription
from controller.plan.reconcile import plan
from controller.store.contract import Expired, Unavailable
from kakuri.model import EventDraft, EventType
from support.http_api import BOUND_S, RunningApi, registration, running_api, workload


@pytest.fixture
async def api() -> AsyncIterator[RunningApi]:
    async with running_api() as running:
        yield running


async def version(api: RunningApi, path: str = "/workloads") -> str:
    return str((await api.get(path)).body["resource_version"])


async def test_from_a_lists_version_each_change_comes_with_the_present_object(api: RunningApi) -> None:
    await api.post("/workloads", workload("old"))
    async with api.watch(f"/workloads?watch=1&resource_version={await version(api)}") as watch:
        await api.post("/workloads", workload("new"))
        type_, id_, object_ = await watch.next()
        assert (type_, id_, object_) == ("ADDED", "new", (await api.get("/workloads/new")).body)
        await api.put("/workloads/old", workload("old", replicas=2))
        type_, id_, object_ = await watch.next()
        assert (type_, id_, object_["replicas"]) == ("MODIFIED", "old", 2)
        await api.put("/workloads/new", workload("new", replicas=3))
        type_, id_, object_ = await watch.next()
        assert (type_, id_, object_["replicas"]) == ("MODIFIED", "new", 3)


async def test_what_happened_between_the_list_and_the_watch_comes_first(api: RunningApi) -> None:
    since = await version(api)
    await api.post("/workloads", workload("a"))
    await api.post("/workloads", workload("b"))
    async with api.watch(f"/workloads?watch=1&resource_version={since}") as watch:
        await api.post("/workloads", workload("c"))
        assert [(await watch.next())[:2] for _ in range(3)] == [("ADDED", "a"), ("ADDED", "b"), ("ADDED", "c")]


async def test_without_a_version_it_begins_with_all_there_is_and_a_bookmark(api: RunningApi) -> None:
    await api.post("/workloads", workload("a"))
    await api.post("/workloads", workload("b"))
    now = await version(api)
    async with api.watch("/workloads?watch=1") as watch:
        assert [(await watch.next())[:2] for _ in range(2)] == [("ADDED", "a"), ("ADDED", "b")]
        bookmark = await watch.line()
        assert (bookmark["type"], bookmark["resource_version"]) == ("BOOKMARK", now)
        await api.put("/workloads/a", workload("a", replicas=2))
        await api.post("/workloads", workload("c"))
        assert [(await watch.next())[:2] for _ in range(2)] == [("MODIFIED", "a"), ("ADDED", "c")]


async def test_whoever_comes_back_with_the_last_lines_version_misses_nothing(api: RunningApi) -> None:
    seen = []
    since = await version(api)
    await api.post("/apply", {"objects": [workload(f"w{i}") for i in range(5)]})
    for _ in range(5):
        async with api.watch(f"/workloads?watch=1&resource_version={since}") as watch:
            line = await watch.line()
            seen.append(line["object"]["id"])
            since = line["resource_version"]
    assert seen == [f"w{i}" for i in range(5)]


async def test_a_selection_sees_what_comes_into_it_and_what_leaves_it(api: RunningApi) -> None:
    await api.post("/workloads", workload("mine", labels={"app": "web"}))
    await api.post("/workloads", workload("other"))
    since = await version(api)
    async with api.watch(f"/workloads?watch=1&selector=app%3Dweb&resource_version={since}") as watch:
        await api.put("/workloads/other", workload("other", replicas=2))
        await api.put("/workloads/mine", workload("mine", labels={"app": "web"}, replicas=2))
        assert (await watch.next())[:2] == ("MODIFIED", "mine")
        await api.put("/workloads/other", workload("other", labels={"app": "web"}))
        assert (await watch.next())[:2] == ("ADDED", "other")
        await api.put("/workloads/mine", workload("mine"))
        assert await watch.next() == ("DELETED", "mine", {"kind": "Workload", "id": "mine"})
        await api.put("/workloads/mine", workload("mine", replicas=5))
        await api.put("/workloads/other", workload("other", labels={"app": "web"}, replicas=5))
        assert (await watch.next())[:2] == ("MODIFIED", "other")


async def test_what_left_the_selection_before_the_watch_began_is_told(api: RunningApi) -> None:
    await api.post("/workloads", workload("mine", labels={"app": "web"}))
    since = await version(api, "/workloads?selector=app%3Dweb")
    await api.put("/workloads/mine", workload("mine"))
    async with api.watch(f"/workloads?watch=1&selector=app%3Dweb&resource_version={since}") as watch:
        assert (await watch.next())[:2] == ("DELETED", "mine")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("path", ["/nodes?", "/nodes?selector=app%3Dweb&"])
async def test_a_mirror_kept_by_watches_that_break_equals_the_list(seed: int, path: str) -> None:
    random = Random(seed)
    async with running_api(bookmark_s=0.01) as api:

        async def change() -> None:
            id_ = f"n{random.randrange(6)}"
            if random.random() < 0.3:
                await api.delete(f"/nodes/{id_}")
            else:
                await api.put(f"/nodes/{id_}", {"labels": {"app": random.choice(["web", "db"])}})

        listed = (await api.get(path[:-1])).body
        mirror, since = {o["id"]: o for o in listed["items"]}, int(listed["resource_version"])
        for turn in range(10):
            for _ in range(random.randrange(8)):
                await change()
            async with api.watch(f"{path}watch=1&resource_version={since}") as watch:
                for _ in range(random.randrange(8)):
                    await change()
                newest = int(await version(api))
                goal = newest if turn == 9 else min(newest, since + random.randrange(6))
                while since < goal:
                    line = await watch.line()
                    since = int(line["resource_version"])
                    if line["type"] == "DELETED":
                        mirror.pop(line["object"]["id"], None)
                    elif line["type"] != "BOOKMARK":
                        mirror[line["object"]["id"]] = line["object"]
        assert mirror == {o["id"]: o for o in (await api.get(path[:-1])).body["items"]}


async def test_nodes_classes_and_events_can_be_watched(api: RunningApi) -> None:
    since = await version(api)
    async with (
        api.watch(f"/nodes?watch=1&resource_version={since}") as nodes,
        api.watch(f"/runtime-classes?watch=1&resource_version={since}") as classes,
        api.watch(f"/events?watch=1&object_id=n9&resource_version={since}") as events,
    ):
        await api.put("/nodes/n1/registration", registration())
        await api.post("/runtime-classes", {"id": "crun", "handler": "crun"})
        draft = EventDraft(object_kind="Node", object_id="n9", type=EventType.WARNING, reason="R", message="m")
        await api.store.add_events([draft], now=api.clock())
        assert (await nodes.next())[:2] == ("ADDED", "n1")
        assert (await classes.next())[:2] == ("ADDED", "crun")
        type_, _, event = await events.next()
        assert (type_, event["kind"], event["object_id"], event["count"]) == ("ADDED", "Event", "n9", 1)
        await api.delete("/nodes/n1")
        assert await nodes.next() == ("DELETED", "n1", {"kind": "Node", "id": "n1"})


async def test_allocations_of_one_workload_can_be_watched(api: RunningApi) -> None:
    await api.put("/nodes/n1/registration", registration())
    await api.store.set_node_ready("n1", epoch=0, ready=True, reason="Ready", message="", now=api.clock())
    for id_ in ("mine", "other"):
        await api.post("/workloads", workload(id_))
    async with api.watch(f"/allocations?watch=1&workload=mine&resource_version={await version(api)}") as watch:
        await place_all(api, ["other", "mine"])
        type_, _, allocation = await watch.next()
        assert (type_, allocation["kind"], allocation["workload"], allocation["node"]) == (
            "ADDED",
            "Allocation",
            "mine",
            "n1",
        )
    [listed] = (await api.get("/allocations?workload=mine")).body["items"]
    assert listed == allocation
    assert (await api.get(f"/allocations/{allocation['id']}")).body == allocation


async def place_all(api: RunningApi, ids: list[str]) -> None:
    now = api.clock()
    lease = await api.store.acquire_lease("test", ttl_s=60)
    snapshot = await api.store.load_snapshot(ids, now=now, seed="s")
    await api.store.apply_plan(plan(snapshot), epoch=lease.epoch, now=now)


@pytest.mark.parametrize("since", ["999999", "9223372036854775807"])
async def test_a_version_that_was_never_reached_is_410(api: RunningApi, since: str) -> None:
    answer = await api.get(f"/workloads?watch=1&resource_version={since}")
    assert (answer.status, answer.body["reason"]) == (410, "Expired")


async def test_a_silent_watch_says_up_to_where_it_is() -> None:
    async with running_api(bookmark_s=0.02) as api:
        since = await version(api)
        async with api.watch(f"/nodes?watch=1&resource_version={since}") as watch:
            line = await watch.line()
            assert line == {"type": "BOOKMARK", "object": {"kind": "Node"}, "resource_version": since}
            await api.post("/workloads", workload())
            now = await version(api)
            while (line := await watch.line())["resource_version"] != now:
                assert line["type"] == "BOOKMARK"


async def test_a_watch_ends_in_order_and_at_once_when_the_server_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SHUTDOWN_S", 100 * BOUND_S)  # what waits for that fails
    async with running_api() as api, api.watch("/workloads?watch=1") as watch:
        assert (await watch.next())[0] == "BOOKMARK"
        async with asyncio.timeout(BOUND_S):
            await api.stop()
        assert await watch.ended()


async def test_another_controllers_commit_is_seen_without_a_kick(
    api: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "POLL_S", 0.02)
    async with api.watch("/workloads?watch=1") as watch:
        assert (await watch.next())[0] == "BOOKMARK"
        api.store._kicks.clear()  # type: ignore[attr-defined]
        await api.post("/workloads", workload("a"))
        assert (await watch.next())[:2] == ("ADDED", "a")


async def test_a_store_that_is_away_for_a_while_ends_no_watch(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "POLL_S", 0.02)
    async with api.watch("/workloads?watch=1") as watch:
        assert (await watch.next())[0] == "BOOKMARK"
        failed = asyncio.Event()

        async def away(*_: object, **__: object) -> list[object]:
            failed.set()
            raise Unavailable("the disk is full")

        with monkeypatch.context() as broken:
            broken.setattr(api.store, "changes_since", away)
            await api.post("/workloads", workload("a"))
            async with asyncio.timeout(BOUND_S):
                await failed.wait()
        assert (await watch.next())[:2] == ("ADDED", "a")


async def test_a_log_that_is_no_longer_held_ends_the_watch_in_order(
    api: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with api.watch("/workloads?watch=1") as watch:
        assert (await watch.next())[0] == "BOOKMARK"

        async def pruned(*_: object, **__: object) -> list[object]:
            raise Expired("that version is not held any more")

        monkeypatch.setattr(api.store, "changes_since", pruned)
        await api.post("/workloads", workload("a"))
        assert await watch.ended()


async def test_a_watcher_that_is_too_slow_is_ended_and_holds_nothing() -> None:
    subscription = Subscription("Workload", 0)
    news = [News(i, "a", None, "") for i in range(hub.MAX_QUEUED + 1)]
    subscription.offer(news, len(news))
    assert subscription.ended
    assert await subscription.take(1) == []
    subscription.offer(news[:1], len(news))
    assert await subscription.take(1) == []


async def test_a_change_of_our_own_waits_for_no_poll(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "POLL_S", 100 * BOUND_S)
    async with api.watch("/workloads?watch=1") as watch:
        assert (await watch.next())[0] == "BOOKMARK"
        for i in range(20):
            await api.post("/workloads", workload(f"w{i}"))
            assert (await watch.next())[:2] == ("ADDED", f"w{i}")
