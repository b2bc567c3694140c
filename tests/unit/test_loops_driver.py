"""The loops over the in-memory store and an agent that is an object: the same passes, without a socket."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest
from structlog.testing import capture_logs

from builders import NOW, a_manifest, a_registration
from controller.exchange import Errand, ObservedAllocation, Report, Sent
from controller.loops.dispatch import DispatchPass
from controller.loops.driver import Driver
from controller.loops.lease import Leadership
from controller.loops.observe import SILENT_AFTER_S, ObservePass
from controller.loops.reap import Orphans
from controller.loops.reconcile import ReconcilePass
from controller.nodes import NodeRefused, NodeUnreachable
from controller.store import open_store
from controller.store.contract import AgentAddress, AllocationFilter, Delete, EventFilter, Fenced, Put, Store
from kakuri.model import Desired, State
from kakuri.selector import Selector


@dataclass
class ScriptedClock:
    """Time that passes only when told; a sleep ends when its time has come."""

    at: float = 0.0
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.at)

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        until = self.at + seconds
        async with self.moved:
            await self.moved.wait_for(lambda: self.at >= until)

    async def pass_(self, seconds: float) -> None:
        async with self.moved:
            self.at += seconds
            self.moved.notify_all()


@dataclass
class ObjectAgents:
    """Agents that accept all they are told, and run it at once."""

    ledger_uid: str = "ledger-1"
    away: bool = False
    told: list[str] = field(default_factory=list)
    has: dict[str, ObservedAllocation] = field(default_factory=dict)
    revision: int = 1
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def observe(self, node: str, address: str, *, epoch: int, instance: str, since: int, wait_s: float) -> Report:
        if self.away:
            raise NodeUnreachable("nobody there")
        async with self.changed:
            if since == self.revision and wait_s:
                await self.changed.wait_for(lambda: self.revision != since or self.away)
        if self.away:
            raise NodeUnreachable("hung up")
        return Report(
            node=node,
            instance="i",
            revision=self.revision,
            ledger_uid=self.ledger_uid,
            full=True,
            allocations=tuple(self.has.values()),
        )

    async def apply(
        self,
        address: str,
        *,
        epoch: int,
        ledger_uid: str,
        errands: Sequence[Errand],
        stops: Sequence[str] = (),
        removals: Sequence[str] = (),
    ) -> list[Sent]:
        if self.away:
            raise NodeUnreachable("nobody there")
        for errand in errands:
            allocation = errand.allocation
            self.told.append(f"{allocation.desired} {allocation.workload}.{allocation.slot}")
            match allocation.desired:
                case Desired.RUN:
                    self.has[allocation.id] = ObservedAllocation(
                        id=allocation.id,
                        workload=allocation.workload,
                        slot=allocation.slot,
                        origin=self.cluster_id,
                        revision=allocation.revision,
                        state="Running",
                        started_once=True,
                    )
                case Desired.STOP:
                    self.end(allocation.id, "Stopped", revision=allocation.revision)
                case Desired.REMOVE:
                    self.has.pop(allocation.id, None)
        self.told.extend(f"stop orphan {i}" for i in stops)
        self.told.extend(f"remove orphan {i}" for i in removals)
        await self.say()
        return [Sent(e.allocation.id, e.allocation.revision, "accepted") for e in errands]

    cluster_id: str = ""

    def end(self, id_: str, reason: str, *, revision: int, exit_code: int = 0) -> None:
        self.has[id_] = replace(
            self.has[id_],
            state="Failed" if exit_code else "Succeeded",
            reason=reason,
            exit_code=exit_code,
            released=True,
            revision=revision,
            finished_at=NOW,
        )

    async def say(self) -> None:
        async with self.changed:
            self.revision += 1
            self.changed.notify_all()

    async def go_away(self) -> None:
        async with self.changed:
            self.away = True
            self.changed.notify_all()


@dataclass
class World:
    store: Store
    agents: ObjectAgents
    clock: ScriptedClock
    driver: Driver

    async def put(self, id_: str, **fields: object) -> None:
        await self.store.apply([Put(a_manifest(id_, **fields))], now=self.clock.now())
        self.driver.workloads([id_])

    async def until(self, what: str, holds: object) -> None:
        """Turns the event loop until it holds; time in the world passes too, so that timers go off."""
        assert callable(holds)
        for _ in range(400):
            if await holds():
                return
            await asyncio.sleep(0.002)
            await self.clock.pass_(0.1)
        raise AssertionError(what)

    async def state(self, id_: str) -> str:
        return (await self.store.get_workload(id_)).status.state


@asynccontextmanager
async def a_world(*, with_node: bool = True) -> AsyncIterator[World]:
    store = await open_store("memory://")
    agents = ObjectAgents(cluster_id=store.cluster_id)
    clock = ScriptedClock()
    if with_node:
        await store.register_node("n1", a_registration(ledger_uid=agents.ledger_uid), now=clock.now())
    driver = Driver(store, agents, clock, "me")
    loops = asyncio.create_task(driver.run())
    try:
        yield World(store, agents, clock, driver)
    finally:
        loops.cancel()
        await asyncio.gather(loops, return_exceptions=True)
        await store.close()


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


async def test_a_pass_that_saw_an_older_state_writes_nothing_and_is_made_again() -> None:
    store = await open_store("memory://")
    clock = ScriptedClock()
    lease = await store.acquire_lease("me", ttl_s=15)
    await store.apply([Put(a_manifest("web"))], now=NOW)

    class Overtaken:
        """A store in which someone writes between the load and the apply."""

        async def load_snapshot(self, ids: Sequence[str], *, now: datetime, seed: str) -> object:
            snapshot = await store.load_snapshot(ids, now=now, seed=seed)
            await store.apply([Put(a_manifest("web", labels={"a": "b"}))], now=now)
            return snapshot

        apply_plan = staticmethod(store.apply_plan)

    passed = await ReconcilePass(Overtaken(), clock, lambda: "seed")(["web"], epoch=lease.epoch)  # type: ignore[arg-type]

    assert passed.applied.stale == {"web"}
    assert not passed.applied.written
    await store.close()


async def test_a_node_is_silent_only_after_its_time() -> None:
    store = await open_store("memory://")
    clock = ScriptedClock()
    agents = ObjectAgents(cluster_id=store.cluster_id, away=True)
    node, _ = await store.register_node("n1", a_registration(ledger_uid="ledger-1"), now=NOW)
    await store.set_node_ready("n1", epoch=0, ready=True, reason="Ready", message="", now=NOW)
    observe = ObservePass(agents, store, clock, AgentAddress("n1", node.status.address, True, "ledger-1"))

    assert not (await observe(epoch=0)).turned
    assert (await store.get_node("n1")).status.ready
    await clock.pass_(SILENT_AFTER_S)
    assert (await observe(epoch=0)).turned

    seen = (await store.get_node("n1")).status
    assert not seen.ready
    assert "nobody there" in seen.message
    await store.close()


async def test_what_an_agent_said_is_one_line_of_the_log_when_it_was_news() -> None:
    store = await open_store("memory://")
    agents = ObjectAgents(cluster_id=store.cluster_id)
    node, _ = await store.register_node("n1", a_registration(ledger_uid="ledger-1"), now=NOW)
    ghost = ObservedAllocation("ghost.0.00000000", "ghost", 0, store.cluster_id, revision=1, state="Running")
    agents.has = {ghost.id: ghost}
    with capture_logs() as lines:
        observe = ObservePass(agents, store, ScriptedClock(), AgentAddress("n1", node.status.address, True, "ledger-1"))
        await observe(epoch=0)
        agents.has = {}
        await agents.say()
        await observe(epoch=0)

    [line] = [x for x in lines if x["event"] == "observed"]
    assert (line["node"], line["orphans"]) == ("n1", [ghost.id])
    await store.close()


async def test_a_node_that_refuses_this_controller_says_so_at_once() -> None:
    store = await open_store("memory://")
    node, _ = await store.register_node("n1", a_registration(ledger_uid="ledger-1"), now=NOW)

    class AnothersAgent(ObjectAgents):
        async def observe(self, node: str, address: str, **_: object) -> Report:
            raise NodeRefused(f"the agent at {address} is bound to another cluster")

    agents = AnothersAgent(cluster_id=store.cluster_id)
    observe = ObservePass(agents, store, ScriptedClock(), AgentAddress("n1", node.status.address, False, "ledger-1"))
    await observe(epoch=0)

    seen = (await store.get_node("n1")).status
    assert (seen.ready, seen.reason) == (False, "Refused")
    assert "bound to another cluster" in seen.message
    await store.close()


async def test_a_leader_that_wakes_up_late_calls_no_node_silent_that_the_next_one_hears() -> None:
    store = await open_store("memory://")
    clock = ScriptedClock()
    node, _ = await store.register_node("n1", a_registration(ledger_uid="ledger-1"), now=NOW)
    there = AgentAddress("n1", node.status.address, True, "ledger-1")
    first = await store.acquire_lease("first", ttl_s=0)
    late = ObservePass(ObjectAgents(cluster_id=store.cluster_id, away=True), store, clock, there)
    second = await store.acquire_lease("second", ttl_s=15)
    await ObservePass(ObjectAgents(cluster_id=store.cluster_id), store, clock, there)(epoch=second.epoch)
    await clock.pass_(SILENT_AFTER_S)

    with pytest.raises(Fenced):
        await late(epoch=first.epoch)

    assert (await store.get_node("n1")).status.ready
    await store.close()


async def test_a_dispatch_that_got_no_answer_leaves_its_errands_for_the_next() -> None:
    async with a_world() as world:

        async def ready() -> bool:
            return (await world.store.get_node("n1")).status.ready

        await world.until("the node is ready", ready)
        await world.agents.go_away()
        await world.put("web")

        async def placed() -> bool:
            return bool(await world.store.errands("n1"))

        await world.until("web is placed", placed)
        world.agents.away = False

        async def runs() -> bool:
            return await world.state("web") == "Running"

        await world.until("web runs", runs)
        assert world.agents.told == ["run web.0"]


async def test_nothing_is_sent_when_nothing_is_due() -> None:
    store = await open_store("memory://")
    agents = ObjectAgents(away=True)  # a call would raise
    dispatch = DispatchPass(agents, store, ScriptedClock(), AgentAddress("n1", "127.0.0.1:1", True, "l"))

    assert (await dispatch(Orphans(), epoch=1)).dirty == frozenset()
    await store.close()


async def test_the_second_controller_waits_and_takes_over_when_the_first_gives_up() -> None:
    store = await open_store("memory://")
    clock = ScriptedClock()
    first, second = Leadership(store, clock, "first"), Leadership(store, clock, "second")
    lease = await first.win()
    waiting = asyncio.create_task(second.win())
    await asyncio.sleep(0.01)
    assert not waiting.done()

    await first.give_up(lease)
    await clock.pass_(2)

    taken = await asyncio.wait_for(waiting, 5)
    assert taken.epoch > lease.epoch
    await asyncio.sleep(0)
    keeping = asyncio.create_task(first.keep(lease))
    await asyncio.sleep(0.01)
    await clock.pass_(5)
    await asyncio.wait_for(keeping, 5)  # the first learns that it leads no more
    await store.close()


async def test_an_idle_world_writes_nothing() -> None:
    async with a_world() as world:
        await world.put("web")

        async def runs() -> bool:
            return await world.state("web") == "Running"

        await world.until("web runs", runs)
        before = await world.store.resource_version()
        for _ in range(20):
            await world.clock.pass_(10)
            await asyncio.sleep(0.002)

        assert await world.store.resource_version() == before
        events = await world.store.list_events(EventFilter(object_id="web"))
        assert all(e.count == 1 for e in events.items)
        assert await world.state("web") == State.RUNNING
