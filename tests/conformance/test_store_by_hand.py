"""What was started at an agent by hand: listed and counted with the node, on every store, and never a row of ours."""

from builders import NOW
from controller.plan.snapshot import NodeView
from controller.store.contract import AllocationFilter
from support.store_script import StoreScript

RUN = {"origin": "hand", "memory_mb": 64, "cpu_millicores": 250}


async def node_view(script: StoreScript) -> NodeView:
    [node] = (await script.store.load_snapshot([], now=NOW, seed="")).nodes
    return node


async def test_a_run_by_hand_is_listed_and_counted_until_nothing_is_left_of_it(script: StoreScript) -> None:
    await script.node()
    recorded = await script.report(script.seen("mine.0.11111111", **RUN))
    assert not recorded.orphans

    status = (await script.store.get_node("n1")).status
    assert [(r.id, r.state, r.memory_mb, r.cpu_millicores) for r in status.by_hand] == [
        ("mine.0.11111111", "Running", 64, 250)
    ]
    assert (status.allocated_memory_mb, status.allocated_cpu_millicores, status.allocations) == (64, 250, 0)
    view = await node_view(script)
    assert (view.used_memory_mb, view.used_cpu_millicores) == (64, 250)
    assert not (await script.store.list_allocations(AllocationFilter())).items

    ended = await script.report(script.seen("mine.0.11111111", "Succeeded", released=True, **RUN))
    assert ended.released
    assert (await script.store.get_node("n1")).status.by_hand == ()
    assert (await node_view(script)).used_memory_mb == 0


async def test_the_same_said_again_writes_nothing_and_a_full_report_forgets_what_it_lacks(script: StoreScript) -> None:
    await script.node()
    first, second = (script.seen(f"{name}.0.11111111", **RUN) for name in ("mine", "yours"))
    await script.report(first)
    await script.report(second)
    version = await script.store.resource_version()
    await script.report(first)
    await script.report(first, second, full=True)
    assert await script.store.resource_version() == version

    await script.report(second, full=True)
    assert [r.id for r in (await script.store.get_node("n1")).status.by_hand] == [second.id]
    await script.report(gone=(second.id,))
    assert (await script.store.get_node("n1")).status.by_hand == ()


async def test_what_another_cluster_started_is_not_by_hand(script: StoreScript) -> None:
    await script.node()
    await script.report(script.seen("theirs.0.11111111", **RUN | {"origin": "another-cluster"}), full=True)
    assert (await script.store.get_node("n1")).status.by_hand == ()
