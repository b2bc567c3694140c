"""A restored database: nothing is started or ended by it before a person has confirmed it."""

from datetime import timedelta

from builders import NOW
from support.loop_world import a_world


async def test_while_held_nodes_are_read_and_told_nothing() -> None:
    async with a_world() as world:
        await world.put("before")

        async def runs() -> bool:
            return await world.state("before") == "Running"

        await world.until("before runs", runs)
        world.agents.told.clear()
        version = await world.store.resource_version()
        await world.store.adopt_restored(epoch=1_000, resource_version=version + 1_000, now=NOW + timedelta(hours=1))
        await world.put("after")

        async def read() -> bool:
            hold = await world.store.hold()
            return hold is not None and not hold.unread

        await world.until("the inventory is read", read)
        for _ in range(50):
            await world.clock.pass_(0.5)
            assert not world.agents.told
        assert await world.state("after") == "Pending"

        await world.store.confirm_restore(now=world.clock.now())

        async def both_run() -> bool:
            return {await world.state("before"), await world.state("after")} == {"Running"}

        await world.until("both run", both_run)
        # What runs is told again, since its revision may be one that the node has seen before; that starts nothing.
        assert world.agents.told == ["run before.0", "run after.0"]
