"""The loops over the in-memory store and an agent that is an object: the same passes, without a socket."""

import asyncio
from dataclasses import replace

from builders import a_manifest, a_registration
from controller.exchange import ObservedAllocation
from controller.store.contract import AllocationFilter, Delete, EventFilter, Put
from kakuri.model import State
from kakuri.selector import Selector
from support.loop_world import World, a_world


async def allocations(world: World, id_: str) -> list[str]:
    page = await world.store.list_allocations(AllocationFilter(workload=id_))
    return [a.id for a in page.items]


async def test_an_applied_workload_runs_and_a_deleted_one_is_gone() -> None:
    async with a_world() as world:
        await world.put("web", replicas=2)

        async def runs() -> bool:
            return await world.state("web") == "Running" and len(world.agents.has) == 2

        await world.until("web runs", runs)
        await world.store.apply([Delete("Workload", "web")], now=world.clock.now())
        world.driver.workloads(["web"])

        async def gone() -> bool:
            page = await world.store.list_workloads(selector=Selector())
            return not page.items and not world.agents.has

        await world.until("web is gone", gone)


async def test_a_workload_that_no_kick_announced_is_found_by_the_sweep() -> None:
    async with a_world() as world:
        await asyncio.sleep(0.01)  # let the first sweep pass over nothing
        await world.store.apply([Put(a_manifest("web"))], now=world.clock.now())

        async def runs() -> bool:
            return await world.state("web") == "Running"

        await world.until("web runs", runs)


async def test_a_workload_that_waited_for_a_node_is_placed_when_one_registers() -> None:
    async with a_world(with_node=False) as world:
        await world.put("web")

        async def waits() -> bool:
            return (await world.store.get_workload("web")).status.reason == "Unschedulable"

        await world.until("web waits", waits)
        await world.store.register_node("n1", a_registration(ledger_uid=world.agents.ledger_uid), now=world.clock.now())
        world.driver.nodes()

        async def runs() -> bool:
            return await world.state("web") == "Running"

        await world.until("web runs", runs)


async def test_a_silent_node_shows_unknown_and_its_return_changes_nothing_that_runs() -> None:
    async with a_world() as world:
        await world.put("web")

        async def runs() -> bool:
            return await world.state("web") == "Running"

        await world.until("web runs", runs)
        before = await allocations(world, "web")
        await world.agents.go_away()

        async def unknown() -> bool:
            return await world.state("web") == "Unknown"

        await world.until("web is unknown", unknown)
        world.agents.away = False
        await world.until("web runs again", runs)
        assert await allocations(world, "web") == before
        assert world.agents.told == ["run web.0"]


async def test_an_agent_with_a_new_ledger_has_lost_what_ran_and_it_is_replaced() -> None:
    async with a_world() as world:
        await world.put("web")

        async def runs() -> bool:
            return await world.state("web") == "Running"

        await world.until("web runs", runs)
        [before] = await allocations(world, "web")
        lost = world.agents.has[before]
        world.agents.ledger_uid = "ledger-2"
        world.agents.has = {before: replace(lost, revision=0)}
        await world.store.register_node("n1", a_registration(ledger_uid="ledger-2"), now=world.clock.now())
        world.driver.nodes()
        await world.agents.say()

        async def replaced() -> bool:
            page = await world.store.list_allocations(AllocationFilter(workload="web"))
            return [a.state for a in page.items if a.id != before] == ["Running"]

        await world.until("web was replaced", replaced)
        assert world.agents.told[:3] == ["run web.0", "stop web.0", "run web.0"]


async def test_what_sql_has_not_is_stopped_and_what_is_left_of_it_removed() -> None:
    async with a_world() as world:
        ghost = ObservedAllocation(
            id="ghost.0.00000000", workload="ghost", slot=0, origin=world.store.cluster_id, revision=1, state="Running"
        )
        by_hand = replace(ghost, id="mine.0.00000000", workload="mine", origin="hand")
        world.agents.has = {ghost.id: ghost, by_hand.id: by_hand}
        await world.agents.say()

        async def stopped() -> bool:
            return f"stop orphan {ghost.id}" in world.agents.told

        await world.until("the ghost was stopped", stopped)
        assert not any("mine" in told for told in world.agents.told)


async def test_a_dispatch_that_got_no_answer_leaves_its_errands_for_the_next() -> None:
    async with a_world() as world:

        async def ready() -> bool:
            return (await world.store.get_node("n1")).status.ready

        await world.until("the node is ready", ready)
        await world.agents.go_away()
        await world.put("web")

        async def placed() -> bool:
            return bool((await world.store.owed("n1")).errands)

        await world.until("web is placed", placed)
        world.agents.away = False

        async def runs() -> bool:
            return await world.state("web") == "Running"

        await world.until("web runs", runs)
        assert world.agents.told == ["run web.0"]


async def test_an_idle_world_writes_nothing() -> None:
    async with a_world() as world:
        await world.put("web")

        async def runs() -> bool:
            return await world.state("web") == "Running"

        await world.until("web runs", runs)
        before = await world.store.resource_version()
        for _ in range(100):
            await world.clock.pass_(1)
            await asyncio.sleep(0.002)

        assert await world.store.resource_version() == before
        events = await world.store.list_events(EventFilter(object_id="web"))
        assert all(e.count == 1 for e in events.items)
        assert await world.state("web") == State.RUNNING
