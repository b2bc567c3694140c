"""A plan that had to wait for a node's lock: what happened to nodes meanwhile counts."""

from collections.abc import Callable, Collection

import pytest

from builders import NOW
from controller.plan.action import Plan, Remove, Stop, WorkloadPlan
from controller.store.memory import MemoryStore
from controller.store.memory_tables import MemoryTables
from controller.store.records import NodeRecord
from controller.store.rules import agents, nodes
from support.store_script import StoreScript


class Waiting(MemoryTables):
    """Once, another transaction comes before this one has the nodes that it asked for."""

    other: Callable[[], None] | None = None

    def nodes(self, ids: Collection[str] | None = None) -> dict[str, NodeRecord]:
        other, self.other = self.other, None
        if other is not None:
            other()
        return super().nodes(ids)


@pytest.mark.parametrize("how", ["forgotten", "lost"])
async def test_what_a_node_can_not_be_told_any_more_is_not_waited_for(how: str) -> None:
    store = MemoryStore()
    tables = store._tables = Waiting(store.cluster_id, kept=(1000, 1000))
    script = StoreScript(store)
    await script.node()
    await script.put()
    allocation = await script.running()
    await script.act(Stop(allocation, "Deleted"))
    await script.accept(allocation)
    await script.report(script.seen(allocation, "Failed", revision=2, released=True))
    await script.node(ready=False)
    view = await script.view()
    step = WorkloadPlan("web", view.version, (Remove(allocation, "Deleted"),), view.status, status_changed=False)

    def forget() -> None:
        tables.write(nodes.forget(tables, "n1", released=False, now=NOW)[1])

    def lose() -> None:
        tables.write(agents.set_node_lost(tables, "n1", epoch=0, message="silent", now=NOW)[1])

    tables.other = {"forgotten": forget, "lost": lose}[how]
    applied = await store.apply_plan(Plan((step,)), epoch=0, now=NOW)
    assert applied.again == {"web"}
    assert (await script.view()).allocations == ()
