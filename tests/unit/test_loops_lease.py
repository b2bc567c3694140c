"""The leader's own lease: when it stops acting, whatever the store does meanwhile."""

import asyncio

from controller.loops.lease import TTL_S, Leadership
from controller.store import open_store
from controller.store.contract import Lease
from support.loop_world import ScriptedClock


class HangingStore:
    """One that gave the lease once, and answers nothing more."""

    def __init__(self) -> None:
        self.asked = 0

    async def acquire_lease(self, holder: str, *, ttl_s: float) -> Lease:
        return Lease(holder, 1, ttl_s, mine=True)

    async def renew_lease(self, holder: str, *, epoch: int, ttl_s: float) -> bool:
        self.asked += 1
        await asyncio.Event().wait()
        return True

    async def release_lease(self, holder: str, *, epoch: int) -> None:
        await asyncio.Event().wait()


async def test_a_leader_whose_renewal_hangs_has_stopped_when_its_lease_is_over() -> None:
    clock, store = ScriptedClock(), HangingStore()
    leadership = Leadership(store, clock, "me")
    term = await leadership.win()
    keeping = asyncio.create_task(leadership.keep(term))
    while clock.at < TTL_S - 0.5:
        await clock.pass_(0.5)
        await asyncio.sleep(0.001)
        assert not keeping.done()

    await clock.pass_(0.5)

    await asyncio.wait_for(keeping, 5)
    assert store.asked == 1


async def test_giving_up_a_lease_that_can_t_be_given_back_ends_too() -> None:
    clock, store = ScriptedClock(), HangingStore()
    leadership = Leadership(store, clock, "me")
    term = await leadership.win()
    giving_up = asyncio.create_task(leadership.give_up(term))
    await asyncio.sleep(0.001)

    await clock.pass_(5)

    await asyncio.wait_for(giving_up, 5)


async def test_the_lease_counts_from_when_it_was_asked_for_not_from_when_the_answer_came() -> None:
    clock = ScriptedClock()
    store = await open_store("memory://")

    class Slow:
        renew_lease, release_lease = staticmethod(store.renew_lease), staticmethod(store.release_lease)

        async def acquire_lease(self, holder: str, *, ttl_s: float) -> Lease:
            await clock.sleep(3)
            return await store.acquire_lease(holder, ttl_s=ttl_s)

    winning = asyncio.create_task(Leadership(Slow(), clock, "me").win())  # type: ignore[arg-type]
    await asyncio.sleep(0.001)
    await clock.pass_(3)

    assert (await asyncio.wait_for(winning, 5)).sure_until == TTL_S
    await store.close()
