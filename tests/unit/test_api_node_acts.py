"""Drain, forget, release and forced deletion over HTTP."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from builders import NOW, later
from controller.api.ports import AgentRefused, AgentUnreachable
from controller.exchange import Released
from support.http_api import RunningApi, running_api
from support.store_script import StoreScript


@pytest.fixture
async def api() -> AsyncIterator[RunningApi]:
    async with running_api() as running:
        yield running


@pytest.fixture
async def script(api: RunningApi) -> StoreScript:
    """n1 with one running allocation of web, and n2."""
    script = StoreScript(api.store, now=NOW)
    await script.node()
    await script.node("n2")
    await script.put()
    await script.running()
    api.clock.now = later(60)
    return script


async def test_a_drain_tells_how_far_it_has_come_until_it_is_ended(api: RunningApi, script: StoreScript) -> None:
    begun = await api.post("/nodes/n1/drain", {"deadline_s": 600})
    assert begun.status == 202
    (left,) = begun.body.pop("left")
    assert (left["allocation"], left["workload"], left["state"]) == ("web.0.00000000", "web", "Running")
    assert "about to be stopped" in left["why"]
    assert begun.body["deadline_at"] > begun.body["asked_at"]
    rest = {"node": "n1", "state": "Draining", "ready": True, "waiting": [], "moved": 0, "by_hand": []}
    assert rest.items() <= begun.body.items()
    assert api.kicks.workloads_ == ["web"]
    assert (await api.get("/nodes/n1")).body["schedulable"] is False

    again = await api.get("/nodes/n1/drain")
    assert (again.status, again.body["left"]) == (200, [left])
    ended = await api.delete("/nodes/n1/drain")
    assert (ended.status, "drain" in ended.body["status"], ended.body["schedulable"]) == (200, False, False)
    after = await api.get("/nodes/n1/drain")
    assert (after.status, after.body["reason"]) == (404, "NotDraining")


async def test_a_drain_without_a_deadline_keeps_the_one_it_has_and_null_removes_it(
    api: RunningApi, script: StoreScript
) -> None:
    first = (await api.post("/nodes/n1/drain", {"deadline_s": 600})).body["deadline_at"]
    assert (await api.post("/nodes/n1/drain", {})).body["deadline_at"] == first
    assert "deadline_at" not in (await api.post("/nodes/n1/drain", {"deadline_s": None})).body


async def test_progress_is_planned_for_what_the_drain_is_about_alone(
    api: RunningApi, script: StoreScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    await script.put("job", restart_policy="Never")
    done = await script.running("job")
    await script.report(script.seen(done, "Succeeded", reason="Completed", exit_code=0, released=True))
    asked: list[list[str]] = []
    load = api.store.load_snapshot

    async def watched(ids: Any, **fields: Any) -> Any:
        asked.append(list(ids))
        return await load(ids, **fields)

    monkeypatch.setattr(api.store, "load_snapshot", watched)
    await api.post("/nodes/n1/drain", {})
    assert asked == [["web"]]


async def test_an_empty_node_is_drained_at_once(api: RunningApi, script: StoreScript) -> None:
    answer = await api.post("/nodes/n2/drain", {})
    assert (answer.status, answer.body["state"]) == (202, "Drained")
    assert "deadline_at" not in answer.body


@pytest.mark.parametrize(
    "body", [{"deadline_s": -1}, {"deadline_s": "10m"}, {"deadline_s": 10**9}, {"deadline": 5}, [], {"deadline_s": 1.5}]
)
async def test_a_drain_that_is_not_understood_is_refused(api: RunningApi, script: StoreScript, body: Any) -> None:
    assert (await api.post("/nodes/n1/drain", body)).status == 422
    assert (await api.get("/nodes/n1/drain")).status == 404


@pytest.mark.parametrize("act", ["drain", "forget", "release"])
async def test_acts_on_a_node_that_is_not_there_are_not_found(api: RunningApi, act: str) -> None:
    for id_ in ("n9", "NO_NAME"):
        assert (await api.post(f"/nodes/{id_}/{act}", {})).status == 404


async def test_only_a_silent_node_is_forgotten(api: RunningApi, script: StoreScript) -> None:
    refused = await api.send("POST", "/nodes/n1/forget")
    assert (refused.status, refused.body["reason"]) == (409, "InUse")
    assert "kakuri drain n1" in refused.body["detail"]
    await script.node(ready=False)
    forgotten = await api.send("POST", "/nodes/n1/forget")
    assert (forgotten.status, forgotten.body) == (200, {"kind": "Node", "id": "n1"})
    assert api.kicks.workloads_ == ["web"], "it is placed anew soon"
    assert (await api.get("/nodes/n1")).status == 404
    assert [n["id"] for n in (await api.get("/nodes")).body["items"]] == ["n2"]
    # Its allocations can still be read, and their node need not be.
    assert (await api.get("/allocations/web.0.00000000")).body["reason"] == "NodeLost"
    assert (await api.get("/allocations?node=n1")).body["items"][0]["state"] == "Failed"


async def test_a_watch_is_told_that_a_forgotten_node_is_gone(api: RunningApi, script: StoreScript) -> None:
    await script.node(ready=False)
    version = (await api.get("/nodes")).body["resource_version"]
    async with api.watch(f"/nodes?watch=1&resource_version={version}") as watch:
        await api.send("POST", "/nodes/n1/forget")
        assert (await watch.next())[:2] == ("DELETED", "n1")


async def test_a_forced_deletion_is_gone_at_once_and_its_node_shows_what_it_left(
    api: RunningApi, script: StoreScript
) -> None:
    before = api.kicks.nodes_
    answer = await api.delete("/workloads/web?force=1")
    assert (answer.status, answer.body) == (200, {"kind": "Workload", "id": "web"})
    assert api.kicks.nodes_ > before, "the node has something to be told"
    assert (await api.get("/workloads/web")).status == 404
    (tombstone,) = (await api.get("/nodes/n1")).body["status"]["tombstones"]
    assert (tombstone["id"], tombstone["reason"]) == ("web.0.00000000", "ForceDeleted")
    events = (await api.get("/events?object_kind=Workload&object_id=web")).body["items"]
    assert [e["type"] for e in events if e["reason"] == "ForceDeleted"] == ["Warning"]


@pytest.mark.parametrize("path", ["/nodes/n1?force=1", "/runtime-classes/native?force=1", "/workloads/web?force=yes"])
async def test_force_is_for_workloads(api: RunningApi, script: StoreScript, path: str) -> None:
    assert (await api.delete(path)).status == 400


# -- release -----------------------------------------------------------------------------------------------------------
async def test_another_clusters_node_is_asked_for_by_that_clusters_id(api: RunningApi, script: StoreScript) -> None:
    answer = await api.post("/nodes/n1/release", {"held_by": "cluster-b", "stop": True})
    assert (answer.status, answer.body) == (200, {"node": "n1", "released": True, "left": []})
    assert api.releases.asked == [("127.0.0.1:9001", "cluster-b", True)]
    assert (await api.get("/nodes/n1")).status == 200, "it is ours from now on"


async def test_what_keeps_a_foreign_release_is_told(api: RunningApi, script: StoreScript) -> None:
    api.releases.answers = [
        AgentRefused("it is held by cluster-c"),
        AgentUnreachable("nobody answers"),
        Released(released=False, left=("x.0.00000000",)),
        Released(released=False, left=("x.0.00000000",)),
    ]
    asked = [await api.post("/nodes/n1/release", {"held_by": "cluster-b"}) for _ in range(3)]
    assert [(a.status, a.body["reason"]) for a in asked] == [
        (409, "AgentRefused"),
        (503, "AgentUnreachable"),
        (409, "NodeInUse"),
    ]
    assert "x.0.00000000" in asked[2].body["detail"]
    stopping = await api.post("/nodes/n1/release", {"held_by": "cluster-b", "stop": True})
    assert (stopping.status, stopping.body["left"]) == (202, ["x.0.00000000"])


async def test_our_own_node_is_released_when_nothing_runs_there_and_is_gone_then(
    api: RunningApi, script: StoreScript
) -> None:
    refused = await api.post("/nodes/n1/release", {})
    assert (refused.status, refused.body["reason"]) == (409, "NodeInUse")
    assert "web.0.00000000" in refused.body["detail"]
    assert api.releases.asked == []

    stopping = await api.post("/nodes/n1/release", {"stop": True})
    assert (stopping.status, stopping.body["left"]) == (202, ["web.0.00000000"])
    assert (await api.get("/nodes/n1/drain")).status == 200, "it is emptied the way a drain does it"
    assert api.releases.asked == []

    await script.report(script.seen("web.0.00000000", "Failed", reason="Stopped", released=True))
    released = await api.post("/nodes/n1/release", {"stop": True})
    assert (released.status, released.body["released"]) == (200, True)
    assert api.releases.asked == [("127.0.0.1:9001", api.store.cluster_id, True)]
    assert (await api.get("/nodes/n1")).status == 404


@pytest.mark.parametrize("before", [None, {}])
@pytest.mark.parametrize("answer", [Released(released=False, left=("hand.0.x",)), AgentUnreachable("nobody answers")])
async def test_a_release_that_comes_to_nothing_leaves_the_node_as_it_was(
    api: RunningApi, script: StoreScript, answer: Any, before: Any
) -> None:
    if before is not None:
        await api.post("/nodes/n2/drain", before)
    was = (await api.get("/nodes/n2")).body
    api.releases.answers = [answer]
    assert (await api.post("/nodes/n2/release", {})).status in {409, 503}
    now = (await api.get("/nodes/n2")).body
    assert (now["schedulable"], now["status"].get("drain")) == (was["schedulable"], was["status"].get("drain"))


async def test_a_node_without_an_agent_has_none_to_release(api: RunningApi) -> None:
    await api.post("/nodes", {"kind": "Node", "id": "n5"})
    answer = await api.post("/nodes/n5/release", {})
    assert (answer.status, answer.body["reason"]) == (409, "NoAgent")
