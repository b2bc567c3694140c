"""Single passes, called by hand: what each does when the world does not play along."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

import pytest
from structlog.testing import capture_logs

from builders import NOW, a_manifest, a_registration
from controller.exchange import ObservedAllocation, Report
from controller.loops.bounds import NodeBounds
from controller.loops.dispatch import DispatchPass
from controller.loops.lease import Leadership
from controller.loops.observe import ObservePass
from controller.loops.reap import Orphans
from controller.loops.reconcile import ReconcilePass
from controller.loops.told import Told
from controller.nodes import NodeRefused
from controller.store import open_store
from controller.store.contract import AgentAddress, EventFilter, Fenced, Put
from support.loop_world import ObjectAgents, ScriptedClock


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
    observe = ObservePass(
        agents, store, clock, AgentAddress("n1", node.status.address, True, "ledger-1"), NodeBounds(), Told()
    )

    assert not (await observe(epoch=0)).turned
    assert (await store.get_node("n1")).status.ready
    await clock.pass_(NodeBounds().silent_after_s)
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
        observe = ObservePass(
            agents,
            store,
            ScriptedClock(),
            AgentAddress("n1", node.status.address, True, "ledger-1"),
            NodeBounds(),
            Told(),
        )
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
    observe = ObservePass(
        agents, store, ScriptedClock(), AgentAddress("n1", node.status.address, False, "ledger-1"), NodeBounds(), Told()
    )
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
    late = ObservePass(ObjectAgents(cluster_id=store.cluster_id, away=True), store, clock, there, NodeBounds(), Told())
    await late(epoch=first.epoch)
    second = await store.acquire_lease("second", ttl_s=15)
    await ObservePass(ObjectAgents(cluster_id=store.cluster_id), store, clock, there, NodeBounds(), Told())(
        epoch=second.epoch
    )
    await clock.pass_(NodeBounds().silent_after_s)

    with pytest.raises(Fenced):
        await late(epoch=first.epoch)

    assert (await store.get_node("n1")).status.ready
    await store.close()


async def test_nothing_is_sent_when_nothing_is_due() -> None:
    store = await open_store("memory://")
    agents = ObjectAgents(away=True)  # a call would raise
    dispatch = DispatchPass(agents, store, ScriptedClock(), AgentAddress("n1", "127.0.0.1:1", True, "l"), Told())

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


async def test_what_an_agent_puts_off_is_said_once_a_while_and_told_again() -> None:
    store = await open_store("memory://")
    clock = ScriptedClock()
    agents = ObjectAgents(cluster_id=store.cluster_id, busy="no space left on the disk")
    lease = await store.acquire_lease("me", ttl_s=15)
    node, _ = await store.register_node("n1", a_registration(ledger_uid="ledger-1"), now=NOW)
    await store.set_node_ready("n1", ready=True, reason="Ready", message="", epoch=lease.epoch, now=NOW)
    await store.apply([Put(a_manifest("web"))], now=NOW)
    await ReconcilePass(store, clock, lambda: "seed")(["web"], epoch=lease.epoch)
    dispatch = DispatchPass(agents, store, clock, AgentAddress("n1", node.status.address, True, "ledger-1"), Told())

    with capture_logs() as logs:
        assert (await dispatch(Orphans(), epoch=lease.epoch)).busy
        assert (await dispatch(Orphans(), epoch=lease.epoch)).busy

    assert [e["event"] for e in logs] == ["dispatched"]
    events = (await store.list_events(EventFilter(object_id="web"))).items
    [event] = [e for e in events if e.reason == "LedgerUnwritable"]
    assert (event.count, event.node) == (1, "n1")
    assert "no space left on the disk" in event.message
    agents.busy = ""
    assert not (await dispatch(Orphans(), epoch=lease.epoch)).busy
    assert agents.told == ["run web.0"]
    await store.close()
