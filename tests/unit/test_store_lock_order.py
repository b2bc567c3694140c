"""The order in which writing transactions ask for what PostgreSQL locks.

One rule: who asks in another order may meet one that waits for what it holds.
"""

from collections.abc import Collection
from typing import Any

import pytest

from builders import NOW, a_manifest, a_node_manifest
from controller.plan.action import Remove
from controller.store.contract import Delete, Put
from controller.store.memory import MemoryStore
from controller.store.memory_tables import MemoryTables
from support.store_script import StoreScript

ORDER = ("nodes", "classes", "workloads")


class Noting(MemoryTables):
    """Notes what is locked, in order."""

    def __init__(self, cluster_id: str) -> None:
        super().__init__(cluster_id, kept=(1000, 1000))
        self.locked: list[str] = []

    def nodes(self, ids: Collection[str] | None = None) -> Any:
        if ids:
            self.locked.append("nodes")
        return super().nodes(ids)

    def forgotten_nodes(self) -> Any:
        self.locked.append("nodes")
        return super().forgotten_nodes()

    def runtime_classes(self, *, keep: Collection[str] = ()) -> Any:
        if keep:
            self.locked.append("classes")
        return super().runtime_classes(keep=keep)

    def workloads(self, ids: Collection[str]) -> Any:
        self.locked.append("workloads")
        return super().workloads(ids)

    def keep_workloads(self, ids: Collection[str]) -> None:
        if ids:
            self.locked.append("workloads")


@pytest.fixture
async def script() -> StoreScript:
    """n1 with what has ended of a job, and a forgotten n2 with the same."""
    store = MemoryStore()
    store._tables = Noting(store.cluster_id)
    script = StoreScript(store)
    for node, job in (("n1", "job1"), ("n2", "job2")):
        await script.node(node)
        await script.put(job, restart_policy="Never")
        ended = await script.running(job, node=node)
        await script.report(script.seen(ended, "Succeeded", reason="Completed", released=True), node=node)
    await script.node("n2", ready=False)
    await store.forget_node("n2", now=NOW)
    return script


def locked(script: StoreScript) -> list[str]:
    tables = script.store._tables  # type: ignore[attr-defined]
    assert {"nodes", "workloads"} <= set(tables.locked)
    return list(tables.locked)


def forget(script: StoreScript) -> None:
    script.store._tables.locked.clear()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "writes",
    [
        [Put(a_manifest("web")), Put(a_node_manifest("n2"))],
        [Put(a_manifest("web")), Put(a_node_manifest("n9")), Delete("Node", "n1")],
        [Put(a_node_manifest("n2")), Delete("Workload", "job1", force=True)],
    ],
)
async def test_a_list_of_writes_asks_in_the_order_of_the_tables(script: StoreScript, writes: Any) -> None:
    forget(script)
    await script.store.apply(writes, now=NOW)
    assert locked(script) == sorted(locked(script), key=ORDER.index)


async def test_a_plan_asks_in_the_order_of_the_tables(script: StoreScript) -> None:
    (row,) = (await script.view("job1")).allocations
    await script.store.set_node_lost("n1", epoch=0, message="silent", now=NOW)
    view = await script.view("job1")
    forget(script)
    await script.act(Remove(row.id, "Deleted"), id_="job1", version=view.version)
    written = locked(script)[1:]  # the script's own look comes first
    assert written == sorted(written, key=ORDER.index)
    assert "nodes" in written
